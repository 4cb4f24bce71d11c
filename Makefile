# Everything runs in .venv; each target sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEMO ?= demo
JOBS ?= 2

.PHONY: install demo test test-all bench lint clean help

help:
	@echo "make demo | test | test-all | bench | lint | install | clean"

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -e ".[test]"
	@touch $@

demo: install
	$(BIN)/csst-dask demo --out $(DEMO)

test: install lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not long"

test-all: install lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

bench: install
	$(BIN)/python benchmarks/bench.py

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
