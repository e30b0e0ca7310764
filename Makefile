# `make demo` and `make test` do all the set-up on a fresh machine: Python 3.11 or newer is all they need.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TRL    := 1.16.0
PEER   := .venv-trl

# Threads that wait should not spin: see duiti/cli.py.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test fmt lint type check faults fuzz bench bench-quick bench-methods bench-data tiny-base clean

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

# One process per core (WORKERS=1: the whole of it in one; each takes about a gigabyte).
test: setup  ## every test
	$(BIN)/pytest -n $(or $(WORKERS),auto) --maxprocesses 8 --dist worksteal

fmt: setup  ## rewrite the code in the house format
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup
	$(BIN)/mypy

check: lint type test  ## what has to pass before a commit

faults: setup  ## every fault of docs/reliability.md, made for real, and its table (WRITE=1: into the page)
	cd tests && ../$(BIN)/python -m faults.run_matrix $(if $(ONLY),--only $(ONLY)) $(if $(WRITE),--write)

fuzz: setup  ## mutated input for every parser, SECONDS_EACH (60) seconds each
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(or $(SECONDS_EACH),60)

# Made-up rows, or real ones: DATA, MAP (fields of DATA) and DATA_ZH with the TOKENIZER (a tokenizer.json).
# SCENARIO="lora-4-bf16 tiny" measures only those; WRITE=1 puts the tables into README and docs.
SPEED = $(if $(DATA),--data $(DATA)) $(if $(MAP),--map $(MAP)) $(if $(DATA_ZH),--data-zh $(DATA_ZH)) \
	$(if $(TOKENIZER),--tokenizer $(TOKENIZER)) $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(WRITE),--write)

bench: setup $(PEER)/.ready  ## training speed beside TRL, in one run (hours; leave the machine alone meanwhile)
	$(BIN)/python -m benchmarks.train_speed --peer $(PEER)/bin/python $(SPEED)

bench-quick: setup $(PEER)/.ready  ## the same with small models: does it work, no verdict (minutes)
	$(BIN)/python -m benchmarks.train_speed --peer $(PEER)/bin/python --quick

bench-methods: setup  ## methods on the embedded model: the README's other table (about ten minutes)
	$(BIN)/python -m benchmarks.methods

# DATA and TOKENIZER: other rows and another tokenizer.json than those of the embedded model.
BENCH_DATA = $(if $(DATA),--data $(DATA)) $(if $(MAP),--map $(MAP)) $(if $(TOKENIZER),--tokenizer $(TOKENIZER))

bench-data: setup $(PEER)/.ready  ## rows per second of preparing data, beside TRL and the bare encoder
	$(BIN)/python benchmarks/prepare.py $(BENCH_DATA) --rows $(or $(ROWS),10000,100000) --peer $(PEER)/bin/python

$(PEER)/.ready: constraints.txt
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PEER)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt trl==$(TRL) peft
	touch $@

tiny-base: setup  ## make the embedded base model anew (about half an hour on one core)
	$(BIN)/python -m examples.tiny_world.build
	$(BIN)/python -m examples.tiny_world.pretrain

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
