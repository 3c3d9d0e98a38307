# Every target makes its own virtual environment: only Python 3.11+, make and a package index are needed.
# Override on the command line, for example:  make test PYTHON=python3.12 TORCH=torch==2.13.0 PYTEST_ARGS="-k selection"

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
TORCH ?=
PYTEST_ARGS ?= -n 2

DEMO_IMAGE ?= examples/assets/demo.png
# Sentence number i is checked against examples/assets/demo_mask_i.png by .ci/check_demo.py.
DEMO_SENTENCES ?= "the red triangle" "the dotted triangle right of the red triangle"
DEMO_BUDGET ?= 48
DEMO_OUTPUT ?= demo_output

BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-lowest quality style docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/.installed-base  ## segment an example picture by sentences, with a third of the visual tokens
	$(BIN)/litelvlm segment $(DEMO_IMAGE) $(DEMO_SENTENCES) --budget $(DEMO_BUDGET) --compare --output $(DEMO_OUTPUT)
	@echo "The pictures are in $(abspath $(DEMO_OUTPUT))"

test: $(VENV)/.installed-test  ## run the tests (PYTEST_ARGS="..." to choose)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-lowest:  ## run the tests against the oldest versions that setup.cfg allows (own environment)
	$(MAKE) .venv-lowest/.installed-lowest VENV=.venv-lowest
	.venv-lowest/bin/python -m pytest $(PYTEST_ARGS)

quality: $(VENV)/.installed-quality  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

style: $(VENV)/.installed-quality  ## reformat, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-base  ## check links and that every public name is documented
	$(BIN)/python docs/check_docs.py

clean:  ## remove the environments, caches and outputs
	rm -rf .venv .venv-lowest $(DEMO_OUTPUT) build dist .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments: a stamp per set of extras, renewed when the metadata changes ---

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $$($(PYTHON) --version 2>&1) is too old: transformers 5.23 needs Python 3.11 or newer." \
	       "Name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed-%: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install $(PIP_ARGS) $(TORCH) -e ".$(filter-out [base],[$*])"
	@touch $@

$(VENV)/.installed-lowest: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install uv
	$(BIN)/uv pip install --python $(BIN)/python --resolution lowest-direct $(PIP_ARGS) -e ".[test]"
	@touch $@
