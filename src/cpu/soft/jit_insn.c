/*
 * Instructions. Most are copied (jit_copy.c). The table `own` names those that need something of
 * their own: to add one, a row and a function.
 *
 * A function that returns false has emitted nothing that counts: the handler of the interpreter
 * then does the instruction.
 */
#include "cpu/soft/jit_copy.h"

static bool nothing(struct jit *jit, unsigned k)
{
    (void)jit;
    (void)k;
    return true;
}

static bool fence(struct jit *jit, unsigned k)
{
    const ZydisDecodedInstruction *zydis = &jit->decoded[k].zydis;
    asm_bytes(&jit->a, "\x0f\xae", 2);
    asm_byte(&jit->a, zydis->raw.modrm.reg << 3 | 0xc0u);
    return true;
}

static bool lea(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    struct jit_asm *a = &jit->a;
    struct jit_ea ea;
    unsigned size = d->operands[0].size / 8;
    if (size < 4 || !jit_ea_of(jit, k, &d->operands[1], &ea))
        return false;
    ea.seg = JIT_NONE;
    unsigned guest = jit_guest_of(d->operands[0].reg.value), to = jit_host_of[guest];
    jit_will_write(jit, k, to == JIT_NONE ? 0 : 1u << to);
    unsigned host = to == JIT_NONE ? JIT_RAX : to;
    struct jit_rm rm = {.reg = JIT_NONE,
                        .base = ea.base == JIT_NONE ? JIT_NONE : jit_host_of[ea.base],
                        .index = ea.index == JIT_NONE ? JIT_NONE : jit_host_of[ea.index],
                        .scale = ea.scale,
                        .disp = (int32_t)ea.disp};
    if (ea.rip) {
        asm_load(a, JIT_RAX, JIT_PAGE_BASE(jit));
        rm.base = JIT_RAX;
    }
    if (ea.base != JIT_NONE && rm.base == JIT_NONE) {
        asm_load(a, JIT_RAX, jit_slot(jit, ea.base));
        rm.base = JIT_RAX;
    }
    if (ea.index != JIT_NONE && rm.index == JIT_NONE) {
        asm_load(a, JIT_T, jit_slot(jit, ea.index));
        rm.index = JIT_T;
    }
    asm_op(a, 0x8d, size, host, rm);
    if (to == JIT_NONE)
        asm_store(a, JIT_RAX, jit_slot(jit, guest));
    return true;
}

static const struct jit_ea stack_top = {.base = CPU_RSP, .index = JIT_NONE, .seg = JIT_NONE};

static bool push(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    const ZydisDecodedOperand *from = &d->operands[0];
    struct jit_asm *a = &jit->a;
    if (d->zydis.operand_width != 64)
        return false;
    struct jit_ea ea = stack_top;
    ea.disp = -8;
    if (from->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        if (!jit_is_general(from->reg.value))
            return false;
        unsigned guest = jit_guest_of(from->reg.value), host = jit_host_of[guest];
        struct jit_rm rm = jit_access(jit, k, &ea, 8, true, 1);
        jit_will_write(jit, k, 1u << JIT_R15);
        if (host == JIT_NONE) {
            asm_load(a, JIT_RAX, jit_slot(jit, guest));
            host = JIT_RAX;
        }
        asm_store(a, host, rm);
    } else if (from->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        struct jit_rm rm = jit_access(jit, k, &ea, 8, true, 1);
        jit_will_write(jit, k, 1u << JIT_R15);
        asm_op(a, 0xc7, 8, 0, rm);
        asm_number(a, (uint32_t)from->imm.value.u, 4);
    } else {
        struct jit_ea source;
        if (from->type != ZYDIS_OPERAND_TYPE_MEMORY || !jit_ea_of(jit, k, from, &source))
            return false;
        /* Neither may open a group: a slow path of the first one ends behind this instruction,
         * where a group of the second would want its addend, and the second would take that of the
         * first. */
        bool grouping = jit->grouping;
        jit->grouping = false;
        asm_load(a, JIT_RAX, jit_access(jit, k, &source, 8, false, 1));
        asm_store(a, JIT_RAX, JIT_V(jit, jit_state.target));
        struct jit_rm rm = jit_access(jit, k, &ea, 8, true, 1);
        jit->grouping = grouping;
        jit_will_write(jit, k, 1u << JIT_R15);
        asm_load(a, JIT_RAX, JIT_V(jit, jit_state.target));
        asm_store(a, JIT_RAX, rm);
    }
    asm_lea(a, JIT_R15, JIT_MEM(JIT_R15, -8));
    return true;
}

