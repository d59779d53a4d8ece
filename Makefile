# Two commands do everything: `make journey` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Real data and small trained models for benchmarks (and, where they are, for tests).
STERNA_DATA ?= ../shared/data
STERNA_MODELS ?= ../shared/models
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: journey test check prove format setup clean help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## make .venv (other targets do it by themselves)

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; set PYTHON=python3.11 or newer" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11; set PYTHON=python3.11 or newer" >&2; exit 2; }
	@command -v g++ >/dev/null || { echo "make: g++ not found; install it (Debian: apt-get install g++)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

journey: $(READY)  ## text -> served model that survives a preemption, on 2 cores, with a report
	$(BIN)/python -m sterna journey --config configs/tiny.toml

test: $(READY)  ## the test suite
	$(BIN)/python -m pytest -m 'not slow' tests

check: $(READY)  ## format, lint, types of the pure files, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

prove: $(READY)  ## the long proofs: slow tests, benchmarks beside their peers
	$(BIN)/python -m pytest -m slow tests
	mkdir -p runs
	$(BIN)/python -m benchmarks.engine --model $(STERNA_MODELS)/tiny-code --prompts $(STERNA_DATA)/code/HumanEval.jsonl.gz --json runs/engine.json

format: $(READY)  ## rewrite in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what the other targets made
	rm -rf $(VENV) runs build ./*.egg-info
