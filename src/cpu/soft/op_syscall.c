/*
 * SYSCALL, SYSRET, SYSENTER, SYSEXIT: SDM vol. 2 and vol. 3, 5.8.7; APM vol. 2, 6.1.
 *
 * The vendors differ: outside 64-bit mode Intel has no SYSCALL and in long mode AMD has no
 * SYSENTER; a SYSRET to a non-canonical RCX faults at CPL 0 on Intel, at CPL 3 on AMD. Segments get
 * fixed attributes without a look at the descriptors.
 */
#include "cpu/soft/block.h"
#include "cpu/soft/system.h"

enum {
    STAR_CALL_SHIFT = 32,
    STAR_RETURN_SHIFT = 48,
    SYSRET_FLAGS = 0x3c7fd7, /* all but RF and VM */
    WIDE = 1,                /* REX.W */
};

/* After the privilege and the flags have changed. A pending step goes with the new TF. */
static void entered(struct soft_vcpu *v)
{
    if (!(v->rflags & RFLAG_TF))
        v->system.step_armed = false;
    soft_mode_update(v);
    event_flags_changed(v);
}

static void need_syscall(struct soft_vcpu *v, const struct insn *insn)
{
    if (!(v->efer & EFER_SCE) || !protected_mode(v->mode) ||
        (!v->system.amd && !(v->mode & MODE_64)))
        soft_raise(v, insn, VECTOR_UD);
}

static void op_syscall(struct soft_vcpu *v, const struct insn *insn)
{
    need_syscall(v, insn);
    uint64_t star = v->msr[CPU_MSR_STAR];
    uint16_t cs = (uint16_t)(star >> STAR_CALL_SHIFT) & 0xfffc;
    bool wide = v->efer & EFER_LMA;
    uint64_t next = insn_next(v, insn);
    uint64_t rflags = flags_to_rflags(v) & ~(uint64_t)RFLAG_RF;
    if (wide) {
        v->gpr[SOFT_RIP] = v->mode & MODE_64 ? v->msr[CPU_MSR_LSTAR] : v->msr[CPU_MSR_CSTAR];
        v->gpr[CPU_RCX] = v->mode & MODE_64 ? next : (uint32_t)next;
        v->gpr[CPU_R11] = rflags;
        flags_from_rflags(v, rflags & ~v->msr[CPU_MSR_SYSCALL_MASK]);
    } else {
        v->gpr[CPU_RCX] = (uint32_t)next;
        v->gpr[SOFT_RIP] = (uint32_t)star;
        flags_from_rflags(v, rflags & ~(uint64_t)(RFLAG_IF | RFLAG_VM));
    }
    segment_set_flat(v, CPU_CS, cs, 0, wide);
    segment_set_flat(v, CPU_SS, (uint16_t)(cs + 8), 0, false);
    entered(v);
    return block_jump(v);
}

static void op_sysret(struct soft_vcpu *v, const struct insn *insn)
{
    need_syscall(v, insn);
    need_cpl0(v, insn);
    bool wide = insn->aux & WIDE;
    uint64_t rip = wide ? v->gpr[CPU_RCX] : (uint32_t)v->gpr[CPU_RCX];
    if (wide && !v->system.amd && !canonical(rip))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    uint16_t selector = (uint16_t)(v->msr[CPU_MSR_STAR] >> STAR_RETURN_SHIFT);
    if (v->efer & EFER_LMA)
        flags_from_rflags(v, v->gpr[CPU_R11] & SYSRET_FLAGS);
    else
        v->rflags |= RFLAG_IF;
    v->gpr[SOFT_RIP] = rip;
    segment_set_flat(v, CPU_CS, (uint16_t)((selector + (wide ? 16 : 0)) | 3), 3, wide);
    segment_set_flat(v, CPU_SS, (uint16_t)((selector + 8) | 3), 3, false);
    soft_mode_update(v);
    event_flags_changed(v);
    return block_jump(v);
}

/* The selector base of SYSENTER and SYSEXIT, after their common checks. */
static uint16_t sysenter_selector(struct soft_vcpu *v, const struct insn *insn)
{
    if (v->system.amd && v->efer & EFER_LMA)
        soft_raise(v, insn, VECTOR_UD);
    uint16_t selector = (uint16_t)v->msr[CPU_MSR_SYSENTER_CS] & 0xfffc;
    if (!(v->mode & MODE_PROTECTED) || selector == 0)
        soft_raise_error(v, insn, VECTOR_GP, 0);
    return selector;
}

static void op_sysenter(struct soft_vcpu *v, const struct insn *insn)
{
    uint16_t selector = sysenter_selector(v, insn);
    bool wide = v->efer & EFER_LMA;
    v->rflags &= ~(uint64_t)(RFLAG_VM | RFLAG_IF | RFLAG_RF);
    uint64_t rip = v->msr[CPU_MSR_SYSENTER_EIP], rsp = v->msr[CPU_MSR_SYSENTER_ESP];
    v->gpr[SOFT_RIP] = wide ? rip : (uint32_t)rip;
    v->gpr[CPU_RSP] = wide ? rsp : (uint32_t)rsp;
    segment_set_flat(v, CPU_CS, selector, 0, wide);
    segment_set_flat(v, CPU_SS, (uint16_t)(selector + 8), 0, false);
    entered(v);
}

static void op_sysexit(struct soft_vcpu *v, const struct insn *insn)
{
    uint16_t selector = sysenter_selector(v, insn);
    need_cpl0(v, insn);
    bool wide = insn->aux & WIDE;
    uint64_t rip = v->gpr[CPU_RDX], rsp = v->gpr[CPU_RCX];
    if (wide && (!canonical(rip) || !canonical(rsp)))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    v->gpr[SOFT_RIP] = wide ? rip : (uint32_t)rip;
    v->gpr[CPU_RSP] = wide ? rsp : (uint32_t)rsp;
    segment_set_flat(v, CPU_CS, (uint16_t)((selector + (wide ? 32 : 16)) | 3), 3, wide);
    segment_set_flat(v, CPU_SS, (uint16_t)((selector + (wide ? 40 : 24)) | 3), 3, false);
    soft_mode_update(v);
}

void syscall_bind(struct decoder *decoder)
{
    static insn_run *const handlers[] = {[SYSCALL_CALL] = op_syscall,
                                         [SYSCALL_RETURN] = op_sysret,
                                         [SYSCALL_ENTER] = op_sysenter,
                                         [SYSCALL_EXIT] = op_sysexit};
    struct insn *insn = decoder->insn;
    if (insn->flags & INSN_LOCK)
        return;
    insn->aux = decoder->mode & MODE_64 && decoder->zydis->attributes & ZYDIS_ATTRIB_HAS_REX &&
                        decoder->zydis->raw.rex.W
                    ? WIDE
                    : 0;
    insn->run = handlers[decoder->arg];
    decoder->ends_block = true;
}
