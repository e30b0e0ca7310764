# `make demo` and `make test` do all the set-up on a fresh machine: Python 3.11 or newer is all they need.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TRL    := 1.16.0
PEER   := .venv-trl

# Threads that wait should not spin: see duiti/cli.py.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test fmt lint type check bench bench-data tiny-base clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	# For its chat templates, which tests read and never import.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps trl==$(TRL)
	touch $(READY)

demo: setup  ## fine-tune the embedded model and see it answer (about two minutes)
	$(BIN)/duiti demo

test: setup  ## every test
	$(BIN)/pytest

fmt: setup  ## rewrite the code in the house format
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup
	$(BIN)/mypy

check: lint type test  ## what has to pass before a commit

bench: setup  ## the table of the README: methods on the embedded model (about ten minutes)
	$(BIN)/python benchmarks/methods.py

# DATA and TOKENIZER: other rows and another tokenizer.json than those of the embedded model.
BENCH_DATA = $(if $(DATA),--data $(DATA)) $(if $(MAP),--map $(MAP)) $(if $(TOKENIZER),--tokenizer $(TOKENIZER))

bench-data: setup $(PEER)/.ready  ## rows per second of preparing data, beside TRL and the bare encoder
	$(BIN)/python benchmarks/prepare.py $(BENCH_DATA) --rows $(or $(ROWS),10000,100000) --peer $(PEER)/bin/python

$(PEER)/.ready:
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PEER)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt trl==$(TRL)
	touch $@

tiny-base: setup  ## make the embedded base model anew (about half an hour on one core)
	$(BIN)/python -m examples.tiny_world.build
	$(BIN)/python -m examples.tiny_world.pretrain

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
