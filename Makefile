# GNU make, a POSIX shell, git, pip and Python 3.11 or newer are all that a bare machine needs.

PYTHON ?= python3
TESTS  ?= tests
ARGS   ?=

VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEV    := $(VENV)/.ready-dev
INPUTS := pyproject.toml constraints/dev.txt
CHECKED = $(wildcard src tests tools benchmarks examples)
STYLED  = $(CHECKED) $(wildcard docs/_ext)

export PYTHON
# The tests start thousands of programs: each would compile Mouso anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-all servers compiled lint format docs bench pins clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(READY) ## analyse a real code base on SQLite: the standard library, or the one in DIR
	@exec $(BIN)/mouso demo $(if $(DIR),--dir "$(DIR)")

# mypy has but one CPU, so the servers are installed and the tests compiled beside it.
# Many tests wait for leases and graces: three at a time keep two CPUs busy.
test: $(DEV) ## lint, then every test suite (TESTS=path, ARGS=options for pytest)
	@$(MAKE) --no-print-directory -j3 lint servers compiled
	@$(BIN)/pytest -n 3 --dist loadgroup $(ARGS) $(TESTS)

test-all: $(DEV) servers ## the test suites on Python 3.11, 3.12 and 3.13, where they are found
	@$(BIN)/python -m tools.test_all $(ARGS)

servers: $(DEV) ## install the servers that the tests start (as root on Debian; else it says what to install)
	@$(BIN)/python -m tools.servers

compiled: $(DEV)
	@$(BIN)/pytest -q --collect-only $(ARGS) $(TESTS) > $(VENV)/collected || { cat $(VENV)/collected; exit 1; }

lint: $(DEV) ## style, types, layers, sizes, house rules
	@echo "lint: ruff check" && $(BIN)/ruff check -q $(STYLED)
	@echo "lint: ruff format" && $(BIN)/ruff format -q --check $(STYLED) || { echo "lint: run 'make format'"; exit 1; }
	@echo "lint: mypy" && $(BIN)/mypy $(CHECKED)
	@echo "lint: layers" && PYTHONPATH=src $(BIN)/lint-imports --no-logo
	@echo "lint: sizes" && $(BIN)/python -m tools.check_size src
	@echo "lint: house rules" && $(BIN)/python -m tools.check_house

format: $(DEV) ## lay the code out and mend what ruff can mend
	@$(BIN)/ruff check -q --fix $(STYLED) && $(BIN)/ruff format $(STYLED)

docs: $(DEV) ## the documentation, in docs/_build/html; a warning is an error
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs: docs/_build/html/index.html"

bench: $(DEV) ## the benchmarks (ARGS=their options)
	@$(BIN)/python -m benchmarks $(ARGS)

pins: $(DEV) ## take the versions that are installed over into constraints/dev.txt
	@$(BIN)/python -m pip freeze --all --exclude-editable --exclude setuptools > $(VENV)/pins
	@sort -s -f -u -t= -k1,1 -o constraints/dev.txt $(VENV)/pins constraints/dev.txt

clean: ## remove environments, caches and everything built
	@rm -rf .venv .venv-* .venv*.log .tools build dist docs/_build .mypy_cache .ruff_cache .pytest_cache \
		.hypothesis .import_linter_cache .coverage htmlcov mouso-demo
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# The development environment has all that the lean one has, so its stamp renews both.
$(READY): $(INPUTS)
	@$(call bootstrap,)

$(DEV): $(INPUTS)
	@$(call bootstrap,--dev)

define bootstrap
command -v "$(PYTHON)" >/dev/null || { \
	echo "set-up: error: no '$(PYTHON)' here: install Python 3.11 or newer, or run make with PYTHON=path" >&2; exit 1; }; \
"$(PYTHON)" tools/bootstrap.py $(VENV) $(1)
endef
