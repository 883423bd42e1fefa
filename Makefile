# `make help` lists the targets. Everything runs in .venv, which `make setup` makes from the lock file.
SHELL := /bin/bash
VENV := .venv
PYTHON ?= python3
SCALE ?= quick
RECORD_OPTIONS ?=
DOCKER ?= docker
BASE_IMAGE ?= debian:bookworm-slim
IMAGE_OPTIONS ?=
VERSION = $$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# DVC's and Snakemake's usage reports are not wanted in a reproduction.
export DVC_NO_ANALYTICS := 1

.DEFAULT_GOAL := help
.PHONY: help setup reproduce smoke test test-fast test-oldest check format docs bench vulnerabilities record pointer sync pull push status image dist lock tensorboard clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-15s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## Make .venv from requirements.lock (Python 3.11)

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "error: Python 3.11 is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1): set PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	@# uv, itself pinned and hashed in the lock file, installs the rest: pip would take minutes. Torch is compiled once: a
	@# job that is not allowed to write bytecode would spend longer on that than on its work. The rest takes a minute.
	@awk '/^uv==/ {on = 1} on {print} on && !/\\$$/ {exit}' requirements.lock > $(VENV)/uv.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock
	$(VENV)/bin/uv pip sync --quiet --require-hashes --python $(VENV)/bin/python requirements.lock
	$(VENV)/bin/python -m compileall -q -j 0 -x /testing/ $(VENV)/lib/python3.11/site-packages/torch
	$(VENV)/bin/uv pip install --quiet --no-deps --no-build-isolation --python $(VENV)/bin/python --editable .
	@touch $@

reproduce: setup ## Run the main job (scale quick): data, training, pruning, tables, figures
	@# The second time leaves out data that have gone meanwhile; jobs go on where they were.
	snakemake --quiet host reason rules --config scale=$(SCALE) -- \
	  || snakemake --quiet host reason rules --config scale=$(SCALE) --
	@python -m stages.summary --scale $(SCALE)

smoke: SCALE := smoke
smoke: reproduce ## Run every cell of the paper's grid on generated data: about an hour on two cores

test: setup ## Run all tests
	pytest -n 2 --dist loadscope --no-loadscope-reorder

test-fast: setup ## Run the tests of the library alone
	pytest -n 2 --dist loadscope tests/library

# The lower bounds of pyproject.toml as versions; every other package as new as these allow.
test-oldest: setup ## Run the tests of the library with the oldest supported torch and torch-pruning (needs the network)
	uv venv --quiet --clear --python $(VENV)/bin/python build/oldest
	sed -n 's/^ *"\(torch\|torch-pruning\)>=\([0-9.]*\).*/\1==\2/p' pyproject.toml > build/oldest/versions.txt
	uv pip install --quiet --python build/oldest --constraint build/oldest/versions.txt \
	  --editable '.[images,texts,export,workflow,dev]'
	build/oldest/bin/python -m pytest -n 2 --dist loadscope tests/library

check: setup ## Check formatting, style, types, imports, the workflow and what is generated
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-cache --no-logo
	snakefmt --check Snakefile rules
	python -m stages.schema --check
	python -m stages.readme --check
	python docs/draw_architecture.py --check
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml

vulnerabilities: ## Look up known vulnerabilities of the locked packages (needs the network and uv)
	@uv tool run pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r requirements.lock \
	  || { echo "error: a package is vulnerable, or the advisories could not be reached: see above" >&2; exit 1; }

format: setup ## Format Python and Snakemake files; write the schema of params.yaml and the picture of the modules again
	ruff check --fix .
	ruff format .
	snakefmt Snakefile rules
	python -m stages.schema
	python docs/draw_architecture.py

docs: setup ## Build the documentation as a site in build/docs, without the network; a warning is an error
	sphinx-build --quiet --fresh-env --fail-on-warning --keep-going -d build/doctrees docs build/docs
	@echo "now open build/docs/index.html"

bench: setup ## Measure speed as ratios, side by side
	python -m benchmarks

record: setup ## Version a finished scale: provenance in git, data, cells and checkpoints in DVC, then its page
	python -m stages.record --scale $(SCALE) $(RECORD_OPTIONS)
	python -m stages.figures --scale $(SCALE)
	dvc repro
	dvc status
	@echo "now: git add --all && git commit, then make push SCALE=$(SCALE)"

pointer: results/$(SCALE)/.dvcignore ## Let DVC read what is recorded of a scale, to fetch single files

# Lets DVC read the pointer: a clone in which nobody has asked for a scale's files does not lack them.
results/%/.dvcignore: results/%/recorded.dvc
	@echo '!recorded.dvc' > $@

results/%/recorded.dvc:
	@echo "error: scale $* is not recorded: run make record SCALE=$* after a finished run" >&2; exit 2

sync: setup ## After a pull or checkout: check that files fit params.yaml, then tell Snakemake so
	python -m stages.sync --scale $(SCALE)

pull: setup results/$(SCALE)/.dvcignore ## Fetch a scale's recorded data, cells and checkpoints from the DVC remote, then sync
	@# After a failed pull, sync names the files that did not come, or came damaged.
	dvc pull results/$(SCALE)/recorded.dvc || { python -m stages.sync --scale $(SCALE); exit 1; }
	$(MAKE) sync

push: setup results/$(SCALE)/.dvcignore ## Send a scale's recorded data, cells and checkpoints to the DVC remote
	dvc push results/$(SCALE)/recorded.dvc

status: setup ## Say which cells of the scale are there, missing or stale
	ifap status --scale $(SCALE)

image: ## Build the container image, named by the version (DOCKER=podman for another builder)
	$(DOCKER) build --build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg COMMIT=$$(git rev-parse HEAD) $(IMAGE_OPTIONS) --tag ifap:$(VERSION) .

dist: setup ## Build the wheel and the source archive in dist/, the same bytes on every machine, and check them (needs the network)
	@rm -rf dist
	uv build --quiet --no-build-isolation --python $(VENV)/bin/python --out-dir dist .
	uv tool run --quiet twine check --strict dist/*
	@cd dist && sha256sum *

lock: setup ## Write requirements.lock again from pyproject.toml
	uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --extra workflow --extra export --extra cluster --extra dev --extra pretrained --constraint constraints.txt --output-file requirements.lock pyproject.toml

tensorboard: setup ## Show the curves of trainings that ran with IFAP_TENSORBOARD=1
	tensorboard --logdir logs/tensorboard/$(SCALE)

clean: ## Remove results and state of the scale (git has the recorded results)
	rm -rf results/$(SCALE) reports/$(SCALE) state/$(SCALE) logs/$(SCALE) logs/tensorboard/$(SCALE)
