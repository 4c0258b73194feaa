# make train: the first thing to try.  make test: everything that CI runs.  make bench: what the kernels reach here.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out

# torch before the rest, so that nothing else asks the index for its newest build.
STAMP := $(VENV)/.installed
SOURCES := setup.py pyproject.toml constraints.txt $(wildcard csrc/*)

.PHONY: train test check bench format clean

train: $(STAMP)
	$(BIN)/deeprelax train --out $(OUT)/train

test: $(STAMP) check
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror csrc/*

bench: $(STAMP)
	$(BIN)/deeprelax bench --preset full --out $(OUT)/bench

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i csrc/*

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "deeprelax needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(STAMP): $(VENV)/.python $(SOURCES)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[experiments,triton,test,check]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info out deeprelax/*.so deeprelax/_build_info.py
