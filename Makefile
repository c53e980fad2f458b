# `make demo` and `make test` are all that a newcomer needs; each installs what it needs.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
DISTRIBUTIONS := libs/contracts libs/runtime services/agent services/catalog services/console \
	services/replica-store services/scheduler deploy/standalone
SOURCES := libs services deploy reader tests tools

.PHONY: help install demo test test-root soak machine check format bench lock clean

help:
	@echo "make demo       protect, change and restore a real folder with the embedded stack"
	@echo "make test       the tests that need no root"
	@echo "make test-root  the tests that need root"
	@echo "make soak       the long forms of the crash tests (prints its seed)"
	@echo "make machine    cuts the power of a virtual machine under a store (needs root)"
	@echo "make check      ruff, mypy, import-linter"
	@echo "make bench      timings, beside restic, borg and rsync where they are installed"
	@echo "make install    .venv with the command strandline"
	@echo "make lock       write requirements/ anew"

install: .venv/installed

.venv/installed: requirements/dev.txt $(addsuffix /pyproject.toml,$(DISTRIBUTIONS)) tools/install
	tools/install $(PYTHON) $(DISTRIBUTIONS)
	@touch $@

demo: install
	@tools/need rsync
	@$(BIN)/python deploy/demo/files.py

test: install
	@tools/need rsync setfacl:acl
	$(BIN)/pytest -m "not root and not soak"

test-root: install
	@tools/need rsync setfacl:acl strace ip:iproute2 mkfs.ext4:e2fsprogs losetup:mount setpriv:util-linux
	@test "$$(id -u)" = 0 || { echo "make test-root needs root: sudo make test-root" >&2; exit 1; }
	$(BIN)/pytest -m "root and not soak"

soak: install
	@tools/need rsync setfacl:acl strace
	$(BIN)/pytest -m soak -s

machine: install
	@tools/need qemu-system-x86_64:qemu-system-x86 busybox:busybox-static mkfs.ext4:e2fsprogs \
		losetup:mount ldd:libc-bin
	@test "$$(id -u)" = 0 || { echo "make machine needs root: sudo make machine" >&2; exit 1; }
	$(BIN)/python tests/machine/cut_off.py
	$(BIN)/python tests/machine/cut_off.py --cuts 3 --leave-out sync

check: install
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(addsuffix /src,$(DISTRIBUTIONS)) tests deploy/demo
	$(BIN)/lint-imports
	tools/tidy

format: install
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: install
	@tools/need rsync
	$(BIN)/python tests/bench/files.py

lock:
	tools/lock $(DISTRIBUTIONS)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
