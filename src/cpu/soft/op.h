/*
 * op.h: what the op_*.c files of the integer instructions have in common.
 *
 * Handlers come in families: one macro per family, instantiated for each operand size, and a table
 * from which bind functions pick. `bits` in a macro is 8, 16, 32 or 64; size_index() gives the
 * place in a table. Where nobody looks at the flags, a plain C variant is picked.
 *
 * FLAGS by assembly: FLAGS_OUT after an instruction leaves AX in the form of soft_vcpu.flags;
 * FLAGS_IN before it brings AX of that form into the host's flags, for instructions that keep some
 * of them (undefined ones too) or use them. Both need "a" for the flags.
 */
#pragma once

#include "cpu/soft/block.h"

#define HANDLER(name) static void name(struct soft_vcpu *v, const struct insn *insn)

#define FLAGS_OUT "\n\tlahf\n\tseto %%al"
#define FLAGS_IN  "addb $0x7f, %%al\n\tsahf\n\t"

#define REG_SET8(v, offset, value)  (REG8(v, offset) = (uint8_t)(value))
#define REG_SET16(v, offset, value) (REG16(v, offset) = (uint16_t)(value))
#define REG_SET32(v, offset, value) reg32_write(v, offset, (uint32_t)(value))
#define REG_SET64(v, offset, value) (REG64(v, offset) = (uint64_t)(value))

#define FOR_SIZES(macro)      macro(8) macro(16) macro(32) macro(64)
#define FOR_WIDE_SIZES(macro) macro(16) macro(32) macro(64)
#define PER_SIZE(prefix)                                                                           \
    {                                                                                              \
        prefix##_8, prefix##_16, prefix##_32, prefix##_64                                          \
    }
#define PER_WIDE_SIZE(prefix)                                                                      \
    {                                                                                              \
        NULL, prefix##_16, prefix##_32, prefix##_64                                                \
    }

/* The sixteen conditions in the order of their encoding. */
#define FOR_CONDITIONS(macro)                                                                      \
    macro(o) macro(no) macro(b) macro(nb) macro(z) macro(nz) macro(be) macro(nbe) macro(s)         \
        macro(ns) macro(p) macro(np) macro(l) macro(nl) macro(le) macro(nle)

static inline bool cond_o(unsigned flags)
{
    return flags & SOFT_OF;
}
static inline bool cond_b(unsigned flags)
{
    return flags & SOFT_CF;
}
static inline bool cond_z(unsigned flags)
{
    return flags & SOFT_ZF;
}
static inline bool cond_be(unsigned flags)
{
    return flags & (SOFT_CF | SOFT_ZF);
}
static inline bool cond_s(unsigned flags)
{
    return flags & SOFT_SF;
}
static inline bool cond_p(unsigned flags)
{
    return flags & SOFT_PF;
}
static inline bool cond_l(unsigned flags)
{
    return (flags >> 15 ^ flags) & 1;
}
static inline bool cond_le(unsigned flags)
{
    return cond_l(flags) || cond_z(flags);
}
#define COND_NOT(name)                                                                             \
    static inline bool cond_n##name(unsigned flags)                                                \
    {                                                                                              \
        return !cond_##name(flags);                                                                \
    }
COND_NOT(o)
COND_NOT(b)
COND_NOT(z)
COND_NOT(be)
COND_NOT(s)
COND_NOT(p)
COND_NOT(l)
COND_NOT(le)
#undef COND_NOT

/* ---- comparison and branch in one (op_fused.c) ---- */

enum fused_op { FUSED_CMP, FUSED_TEST, FUSED_OP_MAX };
enum fused_form { FUSED_RR, FUSED_RI, FUSED_RB, FUSED_BI, FUSED_FORM_MAX };

/* The handler of both, or NULL. `size` as of size_index(). */
insn_run *fused_handler(enum fused_op op, enum fused_form form, unsigned size, unsigned condition);
/* `compare` and the Jcc behind it become a pair where there is a handler for it (op_alu.c). */
void alu_fuse(struct insn *compare, const struct insn *branch);

/* ---- for bind functions ---- */

static inline unsigned size_index(unsigned bytes)
{
    return (unsigned)__builtin_ctz(bytes);
}

static inline const ZydisDecodedOperand *op_at(const struct decoder *decoder, unsigned n)
{
    return &decoder->operands[n];
}

static inline unsigned op_size(const struct decoder *decoder, unsigned n)
{
    return decoder->operands[n].size / 8;
}

static inline bool op_is_memory(const struct decoder *decoder, unsigned n)
{
    return decoder->operands[n].type == ZYDIS_OPERAND_TYPE_MEMORY;
}

static inline bool op_is_immediate(const struct decoder *decoder, unsigned n)
{
    return decoder->operands[n].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
}

static inline bool op_is_register(const struct decoder *decoder, unsigned n)
{
    return decoder->operands[n].type == ZYDIS_OPERAND_TYPE_REGISTER;
}

