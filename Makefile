# Everything runs in .venv, made on first use. Torch comes from constraints.txt, before anything that asks for it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo test test-slow lint types bench clean

help:
	@echo "make demo        distil a digit classifier and write the page that judges it"
	@echo "make test        lint, types and tests (some 12 minutes on 2 cores)"
	@echo "make test-slow   the tests that take minutes each"
	@echo "make bench       the benchmarks, written to docs/benchmarks.md"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.deps-run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt torch==2.13.0
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.deps-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt torch==2.13.0
	$(PIP) install -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.deps-run

demo: $(VENV)/.deps-run
	$(BIN)/tutelage run examples/digits/config.yaml
	@echo "open $(CURDIR)/runs/digits/report.html"

lint: $(VENV)/.deps-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.deps-test
	$(BIN)/pyright --pythonpath $(BIN)/python

# two workers, a file to one of them: the tests' models are small, and each runs on one thread; in the order of their names,
# since the files with the fewest tests, which would else come last, are those that take longest
test: lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.deps-test
	$(BIN)/python -m pytest -m slow --timeout 1200

bench: $(VENV)/.deps-test
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .ruff_cache .hypothesis
