/*
 * The decimal instructions of 16- and 32-bit modes. A 64-bit host has none of them: they follow the
 * operation sections of the SDM. Flags that those call undefined come out as the addition or
 * subtraction of the correction leaves them, which is what processors do.
 */
#include "cpu/soft/op.h"

static uint8_t al(const struct soft_vcpu *v)
{
    return (uint8_t)v->gpr[CPU_RAX];
}

#define CORRECT(name, text, bits)                                                                  \
    static uint##bits##_t name##_##bits(struct soft_vcpu *v, uint##bits##_t value,                 \
                                        uint##bits##_t by)                                         \
    {                                                                                              \
        uint32_t ax;                                                                               \
        asm(text " %[by], %[value]" FLAGS_OUT                                                      \
            : [value] "+r"(value), "=&a"(ax)                                                       \
            : [by] "r"(by)                                                                         \
            : "cc");                                                                               \
        v->flags = (uint16_t)ax;                                                                   \
        return value;                                                                              \
    }
CORRECT(add, "add", 8)
CORRECT(sub, "sub", 8)
CORRECT(add, "add", 16)
CORRECT(sub, "sub", 16)

static void carries_are(struct soft_vcpu *v, bool adjust, bool carry)
{
    v->flags = (uint16_t)((v->flags & ~(SOFT_AF | SOFT_CF)) | (adjust ? SOFT_AF : 0) |
                          (carry ? SOFT_CF : 0));
}

static bool low_digit_carries(const struct soft_vcpu *v)
{
    return (al(v) & 15) > 9 || v->flags & SOFT_AF;
}

HANDLER(daa)
{
    bool adjust = low_digit_carries(v), high = al(v) > 0x99 || v->flags & SOFT_CF;
    REG8(v, 0) = add_8(v, al(v), (uint8_t)((adjust ? 6 : 0) + (high ? 0x60 : 0)));
    carries_are(v, adjust, high);
    NEXT(v, insn);
}

HANDLER(das)
{
    bool adjust = low_digit_carries(v), high = al(v) > 0x99 || v->flags & SOFT_CF;
    bool carry = high || (adjust && al(v) < 6);
    REG8(v, 0) = sub_8(v, al(v), (uint8_t)((adjust ? 6 : 0) + (high ? 0x60 : 0)));
    carries_are(v, adjust, carry);
    NEXT(v, insn);
}

HANDLER(aaa)
{
    bool adjust = low_digit_carries(v);
    REG16(v, 0) = add_16(v, REG16(v, 0), adjust ? 0x106 : 0) & 0xff0f;
    carries_are(v, adjust, adjust);
    NEXT(v, insn);
}

HANDLER(aas)
{
    bool adjust = low_digit_carries(v);
    REG16(v, 0) = sub_16(v, REG16(v, 0), adjust ? 0x106 : 0) & 0xff0f;
    carries_are(v, adjust, adjust);
    NEXT(v, insn);
}

HANDLER(aam)
{
    uint8_t base = (uint8_t)insn->imm, value = al(v);
    if (base == 0)
        soft_raise(v, insn, VECTOR_DE);
    REG16(v, 0) = (uint16_t)(value / base << 8 | value % base);
    add_8(v, al(v), 0);
    NEXT(v, insn);
}

HANDLER(aad)
{
    REG16(v, 0) = add_8(v, al(v), (uint8_t)(REG8(v, 1) * insn->imm));
    NEXT(v, insn);
}

HANDLER(salc)
{
    REG8(v, 0) = v->flags & SOFT_CF ? 0xff : 0;
    NEXT(v, insn);
}

/* ---- BOUND: two signed limits in memory ---- */

HANDLER(bound_16)
{
    uint64_t linear = insn_linear(v, insn, 4, false);
    int16_t low = (int16_t)load_16(v, insn, linear, insn->seg);
    int16_t high = (int16_t)load_16(v, insn, (uint32_t)(linear + 2), insn->seg);
    int16_t index = (int16_t)REG16(v, insn->a);
    if (index < low || index > high)
        soft_raise(v, insn, VECTOR_BR);
    NEXT(v, insn);
}

HANDLER(bound_32)
{
    uint64_t linear = insn_linear(v, insn, 8, false);
    int32_t low = (int32_t)load_32(v, insn, linear, insn->seg);
    int32_t high = (int32_t)load_32(v, insn, (uint32_t)(linear + 4), insn->seg);
    int32_t index = (int32_t)REG32(v, insn->a);
    if (index < low || index > high)
        soft_raise(v, insn, VECTOR_BR);
    NEXT(v, insn);
}

enum { DAA, DAS, AAA, AAS, AAM, AAD, SALC };

static void bind_decimal(struct decoder *decoder)
{
    static insn_run *const forms[] = {
        [DAA] = daa, [DAS] = das, [AAA] = aaa, [AAS] = aas, [AAM] = aam, [AAD] = aad, [SALC] = salc,
    };
    if (op_is_immediate(decoder, 0))
        decoder->insn->imm = op_immediate(decoder, 0);
    decoder->insn->run = forms[decoder->arg];
}

static void bind_bound(struct decoder *decoder)
{
    decoder->insn->a = op_register(decoder, 0);
    decoder->insn->run = op_size(decoder, 0) == 2 ? bound_16 : bound_32;
}

const struct op_row op_bcd_rows[] = {
    {ZYDIS_MNEMONIC_DAA, bind_decimal, DAA},
    {ZYDIS_MNEMONIC_DAS, bind_decimal, DAS},
    {ZYDIS_MNEMONIC_AAA, bind_decimal, AAA},
    {ZYDIS_MNEMONIC_AAS, bind_decimal, AAS},
    {ZYDIS_MNEMONIC_AAM, bind_decimal, AAM},
    {ZYDIS_MNEMONIC_AAD, bind_decimal, AAD},
    {ZYDIS_MNEMONIC_SALC, bind_decimal, SALC},
    {ZYDIS_MNEMONIC_BOUND, bind_bound, 0},
    {0},
};
