# Two commands do everything: `make journey` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Real data and small trained models for benchmarks (and, where they are, for tests).
STERNA_DATA ?= ../shared/data
STERNA_MODELS ?= ../shared/models
export RAY_USAGE_STATS_ENABLED ?= 0
export STERNA_DATA STERNA_MODELS
# The peers that benchmarks measure beside us; llama.cpp is compiled for this very machine (4 minutes on 2 free cores).
PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready
PEERS_CURATE := .venv-datatrove
PEERS_CURATE_READY := $(PEERS_CURATE)/.ready
LLAMA := llama-cpp-python==0.3.36
LLAMA_FLAGS := -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAVA_BUILD=OFF

.PHONY: journey test check prove peers peers-curate format setup clean help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY)  ## make .venv (other targets do it by themselves)

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; set PYTHON=python3.11 or newer" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11; set PYTHON=python3.11 or newer" >&2; exit 2; }
	@command -v g++ >/dev/null || { echo "make: g++ not found; install it (Debian: apt-get install g++)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps xgrammar apache-tvm-ffi
	@touch $@

journey: $(READY)  ## text -> served model that survives a preemption, on 2 cores, with a report
	$(BIN)/python -m sterna journey --config configs/tiny.toml

test: $(READY)  ## the test suite
	$(BIN)/python -m pytest -n 2 --dist loadscope -rR -m 'not slow' tests

check: $(READY)  ## format, lint, types of the pure files, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

peers: $(PEERS_READY)  ## make .venv-peers: vLLM and llama.cpp, for benchmarks beside us

$(PEERS_READY): benchmarks/peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/peers.txt
	CMAKE_ARGS="$(LLAMA_FLAGS)" $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(LLAMA) \
	|| echo "make: llama.cpp could not be compiled (the lines above say why); benchmarks will name it as missing" >&2
	@touch $@

peers-curate: $(PEERS_CURATE_READY)  ## make .venv-datatrove: datatrove, the peer that curation is measured beside

$(PEERS_CURATE_READY): benchmarks/peers-curate.txt
	test -x $(PEERS_CURATE)/bin/python || $(PYTHON) -m venv $(PEERS_CURATE)
	$(PEERS_CURATE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/peers-curate.txt
	@touch $@

# Each line goes on where it stopped, or is passed over when its figures are there, so an interrupted `make prove` is simply run again;
# delete runs/ (or add --fresh) to measure anew. On 2 free cores: slow tests some minutes, the long run 30, the five small ones 15, curation beside its peer 15,
# what selection does 15, ways of tuning 40, compression 60, the storm 25,
# drafting 15, serving 10, the engine beside its peers about 90 (the 1B shape takes most of it).
prove: $(READY) $(PEERS_READY) $(PEERS_CURATE_READY)  ## the long proofs: slow tests, the long run, benchmarks beside their peers
	$(BIN)/python -m pytest -m slow tests
	mkdir -p runs
	$(BIN)/python -m benchmarks.soak --minutes 30
	test -e runs/draft_replay.json || $(BIN)/python -m benchmarks.draft_replay --data $(STERNA_DATA)/draft/vicuna7b-mtbench.jsonl.gz \
	--json runs/draft_replay.json --plot runs/draft_replay.png
	test -e runs/policies.json || $(BIN)/python -m benchmarks.policies --trace $(STERNA_DATA)/traces/load/azure-conversation.csv --json runs/policies.json
	test -e runs/overhead.json || $(BIN)/python -m benchmarks.overhead --model $(STERNA_MODELS)/tiny-code --json runs/overhead.json
	test -e runs/sampling.json || $(BIN)/python -m benchmarks.sampling --json runs/sampling.json
	test -e runs/spot.json || $(BIN)/python -m benchmarks.spot --data $(STERNA_DATA)/traces --json runs/spot.json
	test -e runs/filter_parity.json || $(BIN)/python -m benchmarks.filter_parity --data $(STERNA_DATA) --json runs/filter_parity.json
	test -e runs/quality.json || $(BIN)/python -m benchmarks.quality --data $(STERNA_DATA) --json runs/quality.json
	test -e runs/curate.json || $(BIN)/python -m benchmarks.curate --json runs/curate.json
	$(BIN)/python -m benchmarks.selection --plot runs/selection.png
	$(BIN)/python -m benchmarks.tuning --model $(STERNA_MODELS)/tiny-code --data $(STERNA_DATA)
	test -e runs/train.json || $(BIN)/python -m benchmarks.train --json runs/train.json
	test -e runs/checkpoints.json || $(BIN)/python -m benchmarks.checkpoints --json runs/checkpoints.json
	test -e runs/plan-memory.json || $(BIN)/python -m benchmarks.plan_memory --json runs/plan-memory.json
	$(BIN)/python -m benchmarks.architectures --output runs/architectures.json
	$(BIN)/python -m benchmarks.compression --model $(STERNA_MODELS)/tiny-code --data $(STERNA_DATA)
	$(BIN)/python -m benchmarks.storm
	$(BIN)/python -m benchmarks.drafting
	$(BIN)/python -m benchmarks.serve
	$(BIN)/python -m benchmarks.engine

format: $(READY)  ## rewrite in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(PEERS) $(PEERS_CURATE) runs build ./*.egg-info
