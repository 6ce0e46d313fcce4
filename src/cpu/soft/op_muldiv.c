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

static _Noreturn void divide_error(struct soft_vcpu *v, const struct insn *insn)
{
    soft_raise(v, insn, VECTOR_DE);
}

static void divide_8(struct soft_vcpu *v, const struct insn *insn, uint8_t divisor, bool is_signed)
{
    uint16_t dividend = REG16(v, 0), quotient, remainder;
    if (divisor == 0)
        divide_error(v, insn);
    if (is_signed) {
        int whole = (int16_t)dividend / (int8_t)divisor;
        if (whole != (int8_t)whole)
            divide_error(v, insn);
        quotient = (uint8_t)whole;
        remainder = (uint8_t)((int16_t)dividend % (int8_t)divisor);
    } else {
        if (dividend / divisor > UINT8_MAX)
            divide_error(v, insn);
        quotient = dividend / divisor;
        remainder = dividend % divisor;
    }
    REG16(v, 0) = (uint16_t)(quotient | remainder << 8);
}

#define DIVIDE(bits, wide)                                                                         \
    static void divide_##bits(struct soft_vcpu *v, const struct insn *insn,                        \
                              uint##bits##_t divisor, bool is_signed)                              \
    {                                                                                              \
        uint##wide##_t dividend =                                                                  \
            (uint##wide##_t)REG##bits(v, CPU_RDX * 8) << bits | REG##bits(v, 0);                   \
        if (divisor == 0)                                                                          \
            divide_error(v, insn);                                                                 \
        if (is_signed) {                                                                           \
            int##bits##_t by = (int##bits##_t)divisor;                                             \
            if (by == -1) { /* the one division that overflows in C */                             \
                uint##wide##_t negated = -dividend;                                                \
                if ((int##wide##_t)negated != (int##bits##_t)negated)                              \
                    divide_error(v, insn);                                                         \
                REG_SET##bits(v, 0, negated);                                                      \
                REG_SET##bits(v, CPU_RDX * 8, 0);                                                  \
                return;                                                                            \
            }                                                                                      \
            int##wide##_t quotient = (int##wide##_t)dividend / by;                                 \
            if (quotient != (int##bits##_t)quotient)                                               \
                divide_error(v, insn);                                                             \
            REG_SET##bits(v, 0, (uint##bits##_t)quotient);                                         \
            REG_SET##bits(v, CPU_RDX * 8, (uint##bits##_t)((int##wide##_t)dividend % by));         \
        } else {                                                                                   \
            uint##wide##_t quotient = dividend / divisor;                                          \
            if (quotient >> bits)                                                                  \
                divide_error(v, insn);                                                             \
            REG_SET##bits(v, 0, (uint##bits##_t)quotient);                                         \
            REG_SET##bits(v, CPU_RDX * 8, (uint##bits##_t)(dividend % divisor));                   \
        }                                                                                          \
    }
DIVIDE(16, 32)
DIVIDE(32, 64)

/* 128 by 64 bits on the host's divider; the quotient is known to fit. */
static uint64_t divide_fitting(uint64_t high, uint64_t low, uint64_t divisor,
                               uint64_t *ret_remainder)
{
    asm("divq %[divisor]" : "+a"(low), "+d"(high) : [divisor] "r"(divisor) : "cc");
    *ret_remainder = high;
    return low;
}

static void divide_64(struct soft_vcpu *v, const struct insn *insn, uint64_t divisor,
                      bool is_signed)
{
    unsigned __int128 dividend = (unsigned __int128)v->gpr[CPU_RDX] << 64 | v->gpr[CPU_RAX];
    bool negative = is_signed && v->gpr[CPU_RDX] >> 63;
    bool by_negative = is_signed && divisor >> 63;
    if (negative)
        dividend = -dividend;
    if (by_negative)
        divisor = -divisor;
    if (divisor <= (uint64_t)(dividend >> 64)) /* zero, too */
        divide_error(v, insn);
    uint64_t remainder;
    uint64_t quotient =
        divide_fitting((uint64_t)(dividend >> 64), (uint64_t)dividend, divisor, &remainder);
    if (is_signed && quotient > INT64_MAX + (uint64_t)(negative != by_negative))
        divide_error(v, insn);
    v->gpr[CPU_RAX] = negative != by_negative ? -quotient : quotient;
    v->gpr[CPU_RDX] = negative ? -remainder : remainder;
}

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
