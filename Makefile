# The README's two commands are "make run" and "make test"; both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python

.PHONY: help setup run test kubetools lint format lock clean
help:  ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/ready  ## make .venv with everything in it, Envoy included
$(VENV)/ready: pyproject.toml requirements/dev.txt requirements/uv.txt src/simplecache/local/envoy.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/uv.txt
	$(UV) --require-hashes -r requirements/dev.txt
	$(UV) --no-deps --editable .
	$(BIN)/python -m simplecache.local.envoy
	@touch $@

run: setup  ## a cluster on this machine: three nodes, control plane, Envoy (ARGS="--port 9090")
	$(BIN)/scs up $(ARGS)

test: setup kubetools  ## all tests (ARGS="-k maglev")
	$(BIN)/pytest $(ARGS)

kubetools: setup  ## etcd, kube-apiserver and its controllers, built once (some minutes)
	@$(BIN)/python tests/cluster/kubetools/build.py

lint: setup  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## bring the code into form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup  ## resolve the dependencies again
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --upgrade \
	  pyproject.toml --extra all --group test --group lint -o requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
	  --constraint requirements/dev.txt pyproject.toml --extra server --extra control --extra kube -o requirements/image.txt
	grep -o 'hatchling==[0-9.]*' pyproject.toml | $(BIN)/uv pip compile --quiet --universal --generate-hashes \
	  --no-header --no-annotate - -o requirements/build.txt

clean:  ## remove what setup made
	rm -rf $(VENV)
