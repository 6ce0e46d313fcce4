/*
 * op_vector_move.c: moves between vector registers and memory, and other forms for which a few
 * lines of C are faster than a stub. A 256-bit form goes to native_bind(): its register should be
 * stored by one instruction, else the next load of it stalls.
 *
 * insn->b is the vector register, insn->c the second one (or a byte offset into gpr for MOVD and
 * MOVQ); insn->a and aux are as in native_stub.h. insn->imm is 1 in VEX forms, which clear bits 128
 * and up of their destination.
 */
#include "cpu/soft/native_stub.h"

static void clear_upper(struct soft_vcpu *v, const struct insn *insn)
{
    if (insn->imm)
        memset(v->vector[insn->b] + 16, 0, 16);
}

/* ---- 16 bytes ---- */

static void move_copy_16(struct soft_vcpu *v, const struct insn *insn)
{
    memcpy(v->vector[insn->b], v->vector[insn->c], 16);
    clear_upper(v, insn);
    NEXT(v, insn);
}

static __attribute__((noinline)) void move_load_16_slow(struct soft_vcpu *v,
                                                        const struct insn *insn)
{
    uint8_t bytes[16];
    uint64_t linear = native_linear(v, insn, 16, false);
    soft_load_bytes(v, insn, linear, bytes, 16, insn->seg);
    memcpy(v->vector[insn->b], bytes, 16);
    clear_upper(v, insn);
    NEXT(v, insn);
}

static void move_load_16(struct soft_vcpu *v, const struct insn *insn)
{
    const void *from = native_fast(v, insn, false);
    if (unlikely(!from))
        return move_load_16_slow(v, insn);
    memcpy(v->vector[insn->b], from, 16);
    clear_upper(v, insn);
    NEXT(v, insn);
}

static __attribute__((noinline)) void move_store_16_slow(struct soft_vcpu *v,
                                                         const struct insn *insn)
{
    uint64_t linear = native_linear(v, insn, 16, true);
    soft_store_bytes(v, insn, linear, v->vector[insn->b], 16, insn->seg);
    NEXT(v, insn);
}

static void move_store_16(struct soft_vcpu *v, const struct insn *insn)
{
    void *to = native_fast(v, insn, true);
    if (unlikely(!to))
        return move_store_16_slow(v, insn);
    memcpy(to, v->vector[insn->b], 16);
    NEXT(v, insn);
}

/* ---- 8 and 4 bytes ---- */

static void vector_set_64(struct soft_vcpu *v, const struct insn *insn, uint64_t value)
{
    uint64_t words[2] = {value, 0};
    memcpy(v->vector[insn->b], words, 16);
    clear_upper(v, insn);
}

static uint64_t vector_get_64(const struct soft_vcpu *v, unsigned number, unsigned at)
{
    uint64_t value;
    memcpy(&value, v->vector[number] + at, sizeof value);
    return value;
}

/* The slow ways of those below; the size is in aux. */
static __attribute__((noinline)) uint64_t move_read(struct soft_vcpu *v, const struct insn *insn)
{
    unsigned size = (uint16_t)insn->aux;
    uint64_t linear = native_linear(v, insn, size, false);
    return size == 4 ? load_32(v, insn, linear, insn->seg) : load_64(v, insn, linear, insn->seg);
}

static __attribute__((noinline)) void move_load_slow(struct soft_vcpu *v, const struct insn *insn)
{
    vector_set_64(v, insn, move_read(v, insn));
    NEXT(v, insn);
}

static void move_load_8(struct soft_vcpu *v, const struct insn *insn)
{
    const void *from = native_fast(v, insn, false);
    uint64_t value;
    if (unlikely(!from))
        return move_load_slow(v, insn);
    memcpy(&value, from, 8);
    vector_set_64(v, insn, value);
    NEXT(v, insn);
}

