# Every target makes .venv from constraints.txt first, when it is missing or older than pyproject.toml or constraints.txt.
# PYTHON picks the interpreter (3.11 or newer), PIP_FLAGS is given to every `pip install` (an index of CPU builds, say).

PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
STAMP := .venv/.made-from-constraints
BENCHMARKS := $(sort $(wildcard benchmarks/*.py))

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench chaos chaos-short takeover soak docs clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

demo: $(STAMP) ## segment a real MRI, train a small ACC-UNet, send a series through a PACS
	$(BIN)/accunet demo

test: $(STAMP) ## all tests, a process a core; the summary names what was skipped and why
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: $(STAMP) ## ruff, mypy, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## every benchmark, each with its own table
	set -e; for benchmark in $(BENCHMARKS); do $(BIN)/python $$benchmark; done

chaos: $(STAMP) ## kill a PACS site's processes at random, 200 times over 300 series (Orthanc, PostgreSQL)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.pacs.chaos --kills 200 --series 300 --within 60

chaos-short: $(STAMP) ## the same, 20 times over 30 series
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.pacs.chaos --kills 20 --series 30

takeover: $(STAMP) ## workers killed, frozen and replaced by another release, with 100 series each
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.pacs.takeover --series 100

soak: $(STAMP) ## a PACS site in use for 20 minutes: do threads, memory and descriptors grow?
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.pacs.soak --minutes 20

docs: $(STAMP) ## the documentation, into site/
	$(BIN)/mkdocs build --strict

clean: ## remove what make made, .venv too; results of your own runs stay
	rm -rf .venv site dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find accunet_monai tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.11" >&2; exit 1; }
	@echo "Making .venv from constraints.txt; the first time takes a few minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt hatchling
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@
