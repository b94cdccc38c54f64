# Two commands for a newcomer: `make demo` and `make test`. Both stand on `make install`.
PYTHON ?= python3
VENV := .venv
BIN = $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest
# Two processes of one thread each: torch's threads would wait for one another.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: install hooks demo test test-oldest check docs notebooks format benchmarks peers tables clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

hooks: install
	$(BIN)/pre-commit install

demo: install
	$(BIN)/certibox demo --out runs/demo

test: install
	$(PYTEST)

# The suite with the oldest versions that pyproject.toml promises, in an environment of its own (see RELEASING.md).
test-oldest: VENV := $(OLDEST)
test-oldest: $(OLDEST)/.installed
	$(PYTEST)

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/bin/python || python3.11 -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-oldest.txt \
		--editable ".[test]"
	touch $@

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

notebooks: install
	$(BIN)/jupytext --to ipynb docs/notebooks/*.py

docs: install
	$(BIN)/python tools/build_site.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: install
	$(BIN)/python benchmarks/certification_rate.py --write
	$(BIN)/python benchmarks/training_step.py --write
	$(BIN)/python benchmarks/interleaving.py --write
	$(BIN)/python benchmarks/remote.py --write
	$(BIN)/python benchmarks/faults.py --write
	$(BIN)/python benchmarks/gateway.py --write
	$(BIN)/python tools/soak_gateway.py --minutes 30 --write

# Servers and clients of others, each in an environment of its own.
peers: install
	tools/peers.sh .peers
	$(PYTEST) tests/peers

tables: install
	$(BIN)/python tools/publish.py

clean:
	rm -rf runs build *.egg-info src/*.egg-info .pytest_cache .ruff_cache .hypothesis $(OLDEST)
