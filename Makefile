# `make demo` and `make test` do all the set-up they need: Python 3.11+ with venv, and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test check fuzz bench model lock clean

demo: $(VENV)/.serve
	$(BIN)/cloister demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# SECONDS_EACH is the time for each decoder.
SECONDS_EACH ?= 20
fuzz: $(VENV)/.dev
	$(BIN)/python -m fuzz --seconds $(SECONDS_EACH)

bench: $(VENV)/.dev
	$(BIN)/python -m cloister.bench

$(VENV)/.serve: requirements/serve.txt requirements/build.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --require-hashes -r requirements/serve.txt -r requirements/build.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.dev: $(VENV)/.serve requirements/dev.txt
	$(PIP) install --require-hashes -r requirements/dev.txt
	touch $@

LOCK = uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
lock:
	$(LOCK) requirements/client.in -o requirements/client.txt
	$(LOCK) -c requirements/client.txt requirements/serve.in -o requirements/serve.txt
	$(LOCK) requirements/build.in -o requirements/build.txt
	$(LOCK) -c requirements/serve.txt -c requirements/build.txt requirements/dev.in -o requirements/dev.txt

clean:
	rm -rf $(VENV)
