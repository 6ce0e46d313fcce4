/* ADD OR ADC SBB AND SUB XOR CMP TEST, INC DEC NEG NOT. */
#include "cpu/soft/op.h"

/* ---- the operations ---- */

/* Instructions that keep or use CF get it from the flags before. */
#define CARRY_TEXT  "btl $8, %[old]\n\t"
#define CARRY_INPUT , [old] "r"((uint32_t)*flags)
#define NONE_TEXT   ""
#define NONE_INPUT

/* value op= other; *flags: what they were before, then after. */
#define TWO_OPERANDS(name, text, carry, bits)                                                      \
    static inline uint##bits##_t name##_##bits(uint##bits##_t value, uint##bits##_t other,         \
                                               uint16_t *flags)                                    \
    {                                                                                              \
        uint32_t ax;                                                                               \
        asm(carry##_TEXT text " %[other], %[value]" FLAGS_OUT                                      \
            : [value] "+r"(value), "=&a"(ax)                                                       \
            : [other] "rm"(other)carry##_INPUT                                                     \
            : "cc");                                                                               \
        *flags = (uint16_t)ax;                                                                     \
        return value;                                                                              \
    }
#define PLAIN(name, expression, bits)                                                              \
    static inline uint##bits##_t plain_##name##_##bits(uint##bits##_t a, uint##bits##_t b,         \
                                                       uint16_t *flags)                            \
    {                                                                                              \
        return (uint##bits##_t)(expression);                                                       \
    }
#define CARRY_BIT (*flags >> 8 & 1)

#define OPERATIONS(bits)                                                                           \
    TWO_OPERANDS(add, "add", NONE, bits)                                                           \
    TWO_OPERANDS(or, "or", NONE, bits)                                                             \
    TWO_OPERANDS(adc, "adc", CARRY, bits)                                                          \
    TWO_OPERANDS(sbb, "sbb", CARRY, bits)                                                          \
    TWO_OPERANDS(and, "and", NONE, bits)                                                           \
    TWO_OPERANDS(sub, "sub", NONE, bits)                                                           \
    TWO_OPERANDS(xor, "xor", NONE, bits)                                                           \
    TWO_OPERANDS(cmp, "cmp", NONE, bits)                                                           \
    TWO_OPERANDS(test, "test", NONE, bits)                                                         \
    PLAIN(add, a + b, bits)                                                                        \
    PLAIN(or, a | b, bits)                                                                         \
    PLAIN(adc, a + b + CARRY_BIT, bits)                                                            \
    PLAIN(sbb, a - b - CARRY_BIT, bits)                                                            \
    PLAIN(and, a &b, bits)                                                                         \
    PLAIN(sub, a - b, bits)                                                                        \
    PLAIN(xor, a ^ b, bits)
FOR_SIZES(OPERATIONS)

#define ONE_OPERAND(name, text, carry, bits)                                                       \
    static inline uint##bits##_t name##_##bits(uint##bits##_t value, uint16_t *flags)              \
    {                                                                                              \
        uint32_t ax;                                                                               \
        asm(carry##_TEXT text " %[value]" FLAGS_OUT                                                \
            : [value] "+r"(value), "=&a"(ax)                                                       \
            : "r"(value)carry##_INPUT                                                              \
            : "cc");                                                                               \
        *flags = (uint16_t)ax;                                                                     \
        return value;                                                                              \
    }
#define PLAIN_ONE(name, expression, bits)                                                          \
    static inline uint##bits##_t plain_##name##_##bits(uint##bits##_t a, uint16_t *flags)          \
    {                                                                                              \
        return (uint##bits##_t)(expression);                                                       \
    }
#define OPERATIONS_ONE(bits)                                                                       \
    ONE_OPERAND(inc, "inc", CARRY, bits)                                                           \
    ONE_OPERAND(dec, "dec", CARRY, bits)                                                           \
    ONE_OPERAND(neg, "neg", NONE, bits)                                                            \
    PLAIN_ONE(inc, a + 1, bits)                                                                    \
    PLAIN_ONE(dec, a - 1, bits)                                                                    \
    PLAIN_ONE(neg, -a, bits)                                                                       \
    PLAIN_ONE(not, ~a, bits)
FOR_SIZES(OPERATIONS_ONE)

/* ---- two operands, result to a register ---- */

#define TO_REGISTER(op, form, source, bits)                                                        \
    HANDLER(op##_##form##_##bits)                                                                  \
    {                                                                                              \
        uint##bits##_t other = (uint##bits##_t)(source);                                           \
        REG_SET##bits(v, insn->a, op##_##bits(REG##bits(v, insn->a), other, &v->flags));           \
        NEXT(v, insn);                                                                             \
    }
#define TO_REGISTER_LOADED(op, form, addressing, bits)                                             \
    MEMORY_HANDLER(op##_##form##_##bits)                                                           \
    {                                                                                              \
        uint##bits##_t other = LOAD(bits, LINEAR(addressing, bits / 8, false));                    \
        REG_SET##bits(v, insn->a, op##_##bits(REG##bits(v, insn->a), other, &v->flags));           \
        NEXT(v, insn);                                                                             \
    }
#define TO_REGISTER_FORMS(op, bits)                                                                \
    TO_REGISTER(op, rr, REG##bits(v, insn->b), bits)                                               \
    TO_REGISTER(op, ri, insn->imm, bits)                                                           \
    TO_REGISTER_LOADED(op, rm, ADDRESS_ANY, bits)                                                  \
    TO_REGISTER_LOADED(op, rb, ADDRESS_BASE, bits)

/* ---- two operands, flags only ---- */

#define TO_FLAGS(op, form, kind, first, second, bits)                                              \
    kind(op##_##form##_##bits)                                                                     \
    {                                                                                              \
        uint##bits##_t value = (uint##bits##_t)(first), other = (uint##bits##_t)(second);          \
        op##_##bits(value, other, &v->flags);                                                      \
        NEXT(v, insn);                                                                             \
    }
#define LOAD_AS(addressing, bits) LOAD(bits, LINEAR(addressing, bits / 8, false))
#define TO_FLAGS_FORMS(op, bits)                                                                   \
    TO_FLAGS(op, rr, HANDLER, REG##bits(v, insn->a), REG##bits(v, insn->b), bits)                  \
    TO_FLAGS(op, ri, HANDLER, REG##bits(v, insn->a), insn->imm, bits)                              \
    TO_FLAGS(op, rm, MEMORY_HANDLER, REG##bits(v, insn->a), LOAD_AS(ADDRESS_ANY, bits), bits)      \
    TO_FLAGS(op, rb, MEMORY_HANDLER, REG##bits(v, insn->a), LOAD_AS(ADDRESS_BASE, bits), bits)     \
    TO_FLAGS(op, mr, MEMORY_HANDLER, LOAD_AS(ADDRESS_ANY, bits), REG##bits(v, insn->b), bits)      \
    TO_FLAGS(op, br, MEMORY_HANDLER, LOAD_AS(ADDRESS_BASE, bits), REG##bits(v, insn->b), bits)     \
    TO_FLAGS(op, mi, MEMORY_HANDLER, LOAD_AS(ADDRESS_ANY, bits), insn->imm, bits)                  \
    TO_FLAGS(op, bi, MEMORY_HANDLER, LOAD_AS(ADDRESS_BASE, bits), insn->imm, bits)

/* ---- result to memory ---- */

/* `compute` makes `result` of `value`, and may change `flags`. */
#define TO_MEMORY(name, addressing, bits, other_type, other_source, compute)                       \
    MEMORY_HANDLER(name##_##bits)                                                                  \
    {                                                                                              \
        uint64_t linear = LINEAR(addressing, bits / 8, true);                                      \
        volatile uint##bits##_t *at = AT(bits, linear);                                            \
        other_type other = (other_type)(other_source);                                             \
        uint16_t flags = v->flags;                                                                 \
        (void)other;                                                                               \
        if (slow || at != NULL) {                                                                  \
            uint##bits##_t value = *at;                                                            \
            *at = compute;                                                                         \
        } else {                                                                                   \
            uint##bits##_t value = load_##bits(v, insn, linear, insn->seg);                        \
            store_##bits(v, insn, linear, insn->seg, compute);                                     \
        }                                                                                          \
        v->flags = flags;                                                                          \
        NEXT(v, insn);                                                                             \
    }
#define TO_MEMORY_LOCKED(name, bits, other_type, other_source, compute)                            \
    HANDLER(name##_##bits)                                                                         \
    {                                                                                              \
        uint64_t linear = insn_linear(v, insn, bits / 8, true);                                    \
        uint##bits##_t *at = lock_at(v, insn, linear, bits / 8);                                   \
        other_type other = (other_type)(other_source);                                             \
        uint16_t flags;                                                                            \
        (void)other;                                                                               \
        if (likely(at != NULL)) {                                                                  \
            uint##bits##_t value = __atomic_load_n(at, __ATOMIC_RELAXED), result;                  \
            do {                                                                                   \
                flags = v->flags;                                                                  \
                result = compute;                                                                  \
            } while (!__atomic_compare_exchange_n(at, &value, result, false, __ATOMIC_SEQ_CST,     \
                                                  __ATOMIC_RELAXED));                              \
        } else {                                                                                   \
            exclusive_begin(v);                                                                    \
            uint##bits##_t value = load_##bits(v, insn, linear, insn->seg);                        \
            flags = v->flags;                                                                      \
            store_##bits(v, insn, linear, insn->seg, compute);                                     \
            exclusive_end(v);                                                                      \
        }                                                                                          \
        v->flags = flags;                                                                          \
        NEXT(v, insn);                                                                             \
    }
#define TO_MEMORY_FORMS(op, bits)                                                                  \
    TO_MEMORY(op##_mr, ADDRESS_ANY, bits, uint##bits##_t, REG##bits(v, insn->b),                   \
              op##_##bits(value, other, &flags))                                                   \
    TO_MEMORY(op##_mi, ADDRESS_ANY, bits, uint##bits##_t, insn->imm,                               \
              op##_##bits(value, other, &flags))                                                   \
    TO_MEMORY(op##_br, ADDRESS_BASE, bits, uint##bits##_t, REG##bits(v, insn->b),                  \
              op##_##bits(value, other, &flags))                                                   \
    TO_MEMORY(op##_bi, ADDRESS_BASE, bits, uint##bits##_t, insn->imm,                              \
              op##_##bits(value, other, &flags))
#define TO_MEMORY_LOCKED_FORMS(op, bits)                                                           \
    TO_MEMORY_LOCKED(op##_lr, bits, uint##bits##_t, REG##bits(v, insn->b),                         \
                     op##_##bits(value, other, &flags))                                            \
    TO_MEMORY_LOCKED(op##_li, bits, uint##bits##_t, insn->imm, op##_##bits(value, other, &flags))

#define FULL(op, bits)                                                                             \
    TO_REGISTER_FORMS(op, bits)                                                                    \
    TO_MEMORY_FORMS(op, bits)                                                                      \
    TO_MEMORY_LOCKED_FORMS(op, bits)                                                               \
    TO_REGISTER_FORMS(plain_##op, bits)                                                            \
    TO_MEMORY_FORMS(plain_##op, bits)
#define ALL_FULL(bits)                                                                             \
    FULL(add, bits)                                                                                \
    FULL(or, bits)                                                                                 \
    FULL(adc, bits)                                                                                \
    FULL(sbb, bits)                                                                                \
    FULL(and, bits)                                                                                \
    FULL(sub, bits)                                                                                \
    FULL(xor, bits)                                                                                \
    TO_FLAGS_FORMS(cmp, bits)                                                                      \
    TO_FLAGS_FORMS(test, bits)
FOR_SIZES(ALL_FULL)

/* XOR r, r and SUB r, r: the usual zero, with constant flags. */
#define ZEROING(bits)                                                                              \
    HANDLER(zero_##bits)                                                                           \
    {                                                                                              \
        REG_SET##bits(v, insn->a, 0);                                                              \
        v->flags = SOFT_ZF | SOFT_PF | 0x200;                                                      \
        NEXT(v, insn);                                                                             \
    }
FOR_SIZES(ZEROING)

/* ---- one operand ---- */

#define ONE_FORMS(op, bits)                                                                        \
    HANDLER(op##_r_##bits)                                                                         \
    {                                                                                              \
        REG_SET##bits(v, insn->a, op##_##bits(REG##bits(v, insn->a), &v->flags));                  \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    TO_MEMORY(op##_m, ADDRESS_ANY, bits, int, 0, op##_##bits(value, &flags))                       \
    TO_MEMORY(op##_b, ADDRESS_BASE, bits, int, 0, op##_##bits(value, &flags))                      \
    TO_MEMORY_LOCKED(op##_l, bits, int, 0, op##_##bits(value, &flags))
#define ALL_ONE(bits)                                                                              \
    ONE_FORMS(inc, bits)                                                                           \
    ONE_FORMS(dec, bits)                                                                           \
    ONE_FORMS(neg, bits)                                                                           \
    ONE_FORMS(plain_inc, bits)                                                                     \
    ONE_FORMS(plain_dec, bits)                                                                     \
    ONE_FORMS(plain_neg, bits)                                                                     \
    ONE_FORMS(plain_not, bits)
FOR_SIZES(ALL_ONE)

/* ---- bind ---- */

enum { ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST };

struct two_forms {
    insn_run *rr[4], *ri[4], *rm[4], *rb[4], *mr[4], *mi[4], *br[4], *bi[4], *lr[4], *li[4];
};

#define FORMS_REGISTER(op)                                                                         \
    .rr = PER_SIZE(op##_rr), .ri = PER_SIZE(op##_ri), .rm = PER_SIZE(op##_rm),                     \
    .rb = PER_SIZE(op##_rb)
#define FORMS_MEMORY(op)                                                                           \
    .mr = PER_SIZE(op##_mr), .mi = PER_SIZE(op##_mi), .br = PER_SIZE(op##_br),                     \
    .bi = PER_SIZE(op##_bi)
#define FORMS_FULL(op)                                                                             \
    {                                                                                              \
        FORMS_REGISTER(op), FORMS_MEMORY(op), .lr = PER_SIZE(op##_lr), .li = PER_SIZE(op##_li)     \
    }
#define FORMS_PLAIN(op)                                                                            \
    {                                                                                              \
        FORMS_REGISTER(plain_##op), FORMS_MEMORY(plain_##op)                                       \
    }
#define FORMS_FLAGS(op)                                                                            \
    {                                                                                              \
        FORMS_REGISTER(op), FORMS_MEMORY(op)                                                       \
    }

static const struct two_forms with_flags[] = {
    [ADD] = FORMS_FULL(add), [OR] = FORMS_FULL(or),    [ADC] = FORMS_FULL(adc),
    [SBB] = FORMS_FULL(sbb), [AND] = FORMS_FULL(and),  [SUB] = FORMS_FULL(sub),
    [XOR] = FORMS_FULL(xor), [CMP] = FORMS_FLAGS(cmp), [TEST] = FORMS_FLAGS(test),
};
static const struct two_forms without_flags[] = {
    [ADD] = FORMS_PLAIN(add), [OR] = FORMS_PLAIN(or),   [ADC] = FORMS_PLAIN(adc),
    [SBB] = FORMS_PLAIN(sbb), [AND] = FORMS_PLAIN(and), [SUB] = FORMS_PLAIN(sub),
    [XOR] = FORMS_PLAIN(xor), [CMP] = FORMS_FLAGS(cmp), [TEST] = FORMS_FLAGS(test),
};

static void bind_two(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    const struct two_forms *forms =
        &(decoder->flags_needed ? with_flags : without_flags)[decoder->arg];
    unsigned size = size_index(op_size(decoder, 0));
    bool base = (insn->flags & INSN_MEMORY) && addressing_of(decoder) == ADDRESS_BASE;
    if (op_is_memory(decoder, 0)) {
        bool immediate = op_is_immediate(decoder, 1);
        if (immediate)
            insn->imm = op_immediate(decoder, 1);
        else
            insn->b = op_register(decoder, 1);
        if (insn->flags & INSN_LOCK)
            insn->run =
                (immediate ? with_flags[decoder->arg].li : with_flags[decoder->arg].lr)[size];
        else if (base)
            insn->run = (immediate ? forms->bi : forms->br)[size];
        else
            insn->run = (immediate ? forms->mi : forms->mr)[size];
        return;
    }
    insn->a = op_register(decoder, 0);
    if (op_is_memory(decoder, 1)) {
        insn->run = (base ? forms->rb : forms->rm)[size];
    } else if (op_is_immediate(decoder, 1)) {
        insn->imm = op_immediate(decoder, 1);
        insn->run = forms->ri[size];
    } else {
        static insn_run *const zero[4] = PER_SIZE(zero);
        insn->b = op_register(decoder, 1);
        insn->run = forms->rr[size];
        if (insn->a == insn->b && (decoder->arg == XOR || decoder->arg == SUB))
            insn->run = zero[size];
    }
}

void alu_fuse(struct insn *compare, const struct insn *branch)
{
    static const unsigned ops[] = {[FUSED_CMP] = CMP, [FUSED_TEST] = TEST};
    for (unsigned op = 0; op < FUSED_OP_MAX; op++) {
        const struct two_forms *forms = &with_flags[ops[op]];
        for (unsigned size = 0; size < 4; size++) {
            insn_run *const originals[FUSED_FORM_MAX] = {
                [FUSED_RR] = forms->rr[size],
                [FUSED_RI] = forms->ri[size],
                [FUSED_RB] = forms->rb[size],
                [FUSED_BI] = forms->bi[size],
            };
            for (unsigned form = 0; form < FUSED_FORM_MAX; form++) {
                insn_run *fused = fused_handler(op, form, size, branch->aux);
                if (fused && compare->run == originals[form])
                    compare->run = fused;
            }
        }
    }
}

enum { INC, DEC, NEG, NOT };

struct one_forms {
    insn_run *r[4], *m[4], *b[4], *l[4];
};
#define FORMS_ONE(op)                                                                              \
    {                                                                                              \
        .r = PER_SIZE(op##_r), .m = PER_SIZE(op##_m), .b = PER_SIZE(op##_b), .l = PER_SIZE(op##_l) \
    }

static void bind_one_operand(struct decoder *decoder)
{
    static const struct one_forms forms[4][2] = {
        [INC] = {FORMS_ONE(plain_inc), FORMS_ONE(inc)},
        [DEC] = {FORMS_ONE(plain_dec), FORMS_ONE(dec)},
        [NEG] = {FORMS_ONE(plain_neg), FORMS_ONE(neg)},
        [NOT] = {FORMS_ONE(plain_not), FORMS_ONE(plain_not)},
    };
    struct insn *insn = decoder->insn;
    const struct one_forms *form = &forms[decoder->arg][decoder->flags_needed != 0];
    unsigned size = size_index(op_size(decoder, 0));
    if (!op_is_memory(decoder, 0)) {
        insn->a = op_register(decoder, 0);
        insn->run = form->r[size];
    } else if (insn->flags & INSN_LOCK) {
        insn->run = form->l[size];
    } else {
        insn->run = (addressing_of(decoder) == ADDRESS_BASE ? form->b : form->m)[size];
    }
}

const struct op_row op_alu_rows[] = {
    {ZYDIS_MNEMONIC_ADD, bind_two, ADD},         {ZYDIS_MNEMONIC_OR, bind_two, OR},
    {ZYDIS_MNEMONIC_ADC, bind_two, ADC},         {ZYDIS_MNEMONIC_SBB, bind_two, SBB},
    {ZYDIS_MNEMONIC_AND, bind_two, AND},         {ZYDIS_MNEMONIC_SUB, bind_two, SUB},
    {ZYDIS_MNEMONIC_XOR, bind_two, XOR},         {ZYDIS_MNEMONIC_CMP, bind_two, CMP},
    {ZYDIS_MNEMONIC_TEST, bind_two, TEST},       {ZYDIS_MNEMONIC_INC, bind_one_operand, INC},
    {ZYDIS_MNEMONIC_DEC, bind_one_operand, DEC}, {ZYDIS_MNEMONIC_NEG, bind_one_operand, NEG},
    {ZYDIS_MNEMONIC_NOT, bind_one_operand, NOT}, {0},
};
