# Every target first makes .venv from pyproject.toml if it is missing or older. Needs Python 3.11+, make and bash.
#
#   make book    build the book into _build/html, warnings are errors
#   make test    run the tests (those of the pages run on the built book if it is there, else on a sample that they build)
#   make figures  every figure as PDF and SVG at the width of a paper; `make figures FIGURES=03_mir` does some
#   make lab     list the experiments; `make lab EXPERIMENT=base` runs one, and resumes it
#   make bench   speed and memory beside the usual ways of computing the same
#   make notebook  open the chapters in JupyterLab
#   make lint    ruff, format and rules
#   make clean   remove what the targets made, except .venv
#
# PYTHON=python3.12 picks the interpreter; PIP_ARGS='...' is handed to pip (see CONTRIBUTING.md: a torch without CUDA).

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

NEWEST = for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; exit; }; done; true
PYTHON ?= $(shell $(NEWEST))
PIP_ARGS ?=
EXPERIMENT ?=
FIGURES ?=

BIN := $(CURDIR)/.venv/bin
INSTALLED := .venv/.installed
# Notebooks call `mir`, and the kernel must be the one of .venv.
export PATH := $(BIN):$(PATH)

# The miniature's matrices are small: threads cost more than they give, and on a busy machine they wait for each other.
book test figures: export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)

.PHONY: help book test figures lab bench notebook lint clean

help:
	@sed -n '3,12s/^# \{0,3\}//p' Makefile

$(INSTALLED): pyproject.toml
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "mirlib needs Python 3.11 or newer$(if $(PYTHON),, and none was found); '$(or $(PYTHON),python3)' is $$($(or $(PYTHON),python3) --version 2>&1 || true)." >&2; \
		echo "Install one and name it: make $(or $(MAKECMDGOALS),book) PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@[ -x $(BIN)/python ] || "$(PYTHON)" -m venv .venv || { rm -rf .venv; \
		echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu install the package python3-venv." >&2; exit 1; }
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[book,test,dev]'
	@# The first import writes the font cache and says so: here, and not on a page of the book.
	@$(BIN)/python -c 'import matplotlib.font_manager' 2>/dev/null
	@touch $@

# Sphinx reads a page again only when it changed: after a failure its memory goes, so that the next build warns again.
book: $(INSTALLED)
	@$(BIN)/python tools/book_cache.py
	$(BIN)/jupyter-book build . -W -n --keep-going || { rm -rf _build/.doctrees; exit 1; }

# A process a core; a file stays in one process, so that what its tests share is made once. The longest files come first
# (tests/conftest.py), and not, as pytest-xdist would have it, those with the most tests.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

figures: $(INSTALLED)
	$(BIN)/python tools/figures.py $(FIGURES)

lab: $(INSTALLED)
	$(BIN)/mir lab $(if $(EXPERIMENT),run $(EXPERIMENT),list)

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

notebook: $(INSTALLED)
	$(BIN)/jupyter lab notebooks

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf _build build mirlib.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
