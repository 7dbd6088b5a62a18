# make demo    trains two PINNs with and without loss weights, and draws them (4 to 7 minutes)
# make test    the whole test suite
# Both make their own virtual environment in .venv; PYTHON says from which Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Most programs of the tests run once: optimising them takes longer than it saves, and so
# does compiling their parts in parallel. The flags are those of the JAX in
# constraints.txt; newer ones do not know the first, and XLA ends a process for that.
QUICK_COMPILATION := JAX_DISABLE_MOST_OPTIMIZATIONS=1 \
  XLA_FLAGS="--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

.DEFAULT_GOAL := help
.PHONY: help demo test constraints lint types docs results overhead dist clean

help:
	@sed -n '1,3s/^# //p' Makefile

# Installed anew whenever the requirements change: a file for each set of extras. The
# versions are those of constraints.txt; CI tests the lowest and the newest beside them.
$(VENV)/.%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(v < (3, 11) and f"stablegrad-optax needs Python 3.11 or newer; {sys.executable} is {v.major}.{v.minor}. Try: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[$*]'
	@touch $@

demo: $(VENV)/.examples
	$(BIN)/python -m examples.pinn demo --out demo

test: $(VENV)/.test
	$(QUICK_COMPILATION) $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --quiet

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# Compares the numbers and the code on the pages with the files they are from, runs their
# programs, builds them, and follows every link between them, as Markdown too, and the files
# here, without a network.
docs: $(VENV)/.dev
	$(BIN)/python -m docs.results --check
	$(BIN)/sphinx-build --fail-on-warning --keep-going -q -b doctest docs docs/_build/doctest
	$(BIN)/sphinx-build --fail-on-warning --keep-going -q -b html docs docs/_build/html
	$(BIN)/lychee --offline --include-fragments --no-progress docs/_build/html *.md examples/*.md docs/*.md

# Writes the measured numbers into the pages, from benchmarks/results and docs/demo.json,
# and the code of the examples and of the tests' recipes.
results: $(VENV)/.dev
	$(BIN)/python -m docs.results

overhead: $(VENV)/.benchmarks
	$(BIN)/python -m benchmarks.overhead

# The sdist, and the wheel made of it. The same commit gives the same bytes: files have the
# time of the commit, and hatchling is that of constraints.txt.
dist: $(VENV)/.dev
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
	  $(BIN)/python -m build --no-isolation --outdir dist .

# Takes the newest versions of everything into constraints.txt.
constraints:
	$(PYTHON) -m venv --clear $(VENV)/newest
	$(VENV)/newest/bin/python -m pip install --quiet '.[dev]'
	(sed '/^[^#]/,$$d' constraints.txt; \
	  $(VENV)/newest/bin/python -m pip freeze --exclude stablegrad-optax) > $(VENV)/constraints
	mv $(VENV)/constraints constraints.txt

clean:
	rm -rf $(VENV) docs/_build dist
