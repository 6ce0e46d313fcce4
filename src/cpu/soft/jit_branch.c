/*
 * Where a unit goes on: edges.
 *
 *   in the page      jmp target             patched in once the target has a unit
 *   across pages     epoch == the guard's?  jmp target
 *   indirect         jump cache: this linear address in its slot?  jmp its code
 *
 * Until a link is made, and where a guard or the jump cache misses, the way leads through a stub to
 * the loop (or, for indirect branches, to the branch's own handler, which has all checks).
 *
 * Polls. Every loop has a branch backwards or an indirect one; those look at v->attention. A poll
 * destroys EFLAGS; the flags are saved first, or, in a loop of one unit that writes them anew
 * anyhow, are computed again by the stub.
 */
#include "cpu/soft/jit_unit.h"

static int64_t offset_of(const struct jit *jit, unsigned k_end)
{
    return (int64_t)(jit->block->gpa & SOFT_PAGE_MASK) + k_end;
}

static struct jit_stub *stub_new(struct jit *jit, uint32_t link, bool poll)
{
    assert(jit->stub_count < JIT_STUBS_MAX);
    struct jit_stub *stub = &jit->stubs[jit->stub_count++];
    *stub = (struct jit_stub){.link = link, .poll = poll, .before = jit->flags};
    return stub;
}

static uint32_t poll(struct jit *jit)
{
    asm_op(&jit->a, 0x83, 4, 7, JIT_V(jit, attention));
    asm_byte(&jit->a, 0);
    return asm_jcc(&jit->a, JIT_CC_NE, 0);
}

static void guarded(struct jit *jit, int64_t target, enum jit_way way)
{
    struct jit_asm *a = &jit->a;
    uint32_t number;
    struct jit_link *link = jit_link_new(jit, target, way, &number);
    uint32_t guard = jit->guards[jit->guard_count++];
    jit_flags_need_saved(jit);
    jit->flags.host = false;
    if (target < 0)
        stub_new(jit, number, true)->jump = poll(jit);
    asm_load(a, JIT_RAX, JIT_ABS(guard));
    asm_op(a, 0x3b, 8, JIT_RAX,
           JIT_ABS(JIT_FIELD(jit->v, jit_state.epoch) + jit->half * sizeof(uint64_t)));
    struct jit_stub *stub = stub_new(jit, number, false);
    stub->jump = asm_jcc(a, JIT_CC_NE, 0);
    link->guard = guard;
    link->saved = true;
    link->displacement = asm_jmp(a, 0);
}

/* Can the body begin with the flags as they can be computed here? */
static bool loops_again(const struct jit *jit)
{
    const struct jit_flags *now = &jit->flags, *first = &jit->again_flags;
    if (jit->need != JIT_NEED_SAVED || now->saved || !now->again_size)
        return false;
    if (!jit->is_again)
        return jit->count <= JIT_AGAIN_MAX;
    return now->again_size == first->again_size &&
           memcmp(now->again, first->again, first->again_size) == 0;
}

/* Back to the start of this very unit. Emits a loop's end: condition JIT_NONE is always. */
static void own_loop(struct jit *jit, int64_t target, unsigned condition)
{
    struct jit_asm *a = &jit->a;
    uint32_t number;
    jit_link_new(jit, target, JIT_WAY_BRANCH, &number);
    uint32_t past = condition == JIT_NONE ? 0 : asm_jcc(a, condition ^ 1, 0);
    struct jit_flags before = jit->flags;
    bool again = loops_again(jit);
    if (!again && (jit->need == JIT_NEED_SAVED || !jit->flags.again_size))
        jit_flags_need_saved(jit);
    jit->flags.host = false;
    struct jit_stub *stub = stub_new(jit, number, true);
    if (jit->need == JIT_NEED_HOST) {
        stub->jump = poll(jit);
        jit_flags_need_host(jit);
        asm_jmp(a, jit->body);
    } else {
        asm_op(a, 0x83, 4, 7, JIT_V(jit, attention));
        asm_byte(a, 0);
        uint32_t back = asm_jcc(a, JIT_CC_E, again && jit->is_again ? jit->again_body : jit->body);
        stub->jump = asm_jmp(a, 0);
        if (again && !jit->is_again) {
            jit->again_jump = back;
            jit->again_flags = jit->flags;
        }
    }
    if (past)
        asm_patch(a, past, asm_here(a));
    jit->flags = before;
}

static bool is_own(const struct jit *jit, int64_t target)
{
    return target == offset_of(jit, 0) && !jit->cache->counting;
}

