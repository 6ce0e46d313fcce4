/*
 * Hardware task switching, SDM vol. 3, chapter 7: legacy modes only, by JMP, CALL, IRET with NT, or
 * through a task gate. All state of the old task goes to its TSS, all of the new one comes from
 * its own; selectors are loaded last, and their faults are the new task's.
 */
#include "cpu/soft/system.h"

enum {
    TSS32_CR3 = 28,
    TSS32_EIP = 32,
    TSS32_EFLAGS = 36,
    TSS32_GPR = 40,
    TSS32_SEGMENT = 72,
    TSS32_LDT = 96,
    TSS32_TRAP = 100,
    TSS16_IP = 14,
    TSS16_FLAGS = 16,
    TSS16_GPR = 18,
    TSS16_SEGMENT = 34,
    TSS16_LDT = 42,
    TSS32_SIZE = 104,
    TSS16_SIZE = 44,
    BUSY = 2,
};

/* A task state in the form of the 32-bit TSS. */
struct task_image {
    uint32_t cr3, eip, eflags, gpr[8];
    uint16_t segment[CPU_SEG_MAX], ldt;
    bool trap;
};

static void find_task(struct soft_vcpu *v, const struct insn *insn, uint16_t selector,
                      enum task_cause cause, struct descriptor *d)
{
    unsigned ext = v->system.external;
    uint32_t error = (selector & 0xfffcu) | ext;
    enum vector wrong = cause == TASK_RETURN ? VECTOR_TS : VECTOR_GP;
    if (selector & 4 || !(selector & 0xfffc))
        soft_raise_error(v, insn, wrong, error);
    descriptor_fetch(v, insn, selector, wrong, ext, d);
    unsigned type = descriptor_type(d) & ~(unsigned)BUSY;
    bool busy = descriptor_type(d) & BUSY;
    if (d->high & DESC_S || (type != SYSTEM_TSS && type != SYSTEM_TSS16) ||
        busy != (cause == TASK_RETURN))
        soft_raise_error(v, insn, wrong, error);
    if (!(d->high & DESC_P))
        soft_raise_error(v, insn, VECTOR_NP, error);
    uint32_t size = type == SYSTEM_TSS ? TSS32_SIZE : TSS16_SIZE;
    if (descriptor_limit(d) < size - 1)
        soft_raise_error(v, insn, VECTOR_TS, error);
}

static void save_old(struct soft_vcpu *v, const struct insn *insn, uint64_t rip, uint64_t rflags)
{
    uint64_t at = v->task.base;
    bool wide = (v->task.attributes & CPU_SEG_TYPE) >= SYSTEM_TSS;
    unsigned width = wide ? 4 : 2;
    soft_system_probe_write(v, insn, at, wide ? TSS32_SIZE : TSS16_SIZE);
    soft_system_store(v, insn, at + (wide ? TSS32_EIP : TSS16_IP), width, rip);
    soft_system_store(v, insn, at + (wide ? TSS32_EFLAGS : TSS16_FLAGS), width, rflags);
    for (unsigned i = 0; i < 8; i++)
        soft_system_store(v, insn, at + (wide ? TSS32_GPR : TSS16_GPR) + i * width, width,
                          v->gpr[i]);
    for (unsigned i = 0; i < (wide ? CPU_SEG_MAX : 4); i++)
        soft_system_store(v, insn, at + (wide ? TSS32_SEGMENT : TSS16_SEGMENT) + i * width, 2,
                          v->segment[i].selector);
}

static void load_new(struct soft_vcpu *v, const struct insn *insn, const struct descriptor *d,
                     struct task_image *ret_image)
{
    uint64_t at = descriptor_base(d);
    bool wide = descriptor_type(d) >= SYSTEM_TSS;
    unsigned width = wide ? 4 : 2;
    struct task_image image = {0};
    image.cr3 = wide ? (uint32_t)soft_system_load(v, insn, at + TSS32_CR3, 4) : 0;
    image.eip = (uint32_t)soft_system_load(v, insn, at + (wide ? TSS32_EIP : TSS16_IP), width);
    image.eflags =
        (uint32_t)soft_system_load(v, insn, at + (wide ? TSS32_EFLAGS : TSS16_FLAGS), width);
    for (unsigned i = 0; i < 8; i++)
        image.gpr[i] = (uint32_t)soft_system_load(
            v, insn, at + (wide ? TSS32_GPR : TSS16_GPR) + i * width, width);
    for (unsigned i = 0; i < (wide ? CPU_SEG_MAX : 4); i++)
        image.segment[i] = (uint16_t)soft_system_load(
            v, insn, at + (wide ? TSS32_SEGMENT : TSS16_SEGMENT) + i * width, 2);
    image.ldt = (uint16_t)soft_system_load(v, insn, at + (wide ? TSS32_LDT : TSS16_LDT), 2);
    image.trap = wide && soft_system_load(v, insn, at + TSS32_TRAP, 2) & 1;
    *ret_image = image;
}

static void clear_busy(struct soft_vcpu *v, const struct insn *insn)
{
    uint64_t linear;
    if (!descriptor_locate(v, v->task.selector, 8, &linear))
        return;
    uint8_t type = (uint8_t)soft_system_load(v, insn, linear + 5, 1);
    soft_system_store(v, insn, linear + 5, 1, (uint8_t)(type & ~BUSY));
}

