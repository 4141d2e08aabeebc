# Each target sets itself up: a virtual environment with the pinned requirements, made once.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

JOBS := submit-pilot submit-compare submit-array submit-sweep submit-check-gpu

.DEFAULT_GOAL := help
.PHONY: help compare test test-slurm lint benchmark check-gpu setup clean-env $(JOBS)

help:  ## this list
	@awk -F ':.*## ' '/^[a-z$$(){}A-Z-]+:.*## / {gsub(/\$$\(JOBS\)/, "$(JOBS)", $$1); printf "  %-16s %s\n", $$1, $$2}' Makefile

compare: .venv/.runtime  ## the main job: five strategies, three seeds, minutes on two cores
	$(BIN)/python experiments/matrix_inversion_mining_comparison.py --preset demo $(ARGS)

test: .venv/.development  ## all tests but those of a real Slurm, by two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slurm" $(ARGS)

test-slurm: .venv/.development  ## the jobs in slurm/ on a real Slurm; CI=true installs one, as root
	$(BIN)/python -m pytest -m slurm -rs tests/test_slurm.py $(ARGS)

lint: .venv/.development  ## the linter and the formatter's check
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

benchmark: .venv/.runtime  ## speed against the released way of working, on an idle machine
	$(BIN)/python experiments/benchmark.py $(ARGS)

check-gpu: .venv/.runtime  ## a GPU's numbers, speed and best settings, in minutes: results/check-gpu.md
	$(BIN)/python experiments/check_gpu.py $(ARGS)

setup: .venv/.runtime  ## the environment alone, as the jobs on a cluster need it

$(JOBS):  ## a job on a Slurm cluster: docs/cluster.md
	slurm/submit $(@:submit-%=%) $(ARGS)

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv

.venv/.runtime: requirements.txt pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	touch $@

.venv/.development: requirements.txt requirements-dev.txt pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -e .
	touch $@ .venv/.runtime

clean-env:  ## delete the environment
	rm -rf .venv
