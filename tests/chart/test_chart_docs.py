"""docs/kubernetes.md: its table is values.yaml, and what it tells to paste works."""

import re

import pytest
import yaml
from chart_harness import ROOT, VERSIONS, render, validate
from values_table import DOCUMENT, rows, with_table

TEXT = DOCUMENT.read_text()
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]
MANIFESTS = [block for block in BLOCKS if "apiVersion" in block]
VALUES = [block for block in BLOCKS if "apiVersion" not in block]


def test_the_table_of_values_is_that_of_values_yaml():
    assert with_table(TEXT) == TEXT, "run: python tests/chart/values_table.py"


def test_every_value_has_a_text():
    assert len(rows()) > 80
    for key, _, text in rows():
        assert len(text) > 3, key
        assert "|" not in text, key


@pytest.mark.parametrize("values", VALUES)
def test_the_values_to_paste_are_accepted(values):
    rendered = render(values)
    assert "prj-foobar" in rendered.notes
    assert rendered.pod("cache")["containers"][0]["image"].startswith("registry.example.com/")


@pytest.mark.parametrize("kube", VERSIONS)
def test_the_pod_to_paste_is_one(kube):
    (pod,) = MANIFESTS
    validate(pod, kube)


def test_the_pods_token_is_for_the_cache():
    (pod,) = MANIFESTS
    values = render().pod("cache")["containers"][0]["args"]
    audience = values[values.index("--audience") + 1]
    (source,) = pod["spec"]["volumes"][0]["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == audience
    (mount,) = pod["spec"]["containers"][0]["volumeMounts"]
    path = f"{mount['mountPath']}/{source['serviceAccountToken']['path']}"
    env = {e["name"]: e["value"] for e in pod["spec"]["containers"][0]["env"]}
    assert env["SCS_TOKEN_FILE"] == env["PFIO_HTTP_BEARER_TOKEN_PATH"] == path
    assert path in TEXT.replace(str(pod), "")


def test_its_bucket_lets_it_in():
    (pod,) = MANIFESTS
    buckets = {bucket["Name"]: bucket for bucket in VALUES[0]["buckets"]}
    for name in set(re.findall(r"/v1/objects/([a-z-]+)/", TEXT)):
        assert pod["metadata"]["namespace"] in buckets[name]["AllowNamespaces"]


def test_links_lead_somewhere():
    headings = {}
    for path in (ROOT / "docs").glob("*.md"):
        found = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
        headings[path.name] = {
            re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in found
        }
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        name, _, anchor = target.partition("#")
        assert name in {"", *headings}, target
        assert not anchor or anchor in headings[name or "kubernetes.md"], target


def test_what_runs_is_listed():
    rendered = render(VALUES[0])
    kinds = ("DaemonSet", "Deployment", "Service", "ConfigMap", "Secret")
    named = set(re.findall(rf"^\| `([a-z-]+)` \| ({'|'.join(kinds)}) \|", TEXT, re.MULTILINE))
    assert named == {(name, kind) for kind, _, name in rendered.names() if kind in kinds} - {
        ("scs-envoy", "ConfigMap")
    }


def test_nothing_of_a_machine_is_in_the_chart():
    for path in (ROOT / "charts").rglob("*"):
        if path.is_file():
            assert not re.search(r"/(work|home|root)/", path.read_text()), path
