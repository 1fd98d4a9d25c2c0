"""The Dockerfile: pinned, not root, and with all that the chart's commands need."""

import json
import re
import tomllib
from fnmatch import fnmatch

import pytest
from chart_harness import ROOT, render

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)


def instructions():
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def said(name):
    return [rest for instruction, rest in instructions() if instruction == name]


def pins(name):
    return dict(REQUIREMENT.findall((ROOT / "requirements" / name).read_text()))


def test_the_base_is_pinned_to_a_patch_version():
    assert re.fullmatch(r"PYTHON_IMAGE=python:\d+\.\d+\.\d+-slim-[a-z]+", said("ARG")[0])
    assert {line.split()[0] for line in said("FROM")} == {"${PYTHON_IMAGE}"}


def test_it_is_the_python_that_the_project_supports():
    found = re.search(r"python:(\d+)\.(\d+)", said("ARG")[0])
    assert PROJECT["project"]["requires-python"] == f">={found[1]}.{found[2]}"


def test_its_user_is_the_charts():
    _, _, spec = next(render().pods())
    context = spec["securityContext"]
    assert said("USER") == [f"{context['runAsUser']}:{context['runAsGroup']}"]
    # Nothing after USER may need root.
    names = [name for name, _ in instructions()]
    assert "RUN" not in names[names.index("USER") :]


def test_the_charts_commands_are_in_it():
    assert json.loads(said("ENTRYPOINT")[0]) == ["scs"]
    assert PROJECT["project"]["scripts"].keys() == {"scs"}
    ours = [c for _, c in render().containers() if "envoyproxy" not in c["image"]]
    # chown and sh are Debian's, python3 the base's; all is on PATH.
    assert {c["command"][0] for c in ours} <= {"scs", "python3", "chown", "sh"}
    assert any("/opt/scs/bin:$PATH" in line for line in said("ENV"))


def allowed(path):
    """Whether .dockerignore lets a file through (the few forms that it uses)."""
    found = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern, keeps = line.removeprefix("!"), line.startswith("!")
        parts = path.split("/")
        prefixes = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        if pattern.startswith("**/"):
            matches = any(fnmatch(part, pattern.removeprefix("**/")) for part in parts)
        else:
            matches = pattern in {"*", *prefixes}
        if matches:
            found = keeps
    return found


@pytest.mark.parametrize("line", [line for line in said("COPY") if "--from" not in line])
def test_what_is_copied_is_there_and_not_ignored(line):
    *sources, _ = line.split()
    for source in sources:
        assert (ROOT / source).exists(), source
        assert allowed(f"{source}/x.py" if (ROOT / source).is_dir() else source), source


def test_nothing_else_reaches_the_build():
    for path in (".git/config", ".venv/bin/python", "tests/conftest.py", "src/a/__pycache__/b.pyc"):
        assert not allowed(path), path


@pytest.mark.parametrize("name", ["image.txt", "build.txt"])
def test_every_package_is_locked_by_hash(name):
    text = (ROOT / "requirements" / name).read_text()
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)
    for block in filter(str.strip, blocks):
        assert REQUIREMENT.match(block), block
        assert "--hash=sha256:" in block, block
    for line in said("RUN"):
        for command in line.split("&&"):
            if "pip" in command and "install" in command:
                assert "--require-hashes" in command or "--no-index" in command, command


def test_the_image_has_what_node_and_control_plane_need():
    extras = PROJECT["project"]["optional-dependencies"]
    wanted, waiting = set(), ["server", "control", "kube"]
    while waiting:
        for requirement in extras[waiting.pop()]:
            name = re.match(r"[A-Za-z0-9._-]+", requirement)[0]
            if name == PROJECT["project"]["name"]:
                waiting += re.search(r"\[(.*)\]", requirement)[1].split(",")
            else:
                wanted.add(name.lower())
    assert wanted
    assert wanted <= pins("image.txt").keys(), "run make lock"


def test_the_image_runs_the_versions_that_are_tested():
    tested = pins("dev.txt")
    for name, version in pins("image.txt").items():
        assert tested[name] == version, name


def test_the_wheel_is_built_as_pyproject_says():
    (backend,) = PROJECT["build-system"]["requires"]
    name, _, version = backend.partition("==")
    assert pins("build.txt")[name] == version
