# Set-up, build and the common jobs. Everything lands in this directory: .venv, build*, runs, models.
#   make demo [RUN_ID=x] [SEED=0]   trains the tiny model, from a fresh clone if need be
#   make test                       everything that CI runs, from a fresh clone if need be
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build bundle demo test bench asan fuzz fmt interop-setup configure

APT_PACKAGES := g++ make ccache nlohmann-json3-dev libcurl4-openssl-dev libpcre2-dev libssl-dev libgtest-dev \
                libbenchmark-dev libboost1.81-dev pkg-config python3-venv zlib1g-dev
CMAKE_VERSION := 4.1.2
NINJA_VERSION := 1.13.0
CLANG_FORMAT_VERSION := 14.0.6
PYARROW_VERSION := 26.0.1

VENV_READY := .venv/.ready-cmake-$(CMAKE_VERSION)-ninja-$(NINJA_VERSION)-pyarrow-$(PYARROW_VERSION)
INTEROP_READY := .venv-interop/.ready
CMAKE := .venv/bin/cmake
CTEST := .venv/bin/ctest
NINJA := .venv/bin/ninja
JOBS ?= $(shell nproc)

SEED ?= 0
RUN_ID ?= demo-seed$(SEED)

help:
	@echo "make setup    packages, .venv with cmake, ninja and Arrow (170 MB, for parquet)"
	@echo "make build    build/fathom"
	@echo "make bundle   fathom.tar.gz: the program with its libraries and recipes, for other machines"
	@echo "make demo     the tiny recipe, start to end: [RUN_ID=$(RUN_ID)] [SEED=$(SEED)]"
	@echo "make test     all tests; interop tests get their own .venv-interop"
	@echo "make asan     the C++ tests under address and undefined-behaviour sanitizers"
	@echo "make fuzz     the parsers under libFuzzer: [HARNESS=zip] [SECONDS=60]; needs clang"
	@echo "make bench    benchmarks"
	@echo "make fmt      clang-format on all sources"

setup: $(VENV_READY)

# Debian packages that are missing, then a virtual environment of our own.
$(VENV_READY):
	@if command -v dpkg-query >/dev/null; then \
	  missing=(); \
	  for p in $(APT_PACKAGES); do \
	    dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing+=($$p); \
	  done; \
	  if (( $${#missing[@]} )); then \
	    echo "installing $${missing[*]}"; \
	    sudo=; if [[ $$(id -u) != 0 ]]; then sudo=sudo; fi; \
	    $$sudo apt-get update -q; \
	    $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $${missing[*]}; \
	  fi; \
	else \
	  echo "no dpkg here: please see that the equivalents of these are installed: $(APT_PACKAGES)"; \
	fi
	rm -rf .venv
	python3 -m venv .venv
	.venv/bin/pip install -q --disable-pip-version-check cmake==$(CMAKE_VERSION) ninja==$(NINJA_VERSION) \
	  pyarrow==$(PYARROW_VERSION)
	touch $@

# Python packages that people use with our files; only tests need them.
interop-setup: $(INTEROP_READY)

$(INTEROP_READY): tests/interop/requirements.txt | $(VENV_READY)
	rm -rf .venv-interop
	python3 -m venv .venv-interop
	.venv-interop/bin/pip install -q --disable-pip-version-check -r tests/interop/requirements.txt
	touch $@

build/build.ninja: | $(VENV_READY)
	$(CMAKE) -S . -B build -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(NINJA)) -DCMAKE_BUILD_TYPE=Release -DFATHOM_BENCH=OFF

build: build/build.ninja
	$(NINJA) -C build -j $(JOBS) fathom

# Runs from any directory of any Linux with glibc 2.36 or later: tar xzf fathom.tar.gz && fathom/bin/fathom
bundle: build
	rm -rf build/bundle
	$(CMAKE) --install build --prefix build/bundle/fathom --strip >/dev/null
	tar -C build/bundle -czf build/fathom.tar.gz fathom
	@size=$$(stat -c %s build/fathom.tar.gz); echo "build/fathom.tar.gz: $$(( size >> 20 )) MiB"; \
	  if (( size >= 64 << 20 )); then echo "error: a bundle has to stay below 64 MiB" >&2; exit 1; fi

demo: build
	build/fathom full-train --config configs/tiny_cpu.json --run-id $(RUN_ID) --seed $(SEED) --rollout-seed $(SEED)

# The second configuration finds .venv-interop when the first came before it.
test: build/build.ninja $(INTEROP_READY)
	$(CMAKE) -S . -B build >/dev/null
	$(NINJA) -C build -j $(JOBS)
	$(CTEST) --test-dir build --output-on-failure -j $(JOBS)

bench: build/build.ninja
	$(CMAKE) -S . -B build -DFATHOM_BENCH=ON >/dev/null
	$(NINJA) -C build -j $(JOBS)
	for b in build/*_bench; do \
	  if [[ $$b == build/model_bench ]]; then $$b configs/tiny/model.json; else $$b; fi; \
	done

asan: $(VENV_READY)
	$(CMAKE) -S . -B build-asan -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(NINJA)) -DCMAKE_BUILD_TYPE=Release \
	  -DFATHOM_BENCH=OFF -DFATHOM_SANITIZE=address,undefined >/dev/null
	$(NINJA) -C build-asan -j $(JOBS)
	ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  $(CTEST) --test-dir build-asan --output-on-failure -j $(JOBS) -LE interop --timeout 900

# apt install clang-14 libclang-rt-14-dev, or a later one with CLANG=clang++-16.
CLANG ?= clang++-14
HARNESS ?= dcp_metadata hub model_config pickle safetensors shard_index tokenizer zip
FUZZ_SECONDS := $(if $(filter command line,$(origin SECONDS)),$(SECONDS),60)
fuzz: $(VENV_READY)
	$(CMAKE) -S . -B build-fuzz -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(NINJA)) -DCMAKE_BUILD_TYPE=Release \
	  -DCMAKE_CXX_COMPILER=$(CLANG) -DFATHOM_FUZZ=ON -DFATHOM_TESTS=OFF -DFATHOM_BENCH=OFF -DFATHOM_WERROR=OFF \
	  -DFATHOM_SANITIZE=address,undefined >/dev/null
	$(NINJA) -C build-fuzz -j $(JOBS) $(addsuffix _fuzz,$(HARNESS))
	for h in $(HARNESS); do \
	  mkdir -p build-fuzz/corpus/$$h; \
	  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 build-fuzz/$${h}_fuzz -max_total_time=$(FUZZ_SECONDS) \
	    -timeout=20 -print_final_stats=1 -artifact_prefix=build-fuzz/$${h}_ -dict=tests/fuzz/dict/$$h.dict \
	    build-fuzz/corpus/$$h tests/fuzz/corpus/$$h; \
	done

fmt: $(VENV_READY)
	.venv/bin/pip install -q --disable-pip-version-check clang-format==$(CLANG_FORMAT_VERSION)
	git ls-files '*.h' '*.cc' | xargs .venv/bin/clang-format -i
