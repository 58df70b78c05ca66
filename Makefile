# Each target does all the set-up it needs on a fresh machine: Python 3.10 or newer, make, and the package index.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
SETUP_FILES = pyproject.toml constraints.txt Makefile

.PHONY: demo test lint format clean

## demo: find the nuclei in the bundled crop of a real slide; the page is demo-out/index.html
demo: $(VENV)/.ready-demo
	$(BIN)/unetsharp demo --out demo-out

## test: lint, types, and every test this machine can run
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## format: what `make test` asks of the code's form
format: $(VENV)/.ready-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo-out

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready-demo: $(SETUP_FILES) | $(VENV)/bin/python
	@echo "Installing unetsharp with its export and TensorRT-RTX extras into $(VENV) (PyTorch included: a few GB, once)"
	$(PIP_INSTALL) --editable '.[export,rtx]'
	touch $@

$(VENV)/.ready-test: $(SETUP_FILES) | $(VENV)/bin/python
	@echo "Installing unetsharp with all extras but gpu into $(VENV) (PyTorch included: a few GB, once)"
	$(PIP_INSTALL) --editable '.[train,export,rtx,wsi,dev]'
	touch $@
