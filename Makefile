# Two commands do all the set-up: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: quickstart test test-all check install

quickstart: install
	$(BIN)/fedsim run experiments/quickstart.toml --report

# Linters, type checker and every test that takes seconds.
test: check
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

# The same with every test.
test-all: check
	$(BIN)/pytest -n 2 --dist worksteal --durations=40

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: .venv/.installed

# torch first and from the constraints, so that no other package pulls in its CUDA build.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
