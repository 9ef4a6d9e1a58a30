# `make app` starts the page, `make test` runs the tests; both make .venv and install what they need first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: app test lint bench clean

# two memory arenas: with one a thread, as is usual, what threads have freed stays with them
app: .venv/app.installed
	MALLOC_ARENA_MAX=2 $(BIN)/python app.py

# a file stays with one process, so that what it builds once is built once
test: .venv/dev.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/dev.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/app.installed
	$(BIN)/python -m training.benchmark segment --sizes 160 256 --pictures 1 4 --budget 4
	$(BIN)/python -m training.benchmark photo
	$(BIN)/python -m training.benchmark search
	$(BIN)/python -m training.benchmark retrain
	$(BIN)/python -m training.benchmark page --requests 900

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv

# the stamp files make the second start instant: pip runs again only when the list has changed
.venv/app.installed: requirements.txt | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev.installed: requirements-dev.txt .venv/app.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
