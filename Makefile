# Two commands for a fresh Debian machine with python3 >= 3.11 (with venv) and make:
#   make bench   the main job on the embedded sample and an emulated SM8650, no hardware; with
#                torch for the methods that train (make bench EXTRAS= goes without: they are skipped)
#   make test    lint, types, import rules and the test suite
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
EXTRAS ?= train

.PHONY: bench test lint install install-dev protos clean

bench: install
	$(BIN)/qhost bench --device sm8650 --methods all --mock --output-dir qhost-out

test: install-dev lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "qhost needs Python 3.11 or newer: apt-get install python3 (or make PYTHON=python3.12 ...)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "python3 has no venv module: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.$(if $(EXTRAS),[$(EXTRAS)])'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,train]'
	@touch $@

protos: install-dev
	$(BIN)/python tools/generate_protos.py

clean:
	rm -rf $(VENV) qhost-out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
