# `make` alone explains the targets.
PYTHON ?= python3
STUDY ?= embedded
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup repro plan test lint lock readme clean

help:
	@echo "make repro               run the embedded study: every result, figure and table (about 20 min on 2 cores)"
	@echo "make repro STUDY=seeds   run another study of profiles/: $(notdir $(basename $(wildcard profiles/*.yaml)))"
	@echo "make repro JOBS=4        four stages side by side, each on its share of the cores and GPUs (on a CPU by default two)"
	@echo "make plan STUDY=...      say what that would run, and about how long it takes"
	@echo "make test                lint, unit tests and a small study end to end"
	@echo "make lint                ruff and mypy alone"
	@echo "make readme              rewrite README.md's generated blocks from the results"
	@echo "make lock                renew requirements.lock from pyproject.toml"
	@echo "make clean               remove the environment and what is cheap to make again; results, your data, checkpoints stay"

setup: $(READY)

# The lock names versions, and pip brings what torch itself asks for on this platform (CUDA libraries where it runs).
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

repro: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m nxm.launch $(if $(JOBS),--jobs $(JOBS)) $(STUDY)

plan: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m nxm.launch --plan $(if $(JOBS),--jobs $(JOBS)) $(STUDY)

test: lint
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

readme: $(READY)
	$(BIN)/python -m nxm.report.readme

lock:
	bash tools/lock.sh $(PYTHON)

clean:
	rm -rf $(VENV) .cache/carriers .pytest_cache .ruff_cache .mypy_cache
