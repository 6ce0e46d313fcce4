/*
 * jit_asm.h: host instructions into a buffer: the translator's lowest room.
 *
 * Registers are the numbers of the encoding (0 = RAX ... 15 = R15). An operand r/m is a register, or
 * memory at base + index * scale + disp with any part missing; with neither base nor index it is
 * the absolute address `disp`, which must then lie below 2 GiB. RSP is never a base or an index.
 * SDM vol. 2, chapter 2.
 *
 * The buffer belongs to its one user. Running out of space is remembered in `full`, and nothing is
 * written from then on: the caller asks once, at the end.
 */
#pragma once

#include "base/bytes.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum jit_reg {
    JIT_RAX,
    JIT_RCX,
    JIT_RDX,
    JIT_RBX,
    JIT_RSP,
    JIT_RBP,
    JIT_RSI,
    JIT_RDI,
    JIT_R8,
    JIT_R9,
    JIT_R10,
    JIT_R11,
    JIT_R12,
    JIT_R13,
    JIT_R14,
    JIT_R15,
    JIT_NONE = 0xff,
};

struct jit_rm {
    uint8_t reg; /* JIT_NONE: memory */
    uint8_t base, index;
    uint8_t scale; /* shift, 0..3 */
    int32_t disp;
};

struct jit_asm {
    uint8_t *start, *at, *end;
    uint64_t delta; /* address at which a byte is executed = where it is written + delta */
    bool full;
};

/* One instruction to be put together by asm_insn(). */
struct jit_op {
    uint8_t prefix[4]; /* legacy prefixes in order */
    uint8_t prefixes;
    bool wide;        /* REX.W */
    bool rex;         /* REX even without a bit set: byte registers 4..7 are low bytes */
    uint8_t map;      /* 0: one byte; 1: 0F; 2: 0F 38; 3: 0F 3A */
    uint8_t opcode;
    bool vex;         /* then `prefixes` is 0, and: */
    uint8_t vex_pp, vex_l, vex_v;
};

#define JIT_REG(number) ((struct jit_rm){.reg = (number), .base = JIT_NONE, .index = JIT_NONE})
#define JIT_MEM(base_, disp_)                                                                      \
    ((struct jit_rm){.reg = JIT_NONE, .base = (base_), .index = JIT_NONE, .disp = (disp_)})
#define JIT_ABS(address)                                                                           \
    ((struct jit_rm){                                                                              \
        .reg = JIT_NONE, .base = JIT_NONE, .index = JIT_NONE, .disp = (int32_t)(address)})

static inline void asm_byte(struct jit_asm *a, unsigned byte)
{
    if (a->at == a->end)
        a->full = true;
    else
        *a->at++ = (uint8_t)byte;
}

static inline void asm_bytes(struct jit_asm *a, const void *bytes, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        asm_byte(a, ((const uint8_t *)bytes)[i]);
}

static inline void asm_number(struct jit_asm *a, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        asm_byte(a, (uint8_t)(value >> 8 * i));
}

/* Where the next byte is executed. */
static inline uint32_t asm_here(const struct jit_asm *a)
{
    return (uint32_t)((uint64_t)(uintptr_t)a->at + a->delta);
}

/* Prefixes, REX or VEX, opcode, ModRM, SIB and displacement; the caller adds immediates. */
void asm_insn(struct jit_asm *a, const struct jit_op *op, unsigned reg, struct jit_rm rm);

/* op r, r/m with a one-byte opcode. `size` 4 or 8 (2 and 1 by their opcodes and prefixes). */
void asm_op(struct jit_asm *a, unsigned opcode, unsigned size, unsigned reg, struct jit_rm rm);
/* 0F opcode */
void asm_op_0f(struct jit_asm *a, unsigned opcode, unsigned size, unsigned reg, struct jit_rm rm);
/* The group of 81 and 83: `number` is that of the operation (0 add, 4 and, 5 sub, 7 cmp, ...). */
void asm_alu_imm(struct jit_asm *a, unsigned number, unsigned size, struct jit_rm rm,
                 int32_t value);
void asm_mov_imm(struct jit_asm *a, unsigned reg, uint64_t value);
static inline void asm_load(struct jit_asm *a, unsigned reg, struct jit_rm rm)
{
    asm_op(a, 0x8b, 8, reg, rm);
}
static inline void asm_store(struct jit_asm *a, unsigned reg, struct jit_rm rm)
{
    asm_op(a, 0x89, 8, reg, rm);
}
static inline void asm_lea(struct jit_asm *a, unsigned reg, struct jit_rm rm)
{
    asm_op(a, 0x8d, 8, reg, rm);
}

/* Branches with 32-bit displacements. Each returns where its displacement is executed, for
 * asm_patch(). Condition: the low four bits of the opcode. `to` 0: not known yet. */
uint32_t asm_jcc(struct jit_asm *a, unsigned condition, uint32_t to);
uint32_t asm_jmp(struct jit_asm *a, uint32_t to);
uint32_t asm_call(struct jit_asm *a, uint32_t to);
void asm_patch(struct jit_asm *a, uint32_t displacement, uint32_t to);

enum jit_condition { JIT_CC_E = 4, JIT_CC_NE = 5 };
