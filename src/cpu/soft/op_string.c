/*
 * MOVS STOS LODS SCAS CMPS, alone and repeated.
 *
 * A repeated instruction goes in strides: as many elements as lie in one page on either side, by
 * the host's own repeated instruction on host addresses (so that overlapping operands behave as on
 * hardware), where the TLB says that both pages are plain memory; else one element by the ordinary
 * accesses, which fill the TLB, fault, or talk to a device. After each stride the registers are
 * exact. When something wants attention, the instruction ends with RIP still on itself. With
 * single-stepping on, a stride is one element, since each iteration traps.
 */
#include "cpu/soft/op.h"

/* ---- addresses and registers ---- */

static inline uint64_t element_at(struct soft_vcpu *v, const struct insn *insn, unsigned reg,
                                  unsigned seg, unsigned size, bool write)
{
    uint64_t offset = v->gpr[reg] & insn->amask;
    if (v->mode & MODE_64)
        return offset + v->ea_base[seg];
    if (v->mode & MODE_SEGCHECK || seg == CPU_FS || seg == CPU_GS)
        soft_segment_check(v, insn, seg, offset, size, write);
    return (uint32_t)(offset + v->ea_base[seg]);
}

/* Adds to a register of the address size. */
static inline void advance(struct soft_vcpu *v, const struct insn *insn, unsigned reg,
                           uint64_t delta)
{
    uint64_t value = (v->gpr[reg] + delta) & insn->amask;
    if (insn->amask == UINT16_MAX)
        REG16(v, reg * 8) = (uint16_t)value;
    else
        v->gpr[reg] = value;
}

static inline uint64_t step_of(const struct soft_vcpu *v, unsigned size)
{
    return v->rflags & RFLAG_DF ? -(uint64_t)size : size;
}

/* ---- strides ---- */

/* Elements that lie in the page of `linear`, in the direction of DF; 0 when the first one does not
 * wholly. */
static inline uint64_t elements_in_page(const struct soft_vcpu *v, uint64_t linear, unsigned size)
{
    uint64_t at = linear & SOFT_PAGE_MASK;
    if (at + size > MEM_PAGE_SIZE)
        return 0;
    return v->rflags & RFLAG_DF ? at / size + 1 : (MEM_PAGE_SIZE - at) / size;
}

/* A stride through register `reg`: true when up to *count elements (reduced here) are plain memory
 * at *ret_host. */
static inline bool stride(struct soft_vcpu *v, const struct insn *insn, unsigned reg, unsigned seg,
                          unsigned size, bool write, uint64_t *count, uint8_t **ret_host)
{
    uint64_t offset = v->gpr[reg] & insn->amask;
    /* Away from the places where offsets wrap, and where limits matter. */
    if (insn->flags & INSN_SEGCHECK ||
        (insn->amask != UINT64_MAX &&
         (offset < MEM_PAGE_SIZE || offset > insn->amask - MEM_PAGE_SIZE)))
        return false;
    uint64_t linear = offset + v->ea_base[seg];
    struct soft_tlb_entry *entry = tlb_slot(v, linear);
    if (!tlb_hit(write ? entry->write : entry->read, linear, 1))
        return false;
    *count = min(*count, elements_in_page(v, linear, size));
    *ret_host = (uint8_t *)(linear + entry->addend);
    return *count > 0;
}

/* How many elements the next stride may have. */
static inline uint64_t stride_max(struct soft_vcpu *v, uint64_t count)
{
    return atomic_load_explicit(&v->attention, memory_order_relaxed) & ATTENTION_STEP ? 1 : count;
}

/* The stride is done. True: go on with the next one; false: the handler returns to the loop. */
static inline bool stride_again(struct soft_vcpu *v, const struct insn *insn)
{
    if (likely(!block_attention(v)))
        return true;
    block_restart(v, insn);
    return false;
}