static bool pop(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    const ZydisDecodedOperand *to = &d->operands[0];
    struct jit_asm *a = &jit->a;
    if (d->zydis.operand_width != 64 || to->type != ZYDIS_OPERAND_TYPE_REGISTER ||
        !jit_is_general(to->reg.value))
        return false;
    unsigned guest = jit_guest_of(to->reg.value), host = jit_host_of[guest];
    struct jit_rm rm = jit_access(jit, k, &stack_top, 8, false, 1);
    jit_will_write(jit, k, 1u << JIT_R15 | (host == JIT_NONE ? 0 : 1u << host));
    if (guest == CPU_RSP) {
        asm_load(a, JIT_R15, rm);
        return true;
    }
    asm_load(a, host == JIT_NONE ? JIT_RAX : host, rm);
    asm_lea(a, JIT_R15, JIT_MEM(JIT_R15, 8));
    if (host == JIT_NONE)
        asm_store(a, JIT_RAX, jit_slot(jit, guest));
    return true;
}

static bool leave(struct jit *jit, unsigned k)
{
    struct jit_asm *a = &jit->a;
    if (jit->decoded[k].zydis.operand_width != 64)
        return false;
    struct jit_ea ea = {.base = CPU_RBP, .index = JIT_NONE, .seg = JIT_NONE};
    struct jit_rm rm = jit_access(jit, k, &ea, 8, false, 1);
    jit_will_write(jit, k, 1u << JIT_R15 | 1u << JIT_RBP);
    asm_lea(a, JIT_R15, JIT_MEM(JIT_RBP, 8));
    asm_load(a, JIT_RBP, rm);
    return true;
}

/* CWDE CDQE: inside RAX. CDQ CQO: its sign into RDX. */
static bool extend(struct jit *jit, unsigned k)
{
    struct jit_asm *a = &jit->a;
    jit_will_write(jit, k, 1u << JIT_R11 | 1u << JIT_RDX);
    switch (jit->decoded[k].zydis.mnemonic) {
    case ZYDIS_MNEMONIC_CDQE: asm_op(a, 0x63, 8, JIT_R11, JIT_REG(JIT_R11)); break;
    case ZYDIS_MNEMONIC_CWDE: asm_op_0f(a, 0xbf, 4, JIT_R11, JIT_REG(JIT_R11)); break;
    case ZYDIS_MNEMONIC_CDQ:
        asm_op(a, 0x8b, 4, JIT_RAX, JIT_REG(JIT_R11));
        asm_byte(a, 0x99);
        break;
    default: /* CQO */
        asm_op(a, 0x8b, 8, JIT_RAX, JIT_REG(JIT_R11));
        asm_bytes(a, "\x48\x99", 2);
        break;
    }
    return true;
}

/* MUL, DIV, IDIV and IMUL with one operand; CMPXCHG: with the guest's RAX in the host's meanwhile.
 * The operand, if it is a register, may be the guest's RAX too. */
