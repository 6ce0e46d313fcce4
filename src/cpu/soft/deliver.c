/*
 * Through the interrupt table: SDM vol. 3, 6.12 and 6.14 (64-bit), 20.1.4 (real mode).
 *
 * Every check and every push comes before the first register changes, so a fault on the way finds
 * the interrupted state whole. The return address and the flags image are the caller's (struct
 * event). EXT is set in error codes of faults on the way unless an INT n is being delivered.
 */
#include "cpu/soft/system.h"

struct gate {
    unsigned type;
    unsigned dpl;
    bool present;
    uint16_t selector;
    uint64_t offset;
    unsigned ist;
};

/* What becomes of the vCPU when all has gone well. */
struct target {
    struct descriptor code;
    unsigned cpl;
    struct stack stack;
    bool new_stack;
    struct descriptor stack_descriptor; /* legacy modes, new_stack */
    uint16_t stack_selector;
};

static void deliver_real(struct soft_vcpu *v, const struct insn *insn, const struct event *event)
{
    uint32_t entry = event->vector * 4u;
    if (entry + 3 > v->idt.limit)
        soft_raise(v, insn, VECTOR_GP);
    uint32_t target = (uint32_t)soft_system_load(v, insn, v->idt.base + entry, 4);
    struct stack stack = stack_current(v, 2);
    stack_push(v, insn, &stack, (uint16_t)event->rflags);
    stack_push(v, insn, &stack, v->segment[CPU_CS].selector);
    stack_push(v, insn, &stack, (uint16_t)event->rip);
    stack_commit(v, &stack);
    segment_load_real(v, CPU_CS, (uint16_t)(target >> 16));
    v->gpr[SOFT_RIP] = target & 0xffff;
    v->rflags &= ~(uint64_t)(RFLAG_IF | RFLAG_TF | RFLAG_AC | RFLAG_RF);
    soft_mode_update(v);
}

static void read_gate(struct soft_vcpu *v, const struct insn *insn, const struct event *event,
                      unsigned ext, struct gate *ret_gate)
{
    bool wide = v->efer & EFER_LMA;
    uint32_t error = event->vector * 8u + 2 + ext;
    uint32_t size = wide ? 16 : 8;
    if (event->vector * size + size - 1 > v->idt.limit)
        soft_raise_error(v, insn, VECTOR_GP, error);
    uint64_t linear = v->idt.base + event->vector * size;
    uint64_t low = soft_system_load(v, insn, linear, 8);
    uint64_t high = wide ? soft_system_load(v, insn, linear + 8, 8) : 0;
    *ret_gate = (struct gate){
        .type = (low >> 40) & 0x1f, /* S included: it must be 0 */
        .dpl = (low >> 45) & 3,
        .present = low >> 47 & 1,
        .selector = (uint16_t)(low >> 16),
        .offset = (low & 0xffff) | (low >> 32 & 0xffff0000) | high << 32,
        .ist = (low >> 32) & 7,
    };
    bool fits = ret_gate->type == SYSTEM_INT || ret_gate->type == SYSTEM_TRAP ||
                (!wide && (ret_gate->type == SYSTEM_INT16 || ret_gate->type == SYSTEM_TRAP16 ||
                           ret_gate->type == SYSTEM_TASK_GATE));
    if (!fits || (event->kind == EVENT_SOFTWARE && ret_gate->dpl < vcpu_cpl(v)))
        soft_raise_error(v, insn, VECTOR_GP, error);
    if (!ret_gate->present)
        soft_raise_error(v, insn, VECTOR_NP, error);
}

static void find_code(struct soft_vcpu *v, const struct insn *insn, const struct gate *gate,
                      unsigned ext, struct target *target)
{
    struct descriptor *code = &target->code;
    uint32_t error = (gate->selector & 0xfffcu) | ext;
    if (!(gate->selector & 0xfffc))
        soft_raise_error(v, insn, VECTOR_GP, ext);
    descriptor_fetch(v, insn, gate->selector, VECTOR_GP, ext, code);
    unsigned dpl = descriptor_dpl(code), cpl = vcpu_cpl(v);
    if (!descriptor_is_code(code) || dpl > cpl)
        soft_raise_error(v, insn, VECTOR_GP, error);
    if (v->efer & EFER_LMA && (code->high & (DESC_L | DESC_DB)) != DESC_L)
        soft_raise_error(v, insn, VECTOR_GP, error);
    if (!(code->high & DESC_P))
        soft_raise_error(v, insn, VECTOR_NP, error);
    target->cpl = code->high & DESC_DOWN ? cpl : dpl; /* conforming code keeps the privilege */
    if (v->mode & MODE_VM86 && target->cpl != 0)
        soft_raise_error(v, insn, VECTOR_GP, error);
}

