/*
 * One check for several accesses.
 *
 * Code goes to memory in bunches: fields of a structure, registers pushed one after the other, a
 * counter read and written back. Where instructions of a block reach the same page through the same
 * registers, the first one checks the whole range, for writing if any of them writes, and the
 * others use its addend.
 *
 *     mov rax, [rbx]         check [rbx, rbx + 24) for writing
 *     add rax, [rbx + 16]    no check
 *     mov [rbx + 8], rax     no check
 *
 * Where the check fails, handlers do all of them, from the first to the last, so every fault is at
 * its own instruction. Between the two nothing may happen that could take the page away: no
 * instruction that is left to a handler; and another access in between that misses has its slow
 * path go on to the end of the group, because a handler may pass a safe point, where other vCPUs
 * may make the page a code page.
 *
 * The base may move by known amounts (PUSH, POP, ADD, INC, LEA ...).
 */
#include "cpu/soft/jit_unit.h"

enum { SPAN_MAX = 512 /* bytes: a wider range would cross pages too often */ };

static bool same_registers(const struct jit_ea *a, const struct jit_ea *b)
{
    return a->base == b->base && a->index == b->index && (a->index == JIT_NONE || a->scale == b->scale) &&
           a->seg == b->seg && a->rip == b->rip;
}

static unsigned guest_number(ZydisRegister reg)
{
    ZydisRegister whole = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
    if (ZydisRegisterGetClass(whole) != ZYDIS_REGCLASS_GPR64)
        return JIT_NONE;
    return (unsigned)ZydisRegisterGetId(whole);
}

