/* Near jumps, calls and returns. Far ones are the system's (op_far_bind).
 *
 * The forms named _64 are those of 64-bit mode with 64-bit operands. All others share the generic
 * forms, which cut the target to the operand size and check it against CS. A target is checked
 * before anything changes: the fault belongs to the branch. */
#include "cpu/soft/op.h"
#include "cpu/soft/op_stack.h"
#include "cpu/soft/system.h"

/* Where a branch with operands of `size` bytes gets to. Raises #GP(0). */
static inline uint64_t branch_target(struct soft_vcpu *v, const struct insn *insn, uint64_t target,
                                     unsigned size)
{
    if (size == 2)
        target &= UINT16_MAX;
    if (v->mode & MODE_64) {
        if (unlikely(!canonical(target)))
            soft_raise_error(v, insn, VECTOR_GP, 0);
        return target;
    }
    target &= UINT32_MAX;
    if (unlikely(target > v->segment[CPU_CS].limit))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    return target;
}

/* ---- JMP and Jcc to a constant ---- */

HANDLER(jmp_direct)
{
    return block_branch(v, insn);
}

HANDLER(jmp_direct_any)
{
    v->gpr[SOFT_RIP] = branch_target(v, insn, v->gpr[SOFT_RIP] + insn->imm, insn->size);
    if (insn->size == 2) /* cut to 16 bits: no constant distance */
        return block_jump(v);
    return block_follow(v, insn);
}

/* Out of the middle of a block, which was counted whole. */
static inline void leave_inside(struct soft_vcpu *v, const struct insn *insn)
{
    const struct soft_block *block = v->block;
    v->instructions -= (uint64_t)(block->insns + block->count - (insn + 1));
    return block_branch(v, insn);
}

