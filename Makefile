# Two commands for everybody: `make demo` and `make test`. `make check` is for working on the code.
# Each creates .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes that run tests at the same time. Most tests wait for other processes for a part of their time.
WORKERS ?= 3
# Pure and simulated tests: neither child processes nor sockets.
CHECKED := tests/doctor/test_config_file.py tests/doctor/test_doctor_core.py \
  tests/formats tests/gossip tests/jobs tests/kernel tests/livy tests/membership/test_core.py \
  tests/membership/test_service.py tests/scenarios tests/trust tests/test_errors.py tests/test_config.py \
  tests/catalog/test_core.py tests/catalog/test_manifest.py tests/catalog/test_vectors.py tests/catalog/test_virtual.py \
  tests/net/test_half_open.py tests/net/test_same_origin.py tests/replicas/test_store_core.py \
  tests/streams/test_streams_core.py tests/streams/test_streams_scenario.py
NOT_CHECKED := tests/scenarios/test_hostile_executor.py tests/scenarios/test_hostile_jobs.py \
  tests/scenarios/test_hostile_peer.py tests/scenarios/test_hostile_reader.py tests/kernel/test_processes.py

.PHONY: demo test check lint unit install bench clean

demo: install
	$(BIN)/island demo $(DEMO)

test: install lint unit

# Linters, types, and the tests that need no child process and no socket: less than a minute.
check: install lint
	$(BIN)/python -m pytest --quiet --numprocesses 2 -m "not slow and not spark and not e2e" $(CHECKED) \
	  $(NOT_CHECKED:%=--ignore=%)

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "island needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[spark,demo,test]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

unit: install
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(PYTEST)

bench: install
	@for each in tests/bench/bench_*.py; do echo "== $$each"; PYTHONPATH=. $(BIN)/python $$each || exit 1; done

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
