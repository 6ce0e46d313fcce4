/* XCHG with memory (always locked), XADD, CMPXCHG, CMPXCHG8B and CMPXCHG16B. */
#include "cpu/soft/op.h"

/* Memory becomes `other` in one step; returns what was there. */
#define EXCHANGE(bits)                                                                             \
    static uint##bits##_t exchange_##bits(struct soft_vcpu *v, const struct insn *insn,            \
                                          uint##bits##_t other)                                    \
    {                                                                                              \
        uint64_t linear = insn_linear(v, insn, bits / 8, true);                                    \
        uint##bits##_t *at = lock_at(v, insn, linear, bits / 8);                                   \
        if (likely(at != NULL))                                                                    \
            return __atomic_exchange_n(at, other, __ATOMIC_SEQ_CST);                               \
        exclusive_begin(v);                                                                        \
        uint##bits##_t value = load_##bits(v, insn, linear, insn->seg);                            \
        store_##bits(v, insn, linear, insn->seg, other);                                           \
        exclusive_end(v);                                                                          \
        return value;                                                                              \
    }                                                                                              \
    HANDLER(xchg_##bits)                                                                           \
    {                                                                                              \
        uint##bits##_t value = exchange_##bits(v, insn, REG##bits(v, insn->b));                    \
        REG_SET##bits(v, insn->b, value);                                                          \
        NEXT(v, insn);                                                                             \
    }
FOR_SIZES(EXCHANGE)

/* ---- XADD: as ADD, and the old value goes to the register ---- */

#define XADD(bits)                                                                                 \
    static inline uint##bits##_t sum_##bits(uint##bits##_t a, uint##bits##_t b, uint16_t *flags)   \
    {                                                                                              \
        uint32_t ax;                                                                               \
        asm("add %[b], %[a]" FLAGS_OUT : [a] "+r"(a), "=&a"(ax) : [b] "r"(b) : "cc");              \
        *flags = (uint16_t)ax;                                                                     \
        return a;                                                                                  \
    }                                                                                              \
    static uint##bits##_t add_locked_##bits(struct soft_vcpu *v, const struct insn *insn,          \
                                            uint64_t linear, uint##bits##_t other)                 \
    {                                                                                              \
        uint##bits##_t *at = lock_at(v, insn, linear, bits / 8);                                   \
        if (likely(at != NULL))                                                                    \
            return __atomic_fetch_add(at, other, __ATOMIC_SEQ_CST);                                \
        exclusive_begin(v);                                                                        \
        uint##bits##_t value = load_##bits(v, insn, linear, insn->seg);                            \
        store_##bits(v, insn, linear, insn->seg, (uint##bits##_t)(value + other));                 \
        exclusive_end(v);                                                                          \
        return value;                                                                              \
    }                                                                                              \
    HANDLER(xadd_m_##bits)                                                                         \
    {                                                                                              \
        uint64_t linear = insn_linear(v, insn, bits / 8, true);                                    \
        uint##bits##_t other = REG##bits(v, insn->b);                                              \
        uint##bits##_t value = add_locked_##bits(v, insn, linear, other);                          \
        uint16_t flags;                                                                            \
        sum_##bits(value, other, &flags);                                                          \
        REG_SET##bits(v, insn->b, value);                                                          \
        v->flags = flags;                                                                          \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(xadd_r_##bits)                                                                         \
    {                                                                                              \
        uint##bits##_t value = REG##bits(v, insn->a), other = REG##bits(v, insn->b);               \
        uint##bits##_t sum = sum_##bits(value, other, &v->flags);                                  \
        REG_SET##bits(v, insn->b, value);                                                          \
        REG_SET##bits(v, insn->a, sum); /* last: XADD r, r leaves the sum */                       \
        NEXT(v, insn);                                                                             \
    }
FOR_SIZES(XADD)

/* ---- CMPXCHG: flags as CMP of the accumulator; memory is written either way ---- */

#define CMPXCHG(bits)                                                                              \
    static inline void compare_##bits(struct soft_vcpu *v, uint##bits##_t a, uint##bits##_t b)     \
    {                                                                                              \
        uint32_t ax;                                                                               \
        asm("cmp %[b], %[a]" FLAGS_OUT : "=&a"(ax) : [a] "r"(a), [b] "r"(b) : "cc");               \
        v->flags = (uint16_t)ax;                                                                   \
    }                                                                                              \
    static uint##bits##_t compare_exchange_##bits(struct soft_vcpu *v, const struct insn *insn,    \
                                                  uint##bits##_t expected, uint##bits##_t other)   \
    {                                                                                              \
        uint64_t linear = insn_linear(v, insn, bits / 8, true);                                    \
        uint##bits##_t *at = lock_at(v, insn, linear, bits / 8), value = expected;                 \
        if (likely(at != NULL)) { /* the host's instruction writes either way too */               \
            __atomic_compare_exchange_n(at, &value, other, false, __ATOMIC_SEQ_CST,                \
                                        __ATOMIC_SEQ_CST);                                         \
            return value;                                                                          \
        }                                                                                          \
        exclusive_begin(v);                                                                        \
        value = load_##bits(v, insn, linear, insn->seg);                                           \
        store_##bits(v, insn, linear, insn->seg, value == expected ? other : value);               \
        exclusive_end(v);                                                                          \
        return value;                                                                              \
    }                                                                                              \
    HANDLER(cmpxchg_m_##bits)                                                                      \
    {                                                                                              \
        uint##bits##_t expected = REG##bits(v, 0);                                                 \
        uint##bits##_t value = compare_exchange_##bits(v, insn, expected, REG##bits(v, insn->b));  \
        compare_##bits(v, expected, value);                                                        \
        if (value != expected)                                                                     \
            REG_SET##bits(v, 0, value);                                                            \
        NEXT(v, insn);                                                                             \
    }
FOR_SIZES(CMPXCHG)

/* Between registers: the host's own, since processors differ in what a failed one does to the upper
 * half of a 32-bit destination. */
#define CMPXCHG_REGISTERS(bits, modifier)                                                          \
    HANDLER(cmpxchg_r_##bits)                                                                      \
    {                                                                                              \
        uint64_t accumulator, value = REG64(v, insn->a), flags = v->gpr[CPU_RAX];                  \
        uint64_t other = REG64(v, insn->b);                                                        \
        asm("cmpxchg %" modifier "[other], %" modifier                                             \
            "[value]\n\tmov %%rax, %[accumulator]" FLAGS_OUT                                       \
            : [value] "+&r"(value), [accumulator] "=&r"(accumulator), "+&a"(flags)                 \
            : [other] "r"(other)                                                                   \
            : "cc");                                                                               \
        v->gpr[CPU_RAX] = accumulator;                                                             \
        REG64(v, insn->a) = value; /* last: a destination of RAX always becomes the source */      \
        v->flags = (uint16_t)flags;                                                                \
        NEXT(v, insn);                                                                             \
    }
CMPXCHG_REGISTERS(16, "w")
CMPXCHG_REGISTERS(32, "k")
CMPXCHG_REGISTERS(64, "q")

HANDLER(cmpxchg_r_8)
{
    uint8_t expected = REG8(v, 0), value = REG8(v, insn->a);
    compare_8(v, expected, value);
    if (value == expected)
        REG8(v, insn->a) = REG8(v, insn->b);
    else
        REG8(v, 0) = value;
    NEXT(v, insn);
}

/* ---- CMPXCHG8B, CMPXCHG16B: only ZF changes ---- */

static void zero_is(struct soft_vcpu *v, bool zero)
{
    v->flags = (uint16_t)((v->flags & ~SOFT_ZF) | (zero ? SOFT_ZF : 0));
}

HANDLER(cmpxchg8b)
{
    uint64_t expected = (uint64_t)REG32(v, CPU_RDX * 8) << 32 | REG32(v, CPU_RAX * 8);
    uint64_t other = (uint64_t)REG32(v, CPU_RCX * 8) << 32 | REG32(v, CPU_RBX * 8);
    uint64_t value = compare_exchange_64(v, insn, expected, other);
    if (value != expected) {
        reg32_write(v, CPU_RDX * 8, (uint32_t)(value >> 32));
        reg32_write(v, CPU_RAX * 8, (uint32_t)value);
    }
    zero_is(v, value == expected);
    NEXT(v, insn);
}

struct pair {
    uint64_t low, high;
};

static bool compare_exchange_pair(struct pair *at, struct pair *expected, struct pair other)
{
    bool equal;
    asm volatile("lock cmpxchg16b %[at]\n\tsete %[equal]"
                 : [at] "+m"(*at), [equal] "=q"(equal), "+a"(expected->low), "+d"(expected->high)
                 : "b"(other.low), "c"(other.high)
                 : "cc", "memory");
    return equal;
}

HANDLER(cmpxchg16b)
{
    struct pair value = {v->gpr[CPU_RAX], v->gpr[CPU_RDX]};
    struct pair other = {v->gpr[CPU_RBX], v->gpr[CPU_RCX]};
    uint64_t linear = insn_linear(v, insn, 16, true);
    if (linear & 15)
        soft_raise_error(v, insn, VECTOR_GP, 0);
    struct pair *at = rmw_at(v, insn, linear, 16, insn->seg);
    bool equal;
    if (likely(at != NULL)) {
        equal = compare_exchange_pair(at, &value, other);
    } else {
        struct pair found;
        exclusive_begin(v);
        soft_load_bytes(v, insn, linear, &found, sizeof found, insn->seg);
        equal = found.low == value.low && found.high == value.high;
        soft_store_bytes(v, insn, linear, equal ? &other : &found, sizeof found, insn->seg);
        exclusive_end(v);
        value = found;
    }
    if (!equal) {
        v->gpr[CPU_RAX] = value.low;
        v->gpr[CPU_RDX] = value.high;
    }
    zero_is(v, equal);
    NEXT(v, insn);
}

/* ---- bind ---- */

static void bind_xchg(struct decoder *decoder)
{
    static insn_run *const forms[4] = PER_SIZE(xchg);
    struct insn *insn = decoder->insn;
    if (!(insn->flags & INSN_MEMORY))
        return; /* op_move.c */
    insn->b = op_register(decoder, op_is_memory(decoder, 0) ? 1 : 0);
    insn->run = forms[size_index(op_size(decoder, 0))];
}

enum { XADD, CMPXCHG };

static void bind_register_second(struct decoder *decoder)
{
    static insn_run *const forms[2][2][4] = {
        [XADD] = {PER_SIZE(xadd_r), PER_SIZE(xadd_m)},
        [CMPXCHG] = {PER_SIZE(cmpxchg_r), PER_SIZE(cmpxchg_m)},
    };
    struct insn *insn = decoder->insn;
    bool memory = op_is_memory(decoder, 0);
    if (!memory)
        insn->a = op_register(decoder, 0);
    insn->b = op_register(decoder, 1);
    insn->run = forms[decoder->arg][memory][size_index(op_size(decoder, 0))];
}

static void bind_pair(struct decoder *decoder)
{
    decoder->insn->run = decoder->arg == 16 ? cmpxchg16b : cmpxchg8b;
}

const struct op_row op_atomic_rows[] = {
    {ZYDIS_MNEMONIC_XCHG, bind_xchg, 0},
    {ZYDIS_MNEMONIC_XADD, bind_register_second, XADD},
    {ZYDIS_MNEMONIC_CMPXCHG, bind_register_second, CMPXCHG},
    {ZYDIS_MNEMONIC_CMPXCHG8B, bind_pair, 8},
    {ZYDIS_MNEMONIC_CMPXCHG16B, bind_pair, 16},
    {0},
};
