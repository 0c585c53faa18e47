# Two commands matter: `make reproduce` and `make test`. `make help` lists the rest.
PRESET ?= tiny tiny_code
SEED ?=
OVERRIDES ?=
PYTHON ?= python3
PIP_ARGS ?=
PORT ?= 8888
LAB_ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= dev

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test bench lab notebooks course readme clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12
	@echo
	@echo "Variables: PRESET=$$(ls presets | sed 's/.yaml//' | paste -sd'|')  SEED=n  OVERRIDES='key=value ...'"
	@echo "           PIP_ARGS='...' (extra pip options)  VENV=folder"

setup: $(VENV)/.installed ## make .venv and install everything the CPU presets need

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"Python 3.11 or 3.12 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_ARGS) -e '.[$(EXTRAS)]'
	touch $@

reproduce: setup ## run every notebook of PRESET (default tiny, then tiny_code), write its tables and figures to paper_figures/
	$(BIN)/python -m tracelift_lib.run_notebooks --preset $(PRESET) $(if $(SEED),--seed $(SEED)) $(foreach o,$(OVERRIDES),--override $(o))

test: setup ## unit tests, and every notebook at preset check
	$(BIN)/python -m pytest

bench: setup ## speed against the plain ways of doing the same, into build/bench.json (HumanEval, MBPP: $$TRACELIFT_DATA)
	$(BIN)/python -m bench.all $(if $(BENCH),--only $(BENCH))

lab: setup ## open JupyterLab; the notebooks/*.py open as notebooks
	$(BIN)/jupytext-config --settings-file $(VENV)/etc/jupyter/labconfig/default_setting_overrides.json set-default-viewer python
	$(BIN)/jupyter lab --port $(PORT) $(LAB_ARGS) notebooks

notebooks: setup ## regenerate notebooks/*.ipynb (without outputs) from their sources *.py
	$(BIN)/python -m tracelift_lib.run_notebooks --convert

course: setup ## copies of the notebooks without the solutions of their exercises, in build/course/
	$(BIN)/python -m tracelift_lib.run_notebooks --course

readme: setup ## put the summaries of paper_figures/ into the README
	$(BIN)/python -m tracelift_lib.report

clean: ## remove what runs have made (runs/, build/); results in paper_figures/ stay
	rm -rf runs build