void jit_edge(struct jit *jit, int64_t target, enum jit_way way)
{
    if (target < 0 || target >= MEM_PAGE_SIZE) {
        guarded(jit, target, way);
        return;
    }
    if (is_own(jit, target) && way == JIT_WAY_BRANCH) {
        own_loop(jit, target, JIT_NONE);
        return;
    }
    uint32_t number;
    struct jit_link *link = jit_link_new(jit, target, way, &number);
    bool backwards = target <= offset_of(jit, 0);
    if (backwards) {
        jit_flags_need_saved(jit);
        jit->flags.host = false;
        stub_new(jit, number, true)->jump = poll(jit);
    } else if (!jit->flags.host && !jit->flags.saved) {
        jit_flags_need_host(jit);
    }
    link->saved = !jit->flags.host;
    struct jit_stub *stub = stub_new(jit, number, false);
    link->displacement = stub->jump = asm_jmp(&jit->a, 0);
}

/* Jcc, where it is taken. EFLAGS holds the flags, and does where it is not. */
static void taken(struct jit *jit, unsigned condition, int64_t target)
{
    struct jit_asm *a = &jit->a;
    bool inside = target >= 0 && target < MEM_PAGE_SIZE;
    if (inside && is_own(jit, target)) {
        own_loop(jit, target, condition);
    } else if (inside && target > offset_of(jit, 0)) {
        uint32_t number;
        struct jit_link *link = jit_link_new(jit, target, JIT_WAY_BRANCH, &number);
        struct jit_stub *stub = stub_new(jit, number, false);
        link->displacement = stub->jump = asm_jcc(a, condition, 0);
    } else {
        struct jit_flags before = jit->flags;
        uint32_t past = asm_jcc(a, condition ^ 1, 0);
        jit_edge(jit, target, JIT_WAY_BRANCH);
        asm_patch(a, past, asm_here(a));
        jit->flags = before;
    }
}

/* The jump leaves for the handler of instruction k, which has done nothing yet. */
static void leave(struct jit *jit, unsigned k, uint32_t jump)
{
    jit_slow_new(jit, k, 0)->jump = jump;
}

/* The flags are in memory, the target is in RAX: its slot of the jump cache in JIT_T, and out to
 * the handler where it is not there, or something wants attention. Returns the slot's code. */
static struct jit_rm jump_code(struct jit *jit, unsigned k)
{
    struct jit_asm *a = &jit->a;
    uint32_t keys = JIT_FIELD(jit->v, jit_state.jump_keys) + jit->half * JIT_JUMPS * 8;
    uint32_t code = JIT_FIELD(jit->v, jit_state.jump_code) + jit->half * JIT_JUMPS * 8;
    leave(jit, k, poll(jit));
    jit_shifted(jit, JIT_RAX, JIT_JUMP_SHIFT);
    asm_alu_imm(a, 4, 4, JIT_REG(JIT_T), JIT_JUMPS - 1);
    struct jit_rm at = {
        .reg = JIT_NONE, .base = JIT_NONE, .index = JIT_T, .scale = 3, .disp = (int32_t)keys};
    asm_op(a, 0x3b, 8, JIT_RAX, at);
    leave(jit, k, asm_jcc(a, JIT_CC_NE, 0));
    at.disp = (int32_t)code;
    return at;
}

static void jump(struct jit *jit, struct jit_rm to)
{
    asm_op(&jit->a, 0xff, 4, 4, to);
}

static const struct jit_ea stack_top = {.base = CPU_RSP, .index = JIT_NONE, .seg = JIT_NONE};

/* Pushes the address behind the block; RSP is not moved yet. */
static void push_return(struct jit *jit, unsigned k)
{
    struct jit_ea ea = stack_top;
    ea.disp = -8;
    struct jit_rm rm = jit_access(jit, k, &ea, 8, true, 1);
    asm_load(&jit->a, JIT_RAX, JIT_PAGE_BASE(jit));
    asm_lea(&jit->a, JIT_RAX, JIT_MEM(JIT_RAX, (int32_t)offset_of(jit, jit->decoded[k].end)));
    asm_store(&jit->a, JIT_RAX, rm);
}

/* The operand of an indirect branch into RAX. */
static bool branch_operand(struct jit *jit, unsigned k)
{
    const ZydisDecodedOperand *to = &jit->decoded[k].operands[0];
    if (to->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        unsigned guest = (unsigned)ZydisRegisterGetId(to->reg.value);
        asm_load(&jit->a, JIT_RAX,
                 jit_host_of[guest] == JIT_NONE ? jit_slot(jit, guest)
                                                : JIT_REG(jit_host_of[guest]));
        return true;
    }
    struct jit_ea ea;
    if (to->type != ZYDIS_OPERAND_TYPE_MEMORY || !jit_ea_of(jit, k, to, &ea))
        return false;
    asm_load(&jit->a, JIT_RAX, jit_access(jit, k, &ea, 8, false, 1));
    return true;
}

