# `make` alone lists the targets. Only Python 3.11+, git and make are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The dashboard's web app, built where its sources changed: who works on Python alone does not wait for it.
UI := server/admin/ui
UI_STAMP := $(VENV)/.dashboard
UI_SOURCES := $(shell find $(UI) -name node_modules -prune -o -type f -print)
ARGS ?=

.PHONY: help demo up test test-unit check format admin browser demo-model sglang-cpu clients oracles bench bench-gateway bench-paper bench-peers bench-swaps bench-verifiers evidence lock docs clean
.DEFAULT_GOAL := help

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Mulligan needs Python 3.11 or newer; $(PYTHON) is older. Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) from requirements.lock (a few minutes the first time) ..."
	@# torch first and alone: a pinned torch that is there already keeps pip from picking a bigger build.
	@echo "  1 of 3: torch, the biggest"
	@$(BIN)/python -m pip install --disable-pip-version-check -q $$(grep '^torch==' requirements.lock)
	@echo "  2 of 3: all else"
	@$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.lock
	@echo "  3 of 3: Mulligan itself"
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -e .
	@touch $@

$(UI_STAMP): $(UI_SOURCES) tools/admin_ui.py | $(STAMP)
	@echo "Building the dashboard (half a minute the first time) ..."
	@$(BIN)/python tools/admin_ui.py --or-without --stamp $@

demo: $(STAMP) $(UI_STAMP) ## Set up and run the main job; options: make demo ARGS="--seed 7"
	@$(BIN)/mulligan demo $(ARGS)

evidence: $(STAMP) ## Measure whether it learns, beside its controls (hours, resumable); ARGS="--help" teaches
	@$(BIN)/python -m bench.evidence $(ARGS)

up: $(STAMP) $(UI_STAMP) ## Set up and serve: engine, API, worker and scheduler on this machine
	@$(BIN)/mulligan up $(ARGS)

test: $(STAMP) $(UI_STAMP) ## Set up and run every test (those for the real SGLang need `make sglang-cpu` first)
	@$(BIN)/python -m pytest $(ARGS)

test-unit: $(STAMP) ## Run the unit tier only: no services, some twenty seconds on an idle core
	@$(BIN)/python -m pytest tests/unit $(ARGS)

check: $(STAMP) ## Check format, lint, types and import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-cache

format: $(STAMP) ## Format the code and mend what the linter can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

admin: $(STAMP) ## Build the dashboard that the server shows at /admin, and check its types
	@$(BIN)/python tools/admin_ui.py --check --stamp $(UI_STAMP)

demo-model: $(STAMP) ## Make the demo model's weights anew (up to 60 minutes on two cores)
	@$(BIN)/python -m demo.pretrain --out demo/model $(ARGS)

sglang-cpu: ## Install the real SGLang for CPU into its own environment, .venv-sglang
	@PYTHON=$(PYTHON) bash tools/sglang-cpu.sh

clients: $(STAMP) ## Install other people's clients of the API, which the end-to-end tests try
	@PYTHON=$(PYTHON) bash tools/clients.sh

oracles: ## Install what tests compare with (bfcl-eval, the schema of Compose files) into its own environment, .venv-oracles
	@PYTHON=$(PYTHON) bash tools/oracles.sh

browser: ## Install the Chromium that tests drive, where the machine has none (Debian's package, as root)
	@for one in chromium chromium-browser google-chrome google-chrome-stable; do command -v $$one > /dev/null && exit 0; done; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium > /dev/null

bench: $(STAMP) ## Run the benchmarks; each prints a table of ratios within one run
	@for script in bench/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script $(ARGS) || exit 1; done

bench-gateway: $(STAMP) ## What a request costs, beside other gateways; ARGS="--help" teaches
	@$(BIN)/python -m bench.gateway $(ARGS)

bench-peers: ## Install those other gateways into an environment of their own, .venv-bench
	@PYTHON=$(PYTHON) bash tools/bench-peers.sh

bench-verifiers: $(STAMP) ## What a verdict costs, kind by kind; ARGS="--help" teaches
	@$(BIN)/python -m bench.verifiers $(ARGS)

bench-paper: $(STAMP) ## The paper's set-up with a model of your own, on a GPU with SGLang; ARGS="--help" teaches
	@$(BIN)/python -m bench.paper $(ARGS)

bench-swaps: $(STAMP) ## Hot swaps under streams on SGLang, beside servers that stop for them; ARGS="--help" teaches
	@$(BIN)/python -m bench.swaps $(ARGS)

docs: $(STAMP) ## Write docs/cli.md, api.md, openai-compatibility.md, verifier-kinds.md, clients.md, settings.md and the dashboard's types anew from the code
	@PYTHONPATH=. $(BIN)/python tools/cli_docs.py
	@PYTHONPATH=. $(BIN)/python tools/reference_docs.py
	@PYTHONPATH=. $(BIN)/python tools/client_docs.py
	@PYTHONPATH=. $(BIN)/python tools/settings_docs.py
	@PYTHONPATH=. $(BIN)/python tools/metrics_docs.py
	@PYTHONPATH=. $(BIN)/python tools/admin_types.py

lock: ## Resolve pyproject.toml anew into requirements.lock
	@PYTHON=$(PYTHON) bash tools/lock.sh

clean: ## Remove environments and caches (data/ stays)
	rm -rf $(VENV) .venv-sglang .venv-oracles .venv-clients* tests/e2e/clients/node_modules $(UI)/node_modules server/admin/static .pytest_cache .ruff_cache .hypothesis
