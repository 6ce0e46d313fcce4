/* IRET in all modes: SDM vol. 2, IRET; vol. 3, 6.12.1, 6.14.3 and 6.7.1 (NMI). */
#include "cpu/soft/block.h"
#include "cpu/soft/system.h"

struct frame {
    uint64_t rip, rflags, rsp;
    uint16_t cs, ss;
};

static void unblock_nmi(struct soft_vcpu *v)
{
    v->nmi_blocked = false;
    if (atomic_load(&v->signals) & 1)
        atomic_fetch_or(&v->attention, ATTENTION_SIGNAL);
}

/* RF matters only to instruction breakpoints; without any it would stay set for ever, since only
 * single steps clear it. */
static uint64_t flags_mask(const struct soft_vcpu *v, unsigned size)
{
    uint64_t mask = flags_writable(v, size);
    if (size > 2)
        mask |= RFLAG_RF;
    return mask;
}

static void flags_return(struct soft_vcpu *v, uint64_t mask, uint64_t value)
{
    if (!debug_armed(v))
        value &= ~(uint64_t)RFLAG_RF;
    flags_change(v, mask, value);
}

static void iret_real(struct soft_vcpu *v, const struct insn *insn)
{
    if (v->mode & MODE_VM86 && (v->rflags & RFLAG_IOPL) != RFLAG_IOPL)
        soft_raise_error(v, insn, VECTOR_GP, 0);
    struct stack stack = stack_current(v, insn->size);
    uint64_t rip = stack_pop(v, insn, &stack);
    uint16_t cs = (uint16_t)stack_pop(v, insn, &stack);
    uint64_t rflags = stack_pop(v, insn, &stack);
    if (rip > v->segment[CPU_CS].limit)
        soft_raise_error(v, insn, VECTOR_GP, 0);
    uint64_t mask = flags_mask(v, insn->size);
    stack_commit(v, &stack);
    segment_load_real(v, CPU_CS, cs);
    v->gpr[SOFT_RIP] = rip;
    soft_mode_update(v);
    flags_return(v, mask, rflags);
}

/* SDM vol. 3, 20.2.4: six more words lie on the stack. */
static void iret_to_vm86(struct soft_vcpu *v, const struct insn *insn, struct stack *stack,
                         const struct frame *frame)
{
    static const uint8_t order[] = {CPU_SS, CPU_ES, CPU_DS, CPU_FS, CPU_GS};
    uint16_t selectors[CPU_SEG_MAX] = {0};
    uint64_t rsp = stack_pop(v, insn, stack);
    for (unsigned i = 0; i < sizeof order; i++)
        selectors[order[i]] = (uint16_t)stack_pop(v, insn, stack);
    selectors[CPU_CS] = frame->cs;
    if (frame->rip > 0xffff)
        soft_raise_error(v, insn, VECTOR_GP, 0);
    uint64_t all = RFLAG_ARITHMETIC | RFLAG_TF | RFLAG_IF | RFLAG_DF | RFLAG_IOPL | RFLAG_NT |
                   RFLAG_RF | RFLAG_VM | RFLAG_AC | RFLAG_VIF | RFLAG_VIP | RFLAG_ID;
    v->rflags |= RFLAG_VM;
    for (unsigned seg = 0; seg < CPU_SEG_MAX; seg++)
        segment_load_real(v, seg, selectors[seg]);
    v->gpr[CPU_RSP] = (uint32_t)rsp;
    v->gpr[SOFT_RIP] = frame->rip;
    flags_return(v, all, frame->rflags);
    soft_mode_update(v);
}

static void commit_stack(struct soft_vcpu *v, const struct insn *insn, const struct frame *frame,
                         const struct descriptor *code, const struct cpu_segment *ss)
{
    v->segment[CPU_SS] = *ss;
    if (insn->size == 8 || (v->efer & EFER_LMA && code->high & DESC_L)) {
        v->gpr[CPU_RSP] = frame->rsp;
    } else if (ss->attributes & CPU_SEG_DB) {
        v->gpr[CPU_RSP] = (uint32_t)frame->rsp;
    } else {
        v->gpr[CPU_RSP] = (v->gpr[CPU_RSP] & ~UINT64_C(0xffff)) | (frame->rsp & 0xffff);
    }
}

static void iret_protected(struct soft_vcpu *v, const struct insn *insn)
{
    struct stack stack = stack_current(v, insn->size);
    struct frame frame = {0};
    frame.rip = stack_pop(v, insn, &stack);
    frame.cs = (uint16_t)stack_pop(v, insn, &stack);
    frame.rflags = stack_pop(v, insn, &stack);
    unsigned before = vcpu_cpl(v), cpl = frame.cs & 3u;
    if (insn->size == 4 && !(v->efer & EFER_LMA) && frame.rflags & RFLAG_VM && before == 0) {
        iret_to_vm86(v, insn, &stack, &frame);
        return;
    }
    struct descriptor code;
    segment_return_code(v, insn, frame.cs, &code);
    bool pops_stack = v->mode & MODE_64 || cpl > before;
    struct cpu_segment ss;
    if (pops_stack) {
        frame.rsp = stack_pop(v, insn, &stack);
        frame.ss = (uint16_t)stack_pop(v, insn, &stack);
        segment_return_stack(v, insn, frame.ss, &code, cpl, &ss);
    }
    segment_check_target(v, insn, &code, frame.rip, 0);
    descriptor_touch(v, insn, &code);
    uint64_t mask = flags_mask(v, insn->size);
    if (pops_stack)
        commit_stack(v, insn, &frame, &code, &ss);
    else
        stack_commit(v, &stack);
    segment_set_code(v, &code, cpl);
    v->gpr[SOFT_RIP] = frame.rip;
    if (cpl > before)
        segment_drop_inner(v, cpl);
    soft_mode_update(v);
    flags_return(v, mask, frame.rflags);
}

static void op_iret(struct soft_vcpu *v, const struct insn *insn)
{
    /* Even an IRET that faults unblocks NMIs, SDM vol. 3, 6.7.1. */
    unblock_nmi(v);
    if (!protected_mode(v->mode)) {
        iret_real(v, insn);
    } else if (v->rflags & RFLAG_NT) {
        if (v->efer & EFER_LMA)
            soft_raise_error(v, insn, VECTOR_GP, 0);
        uint16_t link = (uint16_t)soft_system_load(v, insn, v->task.base, 2);
        task_switch(v, insn, link, TASK_RETURN, insn_next(v, insn), NULL);
    } else {
        iret_protected(v, insn);
    }
    LEAVE;
}

void iret_bind(struct decoder *decoder)
{
    if (decoder->insn->flags & INSN_LOCK)
        return;
    decoder->insn->size = (uint8_t)decoder->arg;
    decoder->insn->run = op_iret;
    decoder->ends_block = true;
}
