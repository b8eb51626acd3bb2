# What there is to do with a checkout; `make help` lists it. Everything happens in .venv.

PYTHON ?= python3
# Installed by itself before the rest, so that one place decides which build is used.
TORCH ?= torch==2.13.0
# One more than the cores of a small machine: many tests wait for processes.
WORKERS ?= 3

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
NEEDS_PYTHON := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))

.DEFAULT_GOAL := help
.PHONY: help demo test check format lint types docs docs-check lock bench clean
.DELETE_ON_ERROR:

help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(VENV)/.installed ## Train a LoRA on the tiny built-in model, on any CPU
	@$(BIN)/lorapod demo

test: $(VENV)/.installed-dev ## Run the tests
	@$(BIN)/pytest -n $(WORKERS)

check: format lint types docs-check test ## All that must be green before a commit

format: $(VENV)/.installed-dev ## Check the formatting (`ruff format` repairs it)
	@$(BIN)/ruff format --check .

lint: $(VENV)/.installed-dev ## Check the code and which room imports which
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports

types: $(VENV)/.installed-dev ## Check the types
	@$(BIN)/mypy

docs: $(VENV)/.installed-dev ## Write the generated pages of docs/
	@$(BIN)/python tools/docs.py

docs-check: $(VENV)/.installed-dev ## Check that the generated pages of docs/ say what the code says
	@$(BIN)/python tools/docs.py --check

lock: $(VENV)/.installed-dev ## Pin by hash what the container holds (docker/*.lock)
	@$(BIN)/python tools/lock.py

bench: $(VENV)/.installed-dev ## Run the benchmarks, one after the other
	@set -e; for file in $(filter-out benchmarks/gpu.py,$(wildcard benchmarks/*.py)); do echo "== $$file"; $(BIN)/python $$file; done
	@$(BIN)/python benchmarks/gpu.py --tiny z-image wan2.1-t2v-1.3b

clean: ## Remove .venv and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# A stamp each for what users and what developers need: both are made anew only where pyproject.toml changed.
$(VENV)/.torch:
	@$(PYTHON) -c '$(NEEDS_PYTHON)' || { echo "lorapod needs Python 3.11, 3.12 or 3.13; name one: make PYTHON=python3.12" >&2; exit 2; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH) (a few minutes the first time)"
	@$(PIP) install '$(TORCH)'
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.torch
	@echo "Installing lorapod with its engine"
	@$(PIP) install -e '.[engine,optimizers]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.torch
	@echo "Installing lorapod with its engine and the tools of its developers"
	@$(PIP) install -e '.[engine,optimizers,captions,tagger,dev]'
	@touch $@ $(VENV)/.installed
