# `make demo` and `make test` set themselves up in .venv on a fresh machine; `make help` lists everything.

PYTHON ?=
TORCH_INDEX ?=
PIP_OPTIONS ?=
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)
IN := .venv/bin/python

.PHONY: help demo demo-full test lint soak bench setup setup-dev clean
.DEFAULT_GOAL := help

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12     use this interpreter (3.11 or 3.12; default: the first one found)"
	@echo "  TORCH_INDEX=URL       take torch from this package index (for example one with CPU-only builds)"

demo: setup ## from raw HTML to an aligned chat model on this machine, at most 15 minutes
	@.venv/bin/chatloom demo

demo-full: setup ## the demo with three seeds and a start from random weights, about an hour
	@.venv/bin/chatloom demo --full

test: setup-dev ## all tests but the long ones
	OMP_NUM_THREADS=1 $(IN) -m pytest -n 2 -m "not soak"

lint: setup-dev ## style, format, types, floors
	$(IN) -m ruff check .
	$(IN) -m ruff format --check .
	$(IN) -m mypy
	.venv/bin/lint-imports

soak: setup-dev ## the long fault and kill matrices; writes docs/soak.md
	OMP_NUM_THREADS=1 $(IN) tests/soak_report.py

# Exit status 3 of a benchmark: something that it needs is not here, and it has said what.
bench: setup-dev ## side by side with what one would use instead; writes benchmarks/results/
	@for file in $(filter-out benchmarks/measure.py,$(wildcard benchmarks/*.py)); do \
	  echo "$$file"; $(IN) "$$file" --write || [ $$? -eq 3 ] || exit 1; \
	done

setup: .venv/.installed ## only the set-up of `make demo`

setup-dev: .venv/.installed-dev ## only the set-up of `make test`

clean: ## remove .venv and caches (runs/ stays)
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# What was installed stays good until one of these files changes.
.venv/.installed: pyproject.toml constraints.txt
	@if [ -f .venv/.installed-dev ] && [ .venv/.installed-dev -nt pyproject.toml ] && \
	    [ .venv/.installed-dev -nt constraints.txt ]; then touch $@; else \
	  $(MAKE) --no-print-directory .install EXTRA= && touch $@; fi

.venv/.installed-dev: pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory .install EXTRA="[dev]"
	@touch $@

.PHONY: .install
.install:
	@sh .ci/find-python "$(PYTHON)"
	@if $(IN) -c "import torch" 2>/dev/null; then \
	  echo "Set-up: bringing .venv to the versions of constraints.txt."; \
	else \
	  echo "Set-up, once: downloads about 390 MB into .venv (CPU build of torch 190 MB, other packages 200 MB)$(if $(EXTRA), and the tests' tools 130 MB more)."; \
	  if [ -z "$(TORCH_INDEX)" ] && [ "$$(uname -s)" = Linux ]; then \
	    echo "On Linux the default index may give the CUDA build instead: torch 530 MB and several GB of libraries;"; \
	    echo "make TORCH_INDEX=URL takes torch from an index with CPU-only builds."; \
	  fi; \
	fi
	@$(IN) -m pip install $(PIP_OPTIONS) --quiet --upgrade pip
	@$(IN) -m pip install $(PIP_OPTIONS) --quiet $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") "$(TORCH)"
	@$(IN) -m pip install $(PIP_OPTIONS) --quiet -c constraints.txt -e ".$(EXTRA)"
