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
 *
 * Whatever leaves does so by the stack pointer that `enter` put down, so that nothing has to be
 * popped, and longjmp() out of C below is as good as a return.
 */
#include "cpu/soft/jit_unit.h"
#include "cpu/soft/native.h"

#include <stdlib.h>

static const uint8_t saved_registers[] = {JIT_RBX, JIT_RBP, JIT_R12, JIT_R13, JIT_R14, JIT_R15};

static int jx_flag=-1; static inline bool jx_on(void) { if (jx_flag<0) jx_flag=getenv("JS")!=NULL; return jx_flag; } /* XXX */
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

/* The block is where handlers expect it. In a counting run it has been counted already. */
static void be_at(struct soft_vcpu *v, const struct jit_unit *unit, unsigned index)
{
    v->block = unit->block;
    v->gpr[SOFT_RIP] = v->jit_state.page_base + unit->offset;
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
    if (jx_on()) { extern uint64_t jx_slow[3000]; static ZydisDecoder zd; static int init; if(!init){ZydisDecoderInit(&zd,ZYDIS_MACHINE_MODE_LONG_64,ZYDIS_STACK_WIDTH_64);init=1;} ZydisDecodedInstruction zi; unsigned off=block->insns[first].end-block->insns[first].len; ZydisDecoderDecodeInstruction(&zd,NULL,block->bytes+off,15,&zi); jx_slow[zi.mnemonic]++; } /* XXX */
    be_at(v, unit, first);
    cache->stop = &block->insns[first + count];
    cache->stopped = cache->stop->run;
    cache->stop->run = op_stop_here;
    cache->completed = false;
    if (jx_on()) { extern uint64_t jx_why[8]; const struct insn *in=&block->insns[first]; if (in->flags & INSN_MEMORY) { uint64_t l=insn_offset(v,in)+v->ea_base[in->seg]; struct soft_tlb_entry *e=tlb_slot(v,l); if (e->write==(l&~4095ul)) jx_why[0]++; else if (e->read==(l&~4095ul)) { const struct mem_region *r=mem_find(v->vm->mem,e->page&~4095ul); if (r && r->marks[((e->page&~4095ul)-r->start)>>12] & MEM_PAGE_CODE) jx_why[1]++; else jx_why[2]++; } else if (e->read==TLB_NONE) jx_why[3]++; else jx_why[4]++; } else jx_why[5]++; } /* XXX */
    block->insns[first].run(v, &block->insns[first]);
    bool whole = cache->stop->run == op_stop_here;
    put_back(cache);
    if (!cache->completed)
        return JIT_SLOW_LEAVE;
    const struct insn *next = &block->insns[first + count];
    if (!whole || atomic_load_explicit(&v->attention, memory_order_relaxed) & ATTENTION_CODE) {
        block_restart(v, next);
        return JIT_SLOW_LEAVE;
    }
    if (!cache->counting)
        v->instructions -= (uint64_t)(block->insns + block->count - next);
    return unit->vectors ? JIT_SLOW_VECTORS : JIT_SLOW_ON;
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
    } else if (kind != JIT_EXIT_RIP) {
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

void jit_make_prelude(struct soft_vcpu *v, struct soft_jit *cache)
{
    struct jit_asm a = {.start = cache->write_alias,
                        .at = cache->write_alias,
                        .end = cache->write_alias + MEM_PAGE_SIZE,
                        .delta = cache->delta};
    make_enter(v, cache, &a);
    make_leave(v, cache, &a);
    cache->exit_rip = make_exit(v, cache, &a, JIT_EXIT_RIP);
    cache->exit_link = make_exit(v, cache, &a, JIT_EXIT_LINK);
    cache->exit_poll = make_exit(v, cache, &a, JIT_EXIT_POLL);
    cache->exit_insn = make_exit(v, cache, &a, JIT_EXIT_INSN);
    cache->exit_stale = make_exit(v, cache, &a, JIT_EXIT_STALE);
    make_slow(v, cache, &a);
    assert(!a.full);
    cache->prelude = align_up((size_t)(a.at - a.start), 64);
}

/* XXX */
#include <stdio.h>
uint64_t jx_why[8], jx_ret[8], jx_kind[8], jx_insn[3000], jx_slow[3000], jx_want[4];
void jx_dump(struct soft_vcpu *v);
void jx_dump(struct soft_vcpu *v) {
    struct soft_jit *c=v->jit; if(!c) return;
    fprintf(stderr,"translated %lu resets %lu slow %lu stale %lu exits %lu blocks %lu forgotten %lu reval %lu used %zu links %u epochs %lu\n",c->translated,c->resets,c->slow_paths,c->stale,c->exits,v->cache->blocks,v->cache->forgotten,v->cache->revalidated,c->used,c->link_count,c->epochs);
    fprintf(stderr,"epochs: global %lu local+k %lu local %lu page %lu\n",jx_want[0],jx_want[1],jx_want[2],jx_want[3]);
    fprintf(stderr,"ret: attention %lu tlb %lu empty %lu epoch %lu other %lu hit %lu\n",jx_ret[0],jx_ret[1],jx_ret[2],jx_ret[3],jx_ret[4],jx_ret[5]);
    fprintf(stderr,"why: writable %lu code %lu readonly %lu empty %lu other %lu nomem %lu\n",jx_why[0],jx_why[1],jx_why[2],jx_why[3],jx_why[4],jx_why[5]);
    fprintf(stderr,"kinds rip %lu link %lu poll %lu insn %lu stale %lu\n",jx_kind[0],jx_kind[1],jx_kind[2],jx_kind[3],jx_kind[4]);
    for(int k=0;k<2;k++){ uint64_t *t=k?jx_slow:jx_insn; for(int n=0;n<16;n++){int b=0; for(int i=0;i<3000;i++) if(t[i]>t[b]) b=i; if(!t[b]) break; fprintf(stderr,"%s %s %lu\n",k?"slow":"insn",ZydisMnemonicGetString(b),t[b]); t[b]=0;} }
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
    return (unsigned)(rip ^ rip >> 11) % JIT_JUMPS;
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
    return state->jump_keys[half][slot] == (rip ^ state->epoch_key[half])
               ? (uint32_t)state->jump_code[half][slot]
               : 0;
}

uint32_t jit_entry(struct soft_vcpu *v, struct soft_block *block)
{
    struct soft_jit *cache = v->jit;
    struct jit_state *state = &v->jit_state;
    uint32_t entry = cache->units[block->unit].entry_saved;
    check_mode(v);
    if (cache->want)
        jit_make_link(v, cache->want, block);
    cache->want = 0;
    if (cache->chaining) {
        unsigned half = (v->mode & MODE_CPL) != 0;
        uint64_t rip = v->gpr[SOFT_RIP];
        unsigned slot = jump_slot(rip);
        state->jump_keys[half][slot] = rip ^ state->epoch_key[half];
        state->jump_code[half][slot] = entry;
        jit_note_page(v, rip);
    }
    return entry;
}

const struct insn *jit_run(struct soft_vcpu *v, uint32_t entry)
{
    struct soft_jit *cache = v->jit;
    struct jit_state *state = &v->jit_state;
    struct jit_unit *unit;
    state->page_base = v->gpr[SOFT_RIP] & ~(uint64_t)SOFT_PAGE_MASK;
    state->target = entry;
    ((void (*)(void))(uintptr_t)cache->enter)();
    cache->exits++; if (jx_on()) { void jx_dump(struct soft_vcpu *v); static uint64_t nx=500000; if (cache->exits+cache->slow_paths>=nx) { jx_dump(v); nx+=nx; } } /* XXX */
    { extern uint64_t jx_why[8], jx_ret[8], jx_kind[8], jx_insn[3000]; jx_kind[state->exit_kind]++; if (state->exit_kind==JIT_EXIT_INSN) { struct jit_unit *u=&cache->units[state->exit_unit]; static ZydisDecoder zd; static int init; if(!init){ZydisDecoderInit(&zd,ZYDIS_MACHINE_MODE_LONG_64,ZYDIS_STACK_WIDTH_64);init=1;} ZydisDecodedInstruction zi; unsigned off=u->block->insns[state->exit_index].end-u->block->insns[state->exit_index].len; ZydisDecoderDecodeInstruction(&zd,NULL,u->block->bytes+off,15,&zi); jx_insn[zi.mnemonic]++; } } /* XXX */
    v->block = NULL;
    switch ((enum jit_exit_kind)state->exit_kind) {
    case JIT_EXIT_RIP: break;
    case JIT_EXIT_LINK:
        cache->want = state->exit_index; /* fall through */
    case JIT_EXIT_POLL:
        v->gpr[SOFT_RIP] = state->page_base + (uint64_t)cache->links[state->exit_index].target;
        break;
    case JIT_EXIT_INSN:
        unit = &cache->units[state->exit_unit];
        if (jx_on()) { extern uint64_t jx_ret[8]; if (unit->block->bytes[unit->block->size-1]==0xc3) { uint64_t sp=v->gpr[CPU_RSP]; struct soft_tlb_entry *e=tlb_slot(v,sp); unsigned h=(v->mode & MODE_CPL) != 0; if (v->attention) jx_ret[0]++; else if (!tlb_hit(e->read,sp,8)) jx_ret[1]++; else { uint64_t t=*(uint64_t*)(sp+e->addend); uint64_t k=state->jump_keys[h][jump_slot(t)]; if (k==UINT64_MAX) jx_ret[2]++; else if ((k^t)<<16==0) jx_ret[3]++; else if (k==(t^state->epoch_key[h])) jx_ret[5]++; else jx_ret[4]++; } } }
        be_at(v, unit, state->exit_index);
        return &unit->block->insns[state->exit_index];
    case JIT_EXIT_STALE:
        cache->stale++;
        v->gpr[SOFT_RIP] = state->page_base + cache->units[state->exit_unit].offset;
        /* To be looked up, not remembered. */
        state->jump_keys[(v->mode & MODE_CPL) != 0][jump_slot(v->gpr[SOFT_RIP])] = UINT64_MAX;
        break;
    }
    return NULL;
}

/* ---- host exceptions ---- */

uint32_t jit_find(const struct soft_jit *cache, uint64_t address, unsigned *ret_index)
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
    const struct jit_unit *unit = &cache->units[low];
    if (low >= cache->unit_count || !unit->block)
        return 0;
    unsigned index = 0;
    while (index + 1 < unit->block->count &&
           unit->start + unit->insn_at[index + 1] <= address)
        index++;
    *ret_index = index;
    return low;
}

bool jit_redirect(struct soft_vcpu *v, greg_t *regs)
{
    struct soft_jit *cache = v->jit;
    unsigned index;
    uint32_t number = cache ? jit_find(cache, (uint64_t)regs[REG_RIP], &index) : 0;
    if (!number)
        return false;
    if (cache->units[number].trap_host >> index & 1)
        v->flags = (uint16_t)((regs[REG_EFL] & 0xd5) << 8 | 0x200 | ((regs[REG_EFL] >> 11) & 1));
    regs[REG_RAX] = number;
    regs[REG_R14] = index;
    regs[REG_RIP] = cache->exit_insn;
    return true;
}
