# make demo | test | lint | format | readme – each sets up what it needs, with nothing but python3 and make present.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SOURCES = coprobe tests benchmarks

# The stamps are newer than setup.cfg once its dependencies are installed.
RUN = $(VENV)/.run
DEV = $(VENV)/.dev

.PHONY: demo test lint format readme clean

demo: $(RUN)
	$(BIN)/coprobe demo

test: $(DEV)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST)

lint: $(DEV)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# Writes the tables of README.md anew from the registries; a test fails while they are stale.
readme: $(DEV)
	$(BIN)/python -m tests.readme_tables

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(RUN): setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# torchattacks pins old versions of what it doesn't need for PGD, so it comes without its dependencies.
$(DEV): $(RUN)
	$(BIN)/python -m pip install --quiet --editable .[dev]
	$(BIN)/python -m pip install --quiet --no-deps torchattacks==3.5.1
	touch $@
