/* MUL IMUL DIV IDIV. MULX runs natively. Flags come from the host's own instructions, with the
 * guest's in place before: some processors keep those that the manuals call undefined. */
#include "cpu/soft/op.h"

/* ---- one operand: RDX:RAX = RAX * operand ---- */

static void multiply_8(struct soft_vcpu *v, uint8_t other, bool is_signed)
{
    uint32_t ax = v->flags;
    uint16_t product = 0;
    uint8_t value = REG8(v, 0);
    if (is_signed)
        asm(FLAGS_IN "movb %[value], %%al\n\timulb %[other]\n\tmovw %%ax, %[product]" FLAGS_OUT
            : "+&a"(ax), [product] "=&r"(product)
            : [value] "r"(value), [other] "r"(other)
            : "cc");
    else
        asm(FLAGS_IN "movb %[value], %%al\n\tmulb %[other]\n\tmovw %%ax, %[product]" FLAGS_OUT
            : "+&a"(ax), [product] "=&r"(product)
            : [value] "r"(value), [other] "r"(other)
            : "cc");
    REG16(v, 0) = product;
    v->flags = (uint16_t)ax;
}

#define MULTIPLY(bits, suffix, accumulator)                                                        \
    static void multiply_##bits(struct soft_vcpu *v, uint##bits##_t other, bool is_signed)         \
    {                                                                                              \
        uint64_t ax = v->flags;                                                                    \
        uint##bits##_t low, high, value = REG##bits(v, 0);                                         \
        if (is_signed)                                                                             \
            asm(FLAGS_IN "mov %[value], %%" accumulator "\n\timul" suffix                          \
                         " %[other]\n\tmov %%" accumulator ", %[low]" FLAGS_OUT                    \
                : "+&a"(ax), [low] "=&r"(low), "=&d"(high)                                         \
                : [value] "r"(value), [other] "r"(other)                                           \
                : "cc");                                                                           \
        else                                                                                       \
            asm(FLAGS_IN "mov %[value], %%" accumulator "\n\tmul" suffix                           \
                         " %[other]\n\tmov %%" accumulator ", %[low]" FLAGS_OUT                    \
                : "+&a"(ax), [low] "=&r"(low), "=&d"(high)                                         \
                : [value] "r"(value), [other] "r"(other)                                           \
                : "cc");                                                                           \
        REG_SET##bits(v, 0, low);                                                                  \
        REG_SET##bits(v, CPU_RDX * 8, high);                                                       \
        v->flags = (uint16_t)ax;                                                                   \
    }
MULTIPLY(16, "w", "ax")
MULTIPLY(32, "l", "eax")
MULTIPLY(64, "q", "rax")

