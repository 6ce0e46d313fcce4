/*
 * generator.h: the generator from inside. Rooms:
 *
 *   forms.c      which instructions there are
 *   generate.c   registers and values; one instruction of a mnemonic, aimed and checked
 *   block.c      blocks: what a translator may get wrong between instructions
 */
#pragma once

#include "differential.h"

struct form {
    uint8_t prefix; /* 0, 66, F2, F3; for VEX the pp field */
    uint8_t map;    /* 0 one byte, 1 0F, 2 0F38, 3 0F3A */
    uint8_t opcode, reg;
    bool vex, w, l, lock;
};

struct forms {
    struct form *list;
    unsigned count, room;
};

struct generator {
    ZydisDecoder decoder;
    struct forms by_mnemonic[ZYDIS_MNEMONIC_MAX_VALUE + 1];
    ZydisMnemonic mnemonics[ZYDIS_MNEMONIC_MAX_VALUE + 1];
    unsigned mnemonic_count;
};

/* What ring 3 cannot run to a comparable end, or what answers differently by nature. */
bool form_left_out(const ZydisDecodedInstruction *insn);

/* Bits of form_write(): extensions of ModRM's registers, VEX.vvvv, whether an empty REX is there.
 */
enum { FORM_R = 1, FORM_X = 2, FORM_B = 4 };

/* Writes a form up to its opcode; returns where ModRM, or an immediate, belongs. */
unsigned form_write(const struct form *form, uint64_t bits, uint8_t *code);

/* A test in the making. */
struct maker {
    struct generator *generator;
    uint64_t random;
    struct test *test;
    /* Bits of general registers. A pinned one is an address or a counter that later instructions
     * rely on, so none may change it; a written one holds nobody knows what, so it can be no
     * address. */
    uint32_t pinned, written;

    /* Blocks only. */
    bool block;
    bool keep_stack; /* no PUSH and the like: there is a return address on the stack */
    bool keep_flags; /* nothing that leaves flags undefined */
    bool may_branch; /* the last instruction: it may go where it likes */
    unsigned bases[6], base_count; /* pinned registers that point into the window */
    int index;                     /* a pinned register with a small number, or -1 */
};

static inline uint64_t maker_random(struct maker *maker)
{
    return random_next(&maker->random);
}

/* An address in the window, its edges preferred. */
uint64_t window_address(uint64_t *random);

/* Appends one instruction; false when this try cannot be aimed or compared. */
bool maker_append(struct maker *maker, ZydisMnemonic mnemonic);

/* block.c: a block of about `insns` instructions behind the registers that are there; false where
 * too many tries failed. */
bool block_make(struct maker *maker, unsigned insns);
