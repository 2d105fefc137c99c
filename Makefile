# `make demo` and `make test` need Python 3.11 or newer, make, and a package registry; nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MARROWSCOPE := $(BIN)/marrowscope
DEMO := demo
.DELETE_ON_ERROR:

.PHONY: help setup demo test check docs format clean

help:
	@echo "make setup   make $(VENV) with everything in it"
	@echo "make demo    the whole job on synthetic cells, in some minutes: $(DEMO)/run/report.html"
	@echo "make test    install what the tests need and run them all"
	@echo "make check   what make test runs, without the installation"
	@echo "make docs    the documentation as a site: docs/_build/html/index.html"
	@echo "make format  rewrite the sources as the style checks want them"
	@echo "make clean   remove the demo and all caches (not $(VENV))"

# ---------------------------------------------------------------------------------------------------- installation

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("marrowscope needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,audit,explain,map]'
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,dev]'
	touch $@

setup: $(VENV)/.tested

# -------------------------------------------------------------------------------------------------------- the demo
# Each stage is a file made from the files of the stages before it, so that a second run skips what is done.

$(DEMO)/.drawn: | $(VENV)/.installed
	$(MARROWSCOPE) phantom $(DEMO)/cells --per-class 200 --seed 0
	touch $@

$(DEMO)/index.csv: $(DEMO)/.drawn
	$(MARROWSCOPE) index $(DEMO)/cells -o $@

$(DEMO)/split.csv: $(DEMO)/index.csv
	$(MARROWSCOPE) split $< --classes marrow-14 -o $@

$(DEMO)/run/.trained: $(DEMO)/split.csv
	$(MARROWSCOPE) train recipes/demo.toml --data $(DEMO)/cells --split $(DEMO)/split.csv --out $(DEMO)/run --resume
	touch $@

$(DEMO)/run/evaluation.json: $(DEMO)/run/.trained
	$(MARROWSCOPE) evaluate $(DEMO)/run

$(DEMO)/run/analysis.json: $(DEMO)/run/evaluation.json
	$(MARROWSCOPE) analyse $(DEMO)/run

$(DEMO)/run/report.html: $(DEMO)/run/analysis.json
	$(MARROWSCOPE) report $(DEMO)/run

$(DEMO)/model.onnx: $(DEMO)/run/evaluation.json
	$(MARROWSCOPE) export $(DEMO)/run -o $@

$(DEMO)/predictions.csv: $(DEMO)/model.onnx
	$(MARROWSCOPE) predict $< $(DEMO)/cells -o $@

demo: $(DEMO)/run/report.html $(DEMO)/predictions.csv
	@$(BIN)/python scripts/demo_summary.py $(DEMO)

# -------------------------------------------------------------------------------------------------------- the tests

test: $(VENV)/.tested check

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

docs: $(VENV)/.tested
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(DEMO) docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