static void deliver_long(struct soft_vcpu *v, const struct insn *insn, const struct event *event,
                         const struct gate *gate, struct target *target, unsigned ext)
{
    bool inner = target->cpl < vcpu_cpl(v);
    uint64_t sp = v->gpr[CPU_RSP];
    if (gate->ist)
        sp = stack_from_task_long(v, insn, 3 + gate->ist, ext);
    else if (inner)
        sp = stack_from_task_long(v, insn, target->cpl, ext);
    struct stack stack = stack_long(sp & ~UINT64_C(15), 8, target->cpl != 3);
    stack.error = ext;
    stack_push(v, insn, &stack, v->segment[CPU_SS].selector);
    stack_push(v, insn, &stack, v->gpr[CPU_RSP]);
    stack_push(v, insn, &stack, event->rflags);
    stack_push(v, insn, &stack, v->segment[CPU_CS].selector);
    stack_push(v, insn, &stack, event->rip);
    if (event->has_error)
        stack_push(v, insn, &stack, event->error);
    if (!canonical(gate->offset))
        soft_raise_error(v, insn, VECTOR_GP, ext);
    descriptor_touch(v, insn, &target->code);
    if (inner)
        v->segment[CPU_SS] =
            (struct cpu_segment){.selector = (uint16_t)target->cpl,
                                 .attributes = CPU_SEG_UNUSABLE | target->cpl << CPU_SEG_DPL_SHIFT};
    stack_commit(v, &stack);
}

static void deliver_legacy(struct soft_vcpu *v, const struct insn *insn, const struct event *event,
                           const struct gate *gate, struct target *target, unsigned ext)
{
    bool inner = target->cpl < vcpu_cpl(v), vm86 = v->mode & MODE_VM86;
    unsigned width = gate->type & 8 ? 4 : 2;
    struct stack stack = stack_current(v, width);
    struct descriptor ss;
    uint16_t selector = 0;
    if (inner) {
        uint32_t sp;
        stack_from_task(v, insn, target->cpl, ext, &selector, &sp);
        segment_check_stack(v, insn, selector, target->cpl, VECTOR_TS, ext, &ss);
        stack = stack_other(&ss, selector, sp, width, ext);
    }
    stack.error |= ext;
    if (vm86) {
        stack_push(v, insn, &stack, v->segment[CPU_GS].selector);
        stack_push(v, insn, &stack, v->segment[CPU_FS].selector);
        stack_push(v, insn, &stack, v->segment[CPU_DS].selector);
        stack_push(v, insn, &stack, v->segment[CPU_ES].selector);
    }
    if (inner) {
        stack_push(v, insn, &stack, v->segment[CPU_SS].selector);
        stack_push(v, insn, &stack, v->gpr[CPU_RSP]);
    }
    stack_push(v, insn, &stack, event->rflags);
    stack_push(v, insn, &stack, v->segment[CPU_CS].selector);
    stack_push(v, insn, &stack, event->rip);
    if (event->has_error)
        stack_push(v, insn, &stack, event->error);
    segment_check_target(v, insn, &target->code, gate->offset, ext);
    descriptor_touch(v, insn, &target->code);
    if (inner) {
        descriptor_touch(v, insn, &ss);
        v->segment[CPU_SS] = descriptor_segment(&ss, selector);
    }
    if (vm86) {
        static const uint8_t data[] = {CPU_ES, CPU_DS, CPU_FS, CPU_GS};
        for (unsigned i = 0; i < sizeof data; i++)
            v->segment[data[i]] = (struct cpu_segment){.attributes = CPU_SEG_UNUSABLE};
    }
    stack_commit(v, &stack);
}

void event_deliver(struct soft_vcpu *v, const struct insn *insn, const struct event *event)
{
    if (!(v->cr0 & CR0_PE)) {
        deliver_real(v, insn, event);
        v->shadow = 0;
        v->system.step_armed = false;
        return;
    }
    unsigned ext = event->kind != EVENT_SOFTWARE;
    struct gate gate;
    struct target target;
    read_gate(v, insn, event, ext, &gate);
    if (gate.type == SYSTEM_TASK_GATE) {
        task_switch(v, insn, gate.selector, TASK_EVENT, event->rip, event);
        return;
    }
    if (!(gate.type & 8))
        gate.offset &= 0xffff;
    find_code(v, insn, &gate, ext, &target);
    if (v->efer & EFER_LMA)
        deliver_long(v, insn, event, &gate, &target, ext);
    else
        deliver_legacy(v, insn, event, &gate, &target, ext);
    segment_set_code(v, &target.code, target.cpl);
    v->gpr[SOFT_RIP] = gate.offset;
    v->rflags &= ~(uint64_t)(RFLAG_TF | RFLAG_NT | RFLAG_RF | RFLAG_VM);
    if (gate.type == SYSTEM_INT || gate.type == SYSTEM_INT16)
        v->rflags &= ~(uint64_t)RFLAG_IF;
    v->shadow = 0;
    v->system.step_armed = false;
    soft_mode_update(v);
}
