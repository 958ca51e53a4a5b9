# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
SHELL := /bin/sh
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
TEST_WORKERS ?= 2
# The environment is made anew only when what it is made from has changed.
STAMP := $(VENV)/.installed-$(shell cat requirements.lock pyproject.toml docker/ffcv.sh 2>/dev/null | sha256sum | cut -c1-16)

.PHONY: help quickstart experiments chaos kill-moments test test-fast check setup ffcv format lint types docs lock bench clean

help:  ## list every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: setup  ## install, run the whole pipeline on built-in images, show the result
	@$(BIN)/robustrain run quickstart

experiments: setup  ## run the six small experiments and write one page with their answers (about 9 minutes)
	@$(BIN)/robustrain experiments

test: setup  ## run all tests (under 15 minutes on two cores)
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

test-fast: setup  ## run the fast tests: no Ray, no whole pipeline (under 2 minutes on two cores)
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder -m 'not slow and not ffcv' $(TESTS)

check: lint types test  ## what CI runs: format, lint, types, import rules, tests

setup: $(STAMP)  ## create .venv/ with everything in it; does nothing when it is up to date

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
	  { echo "error: Python 3.11 or 3.12 is needed (found: $$($(PYTHON) --version 2>&1)). Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "creating $(VENV) and installing (some minutes and 8 GB, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock 2>$(VENV)/install.log || \
	  { grep -v '^WARNING' $(VENV)/install.log | tail -n 5 >&2; echo "error: the installation failed; the log is $(VENV)/install.log" >&2; exit 2; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e . 2>>$(VENV)/install.log
	@docker/ffcv.sh $(BIN)/python || true
	@rm -f $(VENV)/.installed-*
	@touch $@

ffcv: setup  ## build FFCV (needs root or passwordless sudo for Debian packages)
	@docker/ffcv.sh $(BIN)/python

format: setup  ## format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: setup  ## formatting, lint, import rules, lengths of files and functions
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .
	@$(BIN)/python -m pytest -q tests/unit/test_import_rules.py tests/unit/test_house.py

types: setup  ## static types
	@$(BIN)/pyright --pythonpath $(BIN)/python

docs: setup  ## write the tables of settings in README.md and docs/cluster.md from the settings classes
	@$(BIN)/python docs/settings_tables.py

lock:  ## write requirements.lock anew from pyproject.toml (in a throw-away environment)
	@dir=$$(mktemp -d) && $(PYTHON) -m venv $$dir/v && $$dir/v/bin/pip install -q -e '.[train,dev]' 2>/dev/null && \
	  { echo "# Exact versions of everything, direct or not. Written by: make lock"; \
	    $$dir/v/bin/pip freeze --all --exclude pip --exclude wheel --exclude-editable --exclude robustrain; } > requirements.lock && rm -rf $$dir

chaos: setup  ## kill trainings at random moments: make chaos TRIALS=50 SEED=1 RAY=2
	@$(BIN)/python -m tests.resume.chaos --trials $(or $(TRIALS),50) --seed $(or $(SEED),1) --ray $(or $(RAY),2)

kill-moments: setup  ## kill whole runs at random moments: make kill-moments MOMENTS=20 SEED=1
	@$(BIN)/python -m tests.faults.kill_moments --moments $(or $(MOMENTS),20) --seed $(or $(SEED),1)

bench: setup  ## run the benchmarks and print their tables
	@for name in adversarial_step data_loader train_overhead second_run; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:  ## remove .venv/ and .robustrain/
	@rm -rf $(VENV) .robustrain
