"""A real cache node over real sockets: starting, watching and ending it, and a client that lies.

``Node`` is one ``scs serve`` with its files; ``Wire`` is one connection on which any bytes can be
sent. Ports are the kernel's choice, and every process is ended by its pid.
"""

import contextlib
import hashlib
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

DEADLINE_S = 30.0

TOKEN_A = "token-of-namespace-prj-a"
TOKEN_B = "token-of-namespace-prj-b"
TOKENS = {
    "Token": [
        {"Token": TOKEN_A, "Namespace": "prj-a"},
        {"Token": TOKEN_B, "Namespace": "prj-b"},
    ]
}
BUCKETS = {
    "Bucket": [
        {"Name": "public", "Public": True, "BucketQuota": "100Gi"},
        {"Name": "private", "Public": False, "AllowNamespaces": ["prj-a"]},
        {
            "Name": "shared",
            "AllowNamespaces": ["prj-a", "prj-b"],
            "WriteNamespaces": ["prj-a"],
        },
        {"Name": "guarded", "Public": True, "WriteNamespaces": ["prj-a"]},
        {"Name": "dropbox", "ReadNamespaces": ["prj-b"], "WriteNamespaces": ["prj-a"]},
    ]
}


def until(condition, what, deadline_s=DEADLINE_S):
    """Wait for what no event tells of, such as another process's state; returns what came true."""
    end = time.monotonic() + deadline_s
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        time.sleep(0.01)


def is_alive(pid):
    """Whether a process runs; one that is only waited for does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def count_descriptors(pid):
    """How many files and sockets a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def memory_peak_mib(pid):
    """The most memory that a process had at once (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM")


def noise(size, seed=0):
    """Bytes that nothing compresses, the same for the same arguments."""
    return random.Random(seed).randbytes(size)


@dataclass
class Response:
    """What a node answered."""

    status: int
    fields: dict[str, str]
    body: bytes
    head: bytes = b""

    @property
    def word(self):
        return self.fields.get("scs-error")

    def __repr__(self):
        return f"<Response {self.status} {self.word or ''} {len(self.body)} bytes>"


class Wire:
    """One connection to one port. Nothing that is sent is changed on the way."""

    def __init__(self, address, timeout_s=DEADLINE_S):
        self.sock = socket.create_connection(address, timeout=timeout_s)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, *parts):
        self.sock.sendall(b"".join(parts))

    def send_all_you_can(self, data):
        """Send to a peer that may stop listening in between."""
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(data)

    def end_sending(self):
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self):
        """Be gone, with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def read_head(self):
        while b"\r\n\r\n" not in self._rest:
            data = self.sock.recv(1 << 18)
            if not data:
                raise ConnectionResetError(f"the node ended the connection after {self._rest!r}")
            self._rest += data
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        return head

    def read(self, size):
        parts, have = [self._rest[:size]], len(self._rest[:size])
        self._rest = self._rest[size:]
        while have < size:
            data = self.sock.recv(min(1 << 20, size - have))
            if not data:
                raise ConnectionResetError(f"{have} of {size} bytes came")
            parts.append(data)
            have += len(data)
        return b"".join(parts)

    def read_to_end(self):
        parts = [self._rest]
        self._rest = b""
        with contextlib.suppress(ConnectionError):
            while data := self.sock.recv(1 << 18):
                parts.append(data)
        return b"".join(parts)

    def is_silent(self):
        """Whether nothing is there to be read just now."""
        return not self._rest and not select.select([self.sock], [], [], 0)[0]

    def response(self, verb="GET"):
        """The next response, framed as RFC 9112 says."""
        head = self.read_head()
        line, *rows = head.split(b"\r\n")
        version, status = line.split(b" ")[:2]
        assert version == b"HTTP/1.1", line
        fields = {}
        for row in rows:
            name, colon, value = row.partition(b":")
            assert colon, row
            assert name.lower() not in fields, f"{name} stands there twice"
            fields[name.lower()] = value.strip()
        fields = {name.decode(): value.decode("latin-1") for name, value in fields.items()}
        number = int(status)
        if verb == "HEAD" or number in {204, 304} or number < 200:
            body = b""
        else:
            body = self.read(int(fields["content-length"]))
        return Response(number, fields, body, head)

    def request(self, verb, target, *lines, body=None, token=None, host="cache", version="1.1"):
        """Send one request and read its answer."""
        self.send(
            make_head(verb, target, *lines, body=body, token=token, host=host, version=version)
        )
        if body:
            self.send_all_you_can(body)
        return self.response(verb)


def make_head(verb, target, *lines, body=None, token=None, host="cache", version="1.1"):
    """A request's head; a body brings its Content-Length."""
    target = target.encode("latin-1") if isinstance(target, str) else target
    rows = [b"%b %b HTTP/%b" % (verb.encode(), target, version.encode())]
    if host is not None:
        rows.append(b"Host: " + host.encode())
    if token is not None:
        rows.append(b"Authorization: Bearer " + token.encode())
    if body is not None:
        rows.append(b"Content-Length: %d" % len(body))
    rows += [line.encode() if isinstance(line, str) else line for line in lines]
    return b"\r\n".join(rows) + b"\r\n\r\n"


def make_chunks(body, size=1000, extension=b"", trailers=b""):
    """A body in the chunked coding."""
    parts = []
    for at in range(0, len(body), size):
        piece = body[at : at + size]
        parts.append(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece))
    return b"".join(parts) + b"0\r\n" + trailers + b"\r\n"


def make_name(name, bucket="public"):
    name = name.encode("latin-1") if isinstance(name, str) else name
    return b"/v1/objects/%b/%b" % (bucket.encode(), name)


