"""Servers for the client's tests, on real loopback sockets.

``Scripted`` plays a function on each connection, and can lie in any way. ``FakeNode`` keeps the
contract of docs/behaviour.md as far as a client sees it, written on ``http.server`` and sharing
nothing with the real node.
"""

import contextlib
import hashlib
import http.server
import json
import re
import socket
import struct
import threading


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock):
        self.sock = sock
        self.sock.settimeout(20)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a reset drops the unsent
        self._rest = b""

    def read_head(self):
        """A request's head; b"" when the client has ended the connection instead."""
        while b"\r\n\r\n" not in self._rest:
            data = self.sock.recv(65536)
            if not data:
                return b""
            self._rest += data
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        return head

    def read(self, size):
        while len(self._rest) < size:
            data = self.sock.recv(65536)
            if not data:
                break
            self._rest += data
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def send(self, *parts):
        self.sock.sendall(b"".join(parts))

    def answer(self, status, body=b"", *fields):
        lines = [b"HTTP/1.1 %d X" % status, b"Content-Length: %d" % len(body), *fields]
        self.send(b"\r\n".join(lines), b"\r\n\r\n", body)

    def reset(self):
        """End the connection with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def wait_for_end(self):
        with contextlib.suppress(ConnectionError):
            while self.sock.recv(65536):
                pass


class Scripted:
    """Plays ``plays[i]`` on the i-th connection, and the last one on all that follow."""

    def __init__(self, *plays):
        self._plays = plays
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = []
        self.connections = 0
        self.errors = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def _accept(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            play = self._plays[min(self.connections, len(self._plays) - 1)]
            self.connections += 1
            thread = threading.Thread(target=self._play, args=(play, sock))
            self._threads.append(thread)
            thread.start()

    def _play(self, play, sock):
        with sock:
            try:
                play(Peer(sock))
            except Exception as error:  # noqa: BLE001  the fixture reports it
                self.errors.append(error)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in [self._acceptor, *self._threads]:
            thread.join(20)
            assert not thread.is_alive()


class FakeNode(http.server.ThreadingHTTPServer):
    """A cache in a dict. Buckets: ``public`` for all, ``private`` for ``tokens`` only."""

    daemon_threads = True

    def __init__(self, tokens=("good-token",)):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects = {}
        self.tokens = set(tokens)
        self.asked = []
        self.max_object_bytes = 256 << 20
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self):
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that leaves is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.connection.settimeout(20)

    def log_message(self, *args):
        self.server.asked.append(self.requestline)

    def do_GET(self):
        if (stored := self._find()) is None:
            return
        body, content_type = stored
        etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        fields = {"Content-Type": content_type, "ETag": etag, "Accept-Ranges": "bytes"}
        fields["Last-Modified"] = "Tue, 20 Oct 2026 07:28:00 GMT"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or self.command == "HEAD":
            self._answer(200, body, fields)
            return
        start, size = int(wanted[1]), len(body)
        last = min(int(wanted[2] or size), size - 1)
        if start >= size:
            self._refuse(416, "range", "no such part", {"Content-Range": f"bytes */{size}"})
            return
        fields["Content-Range"] = f"bytes {start}-{last}/{size}"
        self._answer(206, body[start : last + 1], fields)

    do_HEAD = do_GET  # noqa: N815

    def do_DELETE(self):
        if self._find() is not None:
            del self.server.objects[self.path]
            self._answer(204, b"", {})

    def do_PUT(self):
        if self.headers.get("Expect") is None and not self._may_put():
            return
        body = self._read_body()
        if len(body) < int(self.headers.get("Content-Length", 0)):
            self.close_connection = True
            return
        content_type = self.headers.get("Content-Type", "application/octet-stream")
        self.server.objects[self.path] = (body, content_type)
        self._answer(201, b"", {})

    def handle_expect_100(self):
        return self._may_put() and super().handle_expect_100()

    def _may_put(self):
        if not self._is_allowed():
            return False
        if int(self.headers.get("Content-Length", 0)) > self.server.max_object_bytes:
            self._refuse(413, "too-large", "the object is larger than allowed")
        elif self.headers.get("If-None-Match") == "*" and self.path in self.server.objects:
            self._refuse(412, "precondition", "it is there")
        else:
            return True
        return False

    def _read_body(self):
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            assert self.rfile.readline() == b"\r\n"
        assert self.rfile.readline() == b"\r\n"
        return body

    def _is_allowed(self):
        bucket = self.path.split("/")[3]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if bucket not in {"public", "private"}:
            self._refuse(404, "no-bucket", f'there is no bucket "{bucket}"')
        elif bucket == "private" and not token:
            self._refuse(401, "unauthenticated", "a token is needed")
        elif bucket == "private" and token.startswith("other-token"):
            self._refuse(403, "forbidden", 'namespace "other" may not use bucket "private"')
        elif bucket == "private" and token not in self.server.tokens:
            self._refuse(401, "unauthenticated", "the token is not known")
        else:
            return True
        return False

    def _find(self):
        if not self._is_allowed():
            return None
        stored = self.server.objects.get(self.path)
        if stored is None:
            self._refuse(404, "miss", "there is no such object")
        return stored

    def _refuse(self, status, word, detail, fields=()):
        problem = {"type": "about:blank", "status": status, "detail": detail}
        known = {"SCS-Error": word, "Content-Type": "application/problem+json", **dict(fields)}
        if self.command == "PUT":
            known["Connection"] = "close"
            self.close_connection = True
        self._answer(status, json.dumps(problem).encode(), known)

    def _answer(self, status, body, fields):
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
