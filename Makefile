# `make demo` and `make test` set everything up by themselves; they need make and Python 3.11 or newer.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SEED   ?= 0
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
# --no-deps: the files are complete, and pip before 23.3 would try versions outside them for packages with extras.
LOCKED := --require-hashes --no-deps
UV     := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

.PHONY: demo test lint coverage lock bench simulate mutants clean

$(VENV)/.runtime: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Aegis needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	@echo "Setting up $(VENV) (once, a few minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install $(LOCKED) -r requirements.txt
	@$(PIP) install --no-deps --no-build-isolation -e . && $(PIP) check >/dev/null
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.runtime
	@$(PIP) install $(LOCKED) -r requirements/dev.txt && $(PIP) check >/dev/null
	@touch $@

demo: $(VENV)/.runtime
	@$(BIN)/aegis demo --seed $(SEED)

test: $(VENV)/.dev lint coverage
	@$(BIN)/python -m pytest

lint: $(VENV)/.dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

# The parsers take foreign text, so nearly each of their branches has to be seen by their own tests.
coverage: $(VENV)/.dev
	@$(BIN)/python -m pytest --quiet --no-header --no-summary --cov-branch --cov-fail-under=95 --cov-report=term \
		--cov=aegis.events --cov=aegis.strict --cov=alert_receiver.alertmanager --cov=alert_receiver.mapping \
		tests/events tests/receiver/test_alertmanager.py tests/receiver/test_mapping.py

bench: $(VENV)/.dev
	@for each in receiver trigger train_step; do $(BIN)/python -m benchmarks.$$each || failed=1; done; exit $${failed:-0}

# Not part of `test`, which simulates a tenth of it: it takes up to 20 minutes.
simulate: $(VENV)/.dev
	@$(BIN)/python -m tests.policy.simulator --model-days 10000 --seed 1 --record docs/simulation.md

# Not part of `test`: it takes about ten minutes. Fails if a survivor is not argued in docs/mutants.md.
MUTANTS ?= 'retrain_trigger.policy.*' 'alert_receiver.mapping.*' 'aegis.events.x_seal*' 'train_model.verdict.*'
mutants: $(VENV)/.dev
	@rm -rf build/mutants && mkdir -p build/mutants/src
	@cp -r shared/* functions/* steps/* cli/* build/mutants/src/ && cp -r tests pyproject.toml build/mutants/
	@cd build/mutants && $(CURDIR)/$(BIN)/mutmut run $(MUTANTS)
	@cd build/mutants && $(CURDIR)/$(BIN)/python $(CURDIR)/docs/mutants.py $(MUTANTS)

lock: $(VENV)/.dev
	$(UV) pyproject.toml --extra cli --group build -o requirements.txt
	for image in receiver trigger train sign; do $(UV) pyproject.toml --extra $$image -c requirements.txt -o requirements/$$image.txt || exit 1; done
	$(UV) pyproject.toml --extra cli --group dev -c requirements.txt -o requirements/dev.txt

clean:
	rm -rf $(VENV) build dist
