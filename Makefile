# Everything starts from a clean clone with only Python >= 3.11, pip, git and make; uv is used when it is there.
#   make PYTHON=python3.12 test     another interpreter than the newest one found
#   make UV= setup                  pip even if uv is there

.DEFAULT_GOAL := help
SHELL := /bin/bash

VENV ?= .venv
PYTHON ?=
ifneq ($(origin UV),undefined)
export UV
endif
export PYTHON
# Compiled programs are kept between runs (JAX's persistent compilation cache).
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.5

BIN := $(VENV)/bin
# Test processes: the usable cores, at most 8 (each compiles, which takes memory).
JOBS ?= $(shell n=$$( { nproc || getconf _NPROCESSORS_ONLN || echo 2; } 2>/dev/null | head -n 1); echo $$(( n > 8 ? 8 : n )))
ARGS ?=

.PHONY: help setup demo train test test-full test-newest lint types format bench smoke ci clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv and install everything into it (once)
	@scripts/setup.sh "$(VENV)"

demo: setup ## compare schedulers on calibrated chat traffic; writes demo/report.html
	@"$(BIN)/jaxsched" compare configs/compare/demo.yaml --out demo
	@test -s demo/report.html || { echo "make demo: demo/report.html was not written" >&2; exit 1; }
	@echo "The report: file://$(CURDIR)/demo/report.html"

# Training takes under five minutes on two cores, the comparison about ten: eight policies on 12 held-out workloads of 300
# programs (on 6 of them the policy was 42 % better than the best rule and the interval contained 0).
RULES := continuum,continuum with 3 TTL,plas+ttl,gittins,plas+gittins,continuum+gate,gittins+gate
train: setup ## train the quickstart policy (minutes on two cores) and compare it with the rules; see runs/quickstart
	@"$(BIN)/python" -m train configs/train/quickstart.yaml
	@"$(BIN)/jaxsched" compare configs/compare/agents.yaml --policies "$(RULES),runs/quickstart" \
		--compare.seeds 12 --out runs/quickstart/report

test: setup ## run all tests, slow ones at reduced size (ARGS="-k name" narrows)
	@"$(BIN)/python" -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-full: setup ## run all tests at full size (tens of minutes)
	@"$(BIN)/python" -m pytest -n $(JOBS) --dist worksteal --full $(ARGS)

# What another Python, NumPy or JAX could change: parsing and printing, device arithmetic, tracing, compiled decisions.
# Statistics of workloads, random clusters in number and queueing theory are left to `test`.
NEWEST := tests/config tests/report tests/timing \
	$(addprefix tests/test_,cli.py rollout.py slots.py stats.py verify.py verify_input.py xla.py) \
	$(addprefix tests/sim/test_,golden_episodes.py machine_is_pure.py machine_time.py machine_equals_reference.py) \
	$(addprefix tests/workloads/test_,keyed.py laws.py readers.py table.py sharing.py)

test-newest: setup ## run the tests that another Python or JAX could break (PYTHON=python3.12 VENV=.venv-new)
	@"$(BIN)/python" -m pytest -n $(JOBS) --dist worksteal -m "not slow or newest" $(NEWEST) $(ARGS)

lint: setup ## ruff: rules and format
	@"$(BIN)/ruff" check .
	@"$(BIN)/ruff" format --check .

format: setup ## let ruff mend and format the code
	@"$(BIN)/ruff" check --fix .
	@"$(BIN)/ruff" format .

types: setup ## pyright
	@"$(BIN)/pyright" --pythonpath "$(BIN)/python"

bench: setup ## throughput table of this machine
	@"$(BIN)/python" benchmarks/throughput.py --preset chat --instances 4 --policy vllm $(ARGS)
	@"$(BIN)/python" benchmarks/throughput.py --preset chat --instances 4 --policy sarathi $(ARGS)

smoke: setup ## run the commands of README.md that are marked for it
	@"$(BIN)/python" scripts/smoke_readme.py README.md

ci: ## what continuous integration runs
	@.ci/run

clean: ## remove .venv, caches and outputs
	rm -rf "$(VENV)" .venv-new .cache .pytest_cache .ruff_cache .hypothesis build dist demo
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
