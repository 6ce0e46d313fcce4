/* BT BTS BTR BTC, and the bit counts; the rest of the bit instructions runs natively. */
#include "cpu/soft/op.h"

/* ---- BT family: CF is the bit, all other flags stay ---- */

#define BT_COMPUTE(bits)                                                                           \
    static inline uint##bits##_t bt_##bits(uint##bits##_t value, unsigned bit)                     \
    {                                                                                              \
        return value;                                                                              \
    }                                                                                              \
    static inline uint##bits##_t bts_##bits(uint##bits##_t value, unsigned bit)                    \
    {                                                                                              \
        return (uint##bits##_t)(value | (uint##bits##_t)1 << bit);                                 \
    }                                                                                              \
    static inline uint##bits##_t btr_##bits(uint##bits##_t value, unsigned bit)                    \
    {                                                                                              \
        return (uint##bits##_t)(value & ~((uint##bits##_t)1 << bit));                              \
    }                                                                                              \
    static inline uint##bits##_t btc_##bits(uint##bits##_t value, unsigned bit)                    \
    {                                                                                              \
        return (uint##bits##_t)(value ^ (uint##bits##_t)1 << bit);                                 \
    }
FOR_WIDE_SIZES(BT_COMPUTE)

static inline void carry_is(struct soft_vcpu *v, uint64_t bit)
{
    v->flags = (uint16_t)((v->flags & ~SOFT_CF) | (bit & 1) << 8);
}

/* Where bit `offset` of a bit string at the memory operand is: a register offset is signed and
 * reaches any operand before or behind. Gives the linear address of the operand that holds it. */
static inline uint64_t bit_operand(struct soft_vcpu *v, const struct insn *insn, int64_t offset,
                                   unsigned bytes, bool write)
{
    unsigned shift = (unsigned)__builtin_ctz(bytes) + 3;
    uint64_t reach = (uint64_t)(offset >> shift) * bytes;
    uint64_t effective = (insn_offset(v, insn) + reach) & insn->amask;
    if (unlikely(insn->flags & INSN_SEGCHECK)) {
        soft_segment_check(v, insn, insn->seg, effective, bytes, write);
        return (uint32_t)(effective + v->ea_base[insn->seg]);
    }
    return effective + v->ea_base[insn->seg];
}

#define BT_REGISTER(op, bits)                                                                      \
    HANDLER(op##_rr_##bits)                                                                        \
    {                                                                                              \
        uint##bits##_t value = REG##bits(v, insn->a);                                              \
        unsigned bit = REG##bits(v, insn->b) % bits;                                               \
        REG_SET##bits(v, insn->a, op##_##bits(value, bit));                                        \
        carry_is(v, value >> bit);                                                                 \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(op##_ri_##bits)                                                                        \
    {                                                                                              \
        uint##bits##_t value = REG##bits(v, insn->a);                                              \
        unsigned bit = insn->imm % bits;                                                           \
        REG_SET##bits(v, insn->a, op##_##bits(value, bit));                                        \
        carry_is(v, value >> bit);                                                                 \
        NEXT(v, insn);                                                                             \
    }
/* BT does not write its operand, so the upper half of a 32-bit register stays. */
#define BT_ONLY(bits)                                                                              \
    HANDLER(bt_rr_##bits)                                                                          \
    {                                                                                              \
        carry_is(v, REG##bits(v, insn->a) >> REG##bits(v, insn->b) % bits);                        \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(bt_ri_##bits)                                                                          \
    {                                                                                              \
        carry_is(v, REG##bits(v, insn->a) >> insn->imm % bits);                                    \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(bt_mr_##bits)                                                                          \
    {                                                                                              \
        int64_t offset = (int##bits##_t)REG##bits(v, insn->b);                                     \
        uint64_t linear = bit_operand(v, insn, offset, bits / 8, false);                           \
        carry_is(v, load_##bits(v, insn, linear, insn->seg) >> (uint64_t)offset % bits);           \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(bt_mi_##bits)                                                                          \
    {                                                                                              \
        uint64_t linear = insn_linear(v, insn, bits / 8, false);                                   \
        carry_is(v, load_##bits(v, insn, linear, insn->seg) >> insn->imm % bits);                  \
        NEXT(v, insn);                                                                             \
    }
#define BT_MEMORY(op, form, bits, offset_source, linear_source)                                    \
    HANDLER(op##_##form##_##bits)                                                                  \
    {                                                                                              \
        int64_t offset = offset_source;                                                            \
        uint64_t linear = linear_source;                                                           \
        unsigned bit = (uint64_t)offset % bits;                                                    \
        volatile uint##bits##_t *at = rmw_at(v, insn, linear, bits / 8, insn->seg);                \
        uint##bits##_t value;                                                                      \
        if (likely(at != NULL)) {                                                                  \
            value = *at;                                                                           \
            *at = op##_##bits(value, bit);                                                         \
        } else {                                                                                   \
            value = load_##bits(v, insn, linear, insn->seg);                                       \
            store_##bits(v, insn, linear, insn->seg, op##_##bits(value, bit));                     \
        }                                                                                          \
        carry_is(v, value >> bit);                                                                 \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(op##_l##form##_##bits)                                                                 \
    {                                                                                              \
        int64_t offset = offset_source;                                                            \
        uint64_t linear = linear_source;                                                           \
        unsigned bit = (uint64_t)offset % bits;                                                    \
        uint##bits##_t *at = lock_at(v, insn, linear, bits / 8), value;                            \
        if (likely(at != NULL)) {                                                                  \
            value = __atomic_load_n(at, __ATOMIC_RELAXED);                                         \
            while (!__atomic_compare_exchange_n(at, &value, op##_##bits(value, bit), false,        \
                                                __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))               \
                ;                                                                                  \
        } else {                                                                                   \
            exclusive_begin(v);                                                                    \
            value = load_##bits(v, insn, linear, insn->seg);                                       \
            store_##bits(v, insn, linear, insn->seg, op##_##bits(value, bit));                     \
            exclusive_end(v);                                                                      \
        }                                                                                          \
        carry_is(v, value >> bit);                                                                 \
        NEXT(v, insn);                                                                             \
    }
#define BT_FORMS(op, bits)                                                                         \
    BT_REGISTER(op, bits)                                                                          \
    BT_MEMORY(op, mr, bits, (int##bits##_t)REG##bits(v, insn->b),                                  \
              bit_operand(v, insn, offset, bits / 8, true))                                        \
    BT_MEMORY(op, mi, bits, (int64_t)(insn->imm % bits), insn_linear(v, insn, bits / 8, true))
#define BT_ALL(bits)                                                                               \
    BT_ONLY(bits)                                                                                  \
    BT_FORMS(bts, bits)                                                                            \
    BT_FORMS(btr, bits)                                                                            \
    BT_FORMS(btc, bits)
FOR_WIDE_SIZES(BT_ALL)

/* ---- BSF BSR TZCNT LZCNT POPCNT ---- */

/* The destination goes in whole: BSF and BSR of 0 leave it, as the host does. */
#define COUNT(op, bits, modifier)                                                                  \
    static inline uint64_t op##_##bits(uint64_t old, uint##bits##_t value, uint16_t *flags)        \
    {                                                                                              \
        uint32_t ax = *flags;                                                                      \
        asm(FLAGS_IN #op " %[value], %" modifier "[old]" FLAGS_OUT                                 \
            : [old] "+&r"(old), "+&a"(ax)                                                          \
            : [value] "r"(value)                                                                   \
            : "cc");                                                                               \
        *flags = (uint16_t)ax;                                                                     \
        return old;                                                                                \
    }                                                                                              \
    HANDLER(op##_r_##bits)                                                                         \
    {                                                                                              \
        REG64(v, insn->a) = op##_##bits(REG64(v, insn->a), REG##bits(v, insn->b), &v->flags);      \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    MEMORY_HANDLER(op##_m_##bits)                                                                  \
    {                                                                                              \
        uint##bits##_t value = LOAD(bits, LINEAR(ADDRESS_ANY, bits / 8, false));                   \
        REG64(v, insn->a) = op##_##bits(REG64(v, insn->a), value, &v->flags);                      \
        NEXT(v, insn);                                                                             \
    }
#define COUNTS(op)                                                                                 \
    COUNT(op, 16, "w")                                                                             \
    COUNT(op, 32, "k")                                                                             \
    COUNT(op, 64, "q")
COUNTS(bsf)
COUNTS(bsr)
COUNTS(tzcnt)
COUNTS(lzcnt)
COUNTS(popcnt)

/* ---- bind ---- */

enum { BT, BTS, BTR, BTC };

struct bt_forms {
    insn_run *rr[4], *ri[4], *mr[4], *mi[4], *lr[4], *li[4];
};
#define BT_TABLE(op)                                                                               \
    {                                                                                              \
        PER_WIDE_SIZE(op##_rr), PER_WIDE_SIZE(op##_ri), PER_WIDE_SIZE(op##_mr),                    \
            PER_WIDE_SIZE(op##_mi), PER_WIDE_SIZE(op##_lmr), PER_WIDE_SIZE(op##_lmi)               \
    }

static void bind_bt(struct decoder *decoder)
{
    static const struct bt_forms forms[] = {
        [BT] = {PER_WIDE_SIZE(bt_rr), PER_WIDE_SIZE(bt_ri), PER_WIDE_SIZE(bt_mr),
                PER_WIDE_SIZE(bt_mi)},
        [BTS] = BT_TABLE(bts),
        [BTR] = BT_TABLE(btr),
        [BTC] = BT_TABLE(btc),
    };
    struct insn *insn = decoder->insn;
    const struct bt_forms *form = &forms[decoder->arg];
    unsigned size = size_index(op_size(decoder, 0));
    bool immediate = op_is_immediate(decoder, 1);
    if (immediate)
        insn->imm = op_immediate(decoder, 1);
    else
        insn->b = op_register(decoder, 1);
    if (!op_is_memory(decoder, 0)) {
        insn->a = op_register(decoder, 0);
        insn->run = (immediate ? form->ri : form->rr)[size];
    } else if (insn->flags & INSN_LOCK) {
        insn->run = (immediate ? form->li : form->lr)[size];
    } else {
        insn->run = (immediate ? form->mi : form->mr)[size];
    }
}

enum { BSF, BSR, TZCNT, LZCNT, POPCNT };

static void bind_count(struct decoder *decoder)
{
    static insn_run *const forms[][2][4] = {
        [BSF] = {PER_WIDE_SIZE(bsf_r), PER_WIDE_SIZE(bsf_m)},
        [BSR] = {PER_WIDE_SIZE(bsr_r), PER_WIDE_SIZE(bsr_m)},
        [TZCNT] = {PER_WIDE_SIZE(tzcnt_r), PER_WIDE_SIZE(tzcnt_m)},
        [LZCNT] = {PER_WIDE_SIZE(lzcnt_r), PER_WIDE_SIZE(lzcnt_m)},
        [POPCNT] = {PER_WIDE_SIZE(popcnt_r), PER_WIDE_SIZE(popcnt_m)},
    };
    struct insn *insn = decoder->insn;
    bool memory = op_is_memory(decoder, 1);
    insn->a = op_register(decoder, 0);
    if (!memory)
        insn->b = op_register(decoder, 1);
    insn->run = forms[decoder->arg][memory][size_index(op_size(decoder, 0))];
}

const struct op_row op_bit_rows[] = {
    {ZYDIS_MNEMONIC_BT, bind_bt, BT},
    {ZYDIS_MNEMONIC_BTS, bind_bt, BTS},
    {ZYDIS_MNEMONIC_BTR, bind_bt, BTR},
    {ZYDIS_MNEMONIC_BTC, bind_bt, BTC},
    {ZYDIS_MNEMONIC_BSF, bind_count, BSF},
    {ZYDIS_MNEMONIC_BSR, bind_count, BSR},
    {ZYDIS_MNEMONIC_TZCNT, bind_count, TZCNT},
    {ZYDIS_MNEMONIC_LZCNT, bind_count, LZCNT},
    {ZYDIS_MNEMONIC_POPCNT, bind_count, POPCNT},
    {ZYDIS_MNEMONIC_ANDN, native_bind, 0},
    {ZYDIS_MNEMONIC_BEXTR, native_bind, 0},
    {ZYDIS_MNEMONIC_BLSI, native_bind, 0},
    {ZYDIS_MNEMONIC_BLSMSK, native_bind, 0},
    {ZYDIS_MNEMONIC_BLSR, native_bind, 0},
    {ZYDIS_MNEMONIC_BZHI, native_bind, 0},
    {ZYDIS_MNEMONIC_PDEP, native_bind, 0},
    {ZYDIS_MNEMONIC_PEXT, native_bind, 0},
    {ZYDIS_MNEMONIC_ADCX, native_bind, 0},
    {ZYDIS_MNEMONIC_ADOX, native_bind, 0},
    {ZYDIS_MNEMONIC_CRC32, native_bind, 0},
    {0},
};
