# Every target sets up what it needs on a fresh machine: a virtual environment in $(VENV), made once.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: setup demo test lint figures

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

# the embedded default: train a tiny Falcon, align it with NCA, print safety and ability before and after
demo: setup
	rm -rf runs/demo
	$(BIN)/python train.py --loss nca --output runs/demo

test: setup
	$(BIN)/python -m pytest -q

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# every loss drawn anew, and the table in docs/losses.md; both are committed
figures: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[figures]'
	$(BIN)/python -m align.losses.figures
