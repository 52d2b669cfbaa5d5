# Python 3.11+, git and make are all that must be there: every target prepares .venv by itself.

VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed
CODE  := $(wildcard src tests benchmarks examples)

# flag NAME,VALUE: nothing where VALUE is empty, so that the program's own default holds.
flag = $(if $(2),--$(1) '$(2)')

.DEFAULT_GOAL := help
.PHONY: help setup test lint format demo crash bench simulate soak clean

help: ## Show this list
	@echo 'make <target> [NAME=value ...]'
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  \1@\2/p' $(MAKEFILE_LIST) | \
	while IFS=@ read -r target text; do printf '%-9s %s\n' "$$target" "$$text"; done

setup: $(STAMP) ## Create .venv and install everything into it; quick when nothing changed

# Two runs, since chaos needs the cores for itself; peers only where asked for. 5: the selection in ARGS has none of these.
test: lint ## Lint, then run the whole suite  [ARGS='-k plan']
	$(PY) -m pytest --numprocesses=auto --dist=loadfile -m 'not alone and not peers' $(ARGS) || [ $$? -eq 5 ]
	$(PY) -m pytest -m alone $(ARGS) || [ $$? -eq 5 ]

lint: $(STAMP) ## Style, formatting, types and the direction of imports
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m mypy --strict $(CODE)
	$(PY) -m pytest -q tests/test_layout.py

format: $(STAMP) ## Format the code and fix what ruff can fix
	$(PY) -m ruff check --fix $(CODE)
	$(PY) -m ruff format $(CODE)

demo: $(STAMP) ## Kill consumers, lose nothing, repeat nothing  [BROKER=mock|kafka SEED=]
	$(VENV)/bin/effectonce demo $(call flag,broker,$(BROKER)) $(call flag,seed,$(SEED))

crash: $(STAMP) ## The proof on Apache Kafka  [MODE= STORE= DRIVER= ASSIGNOR= SEED=]
	$(PY) -m benchmarks.crash $(call flag,mode,$(MODE)) $(call flag,store,$(STORE)) \
	  $(call flag,driver,$(DRIVER)) $(call flag,assignor,$(ASSIGNOR)) $(call flag,seed,$(SEED))

bench: $(STAMP) ## Speed, latency, memory; out/bench.html  [QUICK=1 ONLY= WARM_UP= SEED=]
	$(PY) -m benchmarks.bench $(if $(QUICK),--quick) $(call flag,only,$(ONLY)) \
	  $(call flag,warm-up,$(WARM_UP)) $(call flag,seed,$(SEED))

simulate: $(STAMP) ## A simulated cluster, every fault, every mutant  [SEEDS= SEED= MODE= STORE=]
	$(VENV)/bin/effectonce simulate --seeds '$(or $(SEEDS),1000)' $(call flag,seed,$(SEED)) \
	  $(call flag,mode,$(MODE)) $(call flag,store,$(STORE))

soak: $(STAMP) ## Simulate until stopped, or hold records for an hour  [SEED= MODE= STORE= | HELD=3600]
	$(if $(HELD),$(PY) -m benchmarks.held $(HELD),$(VENV)/bin/effectonce simulate --seeds 0 \
	  $(call flag,seed,$(SEED)) $(call flag,mode,$(MODE)) $(call flag,store,$(STORE)))

clean: ## Remove caches, builds and out/ (keeps .venv)
	rm -rf build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(CODE) -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamp names the folder it was made in: an editable install points there, so a copied or moved
# checkout would test another folder's code. It is also remade when the venv's Python is gone.
ifneq ($(shell test -x $(PY) && cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

NEW_ENOUGH := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHONS    := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)

$(STAMP): pyproject.toml setup.py src/effectonce/_native.c
	@if ! $(PY) -c '$(NEW_ENOUGH)' 2>/dev/null; then found=; \
	  for python in $(PYTHONS); do \
	    if "$$python" -c '$(NEW_ENOUGH)' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'effectonce needs Python 3.11 or newer, with its venv and ensurepip modules.' >&2; \
	    echo 'Tried: $(PYTHONS).' >&2; \
	    echo 'Install one (Debian, Ubuntu: apt install python3-venv) or name it:' >&2; \
	    echo '  make setup PYTHON=/path/to/python3.12' >&2; \
	    exit 1; \
	  fi; \
	  echo "Creating $(VENV) with $$("$$found" -V)"; \
	  "$$found" -m venv --clear $(VENV); \
	fi
	@echo 'Installing effectonce and what its tests need into $(VENV): a minute or two the first time'
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@printf '%s\n' '$(CURDIR)' > $@
