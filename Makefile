# make setup    .venv with jfs in it, and all that the other targets need
# make demo     format a volume, mount it, use it, unmount it; leaves nothing behind
# make check    formatting, lint, types, layers
# make test     everything under tests/ (real mounts: root, or sudo)
# make bench    jfs, juicefs and rclone side by side; writes docs/benchmarks.md (about half an hour)
# make docs     docs/reference.md from the command line

.DEFAULT_GOAL := setup
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
# The distribution's own first: it is what operators have, and its builds are optimized by a profile, which many others
# are not (a sixth of a mount's user time).  Then the reference version; anything from 3.11 on works.
PYTHON ?= $(shell for python in /usr/bin/python3 python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo "$$python" && break; done)
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || echo sudo -E)

.PHONY: setup demo check test bench docs format clean

setup: $(VENV)/.stamp-jfs

$(VENV)/.stamp-packages: tools/system-packages
	tools/system-packages setup
	@mkdir -p $(VENV)
	@touch $@

# a recursive make, because PYTHON is looked for once the packages above are there
$(VENV)/.stamp-venv: $(VENV)/.stamp-packages
	@$(MAKE) $(VENV)/.stamp-python

.PHONY: $(VENV)/.stamp-python
$(VENV)/.stamp-python:
	@[ -n "$(PYTHON)" ] || { echo "no python >= 3.11 with venv was found" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $(VENV)/.stamp-venv

$(VENV)/.stamp-jfs: $(VENV)/.stamp-venv pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-jfs
	tools/system-packages test
	@touch $@

$(VENV)/.stamp-tikv: $(VENV)/.stamp-test tests/tikv/build.py tests/tikv/go.mod tests/tikv/go.sum $(wildcard tests/tikv/*.go)
	$(BIN)/python -m tests.tikv.build
	@touch $@

demo: setup
	@$(SUDO) $(BIN)/python tools/demo.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(VENV)/.stamp-tikv
	$(SUDO) $(BIN)/python -m pytest $(TESTS)

bench: $(VENV)/.stamp-tikv
	$(SUDO) $(BIN)/python -m bench $(BENCH)

docs: setup
	$(BIN)/python docs/generate_reference.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .cache build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
