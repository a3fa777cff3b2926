# `make demo` and `make test` do all the set-up they need: Python 3.11+ with venv, and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo lab lab-reference test test-reference test-large check fuzz verdicts bench bench-pipe bench-verify model lock clean

demo: $(VENV)/.serve
	$(BIN)/cloister demo

# The emulation of Nitro Enclaves: fetches QEMU, compiles a kernel; minutes once, then kept in ~/.cache/cloister.
lab: $(VENV)/.serve
	$(BIN)/cloister lab prepare

# Also QEMU's own Nitro machine, which Debian's QEMU lacks: an independent reading of our images, for tests. Compiled once.
lab-reference: $(VENV)/.serve
	$(BIN)/cloister lab prepare --reference

test: $(VENV)/.dev
	$(BIN)/python -m pytest

# Our images, registers and module held against QEMU's own; needs `make lab-reference`.
test-reference: $(VENV)/.dev
	$(BIN)/python -m pytest -m reference tests/platforms/qemu_nitro/test_reference.py

# Models of true size, in the emulated enclave and outside: some four minutes.
test-large: $(VENV)/.dev
	$(BIN)/python -m pytest -m large -rP tests/e2e/test_nitro_large.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# SECONDS_EACH is the time for each decoder.
SECONDS_EACH ?= 20
fuzz: $(VENV)/.dev
	$(BIN)/python -m fuzz --seconds $(SECONDS_EACH)

# What became of all collected evidence, as docs/verdicts.md; needs the vectors (CLOISTER_VECTORS).
verdicts: $(VENV)/.dev
	$(BIN)/python -m tests.e2e.verdict_table

BENCH_MODEL ?= bench-out/gpt2-124m.gguf
bench: $(VENV)/.dev $(BENCH_MODEL)
	$(BIN)/python -m cloister.bench --model $(BENCH_MODEL)

# The parent's pipe against socat (Debian's package of that name), where it is installed.
bench-pipe: $(VENV)/.dev
	$(BIN)/python -m cloister.bench.pipe

# Verification alone, on real evidence: VECTORS is a folder of it.
VECTORS ?= ../shared/vectors
bench-verify: $(VENV)/.dev
	$(BIN)/python -m cloister.bench.evidence --vectors $(VECTORS)

bench-out/gpt2-124m.gguf: $(VENV)/.dev
	mkdir -p bench-out
	$(BIN)/python tools/random_gguf.py gpt2-124m $@

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
	uv pip compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_36 --generate-hashes --no-emit-index-url \
		--no-header -c requirements/serve.txt requirements/enclave.in -o src/cloister/image/enclave.requirements.txt

clean:
	rm -rf $(VENV)

# Trains the bundled demo model again, from nothing: about three quarters of an hour on one core.
MODEL ?= /tmp/cloister-notes-q8_0.gguf
model:
	test -x $(VENV)-train/bin/python || $(PYTHON) -m venv $(VENV)-train
	$(VENV)-train/bin/python -m pip --disable-pip-version-check -q install -r requirements/train.txt
	$(VENV)-train/bin/python tools/demo_model/train.py $(MODEL)
	$(VENV)-train/bin/python tools/demo_model/evaluate.py $(MODEL)
