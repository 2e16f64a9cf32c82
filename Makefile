# make quickstart    the whole loop on the embedded base, then its report     ARGS="--seed 1"
# make test          the tests, two files at a time                            ARGS="-k runs"
# make smoke         the quick ones, in under a minute
# make check         lint, format, types
# make prove         the long proofs, written to docs/proof/
# make prove-real    the next part of the proof on SmolLM2   SEED=0 PART=ppo
# make clean         remove the environment and the caches; runs/ stays

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)
# Chat templates as they are published, for the tests; the wheel is read, never installed, since the
# benchmarks need an older TRL.
TEMPLATES := trl==1.16.0
SOURCES := $(wildcard alpaca_rlhf recipes tests benchmarks app.py)

SMOKE := house records prompts config losses win_rate runs docs guides

.PHONY: quickstart test smoke check prove prove-real clean

quickstart: $(VENV)/.installed
	@$(BIN)/alpaca-rlhf quickstart $(ARGS)

test: $(VENV)/.installed-dev
	@ALPACA_RLHF_TRL_WHEEL=$$(ls $(VENV)/wheels/trl-*.whl 2>/dev/null) \
		$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		--reruns 2 --only-rerun "TimeoutError: (Locator|Page)" $(ARGS)

smoke: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -q $(SMOKE:%=tests/test_%.py) $(ARGS)

check: $(VENV)/.installed-dev
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy --strict alpaca_rlhf recipes

prove: $(VENV)/.installed-dev
	@$(PIP) -e '.[prove]'
	@ALPACA_RLHF_TRL_WHEEL=$$(ls $(VENV)/wheels/trl-*.whl 2>/dev/null) \
		$(BIN)/python -m tests.prove $(ARGS)

prove-real: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.prove_real --seed $(or $(SEED),0) $(if $(PART),--part $(PART)) $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -not -path './.git/*' -exec rm -rf {} +

# torch goes first and alone: the pin takes the build that suits the machine, where a range given
# together with the rest could choose another.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.11")'
	@echo "[1/3] virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/3] $(TORCH) (a large download, this once)"
	@$(PIP) $(TORCH)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@echo "[3/3] alpaca-rlhf and its libraries"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "[dev] tools for tests and checks"
	@$(PIP) -e '.[dev]'
	@$(BIN)/python -m pip download -q --no-deps --disable-pip-version-check -d $(VENV)/wheels $(TEMPLATES) || \
		echo "warning: $(TEMPLATES) could not be downloaded; the tests with its templates are skipped"
	@touch $@
