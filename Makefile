# make study, make test: everything from a bare machine with Python 3.11 to 3.13 and make. The rest: see README.md.
PYTHON ?= python3
VENV ?= .venv
STUDY ?= study.yaml
PY := $(VENV)/bin/python
READY := $(VENV)/installed

.PHONY: study test check ui report bench drill gpu clean

study: $(READY)
	$(PY) -m study.run --resume $(STUDY)
	$(PY) -m analysis.report $(STUDY)

test: $(READY)
	$(PY) -m pytest -m "not slow and not gpu" -n 2 --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

ui: $(READY)
	$(VENV)/bin/mlflow server --backend-store-uri sqlite:///mlflow.db --artifacts-destination mlartifacts --host 127.0.0.1 --port 5000

report: $(READY)
	$(PY) -m analysis.report $(STUDY)

bench: $(READY)
	$(PY) -m trainables.bench --set data.source=rooms --set model.weights=null --set model.encoder=densenet121 --set input=[96,128]
	$(PY) -m trainables.bench.overhead

drill: $(READY)
	$(PY) -m pytest -m slow tests

gpu: $(READY)
	$(PY) -m tests.gpu

# Installs when requirements.txt's content changed, not when its date did (a fresh clone has new dates).
$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, {v[0]}.{v[1]} was found: make PYTHON=python3.12 ...")'
	@if [ -f $(READY) ] && cmp -s requirements.txt $(READY); then touch $(READY); else \
	  $(PYTHON) -m venv $(VENV) && $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt \
	  && $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . \
	  && cp requirements.txt $(READY); fi

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache build *.egg-info
