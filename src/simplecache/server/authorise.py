"""May this caller do that with this bucket? Pure policy, and each verdict has its sentence."""

from __future__ import annotations

from simplecache.model import Bucket, Caller, Verdict

READ = b"GET"
"""GET and HEAD read; every other verb writes."""

_OPEN = Verdict(True, "the bucket is open to all")


def is_read(verb: bytes) -> bool:
    """Whether ``verb`` only reads."""
    return verb in {b"GET", b"HEAD"}


def needs_caller(bucket: Bucket, *, reads: bool) -> bool:
    """Whether who asks makes a difference; if not, no token is looked at."""
    return not bucket.public or not (reads or bucket.write_namespaces is None)


def authorise(bucket: Bucket, caller: Caller | None, *, reads: bool) -> Verdict:
    """The verdict on ``caller`` (None: nobody said who they are)."""
    if not needs_caller(bucket, reads=reads):
        return _OPEN
    action, key = ("read", "ReadNamespaces") if reads else ("write", "WriteNamespaces")
    allowed = bucket.read_namespaces if reads else bucket.write_namespaces or ()
    if caller is None or caller.namespace is None:
        return Verdict(
            False, f'to {action} bucket "{bucket.name}" send a bearer token', needs_token=True
        )
    if caller.namespace in allowed:
        return Verdict(True, f'namespace "{caller.namespace}" is in {key}')
    listed = ", ".join(allowed) if allowed else "none"
    return Verdict(
        False,
        f'namespace "{caller.namespace}" may not {action} bucket "{bucket.name}" ({key}: {listed})',
    )
