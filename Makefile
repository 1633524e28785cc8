# Two commands for everybody: `make demo` and `make test`. `make check` is for working on the code.
# Each creates .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes that run tests at the same time. Most tests wait for other processes for a part of their time.
WORKERS ?= 3
# Pure and simulated tests: neither child processes nor sockets.
CHECKED := tests/doctor/test_config_file.py tests/doctor/test_doctor_core.py \
  tests/formats tests/gossip tests/jobs tests/kernel tests/livy tests/discovery/test_discovery_core.py \
  tests/membership/test_core.py tests/membership/test_service.py tests/scenarios tests/trust tests/test_errors.py tests/test_config.py \
  tests/catalog/test_core.py tests/catalog/test_manifest.py tests/catalog/test_vectors.py tests/catalog/test_virtual.py \
  tests/net/test_half_open.py tests/net/test_same_origin.py tests/replicas/test_store_core.py \
  tests/streams/test_streams_core.py tests/streams/test_streams_scenario.py
NOT_CHECKED := tests/scenarios/test_hostile_executor.py tests/scenarios/test_hostile_jobs.py \
  tests/scenarios/test_hostile_peer.py tests/scenarios/test_hostile_reader.py tests/kernel/test_processes.py \
  tests/kernel/test_service_manager.py

.PHONY: demo test check lint unit install lock lowest lowest-ci bench clean

demo: install
	$(BIN)/island demo $(DEMO)

test: install lint unit

# Linters, types, and the tests that need no child process and no socket: less than a minute.
check: install lint
	$(BIN)/python -m pytest --quiet --numprocesses 2 -m "not slow and not spark and not e2e" $(CHECKED) \
	  $(NOT_CHECKED:%=--ignore=%)

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements-test.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "island needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-test.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Every dependency with its hash, for all platforms: requirements.lock for sites and images, requirements-test.lock for the
# tests. Without hashes, for tests on Linux only: requirements-lowest.lock with the lowest versions that pyproject.toml
# allows. The versions in the files are kept unless they no longer fit; `make lock LOCK=--upgrade` takes the newest ones.
COMPILE = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
  --custom-compile-command "make lock" $(LOCK) pyproject.toml --extra spark --extra demo
lock: install
	$(COMPILE) --extra test --output-file requirements-test.lock
	$(COMPILE) --constraint requirements-test.lock --output-file requirements.lock
	$(BIN)/uv pip compile --quiet --python-version 3.11 --no-annotate --custom-compile-command "make lock" \
	  --resolution lowest-direct pyproject.toml --extra spark --extra demo --extra test -o requirements-lowest.lock

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Sessions start in half the time with the class-data archive of Spark, which is made once.
unit: install
	$(BIN)/island engine --prepare
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST)

# The tests of `make check` with the lowest versions that pyproject.toml allows. .ci/run runs the part of them in LOWEST_CI
# (30 s of processor time), and imports all that the daemon and the commands need.
LOWEST ?= $(CHECKED)
LOWEST_CI := tests/doctor/test_config_file.py tests/formats/test_avro.py tests/formats/test_columns.py tests/kernel \
  tests/test_config.py tests/trust
lowest-ci:
	$(MAKE) lowest LOWEST="$(LOWEST_CI)"
	build/lowest/bin/python -c 'import island.cli.main, island.daemon, island.engine.main'

lowest: install
	rm -rf build/lowest
	$(BIN)/uv venv --quiet --python $(BIN)/python build/lowest
	$(BIN)/uv pip install --quiet --python build/lowest/bin/python --requirement requirements-lowest.lock
	$(BIN)/uv pip install --quiet --python build/lowest/bin/python --no-deps --no-build-isolation --editable .
	build/lowest/bin/python -m pytest --quiet --numprocesses 2 --dist loadfile -m "not slow and not spark and not e2e" $(LOWEST) \
	  $(NOT_CHECKED:%=--ignore=%)

bench: install
	@for each in tests/bench/bench_*.py; do echo "== $$each"; PYTHONPATH=. $(BIN)/python $$each || exit 1; done

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
