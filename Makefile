# The two commands of a newcomer: `make demo` and `make test`. Both need Python 3.11 with venv, git and make only
# (`make test` also needs cc, for the stand-ins of the NVIDIA libraries).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two workers: the suite is sized for two cores.
WORKERS ?= 2

.PHONY: demo test compiled check prove bench gpu-check proto proto-check format lint types layers clean venv

# -- installing

SOURCES := pyproject.toml $(shell find gpushare agent -name '*.py')

# The user's installation: the package and what it needs, at the locked versions; pip's cache stays untouched.
.demo/venv/.installed: requirements-dev.lock $(SOURCES)
	test -x .demo/venv/bin/python || $(PYTHON) -m venv .demo/venv
	PIP_DISABLE_PIP_VERSION_CHECK=1 .demo/venv/bin/pip install --quiet --no-cache-dir --constraint requirements-dev.lock '.[all]'
	touch $@

# The developer's installation: the locked tools too.
$(VENV)/.installed: pyproject.toml requirements-dev.lock
	$(PYTHON) -m venv $(VENV)
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install --quiet --requirement requirements-dev.lock
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install --quiet --no-deps --editable .
	touch $@

venv: $(VENV)/.installed

# -- using

demo: .demo/venv/.installed
	.demo/venv/bin/gpushare demo --dir .demo/run

# -- testing

# The suite starts our programs a thousand times: from bytecode, also where Python is told to write none. pytest keeps
# its own of the tests: collecting them takes each worker 6 s of CPU with it, 24 s without.
unexport PYTHONDONTWRITEBYTECODE
compiled: venv
	$(BIN)/python -m compileall -q gpushare agent

test: compiled
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not prove and not gpu"

# The full counts of the proofs; takes longer. What is measured runs alone, after the others.
MEASURED := tests/perf tests/e2e/test_bad_input_flood.py
prove: compiled
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m prove --timeout 1800 $(addprefix --ignore=,$(MEASURED))
	$(BIN)/pytest -m prove --timeout 1800 $(MEASURED)

gpu-check: venv
	$(BIN)/python -m benchmarks.gpu_check

bench: compiled
	$(BIN)/python -m benchmarks.run

# -- the gates

check: format lint types layers proto-check

format: venv
	$(BIN)/ruff format --check .

lint: venv
	$(BIN)/ruff check .

types: venv
	$(BIN)/mypy

layers: venv
	$(BIN)/lint-imports

proto: venv
	$(BIN)/buf lint
	cd proto && ../$(BIN)/python -m grpc_tools.protoc -I. --python_out=.. --pyi_out=.. --grpc_python_out=.. gpushare/v1/*.proto

# Generated code is committed: regenerate it elsewhere and compare.
proto-check: venv
	$(BIN)/buf lint
	rm -rf build/proto && mkdir -p build/proto
	cd proto && ../$(BIN)/python -m grpc_tools.protoc -I. --python_out=../build/proto --pyi_out=../build/proto --grpc_python_out=../build/proto gpushare/v1/*.proto
	diff -r --exclude=__init__.py --exclude=__pycache__ build/proto/gpushare/v1 gpushare/v1

clean:
	rm -rf build .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
