/*
 * differential.h: one instruction (or a few), run on the host CPU and by an engine, compared.
 *
 * A `struct test` is code, a register state, and a seed for the memory window. native.c runs it in
 * this machine's ring 3 inside a sacrificial process, where signals become exception records;
 * guest.c runs it in a guest's ring 3 through engine.h, where an interrupt table of HLTs does the
 * same. Both use the same linear addresses, so results compare bit for bit.
 *
 * Addresses:   CODE_AT     one page of INT3; the test is written somewhere in it
 *              WINDOW_AT   two pages read-write, then one read-only, then nothing; nothing before
 */
#pragma once

#include <Zydis/Zydis.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    CODE_AT = 0x10000000,
    WINDOW_AT = 0x10010000,
    WINDOW_WRITABLE = 8192,
    WINDOW_SIZE = 12288,
    TEST_CODE_MAX = 64,
    TEST_INSNS_MAX = 6,
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
    uint64_t memory_seed;
    uint32_t undefined_flags; /* RFLAGS bits nobody can promise after this test */
    uint32_t undefined_ever;  /* nor where an exception ended it midway */
    struct registers in;
    ZydisMnemonic mnemonic; /* of the last instruction, for the report */
};

struct outcome {
    struct registers out;
    uint32_t vector; /* exception that ended it; 3 is the good end (INT3 after the test) */
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

/* guest.c */
struct guest;
struct guest *guest_new(const char *engine);
void guest_free(struct guest *guest);
void guest_run(struct guest *guest, const struct test *test, struct outcome *outcome);
