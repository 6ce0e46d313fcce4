# A thin door to Meson and Ninja.
#
#   make          build everything; the programs are then in build/bin/
#   make run      the main job: a virtual machine with a shell (Ctrl-] q leaves)
#   make test     every test, plain and under sanitizers; the last line is "N passed, N failed"
#   make torture  the long tests          make fuzz   the fuzzers, FUZZ_SECONDS each
#   make bench    beside QEMU TCG, in one run          make format  lay out the C files
#   make bench-engine   the engine row by row: native, QEMU TCG and ours, in one run
#   make kvm-check      the KVM engine without a /dev/kvm: under QEMU's emulation of AMD SVM
#   make install  honours DESTDIR and PREFIX           make fresh-check  proves tools/deps complete
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 600
BUILD := build

.PHONY: all run test torture fuzz bench bench-engine kvm-check install format fresh-check deps clean

all: deps
	@tools/build $(BUILD)

deps:
	@tools/install-deps build run test

run: all
	@tools/run $(BUILD)

test: deps
	@tools/test

torture: deps
	@tools/install-deps torture
	@tools/test --torture

fuzz: deps
	@tools/fuzz --seconds $(FUZZ_SECONDS)

bench: all
	@tools/install-deps bench qemu
	@bench/run $(BUILD)

bench-engine: all
	@tools/install-deps bench qemu
	@bench/engine $(BUILD)

kvm-check: deps
	@tools/install-deps qemu
	@tools/build $(BUILD)
	@tools/kvm-check --build $(BUILD)

install:
	@tools/build $(BUILD) --prefix $(PREFIX)
	@DESTDIR="$(DESTDIR)" meson install -C $(BUILD) --no-rebuild --quiet

format:
	@tools/format

fresh-check:
	@tools/install-deps run
	@tools/fresh-check

clean:
	rm -rf build build-san build-fuzz