static inline bool op_is_segment(const struct decoder *decoder, unsigned n)
{
    return op_is_register(decoder, n) &&
           ZydisRegisterGetClass(decoder->operands[n].reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

static inline uint8_t op_register(const struct decoder *decoder, unsigned n)
{
    return decode_register(decoder->operands[n].reg.value);
}

static inline uint64_t op_immediate(const struct decoder *decoder, unsigned n)
{
    return decoder->operands[n].imm.value.u;
}

/* ---- addresses ---- */

/* How much of insn_linear() an operand needs: most are a base and a displacement in flat 64-bit
 * mode. */
enum addressing { ADDRESS_ANY, ADDRESS_FLAT, ADDRESS_BASE, ADDRESS_MAX };

static inline enum addressing addressing_of(const struct decoder *decoder)
{
    const struct insn *insn = decoder->insn;
    if (!(decoder->mode & MODE_64) || insn->amask != UINT64_MAX || insn->seg == CPU_FS ||
        insn->seg == CPU_GS)
        return ADDRESS_ANY;
    return insn->index == SOFT_ZERO * 8 ? ADDRESS_BASE : ADDRESS_FLAT;
}

static inline uint64_t linear_as(struct soft_vcpu *v, const struct insn *insn,
                                 enum addressing addressing, unsigned size, bool write)
{
    switch (addressing) {
    case ADDRESS_BASE: return REG64(v, insn->base) + (uint64_t)insn->disp;
    case ADDRESS_FLAT:
        return REG64(v, insn->base) + (REG64(v, insn->index) << insn->scale) + (uint64_t)insn->disp;
    default: return insn_linear(v, insn, size, write);
    }
}

/* ---- handlers with a memory operand ---- */

/* Where the TLB misses, the fast form of such a handler hands over to its slow twin, which starts
 * again from the beginning: so the fast form calls nothing and saves no registers. The body follows
 * the macro; LOAD, STORE and AT come before anything it changes. */
#define MEMORY_HANDLER(name)                                                                       \
    static void name##_slow(struct soft_vcpu *v, const struct insn *insn);                         \
    static inline __attribute__((always_inline)) void name##_body(                                 \
        struct soft_vcpu *v, const struct insn *insn, insn_run *slow);                             \
    static void name(struct soft_vcpu *v, const struct insn *insn)                                 \
    {                                                                                              \
        return name##_body(v, insn, name##_slow);                                                  \
    }                                                                                              \
    static __attribute__((noinline, cold)) void name##_slow(struct soft_vcpu *v,                   \
                                                            const struct insn *insn)               \
    {                                                                                              \
        return name##_body(v, insn, NULL);                                                         \
    }                                                                                              \
    static inline __attribute__((always_inline)) void name##_body(                                 \
        struct soft_vcpu *v, const struct insn *insn, insn_run *slow)

/* The operand's linear address; `size` in bytes. */
#define LINEAR(addressing, size, write)                                                            \
    ({                                                                                             \
        if (slow && (addressing) == ADDRESS_ANY && unlikely(insn->flags & INSN_SEGCHECK))          \
            return slow(v, insn);                                                                  \
        linear_as(v, insn, addressing, size, write);                                               \
    })

#define LOAD_SEG(bits, linear, segment)                                                            \
    ({                                                                                             \
        uint64_t load_at_ = (linear);                                                              \
        struct soft_tlb_entry *load_entry_ = tlb_slot(v, load_at_);                                \
        bool load_hit_ = tlb_hit(load_entry_->read, load_at_, bits / 8);                           \
        if (slow && !load_hit_)                                                                    \
            return slow(v, insn);                                                                  \
        load_hit_ ? *(volatile uint##bits##_t *)(load_at_ + load_entry_->addend)                   \
                  : (uint##bits##_t)soft_load_slow(v, insn, load_at_, bits / 8, segment);          \
    })
#define LOAD(bits, linear) LOAD_SEG(bits, linear, insn->seg)

#define STORE_SEG(bits, linear, segment, value)                                                    \
    do {                                                                                           \
        uint64_t store_at_ = (linear);                                                             \
        uint##bits##_t store_value_ = (uint##bits##_t)(value);                                     \
        struct soft_tlb_entry *store_entry_ = tlb_slot(v, store_at_);                              \
        bool store_hit_ = tlb_hit(store_entry_->write, store_at_, bits / 8);                       \
        if (slow && !store_hit_)                                                                   \
            return slow(v, insn);                                                                  \
        if (store_hit_)                                                                            \
            *(volatile uint##bits##_t *)(store_at_ + store_entry_->addend) = store_value_;         \
        else                                                                                       \
            soft_store_slow(v, insn, store_at_, bits / 8, segment, store_value_);                  \
    } while (0)
#define STORE(bits, linear, value) STORE_SEG(bits, linear, insn->seg, value)

/* Host address to read and write; NULL only in the slow form (see soft_rmw_slow). */
#define AT(bits, linear)                                                                           \
    ({                                                                                             \
        uint64_t at_at_ = (linear);                                                                \
        struct soft_tlb_entry *at_entry_ = tlb_slot(v, at_at_);                                    \
        bool at_hit_ = tlb_hit(at_entry_->write, at_at_, bits / 8);                                \
        if (slow && !at_hit_)                                                                      \
            return slow(v, insn);                                                                  \
        (volatile uint##bits##_t *)(at_hit_                                                        \
                                        ? (void *)(at_at_ + at_entry_->addend)                     \
                                        : soft_rmw_slow(v, insn, at_at_, bits / 8, insn->seg));    \
    })

/* ---- LOCK ---- */

/* Host address for an atomic read-modify-write, or NULL: then between exclusive_begin() and _end().
 * An operand across two cache lines counts as such: hosts punish split locks. */
static inline void *lock_at(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                            unsigned size)
{
    void *at = rmw_at(v, insn, linear, size, insn->seg);
    return ((uintptr_t)at & 63) + size > 64 ? NULL : at;
}
