# Every target first makes .venv from pyproject.toml, with the versions of constraints.txt, if it is missing or older.
# Needs Python 3.11+, make and bash.
#
#   make book    build the book into _build/html, warnings are errors
#   make test    run the tests (those of the pages run on the built book if it is there, else on a sample that they build)
#   make figures  every figure as PDF and SVG at the width of a paper; `make figures FIGURES=03_mir` does some
#   make lab     list the experiments; `make lab EXPERIMENT=base` runs one, and resumes it
#   make bench   speed and memory beside the usual ways of computing the same
#   make notebook  open the chapters in JupyterLab
#   make wheel   build a release into dist, install its wheel alone elsewhere and measure the miniature with it
#   make readme-picture  draw the pictures of README.md; the first is filmed on the built book
#   make lint    ruff, format and rules
#   make test-newest   the tests with the newest versions that pyproject.toml allows, in a virtual environment of its own
#   make test-pythons  the tests of the library on each of Python 3.11, 3.12 and 3.13 that there is, likewise
#   make constraints   write constraints.txt: the newest versions there are, tried by nobody yet
#   make clean   remove what the targets made, except virtual environments
#
# PYTHON=python3.12 picks the interpreter; PIP_ARGS='...' is handed to pip (see CONTRIBUTING.md: a torch without CUDA).
# VENV=FOLDER is another virtual environment; CONSTRAINTS= (nothing) installs the newest versions there.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

NEWEST = for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; exit; }; done; true
PYTHON ?= $(shell $(NEWEST))
PIP_ARGS ?=
EXPERIMENT ?=
FIGURES ?=
TESTS ?=

VENV ?= .venv
CONSTRAINTS ?= constraints.txt
INSTALLED := $(VENV)/.installed
# Programs are run as modules of this one: a path in the first line of a script may hold no space and no quote.
RUN := $(VENV)/bin/python
# Notebooks call `mir`, and the kernel must be the one of this environment.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

# The miniature's matrices are small: threads cost more than they give, and on a busy machine they wait for each other.
book test figures wheel: export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)

.PHONY: help book test figures lab bench notebook wheel readme-picture lint test-newest test-pythons constraints clean

help:
	@sed -n '4,20s/^# \{0,3\}//p' Makefile

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "mirlib needs Python 3.11 or newer$(if $(PYTHON),, and none was found); '$(or $(PYTHON),python3)' is $$($(or $(PYTHON),python3) --version 2>&1 || true)." >&2; \
		echo "Install one and name it: make $(or $(MAKECMDGOALS),book) PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@[ -x $(RUN) ] || "$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
		echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu install the package python3-venv." >&2; exit 1; }
	@echo "Installing what the book and the tests need into $(VENV): a minute or two, longer where packages are downloaded."
	$(RUN) -m pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS),--upgrade) $(PIP_ARGS) --editable '.[book,test,dev]'
	@# The first import writes the font cache and says so: here, and not on a page of the book.
	@$(RUN) -c 'import matplotlib.font_manager' 2>/dev/null
	@touch $@

# Sphinx reads a page again only when it changed: after a failure its memory goes, so that the next build warns again.
book: $(INSTALLED)
	@$(RUN) tools/book_cache.py
	$(RUN) -c 'from jupyter_book.cli.main import main; main()' build . -W -n --keep-going || { rm -rf _build/.doctrees; exit 1; }

# A process a core; a file stays in one process, so that what its tests share is made once. The longest files come first
# (tests/conftest.py), and not, as pytest-xdist would have it, those with the most tests.
test: $(INSTALLED)
	$(RUN) -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(TESTS)

figures: $(INSTALLED)
	$(RUN) tools/figures.py $(FIGURES)

lab: $(INSTALLED)
	$(RUN) -m mirlib lab $(if $(EXPERIMENT),run $(EXPERIMENT),list)

bench: $(INSTALLED)
	$(RUN) -m benchmarks

notebook: $(INSTALLED)
	$(RUN) -m jupyterlab notebooks

wheel: $(INSTALLED)
	rm -rf dist
	$(RUN) -m build
	$(RUN) tools/check_wheel.py dist/*.whl $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) $(PIP_ARGS)

readme-picture: $(INSTALLED)
	$(RUN) tools/readme_picture.py

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

test-newest:
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=

test-pythons:
	@tried=; for p in python3.11 python3.12 python3.13; do \
		if "$$p" -c '' 2>/dev/null; then tried="$$tried $$p"; \
			$(MAKE) test PYTHON="$$p" VENV=".venv-$$p" TESTS="tests --ignore tests/book" || exit 1; \
		else echo "$$p: NOT TRIED, it is not here" >&2; fi; done; echo "tried:$$tried"

constraints:
	rm -rf .venv-newest
	$(MAKE) .venv-newest/.installed VENV=.venv-newest CONSTRAINTS=
	.venv-newest/bin/python tools/constraints.py

clean:
	rm -rf _build build dist mirlib.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +
