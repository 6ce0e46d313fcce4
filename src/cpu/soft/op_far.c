/*
 * Far transfers, software interrupts and segment registers: SDM vol. 3, 5.8; vol. 2, JMP, CALL,
 * RET, INT, MOV, LDS.
 *
 * In long mode only 64-bit call gates exist (16 bytes) and inner stacks have a null SS. The
 * destination's checks all come before the first push commits, see stack.c.
 */
#include "cpu/soft/block.h"
#include "cpu/soft/system.h"

struct far_target {
    uint16_t selector;
    uint64_t offset;
};

/* ---- code segments ---- */

/* A code segment for a transfer that keeps CPL: present, and of the right privilege. `rpl` 0 when
 * it came through a gate, where RPL does not count. */
static void check_code(struct soft_vcpu *v, const struct insn *insn, const struct descriptor *d,
                       unsigned rpl)
{
    uint32_t error = d->selector & 0xfffcu;
    unsigned cpl = vcpu_cpl(v), dpl = descriptor_dpl(d);
    bool conforming = d->high & DESC_DOWN;
    if (!descriptor_is_code(d) || (conforming ? dpl > cpl : rpl > cpl || dpl != cpl))
        soft_raise_error(v, insn, VECTOR_GP, error);
    if (v->efer & EFER_LMA && (d->high & (DESC_L | DESC_DB)) == (DESC_L | DESC_DB))
        soft_raise_error(v, insn, VECTOR_GP, error);
    if (!(d->high & DESC_P))
        soft_raise_error(v, insn, VECTOR_NP, error);
}

static void jump_to(struct soft_vcpu *v, const struct insn *insn, struct descriptor *d,
                    uint64_t offset)
{
    unsigned cpl = vcpu_cpl(v);
    segment_set_code(v, d, cpl);
    v->gpr[SOFT_RIP] = offset;
    soft_mode_update(v);
}

static void real_jump(struct soft_vcpu *v, const struct insn *insn, struct far_target to)
{
    segment_load_real(v, CPU_CS, to.selector);
    v->gpr[SOFT_RIP] = to.offset;
    soft_mode_update(v);
}

static bool real_addressing(const struct soft_vcpu *v)
{
    return !protected_mode(v->mode);
}

static void real_check(struct soft_vcpu *v, const struct insn *insn, struct far_target to)
{
    if (to.offset > v->segment[CPU_CS].limit)
        soft_raise_error(v, insn, VECTOR_GP, 0);
}

/* ---- gates ---- */

struct call_gate {
    uint16_t selector;
    uint64_t offset;
    unsigned width; /* of what is pushed */
    unsigned parameters;
};

/* Types other than code: call gates come back to the caller, the rest ends here. */
static void open_gate(struct soft_vcpu *v, const struct insn *insn, struct descriptor *d,
                      enum task_cause cause, struct call_gate *ret_gate)
{
    uint32_t error = d->selector & 0xfffcu;
    unsigned type = descriptor_type(d), dpl = descriptor_dpl(d);
    bool wide = v->efer & EFER_LMA;
    bool call = type == SYSTEM_CALL || (!wide && type == SYSTEM_CALL16);
    bool task = !wide && (type == SYSTEM_TASK_GATE || type == SYSTEM_TSS || type == SYSTEM_TSS16);
    if (d->high & DESC_S || !(call || task) || dpl < vcpu_cpl(v) || dpl < (d->selector & 3u))
        soft_raise_error(v, insn, VECTOR_GP, error);
    if (!(d->high & DESC_P))
        soft_raise_error(v, insn, VECTOR_NP, error);
    if (task) {
        uint16_t selector = type == SYSTEM_TASK_GATE ? (uint16_t)(d->low >> 16) : d->selector;
        task_switch(v, insn, selector, cause, insn_next(v, insn), NULL);
        soft_unwind(v);
    }
    *ret_gate = (struct call_gate){.selector = (uint16_t)(d->low >> 16),
                                   .offset = (d->low & 0xffff) | (d->high & 0xffff0000),
                                   .width = type == SYSTEM_CALL ? 4 : 2,
                                   .parameters = d->high & 31};
    if (type == SYSTEM_CALL16)
        ret_gate->offset &= 0xffff;
    if (wide) {
        descriptor_fetch_high(v, insn, VECTOR_GP, 0, d);
        ret_gate->offset |= (uint64_t)d->base_high << 32;
        ret_gate->width = 8;
        ret_gate->parameters = 0;
    }
}

