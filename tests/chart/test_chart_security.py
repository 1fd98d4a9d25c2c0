"""Pods: nobody is root but the one that must, and that one for a moment with one capability."""

import pytest
from chart_harness import EVERYTHING, ONE_OF_EACH, merged, render

NO_ROOT = merged(EVERYTHING, {"cache": {"storage": {"hostPath": {"prepare": False}}}})
CASES = ONE_OF_EACH | {"no root": NO_ROOT}
every_case = pytest.mark.parametrize("values", CASES.values(), ids=CASES)


@every_case
def test_containers_are_locked_down(values):
    for name, container in render(values).containers():
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["capabilities"]["drop"] == ["ALL"], name
        assert not context.get("privileged"), name


@every_case
def test_pods_are_an_ordinary_user_with_the_default_seccomp_profile(values):
    for owner, _, spec in render(values).pods():
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True, owner
        assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == 65532, owner
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, owner


@every_case
def test_pods_share_nothing_with_the_host_but_the_data(values):
    for owner, _, spec in render(values).pods():
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), owner
        for volume in spec.get("volumes", []):
            if "hostPath" in volume:
                assert owner == "DaemonSet/scs-cache"
                assert volume["name"].startswith("data-")


def roots(values):
    return {
        name: container["securityContext"]["capabilities"].get("add", [])
        for name, container in render(values).containers()
        if container["securityContext"].get("runAsUser") == 0
        or container["securityContext"].get("runAsNonRoot") is False
        or container["securityContext"]["capabilities"].get("add")
    }


def test_one_container_is_root_and_may_only_chown():
    assert roots(EVERYTHING) == {"DaemonSet/scs-cache/prepare": ["CHOWN"]}


@pytest.mark.parametrize("case", ["no root", "volumes"])
def test_no_container_needs_to_be_root(case):
    assert roots(CASES[case]) == {}


@pytest.mark.parametrize("part", ["envoy", "control-plane", "cache"])
def test_with_volumes_pods_are_restricted_in_the_sense_of_pod_security(part):
    # The rest of that level is in the tests above.
    for volume in render(CASES["volumes"]).pod(part).get("volumes", []):
        (kind,) = set(volume) - {"name"}
        assert kind in {"configMap", "emptyDir", "secret", "projected"}


@every_case
def test_every_container_has_requests_and_a_memory_limit(values):
    for name, container in render(values).containers():
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
        assert "memory" in container["resources"]["limits"], name


@every_case
def test_variables_of_services_stay_out(values):
    # A Service "scs-ops" would set SCS_OPS_PORT, and flags are read from SCS_….
    for owner, _, spec in render(values).pods():
        assert spec["enableServiceLinks"] is False, owner


@every_case
def test_writable_directories_are_bounded(values):
    for owner, _, spec in render(values).pods():
        for volume in spec.get("volumes", []):
            if "emptyDir" in volume and not owner.startswith("Pod/"):
                assert "sizeLimit" in volume["emptyDir"], owner
