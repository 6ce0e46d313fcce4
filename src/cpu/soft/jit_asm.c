#include "cpu/soft/jit_asm.h"

static void put_rm(struct jit_asm *a, unsigned reg, struct jit_rm rm)
{
    unsigned middle = (reg & 7) << 3;
    if (rm.reg != JIT_NONE) {
        asm_byte(a, 0xc0 | middle | (rm.reg & 7));
        return;
    }
    if (rm.base == JIT_NONE) { /* [disp32] and [index * scale + disp32] both need a SIB */
        asm_byte(a, middle | 4);
        asm_byte(a, (unsigned)rm.scale << 6 | (rm.index == JIT_NONE ? 4u : rm.index & 7u) << 3 | 5);
        asm_number(a, (uint32_t)rm.disp, 4);
        return;
    }
    unsigned mod = rm.disp == 0 && (rm.base & 7) != 5    ? 0
                   : rm.disp >= -128 && rm.disp <= 127 ? 1
                                                       : 2;
    if (rm.index == JIT_NONE && (rm.base & 7) != 4) {
        asm_byte(a, mod << 6 | middle | (rm.base & 7));
    } else {
        asm_byte(a, mod << 6 | middle | 4);
        asm_byte(a, (unsigned)rm.scale << 6 | (rm.index == JIT_NONE ? 4u : rm.index & 7u) << 3 |
                        (rm.base & 7));
    }
    if (mod)
        asm_number(a, (uint32_t)rm.disp, mod == 1 ? 1 : 4);
}

static bool extended(unsigned reg)
{
    return reg != JIT_NONE && reg >= 8;
}

void asm_insn(struct jit_asm *a, const struct jit_op *op, unsigned reg, struct jit_rm rm)
{
    unsigned rex = (unsigned)extended(reg) << 2 |
                   (rm.reg != JIT_NONE ? extended(rm.reg)
                                       : (unsigned)extended(rm.index) << 1 | extended(rm.base));
    if (op->vex) {
        asm_byte(a, 0xc4);
        asm_byte(a, (~rex & 7) << 5 | op->map);
        asm_byte(a, (op->wide ? 0x80u : 0) | (~(unsigned)op->vex_v & 15) << 3 | op->vex_l << 2 |
                        op->vex_pp);
    } else {
        asm_bytes(a, op->prefix, op->prefixes);
        if (rex || op->wide || op->rex)
            asm_byte(a, 0x40 | (op->wide ? 8u : 0) | rex);
        if (op->map)
            asm_byte(a, 0x0f);
        if (op->map >= 2)
            asm_byte(a, op->map == 2 ? 0x38 : 0x3a);
    }
    asm_byte(a, op->opcode);
    put_rm(a, reg, rm);
}

void asm_op(struct jit_asm *a, unsigned opcode, unsigned size, unsigned reg, struct jit_rm rm)
{
    asm_insn(a, &(struct jit_op){.wide = size == 8, .opcode = (uint8_t)opcode}, reg, rm);
}

void asm_op_0f(struct jit_asm *a, unsigned opcode, unsigned size, unsigned reg, struct jit_rm rm)
{
    asm_insn(a, &(struct jit_op){.wide = size == 8, .map = 1, .opcode = (uint8_t)opcode}, reg, rm);
}

void asm_alu_imm(struct jit_asm *a, unsigned number, unsigned size, struct jit_rm rm, int32_t value)
{
    bool small = value >= -128 && value <= 127;
    asm_op(a, small ? 0x83 : 0x81, size, number, rm);
    asm_number(a, (uint32_t)value, small ? 1 : 4);
}

void asm_mov_imm(struct jit_asm *a, unsigned reg, uint64_t value)
{
    bool small = value <= UINT32_MAX;
    if (!small || reg >= 8)
        asm_byte(a, 0x40 | (small ? 0 : 8u) | (reg >= 8));
    asm_byte(a, 0xb8 | (reg & 7));
    asm_number(a, value, small ? 4 : 8);
}

static uint32_t put_displacement(struct jit_asm *a, uint32_t to)
{
    uint32_t at = asm_here(a);
    asm_number(a, to ? to - (at + 4) : 0, 4);
    return at;
}

uint32_t asm_jcc(struct jit_asm *a, unsigned condition, uint32_t to)
{
    asm_byte(a, 0x0f);
    asm_byte(a, 0x80 | condition);
    return put_displacement(a, to);
}

uint32_t asm_jmp(struct jit_asm *a, uint32_t to)
{
    asm_byte(a, 0xe9);
    return put_displacement(a, to);
}

uint32_t asm_call(struct jit_asm *a, uint32_t to)
{
    asm_byte(a, 0xe8);
    return put_displacement(a, to);
}

void asm_patch(struct jit_asm *a, uint32_t displacement, uint32_t to)
{
    if (a->full)
        return;
    uint32_t value = to - (displacement + 4);
    memcpy((uint8_t *)(uintptr_t)((uint64_t)displacement - a->delta), &value, sizeof value);
}
