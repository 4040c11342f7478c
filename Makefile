.DEFAULT_GOAL := help
BIN := .venv/bin
MAKEFLAGS += --no-print-directory
# One more than processors, as tests wait for GDB and QEMU; within reason: each worker has a
# libvirtd and guests of its own.
WORKERS := $(shell n=$$(nproc); echo $$((n < 3 ? n + 1 : 4)))
PYTEST := $(BIN)/pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder
# What the tests start, hundreds of times, is compiled once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-matrix test-kernels test-guests scenarios bench lint share pyz dist deb collection clean

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
	@$(PYTEST) -m "not kernels and not scenarios and not guests$(if $(SLOW),, and not matrix)"

test-matrix: ## the slow tests: libvirt with debug info, and other releases of everything, cached
	@tools/setup.sh matrix
	@echo "test-matrix: pytest, the slow tests"
	@$(PYTEST) -m matrix

test-kernels: ## the kernel engine, and logs of crashes, in virtual machines with the kernels of Debian releases, cached
	@tools/setup.sh matrix
	@echo "test-kernels: pytest, the tests on other kernels"
	@$(PYTEST) -m kernels

scenarios: ## make each scenario of the explainers on all releases with both engines, and docs/scenarios.md of that; ONLY='-k agents': these alone
	@tools/setup.sh matrix
	@echo "scenarios: pytest, the tests that keep what they were answered"
	@mkdir -p out
	@rm -f out/scenarios.jsonl
	@VIRTRACE_SCENARIOS=$(CURDIR)/out/scenarios.jsonl $(PYTEST) -m "not kernels" \
		$(ONLY) $(shell grep -l assert_answers tests/lab/test_*.py)
	@$(BIN)/python tools/scenarios.py $(if $(ONLY),--beside) out/scenarios.jsonl

test-guests: ## guests with Linux that write, on QEMU 5.2 to 11.1, and how traces of them end; cached
	@tools/setup.sh matrix
	@echo "test-guests: pytest, the tests with guests"
	@$(PYTEST) -m guests

bench: ## measure, side by side in one run; a table, and JSON in out/bench/
	@tools/setup.sh matrix
	@$(BIN)/python -m bench.startup
	@$(BIN)/python -m bench.large
	@$(BIN)/python -m bench.recipes
	@$(BIN)/python -m bench.page
	@$(BIN)/python -m bench.bundle
	@$(BIN)/python -m bench.fleet
	@$(BIN)/python -m bench.hosts
	@$(BIN)/python -m bench.snapshot
	@$(BIN)/python -m bench.cost
	@$(BIN)/python -m bench.guest

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

dist: ## build the wheel and the source distribution in dist/, and check them
	@tools/setup.sh test
	@$(BIN)/python tools/dist.py dist

collection: pyz ## build the Ansible collection, with virtrace.pyz in it, to dist/; needs ansible-galaxy
	@$(BIN)/python tools/collection.py dist/virtrace.pyz dist

SUITE := trixie

deb: ## build the Debian package of a release in its root, check it by lintian, and put it in dist/SUITE; SUITE=sid: of sid
	@tools/setup.sh matrix
	@$(BIN)/python tools/deb.py $(SUITE) dist/$(SUITE)

clean: ## remove .venv, out/ and all caches in this checkout
	rm -rf .venv out dist .mypy_cache .pytest_cache .ruff_cache
	find src tests gdb_scripts -name __pycache__ -type d -prune -exec rm -rf {} +