static bool call(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    struct jit_asm *a = &jit->a;
    if (d->operands[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        push_return(jit, k);
        jit_flags_wrote(jit, JIT_R15);
        asm_lea(a, JIT_R15, JIT_MEM(JIT_R15, -8));
        jit_edge(jit, offset_of(jit, d->end) + d->operands[0].imm.value.s, JIT_WAY_CALL);
        return true;
    }
    jit_flags_need_saved(jit);
    if (!branch_operand(jit, k))
        return false;
    /* Once something is pushed, the handler cannot do it all again: the operand may lie there. */
    asm_load(a, JIT_T, jump_code(jit, k));
    asm_store(a, JIT_T, JIT_V(jit, jit_state.target));
    push_return(jit, k);
    asm_lea(a, JIT_R15, JIT_MEM(JIT_R15, -8));
    jump(jit, JIT_V(jit, jit_state.target));
    return true;
}

static bool ret(struct jit *jit, unsigned k)
{
    const ZydisDecodedOperand *more = &jit->decoded[k].operands[0];
    int32_t pop = 8;
    if (more->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
        pop += (int32_t)more->imm.value.u;
    jit_flags_need_saved(jit);
    asm_load(&jit->a, JIT_RAX, jit_access(jit, k, &stack_top, 8, false, 1));
    struct jit_rm to = jump_code(jit, k);
    asm_lea(&jit->a, JIT_R15, JIT_MEM(JIT_R15, pop));
    jump(jit, to);
    return true;
}

static unsigned condition_of(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_JO: return 0;
    case ZYDIS_MNEMONIC_JNO: return 1;
    case ZYDIS_MNEMONIC_JB: return 2;
    case ZYDIS_MNEMONIC_JNB: return 3;
    case ZYDIS_MNEMONIC_JZ: return 4;
    case ZYDIS_MNEMONIC_JNZ: return 5;
    case ZYDIS_MNEMONIC_JBE: return 6;
    case ZYDIS_MNEMONIC_JNBE: return 7;
    case ZYDIS_MNEMONIC_JS: return 8;
    case ZYDIS_MNEMONIC_JNS: return 9;
    case ZYDIS_MNEMONIC_JP: return 10;
    case ZYDIS_MNEMONIC_JNP: return 11;
    case ZYDIS_MNEMONIC_JL: return 12;
    case ZYDIS_MNEMONIC_JNL: return 13;
    case ZYDIS_MNEMONIC_JLE: return 14;
    case ZYDIS_MNEMONIC_JNLE: return 15;
    default: return JIT_NONE;
    }
}

void jit_side_exit(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    unsigned condition = condition_of(d->zydis.mnemonic);
    int64_t target = offset_of(jit, d->end) + d->operands[0].imm.value.s;
    assert(condition != JIT_NONE);
    jit_flags_need_host(jit);
    if (!jit->cache->counting) {
        taken(jit, condition, target);
        return;
    }
    /* The block was counted whole. */
    jit_flags_need_saved(jit);
    struct jit_flags before = jit->flags;
    uint32_t past = asm_jcc(&jit->a, condition ^ 1, 0);
    asm_alu_imm(&jit->a, 5, 8, JIT_V(jit, instructions), (int32_t)(jit->count - k - 1));
    jit->flags.host = false;
    jit_edge(jit, target, JIT_WAY_BRANCH);
    asm_patch(&jit->a, past, asm_here(&jit->a));
    jit->flags = before;
}

bool jit_branch(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    const ZydisDecodedInstruction *zydis = &d->zydis;
    if (d->undefined || d->too_long || zydis->operand_width != 64 ||
        zydis->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
        return false;
    unsigned condition = condition_of(zydis->mnemonic);
    if (condition != JIT_NONE) {
        jit_flags_need_host(jit);
        taken(jit, condition, offset_of(jit, d->end) + d->operands[0].imm.value.s);
        jit_edge(jit, offset_of(jit, d->end), JIT_WAY_FALL);
        return true;
    }
    switch (zydis->mnemonic) {
    case ZYDIS_MNEMONIC_JMP:
        if (d->operands[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
            jit_edge(jit, offset_of(jit, d->end) + d->operands[0].imm.value.s, JIT_WAY_BRANCH);
            return true;
        }
        jit_flags_need_saved(jit);
        if (!branch_operand(jit, k))
            return false;
        jump(jit, jump_code(jit, k));
        return true;
    case ZYDIS_MNEMONIC_CALL: return call(jit, k);
    case ZYDIS_MNEMONIC_RET: return ret(jit, k);
    default: return false;
    }
}
