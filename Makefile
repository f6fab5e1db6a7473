# `make demo` and `make test` are all a newcomer types; each makes its own virtual environment when there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# pip options put before the torch pin, for instance an index of CPU-only wheels.
TORCH_ARGS ?=
BENCH ?= engine

.PHONY: venv demo test test-clients check format bench torture
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

# Other people's clients, unmodified, against a server of ours. Their pins contradict each other, so there are two more
# environments; huggingface_hub 2 is in our own.
test-clients: venv .venv-clients/openai/.installed .venv-clients/tgi/.installed
	.venv-clients/openai/bin/python -m pytest -c tests/clients_real/pytest.ini --rootdir . \
		tests/clients_real/test_openai.py tests/clients_real/test_huggingface_hub.py tests/clients_real/test_lm_eval.py \
		tests/clients_real/test_langchain_openai.py tests/clients_real/test_langchain_huggingface.py
	.venv-clients/tgi/bin/python -m pytest -c tests/clients_real/pytest.ini --rootdir . \
		tests/clients_real/test_text_generation.py tests/clients_real/test_lorax_client.py
	$(BIN)/python -m pytest -c tests/clients_real/pytest.ini --rootdir . tests/clients_real/test_huggingface_hub.py

.venv-clients/%/.installed: tests/clients_real/requirements-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --requirement $<
	touch $@

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