static bool with_rax(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    const ZydisDecodedInstruction *zydis = &d->zydis;
    struct jit_asm *a = &jit->a;
    bool exchange = zydis->mnemonic == ZYDIS_MNEMONIC_CMPXCHG;
    bool divides = zydis->mnemonic == ZYDIS_MNEMONIC_DIV || zydis->mnemonic == ZYDIS_MNEMONIC_IDIV;
    if (zydis->mnemonic == ZYDIS_MNEMONIC_IMUL && zydis->opcode != 0xf7 && zydis->opcode != 0xf6)
        return jit_copy_insn(jit, k);
    struct jit_copy copy = JIT_COPY_EMPTY;
    unsigned width = d->operands[0].size;
    copy.byte_registers = width == 8;
    unsigned visible = exchange ? 2 : 1;
    for (unsigned i = 0; i < visible; i++) {
        const ZydisDecodedOperand *operand = &d->operands[i];
        if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            if (!jit_ea_of(jit, k, operand, &copy.ea))
                return false;
            copy.memory = operand;
            continue;
        }
        if (operand->type != ZYDIS_OPERAND_TYPE_REGISTER || jit_is_high_byte(operand->reg.value))
            return false;
        unsigned guest = jit_guest_of(operand->reg.value), host = jit_host_of[guest];
        if (host == JIT_NONE && (exchange || i > 0))
            return false;
        if (host == JIT_NONE) {
            copy.rm_slot = true;
            copy.rm_guest = (uint8_t)guest;
        } else if (i == 0) {
            copy.rm = (uint8_t)host;
        } else {
            copy.reg = (uint8_t)host;
        }
    }
    /* CMPXCHG with RAX as its first operand: where that is written, RAX must be the same. */
    if (exchange && copy.rm == JIT_R11)
        return false;
    struct jit_rm memory = {0};
    if (copy.rm_slot)
        memory = jit_slot(jit, copy.rm_guest);
    if (copy.memory) {
        bool lock = zydis->attributes & ZYDIS_ATTRIB_HAS_LOCK;
        memory = jit_access(jit, k, &copy.ea, width / 8, exchange, lock ? width / 8 : 1);
    }
    if (decode_uses_flags(d))
        jit_flags_need_host(jit);
    struct jit_trap *trap = divides ? jit_may_trap(jit, k) : NULL;
    jit_will_write(jit, k,
                   1u << JIT_R11 | (exchange ? 0 : 1u << JIT_RDX) |
                       (exchange && copy.rm != JIT_NONE ? 1u << copy.rm : 0));
    asm_op(a, 0x8b, 8, JIT_RAX, JIT_REG(JIT_R11));
    if (trap)
        trap->at = asm_here(a);
    jit_copy_put(a, zydis, &copy, memory);
    asm_op(a, 0x8b, 8, JIT_R11, JIT_REG(JIT_RAX));
    jit_flags_set(jit);
    return true;
}

/* ADD ... CMP and TEST of the accumulator with an immediate have opcodes of their own, XCHG with it
 * too: as their general forms. */
static bool accumulator(struct jit *jit, unsigned k)
{
    struct decoded *d = &jit->decoded[k];
    ZydisDecodedInstruction *zydis = &d->zydis;
    if (zydis->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT || zydis->attributes & ZYDIS_ATTRIB_HAS_MODRM)
        return jit_copy_insn(jit, k);
    ZydisDecodedInstruction saved = *zydis;
    ZydisDecodedOperand first = d->operands[0], second = d->operands[1];
    if (zydis->mnemonic == ZYDIS_MNEMONIC_XCHG) {
        zydis->opcode = 0x87;
        d->operands[0].encoding = ZYDIS_OPERAND_ENCODING_MODRM_RM;
        d->operands[1].encoding = ZYDIS_OPERAND_ENCODING_MODRM_REG;
    } else if (zydis->mnemonic == ZYDIS_MNEMONIC_TEST) {
        zydis->opcode = zydis->opcode == 0xa8 ? 0xf6 : 0xf7;
        zydis->raw.modrm.reg = 0;
        d->operands[0].encoding = ZYDIS_OPERAND_ENCODING_MODRM_RM;
    } else if (zydis->opcode < 0x40) {
        zydis->raw.modrm.reg = zydis->opcode >> 3;
        zydis->opcode = zydis->opcode & 1 ? 0x81 : 0x80;
        d->operands[0].encoding = ZYDIS_OPERAND_ENCODING_MODRM_RM;
    } else { /* MOV of an immediate, or of an absolute address */
        return jit_copy_insn(jit, k);
    }
    zydis->attributes |= ZYDIS_ATTRIB_HAS_MODRM;
    bool done = jit_copy_insn(jit, k);
    if (!done) {
        *zydis = saved;
        d->operands[0] = first;
        d->operands[1] = second;
    }
    return done;
}

