# Two commands set everything up: `make demo` and `make test`. Both build .venv from pinned versions.
# pip's default torch for Linux carries CUDA, gigabytes of it. Without a GPU, say where pip finds CPU
# builds (PyTorch's own site names the index): make demo TORCH_ARGS="--index-url ..."

PYTHON ?= python3
TORCH_ARGS ?=
BIN := .venv/bin
FLA := triton==3.7.1 flash-linear-attention==0.6.0 fla-core==0.6.0 einops==0.8.2
# Where this is set, as in many containers, every process would compile torch from source anew: 5 s each.
export PYTHONDONTWRITEBYTECODE =
PIP := PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install -qq --no-compile

.PHONY: demo test test-fast lint format clean

demo: .venv/base
	$(BIN)/python sweeps/run.py -m experiment=demo
	$(BIN)/python -m analysis report sweep=demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=10

test-fast: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .cache build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "PYTHON=$(PYTHON) is older than 3.11; give one that is not: make demo PYTHON=python3.12"; exit 2; }
	@echo "installing into .venv (about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# torch first and by its exact version: a range would fetch the newest CUDA build.
	@$(PIP) torch==2.13.0 $(TORCH_ARGS)
	@$(PIP) -e .
	@touch $@

.venv/dev: .venv/base
	@echo "installing the development tools into .venv"
	@$(PIP) -e '.[dev]'
	@# Beside the environment, not in it: for the tests that run fla's kernels interpreted on a CPU.
	@$(PIP) --no-deps --upgrade --target .venv/fla $(FLA)
	@touch $@
