# `make` alone explains the targets.
PYTHON ?= python3
STUDY ?= embedded
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NXM := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nxm

.DEFAULT_GOAL := help
.PHONY: help setup repro plan show evidence pages test lint lock clean

help:
	@echo "make repro               train the embedded study: every result, figure and table (about 15 min on 2 cores)"
	@echo "make repro STUDY=seeds   another study: $(sort $(notdir $(patsubst %/,%,$(dir $(wildcard studies/*/study.yaml)))))"
	@echo "make repro JOBS=4        four stages side by side, each on its share of the cores and GPUs (by default two on a CPU)"
	@echo "make plan STUDY=...      say what that would run, and about how long it takes"
	@echo "make show STUDY=...      print what is committed, without running anything"
	@echo "make evidence            compute the committed numbers again from the stored predictions"
	@echo "make test                lint, unit tests and a small study end to end"
	@echo "make lint                ruff and mypy alone"
	@echo "make pages               render README.md, the studies' pages and docs/situations.md"
	@echo "make lock                pin pyproject.toml's packages, with hashes (UPGRADE=--upgrade: the newest)"
	@echo "make clean               remove the environment and cheap caches; results, data and checkpoints stay"

setup: $(READY)

$(READY): requirements.lock requirements-cuda.lock pyproject.toml tools/setup.sh
	@bash tools/setup.sh $(PYTHON) $(VENV)
	touch $@

repro: $(READY)
	@$(NXM) repro $(if $(JOBS),--jobs $(JOBS)) $(STUDY)

plan: $(READY)
	@$(NXM) plan $(if $(JOBS),--jobs $(JOBS)) $(STUDY)

show: $(READY)
	@$(NXM) show $(STUDY)

evidence: $(READY)
	@$(NXM) verify --evidence

pages: $(READY)
	@$(NXM) pages
	@$(BIN)/python tools/situations.py

test: lint
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock:
	$(PYTHON) tools/lock.py $(UPGRADE)

clean:
	rm -rf $(VENV) .cache/carriers .cache/logs .pytest_cache .ruff_cache .mypy_cache
