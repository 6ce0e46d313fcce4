/*
 * The way into units and out of them.
 *
 * At the start of the cache stands the *prelude*, a few pieces of code for all units:
 *
 *   enter        C calls it: saves the callee's registers, loads the guest's, jumps to the target
 *   exit_*       units jump to them: note why, go on to leave
 *   leave        stores the guest's registers, spills vectors, returns to C
 *   slow         stubs call it: the handlers of some instructions, in C, on the vCPU's state
 *   load_vectors units call it when vectors lie in memory and they want them in registers
 *   check_hit    units call it behind each hit of the TLB, if somebody wants that checked
 *
 * Whatever leaves does so by the stack pointer that `enter` put down, so that nothing has to be
 * popped, and longjmp() out of C below is as good as a return.
 */
#include "cpu/soft/jit_unit.h"
#include "cpu/soft/native.h"
#include "cpu/soft/system.h"

static const uint8_t saved_registers[] = {JIT_RBX, JIT_RBP, JIT_R12, JIT_R13, JIT_R14, JIT_R15};

/* ---- the slow path in C ---- */

/* Stands behind the last instruction that handlers are to do. */
static void op_stop_here(struct soft_vcpu *v, const struct insn *insn)
{
    (void)insn;
    v->jit->completed = true;
}

static void put_back(struct soft_jit *cache)
{
    /* A store into the block itself may have put something else there, which is to stay. */
    if (cache->stop && cache->stop->run == op_stop_here)
        cache->stop->run = cache->stopped;
    cache->stop = NULL;
}

void jit_forget_want(struct soft_vcpu *v)
{
    if (v->jit)
        v->jit->want = 0;
}

void jit_recover(struct soft_vcpu *v)
{
    if (!v->jit)
        return;
    v->jit->want = 0;
    put_back(v->jit);
}

static uint64_t page_base(const struct jit_unit *unit)
{
    return ((const struct jit_place *)(uintptr_t)unit->place)->base;
}

/* The block is where handlers expect it. In a counting run it has been counted already. */
static void be_at(struct soft_vcpu *v, const struct jit_unit *unit, unsigned index)
{
    v->block = unit->block;
    v->gpr[SOFT_RIP] = page_base(unit) + unit->offset;
    if (!v->jit->counting)
        v->instructions += unit->block->count - index;
}

static uint64_t slow(struct soft_vcpu *v)
{
    struct soft_jit *cache = v->jit;
    const struct jit_unit *unit = &cache->units[v->jit_state.exit_unit];
    struct soft_block *block = unit->block;
    unsigned first = v->jit_state.exit_index & 0xffff, count = v->jit_state.exit_index >> 16;
    cache->slow_paths++;
    be_at(v, unit, first);
    cache->stop = &block->insns[first + count];
    cache->stopped = cache->stop->run;
    cache->stop->run = op_stop_here;
    cache->completed = false;
    block->insns[first].run(v, &block->insns[first]);
    bool whole = cache->stop->run == op_stop_here;
    put_back(cache);
    if (!cache->completed)
        return JIT_SLOW_LEAVE;
    const struct insn *next = &block->insns[first + count];
    if (!whole) {
        block_restart(v, next);
        return JIT_SLOW_LEAVE;
    }
    /* It may be this vCPU's own store, which holds from the next branch on. This unit goes on to
     * its end: none of its instructions has changed by it, and no stub goes back to a patched
     * entry. Only its own loop does not pass that, but it polls. */
    if (atomic_load_explicit(&v->attention, memory_order_relaxed) & ATTENTION_CODE) {
        jit_code_events(v);
        if (!unit->connected)
            atomic_fetch_or(&v->attention, ATTENTION_CODE);
    }
    if (!cache->counting)
        v->instructions -= (uint64_t)(block->insns + block->count - next);
    return unit->vectors ? JIT_SLOW_VECTORS : JIT_SLOW_ON;
}

/* Vector registers hold the guest's: no code here may use them. */
__attribute__((target("general-regs-only"))) static void check_hit(struct soft_vcpu *v,
                                                                   uint64_t page, uint64_t addend)
{
    const struct mem *mem = v->vm->mem;
    bool inside = false;
    for (unsigned i = 0; i < mem->count; i++) {
        const struct mem_region *region = &mem->regions[i];
        inside |= page + addend - (uint64_t)(uintptr_t)region->host <= region->size - MEM_PAGE_SIZE;
    }
    assert(inside);
}

/* ---- the prelude ---- */

static void store_registers(struct soft_vcpu *v, struct jit_asm *a)
{
    for (unsigned guest = 0; guest < 16; guest++)
        if (jit_host_of[guest] != JIT_NONE)
            asm_store(a, jit_host_of[guest], JIT_ABS(JIT_FIELD(v, gpr) + guest * 8));
}