static void gate_code(struct soft_vcpu *v, const struct insn *insn, const struct call_gate *gate,
                      struct descriptor *ret_code)
{
    if (!(gate->selector & 0xfffc))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    descriptor_fetch(v, insn, gate->selector, VECTOR_GP, 0, ret_code);
    uint32_t error = gate->selector & 0xfffcu;
    if (!descriptor_is_code(ret_code) || descriptor_dpl(ret_code) > vcpu_cpl(v) ||
        (v->efer & EFER_LMA && (ret_code->high & (DESC_L | DESC_DB)) != DESC_L))
        soft_raise_error(v, insn, VECTOR_GP, error);
    if (!(ret_code->high & DESC_P))
        soft_raise_error(v, insn, VECTOR_NP, error);
}

static void push_return(struct soft_vcpu *v, const struct insn *insn, struct stack *stack)
{
    stack_push(v, insn, stack, v->segment[CPU_CS].selector);
    stack_push(v, insn, stack, insn_next(v, insn));
}

static void call_inner_long(struct soft_vcpu *v, const struct insn *insn,
                            const struct call_gate *gate, struct descriptor *code, unsigned cpl)
{
    struct stack stack = stack_long(stack_from_task_long(v, insn, cpl, 0), 8, true);
    stack_push(v, insn, &stack, v->segment[CPU_SS].selector);
    stack_push(v, insn, &stack, v->gpr[CPU_RSP]);
    push_return(v, insn, &stack);
    segment_check_target(v, insn, code, gate->offset, 0);
    descriptor_touch(v, insn, code);
    v->segment[CPU_SS] = (struct cpu_segment){
        .selector = (uint16_t)cpl, .attributes = CPU_SEG_UNUSABLE | cpl << CPU_SEG_DPL_SHIFT};
    stack_commit(v, &stack);
}

static void call_inner_legacy(struct soft_vcpu *v, const struct insn *insn,
                              const struct call_gate *gate, struct descriptor *code, unsigned cpl)
{
    uint16_t selector;
    uint32_t sp;
    struct descriptor ss;
    stack_from_task(v, insn, cpl, 0, &selector, &sp);
    segment_check_stack(v, insn, selector, cpl, VECTOR_TS, 0, &ss);
    struct stack old = stack_current(v, gate->width);
    struct stack stack = stack_other(&ss, selector, sp, gate->width, 0);
    uint64_t parameters[32];
    for (unsigned i = 0; i < gate->parameters; i++)
        parameters[i] = stack_pop(v, insn, &old);
    stack_push(v, insn, &stack, v->segment[CPU_SS].selector);
    stack_push(v, insn, &stack, v->gpr[CPU_RSP]);
    for (unsigned i = gate->parameters; i-- > 0;)
        stack_push(v, insn, &stack, parameters[i]);
    push_return(v, insn, &stack);
    segment_check_target(v, insn, code, gate->offset, 0);
    descriptor_touch(v, insn, code);
    descriptor_touch(v, insn, &ss);
    v->segment[CPU_SS] = descriptor_segment(&ss, selector);
    stack_commit(v, &stack);
}

static void call_gate(struct soft_vcpu *v, const struct insn *insn, const struct call_gate *gate)
{
    struct descriptor code;
    gate_code(v, insn, gate, &code);
    unsigned cpl = vcpu_cpl(v), dpl = descriptor_dpl(&code);
    if (!(code.high & DESC_DOWN) && dpl < cpl) {
        if (v->efer & EFER_LMA)
            call_inner_long(v, insn, gate, &code, dpl);
        else
            call_inner_legacy(v, insn, gate, &code, dpl);
        cpl = dpl;
    } else {
        struct stack stack = stack_current(v, gate->width);
        if (v->efer & EFER_LMA)
            stack = stack_long(v->gpr[CPU_RSP], 8, false);
        push_return(v, insn, &stack);
        segment_check_target(v, insn, &code, gate->offset, 0);
        descriptor_touch(v, insn, &code);
        stack_commit(v, &stack);
    }
    segment_set_code(v, &code, cpl);
    v->gpr[SOFT_RIP] = gate->offset;
    soft_mode_update(v);
}

/* ---- JMP, CALL, RET ---- */

