# `make help` says what there is. Nothing but Python >= 3.11 is needed beforehand.
PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
COLAB := .venv-colab
COVERED := 95  # per cent of the lines, in the tests' own process: what it is, rounded down
INSTALL_FROM := pyproject.toml requirements.txt tools/install.py

export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
export JUPYTER_PLATFORM_DIRS := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# tools/install.py leaves compiling to the first import, and that must keep what it compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help links run-all demo bench pictures test test-faults audit test-long test-colab test-browser test-real lint format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 14

demo: $(VENV)/.for-demo  ## install and run all of Stage 3 on the embedded models (CPU, minutes) into artifacts/demo
	HF_HUB_OFFLINE=1 $(VENV)/bin/cai run --preset smoke --workspace artifacts/demo

bench: $(VENV)/.for-test  ## the benchmarks that need no GPU; on a machine with one, all of them (benchmarks/RESULTS.md)
	$(VENV)/bin/python benchmarks/pipeline.py
	$(VENV)/bin/python benchmarks/growth.py
	if command -v nvidia-smi >/dev/null; then \
		for name in generation flow scoring dpo flops plan; do $(VENV)/bin/python benchmarks/$$name.py; done; \
		[ "$$(nvidia-smi -L | wc -l)" -lt 2 ] || $(VENV)/bin/python benchmarks/two_gpus.py; \
	fi

pictures: demo  ## draw the pictures of the README anew, from the demo's pairs and from the same pairs spoiled
	$(VENV)/bin/python tools/spoil_pairs.py artifacts/demo/pairs/pairs.jsonl artifacts/bad.jsonl
	$(VENV)/bin/cai analyze artifacts/bad.jsonl --workspace artifacts/demo
	for name in funnel delta_by_outcome; do \
		cp artifacts/demo/reports/$$name.png docs/good_$$name.png; \
		cp artifacts/demo/reports/bad/$$name.png docs/bad_$$name.png; \
	done

links:  ## write the repository's address into badges, install cells and documents: make links REPO=owner/name
	$(PYTHON) tools/links.py $(REPO)

run-all: $(VENV)/.for-test  ## write notebooks/run_all.ipynb from 00 to 06
	$(VENV)/bin/python tools/run_all.py

test: $(VENV)/.for-test lint  ## lint, types, import contracts, unit tests with coverage, notebooks 00 to 06 in smoke mode
	$(call unit-tests,$(VENV),--cov=cai_helpers --cov-report=term:skip-covered --cov-fail-under=$(COVERED))
	$(call in-fresh-workspace,$(VENV),notebooks/0*.ipynb)

test-long: $(VENV)/.for-test  ## all of Stage 3 against its recorded bytes; USE.md pasted into a new environment (minutes)
	$(call pytest,$(VENV),-m long)

test-faults: $(VENV)/.for-test  ## kills, full disks, the Hub's refusals, wrong tensors, fuzz; counts what was lost (shares: CAI_KILLS, CAI_FUZZ)
	$(call pytest,$(VENV),tests/faults -m faults -n 2 --dist worksteal)

audit: $(VENV)/.for-test  ## known weaknesses of the installed libraries, by pip-audit (needs the network)
	$(VENV)/bin/python -m pip_audit --version >/dev/null 2>&1 || $(VENV)/bin/python -m pip install --quiet pip-audit
	$(VENV)/bin/python -m pip_audit --skip-editable

test-colab: $(COLAB)/.for-test  ## unit tests and run_all with the library versions of Colab's image
	$(call unit-tests,$(COLAB))
	$(call in-fresh-workspace,$(COLAB),notebooks/run_all.ipynb)

test-browser: $(VENV)/.for-browser  ## the notebook's widgets in headless Chromium; the system's Chromium is installed if apt can
	CAI_BROWSER_TESTS=required HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest tests/browser -m browser

test-real: $(VENV)/.for-real  ## every stage on real weights, SmolLM2-135M, on the CPU (GEMMA=1: on Gemma 3 270M as well, under its terms)
	$(VENV)/bin/python tools/real_models.py $(if $(GEMMA),--gemma)
	CAI_REAL_TESTS=required CAI_REAL_GEMMA=$(GEMMA) HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest tests/real -m real --durations=15

lint: $(VENV)/.for-test  ## ruff, mypy and the import contracts alone
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

format: $(VENV)/.for-test  ## put code and notebooks into the form that lint expects
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/nbstripout notebooks/*.ipynb

clean:  ## remove the environments and everything made by a run or a test
	rm -rf $(VENV) $(COLAB) artifacts build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# A stamp in the environment says that what it is made from is installed; a change to any of it installs again.
$(VENV)/.for-demo: $(INSTALL_FROM)
	@$(PYTHON) tools/install.py $(VENV)
	@touch $@

$(VENV)/.for-test: $(INSTALL_FROM)
	@$(PYTHON) tools/install.py $(VENV) --extras test dev
	@touch $(VENV)/.for-demo $@

$(VENV)/.for-browser: $(VENV)/.for-test
	@$(PYTHON) tools/install.py $(VENV) --extras browser
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
	  echo "install: Chromium, by apt-get"; \
	  { apt-get update && apt-get install -y --no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1 || { \
	    echo "Chromium could not be installed. Install it by hand (Debian: sudo apt-get install chromium), then run this again."; \
	    exit 1; }; }
	@touch $@

$(VENV)/.for-real: $(VENV)/.for-test
	@$(PYTHON) tools/install.py $(VENV) --extras real
	@touch $@

$(COLAB)/.for-test: $(INSTALL_FROM) requirements-colab.txt
	@$(PYTHON) tools/install.py $(COLAB) --colab
	@touch $@

# Two processes of one thread each: torch's threads of one process get in each other's way on two cores.
define pytest
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(1)/bin/python -m pytest $(2)
endef

define unit-tests
	$(call pytest,$(1),-n 2 --dist loadfile -m "not browser and not long and not real and not faults" $(2))
endef

# 00 to 06 share a workspace, in which each builds upon the one before. run_all has the same cells (tests/test_notebooks.py).
define in-fresh-workspace
	workspace=$$(mktemp -d); trap 'rm -rf "$$workspace"' EXIT; \
	CAI_PRESET=smoke CAI_WORKSPACE=$$workspace HF_HUB_OFFLINE=1 \
	$(1)/bin/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 $(2)
endef