static void load_registers(struct soft_vcpu *v, struct jit_asm *a)
{
    for (unsigned guest = 0; guest < 16; guest++)
        if (jit_host_of[guest] != JIT_NONE)
            asm_load(a, jit_host_of[guest], JIT_ABS(JIT_FIELD(v, gpr) + guest * 8));
}

static void move_vectors(struct soft_vcpu *v, const struct soft_jit *cache, struct jit_asm *a,
                         bool store)
{
    for (unsigned i = 0; i < 16; i++) {
        struct jit_op op = {.map = 1,
                            .opcode = store ? 0x29 : 0x28, /* (V)MOVAPS */
                            .vex = cache->has_avx,
                            .vex_l = 1};
        asm_insn(a, &op, i, JIT_ABS(JIT_FIELD(v, vector) + i * 32));
    }
    if (store && cache->has_avx)
        asm_bytes(a, "\xc5\xf8\x77", 3); /* vzeroupper: C may use legacy SSE */
}

static void set_byte(struct jit_asm *a, uint32_t address, unsigned value)
{
    asm_op(a, 0xc6, 4, 0, JIT_ABS(address));
    asm_byte(a, value);
}

static void set_dword(struct jit_asm *a, uint32_t address, uint32_t value)
{
    asm_op(a, 0xc7, 4, 0, JIT_ABS(address));
    asm_number(a, value, 4);
}

/* Destroys EFLAGS. */
static void spill_vectors(struct soft_vcpu *v, const struct soft_jit *cache, struct jit_asm *a)
{
    asm_op(a, 0x80, 4, 7, JIT_ABS(JIT_FIELD(v, jit_state.vector_live)));
    asm_byte(a, 0);
    uint32_t skip = asm_jcc(a, JIT_CC_E, 0);
    move_vectors(v, cache, a, true);
    set_byte(a, JIT_FIELD(v, jit_state.vector_live), 0);
    asm_patch(a, skip, asm_here(a));
}

static void make_enter(struct soft_vcpu *v, struct soft_jit *cache, struct jit_asm *a)
{
    cache->enter = asm_here(a);
    for (unsigned i = 0; i < sizeof saved_registers; i++) {
        if (saved_registers[i] >= 8)
            asm_byte(a, 0x41);
        asm_byte(a, 0x50 | (saved_registers[i] & 7));
    }
    asm_alu_imm(a, 5, 8, JIT_REG(JIT_RSP), 8); /* aligned to 16 again */
    asm_store(a, JIT_RSP, JIT_ABS(JIT_FIELD(v, jit_state.host_rsp)));
    load_registers(v, a);
    asm_op(a, 0xff, 4, 4, JIT_ABS(JIT_FIELD(v, jit_state.target)));
}

static void make_leave(struct soft_vcpu *v, struct soft_jit *cache, struct jit_asm *a)
{
    cache->leave = asm_here(a);
    store_registers(v, a);
    spill_vectors(v, cache, a);
    cache->exit_memory = asm_here(a);
    asm_load(a, JIT_RSP, JIT_ABS(JIT_FIELD(v, jit_state.host_rsp)));
    asm_alu_imm(a, 0, 8, JIT_REG(JIT_RSP), 8);
    for (unsigned i = sizeof saved_registers; i-- > 0;) {
        if (saved_registers[i] >= 8)
            asm_byte(a, 0x41);
        asm_byte(a, 0x58 | (saved_registers[i] & 7));
    }
    asm_byte(a, 0xc3);
}

/* RAX is a link or a unit, JIT_T an instruction. */
static uint32_t make_exit(struct soft_vcpu *v, struct soft_jit *cache, struct jit_asm *a,
                          enum jit_exit_kind kind)
{
    uint32_t here = asm_here(a);
    if (kind == JIT_EXIT_LINK || kind == JIT_EXIT_POLL) {
        asm_op(a, 0x89, 4, JIT_RAX, JIT_ABS(JIT_FIELD(v, jit_state.exit_index)));
    } else {
        asm_op(a, 0x89, 4, JIT_RAX, JIT_ABS(JIT_FIELD(v, jit_state.exit_unit)));
        asm_op(a, 0x89, 4, JIT_T, JIT_ABS(JIT_FIELD(v, jit_state.exit_index)));
    }
    set_dword(a, JIT_FIELD(v, jit_state.exit_kind), kind);
    asm_jmp(a, cache->leave);
    return here;
}

