.DEFAULT_GOAL := help
BIN := .venv/bin
MAKEFLAGS += --no-print-directory
# One more than processors, as tests wait for GDB and QEMU; within reason: each worker has a
# libvirtd and guests of its own.
WORKERS := $(shell n=$$(nproc); echo $$((n < 3 ? n + 1 : 4)))
PYTEST := $(BIN)/pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder
# What the tests start, hundreds of times, is compiled once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-matrix test-kernels bench lint share pyz clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is needed: Debian packages (if allowed to), and virtrace in .venv
	@tools/setup.sh demo

demo: ## set up, then trace virsh domblkinfo on a private libvirtd; the trace goes to out/
	@tools/demo.sh

test: ## set up, then lint, types and all tests but the slow ones; SLOW=1: these, too
	@$(if $(SLOW),tools/setup.sh matrix)
	@$(MAKE) lint
	@echo "test: pytest, all$(if $(SLOW),, but the slow) tests"
	@$(PYTEST) -m "not kernels$(if $(SLOW),, and not matrix)"

test-matrix: ## the slow tests: libvirt with debug info, and other releases of everything, cached
	@tools/setup.sh matrix
	@echo "test-matrix: pytest, the slow tests"
	@$(PYTEST) -m matrix

test-kernels: ## the kernel engine, and logs of crashes, in virtual machines with the kernels of Debian releases, cached
	@tools/setup.sh matrix
	@echo "test-kernels: pytest, the tests on other kernels"
	@$(PYTEST) -m kernels

bench: ## measure, side by side in one run; a table, and JSON in out/bench/
	@tools/setup.sh test
	@$(BIN)/python -m bench.startup
	@$(BIN)/python -m bench.large
	@$(BIN)/python -m bench.page
	@$(BIN)/python -m bench.bundle
	@$(BIN)/python -m bench.snapshot
	@$(BIN)/python -m bench.cost

lint: ## ruff and mypy
	@tools/setup.sh test
	@echo "lint: ruff check, ruff format --check, mypy --strict"
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

share: ## make the man page and the shells' completions again, after a change of the options
	@tools/setup.sh test
	@$(BIN)/python tools/share.py

pyz: ## build dist/virtrace.pyz: virtrace in one file, for hosts where nothing may be installed
	@tools/setup.sh test
	@mkdir -p dist
	@$(BIN)/python tools/pyz.py dist/virtrace.pyz

clean: ## remove .venv, out/ and all caches in this checkout
	rm -rf .venv out dist .mypy_cache .pytest_cache .ruff_cache
	find src tests gdb_scripts -name __pycache__ -type d -prune -exec rm -rf {} +
