# Each target works from nothing: it makes .venv and installs what it needs. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check docs bench clean
.NOTPARALLEL:

demo: $(VENV)/demo.stamp
	$(BIN)/python -m rnndrop demo $(DEMO_ARGS)

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n 2

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/docs.stamp
	$(BIN)/python -m sphinx -q -W --keep-going -E -b html docs docs_output
	@echo docs_output/index.html

bench: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:
	rm -rf $(VENV) build dist demo_output docs_output examples_output bench_output *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache

# The stamp of an extra: the package in place, with that extra.
$(VENV)/%.stamp: $(VENV)/base setup.py pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[$*]"
	touch $@

$(VENV)/base:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools wheel
	touch $@
