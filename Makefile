# Portcullis: `make` alone lists what there is.

PYTHON ?= python3
VENV ?= $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin

comma := ,
# Data sets come through apt and npm; where one of them is missing torchvision fetches them.
EXTRAS := dev$(if $(and $(shell command -v apt-get),$(shell command -v npm)),,$(comma)datasets)
# Named after what was installed for which checkout: a virtual environment may be shared or a link to elsewhere, where
# times of files say nothing.
INSTALLED := $(VENV)/.portcullis-$(firstword $(shell (cat pyproject.toml; echo $(EXTRAS) $(CURDIR)) | cksum))

# Every process has one thread for its arithmetic: there are more processes than cores.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup data kafka proto lint format typecheck test test-quick demo train evaluate evaluate-quick figures bench load faults up clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

$(INSTALLED):
	@test -x $(BIN)/python || { PYTHON=$(PYTHON) deploy/bootstrap.sh python && $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25'
	@# Python compiles what is imported; to compile all of it here takes half as long again, and most is never imported.
	@$(BIN)/python -m deploy.pip_progress --no-compile --editable '.[$(EXTRAS)]'
	@rm -f $(VENV)/.portcullis-* && touch $@

setup: $(INSTALLED) ## make the virtual environment and install everything into it

data: setup ## fetch Fashion-MNIST and the digits
	@$(BIN)/python -m shared.datasets

kafka: setup ## fetch Apache Kafka, unless PORTCULLIS_KAFKA names a broker
	@test -n "$(PORTCULLIS_KAFKA)" || $(BIN)/python -m deploy.kafka.broker --fetch

proto: setup ## generate shared/pb from protos/
	@$(BIN)/python -m protos.generate

lint: setup ## check style, and which part imports which
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports

format: setup ## mend what can be mended of the style
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

typecheck: setup ## check types
	@echo "mypy: checking types; the first time takes longest"
	@$(BIN)/mypy

test: setup ## everything that must hold: style, types, every test, on a real Kafka
	@$(MAKE) --no-print-directory --jobs=4 lint typecheck data kafka
	@$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadgroup --durations=15

test-quick: setup data ## the tests that need no Kafka
	@$(BIN)/python -m pytest -m "not kafka" tests/unit tests/detectors

demo: setup data kafka ## attackers and honest clients against the whole system, live in the terminal
	@$(BIN)/python -m deploy.demo

train: setup data ## train and calibrate the bundle again
	@OMP_NUM_THREADS=$$(nproc) MKL_NUM_THREADS=$$(nproc) $(BIN)/portcullis train --output deploy/bundle

evaluate: setup data ## the papers' tables and our figures, measured again (hours); docs/results
	@$(BIN)/portcullis evaluate

evaluate-quick: setup data ## the same in minutes, to see that it runs; build/evaluation
	@$(BIN)/portcullis evaluate --quick --output build/evaluation

figures: setup ## the figures to reach, what was measured, and what falls short
	@$(BIN)/portcullis figures

bench: setup data kafka ## measure; numbers in build/bench.json and docs/results/bench.md
	@$(BIN)/python -m tests.bench --write-docs

load: setup data kafka ## thousands of accounts against the whole system; build/load/load.md (LOAD='--minutes=60': a soak)
	@$(BIN)/python -m tests.load $(LOAD)

faults: setup data kafka ## kill, cut off and fill the whole system under load, check what is left; build/faults (FAULTS=--quick)
	@$(BIN)/python -m tests.faults $(FAULTS)

up: setup kafka ## start Kafka and every service; Ctrl-C stops all
	@$(BIN)/python -m deploy.local

clean: ## remove what was built; the virtual environment and the data stay
	rm -rf build .kafka .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