static void move_load_4(struct soft_vcpu *v, const struct insn *insn)
{
    const void *from = native_fast(v, insn, false);
    uint32_t value;
    if (unlikely(!from))
        return move_load_slow(v, insn);
    memcpy(&value, from, 4);
    vector_set_64(v, insn, value);
    NEXT(v, insn);
}

static __attribute__((noinline)) void move_store_slow(struct soft_vcpu *v, const struct insn *insn,
                                                      uint64_t value)
{
    unsigned size = (uint16_t)insn->aux;
    uint64_t linear = native_linear(v, insn, size, true);
    if (size == 4)
        store_32(v, insn, linear, insn->seg, (uint32_t)value);
    else
        store_64(v, insn, linear, insn->seg, value);
    NEXT(v, insn);
}

static void move_store_8(struct soft_vcpu *v, const struct insn *insn)
{
    uint64_t value = vector_get_64(v, insn->b, 0);
    void *to = native_fast(v, insn, true);
    if (unlikely(!to))
        return move_store_slow(v, insn, value);
    memcpy(to, &value, 8);
    NEXT(v, insn);
}

static void move_store_4(struct soft_vcpu *v, const struct insn *insn)
{
    uint64_t value = vector_get_64(v, insn->b, 0);
    void *to = native_fast(v, insn, true);
    if (unlikely(!to))
        return move_store_slow(v, insn, value);
    memcpy(to, &value, 4);
    NEXT(v, insn);
}

static void move_load_low(struct soft_vcpu *v, const struct insn *insn)
{
    uint64_t value = move_read(v, insn);
    memcpy(v->vector[insn->b], &value, 8);
    NEXT(v, insn);
}

static void move_load_high(struct soft_vcpu *v, const struct insn *insn)
{
    uint64_t value = move_read(v, insn);
    memcpy(v->vector[insn->b] + 8, &value, 8);
    NEXT(v, insn);
}

static void move_store_high(struct soft_vcpu *v, const struct insn *insn)
{
    return move_store_slow(v, insn, vector_get_64(v, insn->b, 8));
}

static void move_general_8(struct soft_vcpu *v, const struct insn *insn)
{
    vector_set_64(v, insn, REG64(v, insn->c));
    NEXT(v, insn);
}

static void move_general_4(struct soft_vcpu *v, const struct insn *insn)
{
    vector_set_64(v, insn, REG32(v, insn->c));
    NEXT(v, insn);
}

static void move_to_general_8(struct soft_vcpu *v, const struct insn *insn)
{
    REG64(v, insn->c) = vector_get_64(v, insn->b, 0);
    NEXT(v, insn);
}

static void move_to_general_4(struct soft_vcpu *v, const struct insn *insn)
{
    reg32_write(v, insn->c, (uint32_t)vector_get_64(v, insn->b, 0));
    NEXT(v, insn);
}

static void move_copy_8(struct soft_vcpu *v, const struct insn *insn)
{
    vector_set_64(v, insn, vector_get_64(v, insn->c, 0));
    NEXT(v, insn);
}

/* ---- binding ---- */

static const struct move_form {
    uint32_t kind; /* enum vector_move */
    insn_run *load, *store, *copy, *from_general, *to_general;
} move_forms[] = {
    {MOVE_16, move_load_16, move_store_16, move_copy_16, NULL, NULL},
    {MOVE_ZERO_8, move_load_8, move_store_8, move_copy_8, move_general_8, move_to_general_8},
    {MOVE_ZERO_4, move_load_4, move_store_4, NULL, move_general_4, move_to_general_4},
    {MOVE_LOW_8, move_load_low, move_store_8, NULL, NULL, NULL},
    {MOVE_HIGH_8, move_load_high, move_store_high, NULL, NULL, NULL},
};

enum place { PLACE_VECTOR, PLACE_GENERAL, PLACE_MEMORY, PLACE_OTHER };

