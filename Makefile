# `make` alone lists the targets. Each sets up what it needs in .venv on its first run.

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-core lint format types docs notebooks notebooks-check readme bench clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Empty files that stand for "installed", renewed when the list of dependencies changes.
RUN := $(VENV)/.installed-run
CORE := $(VENV)/.installed-core
DEV := $(VENV)/.installed-dev
$(RUN): EXTRAS := experiments
$(CORE): EXTRAS := experiments,test
$(DEV): EXTRAS := experiments,test,docs,peers

# Most of the time goes into compiling, which uses one core: two processes, whole files to each, so
# that what a file compiles or computes once it does not do twice. One LAPACK thread in each: several
# wait for one another on a busy machine, see benchmarks/lapack_threads.py.
PYTEST := JAX_PLATFORMS=cpu OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 \
	--dist loadfile --doctest-modules fira_jax experiments tests

# A fresh set-up takes minutes: show what is being fetched, and leave out the rest of pip's talk.
define install
@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
@echo "installing fira-jax[$(EXTRAS)] into $(VENV)"
@set -o pipefail; \
	PYTHONUNBUFFERED=1 $(BIN)/python -m pip install --disable-pip-version-check --no-compile --editable '.[$(EXTRAS)]' \
	| awk '/^(Downloading|Installing|Successfully)/ { print substr($$0, 1, 100); fflush() }'
endef

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUN)  ## train a small LLaMA with AdamW, GaLore and Fira; print a table, draw the curves
	$(BIN)/python -m experiments.demo

test: $(DEV)  ## every test and every documented example
	$(PYTEST) $(ARGS)

test-slow: $(DEV)  ## what takes longest: every method through Optax's own tests, two processes ...
	$(PYTEST) -m slow $(ARGS)

test-core: $(CORE)  ## the tests that need neither PyTorch nor the documentation tools
	$(PYTEST) --ignore tests/peers $(ARGS)

lint: $(DEV)  ## style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(DEV)  ## put the formatting right
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(DEV)  ## type check
	$(BIN)/mypy

docs: $(DEV)  ## build the site into docs/_build/html; any warning is an error
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

notebooks: $(DEV)  ## execute the notebooks and keep their outputs
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 --overwrite notebooks

notebooks-check: $(DEV)  ## execute the notebooks, changing nothing
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 notebooks

readme: $(DEV)  ## put the demo's newest table into the README
	$(BIN)/python docs/readme.py

bench: $(DEV)  ## time the update step beside optax.contrib.galore and AdamW
	$(BIN)/python -m benchmarks.update_step

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist docs/_build docs/jupyter_execute .*_cache

$(RUN): pyproject.toml
	$(install)
	@touch $@

$(CORE): pyproject.toml
	$(install)
	@touch $@ $(RUN)

$(DEV): pyproject.toml
	$(install)
	@touch $@ $(CORE) $(RUN)
