# Parallax. `make demo` runs the main job; `make test` runs everything CI runs. Both set up what they need.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
MEMBERS := parallax-common parallax-cli parallax-dispatcher parallax-executor parallax-results
INSTALLED := .venv/.installed
PYPROJECTS := pyproject.toml libs/common/pyproject.toml $(wildcard services/*/pyproject.toml)

.PHONY: help demo test check fmt setup lock up bench bench-api bench-submission bench-compare fuzz-api sim mutants chaos docs modal-deploy modal-verify clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 18

$(INSTALLED): requirements.lock $(PYPROJECTS) .ci/setup
	@.ci/setup
	@touch $@

.venv/.rabbitmq: $(INSTALLED)
	@.ci/setup with-rabbitmq
	@touch $(INSTALLED) $@

setup: $(INSTALLED) ## install the locked packages into .venv

demo: $(INSTALLED) ## ask 8 questions of 2 model variants in 3 simulated regions, on this machine
	@$(BIN)/parallax demo

check: $(INSTALLED) ## lint, types, import rules, generated documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m results.api.openapi --check docs/openapi.json
	$(BIN)/python -m parallax.asyncapi --check docs/asyncapi.yaml

test: .venv/.rabbitmq check ## everything CI runs
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

fmt: $(INSTALLED) ## format and mend what can be mended
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

docs: $(INSTALLED) ## write the generated documents anew
	$(BIN)/python -m results.api.openapi docs/openapi.json
	$(BIN)/python -m parallax.asyncapi docs/asyncapi.yaml

lock: ## resolve the dependencies anew
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate \
		--group dev pyproject.toml $(MEMBERS:%=--no-emit-package %) -o requirements.lock

up: .venv/.rabbitmq ## the whole stack as local processes: broker, database, dispatcher, results, three executors
	@$(BIN)/parallax up

bench: .venv/.rabbitmq ## throughput and the gap between batches, beside a raw floor and Celery
	$(BIN)/python -m tests.benchmarks.bench

bench-api: $(INSTALLED) ## the query API with a million executions stored
	$(BIN)/python -m tests.benchmarks.bench_api

bench-submission: $(INSTALLED) ## what jobs of 15 MB, legal and hostile, cost the dispatcher and the API
	$(BIN)/python -m tests.benchmarks.bench_submission

bench-compare: $(INSTALLED) ## false alarms and power of the comparison on answers with known truth, time and memory
	$(BIN)/python -m tests.benchmarks.bench_compare

ST ?= st
fuzz-api: $(INSTALLED) ## Schemathesis, installed elsewhere, against a whole installation: make fuzz-api ST=PATH/TO/st
	$(BIN)/python -m tests.contract.fuzz_api --st $(ST)

SEEDS ?= 1000
sim: $(INSTALLED) ## seeded simulation: make sim SEEDS=1000
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)

mutants: $(INSTALLED) ## planted bugs that the tests must catch
	$(BIN)/python -m tests.simulation.mutants

MINUTES ?= 5
SEED ?= 1
chaos: .venv/.rabbitmq ## real processes with random failures injected: make chaos MINUTES=5 SEED=1 ONLY=kill,cut OLDER=COMMIT
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) --seed $(SEED) $(if $(ONLY),--only $(ONLY)) $(if $(OLDER),--older $(OLDER))

modal-deploy: $(INSTALLED) ## deploy the three regional Modal apps
	for region in us eu apac; do $(BIN)/modal deploy modal_deployment/modal_hf_$$region.py || exit 1; done

modal-verify: $(INSTALLED) ## ask the deployed apps which models they serve, and where
	$(BIN)/python -m modal_deployment.verify

clean: ## remove what setup and the tools made
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
