/*
 * differential.h: one instruction or a block of some, run on the host CPU and by an engine in each
 * of its ways, compared.
 *
 * A `struct test` is code, a register state, and a seed for the memory window. native.c runs it in
 * this machine's ring 3 inside a sacrificial process, where signals become exception records;
 * guest.c runs it in a guest's ring 3 through engine.h, where an interrupt table of HLTs does the
 * same. All use the same linear addresses, so results compare bit for bit.
 *
 * Addresses:   CODE_AT     two pages of INT3; the test is written somewhere in them
 *              WINDOW_AT   two pages read-write, then one read-only, then nothing; nothing before
 *
 * No two of these pages are neighbours in the guest's physical memory.
 */
#pragma once

#include "cpu/engine.h"

#include <Zydis/Zydis.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    CODE_AT = 0x10000000,
    WINDOW_AT = 0x10010000,
    WINDOW_WRITABLE = 8192,
    WINDOW_SIZE = 12288,
    CODE_SIZE = 8192,
    TEST_CODE_MAX = 320,
    TEST_INSNS_MAX = 16,
    LEGACY_SIZE = 512,
    VECTOR_NONE = 255,
};

struct registers {
    uint64_t gpr[16]; /* in encoding order: RAX RCX RDX RBX RSP ... */
    uint64_t rip, rflags;
    uint8_t legacy[LEGACY_SIZE]; /* FXSAVE64 image: x87, MXCSR, XMM */
    uint8_t upper[16][16];       /* upper halves of YMM */
};

struct test {
    uint8_t code[TEST_CODE_MAX];
    unsigned length, insns;
    unsigned end;  /* offset of the INT3 that is the good end */
    bool warm;     /* the guest has touched the window before, so its TLB knows the pages */
    unsigned runs; /* how often the guest runs it without writing the code anew */
    uint64_t memory_seed;
    uint32_t undefined_flags; /* RFLAGS bits nobody can promise after this test */
    uint32_t undefined_ever;  /* nor where it ended midway */
    bool any_byte_faults;     /* a masked store: which of its bytes faults is the model's choice */
    struct registers in;
    ZydisMnemonic mnemonic; /* of the last instruction, for the report */
};

struct outcome {
    struct registers out;
    uint32_t vector;       /* exception that ended it; 3 is the good end (INT3 after the test) */
    uint64_t instructions; /* that the engine counted; of the host 0 */
    uint32_t error;
    uint64_t cr2;
    uint8_t memory[WINDOW_WRITABLE];
};

/* Deterministic random numbers: a seed names a test for ever. */
static inline uint64_t random_next(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* generate.c */
struct generator;
struct generator *generator_new(const char *only_mnemonic);
void generator_make(struct generator *generator, uint64_t seed, unsigned insns, struct test *test);
void generator_free(struct generator *generator);
unsigned generator_mnemonics(const struct generator *generator);
void window_fill(uint64_t seed, uint8_t *memory, size_t size);

/* native.c: results for tests[0..count) in outcomes; a test that killed the process has vector
 * VECTOR_NONE. */
void native_run(const struct test *tests, unsigned count, struct outcome *outcomes);

/* guest.c: one machine. A test that takes seconds is stopped and has VECTOR_NONE. */
struct guest;
struct guest *guest_new(const struct engine_ops *engine, enum engine_translate translate,
                        uint64_t code_cache);
void guest_free(struct guest *guest);
/* Puts the test's code where it belongs. */
void guest_load(struct guest *guest, const struct test *test);
void guest_run(struct guest *guest, const struct test *test, struct outcome *outcome);

/* compare.c: how many differences there are, with a line for each when they are to be shown. The
 * names are what the lines call the two. */
struct compared {
    const char *name;
    const struct outcome *outcome;
};
unsigned outcomes_compare(const struct test *test, struct compared expected, struct compared ours,
                          bool show);
void test_show(const struct test *test);
