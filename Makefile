# `make` alone lists the targets. Each sets up what it needs in .venv on its first run.

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help demo finetune-demo test test-heart test-slow test-core test-oldest test-newest test-site lint format types docs \
	notebooks notebooks-check readme bench lock dist clean

PYTHON ?= python3
NEWEST_PYTHON ?= python3.13
VENV ?= .venv
BIN := $(VENV)/bin

# $(call with,GROUP) is an empty file that stands for "this dependency group of pyproject.toml is
# installed"; it is renewed when the groups or the locked versions change.
with = $(VENV)/.installed-$(1)

# Most of the time goes into compiling, which uses one core: two processes, whole files to each, so
# that what a file compiles or computes once it does not do twice, and in the order of their names:
# reordered, files of few and long tests come last. One LAPACK thread in each: several wait for one
# another on a busy machine, see benchmarks/lapack_threads.py.
# Bytecode is kept, even where containers are told not to: a process that a test starts would take
# twice as long to import what it needs.
ON_CPU := JAX_PLATFORMS=cpu OPENBLAS_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
SPREAD := --numprocesses 2 --dist loadfile --no-loadscope-reorder
# What was compiled is kept: from the second run on, the tests take much less time.
KEPT := JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.compiled_cache JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1 \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
# XLA's older way of making a CPU's kernels, not optimized: it compiles much faster. The same
# programs as users compile them are what test-heart, test-oldest and test-newest run.
SIMPLY := XLA_FLAGS='--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
PYTEST := $(ON_CPU) $(KEPT) $(SIMPLY) $(BIN)/python -m pytest $(SPREAD) --doctest-modules \
	fira_jax experiments tests

# What has to pass before anything else is looked at.
HEART := $(addprefix tests/,refresh methods/test_golden.py cost/test_state_owners.py \
	project/test_house.py campaigns/test_mutants_apply.py)

# What the ends of the declared ranges have to pass: every public function, without `experiments`.
ENDS := $(addprefix tests/,basis contracts cost layer_by_layer methods precision refresh \
	transforms project/test_deprecation.py)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(call with,experiments)  ## train a small LLaMA with AdamW, GaLore and two Firas; a table, a picture
	$(BIN)/python -m experiments.demo

finetune-demo: $(call with,experiments)  ## fine-tune a real model with LoRA, GaLore and Fira; a table, a picture
	$(BIN)/python -m experiments.finetune_demo

test: $(call with,test)  ## every test and every documented example
	$(PYTEST) $(ARGS)

test-heart: $(call with,test)  ## the trajectories, the rules, whose state is whose, the rooms: some minutes
	$(ON_CPU) $(KEPT) $(BIN)/python -m pytest $(SPREAD) $(HEART) $(ARGS)

test-slow: $(call with,test)  ## what takes longest: every method through Optax's own tests, two processes ...
	$(PYTEST) -m slow $(ARGS)

test-core: $(call with,core)  ## the tests that need neither PyTorch nor the documentation tools
	$(PYTEST) --ignore tests/peers $(ARGS)

test-oldest: $(VENV)-oldest/.installed  ## the library's tests with the oldest JAX, Optax and NumPy declared
	$(ON_CPU) $(VENV)-oldest/bin/python -m pytest $(SPREAD) $(ENDS) $(ARGS)

test-newest: $(VENV)-newest/.installed  ## the same with the newest, on the newest Python
	$(ON_CPU) $(VENV)-newest/bin/python -m pytest $(SPREAD) $(ENDS) $(ARGS)

test-site: docs $(call with,site)  ## open the built site in Chromium, as wide as a desk and as a phone
	$(BIN)/python -m pytest tests/site $(ARGS)

lint: $(call with,lint)  ## style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(call with,lint)  ## put the formatting right
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(call with,types)  ## type check, and what a user's strict checker (mypy, Pyright) sees
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/project/typed_user.py
	$(BIN)/basedpyright --pythonpath $(BIN)/python --level error tests/project/typed_user.py

docs: $(call with,docs)  ## build the site into docs/_build/html; any warning is an error
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

notebooks: $(call with,notebooks)  ## execute the notebooks and keep their outputs
	$(ON_CPU) $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 --overwrite notebooks

notebooks-check: $(call with,notebooks)  ## execute the notebooks, changing nothing
	$(ON_CPU) $(BIN)/python -m pytest --numprocesses 2 --nbmake --nbmake-timeout=600 notebooks

readme: $(call with,experiments)  ## put the newest results into the README
	$(BIN)/python docs/readme.py

bench: $(call with,core)  ## time the update step beside optax.contrib.galore and AdamW
	$(BIN)/python -m benchmarks.update_step

lock: $(call with,release)  ## write constraints.txt: the newest versions that fit pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --upgrade --no-annotate \
		--custom-compile-command 'make lock' --output-file constraints.txt \
		$(addprefix --group ,test types lint docs site notebooks release)

dist: $(call with,release)  ## build the wheel and the source archive, and check them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean:  ## remove the environments and everything built
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest build dist docs/_build docs/jupyter_execute .*_cache

# A fresh set-up takes minutes: show what is being fetched, and leave out the rest of pip's talk.
# Dependency groups need pip 25.1.
define venv
@test -x $(1)/bin/python || { $(2) -m venv $(1) \
	&& $(1)/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'; }
endef
define install
@echo "installing fira_jax and what $(2) needs into $(1): a minute or two, once"
@set -o pipefail; \
	PYTHONUNBUFFERED=1 $(1)/bin/python -m pip install --no-compile --editable . --group $(2) $(3) \
	| awk '/^(Downloading|Installing|Successfully)/ { print substr($$0, 1, 100); fflush() }'
@touch $@
endef

$(VENV)/.installed-%: pyproject.toml constraints.txt
	$(call venv,$(VENV),$(PYTHON))
	$(call install,$(VENV),$*,--constraint constraints.txt)

# The floors stand in pyproject.toml and nowhere else.
$(VENV)-oldest/.installed: pyproject.toml
	$(call venv,$(VENV)-oldest,$(PYTHON))
	$(VENV)-oldest/bin/python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
		print(*(floor.replace('>=', '==') for floor in project['dependencies']), sep='\n')" > $(@D)/floors.txt
	$(call install,$(VENV)-oldest,ends,--constraint $(@D)/floors.txt)

$(VENV)-newest/.installed: pyproject.toml
	$(call venv,$(VENV)-newest,$(NEWEST_PYTHON))
	$(call install,$(VENV)-newest,ends,--upgrade --upgrade-strategy eager)
