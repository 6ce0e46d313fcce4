/*
 * One block into one unit.
 *
 *     [guards]                      epochs of links across pages
 *     entry_host:  save the flags   or nothing, or
 *     entry_saved: restore them     whatever suits the first instruction that cares
 *     count, vectors                in a counting run; if vector registers are used
 *     body:        the instructions, then the edges (jit_branch.c)
 *     slow paths   of checks that miss
 *     stubs        of links not made, and of polls
 *     stale_*      where the entries lead while the unit is disconnected
 *     traps        stubs and notes of instructions that may raise host exceptions
 */
#include "cpu/soft/jit_unit.h"

/* Where do the flags have to be when the first instruction begins? */
static enum jit_need need_of(const struct jit *jit)
{
    for (unsigned k = 0; k < jit->count; k++) {
        const struct decoded *d = &jit->decoded[k];
        if (decode_shows_flags(jit->v, d)) {
            bool jcc = d->zydis.meta.category == ZYDIS_CATEGORY_COND_BR && decode_uses_flags(d);
            return jcc ? JIT_NEED_HOST : JIT_NEED_SAVED;
        }
        if (decode_uses_flags(d))
            return JIT_NEED_HOST;
        if (decode_kills_flags(d))
            return JIT_NEED_NOTHING;
    }
    return JIT_NEED_SAVED;
}

static void emit_count(struct jit *jit)
{
    asm_alu_imm(&jit->a, 0, 8, JIT_V(jit, instructions), (int32_t)jit->count);
}

/* In front of the body. EFLAGS may be destroyed. */
static void emit_vectors(struct jit *jit)
{
    struct jit_asm *a = &jit->a;
    asm_op(a, 0x80, 4, 7, JIT_V(jit, jit_state.vector_live));
    asm_byte(a, 0);
    uint32_t skip = asm_jcc(a, JIT_CC_NE, 0);
    asm_call(a, jit->cache->load_vectors);
    asm_patch(a, skip, asm_here(a));
}

static void emit_entries(struct jit *jit, struct jit_unit *unit)
{
    bool prologue = jit->vectors || jit->cache->counting;
    jit->need = need_of(jit);
    unit->entry_host = asm_here(&jit->a);
    jit->flags = (struct jit_flags){.host = true};
    if (jit->need == JIT_NEED_HOST && prologue)
        jit->need = JIT_NEED_SAVED;
    switch (jit->need) {
    case JIT_NEED_NOTHING: /* two entries all the same: while it is disconnected it matters */
        asm_bytes(&jit->a, "\x0f\x1f\x44\x00\x00", JIT_PATCH);
        unit->entry_saved = asm_here(&jit->a);
        break;
    case JIT_NEED_SAVED:
        jit_flags_need_saved(jit);
        unit->entry_saved = asm_here(&jit->a);
        jit->flags.host = false;
        break;
    case JIT_NEED_HOST: /* entry_saved comes first and falls through */
        unit->entry_saved = unit->entry_host;
        jit_flags_restore(jit);
        unit->entry_host = asm_here(&jit->a);
        break;
    }
    if (jit->cache->counting)
        emit_count(jit);
    if (jit->vectors)
        emit_vectors(jit);
    jit->body = asm_here(&jit->a);
}

/* Handlers do instructions [first, first + count). */
static void emit_handlers(struct jit *jit, unsigned first, unsigned count)
{
    struct jit_asm *a = &jit->a;
    jit_flags_need_saved(jit);
    asm_mov_imm(a, JIT_RAX, jit->unit);
    asm_mov_imm(a, JIT_T, first | count << 16);
    asm_call(a, jit->cache->slow);
    jit->flags = (struct jit_flags){.saved = true};
}

static void emit_exit(struct jit *jit, unsigned k)
{
    struct jit_asm *a = &jit->a;
    jit_flags_need_saved(jit);
    asm_mov_imm(a, JIT_RAX, jit->unit);
    asm_mov_imm(a, JIT_T, k);
    asm_jmp(a, jit->cache->exit_insn);
}

/* Slow paths that end in front of instruction k go on here. */
static void slow_paths_return(struct jit *jit, unsigned k)
{
    for (unsigned i = jit->slow_first; i < jit->slow_count; i++) {
        struct jit_slow *slow = &jit->slow[i];
        if (slow->count && slow->first + slow->count == k) {
            slow->back = asm_here(&jit->a);
            slow->host_after = jit->flags.host;
        }
    }
}

struct jit_trap *jit_may_trap(struct jit *jit, unsigned k)
{
    assert(jit->trap_count < JIT_TRAPS_MAX);
    struct jit_trap *trap = &jit->traps[jit->trap_count++];
    *trap = (struct jit_trap){.index = k, .before = jit->flags};
    return trap;
}

