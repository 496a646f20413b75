# Two commands for a newcomer: `make demo` and `make test`. Both set up .venv first; python3 >= 3.11, git and make suffice.
#   make demo  DEMO_ARGS="--students 500 --rate 50"
#   make test  PYTEST_ARGS="--pg 16 -k claim"
#   make bench BENCH_ARGS="saturation --beside graphile-worker"
#   make soak  SOAK_S=3600 SOAK_SEED=7 SOAK_ARGS="--json"

SHELL := /bin/sh
BENCH_ARGS ?= all --plots docs/benchmarks
VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.complete
# Unless told which, the first of these that is recent enough and can make a virtual environment.
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11

# The stamp names the folder it was made for: a moved or copied checkout, or a Python that is gone, is set up anew.
SOUND := $(shell grep -qxF '$(CURDIR)' $(STAMP) 2>/dev/null && $(BIN)/python -c '' 2>/dev/null && echo yes)

.DEFAULT_GOAL := help
.PHONY: help setup demo test crashpoints interleavings bench bench-smoke soak wheel install docs lint format clean again

help:  ## show this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

setup: $(STAMP)  ## make .venv, or mend it
	@:

demo: $(STAMP)  ## embedded Postgres, a sample school, the daemon, live writes, what happened
	@exec $(BIN)/recalcd demo $(DEMO_ARGS)

test: $(STAMP)  ## run the tests in parallel, with coverage
	@exec $(BIN)/python -m pytest -n auto --cov --cov-report=term $(PYTEST_ARGS)

crashpoints: $(STAMP)  ## end daemon, backend and Postgres at every step there is
	@exec $(BIN)/python tests/crashpoints.py $(CRASH_ARGS)

interleavings: $(STAMP)  ## try INTERLEAVINGS (1000) new histories of writers, workers and operators
	@INTERLEAVINGS=$${INTERLEAVINGS:-1000} exec $(BIN)/python -m pytest -q -s tests/test_interleavings.py $(PYTEST_ARGS)

bench: $(STAMP)  ## measure all there is, beside what one would pick instead (hours; BENCH_ARGS=floor: one part)
	@test -e .rivals/complete || benchmarks/rivals/install || echo "Going on without the queues among the rivals." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@exec $(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-smoke: $(STAMP)  ## hold the hot statements to plans and counts; a part of make test
	@exec $(BIN)/python -m pytest -q tests/test_plans.py $(PYTEST_ARGS)

soak: $(STAMP)  ## 10 minutes (SOAK_S) of faults beside 3 daemons and 8 writers, never out of sight of a verifier
	@exec env PYTHONPATH=tests:. $(BIN)/python -m soak $(SOAK_ARGS)

wheel: $(STAMP)  ## build dist/recalcd-VERSION-py3-none-any.whl
	@rm -rf dist && $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

install:  ## as root: install or upgrade the service from the wheel in dist (docs/deploy.md)
	@exec systemd/install dist/recalcd-*.whl

docs: $(STAMP)  ## write docs/cli.md from the commands
	@mkdir -p docs && $(BIN)/python -m daemon.manual > docs/cli.md

lint: $(STAMP)  ## ruff and mypy, changing nothing
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(STAMP)  ## let ruff mend what it can
	@$(BIN)/ruff check --fix-only --quiet
	@$(BIN)/ruff format

clean:  ## remove .venv, caches and telemetry
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* build dist logs/telem_*.log
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp goes first and comes back last, so an interrupted set-up is no set-up: the next run starts over.
$(STAMP): pyproject.toml $(if $(SOUND),,again)
	@for python in $(PYTHON); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    recent=$$python; \
	    "$$python" -c 'import ensurepip, venv' 2>/dev/null && usable=$$python && break; \
	done; \
	if [ -z "$$recent" ]; then \
	    echo "recalcd needs Python 3.11 or later; tried: $(PYTHON). Name another with: make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	elif [ -z "$$usable" ]; then \
	    echo "$$recent cannot make a virtual environment. On Debian or Ubuntu: apt install python3-venv" >&2; \
	    exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$("$$usable" --version) (once; a minute or two)"; \
	rm -f $(STAMP); \
	if [ -z "$(SOUND)" ]; then \
	    said=$$("$$usable" -m venv --clear $(VENV) 2>&1) || { echo "$$said" >&2; exit 1; }; \
	fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' || exit 1; \
	echo '$(CURDIR)' > $(STAMP)

again:
