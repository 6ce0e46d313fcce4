/*
 * op_stack.h: the stack outside the hot 64-bit forms: any stack width, any operand size.
 *
 * The stack pointer has 64, 32 or 16 bits by mode, and wraps there; outside 64-bit mode the stack
 * is reached through SS and its limit. Nothing here changes RSP: a handler computes where it will
 * be, does its accesses, and then calls stack_pointer_set().
 */
#pragma once

#include "cpu/soft/insn.h"

static inline uint64_t stack_mask(const struct soft_vcpu *v)
{
    return v->mode & MODE_64 ? UINT64_MAX : v->mode & MODE_STACK32 ? UINT32_MAX : UINT16_MAX;
}

static inline uint64_t stack_linear(struct soft_vcpu *v, const struct insn *insn, uint64_t offset,
                                    unsigned size, bool write)
{
    if (v->mode & MODE_64)
        return offset;
    offset &= stack_mask(v);
    if (v->mode & MODE_SEGCHECK)
        soft_segment_check(v, insn, CPU_SS, offset, size, write);
    return (uint32_t)(offset + v->ea_base[CPU_SS]);
}

static inline void stack_pointer_set(struct soft_vcpu *v, uint64_t sp)
{
    uint64_t mask = stack_mask(v);
    if (mask == UINT16_MAX)
        REG16(v, CPU_RSP * 8) = (uint16_t)sp;
    else
        v->gpr[CPU_RSP] = sp & mask;
}

/* `size` 2, 4 or 8. */
static inline void stack_store(struct soft_vcpu *v, const struct insn *insn, uint64_t offset,
                               unsigned size, uint64_t value)
{
    uint64_t linear = stack_linear(v, insn, offset, size, true);
    switch (size) {
    case 2: store_16(v, insn, linear, CPU_SS, (uint16_t)value); break;
    case 4: store_32(v, insn, linear, CPU_SS, (uint32_t)value); break;
    default: store_64(v, insn, linear, CPU_SS, value); break;
    }
}

static inline uint64_t stack_load(struct soft_vcpu *v, const struct insn *insn, uint64_t offset,
                                  unsigned size)
{
    uint64_t linear = stack_linear(v, insn, offset, size, false);
    switch (size) {
    case 2: return load_16(v, insn, linear, CPU_SS);
    case 4: return load_32(v, insn, linear, CPU_SS);
    default: return load_64(v, insn, linear, CPU_SS);
    }
}