static void emit_body(struct jit *jit)
{
    unsigned waiting = 0; /* instructions before k that handlers are to do */
    bool alone = jit->block->flags & BLOCK_ALONE;
    for (unsigned k = 0; k < jit->count; k++) {
        bool last = k + 1 == jit->count;
        struct jit_flags before = jit->flags;
        uint8_t *at = jit->a.at;
        unsigned slow_count = jit->slow_count, stub_count = jit->stub_count;
        unsigned trap_count = jit->trap_count;
        if (waiting)
            emit_handlers(jit, k - waiting, waiting);
        bool done = true;
        if (last && alone)
            done = jit_sti(jit, k);
        else if (!last && jit->block->insns[k].flags & INSN_JCC)
            jit_side_exit(jit, k);
        else
            done = jit_insn(jit, k);
        if (!done && last && !alone && jit_branch(jit, k)) {
            done = true;
            jit->ended = true;
        }
        if (done) {
            waiting = 0;
            if (jit->ended) /* its handler goes on to other blocks: not from in here */
                for (unsigned i = slow_count; i < jit->slow_count; i++)
                    jit->slow[i].count = 0;
            jit_group_after(jit, k);
            slow_paths_return(jit, k + 1);
            continue;
        }
        if (jit->group.open)
            jit->broken = true;
        /* Nothing of it counts. */
        jit->a.at = at;
        jit->flags = before;
        jit->slow_count = slow_count;
        jit->stub_count = stub_count;
        jit->trap_count = trap_count;
        waiting++;
    }
    if (jit->ended)
        return;
    const struct decoded *d = &jit->decoded[jit->count - 1];
    bool ends = alone || d->undefined || d->too_long || decode_is_barrier(jit->v, d);
    if (waiting && ends) {
        emit_exit(jit, jit->count - waiting);
        return;
    }
    if (waiting)
        emit_handlers(jit, jit->count - waiting, waiting);
    jit_edge(jit, (int64_t)(jit->block->gpa & SOFT_PAGE_MASK) + d->end, JIT_WAY_FALL);
}

/* The loop wants its flags saved at its start, but its end can compute them again: so can a second
 * body that begins with these flags and loops to itself. */
static void emit_again(struct jit *jit)
{
    asm_patch(&jit->a, jit->again_jump, asm_here(&jit->a));
    jit->again_body = asm_here(&jit->a);
    jit->flags = jit->again_flags;
    jit->is_again = true;
    jit->ended = false;
    jit->slow_first = jit->slow_count;
    emit_body(jit);
}

static void emit_slow_paths(struct jit *jit)
{
    struct jit_asm *a = &jit->a;
    for (unsigned i = 0; i < jit->slow_count; i++) {
        struct jit_slow *slow = &jit->slow[i];
        asm_patch(a, slow->jump, asm_here(a));
        jit_flags_save_cold(jit, &slow->before);
        asm_mov_imm(a, JIT_RAX, jit->unit);
        asm_mov_imm(a, JIT_T, slow->first | (unsigned)slow->count << 16);
        if (slow->count == 0) {
            asm_jmp(a, jit->cache->exit_insn);
            continue;
        }
        asm_call(a, jit->cache->slow);
        if (slow->host_after)
            jit_flags_restore(jit);
        asm_jmp(a, slow->back);
    }
}

static void emit_stubs(struct jit *jit)
{
    struct jit_asm *a = &jit->a;
    for (unsigned i = 0; i < jit->stub_count; i++) {
        struct jit_stub *stub = &jit->stubs[i];
        uint32_t here = asm_here(a);
        asm_patch(a, stub->jump, here);
        struct jit_link *link = &jit->cache->links[stub->link];
        if (!stub->poll) {
            link->stub = here;
            if (link->guard)
                asm_patch(a, link->displacement, here);
        }
        jit_flags_save_cold(jit, &stub->before);
        asm_mov_imm(a, JIT_RAX, stub->link);
        asm_jmp(a, stub->poll ? jit->cache->exit_poll : jit->cache->exit_link);
    }
}

/* Stubs and notes for the handler of host exceptions (jit_redirect). */
static void emit_traps(struct jit *jit, struct jit_unit *unit)
{
    struct jit_asm *a = &jit->a;
    struct jit_trap_note notes[JIT_TRAPS_MAX];
    for (unsigned i = 0; i < jit->trap_count; i++) {
        const struct jit_trap *trap = &jit->traps[i];
        notes[i] = (struct jit_trap_note){.at = (uint16_t)(trap->at - unit->start),
                                          .index = (uint8_t)trap->index,
                                          .host = trap->before.host};
        if (trap->before.host || trap->before.saved)
            continue;
        notes[i].stub = (uint16_t)(asm_here(a) - unit->start);
        jit_flags_save_cold(jit, &trap->before);
        asm_mov_imm(a, JIT_RAX, jit->unit);
        asm_mov_imm(a, JIT_T, trap->index);
        asm_jmp(a, jit->cache->exit_insn);
    }
    asm_bytes(a, "\xcc\xcc\xcc\xcc\xcc\xcc\xcc", -asm_here(a) & 7);
    unit->traps = asm_here(a);
    unit->trap_count = (uint8_t)jit->trap_count;
    asm_bytes(a, notes, jit->trap_count * sizeof notes[0]);
}

