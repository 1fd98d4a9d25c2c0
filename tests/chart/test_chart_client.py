"""The pod of ``helm test``: what a user's pod does, and only when asked for."""

import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest
from chart_harness import EVERYTHING, PUBLIC, container, merged, render

ON = {"buckets": [PUBLIC], "tests": {"enabled": True, "bucket": "public"}}


def client(values=None):
    return render(merged(ON, values or {})).one("Pod", "scs-test-client")


def test_it_is_there_only_if_asked_for():
    assert render().all("Pod") == []
    assert render({"buckets": [PUBLIC]}).all("Pod") == []


def test_it_is_a_test_and_goes_away():
    annotations = client()["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "test"
    assert "hook-succeeded" in annotations["helm.sh/hook-delete-policy"]
    assert client()["spec"]["restartPolicy"] == "Never"


def test_its_token_is_for_the_cache_alone():
    spec = client({"auth": {"audience": "other"}})["spec"]
    assert spec["automountServiceAccountToken"] is False
    (volume,) = [v for v in spec["volumes"] if "projected" in v]
    (source,) = volume["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "other"
    env = {e["name"]: e["value"] for e in container(spec, "client")["env"]}
    (mount,) = [m for m in container(spec, "client")["volumeMounts"] if m["name"] == volume["name"]]
    assert env["SCS_TOKEN_FILE"] == f"{mount['mountPath']}/{source['serviceAccountToken']['path']}"


def test_it_uses_the_clients_service():
    spec = client({"service": {"name": "simple-cache", "port": 8000}})["spec"]
    env = {e["name"]: e["value"] for e in container(spec, "client")["env"]}
    assert env["SCS_URL"] == "http://simple-cache.cache-service.svc:8000"


def test_without_authentication_it_has_no_token():
    spec = client({"auth": {"mode": "none"}})["spec"]
    assert not any("projected" in volume for volume in spec["volumes"])
    assert "SCS_TOKEN_FILE" not in {e["name"] for e in container(spec, "client")["env"]}


def test_no_service_selects_it():
    rendered = render(EVERYTHING)
    labels = rendered.one("Pod", "scs-test-client")["metadata"]["labels"].items()
    for service in rendered.all("Service"):
        assert not service["spec"]["selector"].items() <= labels


@pytest.mark.parametrize(("copies", "passes"), [(True, True), (False, False)])
def test_its_script_fails_unless_it_reads_what_it_stored(tmp_path, copies, passes):
    """The script is run, with a command ``scs`` that stores into a folder, or loses bytes."""
    script = container(client()["spec"], "client")
    store, scs = tmp_path / "stored", tmp_path / "scs"
    lose = "" if copies else 'truncate -s 2 "$4"'
    scs.write_text(
        "#!/bin/sh -eu\n"
        f'if [ "$1" = put ]; then cp "$2" {store}; else test "$3" = -o; cp {store} "$4"; {lose or ":"}; fi\n'
    )
    scs.chmod(scs.stat().st_mode | stat.S_IXUSR)
    text = script["args"][0].replace("/tmp/", f"{tmp_path}/")
    done = subprocess.run(
        [*script["command"], text],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "BUCKET": "public"},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode == 0) == passes
    assert ("a hit" in done.stdout) == passes


def test_its_commands_are_those_of_the_client():
    from simplecache.cli.main import make_parser

    script = container(client()["spec"], "client")["args"][0]
    lines = [line for line in script.splitlines() if line.startswith("scs ")]
    assert len(lines) == 2
    for line in lines:
        words = shlex.split(re.sub(r"\$BUCKET", "public", line))
        assert make_parser().parse_args(words[1:]).command in {"put", "get"}
        assert Path(words[2]).name
