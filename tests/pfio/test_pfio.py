"""PFIO from PyPI, unmodified, through a real Envoy: the acceptance test of the HTTP contract."""

import hashlib
import io
import multiprocessing
import random
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import boto3
import pytest
from pfio.v2 import from_url
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

IMAGES = 1200
ODD_NAMES = (
    "100%.jpg", "what?1.jpg", "what?2.jpg", "a+b;c=d.jpg", "(1)[2]{3}.jpg", "deep//er.jpg",
    "semi:colon,comma.jpg", "tilde~and'quote.jpg", 'dq".jpg', "back\\slash|pipe.jpg", "%2F.jpg", "%2f.jpg",
)  # fmt: skip
"""As real file names are; PFIO puts them into the request target raw."""


class Origin:
    """The S3 server, and what is in it."""

    def __init__(self):
        script = Path(__file__).with_name("s3_server.py")
        self.process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"
        self.options = {
            "endpoint": self.url, "aws_access_key_id": "key", "aws_secret_access_key": "secret",
        }  # fmt: skip

    def requests(self):
        with urllib.request.urlopen(f"{self.url}/_count") as answer:
            return int(answer.read())

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()


def make_image(seed: int) -> bytes:
    noise = random.Random(seed)
    image = Image.frombytes("RGB", (24, 24), noise.randbytes(24 * 24 * 3))
    file = io.BytesIO()
    image.resize((48 + seed % 64, 48)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def dataset():
    names = [f"n{i % 10:08d}/x_{i}.JPEG" for i in range(IMAGES)]
    return {name: make_image(i) for i, name in enumerate(names)}


@pytest.fixture(scope="module")
def origin(dataset):
    origin = Origin()
    s3 = boto3.client(
        "s3", endpoint_url=origin.url, region_name="us-east-1",
        aws_access_key_id="key", aws_secret_access_key="secret",
    )  # fmt: skip
    s3.create_bucket(Bucket="bkt")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, body in dataset.items():
            file.writestr(name, body)
    s3.put_object(Bucket="bkt", Key="data/train.zip", Body=archive.getvalue())
    for i, name in enumerate(ODD_NAMES):
        s3.put_object(Bucket="bkt", Key=f"plain/{name}", Body=make_image(i) + name.encode())
    s3.put_object(Bucket="bkt", Key="plain/empty", Body=b"")
    yield origin
    origin.stop()


def read_all(fs, names):
    """{name: digest} of what is read through ``fs``."""
    found = {}
    for name in names:
        with fs.open(name, "rb") as file:
            found[name] = hashlib.sha256(file.read()).hexdigest()
    return found


def epoch(fs, names, seed, workers=4):
    """Every name once, in a fresh shuffle, by forked workers as a DataLoader has them."""
    names = list(names)
    random.Random(seed).shuffle(names)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def work(part):
        queue.put(read_all(fs, part))

    processes = [context.Process(target=work, args=(names[i::workers],)) for i in range(workers)]
    for process in processes:
        process.start()
    found = {}
    for _ in processes:
        found |= queue.get(timeout=120)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return found


def test_second_epoch_over_a_zip_in_s3_never_asks_s3(cluster, origin, dataset, monkeypatch):
    """Private bucket, token by PFIO_HTTP_BEARER_TOKEN_PATH, four forked workers."""
    monkeypatch.setenv("PFIO_HTTP_BEARER_TOKEN_PATH", str(cluster.token_file))
    digests = {name: hashlib.sha256(body).hexdigest() for name, body in dataset.items()}
    fs = from_url(
        "s3://bkt/data/train.zip",
        http_cache=f"{cluster.url}/v1/objects/prj-foobar",
        **origin.options,
    )
    before = origin.requests()
    assert epoch(fs, dataset, seed=1) == digests
    after_fill = origin.requests()
    assert after_fill > before
    assert epoch(fs, dataset, seed=2) == digests
    assert epoch(fs, dataset, seed=3, workers=3) == digests
    assert origin.requests() == after_fill


def test_plain_s3_objects_with_odd_names_are_each_their_own(cluster, origin):
    fs = from_url("s3://bkt/plain", http_cache=f"{cluster.url}/v1/objects/public", **origin.options)
    wanted = {
        name: hashlib.sha256(make_image(i) + name.encode()).hexdigest()
        for i, name in enumerate(ODD_NAMES)
    } | {"empty": hashlib.sha256(b"").hexdigest()}
    # PFIO itself joins "deep//er" to "deep/er" before it asks S3, where there is no such key.
    del wanted["deep//er.jpg"]
    assert read_all(fs, wanted) == wanted
    filled = origin.requests()
    assert read_all(fs, wanted) == wanted
    assert origin.requests() == filled


def test_local_files_are_cached_under_their_raw_names(cluster, tmp_path):
    wanted = {}
    for i, name in enumerate(ODD_NAMES):
        if "/" in name:
            continue
        body = make_image(i) + b"local"
        (tmp_path / name).write_bytes(body)
        wanted[name] = hashlib.sha256(body).hexdigest()
    fs = from_url(str(tmp_path), http_cache=f"{cluster.url}/v1/objects/public")
    assert read_all(fs, wanted) == wanted
    for name in wanted:
        (tmp_path / name).unlink()
    assert read_all(fs, wanted) == wanted


def test_a_job_without_the_right_token_still_reads_its_data(cluster, origin, dataset, monkeypatch):
    """403s are misses with a warning: the cache never breaks a job."""
    monkeypatch.delenv("PFIO_HTTP_BEARER_TOKEN_PATH", raising=False)
    fs = from_url(
        "s3://bkt/data/train.zip",
        http_cache=f"{cluster.url}/v1/objects/prj-foobar",
        **origin.options,
    )
    some = list(dataset)[:3]
    assert read_all(fs, some) == {n: hashlib.sha256(dataset[n]).hexdigest() for n in some}
