/*
 * The decimal instructions of 16- and 32-bit modes. A 64-bit host has none of them: they follow the
 * operation sections of the SDM, and undefined flags come out as ADD, SUB and AND of the last step
 * leave them.
 */
#include "cpu/soft/op.h"

static uint8_t al(const struct soft_vcpu *v)
{
    return (uint8_t)v->gpr[CPU_RAX];
}

/* SF ZF PF of a byte, with AF and CF as given, OF 0. */
static void result_flags(struct soft_vcpu *v, uint8_t value, bool adjust, bool carry)
{
    uint16_t flags = 0x200;
    if (value & 0x80)
        flags |= SOFT_SF;
    if (value == 0)
        flags |= SOFT_ZF;
    if (!__builtin_parity(value))
        flags |= SOFT_PF;
    if (adjust)
        flags |= SOFT_AF;
    if (carry)
        flags |= SOFT_CF;
    v->flags = flags;
}

HANDLER(daa)
{
    uint8_t old = al(v), value = old;
    bool carry = v->flags & SOFT_CF, adjust = (old & 15) > 9 || v->flags & SOFT_AF;
    if (adjust)
        value = (uint8_t)(value + 6);
    bool high = old > 0x99 || carry;
    if (high)
        value = (uint8_t)(value + 0x60);
    REG8(v, 0) = value;
    result_flags(v, value, adjust, high);
    NEXT(v, insn);
}

HANDLER(das)
{
    uint8_t old = al(v), value = old;
    bool carry = v->flags & SOFT_CF, adjust = (old & 15) > 9 || v->flags & SOFT_AF;
    bool high = old > 0x99 || carry;
    bool out = high;
    if (adjust) {
        out = out || old < 6;
        value = (uint8_t)(value - 6);
    }
    if (high)
        value = (uint8_t)(value - 0x60);
    REG8(v, 0) = value;
    result_flags(v, value, adjust, out);
    NEXT(v, insn);
}

HANDLER(aaa)
{
    bool adjust = (al(v) & 15) > 9 || v->flags & SOFT_AF;
    if (adjust)
        REG16(v, 0) = (uint16_t)(REG16(v, 0) + 0x106);
    REG8(v, 0) &= 15;
    result_flags(v, al(v), adjust, adjust);
    NEXT(v, insn);
}

HANDLER(aas)
{
    bool adjust = (al(v) & 15) > 9 || v->flags & SOFT_AF;
    if (adjust)
        REG16(v, 0) = (uint16_t)(REG16(v, 0) - 0x106);
    REG8(v, 0) &= 15;
    result_flags(v, al(v), adjust, adjust);
    NEXT(v, insn);
}

HANDLER(aam)
{
    uint8_t base = (uint8_t)insn->imm, value = al(v);
    if (base == 0)
        soft_raise(v, insn, VECTOR_DE);
    REG16(v, 0) = (uint16_t)(value / base << 8 | value % base);
    result_flags(v, al(v), false, false);
    NEXT(v, insn);
}

HANDLER(aad)
{
    uint8_t value = (uint8_t)(al(v) + REG8(v, 1) * (uint8_t)insn->imm);
    REG16(v, 0) = value;
    result_flags(v, value, false, false);
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