#define HOST_STRING(prefix, name, ...)                                                             \
    do {                                                                                           \
        if (v->rflags & RFLAG_DF)                                                                  \
            asm volatile("std\n\t" prefix name "\n\tcld" __VA_ARGS__);                             \
        else                                                                                       \
            asm volatile(prefix name __VA_ARGS__);                                                 \
    } while (0)
/* With the flags of the last comparison in AX. */
#define HOST_COMPARE(prefix, name, ...)                                                            \
    do {                                                                                           \
        if (v->rflags & RFLAG_DF)                                                                  \
            asm volatile("std\n\t" prefix name FLAGS_OUT "\n\tcld" __VA_ARGS__);                   \
        else                                                                                       \
            asm volatile(prefix name FLAGS_OUT __VA_ARGS__);                                       \
    } while (0)

/* One repeated instruction: STRIDE gives what it did or 0, ONE does one element; both advance the
 * index registers. `done` is the condition that ends it early. */
#define REPEAT(stride_call, one_call, done)                                                        \
    for (;;) {                                                                                     \
        uint64_t count = v->gpr[CPU_RCX] & insn->amask;                                            \
        if (count == 0)                                                                            \
            NEXT(v, insn);                                                                         \
        uint64_t moved = stride_call;                                                              \
        if (moved == 0) {                                                                          \
            one_call;                                                                              \
            moved = 1;                                                                             \
        }                                                                                          \
        advance(v, insn, CPU_RCX, -moved);                                                         \
        if (moved == count || (done))                                                              \
            NEXT(v, insn);                                                                         \
        if (!stride_again(v, insn))                                                                \
            LEAVE;                                                                                 \
    }

/* ---- MOVS, STOS, LODS ---- */

