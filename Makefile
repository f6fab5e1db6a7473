# `make demo` and `make test` are all a newcomer types; each makes its own virtual environment when there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# pip options put before the torch pin, for instance an index of CPU-only wheels.
TORCH_ARGS ?=
BENCH ?= engine

.PHONY: venv demo test check format bench torture
.DEFAULT_GOAL := test

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt hatch_build.py batching/kernels.cpp
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH_ARGS) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: venv
	$(BIN)/polyprefix demo $(DEMO_ARGS)

test: venv
	$(BIN)/python -m pytest

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: venv
	$(BIN)/python -m benchmarks.$(BENCH)

# The long form of the reliability tests: kills, failing system calls, flipped bits. Needs strace.
torture: venv
	$(BIN)/python -m pytest -m torture tests
