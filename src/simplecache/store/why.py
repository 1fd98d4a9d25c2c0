"""What became of an object, in a sentence. Pure."""

from __future__ import annotations

from typing import Final

from simplecache.store.index import Row, Tombstone

_ENDS: Final = {
    "deleted": "it was deleted",
    "purged": "it was purged",
    "corrupt": "its bytes did not match their sums, so it was dropped,",
    "unreadable": "the disk could not read it, so it was dropped,",
    "expired": "it expired",
    "removed": "its bucket was removed from the configuration",
    "quota": "it was evicted because its bucket was above its quota",
    "not admitted": "it was put but not kept, for the shard is full and what is there is "
    "wanted more;",
}
"""The rule by which an entry went -> words."""


def tell(row: Row | None, grave: Tombstone | None, now_s: int) -> str:
    """The sentence for an entry's row, or for its tombstone."""
    if row is not None and not 0 < row.expires_s <= now_s:
        who = f'namespace "{row.namespace}"' if row.namespace else "an anonymous caller"
        return f"it is here: {row.size} bytes, put {_ago(now_s - row.created_s)} ago by {who}"
    if row is not None:
        return f"it expired {_ago(now_s - row.expires_s)} ago"
    if grave is None:
        return "it was never put here, or so long ago that nobody remembers"
    favour = f', in favour of bucket "{grave.favour}"' if grave.favour else ""
    ended = _ENDS.get(grave.rule, f"it was evicted ({grave.rule})")
    return f"{ended} {_ago(now_s - grave.at_s)} ago{favour}"


def _ago(seconds: int) -> str:
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}s"
    return f"{max(0, seconds)} s"
