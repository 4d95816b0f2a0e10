# The project's commands; `make help` lists them. Set-up goes into .venv, in the root.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test lint setup help clean
.DEFAULT_GOAL := help

demo: .venv/ready ## set up, then run every stage on the embedded model and build both data sets (no GPU, no Hub)
	$(BIN)/python -m generation run --config generation/configs/demo.yaml --run-dir runs/demo
	$(BIN)/python unicorn_1_2m.py --run-dir runs/demo --output unicorn-1.2m
	$(BIN)/python unicorn_471k_instruction.py --run-dir runs/demo --output unicorn-471k-instruction
	$(BIN)/python -m generation show --run-dir runs/demo
	@printf '\nThat record went through every stage. Type next:\n\n'
	@printf '  .venv/bin/python -i -c "from datasets import load_dataset"\n'
	@printf '  >>> load_dataset("unicorn-1.2m", split="train")[0]\n'
	@printf '  >>> load_dataset("unicorn-1.2m", "with_embeddings", split="train").with_format("numpy")[0]["image_embedding"]\n'
	@printf '  >>> load_dataset("unicorn-471k-instruction", split="train")[0]["conversations"]\n\n'

test: .venv/ready-to-test ## set up, then run the tests (no GPU, no Hub)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: .venv/ready-to-test ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/ready-to-test ## make .venv with everything

clean: ## remove .venv, the demo's run and its data sets
	rm -rf .venv runs/demo unicorn-1.2m unicorn-471k-instruction

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/ready: requirements.txt requirements-embedded.txt constraints.txt tools/install_torch.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version)'
	@echo "setting up .venv: some minutes, most of them downloads"
	$(PYTHON) -m venv .venv
	$(BIN)/python tools/install_torch.py
	$(PIP) -r requirements.txt -c constraints.txt
	$(PIP) --no-deps -r requirements-embedded.txt
	@touch $@

.venv/ready-to-test: .venv/ready requirements-dev.txt requirements-export.txt requirements-cluster.txt examples/requirements.txt
	$(PIP) -r requirements-dev.txt -c constraints.txt
	@touch $@
