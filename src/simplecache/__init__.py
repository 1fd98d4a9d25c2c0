"""Simple Cache Service: the NVMe of all nodes as one HTTP cache for training data."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simplecache.client.answer import Stat
    from simplecache.client.stats import ClientStats
    from simplecache.client.sync import Client

__all__ = ["Client", "ClientStats", "Stat", "__version__"]

__version__ = "0.1.0"

_HOMES = {"Client": "sync", "ClientStats": "stats", "Stat": "answer"}


def __getattr__(name: str) -> object:
    """Import the client when it is first asked for, so that ``scs --help`` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(f"simplecache.client.{_HOMES[name]}"), name)
