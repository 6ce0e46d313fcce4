#include "cpu/soft/system.h"

struct stack stack_current(const struct soft_vcpu *v, unsigned width)
{
    struct stack stack = {.segment = v->segment[CPU_SS], .sp = v->gpr[CPU_RSP], .width = width};
    if (v->mode & MODE_64) {
        stack.flat = true;
        stack.mask = UINT64_MAX;
        return stack;
    }
    stack.base = stack.segment.base;
    stack.mask = v->mode & MODE_STACK32 ? UINT32_MAX : UINT16_MAX;
    return stack;
}

struct stack stack_other(const struct descriptor *d, uint16_t selector, uint64_t sp, unsigned width,
                         unsigned ext)
{
    struct stack stack = {.segment = descriptor_segment(d, selector),
                          .sp = sp,
                          .width = width,
                          .inner = true,
                          .error = (selector & 0xfffcu) | ext};
    stack.base = stack.segment.base;
    stack.mask = stack.segment.attributes & CPU_SEG_DB ? UINT32_MAX : UINT16_MAX;
    return stack;
}

struct stack stack_long(uint64_t sp, unsigned width, bool inner)
{
    return (struct stack){
        .sp = sp, .mask = UINT64_MAX, .width = width, .flat = true, .inner = inner};
}

static uint64_t item_address(struct soft_vcpu *v, const struct insn *insn,
                             const struct stack *stack, uint64_t offset)
{
    if (stack->flat) {
        if (!canonical(offset) || !canonical(offset + stack->width - 1))
            soft_raise_error(v, insn, VECTOR_SS, stack->error);
        return offset;
    }
    if (!segment_inside(&stack->segment, offset, stack->width))
        soft_raise_error(v, insn, VECTOR_SS, stack->error);
    return (uint32_t)(stack->base + offset);
}

void stack_push(struct soft_vcpu *v, const struct insn *insn, struct stack *stack, uint64_t value)
{
    uint64_t offset = (stack->sp - stack->width) & stack->mask;
    uint64_t linear = item_address(v, insn, stack, offset);
    if (stack->inner)
        soft_system_store(v, insn, linear, stack->width, value);
    else
        soft_store_slow(v, insn, linear, stack->width, CPU_SS, value);
    stack->sp = (stack->sp & ~stack->mask) | offset;
}

uint64_t stack_pop(struct soft_vcpu *v, const struct insn *insn, struct stack *stack)
{
    uint64_t linear = item_address(v, insn, stack, stack->sp & stack->mask);
    uint64_t value = stack->inner ? soft_system_load(v, insn, linear, stack->width)
                                  : soft_load_slow(v, insn, linear, stack->width, CPU_SS);
    stack->sp = (stack->sp & ~stack->mask) | ((stack->sp + stack->width) & stack->mask);
    return value;
}

void stack_commit(struct soft_vcpu *v, const struct stack *stack)
{
    v->gpr[CPU_RSP] = stack->sp;
}

/* SDM vol. 3, figures 7-2 and 7-10. */
void stack_from_task(struct soft_vcpu *v, const struct insn *insn, unsigned cpl, unsigned ext,
                     uint16_t *ret_selector, uint32_t *ret_sp)
{
    bool wide = (v->task.attributes & CPU_SEG_TYPE) >= SYSTEM_TSS;
    uint32_t offset = wide ? 4 + cpl * 8 : 2 + cpl * 4;
    if (offset + (wide ? 5 : 3) > v->task.limit)
        soft_raise_error(v, insn, VECTOR_TS, (v->task.selector & 0xfffcu) | ext);
    *ret_sp = (uint32_t)soft_system_load(v, insn, v->task.base + offset, wide ? 4 : 2);
    *ret_selector = (uint16_t)soft_system_load(v, insn, v->task.base + offset + (wide ? 4 : 2), 2);
}

/* SDM vol. 3, figure 7-11: RSP0 at 4, IST1 at 36. */
uint64_t stack_from_task_long(struct soft_vcpu *v, const struct insn *insn, unsigned index,
                              unsigned ext)
{
    uint32_t offset = 4 + index * 8;
    if (offset + 7 > v->task.limit)
        soft_raise_error(v, insn, VECTOR_TS, (v->task.selector & 0xfffcu) | ext);
    uint64_t sp = soft_system_load(v, insn, v->task.base + offset, 8);
    if (!canonical(sp))
        soft_raise_error(v, insn, VECTOR_SS, ext);
    return sp;
}
