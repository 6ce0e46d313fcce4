/* SHL SHR SAR ROL ROR RCL RCR. SHLD and SHRD run natively.
 *
 * The handlers with flags run the host's instruction with the guest's flags in place: a masked
 * count of 0 keeps them all, rotates keep all but CF and OF, and what is undefined is as here. */
#include "cpu/soft/op.h"

#define SHIFT(name, bits)                                                                          \
    static inline uint##bits##_t name##_##bits(uint##bits##_t value, uint8_t count,                \
                                               uint16_t *flags)                                    \
    {                                                                                              \
        uint32_t ax = *flags;                                                                      \
        asm(FLAGS_IN #name " %[count], %[value]" FLAGS_OUT                                         \
            : [value] "+r"(value), "+a"(ax)                                                        \
            : [count] "c"(count)                                                                   \
            : "cc");                                                                               \
        *flags = (uint16_t)ax;                                                                     \
        return value;                                                                              \
    }
#define MASKED(bits) (count & (bits == 64 ? 63 : 31))
#define PLAIN(name, bits, type, expression)                                                        \
    static inline uint##bits##_t plain_##name##_##bits(uint##bits##_t a, uint8_t count,            \
                                                       uint16_t *flags)                            \
    {                                                                                              \
        unsigned n = MASKED(bits);                                                                 \
        type value = (type)a;                                                                      \
        return (uint##bits##_t)(expression);                                                       \
    }
/* Counts up to 31 shift 8- and 16-bit values out entirely: computed in 64 bits. */
#define SHIFTS(bits)                                                                               \
    SHIFT(shl, bits)                                                                               \
    SHIFT(shr, bits)                                                                               \
    SHIFT(sar, bits)                                                                               \
    SHIFT(rol, bits)                                                                               \
    SHIFT(ror, bits)                                                                               \
    SHIFT(rcl, bits)                                                                               \
    SHIFT(rcr, bits)                                                                               \
    PLAIN(shl, bits, uint64_t, value << n)                                                         \
    PLAIN(shr, bits, uint64_t, value >> n)                                                         \
    PLAIN(sar, bits, int##bits##_t, (int64_t)value >> n)                                           \
    PLAIN(rol, bits, uint##bits##_t,                                                               \
          (uint##bits##_t)(value << n % bits) |                                                    \
              (uint##bits##_t)(value >> (bits - n % bits) % bits))                                 \
    PLAIN(ror, bits, uint##bits##_t,                                                               \
          (uint##bits##_t)(value >> n % bits) |                                                    \
              (uint##bits##_t)(value << (bits - n % bits) % bits))
FOR_SIZES(SHIFTS)

#define FORMS(op, bits)                                                                            \
    HANDLER(op##_ri_##bits)                                                                        \
    {                                                                                              \
        REG_SET##bits(v, insn->a,                                                                  \
                      op##_##bits(REG##bits(v, insn->a), (uint8_t)insn->imm, &v->flags));          \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(op##_rc_##bits)                                                                        \
    {                                                                                              \
        uint8_t count = REG8(v, CPU_RCX * 8);                                                      \
        REG_SET##bits(v, insn->a, op##_##bits(REG##bits(v, insn->a), count, &v->flags));           \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    MEMORY_FORM(op, mi, bits, (uint8_t)insn->imm)                                                  \
    MEMORY_FORM(op, mc, bits, REG8(v, CPU_RCX * 8))
#define MEMORY_FORM(op, form, bits, count_source)                                                  \
    MEMORY_HANDLER(op##_##form##_##bits)                                                           \
    {                                                                                              \
        uint64_t linear = LINEAR(ADDRESS_ANY, bits / 8, true);                                     \
        volatile uint##bits##_t *at = AT(bits, linear);                                            \
        uint16_t flags = v->flags;                                                                 \
        uint8_t count = count_source;                                                              \
        if (slow || at != NULL)                                                                    \
            *at = op##_##bits(*at, count, &flags);                                                 \
        else                                                                                       \
            store_##bits(v, insn, linear, insn->seg,                                               \
                         op##_##bits(load_##bits(v, insn, linear, insn->seg), count, &flags));     \
        v->flags = flags;                                                                          \
        NEXT(v, insn);                                                                             \
    }
#define ALL_FORMS(bits)                                                                            \
    FORMS(shl, bits)                                                                               \
    FORMS(shr, bits)                                                                               \
    FORMS(sar, bits)                                                                               \
    FORMS(rol, bits)                                                                               \
    FORMS(ror, bits)                                                                               \
    FORMS(rcl, bits)                                                                               \
    FORMS(rcr, bits)                                                                               \
    FORMS(plain_shl, bits)                                                                         \
    FORMS(plain_shr, bits)                                                                         \
    FORMS(plain_sar, bits)                                                                         \
    FORMS(plain_rol, bits)                                                                         \
    FORMS(plain_ror, bits)
FOR_SIZES(ALL_FORMS)

/* ---- bind ---- */

enum { SHL, SHR, SAR, ROL, ROR, RCL, RCR };

struct shift_forms {
    insn_run *ri[4], *rc[4], *mi[4], *mc[4];
};
#define TABLE(op)                                                                                  \
    {                                                                                              \
        PER_SIZE(op##_ri), PER_SIZE(op##_rc), PER_SIZE(op##_mi), PER_SIZE(op##_mc)                 \
    }

static void bind_shift(struct decoder *decoder)
{
    static const struct shift_forms forms[][2] = {
        [SHL] = {TABLE(plain_shl), TABLE(shl)}, [SHR] = {TABLE(plain_shr), TABLE(shr)},
        [SAR] = {TABLE(plain_sar), TABLE(sar)}, [ROL] = {TABLE(plain_rol), TABLE(rol)},
        [ROR] = {TABLE(plain_ror), TABLE(ror)}, [RCL] = {TABLE(rcl), TABLE(rcl)},
        [RCR] = {TABLE(rcr), TABLE(rcr)},
    };
    struct insn *insn = decoder->insn;
    const struct shift_forms *form = &forms[decoder->arg][decoder->flags_needed != 0];
    unsigned size = size_index(op_size(decoder, 0));
    bool immediate = op_is_immediate(decoder, 1);
    if (immediate)
        insn->imm = op_immediate(decoder, 1);
    if (op_is_memory(decoder, 0)) {
        insn->run = (immediate ? form->mi : form->mc)[size];
    } else {
        insn->a = op_register(decoder, 0);
        insn->run = (immediate ? form->ri : form->rc)[size];
    }
}

const struct op_row op_shift_rows[] = {
    {ZYDIS_MNEMONIC_SHL, bind_shift, SHL}, {ZYDIS_MNEMONIC_SHR, bind_shift, SHR},
    {ZYDIS_MNEMONIC_SAR, bind_shift, SAR}, {ZYDIS_MNEMONIC_ROL, bind_shift, ROL},
    {ZYDIS_MNEMONIC_ROR, bind_shift, ROR}, {ZYDIS_MNEMONIC_RCL, bind_shift, RCL},
    {ZYDIS_MNEMONIC_RCR, bind_shift, RCR}, {ZYDIS_MNEMONIC_SHLD, native_bind, 0},
    {ZYDIS_MNEMONIC_SHRD, native_bind, 0}, {ZYDIS_MNEMONIC_SHLX, native_bind, 0},
    {ZYDIS_MNEMONIC_SHRX, native_bind, 0}, {ZYDIS_MNEMONIC_SARX, native_bind, 0},
    {ZYDIS_MNEMONIC_RORX, native_bind, 0}, {0},
};
