# `make demo` and `make test` need Python 3.11+ and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?= -n 2

# Tests and the demo never ask a model hub for anything.
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo docs test test-oldest test-composer pytest lint format coverage bench resume-test long-test dist clean

help:
	@echo "make demo    SimCLR and Deep Augmentation on digits: a table and a plot in demo/"
	@echo "make docs    the documentation as a site: site/index.html"
	@echo "make test    lint, types and tests"
	@echo "make test-oldest  the core's tests on torch 2.11, in an environment of its own"
	@echo "make test-composer  a rewritten model in composer, in an environment of its own"
	@echo "make lint    ruff, mypy, and which room may import which"
	@echo "make pytest  the tests only"
	@echo "make format  rewrite the sources in the house format"
	@echo "make coverage  which architectures can be rewritten: docs/coverage.md"
	@echo "make resume-test  kill a run twenty times and resume it"
	@echo "make long-test  the tests that make test leaves out"
	@echo "make bench   all speed figures in one table: benchmarks/results/, benchmarks/LEADERBOARD.md"
	@echo "make dist    wheel and sdist in dist/, checked, and tried in environments with nothing else in them"
	@echo "make clean   remove .venv and everything that was generated"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; use make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/graphaug demo --out demo --force

# Strict: a link that leads nowhere, or a name that is missing, ends it.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy has one thread: the tests begin beside it.
test: $(STAMP)
	$(MAKE) --no-print-directory -j2 lint pytest

# One thread a worker: torch's threads of two processes on two cores would only wait for each other.
pytest: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

resume-test: $(STAMP)
	OMP_NUM_THREADS=1 GRAPHAUG_KILLS=20 $(BIN)/python -m pytest -s -m '' tests/contrastive/test_resume.py

# The core on the oldest torch that is supported, in an environment of its own.
OLDEST := .venv-oldest
CORE_TESTS := tests/select tests/capture tests/proof tests/surgery tests/augment tests/sparse tests/verbs

$(OLDEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --editable '.[dev]' 'torch==2.11.*' 'torchvision==0.26.*'
	@touch $@

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest $(PYTEST_ARGS) $(wildcard $(CORE_TESTS))

# composer asks for a torch that is older than the oldest here, and works without that.
WITH_COMPOSER := .venv-composer

$(WITH_COMPOSER)/.installed: pyproject.toml
	$(PYTHON) -m venv $(WITH_COMPOSER)
	$(WITH_COMPOSER)/bin/python -m pip install --quiet --editable . pytest hypothesis 'torch==2.11.*' 'torchvision==0.26.*' \
		'torchmetrics<1.7.5' torch_optimizer coolname py-cpuinfo 'importlib-metadata<9' tabulate psutil tqdm requests mosaicml-cli==0.7.5
	$(WITH_COMPOSER)/bin/python -m pip install --quiet --no-deps mosaicml==0.32.1
	@touch $@

# What composer leaves open until Python ends is not ours.
test-composer: $(WITH_COMPOSER)/.installed
	$(WITH_COMPOSER)/bin/python -m pytest -W ignore::pytest.PytestUnraisableExceptionWarning tests/callbacks/test_composer.py

long-test: $(STAMP)
	OMP_NUM_THREADS=1 GRAPHAUG_THOROUGH=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m 'long or thorough'

coverage: $(STAMP)
	$(BIN)/python -m benchmarks.coverage

bench: $(STAMP)
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.text_step
	$(BIN)/python -m benchmarks.views
	$(BIN)/python -m benchmarks.rewrite
	$(BIN)/python -m benchmarks.leaderboard

# Only builds and tries: nothing is uploaded. `twine upload dist/*` is left to a person.
dist: $(STAMP)
	$(BIN)/python -m pip install --quiet 'build>=1.2' 'twine>=6'
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/helpers/bare_environment.py dist

clean:
	rm -rf $(VENV) build dist site demo runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