static void emit_stale(struct jit *jit, struct jit_unit *unit)
{
    struct jit_asm *a = &jit->a;
    unit->stale_host = asm_here(a);
    jit_flags_save_cold(jit, &(struct jit_flags){.host = true});
    unit->stale_saved = asm_here(a);
    asm_mov_imm(a, JIT_RAX, jit->unit);
    asm_jmp(a, jit->cache->exit_stale);
}

static bool crosses(const struct jit *jit)
{
    const struct decoded *d = &jit->decoded[jit->count - 1];
    int64_t end = (int64_t)(jit->block->gpa & SOFT_PAGE_MASK) + d->end;
    if (end >= MEM_PAGE_SIZE)
        return true;
    const ZydisDecodedOperand *to = &d->operands[0];
    if (d->undefined || d->too_long || to->type != ZYDIS_OPERAND_TYPE_IMMEDIATE ||
        !to->imm.is_relative)
        return false;
    int64_t target = end + to->imm.value.s;
    return target < 0 || target >= MEM_PAGE_SIZE;
}

static void emit(struct jit *jit, struct jit_unit *unit)
{
    struct jit_asm *a = &jit->a;
    if (crosses(jit))
        for (unsigned i = 0; i < ARRAY_LEN(jit->guards); i++) {
            jit->guards[i] = asm_here(a);
            asm_number(a, 0, sizeof(uint64_t)); /* no epoch */
        }
    unit->start = asm_here(a);
    emit_entries(jit, unit);
    emit_body(jit);
    if (jit->again_jump)
        emit_again(jit);
    emit_slow_paths(jit);
    emit_stubs(jit);
    emit_stale(jit, unit);
    emit_traps(jit, unit);
}

bool jit_translate(struct soft_vcpu *v, struct soft_block *block)
{
    struct soft_jit *cache = v->jit;
    uint32_t number = cache->unit_count;
    if (block != v->cache->single)
        block = block_extend(v, block);
    block->heat = INT32_MIN;
    if (block->flags & (BLOCK_STRADDLES | BLOCK_SPOILED) || block->mode != v->mode ||
        block == v->cache->single)
        return false;
    if (!jit_make_room(cache)) {
        block_forget_all(v); /* this block too: whoever comes finds nothing */
        return false;
    }
    decode_again(v, block);
    uint32_t place = jit_place_of(cache, block);
    struct jit *jit = &cache->work;
    *jit = (struct jit){
        .v = v,
        .cache = cache,
        .block = block,
        .unit = number,
        .decoded = v->cache->decoded,
        .count = block->count,
        .half = (v->mode & MODE_CPL) != 0,
        .place = place,
        .slow = cache->work_slow,
        .traps = cache->work_traps,
        .stubs = cache->work_stubs,
        .a = {.start = cache->write_alias + align_up(cache->used, 16),
              .at = cache->write_alias + align_up(cache->used, 16),
              .end = cache->write_alias + cache->size,
              .delta = cache->delta},
    };
    struct jit_unit *unit = &cache->units[number];
    *unit = (struct jit_unit){
        .block = block, .offset = (uint16_t)(block->gpa & SOFT_PAGE_MASK), .place = place};
    uint32_t links = cache->link_count;
    jit->vectors = jit_uses_vectors(jit);
    jit->grouping = true;
    emit(jit, unit);
    if (jit->broken) {
        cache->link_count = links;
        decode_again(v, block);
        jit->grouping = jit->broken = jit->ended = jit->group.open = false;
        jit->slow_count = jit->stub_count = jit->guard_count = 0;
        jit->slow_first = jit->trap_count = jit->again_jump = 0;
        jit->is_again = false;
        jit->a.at = jit->a.start;
        emit(jit, unit);
    }
    if (jit->failed || jit->a.full) {
        cache->link_count = links;
        return false;
    }
    unit->vectors = jit->vectors;
    jit_unit_add(cache, number);
    if (number == JIT_UNITS_FIRST && v->cache->heat_limit == JIT_HEAT_FIRST)
        v->cache->heat_limit = JIT_HEAT;
    cache->used = (size_t)(jit->a.at - cache->write_alias);
    block->heat = INT32_MAX; /* whoever enters it goes to the loop, which runs the unit */
    return true;
}