/* MOVZX and MOVSX of AH, BH, CH, DH; MOV of one into a low byte. */
static bool from_high_byte(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    const ZydisDecodedOperand *to = &d->operands[0], *from = &d->operands[1];
    struct jit_asm *a = &jit->a;
    if (from->type != ZYDIS_OPERAND_TYPE_REGISTER || !jit_is_high_byte(from->reg.value) ||
        to->type != ZYDIS_OPERAND_TYPE_REGISTER || jit_is_high_byte(to->reg.value))
        return jit_copy_insn(jit, k);
    unsigned source = (unsigned)(from->reg.value - ZYDIS_REGISTER_AH);
    unsigned guest = jit_guest_of(to->reg.value), host = jit_host_of[guest];
    if (host == JIT_NONE || to->size == 16)
        return false;
    jit_will_write(jit, k, 1u << host);
    /* RCX, RDX and RBX are themselves and their second byte is encoded as that of RAX is: 4 + n. */
    if (source == CPU_RAX)
        asm_op(a, 0x8b, 4, JIT_RAX, JIT_REG(JIT_R11));
    asm_bytes(a, "\x0f", 1);
    asm_byte(a, d->zydis.mnemonic == ZYDIS_MNEMONIC_MOVSX ? 0xbe : 0xb6); /* to EAX */
    asm_byte(a, 0xc0 | (4 + source));
    if (to->size == 8) {
        asm_insn(a, &(struct jit_op){.rex = true, .opcode = 0x88}, JIT_RAX, JIT_REG((uint8_t)host));
    } else if (to->size == 64 && d->zydis.mnemonic == ZYDIS_MNEMONIC_MOVSX) {
        asm_op(a, 0x63, 8, host, JIT_REG(JIT_RAX));
    } else {
        asm_op(a, 0x8b, 4, host, JIT_REG(JIT_RAX));
    }
    return true;
}

/* CMPXCHG16B, which always writes, and must be aligned. */
static bool exchange_16(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    struct jit_asm *a = &jit->a;
    struct jit_copy copy = JIT_COPY_EMPTY;
    copy.memory = &d->operands[0];
    if (copy.memory->type != ZYDIS_OPERAND_TYPE_MEMORY || !jit_ea_of(jit, k, copy.memory, &copy.ea))
        return false;
    struct jit_rm memory = jit_access(jit, k, &copy.ea, 16, true, 16);
    jit_flags_need_host(jit); /* all but ZF stay */
    jit_will_write(jit, k, 1u << JIT_R11 | 1u << JIT_RDX);
    asm_op(a, 0x8b, 8, JIT_RAX, JIT_REG(JIT_R11));
    jit_copy_put(a, &d->zydis, &copy, memory);
    asm_op(a, 0x8b, 8, JIT_R11, JIT_REG(JIT_RAX));
    jit_flags_set(jit);
    return true;
}

/* CLC, STC, CMC. */
static bool carry(struct jit *jit, unsigned k)
{
    jit_flags_need_host(jit);
    asm_byte(&jit->a, jit->decoded[k].zydis.opcode);
    jit_flags_set(jit);
    return true;
}

static bool (*const own[ZYDIS_MNEMONIC_MAX_VALUE + 1])(struct jit *jit, unsigned k) = {
    [ZYDIS_MNEMONIC_NOP] = nothing,
    [ZYDIS_MNEMONIC_ENDBR64] = nothing,
    [ZYDIS_MNEMONIC_PREFETCH] = nothing,
    [ZYDIS_MNEMONIC_PREFETCHW] = nothing,
    [ZYDIS_MNEMONIC_PREFETCHNTA] = nothing,
    [ZYDIS_MNEMONIC_PREFETCHT0] = nothing,
    [ZYDIS_MNEMONIC_PREFETCHT1] = nothing,
    [ZYDIS_MNEMONIC_PREFETCHT2] = nothing,
    [ZYDIS_MNEMONIC_LFENCE] = fence,
    [ZYDIS_MNEMONIC_MFENCE] = fence,
    [ZYDIS_MNEMONIC_SFENCE] = fence,
    [ZYDIS_MNEMONIC_LEA] = lea,
    [ZYDIS_MNEMONIC_PUSH] = push,
    [ZYDIS_MNEMONIC_POP] = pop,
    [ZYDIS_MNEMONIC_LEAVE] = leave,
    [ZYDIS_MNEMONIC_CWDE] = extend,
    [ZYDIS_MNEMONIC_CDQE] = extend,
    [ZYDIS_MNEMONIC_CDQ] = extend,
    [ZYDIS_MNEMONIC_CQO] = extend,
    [ZYDIS_MNEMONIC_MUL] = with_rax,
    [ZYDIS_MNEMONIC_IMUL] = with_rax,
    [ZYDIS_MNEMONIC_DIV] = with_rax,
    [ZYDIS_MNEMONIC_IDIV] = with_rax,
    [ZYDIS_MNEMONIC_CMPXCHG] = with_rax,
    [ZYDIS_MNEMONIC_ADD] = accumulator,
    [ZYDIS_MNEMONIC_OR] = accumulator,
    [ZYDIS_MNEMONIC_ADC] = accumulator,
    [ZYDIS_MNEMONIC_SBB] = accumulator,
    [ZYDIS_MNEMONIC_AND] = accumulator,
    [ZYDIS_MNEMONIC_SUB] = accumulator,
    [ZYDIS_MNEMONIC_XOR] = accumulator,
    [ZYDIS_MNEMONIC_CMP] = accumulator,
    [ZYDIS_MNEMONIC_TEST] = accumulator,
    [ZYDIS_MNEMONIC_XCHG] = accumulator,
    [ZYDIS_MNEMONIC_MOV] = from_high_byte,
    [ZYDIS_MNEMONIC_MOVZX] = from_high_byte,
    [ZYDIS_MNEMONIC_MOVSX] = from_high_byte,
    [ZYDIS_MNEMONIC_CMPXCHG16B] = exchange_16,
    [ZYDIS_MNEMONIC_CLC] = carry,
    [ZYDIS_MNEMONIC_STC] = carry,
    [ZYDIS_MNEMONIC_CMC] = carry,
    [ZYDIS_MNEMONIC_STAC] = jit_smap,
    [ZYDIS_MNEMONIC_CLAC] = jit_smap,
    [ZYDIS_MNEMONIC_CLI] = jit_cli,
    [ZYDIS_MNEMONIC_CLD] = jit_cld,
    [ZYDIS_MNEMONIC_PUSHFQ] = jit_pushf,
    [ZYDIS_MNEMONIC_SWAPGS] = jit_swapgs,
};