/* Not taken: on to the terminator, which is insn[1] and has a link of its own. */
#define JCC(condition)                                                                             \
    HANDLER(jcc_##condition)                                                                       \
    {                                                                                              \
        if (cond_##condition(v->flags))                                                            \
            return block_branch(v, insn);                                                          \
        return block_branch(v, insn + 1);                                                          \
    }                                                                                              \
    HANDLER(jcc_##condition##_inside)                                                              \
    {                                                                                              \
        if (cond_##condition(v->flags))                                                            \
            return leave_inside(v, insn);                                                          \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(jcc_##condition##_any)                                                                 \
    {                                                                                              \
        if (cond_##condition(v->flags))                                                            \
            return jmp_direct_any(v, insn);                                                        \
        return block_branch(v, insn + 1);                                                          \
    }
FOR_CONDITIONS(JCC)

/* ---- LOOP, LOOPE, LOOPNE, JRCXZ: the counter has the address size ---- */

enum { LOOP, LOOPE, LOOPNE, JCXZ };

HANDLER(loop_any)
{
    uint64_t count = v->gpr[CPU_RCX] & insn->amask;
    bool taken;
    if (insn->aux == JCXZ) {
        taken = count == 0;
    } else {
        bool zero = v->flags & SOFT_ZF;
        count = (count - 1) & insn->amask;
        taken = count != 0 && (insn->aux == LOOP || zero == (insn->aux == LOOPE));
    }
    uint64_t target = 0;
    if (taken)
        target = branch_target(v, insn, v->gpr[SOFT_RIP] + insn->imm, insn->size);
    if (insn->aux != JCXZ) {
        if (insn->amask == UINT16_MAX)
            REG16(v, CPU_RCX * 8) = (uint16_t)count;
        else
            v->gpr[CPU_RCX] = count;
    }
    if (!taken)
        return block_branch(v, insn + 1);
    v->gpr[SOFT_RIP] = target;
    if (insn->size == 2)
        return block_jump(v);
    return block_follow(v, insn);
}

/* ---- indirect JMP ---- */

HANDLER(jmp_r_64)
{
    uint64_t target = REG64(v, insn->a);
    if (unlikely(!canonical(target)))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    v->gpr[SOFT_RIP] = target;
    return block_jump(v);
}

MEMORY_HANDLER(jmp_m_64)
{
    uint64_t target = LOAD(64, LINEAR(ADDRESS_ANY, 8, false));
    if (unlikely(!canonical(target)))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    v->gpr[SOFT_RIP] = target;
    return block_jump(v);
}

/* Operand of the generic indirect forms. */
static uint64_t branch_operand(struct soft_vcpu *v, const struct insn *insn)
{
    if (!(insn->flags & INSN_MEMORY))
        return insn->size == 2   ? REG16(v, insn->a)
               : insn->size == 4 ? REG32(v, insn->a)
                                 : REG64(v, insn->a);
    uint64_t linear = insn_linear(v, insn, insn->size, false);
    switch (insn->size) {
    case 2: return load_16(v, insn, linear, insn->seg);
    case 4: return load_32(v, insn, linear, insn->seg);
    default: return load_64(v, insn, linear, insn->seg);
    }
}

HANDLER(jmp_indirect_any)
{
    v->gpr[SOFT_RIP] = branch_target(v, insn, branch_operand(v, insn), insn->size);
    return block_jump(v);
}

/* ---- CALL and RET ---- */

/* A call to nowhere: a fault of its push comes first, but nothing is pushed. */
static _Noreturn void bad_call(struct soft_vcpu *v, const struct insn *insn, uint64_t sp,
                               unsigned size)
{
    soft_probe_write(v, insn, sp, size, CPU_SS);
    soft_raise_error(v, insn, VECTOR_GP, 0);
}

MEMORY_HANDLER(call_direct_64)
{
    uint64_t sp = v->gpr[CPU_RSP] - 8;
    if (unlikely(!canonical(v->gpr[SOFT_RIP] + insn->imm)))
        bad_call(v, insn, sp, 8);
    STORE_SEG(64, sp, CPU_SS, insn_next(v, insn));
    v->gpr[CPU_RSP] = sp;
    return block_branch(v, insn);
}

MEMORY_HANDLER(call_r_64)
{
    uint64_t target = REG64(v, insn->a), sp = v->gpr[CPU_RSP] - 8;
    if (unlikely(!canonical(target)))
        bad_call(v, insn, sp, 8);
    STORE_SEG(64, sp, CPU_SS, insn_next(v, insn));
    v->gpr[CPU_RSP] = sp;
    v->gpr[SOFT_RIP] = target;
    return block_jump(v);
}

MEMORY_HANDLER(call_m_64)
{
    uint64_t target = LOAD(64, LINEAR(ADDRESS_ANY, 8, false));
    uint64_t sp = v->gpr[CPU_RSP] - 8;
    if (unlikely(!canonical(target)))
        bad_call(v, insn, sp, 8);
    STORE_SEG(64, sp, CPU_SS, insn_next(v, insn));
    v->gpr[CPU_RSP] = sp;
    v->gpr[SOFT_RIP] = target;
    return block_jump(v);
}

static void call_to(struct soft_vcpu *v, const struct insn *insn, uint64_t target)
{
    uint64_t sp = v->gpr[CPU_RSP] - insn->size;
    soft_probe_write(v, insn, stack_linear(v, insn, sp, insn->size, true), insn->size, CPU_SS);
    target = branch_target(v, insn, target, insn->size);
    stack_store(v, insn, sp, insn->size, insn_next(v, insn));
    stack_pointer_set(v, sp);
    v->gpr[SOFT_RIP] = target;
}

HANDLER(call_direct_any)
{
    call_to(v, insn, v->gpr[SOFT_RIP] + insn->imm);
    return block_jump(v);
}

HANDLER(call_indirect_any)
{
    call_to(v, insn, branch_operand(v, insn));
    return block_jump(v);
}

MEMORY_HANDLER(ret_64)
{
    uint64_t sp = v->gpr[CPU_RSP];
    uint64_t target = LOAD_SEG(64, sp, CPU_SS);
    if (unlikely(!canonical(target)))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    v->gpr[CPU_RSP] = sp + 8 + insn->imm;
    v->gpr[SOFT_RIP] = target;
    return block_jump(v);
}

HANDLER(ret_any)
{
    uint64_t sp = v->gpr[CPU_RSP];
    uint64_t target = branch_target(v, insn, stack_load(v, insn, sp, insn->size), insn->size);
    stack_pointer_set(v, sp + insn->size + insn->imm);
    v->gpr[SOFT_RIP] = target;
    return block_jump(v);
}

/* ---- bind ---- */

static bool is_far(const struct decoder *decoder)
{
    return decoder->zydis->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
}

static bool is_64(const struct decoder *decoder)
{
    return decoder->mode & MODE_64 && decoder->insn->size == 8;
}

/* A constant target, from the block's base. */
static void bind_target(struct decoder *decoder)
{
    decoder->insn->imm = decoder->insn->end + op_immediate(decoder, 0);
    block_linkable(decoder);
}

static void bind_jcc(struct decoder *decoder)
{
#define JCC_FORMS(condition) {jcc_##condition, jcc_##condition##_any},
    static insn_run *const forms[16][2] = {FOR_CONDITIONS(JCC_FORMS)};
    bind_target(decoder);
    decoder->insn->run = forms[decoder->arg][!is_64(decoder)];
    if (is_64(decoder)) {
        decoder->insn->flags |= INSN_JCC;
        decoder->insn->aux = decoder->arg;
    }
    decoder->ends_block = true;
}

void branch_inside(struct insn *insn)
{
#define JCC_INSIDE(condition) jcc_##condition##_inside,
    static insn_run *const forms[16] = {FOR_CONDITIONS(JCC_INSIDE)};
    insn->run = forms[insn->aux];
}

static void bind_loop(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    bind_target(decoder);
    insn->amask = decoder->zydis->address_width == 64   ? UINT64_MAX
                  : decoder->zydis->address_width == 32 ? UINT32_MAX
                                                        : UINT16_MAX;
    insn->aux = decoder->arg;
    /* A REP prefix says which of the two it is, whatever the opcode. */
    if (decoder->arg == LOOPE || decoder->arg == LOOPNE) {
        if (insn->flags & INSN_REP)
            insn->aux = LOOPE;
        else if (insn->flags & INSN_REPNE)
            insn->aux = LOOPNE;
    }
    insn->run = loop_any;
    decoder->ends_block = true;
}

enum { JMP, CALL };

static void bind_jump(struct decoder *decoder)
{
    static insn_run *const forms[2][3][2] = {
        [JMP] = {{jmp_direct, jmp_direct_any},
                 {jmp_r_64, jmp_indirect_any},
                 {jmp_m_64, jmp_indirect_any}},
        [CALL] = {{call_direct_64, call_direct_any},
                  {call_r_64, call_indirect_any},
                  {call_m_64, call_indirect_any}},
    };
    struct insn *insn = decoder->insn;
    if (is_far(decoder)) {
        op_far_bind(decoder);
        return;
    }
    unsigned form = op_is_immediate(decoder, 0) ? 0 : op_is_memory(decoder, 0) ? 2 : 1;
    if (form == 0) {
        bind_target(decoder);
        insn->flags &= (uint16_t)~INSN_MEMORY; /* the stack, filled in by the decoder */
    } else if (form == 1) {
        insn->a = op_register(decoder, 0);
        insn->flags &= (uint16_t)~INSN_MEMORY;
    }
    insn->run = forms[decoder->arg][form][!is_64(decoder)];
    decoder->ends_block = true;
}

static void bind_ret(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    if (is_far(decoder)) {
        op_far_bind(decoder);
        return;
    }
    if (op_is_immediate(decoder, 0))
        insn->imm = op_immediate(decoder, 0);
    insn->run = is_64(decoder) ? ret_64 : ret_any;
    decoder->ends_block = true;
}

const struct op_row op_branch_rows[] = {
    {ZYDIS_MNEMONIC_JO, bind_jcc, 0},           {ZYDIS_MNEMONIC_JNO, bind_jcc, 1},
    {ZYDIS_MNEMONIC_JB, bind_jcc, 2},           {ZYDIS_MNEMONIC_JNB, bind_jcc, 3},
    {ZYDIS_MNEMONIC_JZ, bind_jcc, 4},           {ZYDIS_MNEMONIC_JNZ, bind_jcc, 5},
    {ZYDIS_MNEMONIC_JBE, bind_jcc, 6},          {ZYDIS_MNEMONIC_JNBE, bind_jcc, 7},
    {ZYDIS_MNEMONIC_JS, bind_jcc, 8},           {ZYDIS_MNEMONIC_JNS, bind_jcc, 9},
    {ZYDIS_MNEMONIC_JP, bind_jcc, 10},          {ZYDIS_MNEMONIC_JNP, bind_jcc, 11},
    {ZYDIS_MNEMONIC_JL, bind_jcc, 12},          {ZYDIS_MNEMONIC_JNL, bind_jcc, 13},
    {ZYDIS_MNEMONIC_JLE, bind_jcc, 14},         {ZYDIS_MNEMONIC_JNLE, bind_jcc, 15},
    {ZYDIS_MNEMONIC_LOOP, bind_loop, LOOP},     {ZYDIS_MNEMONIC_LOOPE, bind_loop, LOOPE},
    {ZYDIS_MNEMONIC_LOOPNE, bind_loop, LOOPNE}, {ZYDIS_MNEMONIC_JCXZ, bind_loop, JCXZ},
    {ZYDIS_MNEMONIC_JECXZ, bind_loop, JCXZ},    {ZYDIS_MNEMONIC_JRCXZ, bind_loop, JCXZ},
    {ZYDIS_MNEMONIC_JMP, bind_jump, JMP},       {ZYDIS_MNEMONIC_CALL, bind_jump, CALL},
    {ZYDIS_MNEMONIC_RET, bind_ret, 0},          {0},
};
