"""Waits for SIGTERM, then lets the Envoy beside it drain.

Envoy's image has no shell and no HTTP client, and its admin socket takes POSTs only; hence this
second, idle container. At a pod's end it gets SIGTERM at once, while Envoy is held back by its
preStop sleep. From then on answers say "Connection: close", and clients move to another Envoy
without losing a request.
"""

import http.client
import signal
import socket
import sys

PATH = "/drain_listeners?graceful&skip_exit"
TIMEOUT_S = 5.0


class AdminConnection(http.client.HTTPConnection):
    """HTTP over the admin socket."""

    def __init__(self, path: str) -> None:
        super().__init__("envoy-admin", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def main(admin_path: str) -> int:
    """Wait, drain; 0 if Envoy agreed."""
    ends = {signal.SIGTERM, signal.SIGINT}
    # Blocked, not handled: a process with the id 1 would ignore them, and sigwait misses none.
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    print("waiting for SIGTERM", flush=True)
    signal.sigwait(ends)
    connection = AdminConnection(admin_path)
    try:
        connection.request("POST", PATH)
        answer = connection.getresponse()
        print(f"drain: {answer.status} {answer.read(200)!r}", flush=True)
    except (OSError, http.client.HTTPException) as error:
        print(f"drain: {error}", flush=True)
        return 1
    finally:
        connection.close()
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
