"""The tree of errors is the one that its docstring draws."""

import inspect
import re

from simplecache import errors
from simplecache.errors import SimpleCacheError, Unavailable


def draw(cls, prefix=""):
    """The subclasses of ``cls`` in the order of the module, as lines of a tree."""
    members = [member for member in vars(errors).values() if inspect.isclass(member)]
    children = [member for member in members if cls in member.__bases__]
    for child in children:
        is_last = child is children[-1]
        yield f"{prefix}{'└── ' if is_last else '├── '}{child.__name__}"
        yield from draw(child, prefix + ("    " if is_last else "│   "))


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = errors.__doc__.partition("::\n")[2].partition("\n\nNo HTTP")[0]
    lines = [
        re.sub(r"(\w+) .*", r"\1", line[4:]).rstrip() for line in drawn.strip("\n").splitlines()
    ]
    assert lines == ["SimpleCacheError", *draw(SimpleCacheError)]


def test_every_error_of_the_module_is_in_the_tree():
    members = [member for member in vars(errors).values() if inspect.isclass(member)]
    assert all(issubclass(member, SimpleCacheError) for member in members)
    assert all(member.__doc__ for member in members)


def test_whatever_may_be_tried_again_says_when():
    found = [Unavailable, *Unavailable.__subclasses__()]
    assert all(isinstance(cls("x").retry_after_s, int) and cls.retry_after_s > 0 for cls in found)
