"""The three commands, as a shell would call them."""

import http.server
import json
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from simplecache.cli.main import main
from simplecache.control.shards import Shard
from simplecache.control.snapshot import make_directory
from simplecache.placement import Maglev, RingHash

ENDPOINTS = {
    "Nodes": [
        {"Name": f"n{i}", "Address": "127.0.0.1", "Ports": [7000 + i], "Weight": i + 1}
        for i in range(3)
    ]
}
WEIGHTED = [(f"n{i}/0", i + 1) for i in range(3)]


def scs(*arguments):
    return main(arguments)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in ("ENDPOINTS", "CONTROL_PLANE", "LB", "TABLE_SIZE", "XDS", "ADMIN", "LISTEN", "OPS"):
        monkeypatch.delenv(f"SCS_{name}", raising=False)


@pytest.fixture
def endpoints(tmp_path):
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps(ENDPOINTS))
    return str(path)


@contextmanager
def control_plane(document, status=200):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(document).encode()
            self.send_response(status if self.path == "/v1/endpoints" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_locate_takes_names_byte_for_byte(endpoints, capsys, monkeypatch):
    names = ["prj-a/apple", "prj-a/what?1.jpg", "prj-a/s3://b//x%2Fy"]
    assert scs("locate", *names, "--endpoints", endpoints) == 0
    placement = Maglev(WEIGHTED)
    owners = [placement.owner(f"/v1/objects/{name}".encode()) for name in names]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{owner} 127.0.0.1:700{owner[1]}" for owner in owners]

    monkeypatch.setenv("SCS_ENDPOINTS", endpoints)
    assert scs("locate", *names, "--lb=ring_hash", "--table-size=999", "--json") == 0
    ring = RingHash(WEIGHTED, 999)
    rows = json.loads(capsys.readouterr().out)
    assert [row["object"] for row in rows] == names
    assert [row["owner"] for row in rows] == [
        ring.owner(b"/v1/objects/" + n.encode()) for n in names
    ]


def test_locate_asks_a_control_plane(capsys, monkeypatch):
    shards = [Shard(name, "", "::1", 80, weight) for name, weight in WEIGHTED]
    with control_plane(make_directory(shards, lb="maglev", table_size=997)) as url:
        monkeypatch.setenv("SCS_ENDPOINTS", "/a/flag/wins")
        assert scs("locate", "prj-a/x", "--control-plane", url) == 0
        owner = Maglev(WEIGHTED, 997).owner(b"/v1/objects/prj-a/x")
        assert capsys.readouterr().out == f"{owner} [::1]:80\n"


def test_locate_says_what_is_wrong(endpoints, capsys):
    def fails(status, text, *arguments):
        assert scs("locate", *arguments) == status
        message = capsys.readouterr().err
        assert text in message
        assert message.count("\n") == 1

    fails(2, "--endpoints FILE or --control-plane URL", "prj-a/x")
    fails(2, "'apple': expected BUCKET/OBJECT", "apple", "--endpoints", endpoints)
    fails(2, "bucket name 'B'", "B/x", "--endpoints", endpoints)
    fails(2, "table size: 10", "prj-a/x", "--endpoints", endpoints, "--table-size", "10")
    fails(2, "No such file", "prj-a/x", "--endpoints", endpoints + ".absent")
    fails(2, "'https://x' must be http://", "prj-a/x", "--control-plane", "https://x")
    with control_plane({"lb": "maglev"}) as url:
        fails(3, "its answer lacks 'table_size'", "prj-a/x", "--control-plane", url)
    with control_plane("no snapshot yet", 503) as url:
        fails(3, "it answers 503", "prj-a/x", "--control-plane", url)
    fails(3, "refused", "prj-a/x", "--control-plane", url)


def test_the_bootstrap_is_printed(capsys):
    assert scs("envoy-bootstrap", "--xds", "[::1]:1", "--node-id", "e", "--admin", "a.sock") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["node"]["id"] == "e"
    assert scs("envoy-bootstrap", "--xds", "x:1", "--admin", "a" * 200) == 2
    assert "107 bytes" in capsys.readouterr().err


def test_flags_come_from_the_environment_and_are_checked(endpoints, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("simplecache.control.serve.run", lambda settings: done(seen, settings))
    monkeypatch.setenv("SCS_ENDPOINTS", endpoints)
    monkeypatch.setenv("SCS_LISTEN", "0.0.0.0:1")
    monkeypatch.setenv("SCS_LB", "ring_hash")
    assert scs("control-plane", "--ops", "[::1]:2", "--table-size", "1000") == 0
    (settings,) = seen
    assert str(settings.endpoints) == endpoints
    assert (settings.listen, settings.ops) == (("0.0.0.0", 1), ("::1", 2))
    assert (settings.lb, settings.table_size) == ("ring_hash", 1000)
    with pytest.raises(SystemExit):
        scs("control-plane", "--ops", "nonsense")
    assert "'nonsense' must be HOST:PORT" in capsys.readouterr().err


async def done(seen, settings):
    seen.append(settings)


def test_a_missing_extra_is_one_line_that_helps(endpoints):
    program = (
        "import sys\n"
        "sys.modules['grpc'] = None\n"
        "from simplecache.cli.main import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "control-plane", "--endpoints", endpoints],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert "pip install 'simple-cache-service[local]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_shows_examples_and_needs_no_extra(capsys):
    for command in ("control-plane", "envoy-bootstrap", "locate"):
        with pytest.raises(SystemExit):
            scs(command, "--help")
        assert "EXAMPLES" in capsys.readouterr().out
    quick = subprocess.run(
        [sys.executable, "-c", "import simplecache.cli.control, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"grpc", "google.protobuf", "xxhash"} & set(quick.stdout.split())
