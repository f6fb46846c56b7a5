# Every target first makes .venv from the lock, once; a second call does no set-up.
#   make demo        a prompt rewritten, drawn, judged, mended; the page is out/demo/index.html
#   make test        check, then the tests
#   make check       ruff, pyright, import rules, the links and commands of the docs
#   make docs        the documentation as pages: out/docs/index.html
#   make settings    docs/settings.md, from the code
# and the long ones: evaluate, bench, weights, properties, audit, test-long, faults (docs/reliability.md).

SHELL  := bash
PYTHON ?= python3
BIN    := .venv/bin
# Test processes, one thread each; a file's tests stay together. More need memory: a ComfyUI each.
JOBS   ?= 2
READY  := .venv/.ready

# Small models on a busy machine: OpenMP's spinning threads cost far more than they bring.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_DISABLE_TELEMETRY ?= 1

.PHONY: demo test check docs settings evaluate bench weights test-long faults properties audit clean

demo: $(READY)
	$(BIN)/reprise render "three red circles" "a photo of a blue star left of a green heart" \
	  --best-of 8 --reflect 2 --seed 7 --out out/demo

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_docs.py

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: check
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

test-long: $(READY)
	$(BIN)/python -m pytest -q -m long

# Every long command with everything that can go wrong meanwhile; prints a table.
faults: $(READY)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup -m "faults or not faults" tests/faults

# Many and new examples for the parsers; `make test` tries few, and always the same ones.
properties: $(READY)
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -q tests/properties

# Known weaknesses of the locked dependencies. Not in `make check`: it asks a service on the internet.
audit:
	@[ -x .audit/bin/pip-audit ] || { $(PYTHON) -m venv .audit && .audit/bin/python -m pip install --quiet pip-audit; }
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	if .audit/bin/pip-audit --strict --vulnerability-service osv --no-deps --disable-pip \
	  --requirement requirements-dev.lock >"$$log" 2>&1; then cat "$$log"; \
	elif grep -q "ConnectionError" "$$log"; then echo "audit skipped: api.osv.dev cannot be reached from here"; \
	else cat "$$log"; exit 1; fi

settings: $(READY)
	$(BIN)/python -m reprise.backend.cli.settings_page

evaluate: $(READY)
	$(BIN)/reprise evaluate shapeworld --out out/evaluate-shapeworld

bench: $(READY)
	$(BIN)/reprise lab bench parm --out out/bench-parm

weights: $(READY)
	$(BIN)/reprise lab weights build

# uv where it is there, else pip. uv does not read pip's find-links by itself, so it is passed on.
# setuptools comes with the lock: the editable install needs no build environment of its own.
$(READY): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make needs Python 3.11: make PYTHON=python3.11")'
	@if command -v uv >/dev/null && uv --version >/dev/null 2>&1; then \
	  set -e; \
	  [ -x $(BIN)/python ] || uv venv --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv; \
	  install="uv pip install --quiet --compile-bytecode --python $(BIN)/python"; \
	  $$install $(foreach link,$(PIP_FIND_LINKS),--find-links $(link)) -r requirements-dev.lock; \
	else \
	  set -e; \
	  [ -x $(BIN)/python ] || $(PYTHON) -m venv .venv; \
	  install="$(BIN)/python -m pip install --quiet"; \
	  $$install -r requirements-dev.lock; \
	fi; \
	$$install --no-deps --no-build-isolation --editable .
	@touch $(READY)

clean:
	rm -rf .hypothesis .pytest_cache .ruff_cache .import_linter_cache build *.egg-info