/* Called with RAX = unit, JIT_T = first | count << 16, the flags in memory. */
static void make_slow(struct soft_vcpu *v, struct soft_jit *cache, struct jit_asm *a)
{
    cache->slow = asm_here(a);
    asm_op(a, 0x89, 4, JIT_RAX, JIT_ABS(JIT_FIELD(v, jit_state.exit_unit)));
    asm_op(a, 0x89, 4, JIT_T, JIT_ABS(JIT_FIELD(v, jit_state.exit_index)));
    store_registers(v, a);
    spill_vectors(v, cache, a);
    set_dword(a, JIT_FIELD(v, jit_state.exit_kind), JIT_EXIT_RIP);
    asm_mov_imm(a, JIT_RDI, (uint64_t)(uintptr_t)v);
    asm_mov_imm(a, JIT_RAX, (uint64_t)(uintptr_t)slow);
    asm_alu_imm(a, 5, 8, JIT_REG(JIT_RSP), 8);
    asm_op(a, 0xff, 4, 2, JIT_REG(JIT_RAX));
    asm_alu_imm(a, 0, 8, JIT_REG(JIT_RSP), 8);
    asm_alu_imm(a, 7, 4, JIT_REG(JIT_RAX), JIT_SLOW_VECTORS);
    uint32_t vectors = asm_jcc(a, JIT_CC_E, 0);
    asm_jcc(a, 7 /* above: JIT_SLOW_LEAVE */, cache->exit_memory);
    load_registers(v, a);
    asm_byte(a, 0xc3);
    asm_patch(a, vectors, asm_here(a));
    load_registers(v, a);
    cache->load_vectors = asm_here(a);
    move_vectors(v, cache, a, false);
    set_byte(a, JIT_FIELD(v, jit_state.vector_live), 1);
    asm_byte(a, 0xc3);
}

/* Called behind a hit: RAX is the page, JIT_T the addend. Destroys EFLAGS, nothing else. */
static void make_check_hit(struct soft_vcpu *v, struct soft_jit *cache, struct jit_asm *a)
{
    cache->check_hit = asm_here(a);
    store_registers(v, a);
    asm_bytes(a, "\x50\x41\x56", 3); /* PUSH RAX, R14 */
    asm_alu_imm(a, 5, 8, JIT_REG(JIT_RSP), 8);
    asm_mov_imm(a, JIT_RDI, (uint64_t)(uintptr_t)v);
    asm_op(a, 0x8b, 8, JIT_RSI, JIT_REG(JIT_RAX));
    asm_op(a, 0x8b, 8, JIT_RDX, JIT_REG(JIT_T));
    asm_mov_imm(a, JIT_RAX, (uint64_t)(uintptr_t)check_hit);
    asm_op(a, 0xff, 4, 2, JIT_REG(JIT_RAX));
    asm_alu_imm(a, 0, 8, JIT_REG(JIT_RSP), 8);
    asm_bytes(a, "\x41\x5e\x58", 3); /* POP R14, RAX */
    load_registers(v, a);
    asm_byte(a, 0xc3);
}

void jit_make_prelude(struct soft_vcpu *v, struct soft_jit *cache)
{
    struct jit_asm a = {.start = cache->write_alias,
                        .at = cache->write_alias,
                        .end = cache->write_alias + MEM_PAGE_SIZE,
                        .delta = cache->delta};
    make_enter(v, cache, &a);
    make_leave(v, cache, &a);
    cache->exit_link = make_exit(v, cache, &a, JIT_EXIT_LINK);
    cache->exit_poll = make_exit(v, cache, &a, JIT_EXIT_POLL);
    cache->exit_insn = make_exit(v, cache, &a, JIT_EXIT_INSN);
    cache->exit_stale = make_exit(v, cache, &a, JIT_EXIT_STALE);
    make_slow(v, cache, &a);
    if (v->vm->config.check_tlb)
        make_check_hit(v, cache, &a);
    assert(!a.full);
    cache->prelude = align_up((size_t)(a.at - a.start), 64);
}

/* ---- running ---- */

/* The modes that jump caches and guards hold for. */
static void check_mode(struct soft_vcpu *v)
{
    if ((v->mode & ~(uint32_t)MODE_CPL) == v->jit->mode)
        return;
    v->jit->mode = v->mode & ~(uint32_t)MODE_CPL;
    jit_epoch_flush(v, true);
}

static unsigned jump_slot(uint64_t rip)
{
    return (unsigned)(rip >> JIT_JUMP_SHIFT) % JIT_JUMPS;
}

uint32_t jit_remembered(struct soft_vcpu *v)
{
    struct jit_state *state = &v->jit_state;
    if (v->jit->want) /* the link is to be made, and that wants the block */
        return 0;
    check_mode(v);
    unsigned half = (v->mode & MODE_CPL) != 0;
    uint64_t rip = v->gpr[SOFT_RIP];
    unsigned slot = jump_slot(rip);
    return state->jump_keys[half][slot] == rip ? (uint32_t)state->jump_code[half][slot] : 0;
}