enum jit_touch jit_touches(const struct jit *jit, unsigned k, struct jit_ea *ret_ea,
                           unsigned *ret_size, bool *ret_write)
{
    const struct decoded *d = &jit->decoded[k];
    insn_run *run = jit->block->insns[k].run;
    if (d->undefined || d->too_long || run == op_privileged || run == op_no_device)
        return JIT_TOUCH_STOP;
    switch (d->zydis.mnemonic) {
    case ZYDIS_MNEMONIC_LEA:
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_CDQE:
    case ZYDIS_MNEMONIC_CWDE:
    case ZYDIS_MNEMONIC_CDQ:
    case ZYDIS_MNEMONIC_CQO: return JIT_TOUCH_NOTHING;
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
        if (d->zydis.operand_width != 64 ||
            (d->operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER
                 ? !jit_is_general(d->operands[0].reg.value)
                 : d->operands[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE))
            return JIT_TOUCH_STOP;
        *ret_ea = stack_top;
        *ret_size = 8;
        *ret_write = d->zydis.mnemonic == ZYDIS_MNEMONIC_PUSH;
        ret_ea->disp = *ret_write ? -8 : 0;
        return JIT_TOUCH_ONE;
    default: break;
    }
    enum jit_kind kind = jit_kind_of(jit, d);
    struct jit_copy copy;
    bool special = decode_is_barrier(jit->v, d) && d->zydis.mnemonic != ZYDIS_MNEMONIC_MOV;
    if (kind == JIT_KIND_NO || special || jit_names_high_byte(d) ||
        (d->zydis.mnemonic == ZYDIS_MNEMONIC_IMUL && d->zydis.operand_count_visible == 1))
        return JIT_TOUCH_STOP;
    if (!jit_copy_plan(jit, k, &copy))
        return JIT_TOUCH_STOP;
    if (!copy.memory)
        return JIT_TOUCH_NOTHING;
    *ret_ea = copy.ea;
    *ret_size = copy.memory->size / 8;
    *ret_write = copy.memory->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    return jit_copy_alignment(d, &copy, kind) == 1 ? JIT_TOUCH_ONE : JIT_TOUCH_OTHER;
}

bool jit_uses_vectors(const struct jit *jit)
{
    for (unsigned k = 0; k < jit->count; k++)
        if (!jit->decoded[k].undefined && !jit->decoded[k].too_long &&
            jit_kind_of(jit, &jit->decoded[k]) == JIT_KIND_VECTOR)
            return true;
    return false;
}

bool jit_insn(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    insn_run *run = jit->block->insns[k].run;
    if (d->undefined || d->too_long || run == op_undefined || run == op_privileged ||
        run == op_no_device)
        return false;
    if (own[d->zydis.mnemonic])
        return own[d->zydis.mnemonic](jit, k);
    return !decode_is_barrier(jit->v, d) && jit_copy_insn(jit, k);
}
