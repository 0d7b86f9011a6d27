# The first call of any target makes the virtual environment it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=
CLUSTER ?=
# Three processes of tests for two cores, because one often waits, such as for Ray to start. tests/conftest.py says which runs what.
PARALLEL := -n 3 --dist loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help run cluster azurite test test-slow test-cluster coverage mutants lint docs site ui bench bench-proposals bench-scale soak clean

help:
	@echo "make run           the whole pipeline, small, on generated data     (ARGS='--seed 1' passes settings on)"
	@echo "make cluster       the same on a cluster on this machine: Ray head and two nodes, S3, MLflow (on PostgreSQL if it is installed); stopped at its end"
	@echo "make test          lint, types and tests"
	@echo "make test-slow     the tests that take minutes"
	@echo "make test-cluster  the tests that break such a cluster, minutes each"
	@echo "make azurite       a server that stands in for Azure in the tests, from npm; without it those tests are skipped"
	@echo "make mutants       the share of small changes of the code that the tests notice  (ARGS='mining --number 100')"
	@echo "make coverage      which lines the tests run: build/coverage/index.html"
	@echo "make docs          docs/settings.md, from the types of the settings"
	@echo "make site          the documentation site: build/site/index.html"
	@echo "make ui            the MLflow pages of runs/quickstart"
	@echo "make bench         the measurements in tests/benchmarks"
	@echo "make bench-proposals  how good edges and boxes are, on real photographs"
	@echo "make bench-scale   how data stages and dataloader scale     (ARGS='reading' for one part)"
	@echo "make soak          half an hour of mixed traffic for serve.py: does memory grow?  (ARGS='--minutes 10')"

$(VENV)/.run: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): a minute or two, this once"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check pydensecrf2 2>/dev/null \
		|| echo "pydensecrf2 does not build here: the tests that compare with it are skipped (and fail in CI)"
	@touch $@

run: $(VENV)/.run
	@$(BIN)/python workflows/train_pipeline.py $(ARGS)

# CLUSTER='--stay' leaves it there for its pages to be looked at, until Ctrl-C.
cluster: $(VENV)/.dev
	@$(BIN)/python -m infra.deploy.local.cluster $(CLUSTER) -- \
		python workflows/train_pipeline.py --workspace s3://deconvnet/quickstart --cluster.data_nodes pool=cpu $(ARGS)

docs: $(VENV)/.run
	@$(BIN)/python docs/generate_settings.py

ui: $(VENV)/.run
	@echo 'Open http://localhost:5000/#/experiments?workflowType=machine_learning'
	@$(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/runs/quickstart/mlflow/mlflow.db --port 5000

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Tests find it in this folder. The program for gs:// is among the dev dependencies.
azurite: build/azurite/node_modules/.bin/azurite-blob
build/azurite/node_modules/.bin/azurite-blob:
	@npm install --prefix build/azurite --silent --no-audit --no-fund azurite@3.35

test: lint
	@$(BIN)/python -m pytest $(PARALLEL) --durations=15 -m "not slow and not cluster" $(ARGS)

# Besides, the tests by Hypothesis try 30 times as many examples.
test-slow: $(VENV)/.dev
	@$(BIN)/python -m pytest -m slow $(ARGS)
	@DECONVNET_EXAMPLES=30 $(BIN)/python -m pytest -m "not slow and not ray and not cluster" $$(grep -rl "examples(" tests --include="test_*.py")

test-cluster: $(VENV)/.dev
	@$(BIN)/python -m pytest -m cluster $(ARGS)

coverage: $(VENV)/.dev
	@$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not cluster" --cov --cov-report=term --cov-report=html:build/coverage $(ARGS)

mutants: $(VENV)/.dev
	@$(BIN)/python tests/mutants/run.py $(ARGS)

site: $(VENV)/.dev
	@rm -rf build/site-source && mkdir -p build/site-source
	@cp -r --parents *.md LICENSE docs proposals/edges/pretrained/README.md proposals/edges/pretrained/recall.png build/site-source
	@$(BIN)/mkdocs build --quiet --strict

bench: $(VENV)/.dev
	@$(BIN)/python tests/benchmarks/run.py $(ARGS)

bench-proposals: $(VENV)/.dev
	@$(BIN)/python tests/benchmarks/bench_proposals.py $(ARGS)

bench-scale: $(VENV)/.dev
	@$(BIN)/python tests/benchmarks/scale.py $(ARGS)

soak: $(VENV)/.dev
	@$(BIN)/python tests/benchmarks/soak.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info
