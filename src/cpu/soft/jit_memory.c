/*
 * The check in front of each memory access.
 *
 *     lea  rax, [ea + size - 1]        the page of the last byte...
 *     lea  r14d, [ea]                  ...against the entry of the first: a page crossing misses
 *     shr  r14d, 7                     (linear >> 12) * 32
 *     and  r14d, (entries - 1) * 32
 *     add  r14, [v->tlb]               supervisor only: SMAP may be suspended; user code has one
 *     and  rax, ~0xfff                 aligned operands: some low bits stay, and miss too
 *     cmp  rax, [r14 + tlb + tag]
 *     jne  slow                        the instruction's handler does it all
 *     mov  r14, [r14 + tlb + addend]
 *     op   ..., [ea + r14]
 *
 * A miss runs the instruction's own handler, which fills the TLB, reaches the device, or raises the
 * fault; nothing of the instruction has been done by then. Accesses near each other through the
 * same registers share one check (struct jit_group): where it fails, handlers do all instructions
 * from the first access to the last.
 */
#include "cpu/soft/jit_unit.h"

bool jit_ea_of(const struct jit *jit, unsigned k, const ZydisDecodedOperand *operand,
               struct jit_ea *ret_ea)
{
    const ZydisDecodedOperandMem *mem = &operand->mem;
    struct jit_ea ea = {.base = JIT_NONE, .index = JIT_NONE, .seg = JIT_NONE};
    if (jit->decoded[k].zydis.address_width != 64)
        return false;
    ea.disp = mem->disp.has_displacement ? mem->disp.value : 0;
    if (mem->base == ZYDIS_REGISTER_RIP) {
        ea.rip = true;
        ea.disp += (int64_t)(jit->block->gpa & SOFT_PAGE_MASK) + jit->decoded[k].end;
    } else if (mem->base != ZYDIS_REGISTER_NONE) {
        ea.base = (uint8_t)ZydisRegisterGetId(mem->base);
    }
    if (mem->index != ZYDIS_REGISTER_NONE) {
        ea.index = (uint8_t)ZydisRegisterGetId(mem->index);
        ea.scale = (uint8_t)__builtin_ctz(mem->scale);
    }
    if (mem->segment == ZYDIS_REGISTER_FS)
        ea.seg = CPU_FS;
    else if (mem->segment == ZYDIS_REGISTER_GS)
        ea.seg = CPU_GS;
    /* Room for what is added to it. */
    if (ea.disp < INT32_MIN + 8192 || ea.disp > INT32_MAX - 8192)
        return false;
    *ret_ea = ea;
    return true;
}

static bool resident(unsigned guest)
{
    return guest == JIT_NONE || jit_host_of[guest] != JIT_NONE;
}

static unsigned host_of(unsigned guest)
{
    return guest == JIT_NONE ? JIT_NONE : jit_host_of[guest];
}

struct jit_slow *jit_slow_new(struct jit *jit, unsigned first, unsigned count)
{
    if (jit->slow_count == JIT_SLOW_MAX) {
        jit->failed = true;
        jit->slow_count--;
    }
    struct jit_slow *slow = &jit->slow[jit->slow_count++];
    *slow =
        (struct jit_slow){.first = (uint16_t)first, .count = (uint16_t)count, .before = jit->flags};
    return slow;
}

/* All registers in the host's, no segment: the address is one operand. */
static bool is_plain(const struct jit_ea *ea)
{
    return !ea->rip && ea->seg == JIT_NONE && resident(ea->base) && resident(ea->index);
}

static struct jit_rm plain_rm(const struct jit_ea *ea, int64_t more)
{
    return (struct jit_rm){.reg = JIT_NONE,
                           .base = (uint8_t)host_of(ea->base),
                           .index = (uint8_t)host_of(ea->index),
                           .scale = ea->scale,
                           .disp = (int32_t)(ea->disp + more)};
}

/* The linear address + `more` in RAX. Uses JIT_T. */
static void any_address(struct jit *jit, const struct jit_ea *ea, int64_t more)
{
    struct jit_asm *a = &jit->a;
    if (ea->rip) {
        asm_load(a, JIT_RAX, JIT_PAGE_BASE(jit));
        asm_lea(a, JIT_RAX, JIT_MEM(JIT_RAX, (int32_t)(ea->disp + more)));
    } else {
        struct jit_rm rm = plain_rm(ea, more);
        if (!resident(ea->base)) {
            asm_load(a, JIT_RAX, jit_slot(jit, ea->base));
            rm.base = JIT_RAX;
        }
        if (!resident(ea->index)) {
            asm_load(a, JIT_T, jit_slot(jit, ea->index));
            rm.index = JIT_T;
        }
        asm_lea(a, JIT_RAX, rm);
    }
    if (ea->seg != JIT_NONE)
        asm_op(a, 0x03, 8, JIT_RAX, JIT_ABS(JIT_FIELD(jit->v, ea_base) + ea->seg * 8u));
}

