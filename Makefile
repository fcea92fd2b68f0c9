# make demo    train a small Mamba on text this machine already has, then let it write
# make test    every test
# make test-gpu  the Triton kernels on this machine's GPU (make test runs them in Triton's interpreter)
# make check   format, lint, types, import contracts, tests: what every commit passes
# make wheel   a wheel in dist/ that works beside every PyTorch from 2.10 on
# On Linux, plain pip installs PyTorch with CUDA. Without a GPU the CPU build is smaller and enough:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell find src -name '*.[ch]pp')
# An editable install knows the Python files by name: it is renewed when one comes or goes.
FILES := $(shell mkdir -p build && find src -name '*.py' | sort > build/files.new && \
	{ cmp -s build/files.new build/files || cp build/files.new build/files; } && echo build/files)
# Threads that spin while others work make a test run on two busy cores ten times slower.
export GOMP_SPINCOUNT ?= 1000
RUN ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test test-gpu check format lint types imports wheel clean

demo: $(VENV)/installed
	$(BIN)/adder train --preset demo --output $(RUN)
	$(BIN)/adder generate $(RUN) "The " --max-tokens 600 --temperature 0.7 --seed 1
	@echo; echo "The run is in $(RUN), its loss curve in $(RUN)/loss.png. Write more: $(BIN)/adder generate $(RUN) PROMPT"

test: $(VENV)/developer
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest tests/layers tests/models -m "not compiles and not refuses" \
	  --jaxtyping-packages=adder.layers,adder.models.language_model,adder.models.classifier,beartype.beartype

test-gpu: $(VENV)/developer
	$(BIN)/python -c "import torch; assert torch.cuda.is_available(), 'there is no GPU here'"
	$(BIN)/python -m pytest tests/ops/test_*_gpu.py

check: lint types imports test

format: $(VENV)/developer
	$(BIN)/ruff format src tests benchmarks examples docs/figures docs/make_figures.py
	$(BIN)/ruff check --fix src tests benchmarks examples docs/figures docs/make_figures.py

lint: $(VENV)/developer
	$(BIN)/ruff format --check src tests benchmarks examples docs/figures docs/make_figures.py
	$(BIN)/ruff check src tests benchmarks examples docs/figures docs/make_figures.py
	@long=$$(git ls-files -co --exclude-standard src tests benchmarks examples 'docs/*.py' | xargs wc -l | awk '$$1 > 400 && $$2 != "total"'); \
	  test -z "$$long" || { echo "over 400 lines: $$long"; exit 1; }

types: $(VENV)/developer
	$(BIN)/mypy

imports: $(VENV)/developer
	$(BIN)/lint-imports

wheel: $(VENV)/developer
	$(PIP) wheel -q --no-deps -w dist .
	@ls -l dist/*.whl

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python $(SOURCES) $(FILES)
	$(PIP) install -q $(PIP_ARGS) -e '.[train]'
	@touch $@

$(VENV)/developer: $(VENV)/installed
	$(PIP) install -q $(PIP_ARGS) pytest ruff mypy import-linter beartype mpmath scipy control transformers accelerate peft lm_eval onnx onnxscript onnxruntime 'triton; platform_machine == "x86_64" and sys_platform == "linux"'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
