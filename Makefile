# Two commands matter: `make reproduce` and `make test`. `make help` lists the rest.
PRESET ?= tiny tiny_code
SEED ?=
OVERRIDES ?=
PYTHON ?= python3
PIP_ARGS ?=
PORT ?= 8888
LAB_ARGS ?=
LAB_FOLDER ?= notebooks
VENV ?= .venv
LAB_CONFIG ?= $(VENV)/etc/jupyter
BIN := $(VENV)/bin
EXTRAS ?= dev
# Exact versions are locked for the extra dev; another choice of extras is resolved from the pins in pyproject.toml.
LOCK ?= $(if $(filter dev,$(EXTRAS)),requirements)
TAG := $(BIN)/python -c 'import sys; print("py%d%d" % sys.version_info[:2])'
STALE ?=
BASE ?=
# Threads that wait for each other sleep: on a core that other work shares, spinning ones stand still (make bench BENCH=busy_core).
OMP_WAIT_POLICY ?= passive
GOMP_SPINCOUNT ?= 0
export STALE BASE OMP_WAIT_POLICY GOMP_SPINCOUNT
# Without a GPU the CPU build of torch saves gigabytes of CUDA libraries. CPU_TORCH= takes the default build all the same.
CPU_TORCH ?= $(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu)
TORCH := $(shell sed -n 's/.*"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml)

.DEFAULT_GOAL := help
.PHONY: help setup lock reproduce test soak sandbox-table bench lab notebooks course plan readme clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12
	@echo
	@echo "Variables: PRESET=$$(cd presets; ls *.yaml | sed 's/.yaml//' | paste -sd'|')  SEED=n  OVERRIDES='key=value ...'"
	@echo "           PIP_ARGS='...' (extra pip options)  VENV=folder  LOCK= (without locked versions)"
	@echo "           BASE=trained (train the small base models here instead of taking those of base_models/)"
	@echo "           CPU_TORCH= (the default build of torch also on a machine without a GPU)"
	@echo "           STALE=rebuild (make results again that other code has made)"

setup: $(VENV)/.installed ## make .venv and install everything the CPU presets need

$(VENV)/.installed: pyproject.toml $(if $(LOCK),$(wildcard $(LOCK)/*.lock))
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"Python 3.11 or 3.12 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(if $(CPU_TORCH),$(BIN)/pip install --quiet --retries 0 --index-url $(CPU_TORCH) $(TORCH) || echo "$(CPU_TORCH) could not be used: the default build of torch is installed")
	$(BIN)/pip install --quiet $(PIP_ARGS) $(if $(LOCK),-c $(LOCK)/$$($(TAG)).lock) -e '.[$(EXTRAS)]'
	touch $@

lock: setup ## resolve pyproject.toml into requirements/*.lock; versions there that still fit stay (delete a file for the newest)
	$(BIN)/pip install --quiet $(PIP_ARGS) uv
	for minor in 11 12; do $(BIN)/uv pip compile --quiet --extra dev --python-version 3.$$minor \
		--index-strategy unsafe-best-match --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
		--strip-extras --output-file requirements/py3$$minor.lock pyproject.toml || exit 1; done

reproduce: setup ## run every notebook of PRESET (default tiny, then tiny_code), write its tables and figures to paper_figures/
	$(BIN)/tracelift run --preset $(PRESET) $(if $(SEED),--seed $(SEED)) $(foreach o,$(OVERRIDES),--override $(o))

test: setup ## format and lint, unit tests, and every notebook at presets check and check_code
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

soak: setup ## PROGRAMS (default 20000) programs in a row: nothing may grow; every hostile program in every tier
	$(BIN)/python -m bench.soak $(if $(PROGRAMS),--programs $(PROGRAMS))
	TRACELIFT_HOSTILE=all $(BIN)/python -m pytest tests/sandbox -q

sandbox-table: setup ## what each tier of the sandbox stops on this machine, into docs/sandbox.md
	PYTHONPATH=tests $(BIN)/python tests/hostile_table.py

bench: setup ## speed against the plain ways of doing the same, into build/bench.json (HumanEval, MBPP: $$TRACELIFT_DATA)
	$(BIN)/python -m bench.all $(if $(BENCH),--only $(BENCH))

lab: setup ## open JupyterLab; the notebooks/*.py open as notebooks
	$(BIN)/jupytext-config --settings-file $(LAB_CONFIG)/labconfig/default_setting_overrides.json set-default-viewer python
	JUPYTER_PREFER_ENV_PATH=1 $(BIN)/jupyter lab --port $(PORT) $(LAB_ARGS) $(LAB_FOLDER)

notebooks: setup ## regenerate notebooks/*.ipynb (without outputs) from their sources *.py
	$(BIN)/tracelift convert

course: setup ## students' copies, copies with solutions, and a website that opens offline, in build/course/
	$(BIN)/tracelift course

plan: setup ## what PRESET would take: calls, tokens, GPU hours, memory, disk; nothing is made
	$(BIN)/tracelift plan --preset $(firstword $(PRESET)) $(foreach o,$(OVERRIDES),--override $(o))

readme: setup ## put the summaries of paper_figures/ into the README
	$(BIN)/tracelift readme

clean: ## remove what runs have made (runs/, build/); results in paper_figures/ stay
	rm -rf runs build