/* JIT_T holds the addend of the page: makes the operand of it. */
struct jit_rm jit_operand(struct jit *jit, const struct jit_ea *ea)
{
    struct jit_asm *a = &jit->a;
    if (ea->seg != JIT_NONE)
        asm_op(a, 0x03, 8, JIT_T, JIT_ABS(JIT_FIELD(jit->v, ea_base) + ea->seg * 8u));
    if (ea->rip) {
        asm_op(a, 0x03, 8, JIT_T, JIT_PAGE_BASE(jit));
        return JIT_MEM(JIT_T, (int32_t)ea->disp);
    }
    struct jit_rm rm = {.reg = JIT_NONE,
                        .base = JIT_T,
                        .index = JIT_NONE,
                        .scale = ea->scale,
                        .disp = (int32_t)ea->disp};
    if (ea->index == JIT_NONE) {
        if (ea->base == JIT_NONE)
            return rm;
        if (!resident(ea->base)) {
            asm_op(a, 0x03, 8, JIT_T, jit_slot(jit, ea->base));
            return rm;
        }
        rm.base = (uint8_t)host_of(ea->base);
        rm.index = JIT_T;
        rm.scale = 0;
        return rm;
    }
    if (ea->base != JIT_NONE)
        asm_op(a, 0x03, 8, JIT_T,
               resident(ea->base) ? JIT_REG((uint8_t)host_of(ea->base)) : jit_slot(jit, ea->base));
    if (resident(ea->index)) {
        rm.index = (uint8_t)host_of(ea->index);
        return rm;
    }
    asm_load(a, JIT_RAX, jit_slot(jit, ea->index));
    rm.index = JIT_RAX;
    rm.disp = 0;
    asm_lea(a, JIT_T, rm);
    return JIT_MEM(JIT_T, (int32_t)ea->disp);
}

void jit_shifted(struct jit *jit, unsigned host, unsigned shift)
{
    struct jit_asm *a = &jit->a;
    if (jit->cache->has_bmi2) { /* RORX */
        asm_insn(a, &(struct jit_op){.vex = true, .map = 3, .vex_pp = 3, .opcode = 0xf0}, JIT_T,
                 JIT_REG((uint8_t)host));
    } else {
        asm_op(a, 0x8b, 4, JIT_T, JIT_REG((uint8_t)host));
        asm_op(a, 0xc1, 4, 5, JIT_REG(JIT_T)); /* shr */
    }
    asm_byte(a, shift);
}

enum { TLB_SHIFT = MEM_PAGE_SHIFT - 5 /* from a linear address to 32 bytes for each page */ };

/* From the address in RAX (of the last byte, or of the first where it is aligned) and JIT_T (of the
 * first byte, shifted) to the addend in JIT_T. Returns the jump of a miss. */
static uint32_t look_up(struct jit *jit, bool write, unsigned align)
{
    struct jit_asm *a = &jit->a;
    uint32_t table = jit->half ? JIT_FIELD(jit->v, tlbs) : 0;
    uint32_t tag =
        write ? offsetof(struct soft_tlb_entry, write) : offsetof(struct soft_tlb_entry, read);
    asm_alu_imm(a, 4, 4, JIT_REG(JIT_T),
                (int)(jit->cache->tlb_entries - 1) * (int)sizeof(struct soft_tlb_entry));
    if (!jit->half)
        asm_op(a, 0x03, 8, JIT_T, JIT_V(jit, tlb));
    asm_alu_imm(a, 4, 8, JIT_REG(JIT_RAX), -(int32_t)MEM_PAGE_SIZE | (int32_t)(align - 1));
    asm_op(a, 0x3b, 8, JIT_RAX, JIT_MEM(JIT_T, (int32_t)(table + tag)));
    uint32_t miss = asm_jcc(a, JIT_CC_NE, 0);
    asm_load(a, JIT_T, JIT_MEM(JIT_T, (int32_t)(table + offsetof(struct soft_tlb_entry, addend))));
    if (jit->cache->check_hit)
        asm_call(a, jit->cache->check_hit);
    return miss;
}
_Static_assert(sizeof(struct soft_tlb_entry) == 32 && TLB_USER == 0, "look_up");

uint32_t jit_check(struct jit *jit, const struct jit_ea *ea, int64_t low, int64_t high, bool write,
                   unsigned align)
{
    struct jit_asm *a = &jit->a;
    struct jit_ea first = *ea;
    int64_t last = align > 1 ? 0 : high - low - 1;
    first.disp = low;
    if (is_plain(ea)) {
        asm_lea(a, JIT_RAX, plain_rm(&first, last));
        if (!last) {
            jit_shifted(jit, JIT_RAX, TLB_SHIFT);
        } else if (low == 0 && ea->index == JIT_NONE && ea->base != JIT_NONE) {
            jit_shifted(jit, host_of(ea->base), TLB_SHIFT);
        } else {
            asm_op(a, 0x8d, 4, JIT_T, plain_rm(&first, 0));
            asm_op(a, 0xc1, 4, 5, JIT_REG(JIT_T)); /* shr */
            asm_byte(a, TLB_SHIFT);
        }
    } else {
        any_address(jit, &first, 0);
        jit_shifted(jit, JIT_RAX, TLB_SHIFT);
        if (last)
            asm_alu_imm(a, 0, 8, JIT_REG(JIT_RAX), (int32_t)last);
    }
    return look_up(jit, write, align);
}

struct jit_rm jit_access(struct jit *jit, unsigned k, const struct jit_ea *ea, unsigned size,
                         bool write, unsigned align)
{
    struct jit_rm rm;
    if (align == 1 && is_plain(ea) && jit_group_access(jit, k, ea, size, write, &rm))
        return rm;
    /* Stacks are aligned, and that is the shorter check. */
    if (ea->base == CPU_RSP && ea->index == JIT_NONE && size == 8)
        align = 8;
    jit_flags_lose(jit);
    struct jit_slow *slow = jit_slow_new(jit, k, jit_group_end(jit, k) - k);
    slow->jump = jit_check(jit, ea, ea->disp, ea->disp + size, write, align);
    return jit_operand(jit, ea);
}
