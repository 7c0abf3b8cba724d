# Every target is one line that names the real tool.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOWEST := $(VENV)-lowest
LOWEST_TESTS := tests/lowest tests/unit/operator tests/unit/sdk/test_checkpointer.py \
	$(addprefix tests/unit/trainer/test_,buckets.py export_check.py gpt_recipe.py image_recipe.py \
	rows.py text_classification.py trainer_run.py) tests/system/trainer/test_causal_lm_runs.py \
	$(addprefix tests/unit/serving/test_,batch.py classifier.py classify_http.py embedder.py generate_http.py http_protocol.py \
	language_model.py s3_location.py)
# A tag names one state of the code: nodes keep images by tag and never ask again.
ifndef TAG
TAG := $(shell git describe --always --abbrev=12 --dirty=-$$(date +%Y%m%d%H%M%S) 2>/dev/null || echo dev)
endif
STARTED := $(shell date +%s)

ifdef CONTEXT
export TRAINYARD_CONTEXT := $(CONTEXT)
endif

# Without .pyc files every process compiles torch again, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*/\1/p' $(firstword $(MAKEFILE_LIST)))
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

# TORCH_INDEX=cpu or pypi chooses torch's build; by default dev/torch_backend.py does.
$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv
	options=$$($(BIN)/python -m dev.torch_backend $(TORCH_INDEX)) && $(BIN)/uv pip install --quiet --python $(BIN)/python $$options -e '.[operator,trainer,serving,docs,dev]'
	@touch $@

# The tests' tools are installed after all bounds, which they must leave as they are.
$(LOWEST)/ready: pyproject.toml | $(VENV)/ready
	$(PYTHON) -m venv --clear $(LOWEST)
	options=$$($(BIN)/python -m dev.torch_backend $(TORCH_INDEX)) && \
	install="$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python $$options -e .[operator,trainer,checkpoint,serving]" && \
	$$install --resolution lowest-direct && \
	$$install filelock flask-cors hypothesis moto[s3] pytest pytest-asyncio pytest-xdist torchdata
	@touch $@

setup: $(VENV)/ready ## everything needed to work on the code, in .venv, and git hooks
	$(BIN)/pre-commit install

demo: $(VENV)/ready ## train on this machine, serve the model, request a completion
	@$(BIN)/python -m dev.demo $(STARTED)

test: $(VENV)/ready ## the parts, with real processes and real HTTP; needs neither a cluster nor root
	$(BIN)/python -m pytest -n 3 --dist worksteal -m 'not slow' tests/unit

lowest: $(LOWEST)/ready ## training, checkpoints, export, serving and the operator, with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest -n 2 --dist worksteal $(LOWEST_TESTS)

system: $(VENV)/ready ## whole programs (torchrun, trainyard study and serve, a browser, Prometheus, MLflow), slow tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow tests/system tests/unit

gpu: ## check and measure on this machine's GPU, without a network (OUTPUT=FILE: as JSON, WHEELS=DIR: docs/contribute/gpu.md)
	$(if $(wildcard $(VENV)/ready),$(BIN)/python,$(PYTHON)) -m tests.gpu $(OUTPUT:%=--output %) $(WHEELS:%=--wheels %)

e2e: cluster ## the end-to-end tests on a real Kubernetes
	$(BIN)/python -m dev.images build --tag $(TAG) --load
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/e2e tests/charts --tag $(TAG)

hangs: $(VENV)/ready ## hang scripts, and let them take long: the right rank must be named, and no other (TRIALS=200)
	$(BIN)/python -m tests.soak.hangs --trials $(or $(TRIALS),200) --seed $(or $(SEED),1)

kill-soak: $(VENV)/ready ## kill runs at random moments and compare what they resume to, byte for byte (KILLS=300 SEED=1)
	$(BIN)/python -m tests.soak.kill --kills $(or $(KILLS),300) --seed $(or $(SEED),1)

kill-scripts: $(VENV)/ready ## kill scripts that use trainyard.Checkpointer; they must resume byte for byte (KILLS=100 SEED=1)
	$(BIN)/python -m tests.soak.scripts --kills $(or $(KILLS),100) --seed $(or $(SEED),1)

kill-ranks: $(VENV)/ready ## kill ranks of local runs at random moments; the status must name them (KILLS=60 SEED=1)
	$(BIN)/python -m tests.soak.kill_ranks --kills $(or $(KILLS),60) --seed $(or $(SEED),1)

sequences: $(VENV)/ready ## disturb runs in seeded sequences; the weights must be those of a calm run (SEQUENCES=50 SEED=1)
	$(BIN)/python -m tests.soak.sequences --sequences $(or $(SEQUENCES),50) --seed $(or $(SEED),1)

bench: ## list the benchmarks: one command each, for an idle machine
	@for file in tests/bench/*.py; do grep -q "^    python -m" $$file && head -1 $$file && grep -m1 "^    python -m" $$file; done | tr -d '"'

lint: $(VENV)/ready ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/ready ## let ruff rewrite what it can
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

cluster: can-cluster $(VENV)/ready ## a real Kubernetes on this machine (CONTEXT=name: use that one)
	$(BIN)/python -m dev.cluster up

cluster-down: $(VENV)/ready ## remove every trace of it
	$(BIN)/python -m dev.cluster down

cluster-status: $(VENV)/ready ## print which of its parts run
	@$(BIN)/python -m dev.cluster status

images: can-images $(VENV)/ready ## build the images (LOAD=1: load them into the cluster, PUSH=1: push them, IMAGES_TOOL=docker|podman|buildah)
	$(BIN)/python -m dev.images build --tag $(TAG) $(IMAGES_TOOL:%=--tool %) $(if $(PUSH),--push) $(if $(LOAD),--load)

# What can't work on this machine is said before anything is set up.
can-cluster:
	@$(PYTHON) -m dev.cluster.preflight cluster

can-images:
	@$(PYTHON) -m dev.cluster.preflight images $(IMAGES_TOOL:%=--tool %)

dist: $(VENV)/ready ## build the wheel and the sdist into dist/
	$(BIN)/uv build --quiet --out-dir dist

lock: $(VENV)/ready ## update the images' locked requirements
	$(BIN)/python -m dev.images lock

crd: $(VENV)/ready ## write the CRDs, and the policy about the recipes' keys, from the models
	$(BIN)/python -m dev.crd charts/operator/crds
	$(BIN)/python -m dev.recipes

reference: $(VENV)/ready ## generate docs/reference from the code
	$(BIN)/python -m docs.generate

docs: $(VENV)/ready ## build the documentation into site/; a broken link ends the build
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/ready ## the documentation at http://127.0.0.1:8001, rebuilt when a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --strict --dev-addr 127.0.0.1:8001

monitoring: $(VENV)/ready reference ## generate the rules and dashboards from the metrics' names
	$(BIN)/python -m monitoring

clean: ## remove the virtual environments and dist/
	rm -rf $(VENV) $(LOWEST) dist
