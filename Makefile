# Every target sets up what it needs on a fresh machine: a virtual environment in $(VENV), made once.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OLDEST_VENV ?= .venv-oldest

.PHONY: setup demo test test-oldest test-lm-eval lint figures kernels-report gpu gpu-compare bench bench-generate
.PHONY: bench-step reproduce rounds real kill fuzz soak

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

# the embedded default: train a tiny Falcon, align it with NCA, print safety and ability before and after
demo: setup
	rm -rf runs/demo
	$(BIN)/python train.py --loss nca --output runs/demo

# two tests at a time, each on one thread: most of them are too small to be shared by two
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

# the fast tests with the oldest versions supported: torch 2.11 with CUDA, as there is no other, so 3 GB to download
test-oldest: $(OLDEST_VENV)/ready
	$(OLDEST_VENV)/bin/python -m pytest -q -m "not slow"

$(OLDEST_VENV)/ready: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-oldest.txt \
		--editable . pytest
	touch $@

# the adapter's tests, with lm-eval installed: 730 MB, so not a part of `make setup`
test-lm-eval: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[lm-eval]'
	$(BIN)/python -m pytest -q tests/evals/test_lm_eval.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# every loss drawn anew, and the table in docs/losses.md; both are committed
figures: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[figures]'
	$(BIN)/python -m align.losses.figures

# what the compiler makes of the GPU kernels, for four GPUs; needs none
kernels-report: setup
	$(BIN)/python -m kernels.tools.traffic
	$(BIN)/python -m kernels.tools.pointwise_report
	$(BIN)/python -m kernels.tools.report

# proves and measures on this machine's GPU, in 8 minutes, and leaves benchmarks/gpu-<card>-<date>.json (docs/gpu.md).
# DRY=1 runs every line of it on a CPU, tiny and with the kernels interpreted
gpu: setup
	$(BIN)/python -m benchmarks.gpu $(if $(DRY),--dry)

# two records side by side, and what moved by more than 5 %: make gpu-compare BEFORE=FILE AFTER=FILE
gpu-compare: setup
	$(BIN)/python -m benchmarks.compare $(BEFORE) $(AFTER)

# time and peak memory of every log-prob implementation that runs here; liger-kernel and cut-cross-entropy where installed
bench: setup
	$(BIN)/python -m kernels.tools.bench

# tokens a second of align.generate, beside transformers where it is installed: make bench-generate MODEL=DIR
bench-generate: setup
	$(BIN)/python -m align.generate.bench --model $(MODEL)

# 40 trainings killed at moments of all kinds and resumed: a table, and every one to the bit or an error
kill: setup
	$(BIN)/python -m benchmarks.kill

# 10,000 mutated inputs of every kind that is read: a table, and an error where one is not refused in a line. SEED=7
fuzz: setup
	$(BIN)/python -m benchmarks.fuzz $(if $(SEED),--seed $(SEED)) $(if $(CASES),--cases $(CASES))

# 2,000 steps of a tiny model, whose memory, open files and threads must not grow
soak: setup
	$(BIN)/python -m benchmarks.soak

# a training step beside TRL's, on the same work: make bench-step TRL=PYTHON, an interpreter that has trl; alone without
bench-step: setup
	$(BIN)/python -m benchmarks.step $(if $(TRL),--trl $(TRL)) $(if $(BFLOAT16),--bfloat16) $(if $(REPEATS),--repeats $(REPEATS))

# the experiment of docs/results.md: runs what benchmarks/reproduce-cpu.jsonl lacks, hours of two cores, and can be stopped
# at any moment. FAST=1 runs a little of every part, in minutes
reproduce: setup
	$(BIN)/python -m benchmarks.reproduce $(if $(FAST),--fast)

# two rounds on the toy world: respond, make pairs, train, and again
rounds: setup
	$(BIN)/python -m benchmarks.rounds

# a real model made safe, before and after: make real MODEL=DIR DATA=DIR; hours on two cores, and it goes on where it was
real: setup
	$(BIN)/python -m benchmarks.real --model $(MODEL) --data $(DATA)