static void load_ldt(struct soft_vcpu *v, uint16_t selector)
{
    v->ldt = (struct cpu_segment){.selector = selector, .attributes = CPU_SEG_UNUSABLE};
    if (!(selector & 0xfffc))
        return;
    struct descriptor d;
    if (selector & 4)
        soft_raise_error(v, NULL, VECTOR_TS, selector & 0xfffcu);
    descriptor_fetch(v, NULL, selector, VECTOR_TS, 0, &d);
    if (d.high & DESC_S || descriptor_type(&d) != SYSTEM_LDT || !(d.high & DESC_P))
        soft_raise_error(v, NULL, VECTOR_TS, selector & 0xfffcu);
    v->ldt = descriptor_segment(&d, selector);
}

/* Selectors of the new task: CPL is the RPL of its CS. Until each is checked it is unusable. */
static void load_segments(struct soft_vcpu *v, const struct task_image *image)
{
    for (unsigned i = 0; i < CPU_SEG_MAX; i++)
        v->segment[i] =
            (struct cpu_segment){.selector = image->segment[i], .attributes = CPU_SEG_UNUSABLE};
    load_ldt(v, image->ldt);
    if (image->eflags & RFLAG_VM) {
        for (unsigned i = 0; i < CPU_SEG_MAX; i++)
            segment_load_real(v, i, image->segment[i]);
        soft_mode_update(v);
        return;
    }
    unsigned cpl = image->segment[CPU_CS] & 3;
    v->segment[CPU_SS].attributes |= cpl << CPU_SEG_DPL_SHIFT;
    soft_mode_update(v);
    struct descriptor cs, ss;
    uint32_t error = image->segment[CPU_CS] & 0xfffcu;
    if (error == 0)
        soft_raise_error(v, NULL, VECTOR_TS, 0);
    descriptor_fetch(v, NULL, image->segment[CPU_CS], VECTOR_TS, 0, &cs);
    bool conforming = cs.high & DESC_DOWN;
    if (!descriptor_is_code(&cs) ||
        (conforming ? descriptor_dpl(&cs) > cpl : descriptor_dpl(&cs) != cpl))
        soft_raise_error(v, NULL, VECTOR_TS, error);
    if (!(cs.high & DESC_P))
        soft_raise_error(v, NULL, VECTOR_NP, error);
    segment_check_stack(v, NULL, image->segment[CPU_SS], cpl, VECTOR_TS, 0, &ss);
    descriptor_touch(v, NULL, &ss);
    descriptor_touch(v, NULL, &cs);
    v->segment[CPU_SS] = descriptor_segment(&ss, image->segment[CPU_SS]);
    segment_set_code(v, &cs, cpl);
    soft_mode_update(v);
    static const uint8_t data[] = {CPU_DS, CPU_ES, CPU_FS, CPU_GS};
    for (unsigned i = 0; i < sizeof data; i++)
        segment_load(v, NULL, data[i], image->segment[data[i]]);
    if (image->eip > v->segment[CPU_CS].limit)
        soft_raise_error(v, NULL, VECTOR_GP, 0);
}

void task_switch(struct soft_vcpu *v, const struct insn *insn, uint16_t selector,
                 enum task_cause cause, uint64_t rip, const struct event *event)
{
    struct descriptor d;
    struct task_image image;
    uint16_t old = v->task.selector;
    find_task(v, insn, selector, cause, &d);
    load_new(v, insn, &d, &image);
    uint64_t rflags = event ? event->rflags : flags_to_rflags(v);
    if (cause == TASK_RETURN)
        rflags &= ~(uint64_t)RFLAG_NT;
    save_old(v, insn, rip, rflags);

    /* The new task from here on: faults belong to it. */
    if (cause == TASK_JUMP || cause == TASK_RETURN)
        clear_busy(v, NULL);
    if (cause != TASK_RETURN)
        soft_system_or8(v, NULL, d.address + 5, BUSY);
    if (cause == TASK_CALL || cause == TASK_EVENT) {
        soft_system_store(v, NULL, descriptor_base(&d), 2, old);
        image.eflags |= RFLAG_NT;
    }
    d.high |= BUSY << 8;
    v->task = descriptor_segment(&d, selector);
    v->cr0 |= CR0_TS;
    bool wide = descriptor_type(&d) >= SYSTEM_TSS;
    for (unsigned i = 0; i < 8; i++)
        v->gpr[i] = wide ? image.gpr[i] : (v->gpr[i] & UINT64_C(0xffff0000)) | image.gpr[i];
    v->gpr[SOFT_RIP] = image.eip;
    v->dr7 &= ~UINT64_C(0x55); /* local breakpoints */
    debug_update(v);
    flags_from_rflags(v, wide ? image.eflags : (flags_to_rflags(v) & 0xffff0000) | image.eflags);
    v->system.step_armed = false;
    if (wide && v->cr0 & CR0_PG && !control_write(v, 3, image.cr3))
        soft_raise_error(v, NULL, VECTOR_TS, selector & 0xfffcu);
    load_segments(v, &image);
    if (event && event->has_error) {
        struct stack stack = stack_current(v, wide ? 4 : 2);
        stack_push(v, NULL, &stack, event->error);
        stack_commit(v, &stack);
    }
    if (image.trap) {
        v->system.debug_traps |= DR6_BT;
        atomic_fetch_or(&v->attention, ATTENTION_STEP);
    }
    event_flags_changed(v);
}
