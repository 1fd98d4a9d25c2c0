"""What the chart's tests share: Helm's own engine, and words for what it rendered.

``render`` takes the Kubernetes version, which the package's ``Chart.render`` does not pass on; hence
the call one level below.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import yaml
from helm_python import _native

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "simple-cache-service"
VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
NEWEST = VERSIONS[-1]

Doc = dict[str, Any]

PUBLIC = {"Name": "public", "Public": True, "BucketQuota": "100Gi"}
PRIVATE = {"Name": "kubecon", "Public": False, "AllowNamespaces": ["prj-kubernetes"]}

EVERYTHING: Doc = {
    "commonLabels": {"team": "platform"},
    "imagePullSecrets": ["registry"],
    "buckets": [PUBLIC, PRIVATE],
    "cache": {
        "shards": 4,
        "storage": {"hostPath": {"paths": ["/mnt/nvme0/scs", "/mnt/nvme1/scs"]}},
        "priorityClassName": "system-node-critical",
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
        "extraArgs": ["--max-uploads", "64"],
        "extraEnv": [{"name": "TZ", "value": "UTC"}],
    },
    "envoy": {"tolerations": [{"operator": "Exists"}], "podLabels": {"c": "d"}},
    "controlPlane": {
        "tableSize": 5000011,
        "zoneFromNodes": True,
        "podAnnotations": {"a": "b"},
        "extraEnv": [{"name": "TZ", "value": "UTC"}],
    },
    "networkPolicy": {
        "clientNamespaceSelector": {"matchLabels": {"scs": "yes"}},
        "directClients": True,
    },
    "metrics": {
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    },
    "tests": {"enabled": True, "bucket": "public"},
}
"""Every feature at once, on the nodes' disks."""

VOLUMES: Doc = {
    "cache": {
        "shards": 2,
        "storage": {"type": "volumeClaim", "volumeClaim": {"count": 2, "storageClassName": "nvme"}},
    }
}
"""The StatefulSet."""

ONE_OF_EACH = {"defaults": {}, "everything": EVERYTHING, "volumes": VOLUMES}


@functools.cache
def chart() -> helm.Chart:
    return helm.Chart.load(CHART)


@dataclass(frozen=True)
class Rendered:
    """What an installation would apply, and what it would print."""

    docs: list[Doc]
    notes: str

    def all(self, kind: str) -> list[Doc]:
        return [doc for doc in self.docs if doc["kind"] == kind]

    def one(self, kind: str, name: str) -> Doc:
        found = [doc for doc in self.all(kind) if doc["metadata"]["name"] == name]
        assert len(found) == 1, f"{kind} {name}: {len(found)} of {self.names()}"
        return found[0]

    def names(self) -> list[tuple[str, str | None, str]]:
        return [
            (doc["kind"], doc["metadata"].get("namespace"), doc["metadata"]["name"])
            for doc in self.docs
        ]

    def pods(self) -> Iterator[tuple[str, Doc, Doc]]:
        """Each pod's owner, metadata and spec."""
        for doc in self.docs:
            name = f"{doc['kind']}/{doc['metadata']['name']}"
            if doc["kind"] == "Pod":
                yield name, doc["metadata"], doc["spec"]
            elif doc["kind"] in {"DaemonSet", "Deployment", "StatefulSet"}:
                template = doc["spec"]["template"]
                yield name, template["metadata"], template["spec"]

    def pod(self, component: str) -> Doc:
        (spec,) = [
            spec
            for _, metadata, spec in self.pods()
            if metadata["labels"]["app.kubernetes.io/component"] == component
        ]
        return spec

    def containers(self) -> Iterator[tuple[str, Doc]]:
        for owner, _, spec in self.pods():
            for container in spec.get("initContainers", []) + spec["containers"]:
                yield f"{owner}/{container['name']}", container


def render(
    values: Doc | None = None,
    *,
    kube: str = NEWEST,
    name: str = "scs",
    namespace: str = "cache-service",
) -> Rendered:
    """Render as ``helm install`` does.

    Args:
        kube: the cluster's version, ``1.34`` or in full, ``1.34.2-gke.100``.

    Raises:
        helm.HelmError: the values are refused.
    """
    version = f"v{kube}" if kube.count(".") > 1 else f"v{kube}.0"
    options = {"name": name, "namespace": namespace, "kube_version": version}
    text = _native.call_string(
        "helm_render", chart()._raw(), json.dumps(values or {}), json.dumps(options)
    )
    return parse(json.loads(text))


def parse(files: dict[str, str]) -> Rendered:
    notes = ""
    docs: list[Doc] = []
    for path, text in files.items():
        if path.endswith("NOTES.txt"):
            notes = text
        else:
            docs += [doc for doc in yaml.load_all(text, Strict) if doc]
    return Rendered(docs, notes)


class Strict(yaml.SafeLoader):
    """Refuses a key that is there twice, as the apiserver does."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key is there twice: {keys} {node.start_mark}"
        return super().construct_mapping(node, deep)


def validate(doc: Doc, kube: str) -> None:
    """Check against Kubernetes' own schema, unknown fields included."""
    if "monitoring.coreos.com" not in doc["apiVersion"]:
        kubernetes_validate.validate(doc, kube, strict=True)


def merged(*values: Doc) -> Doc:
    """Later values win, as with several files for ``helm -f``."""
    result: Doc = {}
    for value in values:
        for key, item in value.items():
            old = result.get(key)
            both = isinstance(old, dict) and isinstance(item, dict)
            result[key] = merged(old, item) if both else item
    return result


def flags(args: list[str]) -> dict[str, list[str]]:
    """A command line's flags and what follows each."""
    found: dict[str, list[str]] = {}
    for arg in args:
        if arg.startswith("--"):
            last = found.setdefault(arg, [])
        elif found:
            last.append(arg)
    return found


def container(spec: Doc, name: str) -> Doc:
    (found,) = [c for c in spec.get("initContainers", []) + spec["containers"] if c["name"] == name]
    return found