static struct far_target far_operand(struct soft_vcpu *v, const struct insn *insn)
{
    if (!(insn->flags & INSN_MEMORY))
        return (struct far_target){.selector = (uint16_t)insn->aux, .offset = insn->imm};
    uint8_t bytes[10] = {0};
    uint64_t linear = insn_linear(v, insn, insn->size + 2u, false);
    soft_load_bytes(v, insn, linear, bytes, insn->size + 2u, insn->seg);
    uint64_t offset = le64_read(bytes);
    if (insn->size < 8)
        offset &= (UINT64_C(1) << insn->size * 8) - 1;
    return (struct far_target){.selector = le16_read(bytes + insn->size), .offset = offset};
}

static void op_jmp_far(struct soft_vcpu *v, const struct insn *insn)
{
    struct far_target to = far_operand(v, insn);
    if (real_addressing(v)) {
        real_check(v, insn, to);
        real_jump(v, insn, to);
        LEAVE;
    }
    if (!(to.selector & 0xfffc))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    struct descriptor d;
    descriptor_fetch(v, insn, to.selector, VECTOR_GP, 0, &d);
    if (!(d.high & DESC_S)) {
        struct call_gate gate;
        open_gate(v, insn, &d, TASK_JUMP, &gate);
        gate_code(v, insn, &gate, &d);
        check_code(v, insn, &d, 0);
        to.offset = gate.offset;
    } else {
        check_code(v, insn, &d, to.selector & 3);
    }
    segment_check_target(v, insn, &d, to.offset, 0);
    descriptor_touch(v, insn, &d);
    jump_to(v, insn, &d, to.offset);
}

static void op_call_far(struct soft_vcpu *v, const struct insn *insn)
{
    struct far_target to = far_operand(v, insn);
    struct stack stack = stack_current(v, insn->size);
    if (real_addressing(v)) {
        real_check(v, insn, to);
        push_return(v, insn, &stack);
        stack_commit(v, &stack);
        real_jump(v, insn, to);
        LEAVE;
    }
    if (!(to.selector & 0xfffc))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    struct descriptor d;
    descriptor_fetch(v, insn, to.selector, VECTOR_GP, 0, &d);
    if (!(d.high & DESC_S)) {
        struct call_gate gate;
        open_gate(v, insn, &d, TASK_CALL, &gate);
        call_gate(v, insn, &gate);
        LEAVE;
    }
    check_code(v, insn, &d, to.selector & 3);
    push_return(v, insn, &stack);
    segment_check_target(v, insn, &d, to.offset, 0);
    descriptor_touch(v, insn, &d);
    stack_commit(v, &stack);
    jump_to(v, insn, &d, to.offset);
}

static void ret_outer(struct soft_vcpu *v, const struct insn *insn, struct stack *stack,
                      struct descriptor *code, unsigned cpl)
{
    stack->sp = (stack->sp & ~stack->mask) | ((stack->sp + insn->imm) & stack->mask);
    uint64_t sp = stack_pop(v, insn, stack);
    uint16_t selector = (uint16_t)stack_pop(v, insn, stack);
    struct cpu_segment ss;
    segment_return_stack(v, insn, selector, code, cpl, &ss);
    v->segment[CPU_SS] = ss;
    bool flat = v->efer & EFER_LMA && code->high & DESC_L;
    uint64_t mask = flat ? UINT64_MAX : ss.attributes & CPU_SEG_DB ? UINT32_MAX : UINT16_MAX;
    uint64_t upper = mask == UINT16_MAX ? v->gpr[CPU_RSP] & UINT64_C(0xffff0000) : 0;
    v->gpr[CPU_RSP] = upper | ((sp + insn->imm) & mask);
}

static void op_ret_far(struct soft_vcpu *v, const struct insn *insn)
{
    struct stack stack = stack_current(v, insn->size);
    struct far_target to;
    to.offset = stack_pop(v, insn, &stack);
    to.selector = (uint16_t)stack_pop(v, insn, &stack);
    if (real_addressing(v)) {
        real_check(v, insn, to);
        stack.sp = (stack.sp & ~stack.mask) | ((stack.sp + insn->imm) & stack.mask);
        stack_commit(v, &stack);
        real_jump(v, insn, to);
        LEAVE;
    }
    struct descriptor code;
    unsigned cpl = to.selector & 3;
    bool outer = cpl > vcpu_cpl(v);
    segment_return_code(v, insn, to.selector, &code);
    segment_check_target(v, insn, &code, to.offset, 0);
    descriptor_touch(v, insn, &code);
    if (outer) {
        ret_outer(v, insn, &stack, &code, cpl);
    } else {
        stack.sp = (stack.sp & ~stack.mask) | ((stack.sp + insn->imm) & stack.mask);
        stack_commit(v, &stack);
    }
    segment_set_code(v, &code, cpl);
    v->gpr[SOFT_RIP] = to.offset;
    if (outer) {
        segment_drop_inner(v, cpl);
        soft_mode_update(v);
    } else {
        soft_mode_update(v);
    }
}

