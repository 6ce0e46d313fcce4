/* PUSHF, POPF, CLI, STI, STAC, CLAC: SDM vol. 2; who may change IF and IOPL: vol. 1, 3.4.3. */
#include "cpu/soft/block.h"
#include "cpu/soft/system.h"

uint64_t flags_writable(const struct soft_vcpu *v, unsigned size)
{
    uint64_t mask = RFLAG_ARITHMETIC | RFLAG_TF | RFLAG_DF | RFLAG_NT;
    unsigned cpl = vcpu_cpl(v), iopl = (unsigned)(v->rflags >> 12) & 3;
    if (cpl <= iopl)
        mask |= RFLAG_IF;
    if (cpl == 0)
        mask |= RFLAG_IOPL;
    if (size > 2)
        mask |= RFLAG_AC | RFLAG_ID;
    return mask;
}

bool flags_change(struct soft_vcpu *v, uint64_t mask, uint64_t value)
{
    uint64_t before = v->rflags;
    flags_from_rflags(v, (flags_to_rflags(v) & ~mask) | (value & mask));
    uint64_t changed = before ^ v->rflags;
    uint32_t mode = v->mode;
    if (changed & (RFLAG_AC | RFLAG_VM))
        soft_mode_update(v);
    if (changed & (RFLAG_IF | RFLAG_TF))
        event_flags_changed(v);
    return mode != v->mode || (v->rflags | before) & RFLAG_TF;
}

/* Virtual-8086 mode without VME: these need IOPL 3. */
static void need_iopl(struct soft_vcpu *v, const struct insn *insn)
{
    if (v->mode & MODE_VM86 && (v->rflags & RFLAG_IOPL) != RFLAG_IOPL)
        soft_raise_error(v, insn, VECTOR_GP, 0);
}

static void op_pushf(struct soft_vcpu *v, const struct insn *insn)
{
    need_iopl(v, insn);
    struct stack stack = stack_current(v, insn->size);
    stack_push(v, insn, &stack, flags_to_rflags(v) & ~(uint64_t)(RFLAG_VM | RFLAG_RF));
    stack_commit(v, &stack);
    NEXT(v, insn);
}

static void op_popf(struct soft_vcpu *v, const struct insn *insn)
{
    need_iopl(v, insn);
    struct stack stack = stack_current(v, insn->size);
    uint64_t value = stack_pop(v, insn, &stack);
    stack_commit(v, &stack);
    uint64_t mask = flags_writable(v, insn->size);
    if (insn->size > 2)
        mask |= RFLAG_RF, value &= ~(uint64_t)RFLAG_RF;
    /* An interrupt that waited for IF gets in here; behind the block IF may be clear again. */
    if (flags_change(v, mask, value) || block_attention(v))
        return insn_leave(v, insn);
    NEXT(v, insn);
}

static void need_if(struct soft_vcpu *v, const struct insn *insn)
{
    if (vcpu_cpl(v) > (unsigned)((v->rflags >> 12) & 3))
        soft_raise_error(v, insn, VECTOR_GP, 0);
}

static void op_cli(struct soft_vcpu *v, const struct insn *insn)
{
    need_if(v, insn);
    v->rflags &= ~(uint64_t)RFLAG_IF;
    NEXT(v, insn);
}

static void op_sti(struct soft_vcpu *v, const struct insn *insn)
{
    need_if(v, insn);
    if (!(v->rflags & RFLAG_IF)) {
        v->rflags |= RFLAG_IF;
        v->shadow = 1;
        v->shadow_at = v->instructions; /* STI is the last of its block */
        v->system.shadow_passed = false;
        event_flags_changed(v);
    }
    NEXT(v, insn);
}

static void op_ac(struct soft_vcpu *v, const struct insn *insn)
{
    if (vcpu_cpl(v) != 0)
        soft_raise(v, insn, VECTOR_UD);
    v->rflags = (v->rflags & ~(uint64_t)RFLAG_AC) | (insn->imm ? RFLAG_AC : 0);
    soft_tlb_select(v);
    NEXT(v, insn);
}

void flags_bind(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    if (insn->flags & INSN_LOCK)
        return;
    switch ((enum flags_op)(decoder->arg & 0xff)) {
    case FLAGS_PUSH: insn->run = op_pushf; break;
    case FLAGS_POP: insn->run = op_popf; break;
    case FLAGS_CLI: insn->run = op_cli; return;
    case FLAGS_STI:
        insn->run = op_sti;
        decoder->alone = true; /* what waits gets in after one more instruction, not one block */
        return;
    case FLAGS_STAC: insn->imm = 1; /* fall through */
    case FLAGS_CLAC: insn->run = op_ac; return;
    }
    insn->size = (uint8_t)(decoder->arg >> 8);
}
