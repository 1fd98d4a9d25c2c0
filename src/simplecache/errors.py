"""Every error that the package raises on purpose.

The tree::

    SimpleCacheError
    ├── InvalidName            a bucket or object name that can never exist
    ├── InvalidConfig          a configuration value; names the key and the value
    ├── Refused                the cache will not do it; subclasses say why
    │   ├── Unauthenticated        no token, or one that is not good
    │   ├── Forbidden              the token's namespace is not on the bucket's list
    │   ├── NoSuchBucket           the bucket is not configured
    │   ├── TooLarge               larger than the limit for one object
    │   ├── PreconditionFailed     If-Match, If-None-Match
    │   ├── DigestMismatch         the body is not what its digest says
    │   ├── NotAdmitted            the shard is full, and what is there is wanted more
    │   └── Unavailable            not now: a retry later may do
    │       ├── Throttled              a cap of the bucket or the namespace was reached
    │       ├── Overloaded             too many uploads or connections
    │       ├── Draining               this node is stopping
    │       ├── ReviewUnavailable      the token can't be checked just now
    │       ├── DiskFull               no room for the object
    │       └── DiskError              the disk failed
    ├── Malformed              bytes that are not the protocol
    ├── ApiFault               the Kubernetes API could not be asked, or refused
    │   └── ApiGone                the resource version is too old: list afresh
    ├── CacheFault             client side: the cache could not be asked, or answered nonsense
    └── DataDirError           a data directory that cannot be used

No HTTP here: ``server/handle.py`` holds the one table from error to status.
"""


class SimpleCacheError(Exception):
    """Root of all errors of this package. Its text is a sentence a person can act on."""


class InvalidName(SimpleCacheError, ValueError):
    """A bucket or object name breaks the rules in docs/behaviour.md."""


class InvalidConfig(SimpleCacheError, ValueError):
    """A configuration value is wrong; the text names the key, the value and what is expected."""


class Refused(SimpleCacheError):
    """The cache understood and will not do it."""


class Unauthenticated(Refused):
    """The bucket needs a token; it is missing, malformed or not good."""


class Forbidden(Refused):
    """The caller is known and may not do this."""


class NoSuchBucket(Refused):
    """The bucket is not configured."""


class TooLarge(Refused):
    """The object is larger than the limit."""


class PreconditionFailed(Refused):
    """A condition of the request does not hold."""


class DigestMismatch(Refused):
    """The body's digest differs from the one that was sent with it."""


class NotAdmitted(Refused):
    """The shard is full and keeps what is there: sending the object would be in vain."""


class Unavailable(Refused):
    """It cannot be done now; a later retry may succeed.

    Attributes:
        retry_after_s: what a client should wait, in whole seconds.
    """

    retry_after_s: int = 1


class Throttled(Unavailable):
    """A configured cap was reached."""

    def __init__(self, detail: str, *, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    """A bound on concurrent work was reached."""


class Draining(Unavailable):
    """This node is stopping."""


class ReviewUnavailable(Unavailable):
    """Whether the token is good cannot be found out just now."""


class DiskFull(Unavailable):
    """No room for this object, and none can be made quickly."""

    retry_after_s = 5


class DiskError(Unavailable):
    """The disk failed while the object was written or read."""

    retry_after_s = 5


class Malformed(SimpleCacheError, ValueError):
    """Bytes on the wire or in a file that are not what the format says."""


class ApiFault(SimpleCacheError):
    """The Kubernetes API could not be reached, refused a call, or ended an answer half-way.

    Attributes:
        status: the HTTP status, or None when there was no whole answer.
        retry_after_s: how long the apiserver asked to be left alone, or None.
    """

    def __init__(
        self, text: str, *, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after_s = retry_after_s


class ApiGone(ApiFault):
    """The resource version or continue token is no longer known (410): only a new list helps."""


class CacheFault(SimpleCacheError):
    """Client side: the cache could not be reached, or its answer makes no sense."""


class DataDirError(SimpleCacheError):
    """A data directory is of another version, node or layout, or is in use."""
