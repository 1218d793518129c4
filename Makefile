# Stethoscope for Networks. `make` lists what there is; scripts/ holds what the targets call.
PORT ?= 8501
VENV_PYTHON := .venv/bin/python

# The first Python from 3.11 to 3.14 among PYTHON (if given), python3, and the numbered ones.
define with_python
found=; for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14; do \
  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null; then \
    found=$$python; break; fi; done; \
if [ -z "$$found" ]; then \
  echo "SfN needs Python 3.11 to 3.14; found $$(python3 --version 2>&1 || true). Name another with PYTHON=/path/to/python3.12." >&2; \
  exit 1; fi; \
$$found
endef

.PHONY: help app test lint format bench lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/  make \1\t\2/p' Makefile | expand -t 16

app:  ## install what is missing, then start the app on http://127.0.0.1:8501 (PORT=..., SFN_BACKEND=cpu|gpu)
	@$(with_python) scripts/install.py app
	@exec $(VENV_PYTHON) scripts/start.py "$(PORT)"

test:  ## install what tests need, then run every test (ARGS="tests/unit -k recipes")
	@$(with_python) scripts/install.py test
	@$(VENV_PYTHON) scripts/debian.py
	@$(VENV_PYTHON) -m pytest $(ARGS)

lint:  ## check style with ruff
	@$(with_python) scripts/install.py test
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .

format:  ## let ruff mend what it can
	@$(with_python) scripts/install.py test
	@$(VENV_PYTHON) -m ruff check --fix .
	@$(VENV_PYTHON) -m ruff format .

bench:  ## run the benchmarks and print their figures
	@$(with_python) scripts/install.py test
	@missed=; for benchmark in benchmarks/*.py; do echo "== $$benchmark"; \
	  $(VENV_PYTHON) "$$benchmark" || missed="$$missed $$benchmark"; done; \
	  test -z "$$missed" || { echo "Short of what is wanted:$$missed"; exit 1; }

lock:  ## renew the locks in requirements/ from requirements.txt and requirements-cpu.txt (needs the network)
	@test -x .venv-lock/bin/uv || { $(with_python) -m venv .venv-lock && .venv-lock/bin/python -m pip install -q uv==0.13.8 packaging==26.3; }
	@.venv-lock/bin/python scripts/lock.py

clean:  ## remove what was installed and what tools left behind; results in cache/ stay
	rm -rf .venv .venv-lock .venv-mergekit .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
