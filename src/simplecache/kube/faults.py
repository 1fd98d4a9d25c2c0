"""What an apiserver's refusal becomes: one of our errors, with the server's words trimmed."""

from __future__ import annotations

from typing import Final

from simplecache.errors import ApiFault, ApiGone

RETRY_AFTER_MAX_S: Final = 60.0
"""No server may make us wait for longer."""

MESSAGE_MAX_CHARS: Final = 300


def make_fault(
    what: str, status: int, message: object = None, retry_after: str | None = None
) -> ApiFault:
    """The fault for a status, whether it came as HTTP's own or inside a watch.

    Args:
        what: the call, for the text.
        status: HTTP status or the code of a Kubernetes Status.
        message: the server's words; anything but a string is ignored.
        retry_after: the header's value.
    """
    words = f": {trim(message)}" if isinstance(message, str) and message else ""
    wait_s = None
    if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
        wait_s = min(float(retry_after[:9]), RETRY_AFTER_MAX_S)
    kind = ApiGone if status == 410 else ApiFault
    return kind(f"{what}: status {status}{words}", status=status, retry_after_s=wait_s)


def trim(text: str) -> str:
    """A peer's words for our logs: short, on one line, printable."""
    short = text[:MESSAGE_MAX_CHARS]
    return "".join(char if char.isprintable() else " " for char in short)