@dataclass
class Node:
    """One ``scs serve``: its files under ``root``, its processes, its connections."""

    root: Path
    shards: int = 1
    auth: str = "static"
    buckets: object = field(default_factory=lambda: BUCKETS)
    tokens: object = field(default_factory=lambda: TOKENS)
    flags: tuple[str, ...] = ()
    name: str = "node-a"
    data: Path | None = None
    listen: str = "127.0.0.1:0"
    ops: str = "127.0.0.1:0"
    preexec: object = None
    process: subprocess.Popen | None = None
    addresses: list = field(default_factory=list)
    ops_address: tuple = ("", 0)
    pids: list = field(default_factory=list)

    def __post_init__(self):
        self.root.mkdir(parents=True, exist_ok=True)
        self.data = self.data or self.root / "data"
        self.config = self.root / "buckets.json"
        self.token_file = self.root / "tokens.json"
        self.log = self.root / "log"
        self.write(self.config, self.buckets)
        self.write(self.token_file, self.tokens)
        self._known_pids = set()
        self._wires = []

    # -- processes -------------------------------------------------------------------------

    @staticmethod
    def write(path, document):
        """Replace a configuration file in one step."""
        text = document if isinstance(document, str) else json.dumps(document)
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(text)
        temporary.rename(path)

    def command(self):
        return [
            sys.executable, "-m", "simplecache", "serve", "--config", str(self.config),
            "--data", str(self.data), "--shards", str(self.shards), "--listen", self.listen,
            "--ops", self.ops, "--node-name", self.name, "--auth", self.auth,
            *(("--tokens", str(self.token_file)) if self.auth == "static" else ()),
            "--announce", "--drain-delay", "0", *self.flags,
        ]  # fmt: skip

    def spawn(self):
        """Start it without waiting for anything."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SCS_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=self.preexec,  # noqa: PLW1509 - sets a limit, nothing else
                env=environment,
                start_new_session=True,
            )
        self._known_pids.add(self.process.pid)
        return self

    def start(self):
        """Start it; returns when all shards serve."""
        self.spawn()
        is_there, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
        line = self.process.stdout.readline() if is_there else b""
        if not line:
            raise AssertionError(f"the node did not start:\n{self.text_of_log()}")
        said = json.loads(line)
        self.addresses = [tuple(address) for address in said["listen"]]
        self.ops_address = tuple(said["ops"])
        self.pids = said["pids"]
        self._known_pids.update(self.pids)
        return self

    def text_of_log(self):
        return self.log.read_text(errors="replace")

    def states(self):
        """What /readyz says of each shard: its port and pid."""
        document = json.loads(self.ask_ops("/readyz").body)
        found = list(document["shards"].values())
        self._known_pids.update(state["pid"] for state in found if state["pid"])
        return found

    def stop(self, how=signal.SIGTERM):
        """End it in good order; returns the exit status."""
        self.hang_up()
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.wait()

    def wait(self):
        """Wait for the end of all its processes; returns the supervisor's exit status."""
        status = self.process.wait(DEADLINE_S)
        self.process.stdout.close()
        self.wait_for_shards()
        return status

    def wait_for_shards(self):
        until(lambda: not any(map(is_alive, self._known_pids)), "the end of all shards")

    def kill(self):
        """kill -9 of the supervisor and all shards at once."""
        with contextlib.suppress(OSError, AssertionError, ValueError):
            self.states()
        for pid in [self.process.pid, *(self._known_pids - {self.process.pid})]:
            if is_alive(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.wait()

    def close(self):
        """End whatever still runs, whatever happened."""
        if self.process is None:
            return
        try:
            if self.process.poll() is None:
                self.stop()
        finally:
            for pid in self._known_pids:
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(DEADLINE_S)
            self.process.stdout.close()
            self.hang_up()

    # -- talking to it ---------------------------------------------------------------------

    def wire(self, shard=0):
        """A new connection to a shard; closed with the node at the latest."""
        wire = Wire(self.addresses[shard])
        self._wires.append(wire)
        return wire

    def hang_up(self):
        """Close all connections that :meth:`wire` made."""
        while self._wires:
            self._wires.pop().sock.close()

    def request(self, verb, target, *lines, shard=0, **options):
        """One request on a connection of its own."""
        with Wire(self.addresses[shard]) as wire:
            return wire.request(verb, target, *lines, **options)

    def put(self, name, body, *lines, bucket="public", **options):
        return self.request("PUT", make_name(name, bucket), *lines, body=body, **options)

    def get(self, name, *lines, bucket="public", **options):
        return self.request("GET", make_name(name, bucket), *lines, **options)

    def ask_ops(self, path, verb="GET"):
        with Wire(self.ops_address) as wire:
            return wire.request(verb, path)

    def metric(self, name, **labels):
        """The sum of a metric's samples with these labels; None when there are none."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        found = [
            float(line.rpartition(" ")[2])
            for line in self.ask_ops("/metrics").body.decode().splitlines()
            if line.startswith(name + "{") and all(label in line for label in wanted)
        ]
        return sum(found) if found else None

    # -- its files -------------------------------------------------------------------------

    def temporary_files(self):
        return sorted(self.data.glob("shard-*/tmp/*"))

    def object_files(self):
        return sorted(self.data.glob("shard-*/objects/*/*"))

    def file_of(self, name, bucket="public", shard=0):
        """Where an object's file is; the format is the store's affair, its place is documented."""
        ident = hashlib.blake2b(make_name(name, bucket), digest_size=16).hexdigest()
        return self.data / f"shard-{shard:02d}" / "objects" / ident[:3] / ident[3:]


def snapshot(directory, without):
    """Every path under ``directory`` but ``without``: kind, size, time of the last change."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path == without or without in path.parents:
            continue
        status = path.lstat()
        found[str(path.relative_to(directory))] = (
            status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino,
        )  # fmt: skip
    return found
