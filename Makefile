# One virtual environment, .venv, serves every target but parity and test-integrations. It is built from
# constraints.txt (exact versions) when first needed, and again only when pyproject.toml or
# constraints.txt change. The peers that parity compares with want old versions of their own, and so
# have .venv-parity; the tokenizers of pretrained models are compared with a newer transformers, in
# .venv-parity-newer. The programs that streamlm plugs into are large, and so have .venv-integrations.

PYTHON ?= python3
ARGS ?=
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# A test that hangs tells where all threads are, and fails.
PYTEST := -m pytest -q -o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true
PARITY := .venv-parity
PARITY_STAMP := $(PARITY)/.installed
NEWER := .venv-parity-newer
NEWER_STAMP := $(NEWER)/.installed
INTEGRATIONS := .venv-integrations
PROCESSES := tests/jobs tests/training/test_ranks.py tests/training/test_compiled.py tests/deploy tests/soak
INTEGRATIONS_STAMP := $(INTEGRATIONS)/.installed

# Tests start some hundred processes, which would each compile the project anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help .venv .venv-parity .venv-integrations quickstart demo test test-benchmarks test-processes test-rounding test-browser test-integrations soak parity lint format bench clean FORCE

help: ## List the targets
	@awk -F ':.*## ' '/^[.a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' Makefile

.venv: $(STAMP) ## Create .venv and install streamlm into it (PYTHON=python3.12 to choose)

# An environment whose interpreter does not start is rebuilt, however new its stamp is.
ifneq ($(shell $(RUN) -c 'print("runs")' 2>/dev/null),runs)
$(STAMP): FORCE
endif

$(STAMP): pyproject.toml constraints.txt
	@$(RUN) -m pip --version >/dev/null 2>&1 || { \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	        { echo "streamlm needs Python 3.11 or newer: make PYTHON=/path/to/python3"; exit 1; }; \
	    echo "==> Creating $(VENV)"; \
	    rm -rf $(VENV); \
	    $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; }
	@echo "==> Installing streamlm and its dependencies (a few minutes the first time)"
	@# pip would compile on one core. Left to importing, it would be done by every process anew where
	@# PYTHONDONTWRITEBYTECODE is set. Some packages hold templates, which are no Python: no harm.
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt \
	    -e '.[dev]'
	@$(RUN) -m compileall -q -j 0 $(VENV)/lib >/dev/null || true
	@touch $@

quickstart: $(STAMP) ## Run the README's quick start, on a CPU
	@$(RUN) -m streamlm.quickstart $(ARGS)

test: $(STAMP) ## Run the test suite (ARGS="-m 'not slow'" passes options to pytest)
	@$(RUN) $(PYTEST) -n auto --dist loadfile -m 'not browser' --ignore tests/benchmarks \
	    $(PROCESSES:%=--ignore %) tests/ integrations/ $(ARGS)

test-benchmarks: $(STAMP) ## Run the tests of the benchmark commands, in small
	@$(RUN) $(PYTEST) tests/benchmarks $(ARGS)

test-processes: $(STAMP) ## Run the tests of many processes: feed-all, torchrun, compilers, Ray, the soak in small
	@$(RUN) $(PYTEST) $(PROCESSES) $(ARGS)

# What depends on the last bits of products. Processors round differently; a test must not care. Of the
# invariants, which take long, those whose promise is to the bit.
ROUNDING := tests/models tests/memory tests/runtime tests/sessions/test_resume.py \
    -k '(not test_invariants or resume or purity) and not kill_9'

test-rounding: $(STAMP) ## Run the numerical tests as other processors would round
	@echo "==> every product rounds by its shape"
	@$(RUN) $(PYTEST) -n auto --dist loadfile -p tests.support.shape_rounding $(ROUNDING) $(ARGS)
	@echo "==> kernels without SIMD, two threads"
	@ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE STREAMLM_TEST_THREADS=2 $(RUN) $(PYTEST) \
	    tests/runtime/test_stream.py tests/models/test_cache.py tests/sessions/test_resume.py \
	    -k 'not kill_9' $(ARGS)

