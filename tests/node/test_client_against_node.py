"""The client's contract with a cache node: the same tests against the fake and the real one."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simplecache import errors
from simplecache.cli.main import main
from simplecache.client.sync import Client
from simplecache.model import Key

sys.path.append(str(Path(__file__).parent.parent / "unit/client"))

MIB = 1 << 20
GOOD, OTHER = "good-token-0123456789", "other-token-0123456789"
OBJECT_MAX_BYTES = 64 * MIB
BIG = bytes(range(256)) * (20 * MIB // 256)

BUCKETS = {
    "Bucket": [
        {"Name": "public", "Public": True, "BucketQuota": "1Gi"},
        {
            "Name": "private",
            "Public": False,
            "BucketQuota": "1Gi",
            "AllowNamespaces": ["prj-good"],
        },
    ]
}
TOKENS = {
    "Token": [
        {"Token": GOOD, "Namespace": "prj-good"},
        {"Token": OTHER, "Namespace": "prj-other"},
    ]
}


@pytest.fixture(scope="module")
def fake_url():
    import peers

    fake = peers.FakeNode(tokens=(GOOD,))
    fake.max_object_bytes = OBJECT_MAX_BYTES
    yield fake.url
    fake.close()


@pytest.fixture(scope="module")
def real_url(tmp_path_factory):
    home = tmp_path_factory.mktemp("node")
    (home / "buckets.json").write_text(json.dumps(BUCKETS))
    (home / "tokens.json").write_text(json.dumps(TOKENS))
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "simplecache", "serve", "--announce"),
                *("--config", "buckets.json", "--tokens", "tokens.json", "--data", "data"),
                *("--listen", "127.0.0.1:0", "--ops", "127.0.0.1:0", "--shards", "1"),
                *("--node-name", "n1", "--max-object-size", str(OBJECT_MAX_BYTES)),
                *("--drain-delay", "0", "--drain-grace", "5"),
            ],
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    with process:
        line = process.stdout.readline()
        assert line, (home / "log").read_text()
        host, port = json.loads(line)["listen"][0]
        yield f"http://{host}:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (home / "log").read_text()


@pytest.fixture(params=["fake", "real"])
def url(request):
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def client(url):
    with Client(url, token=GOOD, fail_open=False) as client:
        yield client


@pytest.fixture
def stranger(url):
    with Client(url, token=OTHER, fail_open=False) as client:
        yield client


@pytest.fixture
def nobody(url):
    with Client(url, fail_open=False) as client:
        yield client


class TestObjects:
    @pytest.mark.parametrize("bucket", ["public", "private"])
    @pytest.mark.parametrize("size", [0, 1, 4096, MIB, MIB + 1, len(BIG)])
    def test_what_is_put_is_got(self, client, bucket, size):
        key = f"{bucket}/round/{size}"
        data = BIG[:size]
        assert client.put(key, data, content_type="image/jpeg") is True
        assert client.get(key) == data
        assert client.put(key, io.BytesIO(b"new")) is True
        assert client.get(key) == b"new"
        assert client.put(key, iter([data[:3], data[3:]])) is True
        with client.get_stream(key) as stream:
            assert b"".join(stream) == data
        assert client.delete(key) is True
        assert client.delete(key) is False
        assert client.get(key) is None
        assert client.head(key) is None
        assert client.get_range(key, 0, 1) is None
        with client.get_stream(key) as stream:
            assert stream is None

    def test_facts(self, client):
        for key in ("public/facts", "public/facts2"):
            client.put(key, b"hello", content_type="text/plain; charset=utf-8")
        stat = client.head("public/facts")
        assert (stat.size_bytes, stat.content_type) == (5, "text/plain; charset=utf-8")
        assert stat.etag == client.head("public/facts2").etag
        assert re.fullmatch(r'"[^"]+"', stat.etag)
        assert stat.modified_at.tzinfo is not None
        with client.get_stream("public/facts", start=1, end=3) as stream:
            assert (stream.stat, stream.length_bytes) == (stat, 2)
            assert b"".join(stream) == b"el"
        client.put("public/facts", b"x")
        assert client.head("public/facts").content_type == "application/octet-stream"

    def test_parts_are_slices(self, client):
        data = BIG[: 3 * MIB]
        client.put("public/parts", data)
        for start, end in [(0, 1), (5, 6), (MIB, 2 * MIB), (len(data) - 1, None), (7, None)]:
            assert client.get_range("public/parts", start, end) == data[start:end]
        for start, end in [(0, 2 * len(data)), (len(data), None), (len(data) + 5, len(data) + 9)]:
            assert client.get_range("public/parts", start, end) == data[start:end]
        client.put("public/parts", b"")
        assert client.get_range("public/parts", 0, 10) == b""

    def test_if_absent(self, client):
        client.delete("public/absent")
        assert client.put("public/absent", b"one", if_absent=True) is True
        for data in (b"two", BIG, iter([BIG])):
            assert client.put("public/absent", data, if_absent=True) is False
        assert client.get("public/absent") == b"one"

    @pytest.mark.parametrize(
        "name",
        [
            b"s3://ozone/bkt/train.zip/pfio-zipfs/n01440764/x.JPEG",
            b"file://tmp/100%.jpg",
            b"what?1.jpg",
            b"a/../b/./c",
            b"a%2fb%2Fc",
            b"quotes'\"[x]{y}\\|^`<>",
            b"?",
            b"x" * 4096,
        ],
    )
    def test_names_are_bytes(self, client, name):
        client.put(Key("public", name), name)
        assert client.get(Key("public", name)) == name

    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(name=st.binary(min_size=1, max_size=60).map(lambda b: bytes(33 + x % 94 for x in b)))
    def test_any_legal_name(self, client, name):
        key = Key("public", name.replace(b"#", b"!"))
        client.put(key, name)
        assert client.get(key) == name
        assert client.delete(key)

    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
    def test_any_text(self, client, name):
        client.put(f"public/{name}", name.encode())
        assert client.get(f"public/{name}") == name.encode()

    def test_one_connection_serves_all(self, client):
        client.put("public/kept", b"x")
        for _ in range(3):
            assert client.get("public/kept") == b"x"
            assert client.get("public/missing") is None
            assert client.get_range("public/kept", 5, 6) == b""
            assert client.head("public/missing") is None
        ((connection,),) = client._pool._idle.values()
        assert connection.answer_count == 13
        assert client.stats.repeats == 0

    def test_many_threads(self, url):
        failures = []
        with Client(url, fail_open=False) as client:

            def work(thread):
                for i in range(25):
                    data = bytes([thread, i]) * (1 + 700 * i)
                    client.put(f"public/threads/{thread}/{i}", data)
                    if client.get(f"public/threads/{thread}/{i}") != data:
                        failures.append((thread, i))

            threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert failures == []
        assert client.stats.stored == client.stats.hits == 150

    def test_readers_see_one_version(self, url):
        """While an object is replaced again and again, nobody sees a mixture or a miss."""
        stop = threading.Event()
        versions = [bytes([i]) * (200_000 + i) for i in range(4)]
        with Client(url, fail_open=False) as client:
            client.put("public/versions", versions[0])

            def write():
                i = 0
                while not stop.is_set():
                    i += 1
                    client.put("public/versions", versions[i % 4])

            thread = threading.Thread(target=write)
            thread.start()
            try:
                for _ in range(100):
                    assert client.get("public/versions") in versions
            finally:
                stop.set()
                thread.join()


class TestRefusals:
    def test_who_may(self, client, stranger, nobody):
        client.put("private/x", b"secret")
        for refused, kind in ((stranger, errors.Forbidden), (nobody, errors.Unauthenticated)):
            for ask in (
                lambda it: it.get("private/x"),
                lambda it: it.head("private/x"),
                lambda it: it.get_range("private/x", 0, 1),
                lambda it: it.put("private/x", b"spoilt"),
                lambda it: it.put("private/x", BIG),
                lambda it: it.put("private/x", iter([BIG])),
                lambda it: it.delete("private/x"),
            ):
                with pytest.raises(kind) as caught:
                    ask(refused)
                assert len(str(caught.value)) > 10
        assert client.get("private/x") == b"secret"
        assert nobody.get("public/nothing") is None

    def test_no_such_bucket(self, client):
        for ask in (client.get, client.head, client.delete, lambda key: client.put(key, b"x")):
            with pytest.raises(errors.NoSuchBucket):
                ask("no-such-bucket/x")

    def test_too_large(self, client):
        with pytest.raises(errors.TooLarge):
            client.put("public/large", io.BytesIO(bytes(OBJECT_MAX_BYTES + 1)))
        assert client.get("public/large") is None

    def test_too_large_in_the_middle(self, real_url):
        """Of unknown length: the refusal comes while the body is under way."""

        def pieces():
            for _ in range(OBJECT_MAX_BYTES // MIB + 50):
                yield BIG[:MIB]

        with Client(real_url, fail_open=False) as client:
            with pytest.raises(errors.TooLarge):
                client.put("public/large", pieces())
            assert client.get("public/large") is None

    def test_a_body_that_fails_stores_nothing(self, client):
        def pieces():
            yield BIG[: 2 * MIB]
            raise RuntimeError("the source failed")

        client.delete("public/failed")
        with pytest.raises(RuntimeError):
            client.put("public/failed", pieces())
        with pytest.raises(errors.Malformed):
            client.put("public/failed", iter([BIG]), length=len(BIG) + 1)
        assert client.get("public/failed") is None

    def test_a_failing_open_client(self, url):
        with Client(url) as client:
            assert client.get("private/x") is None
            assert client.put("private/x", BIG) is False
            assert client.get("no-such-bucket/x") is None
            assert client.stats.fault_kinds == {"Unauthenticated": 2, "NoSuchBucket": 1}


class TestCommands:
    def test_a_whole_day(self, url, tmp_path, monkeypatch, capfdbinary):
        monkeypatch.setenv("SCS_URL", url)
        monkeypatch.setenv("SCS_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.chdir(tmp_path)
        Path("token").write_text(GOOD + "\n")
        Path("in").write_bytes(BIG)
        assert main(["put", "in", "private/cli big", "--escape", "--content-type", "a/b"]) == 0
        assert main(["put", "in", "private/cli big", "--escape", "--if-absent"]) == 3
        assert main(["stat", "private/cli%20big", "--json"]) == 0
        facts = json.loads(capfdbinary.readouterr().out)
        assert (facts["size_bytes"], facts["content_type"]) == (len(BIG), "a/b")
        assert main(["get", "private/cli%20big", "-o", "out"]) == 0
        assert Path("out").read_bytes() == BIG
        assert main(["get", "private/cli%20big", "--range", "5-7"]) == 0
        assert capfdbinary.readouterr().out == BIG[5:8]
        assert main(["rm", "private/cli%20big"]) == 0
        assert main(["rm", "private/cli%20big"]) == 1
        assert main(["get", "private/cli%20big", "-o", "out2"]) == 1
        assert not Path("out2").exists()
        piped = subprocess.run(
            [sys.executable, "-m", "simplecache", "put", "-", "private/piped"],
            input=BIG,
            env=os.environ,
        )
        assert piped.returncode == 0
        assert main(["get", "private/piped"]) == 0
        assert capfdbinary.readouterr().out == BIG
        Path("token").write_text(OTHER)
        assert main(["get", "private/piped"]) == 3
        assert b"scs: " in capfdbinary.readouterr().err
