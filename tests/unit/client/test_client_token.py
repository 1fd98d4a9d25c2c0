"""The token file: read again when it must be, and only then."""

import os

import pytest

from simplecache.client.token import TOKEN_MAX_BYTES, TokenFile
from simplecache.errors import InvalidConfig


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def path(tmp_path):
    return tmp_path / "token"


@pytest.mark.parametrize("content", ["abc", "abc\n", "  abc\r\n\n", "\tabc"])
def test_it_is_stripped(path, content):
    path.write_text(content)
    assert TokenFile(path).read() == "abc"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"a b", "not one token"),
        (b"a\nb", "not one token"),
        (b"secr\0et", "not one token"),
        ("se¢ret".encode(), "not one token"),
        (b"x" * (TOKEN_MAX_BYTES + 1), "larger than"),
    ],
)
def test_what_is_no_token(path, content, complaint):
    path.write_bytes(content)
    with pytest.raises(InvalidConfig, match=complaint) as caught:
        TokenFile(path).read()
    assert str(path) in str(caught.value)
    assert "secr" not in str(caught.value).replace(str(path), "")


def test_no_file(path):
    file = TokenFile(path)
    with pytest.raises(InvalidConfig, match="No such file"):
        file.read()
    path.write_text("abc")
    assert file.read() == "abc"


def test_a_change_is_seen_at_once(path, tmp_path):
    path.write_text("one")
    file = TokenFile(path)
    assert file.read() == "one"
    path.write_text("three")
    assert file.read() == "three"
    other = tmp_path / "other"
    other.write_text("seven")
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    other.replace(path)  # same size, same time: another inode
    assert file.read() == "seven"


def test_a_symlink_that_is_swapped(path, tmp_path):
    """The kubelet's way: ..data is a link to a directory, replaced as a whole."""
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    path.symlink_to("one")
    file = TokenFile(path)
    assert file.read() == "one"
    (tmp_path / "link").symlink_to("two")
    (tmp_path / "link").replace(path)
    assert file.read() == "two"


def test_a_change_that_cannot_be_seen_is_found_in_a_minute(path):
    clock = Clock()
    path.write_text("one")
    file = TokenFile(path, now=clock)
    assert file.read() == "one"
    status = path.stat()
    path.write_text("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    clock.now_s += 59
    assert file.read() == "one"
    clock.now_s += 1
    assert file.read() == "two"


def test_a_file_in_disorder_leaves_the_last_token_in_use(path):
    path.write_text("one")
    file = TokenFile(path)
    assert file.read() == "one"
    path.write_text("")
    assert file.read() == "one"
    path.unlink()
    assert file.read() == "one"
    with pytest.raises(InvalidConfig):
        file.reread()
    path.write_text("two")
    assert file.read() == "two"
    assert repr(file) == f"<TokenFile {str(path)!r} read=True>"
