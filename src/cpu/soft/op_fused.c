/*
 * Comparison and conditional branch in one handler: the commonest pair there is, and one dispatch
 * less. The branch keeps its own place in the block (its link, and the way in from anywhere else);
 * only the handler of the comparison changes. 64-bit mode only.
 */
#include "cpu/soft/op.h"

#define COMPARE(name, text, bits)                                                                  \
    static inline unsigned name##_##bits(struct soft_vcpu *v, uint##bits##_t a, uint##bits##_t b)  \
    {                                                                                              \
        uint32_t ax;                                                                               \
        asm(text " %[b], %[a]" FLAGS_OUT : "=&a"(ax) : [a] "r"(a), [b] "rm"(b) : "cc");            \
        v->flags = (uint16_t)ax;                                                                   \
        return ax;                                                                                 \
    }
#define COMPARES(bits) COMPARE(cmp, "cmp", bits) COMPARE(test, "test", bits)
COMPARES(8)
COMPARES(32)
COMPARES(64)

/* The branch is insn[1], the terminator insn[2]. */
#define PAIR(kind, op, form, first, second, condition, bits)                                       \
    kind(op##_##form##_##condition##_##bits)                                                       \
    {                                                                                              \
        uint##bits##_t value = (uint##bits##_t)(first), other = (uint##bits##_t)(second);          \
        if (cond_##condition(op##_##bits(v, value, other)))                                        \
            return block_branch(v, insn + 1);                                                      \
        return block_branch(v, insn + 2);                                                          \
    }
#define PAIRS_OF(op, condition, bits)                                                              \
    PAIR(HANDLER, op, rr, REG##bits(v, insn->a), REG##bits(v, insn->b), condition, bits)           \
    PAIR(HANDLER, op, ri, REG##bits(v, insn->a), insn->imm, condition, bits)                       \
    PAIR(MEMORY_HANDLER, op, rb, REG##bits(v, insn->a),                                            \
         LOAD(bits, LINEAR(ADDRESS_BASE, bits / 8, false)), condition, bits)                       \
    PAIR(MEMORY_HANDLER, op, bi, LOAD(bits, LINEAR(ADDRESS_BASE, bits / 8, false)), insn->imm,     \
         condition, bits)
#define PAIRS(condition)                                                                           \
    PAIRS_OF(cmp, condition, 8)                                                                    \
    PAIRS_OF(cmp, condition, 32)                                                                   \
    PAIRS_OF(cmp, condition, 64)                                                                   \
    PAIRS_OF(test, condition, 8)                                                                   \
    PAIRS_OF(test, condition, 32)                                                                  \
    PAIRS_OF(test, condition, 64)
FOR_CONDITIONS(PAIRS)

#define OP_FORMS(op, condition, bits)                                                              \
    {                                                                                              \
        op##_rr_##condition##_##bits, op##_ri_##condition##_##bits, op##_rb_##condition##_##bits,  \
            op##_bi_##condition##_##bits                                                           \
    }
#define OP_SIZES(op, condition)                                                                    \
    {                                                                                              \
        OP_FORMS(op, condition, 8), {NULL}, OP_FORMS(op, condition, 32),                           \
            OP_FORMS(op, condition, 64)                                                            \
    }
#define OP_CONDITION(condition) {OP_SIZES(cmp, condition), OP_SIZES(test, condition)},

insn_run *fused_handler(enum fused_op op, enum fused_form form, unsigned size, unsigned condition)
{
    static insn_run *const handlers[16][FUSED_OP_MAX][4][FUSED_FORM_MAX] = {
        FOR_CONDITIONS(OP_CONDITION)};
    return handlers[condition][op][size][form];
}
