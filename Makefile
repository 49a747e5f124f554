# make demo    the main job, on the embedded default; CACHE=redis://... for another cache, ARGS=--json for a program
# make test    the whole suite; ARGS="tests/unit -k name" for a part of it
# make help    everything else

SHELL := bash
BIN := .venv/bin
export CACHE

# The tests start hundreds of processes, and each would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

# Two workers, a file to each at a time: every worker starts its own servers, and modules share fixtures.
WORKERS ?= 2
PYTEST := -n $(WORKERS) --dist loadfile

.PHONY: help install servers demo test conformance lint format reference types contracts bench budgets fuzz soak oldest newest wheel-check plugin-check clean

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## .venv with everything; does nothing when nothing changed (PYTHON= chooses the interpreter)
	@scripts/python-environment .venv $(PYTHON)

servers: ## Redis and Memcached, from Debian's packages if they are missing
	@scripts/servers

demo: install ## the main job: a batch of tasks, twice (CACHE=, ARGS=)
	@$(BIN)/claude-force demo $${CACHE:+--cache "$$CACHE"} $(ARGS)

test: install servers ## the whole suite on .venv's Python (ARGS=)
	@$(BIN)/python -m pytest $(PYTEST) $(ARGS)

oldest: install servers ## the suite on the oldest supported Python of this machine (ARGS=)
newest: install servers ## the suite on the newest (ARGS=)
oldest newest:
	@scripts/suite-on $@ $(PYTEST) $(ARGS)

# Every worker has to know one seed, so that the line above the dots is all that it takes to see a failure again.
conformance: EXAMPLES ?= 300
conformance: SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
conformance: install servers ## the conformance kit on each backend, at random and for long (EXAMPLES=, SEED=, ARGS=)
	@seed=$(SEED); echo "make conformance SEED=$$seed EXAMPLES=$(EXAMPLES)"; \
	CLAUDE_FORCE_CONFORMANCE=random CLAUDE_FORCE_CONFORMANCE_SEED=$$seed CLAUDE_FORCE_CONFORMANCE_EXAMPLES=$(EXAMPLES) \
	$(BIN)/python -m pytest $(PYTEST) --timeout 1800 tests/backends \
	  -k "TestMemory or TestDisk or TestRedis or TestMemcached" $(ARGS)

lint: install ## style: ruff, linter and formatter; and whether the reference pages are up to date
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/python scripts/generate_reference.py --check

format: install ## bring the code into the formatter's form
	@$(BIN)/ruff check --fix-only
	@$(BIN)/ruff format

reference: install ## write the pages of docs/reference/ that are made from docstrings
	@$(BIN)/python scripts/generate_reference.py

types: install ## mypy, strict
	@$(BIN)/mypy
	@$(BIN)/mypy scripts tests/packaging
	@$(BIN)/mypy reliability

contracts: install ## which package may import which
	@$(BIN)/lint-imports

bench: servers ## measurements, beside other libraries, in an environment of their own (ARGS=)
	@scripts/python-environment .venv-bench $(PYTHON) benchmarks/requirements.txt
	@.venv-bench/bin/python -m benchmarks $(ARGS)

budgets: install servers ## count the hot paths' instructions on every Python here, and write them as budgets
	@scripts/budgets

fuzz: install ## what reads entries, replies, URLs and files is given bytes that somebody made up (ARGS=)
	@$(BIN)/python -m reliability.fuzz $(ARGS)

# BACKENDS="disk redis" for some of them. An hour in all; three of them at once, by hand, take twenty minutes.
soak: BACKENDS ?= disk redis memcached
soak: MINUTES ?= 20
soak: install servers ## eight processes use each store for long while everything fails (BACKENDS=, MINUTES= for each, ARGS=)
	@$(BIN)/python -m reliability.soak $(foreach backend,$(BACKENDS),--backend $(backend)) --minutes $(MINUTES) $(ARGS)

wheel-check: install servers ## build, then install the wheel with each extra alone and try it
	@$(BIN)/python scripts/wheel_check.py

plugin-check: install ## a third party's plugin and a generated project, built, installed and tried
	@$(BIN)/python -m scripts.plugin_check

clean: ## remove what the above made
	@rm -rf .venv .venv-* dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
