# `make run` and `make test` do their whole set-up on a fresh machine: virtual environment, install, go;
# `make install` stops before the run.
#
#   VENV=folder       where the virtual environment lives (default .venv; no spaces, the project's own path may have some)
#   PYTHON=program    the Python to create it with (default: the newest that fits)
#   JOBS=n            processes that run the tests (default 2)

VENV ?= .venv
PYTHON ?=
JOBS ?= 2

ifneq ($(words $(VENV)),1)
$(error VENV is "$(VENV)", but make cannot handle a space there: name a folder without one)
endif

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
FITS := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# A stamp in the environment says what is installed there; it is old when the project's dependencies have changed.
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
BENCH := $(VENV)/.installed-bench

.PHONY: help install run test unit notebooks lab lint format bench clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@echo 'make install create $(VENV) with what the notebooks need, and nothing else'
	@echo 'make run     execute every notebook at its smallest size (embedded data, no network once installed)'
	@echo 'make test    unit tests, then the published notebooks again: their verdicts must come out the same'
	@echo 'make lab     open the notebooks in JupyterLab'
	@echo 'make lint    ruff and mypy, notebooks included;  make format  lets ruff mend what it can'
	@echo 'make bench   the speed table'
	@echo 'make clean   remove caches and builds; $(VENV) and executed/ stay'

install: $(RUN)

run: $(RUN)
	$(PY) run_all.py --profile smoke

test: unit notebooks

# One thread a process: processes that each take all cores slow one another down more than tenfold.
unit: $(DEV)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile

# The parameters of the smoke profile, the outputs of the published run: nbval executes the cells and compares the
# outputs that are marked for it. No notebook collected is an error (pytest's exit status 5).
notebooks: $(DEV)
	rm -rf build/nbval
	$(PY) -m collapse_lib.replication.prepare --profile smoke --out build/nbval
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile \
	    --nbval-lax --nbval-current-env --nbval-cell-timeout=600 build/nbval

lab: $(RUN)
	$(PY) -m jupyterlab notebooks

lint: $(DEV)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

format: $(DEV)
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

bench: $(BENCH)
	set -e; for script in $(filter-out benchmarks/harness.py benchmarks/peer.py,$(wildcard benchmarks/*.py)); do $(PY) $$script; done

clean:
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find benchmarks collapse_lib notebooks tests '(' -name __pycache__ -o -name .ipynb_checkpoints ')' -prune -exec rm -rf {} +

# An environment that is there and fits is kept; one that is broken or of another Python is made anew.
$(VENV)/.created:
	@if "$(PY)" -c '$(FITS)' 2>/dev/null && "$(PY)" -m pip --version >/dev/null 2>&1; then touch "$@"; exit; fi; \
	for python in $(if $(PYTHON),'$(PYTHON)',python3.13 python3.12 python3.11 python3); do \
	    if "$$python" -c '$(FITS)' 2>/dev/null; then \
	        echo "creating $(VENV) with $$("$$python" --version), $$(command -v "$$python")"; \
	        "$$python" -m venv --clear "$(VENV)" && touch "$@"; exit; \
	    fi; \
	done; \
	echo 'No Python 3.11, 3.12 or 3.13 that can create virtual environments$(if $(PYTHON),: PYTHON=$(PYTHON) does not fit,).' >&2; \
	echo 'Install one (https://www.python.org/downloads; Debian and Ubuntu: apt install python3 python3-venv;' >&2; \
	echo 'conda: conda env create -f environment.yml, then conda activate collapse) or name it: make run PYTHON=/path/to/python3.12' >&2; \
	exit 1

$(RUN): $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(DEV): $(RUN)
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(BENCH): $(RUN)
	$(PIP) install -c constraints.txt -e '.[bench]'
	@touch $@
