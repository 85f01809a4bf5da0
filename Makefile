# `make demo` and `make test` set everything up by themselves and are quick the second time.

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
# The installation that answers: without torch.
ANSWER := .venv-answer
# The tests of a file share its fixtures, and so a process. Each has one thread for arithmetic:
# threads of several processes on one core wait for one another.
PARALLEL := -n logical --maxprocesses 4 --dist loadfile
test coverage test-slow: export OMP_NUM_THREADS = 1

.PHONY: demo test test-answer test-slow coverage check audit docs bench clean

demo: $(READY)
	$(VENV)/bin/twinlens demo

test: $(READY)
	$(PYTHON) -m pytest $(PARALLEL)

test-answer: $(ANSWER)/.ready
	$(ANSWER)/bin/python -m pytest -q -p no:cacheprovider tests/answering

test-slow: $(READY)
	$(PYTHON) -m pytest $(PARALLEL) -m slow

# The same tests as `make test`, a fifth slower; `make check` shows the figure.
coverage: $(READY)
	$(PYTHON) -m pytest $(PARALLEL) --cov --cov-report=
	@$(coverage-figure)

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTHON) .ci/audit
	$(PYTHON) -m pytest -q tests/test_architecture.py
	@$(coverage-figure)

# Published security holes of the packages in pyproject.toml, where the index can be reached.
audit: $(READY)
	$(PYTHON) .ci/audit

# Warnings are errors, and so is a page that loads something from a server.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict
	@! grep -rE '<(script|link|img|iframe)[^>]* (src|href)="?(https?:)?//' build/site --include=*.html
	@echo "build/site/index.html"

bench: $(READY)
	$(PYTHON) -m benchmarks

define coverage-figure
if test -f .coverage; then \
	echo "coverage on $$(date -r .coverage +%F): $$($(PYTHON) -m coverage report --format=total) %"; \
else echo "coverage: not measured yet, see 'make coverage'"; fi
endef

# The stamp is newer than pyproject.toml once everything that it names is installed.
$(READY): pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --editable '.[dev]'
	touch $@

$(ANSWER)/.ready: pyproject.toml
	test -x $(ANSWER)/bin/python || python3 -m venv $(ANSWER)
	$(ANSWER)/bin/python -m pip install --quiet --editable . 'pytest>=9.0.3'
	touch $@

clean:
	rm -rf $(VENV) $(ANSWER) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage build dist