uint32_t jit_entry(struct soft_vcpu *v, struct soft_block *block)
{
    struct soft_jit *cache = v->jit;
    struct jit_state *state = &v->jit_state;
    const struct jit_unit *unit = &cache->units[block->unit];
    check_mode(v);
    jit_place_set(v, unit);
    if (cache->want)
        jit_make_link(v, cache->want, block);
    cache->want = 0;
    unsigned half = (v->mode & MODE_CPL) != 0;
    uint64_t rip = v->gpr[SOFT_RIP];
    unsigned slot = jump_slot(rip);
    if (state->jump_keys[half][slot] == jit_jump_empty(slot)) {
        if (cache->jumps_count[half] < JIT_JUMPS_USED)
            cache->jumps_used[half][cache->jumps_count[half]] = (uint16_t)slot;
        cache->jumps_count[half] += cache->jumps_count[half] <= JIT_JUMPS_USED;
    }
    state->jump_keys[half][slot] = rip;
    state->jump_code[half][slot] = unit->entry_saved;
    jit_note_page(v, rip);
    return unit->entry_saved;
}

const struct insn *jit_run(struct soft_vcpu *v, uint32_t entry)
{
    struct soft_jit *cache = v->jit;
    struct jit_state *state = &v->jit_state;
    const struct jit_unit *unit;
    unsigned slot, index;
    state->target = entry;
    ((void (*)(void))(uintptr_t)cache->enter)();
    cache->exits++;
    v->block = NULL;
    switch ((enum jit_exit_kind)state->exit_kind) {
    case JIT_EXIT_RIP: break;
    case JIT_EXIT_LINK: cache->want = state->exit_index; /* fall through */
    case JIT_EXIT_POLL: {
        const struct jit_link *link = &cache->links[state->exit_index];
        unit = &cache->units[link->unit];
        v->gpr[SOFT_RIP] = page_base(unit) + (uint64_t)link->target;
        if (likely(canonical(v->gpr[SOFT_RIP])) || link->way == JIT_WAY_FALL)
            break;
        /* That is a fault of the branch, which its handler raises: as if nothing had been done. */
        cache->want = 0;
        if (link->way == JIT_WAY_CALL)
            v->gpr[CPU_RSP] += 8;
        index = unit->block->count - 1u;
        be_at(v, unit, index);
        return &unit->block->insns[index];
    }
    case JIT_EXIT_INSN:
        unit = &cache->units[state->exit_unit];
        be_at(v, unit, state->exit_index);
        return &unit->block->insns[state->exit_index];
    case JIT_EXIT_STALE:
        cache->stale++;
        v->gpr[SOFT_RIP] =
            page_base(&cache->units[state->exit_unit]) + cache->units[state->exit_unit].offset;
        /* To be looked up, not remembered. */
        slot = jump_slot(v->gpr[SOFT_RIP]);
        state->jump_keys[(v->mode & MODE_CPL) != 0][slot] = jit_jump_empty(slot);
        break;
    }
    return NULL;
}

/* ---- host exceptions ---- */

/* The unit whose code the address lies in; 0: none. */
static uint32_t unit_at(const struct soft_jit *cache, uint64_t address)
{
    uint64_t start = (uint64_t)(uintptr_t)cache->execute_alias;
    if (address < start + cache->prelude || address >= start + cache->used)
        return 0;
    uint32_t low = 1, high = cache->unit_count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (cache->units[middle].start <= address)
            low = middle;
        else
            high = middle;
    }
    return low < cache->unit_count && cache->units[low].block ? low : 0;
}

bool jit_redirect(struct soft_vcpu *v, greg_t *regs)
{
    struct soft_jit *cache = v->jit;
    uint64_t address = (uint64_t)regs[REG_RIP];
    uint32_t number = cache ? unit_at(cache, address) : 0;
    const struct jit_unit *unit = number ? &cache->units[number] : NULL;
    unsigned count = unit ? unit->trap_count : 0;
    const struct jit_trap_note *note = unit ? (const void *)(uintptr_t)unit->traps : NULL;
    while (count && unit->start + note->at != address) {
        note++;
        count--;
    }
    if (!count)
        return false;
    if (note->stub) {
        regs[REG_RIP] = (greg_t)unit->start + note->stub;
        return true;
    }
    if (note->host)
        v->flags = (uint16_t)((regs[REG_EFL] & 0xd5) << 8 | 0x200 | ((regs[REG_EFL] >> 11) & 1));
    regs[REG_RAX] = number;
    regs[REG_R14] = note->index;
    regs[REG_RIP] = cache->exit_insn;
    return true;
}
