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

CHECKS := $(addprefix check-,types style imports) docs
AT_ONCE = $(MAKE) --no-print-directory --jobs=2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.PHONY: train test test-oldest-triton check $(CHECKS) docs bench gpu $(addprefix gpu-,tests bandwidth steps host ncu tune)
.PHONY: architectures format clean

train: $(VENV)/.trains
	$(BIN)/deeprelax train --out $(OUT)/train

test: $(STAMP) $(OLDEST_TRITON)/.installed
	$(AT_ONCE) $(CHECKS) test-oldest-triton
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20

# The kernels have to compile with the oldest Triton, too, that pyproject.toml allows: torch brings its own.
test-oldest-triton:
	PYTHONPATH=$(OLDEST_TRITON) $(BIN)/python -m pytest -q tests/kernels/test_triton_ptx.py -k "fused and (inner or tick)"

# What takes longest comes first.
check: $(STAMP)
	$(AT_ONCE) $(CHECKS)

check-types:
	$(BIN)/mypy

check-style:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*

check-imports:
	$(BIN)/python -m pytest -q tests/test_architecture.py

# The site of the docs, in $(OUT)/site; make check builds it too.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(OUT)/site

architectures: $(STAMP)
	DEEPRELAX_CUDA_ARCHS= $(BIN)/pip install --quiet --no-build-isolation --no-deps -e .
	$(BIN)/python -m pytest -q tests/kernels/test_cuda_binaries.py

bench: $(STAMP)
	$(BIN)/deeprelax bench --preset full --out $(OUT)/bench

# Without an environment and without an index: torch's GPU build is installed, and often there is no network. COMMIT
# names the files' commit outside of a repository. Every script is a separate process with a limit on its time, and
# appends each result to $(OUT)/gpu/rows.jsonl as it is measured; stopped.txt names those that did not come to their
# end. `make gpu SCRIPTS=tune` runs only what it names.
SCRIPTS ?= tests bandwidth steps host ncu
GPU := $(OUT)/gpu
export OUT COMMIT
ON_GPU = timeout --kill-after=5 $(1) $(PYTHON) bench/gpu/$(2).py $(3) || \
    echo "$(strip $(2).py $(3)): exit status $$?" >> $(GPU)/stopped.txt
BOTH = $(foreach b,cuda triton,$(call ON_GPU,$(1),$(2),--backend $(b) $(3));)

gpu:
	mkdir -p $(GPU)
	architecture="$$($(PYTHON) bench/gpu/preflight.py)" && \
	export CUDA_HOME="$${CUDA_HOME:-/usr/local/cuda}" DEEPRELAX_CUDA=1 DEEPRELAX_CUDA_ARCHS="$$architecture" && \
	PIP_BREAK_SYSTEM_PACKAGES=1 $(PYTHON) -m pip install --quiet --no-index --no-build-isolation --no-deps -e .
	$(if $(filter tests,$(SCRIPTS)),rm -f $(addprefix $(GPU)/,rows.jsonl stopped.txt *.xml *check-*.txt))
	$(MAKE) --no-print-directory --jobs=1 $(addprefix gpu-,$(SCRIPTS))
	$(PYTHON) bench/gpu/report.py

# compute-sanitizer and ncu may lie in CUDA's folder alone.
gpu-tests gpu-ncu: export PATH := $(PATH):$(or $(CUDA_HOME),/usr/local/cuda)/bin

# The tests, and those that compare every call with the reference under compute-sanitizer, at one time. Calls that fail
# inside torch or the driver are no fault of ours. Every tensor gets its own memory: torch's pool would hide what
# reaches past the end of one. Triton compiles a kernel for each setting, so that its tests are fewer. A sanitizer that
# does not support the device says so, and ends as if it had found nothing. Between tests pytest itself stops in time:
# what the sanitizer does at a signal is not documented.
ON_GPU_TEST = $(PYTHON) -m pytest -q -p no:cacheprovider --junitxml=$(GPU)/$(1).xml
IN_TIME = timeout --signal=INT --kill-after=20 200
SANITIZE = { PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(IN_TIME) compute-sanitizer --tool $(1) --error-exitcode 86 \
    --report-api-errors no $(call ON_GPU_TEST,$(1)-$(2)) tests/gpu/test_gpu_calls.py tests/gpu/test_gpu_scaler.py \
    --session-timeout 180 -k "$(2)$(3)" > $(GPU)/$(1)-$(2).txt 2>&1 && \
    ! grep -q -e "Device not supported" -e "== Error" $(GPU)/$(1)-$(2).txt || \
    echo "compute-sanitizer, $(1)-$(2): exit status $$?" >> $(GPU)/stopped.txt; } &
NARROW := and (scaled or float32 or bfloat16)

gpu-tests: export OMP_NUM_THREADS := 2
gpu-tests:
	$(call SANITIZE,memcheck,cuda) \
	$(call SANITIZE,memcheck,triton, $(NARROW)) \
	$(call SANITIZE,racecheck,triton, $(NARROW)) \
	CUBLAS_WORKSPACE_CONFIG=:4096:8 $(IN_TIME) $(call ON_GPU_TEST,pytest) tests/gpu -n 8 --dist loadgroup --timeout 90 || \
	echo "tests/gpu: exit status $$?" >> $(GPU)/stopped.txt; wait

gpu-bandwidth:
	$(call BOTH,120,bandwidth)

gpu-steps:
	$(call BOTH,80,steps)
	$(call ON_GPU,60,steps,--plain)
	$(call ON_GPU,90,steps,--compiled)

gpu-host:
	$(call BOTH,40,steps,--host)

gpu-ncu:
	$(call BOTH,60,ncu)

gpu-tune:
	$(call BOTH,280,tune)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i csrc/*

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "deeprelax needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	touch $@

# All that training needs: without the CUDA kernels where no GPU is.
$(VENV)/.trains: $(VENV)/.python $(SOURCES)
	$(BIN)/pip install -c constraints.txt torch
	$(if $(shell command -v nvidia-smi),,DEEPRELAX_CUDA=0) $(BIN)/pip install -c constraints.txt -e '.[experiments]'
	touch $@

$(STAMP): $(VENV)/.python $(SOURCES)
	$(BIN)/pip install --quiet --no-compile -c constraints.txt torch
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e '.[experiments,triton,integrations,torchft,test,check]'
	touch $(VENV)/.trains $@

$(OLDEST_TRITON)/.installed: $(STAMP)
	$(BIN)/pip install --quiet --no-compile --no-deps --upgrade --target $(OLDEST_TRITON) triton==3.6.0
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info out deeprelax/*.so deeprelax/_build_info.py
