# Two commands do everything on a fresh machine: `make demo` and `make test`.
#
#   PYTHON       the interpreter that makes .venv; 3.11 or newer
#   TORCH_INDEX  wheel index for torch, e.g. https://download.pytorch.org/whl/cpu; empty = pip's own configuration
#   JOBS         test processes

PYTHON ?= python3
TORCH_INDEX ?=
JOBS ?= auto

VENV := .venv
PIP := $(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
SOURCES := pyproject.toml setup.py constraints.txt

.PHONY: demo test lint clean

demo: $(STAMP)
	$(VENV)/bin/boltzflow sample alanine_dipeptide -n 20000 -o ensemble.h5
	$(VENV)/bin/boltzflow analyze ensemble.h5
	$(VENV)/bin/boltzflow free-energy ensemble.h5 --cv phi --state 0:130

test: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n $(JOBS) --maxprocesses=8 --dist=worksteal

lint: $(DEV_STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11; set PYTHON"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: left to the resolver it may come as a build for another device
$(STAMP): $(SOURCES) | $(VENV)/bin/python
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e .
	touch $@

$(DEV_STAMP): $(SOURCES) | $(STAMP)
	$(PIP) -e '.[dev]'
	touch $@ $(STAMP)
