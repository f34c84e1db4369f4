# The commands of the project, for people and for CI. On a new machine, start with `make demo` or `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_INSTALLED := $(VENV)/.installed-demo
comma := ,
NODE := .venv/node/.installed

SOAK_MINUTES ?= 60

# Two for each core, because these tests mostly wait, and three where they start few processes of their own.
WORKERS := $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) * 2 )))
TEST_WORKERS := $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) * 3 )))

# Containers often disable bytecode. Then each worker, and each of hundreds of commands, would compile every module again.
demo test unit acceptance chaos soak: export PYTHONDONTWRITEBYTECODE :=

.PHONY: install demo test unit acceptance test-all test-newest release release-check chaos soak fuzz mutants lock reference tutorial check format bench compare

install: $(INSTALLED)

# Makes the virtual environment, and installs $(1) with the options of pip, or with uv where it exists, which takes a few
# seconds. Python compiles the modules that it imports, and pip would compile all of them: a quarter of its time.
define make_venv
@$(PYTHON) -c 'import sys; sys.exit("smartpipe needs Python 3.11 or newer, and %s is %s: make PYTHON=..." % (sys.executable, sys.version.split()[0]) if sys.version_info < (3, 11) else 0)'
@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
endef
define pip_install
@{ command -v uv >/dev/null && uv pip install --quiet --python $(BIN)/python $(1); } || \
  $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check $(1)
endef

$(INSTALLED): pyproject.toml requirements-dev.txt
	@echo "installing into $(VENV), with all development tools: a minute or two the first time"
	$(make_venv)
	$(call pip_install,--require-hashes --requirement requirements-dev.txt)
	$(call pip_install,--no-deps --no-build-isolation --editable .)
	touch $(INSTALLED)

$(DEMO_INSTALLED): pyproject.toml
	@echo "installing into $(VENV): less than a minute the first time"
	$(make_venv)
	$(call pip_install,--editable '.[local$(comma)examples]')
	touch $(DEMO_INSTALLED)

# Only needs a part of the dependencies, and uses all of them if they are installed.
demo: $(if $(wildcard $(INSTALLED)),$(INSTALLED),$(DEMO_INSTALLED))
	cd examples && ../$(BIN)/python -m signup.demo

# Packages of npm, for the tests that need them: those of examples/polyglot, AsyncAPI's JSON Schemas, and
# action-validator. The tests are skipped if npm is not installed.
$(NODE): $(INSTALLED) examples/polyglot/package.json
	@if command -v npm >/dev/null; then \
	  mkdir -p .venv/node && cp examples/polyglot/package.json .venv/node/package.json && \
	  npm install --prefix .venv/node --no-audit --no-fund --silent --save-exact \
	    @asyncapi/specs@6.11.1 @action-validator/cli@0.6.0 @action-validator/core@0.6.0 && touch $(NODE); \
	fi

# Everything that runs inside of pytest's processes, on brokers and databases of its own.
test: $(INSTALLED) $(NODE)
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal tests/unit tests/conformance tests/integration tests/test_*.py

# The commands in processes of their own, as users run them: signals, kills, terminals, the README and the tutorial.
acceptance: $(INSTALLED) $(NODE)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/acceptance tests/chaos tests/soak

# Sets $$python to an interpreter of $$version, if there is one. A shim of pyenv fails for versions that are not chosen.
find_python = python=; \
  for one in python$$version $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version.*/bin/python; do \
    if "$$one" -c "" 2>/dev/null; then python=$$one; fi; \
  done

# Both suites on every supported version of Python that this machine has, each in a venv of its own: .venv-3.12 and so on.
test-all:
	@for version in 3.11 3.12 3.13; do \
	  $(find_python); \
	  if [ -z "$$python" ]; then echo "Python $$version is not installed: skipped"; continue; fi; \
	  echo "Python $$version: $$python"; \
	  $(MAKE) test acceptance PYTHON=$$python VENV=.venv-$$version || exit 1; \
	done

# The unit tests on the newest supported Python of this machine: from 3.12 on, a task of a message begins at once.
test-newest:
	@for version in 3.13 3.12; do \
	  $(find_python); \
	  if [ -n "$$python" ]; then \
	    echo "unit tests with $$("$$python" --version)"; \
	    $(MAKE) unit PYTHON="$$python" VENV=.venv-newest; exit $$?; \
	  fi; \
	done; \
	echo "neither Python 3.12 nor 3.13 is installed: skipped"

unit: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/unit

# Builds the files of a release in dist/ and checks them: the same bytes twice, metadata, contents, the wheel in a clean
# venv, and the known vulnerabilities of its dependencies. It publishes nothing.
release: $(INSTALLED)
	$(BIN)/python -m tests.release

# The same for a commit that is not a release: without a section in the changelog, without a tag.
release-check: $(INSTALLED)
	$(BIN)/python -m tests.release --check

# Kills and disturbs processes and connections, three scenarios at a time. Takes about seven minutes, and writes
# docs/delivery-guarantees.md.
chaos: $(INSTALLED)
	$(BIN)/python -m tests.chaos

# Producers and services for an hour under random kills and faults; then every effect is counted. Writes docs/soak.md if
# it runs for an hour.
soak: $(INSTALLED)
	$(BIN)/python -m tests.soak --minutes $(SOAK_MINUTES)

# Random input, guided by coverage, for all code that reads external data. Takes about five minutes.
fuzz: $(INSTALLED)
	$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz

# Random changes of the source, 12 in each folder, that a test must notice. Takes an hour.
mutants: $(INSTALLED)
	$(BIN)/python -c 'import cosmic_ray, coverage' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[mutants]'
	$(BIN)/python -m tests.mutants

# Pins every package that the tests and tools need, with the hashes of its files, for Python 3.11 and newer. Needs uv.
lock:
	uv pip compile --quiet --upgrade --generate-hashes --universal --python-version 3.11 --extra dev --no-annotate \
	  --custom-compile-command 'make lock' --output-file requirements-dev.txt pyproject.toml

# docs/tutorial.md, block by block, in a venv into which pip installs the wheel and all packages of the page.
tutorial: $(INSTALLED)
	TUTORIAL_FROM_SCRATCH=1 $(BIN)/python -m pytest tests/acceptance/test_tutorial.py

# Writes the pages of docs/reference from the code, and adds new messages of errors to their index for you to describe.
reference: $(INSTALLED)
	$(BIN)/python -m tests.reference

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/topology.py
	$(BIN)/python -m benchmarks.outbox

# Compares smartpipe with similar libraries, each in its own venv in .venv-compare. Takes about seven minutes, and
# writes benchmarks/RESULTS.md.
compare: $(INSTALLED)
	$(BIN)/python -m benchmarks.compare