static enum place operand_place(const ZydisDecodedOperand *operand)
{
    if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY)
        return PLACE_MEMORY;
    if (operand->type != ZYDIS_OPERAND_TYPE_REGISTER)
        return PLACE_OTHER;
    switch (ZydisRegisterGetClass(operand->reg.value)) {
    case ZYDIS_REGCLASS_XMM: return PLACE_VECTOR;
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64: return PLACE_GENERAL;
    default: return PLACE_OTHER;
    }
}

static uint8_t operand_number(const ZydisDecodedOperand *operand)
{
    return (uint8_t)ZydisRegisterGetId(operand->reg.value);
}

/* The handler for one of our forms, its registers filled in; NULL for any other. */
static insn_run *move_handler(struct decoder *decoder, const struct move_form *form)
{
    const ZydisDecodedOperand *to = &decoder->operands[0], *from = &decoder->operands[1];
    struct insn *insn = decoder->insn;
    enum place to_place = operand_place(to), from_place = operand_place(from);
    /* Two registers and MOVSS or MOVSD merge; those go the general way. */
    bool merges = decoder->zydis->mnemonic == ZYDIS_MNEMONIC_MOVSD;
    if (to_place == PLACE_VECTOR) {
        insn->b = operand_number(to);
        if (from_place == PLACE_MEMORY)
            return form->load;
        insn->c = from_place == PLACE_GENERAL ? (uint8_t)(operand_number(from) * 8)
                                              : operand_number(from);
        return from_place == PLACE_GENERAL             ? form->from_general
               : from_place == PLACE_VECTOR && !merges ? form->copy
                                                       : NULL;
    }
    if (from_place != PLACE_VECTOR)
        return NULL;
    insn->b = operand_number(from);
    if (to_place == PLACE_MEMORY)
        return form->store;
    insn->c = operand_number(to) * 8;
    return to_place == PLACE_GENERAL ? form->to_general : NULL;
}

/* native_bind() decides whether the instruction may run, and fills the checks of a memory
 * operand. */
void vector_move_bind(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    native_bind(decoder);
    if (!insn->data || decoder->zydis->operand_count_visible != 2) /* three operands merge */
        return;
    for (unsigned i = 0; i < ARRAY_LEN(move_forms); i++) {
        if (move_forms[i].kind != decoder->arg)
            continue;
        insn_run *run = move_handler(decoder, &move_forms[i]);
        if (!run)
            return;
        insn->imm = decoder->zydis->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
        insn->run = run;
    }
}

static void zero_16(struct soft_vcpu *v, const struct insn *insn)
{
    memset(v->vector[insn->b], 0, 16);
    NEXT(v, insn);
}

static void zero_32(struct soft_vcpu *v, const struct insn *insn)
{
    memset(v->vector[insn->b], 0, 32);
    NEXT(v, insn);
}

void vector_zero_bind(struct decoder *decoder)
{
    native_bind(decoder);
    const ZydisDecodedOperand *operands = decoder->operands;
    bool vex = decoder->zydis->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
    const ZydisDecodedOperand *first = &operands[vex ? 1 : 0], *second = first + 1;
    if (!decoder->insn->data || second->type != ZYDIS_OPERAND_TYPE_REGISTER ||
        first->reg.value != second->reg.value ||
        ZydisRegisterGetClass(operands[0].reg.value) == ZYDIS_REGCLASS_MMX)
        return;
    decoder->insn->b = operand_number(&operands[0]);
    decoder->insn->run = vex ? zero_32 : zero_16;
}

/* imm: the first byte to clear; aux: how many registers the mode has. */
static void zero_upper(struct soft_vcpu *v, const struct insn *insn)
{
    for (unsigned i = 0; i < insn->aux; i++)
        memset(v->vector[i] + insn->imm, 0, 32 - insn->imm);
    NEXT(v, insn);
}

void vector_upper_bind(struct decoder *decoder)
{
    if (!native_allowed(decoder))
        return;
    decoder->insn->imm = decoder->arg;
    decoder->insn->aux = decoder->mode & MODE_64 ? 16 : 8;
    decoder->insn->run = zero_upper;
}
