# make train: the first thing to try.  make test: everything that CI runs.  make bench: what the kernels reach here.
# make gpu: what a GPU proves and measures, with the torch that is installed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out

# torch before the rest, so that nothing else asks the index for its newest build.
STAMP := $(VENV)/.installed
OLDEST_TRITON := $(VENV)/triton-3.6.0
SOURCES := setup.py pyproject.toml constraints.txt $(wildcard csrc/*)

# The CUDA kernels for one architecture, where no GPU asks for another: the tests read its machine code. `make
# architectures` looks at all that are installed elsewhere.
export DEEPRELAX_CUDA_ARCHS ?= $(if $(shell command -v nvidia-smi),,90)

.PHONY: train test check bench gpu architectures format clean

train: $(STAMP)
	$(BIN)/deeprelax train --out $(OUT)/train

# The kernels have to compile with the oldest Triton, too, that pyproject.toml allows: torch brings one of its own.
test: $(STAMP) $(OLDEST_TRITON)/.installed check
	PYTHONPATH=$(OLDEST_TRITON) $(BIN)/python -m pytest -n 2 -q tests/kernels/test_triton_ptx.py -k "fused and (inner or tick)"
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=20

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror csrc/*

architectures: $(STAMP)
	DEEPRELAX_CUDA_ARCHS= $(BIN)/pip install --quiet --no-build-isolation --no-deps -e .
	$(BIN)/python -m pytest -q tests/kernels/test_cuda_binaries.py

bench: $(STAMP)
	$(BIN)/deeprelax bench --preset full --out $(OUT)/bench

# No environment of its own and nothing from an index: torch's GPU build is there, and often no network. COMMIT names
# what the files are where they are in no repository. exec: a signal to make reaches the run, which then saves and stops.
gpu:
	architecture="$$($(PYTHON) bench/can_build.py)" && \
	export CUDA_HOME="$${CUDA_HOME:-/usr/local/cuda}" DEEPRELAX_CUDA=1 DEEPRELAX_CUDA_ARCHS="$$architecture" && \
	PIP_BREAK_SYSTEM_PACKAGES=1 $(PYTHON) -m pip install --quiet --no-index --no-build-isolation --no-deps -e . && \
	exec $(PYTHON) bench/gpu.py --out $(OUT)/gpu $(if $(COMMIT),--commit $(COMMIT)) $(if $(PARTS),--parts $(PARTS)) \
	    $(if $(BUDGET),--budget-seconds $(BUDGET))

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
	$(BIN)/pip install --quiet -c constraints.txt -e '.[experiments,triton,integrations,test,check]'
	touch $@

$(OLDEST_TRITON)/.installed: $(STAMP)
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(OLDEST_TRITON) triton==3.6.0
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info out deeprelax/*.so deeprelax/_build_info.py
