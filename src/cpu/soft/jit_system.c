/*
 * Privileged instructions that a kernel executes all the time. Their handlers are op_flags.c and
 * op_system.c; each does the same for the case that has no consequences, and leaves the others to
 * them.
 */
#include "cpu/soft/jit_unit.h"

/* STAC and CLAC: another TLB for what follows. */
bool jit_smap(struct jit *jit, unsigned k)
{
    struct jit_asm *a = &jit->a;
    bool open = jit->decoded[k].zydis.mnemonic == ZYDIS_MNEMONIC_STAC;
    if (jit->half)
        return false;
    jit_flags_lose(jit);
    asm_op(a, 0x81, 4, open ? 1 : 4, JIT_V(jit, rflags));
    asm_number(a, open ? RFLAG_AC : ~(uint32_t)RFLAG_AC, 4);
    asm_op(a, 0xc7, 8, 0, JIT_V(jit, tlb));
    asm_number(a,
               JIT_FIELD(jit->v, tlbs) +
                   (open ? TLB_SUPERVISOR_AC : TLB_SUPERVISOR) * (uint32_t)sizeof jit->v->tlbs[0],
               4);
    return true;
}

bool jit_cli(struct jit *jit, unsigned k)
{
    (void)k;
    if (jit->half)
        return false;
    jit_flags_lose(jit);
    asm_op(&jit->a, 0x81, 4, 4, JIT_V(jit, rflags));
    asm_number(&jit->a, ~(uint32_t)RFLAG_IF, 4);
    return true;
}

bool jit_cld(struct jit *jit, unsigned k)
{
    (void)k;
    jit_flags_lose(jit);
    asm_op(&jit->a, 0x81, 4, 4, JIT_V(jit, rflags));
    asm_number(&jit->a, ~(uint32_t)RFLAG_DF, 4);
    return true;
}

/* Where an interrupt waits for it, the handler. */
bool jit_sti(struct jit *jit, unsigned k)
{
    struct jit_asm *a = &jit->a;
    if (jit->decoded[k].zydis.mnemonic != ZYDIS_MNEMONIC_STI || jit->half)
        return false;
    jit_flags_lose(jit);
    asm_op(a, 0x80, 4, 7, JIT_V(jit, system.interrupt_waiting));
    asm_byte(a, 0);
    jit_slow_new(jit, k, 0)->jump = asm_jcc(a, JIT_CC_NE, 0);
    /* test byte: IF is bit 1 of the second byte */
    asm_op(a, 0xf6, 4, 0, JIT_ABS(JIT_FIELD(jit->v, rflags) + 1));
    asm_byte(a, RFLAG_IF >> 8);
    uint32_t set = asm_jcc(a, JIT_CC_NE, 0);
    asm_op(a, 0x80, 4, 1, JIT_ABS(JIT_FIELD(jit->v, rflags) + 1));
    asm_byte(a, RFLAG_IF >> 8);
    asm_op(a, 0xc6, 4, 0, JIT_V(jit, shadow));
    asm_byte(a, 1);
    asm_load(a, JIT_RAX, JIT_V(jit, instructions));
    asm_store(a, JIT_RAX, JIT_V(jit, shadow_at));
    asm_op(a, 0xc6, 4, 0, JIT_V(jit, system.shadow_passed));
    asm_byte(a, 0);
    asm_patch(a, set, asm_here(a));
    return true;
}

bool jit_pushf(struct jit *jit, unsigned k)
{
    static const struct jit_ea top = {
        .base = CPU_RSP, .index = JIT_NONE, .seg = JIT_NONE, .disp = -8};
    struct jit_asm *a = &jit->a;
    if (jit->decoded[k].zydis.operand_width != 64)
        return false;
    jit_flags_need_saved(jit);
    jit->flags.host = false;
    /* flags_to_rflags() */
    asm_op_0f(a, 0xb7, 4, JIT_RAX, JIT_V(jit, flags));
    asm_op(a, 0x8b, 4, JIT_T, JIT_REG(JIT_RAX));
    asm_op(a, 0xc1, 4, 5, JIT_REG(JIT_RAX));
    asm_byte(a, 8);
    asm_alu_imm(a, 4, 4, JIT_REG(JIT_RAX), 0xd5);
    asm_alu_imm(a, 4, 4, JIT_REG(JIT_T), SOFT_OF);
    asm_op(a, 0xc1, 4, 4, JIT_REG(JIT_T));
    asm_byte(a, 11);
    asm_op(a, 0x0b, 4, JIT_RAX, JIT_REG(JIT_T));
    asm_op(a, 0x0b, 8, JIT_RAX, JIT_V(jit, rflags));
    asm_alu_imm(a, 1, 4, JIT_REG(JIT_RAX), RFLAG_ONE);
    asm_alu_imm(a, 4, 4, JIT_REG(JIT_RAX), ~(RFLAG_VM | RFLAG_RF));
    asm_store(a, JIT_RAX, JIT_V(jit, jit_state.target));
    struct jit_rm rm = jit_access(jit, k, &top, 8, true, 1);
    asm_load(a, JIT_RAX, JIT_V(jit, jit_state.target));
    asm_store(a, JIT_RAX, rm);
    jit_flags_wrote(jit, JIT_R15);
    asm_lea(a, JIT_R15, JIT_MEM(JIT_R15, -8));
    return true;
}

bool jit_swapgs(struct jit *jit, unsigned k)
{
    struct jit_asm *a = &jit->a;
    (void)k;
    if (jit->half)
        return false;
    asm_load(a, JIT_RAX, JIT_V(jit, segment[CPU_GS].base));
    asm_load(a, JIT_T, JIT_V(jit, msr[CPU_MSR_KERNEL_GS_BASE]));
    asm_store(a, JIT_T, JIT_V(jit, segment[CPU_GS].base));
    asm_store(a, JIT_T, JIT_V(jit, ea_base[CPU_GS]));
    asm_store(a, JIT_RAX, JIT_V(jit, msr[CPU_MSR_KERNEL_GS_BASE]));
    return true;
}