test-browser: $(STAMP) ## Visit the demo with a Chromium, where there is one
	@$(RUN) $(PYTEST) -m browser tests/ $(ARGS)

.venv-parity: $(PARITY_STAMP)

$(PARITY_STAMP): parity-requirements.txt
	@echo "==> Creating $(PARITY) with the implementations to compare with (a minute or two)"
	@rm -rf $(PARITY)
	@$(PYTHON) -m venv $(PARITY)
	@$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
	    --only-binary :all: -r parity-requirements.txt
	@touch $@

$(NEWER_STAMP): parity-newer-requirements.txt constraints.txt
	@echo "==> Creating $(NEWER) with a newer transformers to compare with (a minute or two)"
	@rm -rf $(NEWER)
	@$(PYTHON) -m venv $(NEWER)
	@$(NEWER)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
	    --only-binary :all: -r parity-newer-requirements.txt
	@touch $@

.venv-integrations: $(INTEGRATIONS_STAMP)

$(INTEGRATIONS_STAMP): integrations/requirements.txt pyproject.toml constraints.txt
	@echo "==> Creating $(INTEGRATIONS) with the programs that streamlm plugs into (a minute or two)"
	@rm -rf $(INTEGRATIONS)
	@$(PYTHON) -m venv $(INTEGRATIONS)
	@$(INTEGRATIONS)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
	    -c constraints.txt -r integrations/requirements.txt hypothesis openai pytest \
	    -e '.[pretrained,server]' -e integrations/llm-streamlm -e integrations/lm-eval-streamlm
	@touch $@

test-integrations: $(INTEGRATIONS_STAMP) ## Test the plugins and other programs: llm, lm_eval, LangChain
	@$(INTEGRATIONS)/bin/python $(PYTEST) integrations/ tests/server/test_docs.py \
	    tests/training/test_tensorboard.py $(ARGS)

soak: $(STAMP) ## Kill, race, damage and forge sessions, send rubbish and requests (ARGS="--kills 100")
	@$(RUN) -m tests.soak $(ARGS)

parity: $(PARITY_STAMP) $(NEWER_STAMP) ## Compare with other implementations: tensors, token ids
	@STREAMLM_PARITY=1 $(PARITY)/bin/python $(PYTEST) -p no:cacheprovider \
	    --confcutdir=tests/parity --ignore=tests/parity/newer tests/parity $(ARGS)
	@STREAMLM_PARITY=1 $(NEWER)/bin/python $(PYTEST) -p no:cacheprovider \
	    --confcutdir=tests/parity tests/parity/newer $(ARGS)

demo: $(STAMP) ## Open the demo in a browser (ARGS="--port 8000 --mcp" passes options)
	@$(RUN) -m streamlm demo --open $(ARGS)

lint: $(STAMP) ## Check style and types
	@echo "==> ruff check" && $(RUN) -m ruff check .
	@echo "==> ruff format --check" && $(RUN) -m ruff format --check .
	@echo "==> mypy" && $(RUN) -m mypy

format: $(STAMP) ## Rewrite the code in the project's style
	@$(RUN) -m ruff check --fix-only --quiet .
	@$(RUN) -m ruff format .

bench: ## List the benchmark commands, one per figure of docs/benchmarks.md
	@for file in benchmarks/[a-z]*.py; do \
	    [ -e "$$file" ] || continue; \
	    name=$${file##*/}; echo "  $(RUN) -m benchmarks.$${name%.py}"; \
	done

clean: ## Remove caches and build products; environments, data, runs and sessions stay
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . \( -path ./$(VENV) -o -path ./$(PARITY) -o -path ./$(NEWER) -o -path ./$(INTEGRATIONS) -o -path ./.git \) -prune -o -type d -name __pycache__ -exec rm -rf {} +

FORCE:
