# `make demo` and `make test` set everything up by themselves and are quick the second time.

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test test-slow check bench clean

demo: $(READY)
	$(VENV)/bin/twinlens demo

test: $(READY)
	$(PYTHON) -m pytest

test-slow: $(READY)
	$(PYTHON) -m pytest -m slow

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTHON) -m pytest -q tests/test_architecture.py

bench: $(READY)
	$(PYTHON) -m benchmarks

# The stamp is newer than pyproject.toml once everything that it names is installed.
$(READY): pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
