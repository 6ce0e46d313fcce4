/*
 * jit_copy.h: what jit_copy.c, which copies instructions, lends to jit_insn.c, which knows those
 * that want more than that.
 */
#pragma once

#include "cpu/soft/jit_unit.h"

static inline bool jit_is_general(ZydisRegister reg)
{
    ZydisRegisterClass class = ZydisRegisterGetClass(reg);
    return class == ZYDIS_REGCLASS_GPR8 || class == ZYDIS_REGCLASS_GPR16 ||
           class == ZYDIS_REGCLASS_GPR32 || class == ZYDIS_REGCLASS_GPR64;
}

static inline bool jit_is_high_byte(ZydisRegister reg)
{
    return reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH;
}

static inline unsigned jit_guest_of(ZydisRegister reg)
{
    if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL)
        return (unsigned)(reg - ZYDIS_REGISTER_AL);
    if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B)
        return (unsigned)(reg - ZYDIS_REGISTER_SPL) + CPU_RSP;
    return (unsigned)ZydisRegisterGetId(
        ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg));
}

/* JIT_KIND_VECTOR wants vector registers in the host's; vector and x87 instructions may trap. */
enum jit_kind { JIT_KIND_NO, JIT_KIND_INTEGER, JIT_KIND_VECTOR, JIT_KIND_X87 };

struct jit_copy {
    const ZydisDecodedOperand *memory;
    struct jit_ea ea;
    /* The host register for each general register that is named, and where it lives. */
    struct {
        uint8_t guest, host;
        bool load, store;
    } general[4];
    unsigned general_count;
    uint8_t reg, rm, vvvv, opcode; /* host numbers by field, or JIT_NONE */
    bool rm_slot;                  /* the register of r/m is taken from v->gpr as it lies there */
    uint8_t rm_guest;
    uint8_t scratch[2];
    unsigned scratch_count, scratch_used;
    bool byte_registers;
    unsigned written; /* host registers, by bit */
};

#define JIT_COPY_EMPTY                                                                             \
    ((struct jit_copy){.reg = JIT_NONE, .rm = JIT_NONE, .vvvv = JIT_NONE, .opcode = JIT_NONE})

/* How it may be copied, as far as its kind goes; JIT_KIND_NO: not at all. */
enum jit_kind jit_kind_of(const struct jit *jit, const struct decoded *d);
bool jit_names_high_byte(const struct decoded *d);
/* The registers and the memory operand of instruction k. False: it cannot be copied. */
bool jit_copy_plan(const struct jit *jit, unsigned k, struct jit_copy *copy);
/* Alignment that the memory operand must have for a copy, in bytes; 1: any. */
unsigned jit_copy_alignment(const struct decoded *d, const struct jit_copy *copy,
                            enum jit_kind kind);
/* The instruction itself, its operands being where they belong. */
void jit_copy_put(struct jit_asm *a, const ZydisDecodedInstruction *zydis,
                  const struct jit_copy *copy, struct jit_rm memory);
/* Instruction k, whose accesses have been checked, is about to write these host registers. */
void jit_will_write(struct jit *jit, unsigned k, unsigned written);
/* All of it. False as jit_insn(). */
bool jit_copy_insn(struct jit *jit, unsigned k);
