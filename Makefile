# What one does with the project, one target each. `make` alone lists them.
#
# There is one virtual environment, in .venv. A stamp file per extra says what is installed in it,
# so that a second run starts at once; a changed pyproject.toml or constraints.txt installs anew.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := fleet_contract device_agent fleet_server simulator
# Most tests wait more than they compute, so three processes share them by default, also on two
# cores; WORKERS=0 runs them in one, for a debugger.
WORKERS ?= 3
# In the order of the files: by default the file with one long test would come last, and alone.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# The stamps name the folder, since a virtual environment that was moved or copied does not work.
HERE := $(shell printf '%s' '$(CURDIR)' | cksum | cut -d ' ' -f 1)
ENVIRONMENT := $(VENV)/.made-$(HERE)
DEMO := $(VENV)/.demo-$(HERE)
DEV := $(VENV)/.dev-$(HERE)
# MLflow has a hundred dependencies of its own: it is kept away from ours.
MLFLOW_VENV ?= .venv-mlflow
MLFLOW := $(MLFLOW_VENV)/.made-$(HERE)
# So has the emulation of S3, fewer.
MOTO_VENV ?= .venv-moto
MOTO := $(MOTO_VENV)/.made-$(HERE)
SUPPLY := build/supply/.made-$(HERE)

.DEFAULT_GOAL := help
.PHONY: help demo unit test coverage check format bench fuzz sbom scan services constraints clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(ENVIRONMENT):
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	    echo "make: '$(PYTHON)' was not found; install Python 3.11 or newer, or name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: '$(PYTHON)' is $$($(PYTHON) -V 2>&1); Python 3.11 or newer is needed: make PYTHON=python3.12" >&2; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { \
	    echo "make: the virtual environment could not be made; on Debian: apt-get install python3-venv" >&2; \
	    rm -rf $(VENV); exit 1; }
	@touch $@

$(DEMO): $(ENVIRONMENT) pyproject.toml constraints.txt
	@echo "make: installing what the demo needs into $(VENV) (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]' -c constraints.txt
	@touch $@

$(DEV): $(ENVIRONMENT) pyproject.toml constraints.txt
	@echo "make: installing what development needs into $(VENV) (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $(DEMO) $@

demo: $(DEMO) ## a good rollout completes, a bad one is rolled back, and you see why
	@$(BIN)/fleet-simulator demo $(ARGS)

unit: $(DEV) ## the unit tests alone (under a minute)
	@mkdir -p build
	@$(PYTEST) -m 'not slow' $(ARGS)

test: $(DEV) ## every test
	@mkdir -p build
	@$(PYTEST) $(ARGS)

coverage: $(DEV) ## every test, with branch coverage and its floor (half as long again)
	@mkdir -p build/coverage
	@rm -f build/coverage/data*
	@$(PYTEST) --cov --cov-report=term --cov-report=html $(ARGS)

check: $(DEV) ## ruff, mypy strict, and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(DEV) ## put the sources into ruff's form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(DEV) ## measure against references, into build/bench.json (ONLY=swap runs one)
	@mkdir -p build
	@$(BIN)/python tests/benchmarks/run.py $(if $(ONLY),--only $(ONLY)) --output build/bench.json $(ARGS)

fuzz: $(DEV) ## a million inputs into every parser of foreign bytes (INPUTS=20000 for fewer)
	@mkdir -p build/fuzz
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]' -c constraints.txt || \
	    echo "make: atheris cannot be installed here; hypothesis goes on alone" >&2
	@$(BIN)/python tests/fuzz/run.py --inputs $(or $(INPUTS),1000000) $(ARGS)

$(SUPPLY): $(ENVIRONMENT) .ci/supply_chain.txt
	@mkdir -p build
	@rm -rf build/supply
	@$(PYTHON) -m venv build/supply
	@build/supply/bin/python -m pip install --quiet --disable-pip-version-check -r .ci/supply_chain.txt
	@touch $@

sbom: $(DEV) $(SUPPLY) ## the bill of materials of what is delivered, into build/sbom.cdx.json
	@$(BIN)/python .ci/sbom.py --tool build/supply/bin/cyclonedx-py --output build/sbom.cdx.json

scan: $(SUPPLY) ## known vulnerabilities of the pinned dependencies (ARGS=--require: or fail)
	@build/supply/bin/python .ci/scan.py --tool build/supply/bin/pip-audit $(ARGS)

$(MLFLOW): $(ENVIRONMENT) .ci/mlflow.txt
	@echo "make: installing MLflow into $(MLFLOW_VENV) (once)"
	@rm -rf $(MLFLOW_VENV)
	@$(PYTHON) -m venv $(MLFLOW_VENV)
	@$(MLFLOW_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r .ci/mlflow.txt
	@touch $@

$(MOTO): $(ENVIRONMENT) .ci/moto.txt
	@echo "make: installing an emulation of S3 into $(MOTO_VENV) (once)"
	@rm -rf $(MOTO_VENV)
	@$(PYTHON) -m venv $(MOTO_VENV)
	@$(MOTO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r .ci/moto.txt
	@touch $@

services: $(MLFLOW) $(MOTO) ## install Mosquitto, PostgreSQL (Debian packages), MLflow and moto; tests start private ones
	@if command -v mosquitto >/dev/null 2>&1 || [ -x /usr/sbin/mosquitto ]; then mosquitto=; else mosquitto=mosquitto; fi; \
	if command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; \
	    then postgresql=; else postgresql=postgresql; fi; \
	wanted="$$mosquitto $$postgresql"; \
	if [ "$$wanted" = " " ]; then echo "make: mosquitto and postgresql are installed"; exit 0; fi; \
	command -v apt-get >/dev/null 2>&1 || { \
	    echo "make: no apt-get here; install $$wanted in your system's way" >&2; exit 1; }; \
	if [ -n "$(SUDO)" ] && ! command -v sudo >/dev/null 2>&1; then \
	    echo "make: not root and no sudo; as root: apt-get install $$wanted" >&2; exit 1; fi; \
	$(SUDO) apt-get update -qq && \
	    $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$wanted

constraints: $(DEV) ## write down the versions that are installed now (after the tests passed)
	@{ echo "# Versions that passed the tests together. Written by: make constraints"; \
	    $(BIN)/python -m pip freeze --exclude edgefleet --exclude-editable | grep -E '^[A-Za-z0-9._-]+==[^ /@]+$$'; \
	    } > constraints.new
	@mv constraints.new constraints.txt
	@touch $(DEMO) $(DEV)

clean: ## remove the environment, caches and everything that was built
	rm -rf $(VENV) $(MLFLOW_VENV) $(MOTO_VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