#define MULTIPLY_FORMS(bits)                                                                       \
    HANDLER(mul_r_##bits)                                                                          \
    {                                                                                              \
        multiply_##bits(v, REG##bits(v, insn->b), false);                                          \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(imul_r_##bits)                                                                         \
    {                                                                                              \
        multiply_##bits(v, REG##bits(v, insn->b), true);                                           \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    MEMORY_HANDLER(mul_m_##bits)                                                                   \
    {                                                                                              \
        uint##bits##_t other = LOAD(bits, LINEAR(ADDRESS_ANY, bits / 8, false));                   \
        multiply_##bits(v, other, false);                                                          \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    MEMORY_HANDLER(imul_m_##bits)                                                                  \
    {                                                                                              \
        uint##bits##_t other = LOAD(bits, LINEAR(ADDRESS_ANY, bits / 8, false));                   \
        multiply_##bits(v, other, true);                                                           \
        NEXT(v, insn);                                                                             \
    }
FOR_SIZES(MULTIPLY_FORMS)

/* ---- two and three operands: the low half only ---- */

#define PRODUCT(bits)                                                                              \
    static inline uint##bits##_t product_##bits(uint##bits##_t a, uint##bits##_t b,                \
                                                uint16_t *flags)                                   \
    {                                                                                              \
        uint32_t ax = *flags;                                                                      \
        asm(FLAGS_IN "imul %[b], %[a]" FLAGS_OUT : [a] "+&r"(a), "+&a"(ax) : [b] "r"(b) : "cc");   \
        *flags = (uint16_t)ax;                                                                     \
        return a;                                                                                  \
    }                                                                                              \
    static inline uint##bits##_t plain_product_##bits(uint##bits##_t a, uint##bits##_t b,          \
                                                      uint16_t *flags)                             \
    {                                                                                              \
        return (uint##bits##_t)((uint64_t)a * b);                                                  \
    }
FOR_WIDE_SIZES(PRODUCT)

#define PRODUCT_FORMS(op, bits)                                                                    \
    HANDLER(op##_rr_##bits)                                                                        \
    {                                                                                              \
        REG_SET##bits(v, insn->a,                                                                  \
                      op##_##bits(REG##bits(v, insn->a), REG##bits(v, insn->b), &v->flags));       \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(op##_rri_##bits)                                                                       \
    {                                                                                              \
        REG_SET##bits(v, insn->a,                                                                  \
                      op##_##bits(REG##bits(v, insn->b), (uint##bits##_t)insn->imm, &v->flags));   \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    MEMORY_HANDLER(op##_rm_##bits)                                                                 \
    {                                                                                              \
        uint##bits##_t other = LOAD(bits, LINEAR(ADDRESS_ANY, bits / 8, false));                   \
        REG_SET##bits(v, insn->a, op##_##bits(REG##bits(v, insn->a), other, &v->flags));           \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    MEMORY_HANDLER(op##_rmi_##bits)                                                                \
    {                                                                                              \
        uint##bits##_t other = LOAD(bits, LINEAR(ADDRESS_ANY, bits / 8, false));                   \
        REG_SET##bits(v, insn->a, op##_##bits(other, (uint##bits##_t)insn->imm, &v->flags));       \
        NEXT(v, insn);                                                                             \
    }
#define PRODUCT_ALL(bits)                                                                          \
    PRODUCT_FORMS(product, bits)                                                                   \
    PRODUCT_FORMS(plain_product, bits)
FOR_WIDE_SIZES(PRODUCT_ALL)

/* ---- division: checked first, so that the host never faults ---- */

/* Would dividend / divisor leave `bits` bits? Zero divides nothing. */
#define DIVIDE_CHECK(bits, wide)                                                                   \
    static inline bool divides_##bits(uint##wide##_t dividend, uint##bits##_t divisor,             \
                                      bool is_signed)                                              \
    {                                                                                              \
        if (!is_signed)                                                                            \
            return (uint##bits##_t)(dividend >> bits) < divisor;                                   \
        bool negative = dividend >> (wide - 1), by_negative = divisor >> (bits - 1);               \
        uint##wide##_t size = negative ? -dividend : dividend;                                     \
        uint##wide##_t by = by_negative ? (uint##bits##_t) - divisor : divisor;                    \
        return size < (by << (bits - 1)) + (negative != by_negative ? by : 0);                     \
    }
typedef unsigned __int128 uint128_t;
DIVIDE_CHECK(8, 16)
DIVIDE_CHECK(16, 32)
DIVIDE_CHECK(32, 64)
DIVIDE_CHECK(64, 128)

static void divide_8(struct soft_vcpu *v, const struct insn *insn, uint8_t divisor, bool is_signed)
{
    uint16_t result, dividend = REG16(v, 0);
    uint32_t ax = v->flags;
    if (!divides_8(dividend, divisor, is_signed))
        soft_raise(v, insn, VECTOR_DE);
    if (is_signed)
        asm(FLAGS_IN "movw %[dividend], %%ax\n\tidivb %[divisor]\n\tmovw %%ax, %[result]" FLAGS_OUT
            : "+&a"(ax), [result] "=&r"(result)
            : [dividend] "r"(dividend), [divisor] "r"(divisor)
            : "cc");
    else
        asm(FLAGS_IN "movw %[dividend], %%ax\n\tdivb %[divisor]\n\tmovw %%ax, %[result]" FLAGS_OUT
            : "+&a"(ax), [result] "=&r"(result)
            : [dividend] "r"(dividend), [divisor] "r"(divisor)
            : "cc");
    REG16(v, 0) = result;
    v->flags = (uint16_t)ax;
}

#define DIVIDE(bits, wide, suffix, accumulator)                                                    \
    static void divide_##bits(struct soft_vcpu *v, const struct insn *insn,                        \
                              uint##bits##_t divisor, bool is_signed)                              \
    {                                                                                              \
        uint64_t ax = v->flags;                                                                    \
        uint##bits##_t low = REG##bits(v, 0), high = REG##bits(v, CPU_RDX * 8), quotient;          \
        if (!divides_##bits((uint##wide##_t)high << bits | low, divisor, is_signed))               \
            soft_raise(v, insn, VECTOR_DE);                                                        \
        if (is_signed)                                                                             \
            asm(FLAGS_IN "mov %[low], %%" accumulator "\n\tidiv" suffix                            \
                         " %[divisor]\n\tmov %%" accumulator ", %[quotient]" FLAGS_OUT             \
                : "+&a"(ax), [quotient] "=&r"(quotient), "+&d"(high)                               \
                : [low] "r"(low), [divisor] "r"(divisor)                                           \
                : "cc");                                                                           \
        else                                                                                       \
            asm(FLAGS_IN "mov %[low], %%" accumulator "\n\tdiv" suffix                             \
                         " %[divisor]\n\tmov %%" accumulator ", %[quotient]" FLAGS_OUT             \
                : "+&a"(ax), [quotient] "=&r"(quotient), "+&d"(high)                               \
                : [low] "r"(low), [divisor] "r"(divisor)                                           \
                : "cc");                                                                           \
        REG_SET##bits(v, 0, quotient);                                                             \
        REG_SET##bits(v, CPU_RDX * 8, high);                                                       \
        v->flags = (uint16_t)ax;                                                                   \
    }
DIVIDE(16, 32, "w", "ax")
DIVIDE(32, 64, "l", "eax")
DIVIDE(64, 128, "q", "rax")

#define DIVIDE_FORMS(bits)                                                                         \
    HANDLER(div_r_##bits)                                                                          \
    {                                                                                              \
        divide_##bits(v, insn, REG##bits(v, insn->b), false);                                      \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(idiv_r_##bits)                                                                         \
    {                                                                                              \
        divide_##bits(v, insn, REG##bits(v, insn->b), true);                                       \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(div_m_##bits)                                                                          \
    {                                                                                              \
        uint64_t linear = insn_linear(v, insn, bits / 8, false);                                   \
        divide_##bits(v, insn, load_##bits(v, insn, linear, insn->seg), false);                    \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(idiv_m_##bits)                                                                         \
    {                                                                                              \
        uint64_t linear = insn_linear(v, insn, bits / 8, false);                                   \
        divide_##bits(v, insn, load_##bits(v, insn, linear, insn->seg), true);                     \
        NEXT(v, insn);                                                                             \
    }
FOR_SIZES(DIVIDE_FORMS)

/* ---- bind ---- */

enum { MUL, IMUL, DIV, IDIV };

static void bind_one(struct decoder *decoder)
{
    static insn_run *const forms[4][2][4] = {
        [MUL] = {PER_SIZE(mul_r), PER_SIZE(mul_m)},
        [IMUL] = {PER_SIZE(imul_r), PER_SIZE(imul_m)},
        [DIV] = {PER_SIZE(div_r), PER_SIZE(div_m)},
        [IDIV] = {PER_SIZE(idiv_r), PER_SIZE(idiv_m)},
    };
    struct insn *insn = decoder->insn;
    bool memory = op_is_memory(decoder, 0);
    if (!memory)
        insn->b = op_register(decoder, 0);
    insn->run = forms[decoder->arg][memory][size_index(op_size(decoder, 0))];
}

static void bind_imul(struct decoder *decoder)
{
    static insn_run *const forms[2][2][2][4] = {
        {{PER_WIDE_SIZE(plain_product_rr), PER_WIDE_SIZE(plain_product_rri)},
         {PER_WIDE_SIZE(plain_product_rm), PER_WIDE_SIZE(plain_product_rmi)}},
        {{PER_WIDE_SIZE(product_rr), PER_WIDE_SIZE(product_rri)},
         {PER_WIDE_SIZE(product_rm), PER_WIDE_SIZE(product_rmi)}},
    };
    struct insn *insn = decoder->insn;
    unsigned visible = decoder->zydis->operand_count_visible;
    if (visible < 2) {
        bind_one(decoder);
        return;
    }
    bool memory = op_is_memory(decoder, 1), immediate = visible == 3;
    insn->a = op_register(decoder, 0);
    if (!memory)
        insn->b = op_register(decoder, 1);
    if (immediate)
        insn->imm = op_immediate(decoder, 2);
    insn->run =
        forms[decoder->flags_needed != 0][memory][immediate][size_index(op_size(decoder, 0))];
}

const struct op_row op_muldiv_rows[] = {
    {ZYDIS_MNEMONIC_MUL, bind_one, MUL},   {ZYDIS_MNEMONIC_IMUL, bind_imul, IMUL},
    {ZYDIS_MNEMONIC_DIV, bind_one, DIV},   {ZYDIS_MNEMONIC_IDIV, bind_one, IDIV},
    {ZYDIS_MNEMONIC_MULX, native_bind, 0}, {0},
};