/* How much does instruction k add to a register? False: it writes something else into it. */
static bool added(const struct jit *jit, unsigned k, unsigned guest, int64_t *ret_delta)
{
    const struct decoded *d = &jit->decoded[k];
    const ZydisDecodedOperand *o = d->operands;
    bool written = false;
    *ret_delta = 0;
    for (unsigned i = 0; i < d->zydis.operand_count; i++)
        written |= o[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
                   o[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE &&
                   guest_number(o[i].reg.value) == guest;
    if (!written)
        return true;
    bool first = o[0].type == ZYDIS_OPERAND_TYPE_REGISTER && o[0].size == 64 &&
                 guest_number(o[0].reg.value) == guest;
    switch (d->zydis.mnemonic) {
    case ZYDIS_MNEMONIC_PUSH: *ret_delta = -8; return guest == CPU_RSP && !first;
    case ZYDIS_MNEMONIC_POP: *ret_delta = 8; return guest == CPU_RSP && !first;
    case ZYDIS_MNEMONIC_INC: *ret_delta = 1; return first;
    case ZYDIS_MNEMONIC_DEC: *ret_delta = -1; return first;
    case ZYDIS_MNEMONIC_ADD:
        *ret_delta = o[1].imm.value.s;
        return first && o[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    case ZYDIS_MNEMONIC_SUB:
        *ret_delta = -o[1].imm.value.s;
        return first && o[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    case ZYDIS_MNEMONIC_LEA:
        *ret_delta = o[1].mem.disp.has_displacement ? o[1].mem.disp.value : 0;
        return first && o[1].mem.index == ZYDIS_REGISTER_NONE &&
               guest_number(o[1].mem.base) == guest;
    default: return false;
    }
}

/* Does it use JIT_T for something of its own? Then the addend must be kept. */
static bool names_slot_register(const struct decoded *d)
{
    for (unsigned i = 0; i < d->zydis.operand_count; i++) {
        const ZydisDecodedOperand *o = &d->operands[i];
        const ZydisRegister regs[] = {
            o->type == ZYDIS_OPERAND_TYPE_REGISTER ? o->reg.value : ZYDIS_REGISTER_NONE,
            o->type == ZYDIS_OPERAND_TYPE_MEMORY ? o->mem.base : ZYDIS_REGISTER_NONE,
            o->type == ZYDIS_OPERAND_TYPE_MEMORY ? o->mem.index : ZYDIS_REGISTER_NONE};
        for (unsigned n = 0; n < ARRAY_LEN(regs); n++) {
            if (regs[n] == ZYDIS_REGISTER_NONE)
                continue;
            unsigned guest = guest_number(regs[n]);
            if (guest != JIT_NONE && jit_host_of[guest] == JIT_NONE)
                return true;
        }
    }
    return false;
}

struct scan {
    int64_t low, high; /* relative to the base at the first access */
    bool write;
    unsigned end;
    unsigned members;
    bool lost; /* JIT_T is needed for something else in between */
};

/* Looks ahead from instruction k, whose access is `ea`. */
static struct scan scan(const struct jit *jit, unsigned k, const struct jit_ea *ea, unsigned size,
                        bool write)
{
    struct scan best = {.low = ea->disp,
                        .high = ea->disp + size,
                        .write = write,
                        .end = k + 1,
                        .members = 1};
    struct scan now = best;
    int64_t base = 0;
    for (unsigned i = k; i < jit->count; i++) {
        int64_t delta, index_delta = 0;
        if (i > k) {
            struct jit_ea other;
            unsigned other_size;
            bool other_write;
            switch (jit_touches(jit, i, &other, &other_size, &other_write)) {
            case JIT_TOUCH_STOP: return best;
            case JIT_TOUCH_OTHER: now.lost = true; break;
            case JIT_TOUCH_NOTHING:
                now.lost |= names_slot_register(&jit->decoded[i]);
                break;
            case JIT_TOUCH_ONE:
                if (!same_registers(ea, &other)) {
                    now.lost = true;
                    break;
                }
                int64_t low = min(now.low, other.disp + base);
                int64_t high = max(now.high, other.disp + base + other_size);
                if (high - low > SPAN_MAX) {
                    now.lost = true;
                    break;
                }
                now.low = low;
                now.high = high;
                now.write |= other_write;
                now.members++;
                now.end = i + 1;
                best = now;
                break;
            }
        }
        if (!added(jit, i, ea->base, &delta) ||
            (ea->index != JIT_NONE && (!added(jit, i, ea->index, &index_delta) || index_delta)))
            return best;
        base += delta;
        if (base < -SPAN_MAX || base > SPAN_MAX)
            return best;
    }
    return best;
}

unsigned jit_group_end(const struct jit *jit, unsigned k)
{
    return jit->group.open && k < jit->group.end ? jit->group.end : k + 1;
}

static struct jit_rm member(struct jit *jit, const struct jit_ea *ea)
{
    struct jit_rm rm = {.reg = JIT_NONE,
                        .base = jit_host_of[ea->base],
                        .index = JIT_T,
                        .disp = (int32_t)ea->disp};
    if (ea->index == JIT_NONE)
        return rm;
    /* JIT_T has the base in it. */
    rm.base = JIT_T;
    rm.index = jit_host_of[ea->index];
    rm.scale = ea->scale;
    return rm;
}

bool jit_group_access(struct jit *jit, unsigned k, const struct jit_ea *ea, unsigned size,
                      bool write, struct jit_rm *ret_rm)
{
    struct jit_group *group = &jit->group;
    struct jit_asm *a = &jit->a;
    if (!jit->grouping || ea->base == JIT_NONE)
        return false;
    if (group->open) {
        /* Was it seen when the group was opened? */
        int64_t low = ea->disp + group->delta, high = low + size;
        if (!same_registers(ea, &group->ea) || low < group->low || high > group->high ||
            (write && !group->write))
            return false;
        if (ea->index != JIT_NONE && group->delta)
            return false;
        if (group->kept)
            asm_load(a, JIT_T, JIT_V(jit, jit_state.addend));
        *ret_rm = member(jit, ea);
        return true;
    }
    struct scan found = scan(jit, k, ea, size, write);
    if (found.members < 2)
        return false;
    jit_flags_lose(jit);
    struct jit_slow *slow = jit_slow_new(jit, k, found.end - k);
    slow->jump = jit_check(jit, ea, found.low, found.high, found.write, 1);
    if (ea->index != JIT_NONE)
        asm_op(a, 0x03, 8, JIT_T, JIT_REG(jit_host_of[ea->base]));
    if (found.lost)
        asm_store(a, JIT_T, JIT_V(jit, jit_state.addend));
    *group = (struct jit_group){.open = true,
                                .ea = *ea,
                                .first = k,
                                .end = found.end,
                                .low = found.low,
                                .high = found.high,
                                .write = found.write,
                                .kept = found.lost};
    *ret_rm = member(jit, ea);
    return true;
}

void jit_group_after(struct jit *jit, unsigned k)
{
    struct jit_group *group = &jit->group;
    if (!group->open)
        return;
    int64_t delta;
    if (k + 1 >= group->end || !added(jit, k, group->ea.base, &delta)) {
        group->open = false;
        return;
    }
    group->delta += delta;
}
