# make demo: the main job; make test: the tests; make check: lint, types and tests, as CI runs them.
# Each sets up .venv first, with nothing but Python >= 3.11 on the machine.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint types check bench notebooks clean

demo: .venv/ready
	$(BIN)/fisher-jax spectrum

test: .venv/ready
	$(BIN)/python -m pytest -n 2 -m "not slow"

slow: .venv/ready
	$(BIN)/python -m pytest -m slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/pyright

check: lint types test

bench: .venv/ready
	$(BIN)/python benchmarks/run.py

# The .py halves are the source; this writes the .ipynb ones from them.
notebooks: .venv/ready
	$(BIN)/python -m pip install --quiet jupytext
	$(BIN)/jupytext --to ipynb notebooks/*.py

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fisher_jax needs Python >= 3.11; set one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache fisher_spectrum fisher_density fisher_training fisher_comparison fisher_atlas
