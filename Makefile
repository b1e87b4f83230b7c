# Two commands do everything on a fresh machine, set-up included: `make demo` and `make test`.
# They need git, make and Python 3.10 to 3.14; choose one with `make demo PYTHON=python3.12`.

SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c '$(SUPPORTED)' >/dev/null 2>&1 && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 7860
WEIGHTS := -e packages/weights -e packages/weights-open
PYTHONS ?= 3.10 3.11 3.12 3.13 3.14
WITHOUT_TORCH := $(patsubst %,tests/test_%.py,clips doctor faces house paste release search tracking without_torch yunet)
PROJECTS := pyproject.toml packages/weights/pyproject.toml packages/weights-open/pyproject.toml

.PHONY: help demo serve test test-slow test-browser test-pythons mutants lint format docs dist clean

help:
	@echo "make demo       restore a photograph on the embedded prior; pictures in demo/"
	@echo "make serve      restore faces on a page; another port with make serve PORT=8080"
	@echo "make test       run the tests"
	@echo "make test-slow  run the slow tests too"
	@echo "make test-browser  drive the page with Chromium"
	@echo "make test-pythons  what needs no torch, on each of $(PYTHONS) (needs uv); others with make test-pythons PYTHONS=3.13"
	@echo "make mutants    change the core's code in small ways and see which changes no test notices (an hour);"
	@echo "                those of one module with make mutants OF='faceprior.sampling.steps.*'"
	@echo "make lint       ruff and mypy"
	@echo "make format     format the code"
	@echo "make docs       build the documentation site into site/, strictly"
	@echo "make dist       build both distributions into dist/ (needs the package build)"
	@echo "make clean      remove $(VENV), demo/ and mutants/"

demo: $(VENV)/.demo
	$(BIN)/faceprior demo --output demo

serve: $(VENV)/.web
	$(BIN)/faceprior serve --port $(PORT)

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not browser"

test-browser: $(VENV)/.dev
	$(BIN)/python -m pytest -m browser tests/test_app_browser.py

test-pythons:
	@set -e; for python in $(PYTHONS); do \
		uv venv --quiet --clear --python $$python $(VENV)/without-torch; \
		uv pip install --quiet --python $(VENV)/without-torch --constraints constraints.txt \
			--overrides tests/without-torch.txt -e '.[video]' hypothesis pytest; \
		$(VENV)/without-torch/bin/python -m pytest --noconftest -q $(WITHOUT_TORCH); \
	done

mutants: $(VENV)/.mutants
	OMP_NUM_THREADS=1 $(BIN)/mutmut run $(OF)
	$(BIN)/mutmut results
	$(BIN)/python -m benchmarks.mutants

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

dist:
	rm -rf dist
	$(PYTHON) -m build --outdir dist .
	$(PYTHON) -m build --outdir dist packages/weights
	$(PYTHON) -m build --outdir dist packages/weights-open

clean:
	rm -rf $(VENV) demo dist site mutants

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.10 to 3.14 was found; install one or name it: make demo PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python $(PROJECTS) constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . $(WEIGHTS) scikit-image
	@touch $@

$(VENV)/.web: $(VENV)/bin/python $(PROJECTS) constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[web]' $(WEIGHTS)
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python $(PROJECTS) constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' $(WEIGHTS)
	@touch $@ $(VENV)/.demo $(VENV)/.web

$(VENV)/.mutants: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'mutmut>=3.8'
	@touch $@