void op_far_bind(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    if (insn->flags & INSN_LOCK)
        return;
    decoder->ends_block = true;
    const ZydisDecodedOperand *operand = &decoder->operands[0];
    switch (decoder->zydis->mnemonic) {
    case ZYDIS_MNEMONIC_JMP: insn->run = op_jmp_far; break;
    case ZYDIS_MNEMONIC_CALL: insn->run = op_call_far; break;
    default: insn->run = op_ret_far; break;
    }
    if (operand->type == ZYDIS_OPERAND_TYPE_POINTER) {
        insn->aux = operand->ptr.segment;
        insn->imm = operand->ptr.offset;
    }
    if (insn->run == op_ret_far) {
        insn->flags &= (uint16_t)~INSN_MEMORY; /* the hidden stack operand */
        insn->imm = operand->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? operand->imm.value.u : 0;
    } else if (operand->type != ZYDIS_OPERAND_TYPE_MEMORY) {
        insn->flags &= (uint16_t)~INSN_MEMORY;
    }
}

/* ---- INT ---- */

static void software_interrupt(struct soft_vcpu *v, const struct insn *insn, uint8_t vector,
                               enum event_kind kind)
{
    struct event event = {.kind = kind,
                          .vector = vector,
                          .rip = insn_next(v, insn),
                          .rflags = flags_to_rflags(v) & ~(uint64_t)RFLAG_RF};
    if (!(v->mode & MODE_64))
        event.rip &= UINT32_MAX;
    event_deliver(v, insn, &event);
    event_flags_changed(v);
}

static void op_int(struct soft_vcpu *v, const struct insn *insn)
{
    if (v->mode & MODE_VM86 && (v->rflags & RFLAG_IOPL) != RFLAG_IOPL)
        soft_raise_error(v, insn, VECTOR_GP, 0);
    software_interrupt(v, insn, (uint8_t)insn->imm, EVENT_SOFTWARE);
}

static void op_int3(struct soft_vcpu *v, const struct insn *insn)
{
    software_interrupt(v, insn, VECTOR_BP, EVENT_SOFTWARE);
}

static void op_int1(struct soft_vcpu *v, const struct insn *insn)
{
    software_interrupt(v, insn, VECTOR_DB, EVENT_ICEBP);
}

static void op_into(struct soft_vcpu *v, const struct insn *insn)
{
    if (!(v->flags & SOFT_OF))
        return insn_leave(v, insn);
    software_interrupt(v, insn, VECTOR_OF, EVENT_SOFTWARE);
}

static void interrupt_bind(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    if (insn->flags & INSN_LOCK)
        return;
    decoder->ends_block = true;
    switch (decoder->zydis->mnemonic) {
    case ZYDIS_MNEMONIC_INT:
        insn->imm = decoder->operands[0].imm.value.u & 0xff;
        insn->run = op_int;
        break;
    case ZYDIS_MNEMONIC_INT3: insn->run = op_int3; break;
    case ZYDIS_MNEMONIC_INT1: insn->run = op_int1; break;
    default: insn->run = op_into; break;
    }
}

/* ---- segment registers: b = segment, a = general register ---- */

/* MOV SS and POP SS hold events back for one instruction. */
static void segment_loaded(struct soft_vcpu *v, const struct insn *insn)
{
    if (insn->b == CPU_SS) {
        v->shadow = 2;
        v->system.shadow_passed = false;
        event_flags_changed(v);
    }
    insn_leave(v, insn);
}

static void op_segment_write(struct soft_vcpu *v, const struct insn *insn)
{
    segment_load(v, insn, insn->b, (uint16_t)operand_load(v, insn, 2));
    segment_loaded(v, insn);
}

static void op_segment_read(struct soft_vcpu *v, const struct insn *insn)
{
    operand_store(v, insn, insn->flags & INSN_MEMORY ? 2 : insn->size,
                  v->segment[insn->b].selector);
    NEXT(v, insn);
}

static void op_segment_pop(struct soft_vcpu *v, const struct insn *insn)
{
    struct stack stack = stack_current(v, insn->size);
    uint16_t selector = (uint16_t)stack_pop(v, insn, &stack);
    /* Whether SP moves by 16 or 32 bits is decided before SS changes. */
    segment_load(v, insn, insn->b, selector);
    stack_commit(v, &stack);
    segment_loaded(v, insn);
}