#define MOVS(bits, suffix)                                                                         \
    static inline void movs_one_##bits(struct soft_vcpu *v, const struct insn *insn)               \
    {                                                                                              \
        uint64_t from = element_at(v, insn, CPU_RSI, insn->seg, bits / 8, false);                  \
        uint##bits##_t value = load_##bits(v, insn, from, insn->seg);                              \
        uint64_t to = element_at(v, insn, CPU_RDI, CPU_ES, bits / 8, true);                        \
        store_##bits(v, insn, to, CPU_ES, value);                                                  \
        advance(v, insn, CPU_RSI, step_of(v, bits / 8));                                           \
        advance(v, insn, CPU_RDI, step_of(v, bits / 8));                                           \
    }                                                                                              \
    static uint64_t movs_stride_##bits(struct soft_vcpu *v, const struct insn *insn,               \
                                       uint64_t count)                                             \
    {                                                                                              \
        uint8_t *from, *to;                                                                        \
        count = stride_max(v, count);                                                              \
        if (!stride(v, insn, CPU_RSI, insn->seg, bits / 8, false, &count, &from) ||                \
            !stride(v, insn, CPU_RDI, CPU_ES, bits / 8, true, &count, &to))                        \
            return 0;                                                                              \
        uint64_t left = count;                                                                     \
        HOST_STRING("rep ", "movs" suffix, : "+S"(from), "+D"(to), "+c"(left)::"memory", "cc");    \
        advance(v, insn, CPU_RSI, count *step_of(v, bits / 8));                                    \
        advance(v, insn, CPU_RDI, count *step_of(v, bits / 8));                                    \
        return count;                                                                              \
    }                                                                                              \
    HANDLER(movs_##bits)                                                                           \
    {                                                                                              \
        movs_one_##bits(v, insn);                                                                  \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(rep_movs_##bits)                                                                       \
    {                                                                                              \
        REPEAT(movs_stride_##bits(v, insn, count), movs_one_##bits(v, insn), false)                \
    }
MOVS(8, "b")
MOVS(16, "w")
MOVS(32, "l")
MOVS(64, "q")

#define STOS(bits, suffix)                                                                         \
    static inline void stos_one_##bits(struct soft_vcpu *v, const struct insn *insn)               \
    {                                                                                              \
        uint64_t to = element_at(v, insn, CPU_RDI, CPU_ES, bits / 8, true);                        \
        store_##bits(v, insn, to, CPU_ES, REG##bits(v, 0));                                        \
        advance(v, insn, CPU_RDI, step_of(v, bits / 8));                                           \
    }                                                                                              \
    static uint64_t stos_stride_##bits(struct soft_vcpu *v, const struct insn *insn,               \
                                       uint64_t count)                                             \
    {                                                                                              \
        uint8_t *to;                                                                               \
        count = stride_max(v, count);                                                              \
        if (!stride(v, insn, CPU_RDI, CPU_ES, bits / 8, true, &count, &to))                        \
            return 0;                                                                              \
        uint64_t left = count;                                                                     \
        HOST_STRING("rep ", "stos" suffix,                                                         \
                    : "+D"(to), "+c"(left)                                                         \
                    : "a"(v->gpr[CPU_RAX])                                                         \
                    : "memory", "cc");                                                             \
        advance(v, insn, CPU_RDI, count *step_of(v, bits / 8));                                    \
        return count;                                                                              \
    }                                                                                              \
    HANDLER(stos_##bits)                                                                           \
    {                                                                                              \
        stos_one_##bits(v, insn);                                                                  \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(rep_stos_##bits)                                                                       \
    {                                                                                              \
        REPEAT(stos_stride_##bits(v, insn, count), stos_one_##bits(v, insn), false)                \
    }
STOS(8, "b")
STOS(16, "w")
STOS(32, "l")
STOS(64, "q")

/* Of a repeated LODS only the last element of a stride can be seen. */
#define LODS(bits)                                                                                 \
    static inline void lods_one_##bits(struct soft_vcpu *v, const struct insn *insn)               \
    {                                                                                              \
        uint64_t from = element_at(v, insn, CPU_RSI, insn->seg, bits / 8, false);                  \
        REG_SET##bits(v, 0, load_##bits(v, insn, from, insn->seg));                                \
        advance(v, insn, CPU_RSI, step_of(v, bits / 8));                                           \
    }                                                                                              \
    static uint64_t lods_stride_##bits(struct soft_vcpu *v, const struct insn *insn,               \
                                       uint64_t count)                                             \
    {                                                                                              \
        uint8_t *from;                                                                             \
        count = stride_max(v, count);                                                              \
        if (!stride(v, insn, CPU_RSI, insn->seg, bits / 8, false, &count, &from))                  \
            return 0;                                                                              \
        uint64_t step = step_of(v, bits / 8);                                                      \
        uint##bits##_t value = *(volatile uint##bits##_t *)((uintptr_t)from + (count - 1) * step); \
        REG_SET##bits(v, 0, value);                                                                \
        advance(v, insn, CPU_RSI, count *step);                                                    \
        return count;                                                                              \
    }                                                                                              \
    HANDLER(lods_##bits)                                                                           \
    {                                                                                              \
        lods_one_##bits(v, insn);                                                                  \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(rep_lods_##bits)                                                                       \
    {                                                                                              \
        REPEAT(lods_stride_##bits(v, insn, count), lods_one_##bits(v, insn), false)                \
    }
FOR_SIZES(LODS)

/* ---- SCAS, CMPS ---- */

#define COMPARE(bits)                                                                              \
    static inline void compare_##bits(struct soft_vcpu *v, uint##bits##_t a, uint##bits##_t b)     \
    {                                                                                              \
        uint32_t ax;                                                                               \
        asm("cmp %[b], %[a]" FLAGS_OUT : "=&a"(ax) : [a] "r"(a), [b] "r"(b) : "cc");               \
        v->flags = (uint16_t)ax;                                                                   \
    }
FOR_SIZES(COMPARE)

#define EQUAL   (v->flags & SOFT_ZF)
#define UNEQUAL (!(v->flags & SOFT_ZF))

#define SCAS_STRIDE(condition, prefix, bits, suffix)                                               \
    static uint64_t scas_##condition##_stride_##bits(struct soft_vcpu *v, const struct insn *insn, \
                                                     uint64_t count)                               \
    {                                                                                              \
        uint8_t *at;                                                                               \
        count = stride_max(v, count);                                                              \
        if (!stride(v, insn, CPU_RDI, CPU_ES, bits / 8, false, &count, &at))                       \
            return 0;                                                                              \
        uint64_t left = count, ax = v->gpr[CPU_RAX];                                               \
        HOST_COMPARE(prefix, "scas" suffix, : "+D"(at), "+c"(left), "+a"(ax)::"memory", "cc");     \
        v->flags = (uint16_t)ax;                                                                   \
        advance(v, insn, CPU_RDI, (count - left) * step_of(v, bits / 8));                          \
        return count - left;                                                                       \
    }
#define SCAS(bits, suffix)                                                                         \
    static inline void scas_one_##bits(struct soft_vcpu *v, const struct insn *insn)               \
    {                                                                                              \
        uint64_t at = element_at(v, insn, CPU_RDI, CPU_ES, bits / 8, false);                       \
        compare_##bits(v, REG##bits(v, 0), load_##bits(v, insn, at, CPU_ES));                      \
        advance(v, insn, CPU_RDI, step_of(v, bits / 8));                                           \
    }                                                                                              \
    SCAS_STRIDE(equal, "repe ", bits, suffix)                                                      \
    SCAS_STRIDE(unequal, "repne ", bits, suffix)                                                   \
    HANDLER(scas_##bits)                                                                           \
    {                                                                                              \
        scas_one_##bits(v, insn);                                                                  \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(repe_scas_##bits){REPEAT(scas_equal_stride_##bits(v, insn, count),                     \
                                     scas_one_##bits(v, insn),                                     \
                                     UNEQUAL)} HANDLER(repne_scas_##bits)                          \
    {                                                                                              \
        REPEAT(scas_unequal_stride_##bits(v, insn, count), scas_one_##bits(v, insn), EQUAL)        \
    }
SCAS(8, "b")
SCAS(16, "w")
SCAS(32, "l")
SCAS(64, "q")

#define CMPS_STRIDE(condition, prefix, bits, suffix)                                               \
    static uint64_t cmps_##condition##_stride_##bits(struct soft_vcpu *v, const struct insn *insn, \
                                                     uint64_t count)                               \
    {                                                                                              \
        uint8_t *left_at, *right_at;                                                               \
        count = stride_max(v, count);                                                              \
        if (!stride(v, insn, CPU_RSI, insn->seg, bits / 8, false, &count, &left_at) ||             \
            !stride(v, insn, CPU_RDI, CPU_ES, bits / 8, false, &count, &right_at))                 \
            return 0;                                                                              \
        uint64_t left = count, ax;                                                                 \
        HOST_COMPARE(prefix, "cmps" suffix,                                                        \
                     : "+S"(left_at), "+D"(right_at), "+c"(left), "=a"(ax)::"memory", "cc");       \
        v->flags = (uint16_t)ax;                                                                   \
        advance(v, insn, CPU_RSI, (count - left) * step_of(v, bits / 8));                          \
        advance(v, insn, CPU_RDI, (count - left) * step_of(v, bits / 8));                          \
        return count - left;                                                                       \
    }
#define CMPS(bits, suffix)                                                                         \
    static inline void cmps_one_##bits(struct soft_vcpu *v, const struct insn *insn)               \
    {                                                                                              \
        uint64_t from = element_at(v, insn, CPU_RSI, insn->seg, bits / 8, false);                  \
        uint##bits##_t first = load_##bits(v, insn, from, insn->seg);                              \
        uint64_t with = element_at(v, insn, CPU_RDI, CPU_ES, bits / 8, false);                     \
        compare_##bits(v, first, load_##bits(v, insn, with, CPU_ES));                              \
        advance(v, insn, CPU_RSI, step_of(v, bits / 8));                                           \
        advance(v, insn, CPU_RDI, step_of(v, bits / 8));                                           \
    }                                                                                              \
    CMPS_STRIDE(equal, "repe ", bits, suffix)                                                      \
    CMPS_STRIDE(unequal, "repne ", bits, suffix)                                                   \
    HANDLER(cmps_##bits)                                                                           \
    {                                                                                              \
        cmps_one_##bits(v, insn);                                                                  \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(repe_cmps_##bits){REPEAT(cmps_equal_stride_##bits(v, insn, count),                     \
                                     cmps_one_##bits(v, insn),                                     \
                                     UNEQUAL)} HANDLER(repne_cmps_##bits)                          \
    {                                                                                              \
        REPEAT(cmps_unequal_stride_##bits(v, insn, count), cmps_one_##bits(v, insn), EQUAL)        \
    }
CMPS(8, "b")
CMPS(16, "w")
CMPS(32, "l")
CMPS(64, "q")

/* ---- bind ---- */

enum { STRING_MOVS, STRING_STOS, STRING_LODS, STRING_SCAS, STRING_CMPS };

struct string_forms {
    insn_run *once[4], *repe[4], *repne[4];
};

/* The segment of the source may be overridden; the destination's is always ES. */
static void bind_segments(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    insn->seg = CPU_ES;
    for (unsigned i = 0; i < decoder->zydis->operand_count; i++) {
        const ZydisDecodedOperand *operand = op_at(decoder, i);
        if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY &&
            decode_register(operand->mem.base) == CPU_RSI * 8)
            insn->seg = (uint8_t)(operand->mem.segment - ZYDIS_REGISTER_ES);
    }
    insn->flags &= (uint16_t)~INSN_SEGCHECK;
    if (!(decoder->mode & MODE_64) &&
        (decoder->mode & MODE_SEGCHECK || insn->seg == CPU_FS || insn->seg == CPU_GS))
        insn->flags |= INSN_SEGCHECK;
    insn->amask = decoder->zydis->address_width == 64   ? UINT64_MAX
                  : decoder->zydis->address_width == 32 ? UINT32_MAX
                                                        : UINT16_MAX;
}

static void bind_string(struct decoder *decoder)
{
    static const struct string_forms forms[] = {
        [STRING_MOVS] = {PER_SIZE(movs), PER_SIZE(rep_movs), PER_SIZE(rep_movs)},
        [STRING_STOS] = {PER_SIZE(stos), PER_SIZE(rep_stos), PER_SIZE(rep_stos)},
        [STRING_LODS] = {PER_SIZE(lods), PER_SIZE(rep_lods), PER_SIZE(rep_lods)},
        [STRING_SCAS] = {PER_SIZE(scas), PER_SIZE(repe_scas), PER_SIZE(repne_scas)},
        [STRING_CMPS] = {PER_SIZE(cmps), PER_SIZE(repe_cmps), PER_SIZE(repne_cmps)},
    };
    struct insn *insn = decoder->insn;
    if (decoder->zydis->meta.category != ZYDIS_CATEGORY_STRINGOP)
        return; /* MOVSD and CMPSD of SSE2 have the same names */
    bind_segments(decoder);
    const struct string_forms *form = &forms[decoder->arg >> 4];
    unsigned size = size_index(decoder->arg & 15);
    insn->run = (insn->flags & INSN_REP     ? form->repe
                 : insn->flags & INSN_REPNE ? form->repne
                                            : form->once)[size];
}

#define STRING(name)                                                                               \
    {ZYDIS_MNEMONIC_##name##B, bind_string, STRING_##name << 4 | 1},                               \
        {ZYDIS_MNEMONIC_##name##W, bind_string, STRING_##name << 4 | 2},                           \
        {ZYDIS_MNEMONIC_##name##D, bind_string, STRING_##name << 4 | 4},                           \
    {                                                                                              \
        ZYDIS_MNEMONIC_##name##Q, bind_string, STRING_##name << 4 | 8                              \
    }

const struct op_row op_string_rows[] = {
    STRING(MOVS), STRING(STOS), STRING(LODS), STRING(SCAS), STRING(CMPS), {0},
};