static void op_segment_push(struct soft_vcpu *v, const struct insn *insn)
{
    struct stack stack = stack_current(v, insn->size);
    stack_push(v, insn, &stack, v->segment[insn->b].selector);
    stack_commit(v, &stack);
    NEXT(v, insn);
}

static void op_load_pointer(struct soft_vcpu *v, const struct insn *insn)
{
    uint8_t bytes[10] = {0};
    uint64_t linear = insn_linear(v, insn, insn->size + 2u, false);
    soft_load_bytes(v, insn, linear, bytes, insn->size + 2u, insn->seg);
    segment_load(v, insn, insn->b, le16_read(bytes + insn->size));
    register_write(v, insn->a, insn->size, le64_read(bytes));
    insn_leave(v, insn);
}

static uint8_t segment_number(ZydisRegister reg)
{
    return (uint8_t)ZydisRegisterGetId(reg); /* in the order of enum cpu_seg */
}

static bool is_segment(const ZydisDecodedOperand *operand)
{
    return operand->type == ZYDIS_OPERAND_TYPE_REGISTER &&
           ZydisRegisterGetClass(operand->reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

static void bind_segment_move(struct decoder *decoder, bool write)
{
    struct insn *insn = decoder->insn;
    const ZydisDecodedOperand *segment = &decoder->operands[write ? 0 : 1];
    const ZydisDecodedOperand *other = &decoder->operands[write ? 1 : 0];
    insn->b = segment_number(segment->reg.value);
    if (other->type == ZYDIS_OPERAND_TYPE_REGISTER)
        insn->a = decode_register(other->reg.value);
    if (write && insn->b == CPU_CS)
        return;
    insn->run = write ? op_segment_write : op_segment_read;
    decoder->ends_block = write;
}

void op_segment_bind(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    if (insn->flags & INSN_LOCK)
        return;
    bool first = is_segment(&decoder->operands[0]);
    switch (decoder->zydis->mnemonic) {
    case ZYDIS_MNEMONIC_MOV: bind_segment_move(decoder, first); break;
    case ZYDIS_MNEMONIC_POP:
        insn->b = segment_number(decoder->operands[0].reg.value);
        insn->flags &= (uint16_t)~INSN_MEMORY;
        insn->run = insn->b == CPU_CS ? NULL : op_segment_pop;
        decoder->ends_block = true;
        break;
    case ZYDIS_MNEMONIC_PUSH:
        insn->b = segment_number(decoder->operands[0].reg.value);
        insn->flags &= (uint16_t)~INSN_MEMORY;
        insn->run = op_segment_push;
        break;
    default: break;
    }
}

static void load_pointer_bind(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    if (insn->flags & INSN_LOCK || !(insn->flags & INSN_MEMORY))
        return;
    insn->a = decode_register(decoder->operands[0].reg.value);
    insn->b = (uint8_t)decoder->arg;
    insn->run = op_load_pointer;
    decoder->ends_block = true;
}

const struct op_row op_far_rows[] = {
    {ZYDIS_MNEMONIC_INT, interrupt_bind, 0},
    {ZYDIS_MNEMONIC_INT3, interrupt_bind, 0},
    {ZYDIS_MNEMONIC_INT1, interrupt_bind, 0},
    {ZYDIS_MNEMONIC_INTO, interrupt_bind, 0},
    {ZYDIS_MNEMONIC_IRET, iret_bind, 2},
    {ZYDIS_MNEMONIC_IRETD, iret_bind, 4},
    {ZYDIS_MNEMONIC_IRETQ, iret_bind, 8},
    {ZYDIS_MNEMONIC_SYSCALL, syscall_bind, SYSCALL_CALL},
    {ZYDIS_MNEMONIC_SYSRET, syscall_bind, SYSCALL_RETURN},
    {ZYDIS_MNEMONIC_SYSENTER, syscall_bind, SYSCALL_ENTER},
    {ZYDIS_MNEMONIC_SYSEXIT, syscall_bind, SYSCALL_EXIT},
    {ZYDIS_MNEMONIC_LDS, load_pointer_bind, CPU_DS},
    {ZYDIS_MNEMONIC_LES, load_pointer_bind, CPU_ES},
    {ZYDIS_MNEMONIC_LFS, load_pointer_bind, CPU_FS},
    {ZYDIS_MNEMONIC_LGS, load_pointer_bind, CPU_GS},
    {ZYDIS_MNEMONIC_LSS, load_pointer_bind, CPU_SS},
    {0},
};
