/* MOV and its relatives: extensions, LEA, XCHG of registers, conditional moves, SETcc, and the
 * moves of flags. Control, debug and segment registers are the system's (op_control_bind). */
#include "cpu/soft/op.h"
#include "cpu/soft/system.h"

/* ---- MOV, MOVZX, MOVSX ---- */

#define MOVES(bits)                                                                                \
    HANDLER(mov_rr_##bits)                                                                         \
    {                                                                                              \
        REG_SET##bits(v, insn->a, REG##bits(v, insn->b));                                          \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    HANDLER(mov_ri_##bits)                                                                         \
    {                                                                                              \
        REG_SET##bits(v, insn->a, insn->imm);                                                      \
        NEXT(v, insn);                                                                             \
    }
FOR_SIZES(MOVES)

#define MOVES_MEMORY(form, addressing, bits)                                                       \
    MEMORY_HANDLER(mov_r##form##_##bits)                                                           \
    {                                                                                              \
        uint##bits##_t value = LOAD(bits, LINEAR(addressing, bits / 8, false));                    \
        REG_SET##bits(v, insn->a, value);                                                          \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    MEMORY_HANDLER(mov_##form##r_##bits)                                                           \
    {                                                                                              \
        STORE(bits, LINEAR(addressing, bits / 8, true), REG##bits(v, insn->b));                    \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    MEMORY_HANDLER(mov_##form##i_##bits)                                                           \
    {                                                                                              \
        STORE(bits, LINEAR(addressing, bits / 8, true), insn->imm);                                \
        NEXT(v, insn);                                                                             \
    }
#define MOVES_MEMORY_ALL(bits)                                                                     \
    MOVES_MEMORY(any, ADDRESS_ANY, bits)                                                           \
    MOVES_MEMORY(flat, ADDRESS_FLAT, bits)                                                         \
    MOVES_MEMORY(base, ADDRESS_BASE, bits)
FOR_SIZES(MOVES_MEMORY_ALL)

/* name_<to>_<from>: `type` is the signed or unsigned type of the source. */
#define EXTEND(name, prefix, from, to)                                                             \
    HANDLER(name##_r_##to##_##from)                                                                \
    {                                                                                              \
        REG_SET##to(v, insn->a, (int64_t)(prefix##from##_t)REG##from(v, insn->b));                 \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    EXTEND_MEMORY(name, any, ADDRESS_ANY, prefix, from, to)                                        \
    EXTEND_MEMORY(name, flat, ADDRESS_FLAT, prefix, from, to)                                      \
    EXTEND_MEMORY(name, base, ADDRESS_BASE, prefix, from, to)
#define EXTEND_MEMORY(name, form, addressing, prefix, from, to)                                    \
    MEMORY_HANDLER(name##_##form##_##to##_##from)                                                  \
    {                                                                                              \
        prefix##from##_t value =                                                                   \
            (prefix##from##_t)LOAD(from, LINEAR(addressing, from / 8, false));                     \
        REG_SET##to(v, insn->a, (int64_t)value);                                                   \
        NEXT(v, insn);                                                                             \
    }
#define EXTEND_ALL(name, prefix)                                                                   \
    EXTEND(name, prefix, 8, 16)                                                                    \
    EXTEND(name, prefix, 8, 32)                                                                    \
    EXTEND(name, prefix, 8, 64)                                                                    \
    EXTEND(name, prefix, 16, 16)                                                                   \
    EXTEND(name, prefix, 16, 32)                                                                   \
    EXTEND(name, prefix, 16, 64)                                                                   \
    EXTEND(name, prefix, 32, 16)                                                                   \
    EXTEND(name, prefix, 32, 32)                                                                   \
    EXTEND(name, prefix, 32, 64)
EXTEND_ALL(zero_extend, uint)
EXTEND_ALL(sign_extend, int)

static void bind_mov(struct decoder *decoder)
{
    static insn_run *const rr[4] = PER_SIZE(mov_rr), *const ri[4] = PER_SIZE(mov_ri);
    static insn_run *const load[ADDRESS_MAX][4] = {
        [ADDRESS_ANY] = PER_SIZE(mov_rany),
        [ADDRESS_FLAT] = PER_SIZE(mov_rflat),
        [ADDRESS_BASE] = PER_SIZE(mov_rbase),
    };
    static insn_run *const store[ADDRESS_MAX][4] = {
        [ADDRESS_ANY] = PER_SIZE(mov_anyr),
        [ADDRESS_FLAT] = PER_SIZE(mov_flatr),
        [ADDRESS_BASE] = PER_SIZE(mov_baser),
    };
    static insn_run *const store_immediate[ADDRESS_MAX][4] = {
        [ADDRESS_ANY] = PER_SIZE(mov_anyi),
        [ADDRESS_FLAT] = PER_SIZE(mov_flati),
        [ADDRESS_BASE] = PER_SIZE(mov_basei),
    };
    struct insn *insn = decoder->insn;
    for (unsigned i = 0; i < 2; i++) {
        if (!op_is_register(decoder, i))
            continue;
        switch (ZydisRegisterGetClass(op_at(decoder, i)->reg.value)) {
        case ZYDIS_REGCLASS_SEGMENT: op_segment_bind(decoder); return;
        case ZYDIS_REGCLASS_CONTROL:
        case ZYDIS_REGCLASS_DEBUG:
        case ZYDIS_REGCLASS_TEST: op_control_bind(decoder); return;
        default: break;
        }
    }
    unsigned size = size_index(op_size(decoder, 0));
    if (op_is_memory(decoder, 0)) {
        if (op_is_immediate(decoder, 1)) {
            insn->imm = op_immediate(decoder, 1);
            insn->run = store_immediate[addressing_of(decoder)][size];
        } else {
            insn->b = op_register(decoder, 1);
            insn->run = store[addressing_of(decoder)][size];
        }
        return;
    }
    insn->a = op_register(decoder, 0);
    if (op_is_memory(decoder, 1)) {
        insn->run = load[addressing_of(decoder)][size];
    } else if (op_is_immediate(decoder, 1)) {
        insn->imm = op_immediate(decoder, 1);
        insn->run = ri[size];
    } else {
        insn->b = op_register(decoder, 1);
        insn->run = rr[size];
    }
}

enum { ZERO, SIGN };

struct extend_forms {
    insn_run *r, *memory[ADDRESS_MAX];
};
#define EXTEND_FORM(name, to, from)                                                                \
    {                                                                                              \
        name##_r_##to##_##from,                                                                    \
        {                                                                                          \
            [ADDRESS_ANY] = name##_any_##to##_##from, [ADDRESS_FLAT] = name##_flat_##to##_##from,  \
            [ADDRESS_BASE] = name##_base_##to##_##from                                             \
        }                                                                                          \
    }
#define EXTEND_FORMS(name)                                                                         \
    {                                                                                              \
        {EXTEND_FORM(name, 16, 8), EXTEND_FORM(name, 16, 16), EXTEND_FORM(name, 16, 32)},          \
            {EXTEND_FORM(name, 32, 8), EXTEND_FORM(name, 32, 16), EXTEND_FORM(name, 32, 32)},      \
        {                                                                                          \
            EXTEND_FORM(name, 64, 8), EXTEND_FORM(name, 64, 16), EXTEND_FORM(name, 64, 32)         \
        }                                                                                          \
    }

static void bind_extend(struct decoder *decoder)
{
    static const struct extend_forms forms[2][3][3] = {
        [ZERO] = EXTEND_FORMS(zero_extend), [SIGN] = EXTEND_FORMS(sign_extend)};
    struct insn *insn = decoder->insn;
    const struct extend_forms *form =
        &forms[decoder->arg][size_index(op_size(decoder, 0)) - 1][size_index(op_size(decoder, 1))];
    insn->a = op_register(decoder, 0);
    if (op_is_memory(decoder, 1)) {
        insn->run = form->memory[addressing_of(decoder)];
    } else {
        insn->b = op_register(decoder, 1);
        insn->run = form->r;
    }
}

/* ---- LEA ---- */

HANDLER(lea_base_64)
{
    REG64(v, insn->a) = REG64(v, insn->base) + (uint64_t)insn->disp;
    NEXT(v, insn);
}
#define LEA(bits)                                                                                  \
    HANDLER(lea_##bits)                                                                            \
    {                                                                                              \
        REG_SET##bits(v, insn->a, insn_offset(v, insn));                                           \
        NEXT(v, insn);                                                                             \
    }
FOR_WIDE_SIZES(LEA)

static void bind_lea(struct decoder *decoder)
{
    static insn_run *const forms[4] = PER_WIDE_SIZE(lea);
    struct insn *insn = decoder->insn;
    insn->a = op_register(decoder, 0);
    insn->run = forms[size_index(op_size(decoder, 0))];
    if (insn->run == lea_64 && insn->index == SOFT_ZERO * 8 && insn->amask == UINT64_MAX)
        insn->run = lea_base_64;
}

/* ---- XCHG of registers, BSWAP, MOVBE, the conversions in RAX ---- */

#define XCHG(bits)                                                                                 \
    HANDLER(xchg_##bits)                                                                           \
    {                                                                                              \
        uint##bits##_t a = REG##bits(v, insn->a), b = REG##bits(v, insn->b);                       \
        REG_SET##bits(v, insn->a, b);                                                              \
        REG_SET##bits(v, insn->b, a);                                                              \
        NEXT(v, insn);                                                                             \
    }
FOR_SIZES(XCHG)

static void bind_xchg(struct decoder *decoder)
{
    static insn_run *const forms[4] = PER_SIZE(xchg);
    struct insn *insn = decoder->insn;
    if (insn->flags & INSN_MEMORY)
        return; /* op_atomic.c */
    insn->a = op_register(decoder, 0);
    insn->b = op_register(decoder, 1);
    insn->run = forms[size_index(op_size(decoder, 0))];
}

HANDLER(bswap_16) /* undefined: as the host does it */
{
    uint16_t value = REG16(v, insn->a);
    asm(".byte 0x66, 0x0f, 0xc8" : "+a"(value));
    REG16(v, insn->a) = value;
    NEXT(v, insn);
}
HANDLER(bswap_32)
{
    reg32_write(v, insn->a, __builtin_bswap32(REG32(v, insn->a)));
    NEXT(v, insn);
}
HANDLER(bswap_64)
{
    REG64(v, insn->a) = __builtin_bswap64(REG64(v, insn->a));
    NEXT(v, insn);
}

static void bind_bswap(struct decoder *decoder)
{
    static insn_run *const forms[4] = PER_WIDE_SIZE(bswap);
    decoder->insn->a = op_register(decoder, 0);
    decoder->insn->run = forms[size_index(op_size(decoder, 0))];
}

#define MOVBE(bits)                                                                                \
    MEMORY_HANDLER(movbe_load_##bits)                                                              \
    {                                                                                              \
        uint##bits##_t value = LOAD(bits, LINEAR(ADDRESS_ANY, bits / 8, false));                   \
        REG_SET##bits(v, insn->a, __builtin_bswap##bits(value));                                   \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    MEMORY_HANDLER(movbe_store_##bits)                                                             \
    {                                                                                              \
        STORE(bits, LINEAR(ADDRESS_ANY, bits / 8, true),                                           \
              __builtin_bswap##bits(REG##bits(v, insn->b)));                                       \
        NEXT(v, insn);                                                                             \
    }
FOR_WIDE_SIZES(MOVBE)

static void bind_movbe(struct decoder *decoder)
{
    static insn_run *const load[4] = PER_WIDE_SIZE(movbe_load);
    static insn_run *const store[4] = PER_WIDE_SIZE(movbe_store);
    struct insn *insn = decoder->insn;
    unsigned size = size_index(op_size(decoder, 0));
    if (op_is_memory(decoder, 0)) {
        insn->b = op_register(decoder, 1);
        insn->run = store[size];
    } else {
        insn->a = op_register(decoder, 0);
        insn->run = load[size];
    }
}

HANDLER(cbw)
{
    REG16(v, 0) = (uint16_t)(int8_t)REG8(v, 0);
    NEXT(v, insn);
}
HANDLER(cwde)
{
    reg32_write(v, 0, (uint32_t)(int16_t)REG16(v, 0));
    NEXT(v, insn);
}
HANDLER(cdqe)
{
    REG64(v, 0) = (uint64_t)(int32_t)REG32(v, 0);
    NEXT(v, insn);
}
HANDLER(cwd)
{
    REG16(v, CPU_RDX * 8) = (uint16_t)((int16_t)REG16(v, 0) >> 15);
    NEXT(v, insn);
}
HANDLER(cdq)
{
    reg32_write(v, CPU_RDX * 8, (uint32_t)((int32_t)REG32(v, 0) >> 31));
    NEXT(v, insn);
}
HANDLER(cqo)
{
    REG64(v, CPU_RDX * 8) = (uint64_t)((int64_t)REG64(v, 0) >> 63);
    NEXT(v, insn);
}

/* ---- CMOVcc and SETcc ---- */

/* A 32-bit destination loses its upper half, and memory is read, whatever the condition says. */
#define CMOV(condition, bits)                                                                      \
    HANDLER(cmov_##condition##_r_##bits)                                                           \
    {                                                                                              \
        uint##bits##_t value = REG##bits(v, insn->b), old = REG##bits(v, insn->a);                 \
        REG_SET##bits(v, insn->a, cond_##condition(v->flags) ? value : old);                       \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    MEMORY_HANDLER(cmov_##condition##_m_##bits)                                                    \
    {                                                                                              \
        uint##bits##_t value = LOAD(bits, LINEAR(ADDRESS_ANY, bits / 8, false));                   \
        uint##bits##_t old = REG##bits(v, insn->a);                                                \
        REG_SET##bits(v, insn->a, cond_##condition(v->flags) ? value : old);                       \
        NEXT(v, insn);                                                                             \
    }
#define CMOV_ALL(condition)                                                                        \
    CMOV(condition, 16)                                                                            \
    CMOV(condition, 32)                                                                            \
    CMOV(condition, 64)
FOR_CONDITIONS(CMOV_ALL)

#define SET(condition)                                                                             \
    HANDLER(set_r_##condition)                                                                     \
    {                                                                                              \
        REG8(v, insn->a) = cond_##condition(v->flags);                                             \
        NEXT(v, insn);                                                                             \
    }                                                                                              \
    MEMORY_HANDLER(set_m_##condition)                                                              \
    {                                                                                              \
        STORE(8, LINEAR(ADDRESS_ANY, 1, true), cond_##condition(v->flags));                        \
        NEXT(v, insn);                                                                             \
    }
FOR_CONDITIONS(SET)

static void bind_cmov(struct decoder *decoder)
{
#define CMOV_FORMS(condition)                                                                      \
    {PER_WIDE_SIZE(cmov_##condition##_r), PER_WIDE_SIZE(cmov_##condition##_m)},
    static insn_run *const forms[16][2][4] = {FOR_CONDITIONS(CMOV_FORMS)};
    struct insn *insn = decoder->insn;
    bool memory = op_is_memory(decoder, 1);
    insn->a = op_register(decoder, 0);
    if (!memory)
        insn->b = op_register(decoder, 1);
    insn->run = forms[decoder->arg][memory][size_index(op_size(decoder, 0))];
}

static void bind_set(struct decoder *decoder)
{
#define SET_FORMS(condition) {set_r_##condition, set_m_##condition},
    static insn_run *const forms[16][2] = {FOR_CONDITIONS(SET_FORMS)};
    struct insn *insn = decoder->insn;
    bool memory = op_is_memory(decoder, 0);
    if (!memory)
        insn->a = op_register(decoder, 0);
    insn->run = forms[decoder->arg][memory];
}

/* ---- flags ---- */

HANDLER(lahf)
{
    REG8(v, 1) = (uint8_t)(v->flags >> 8 & 0xd5) | RFLAG_ONE;
    NEXT(v, insn);
}
HANDLER(sahf)
{
    v->flags = (uint16_t)((v->flags & SOFT_OF) | (REG8(v, 1) & 0xd5) << 8 | 0x200);
    NEXT(v, insn);
}
HANDLER(clc)
{
    v->flags &= (uint16_t)~SOFT_CF;
    NEXT(v, insn);
}
HANDLER(stc)
{
    v->flags |= SOFT_CF;
    NEXT(v, insn);
}
HANDLER(cmc)
{
    v->flags ^= SOFT_CF;
    NEXT(v, insn);
}
HANDLER(cld)
{
    v->rflags &= ~(uint64_t)RFLAG_DF;
    NEXT(v, insn);
}
HANDLER(std)
{
    v->rflags |= RFLAG_DF;
    NEXT(v, insn);
}

/* ---- XLAT, and what does nothing ---- */

MEMORY_HANDLER(xlat)
{
    if (slow && unlikely(insn->flags & INSN_SEGCHECK))
        return slow(v, insn);
    uint64_t offset = (REG64(v, CPU_RBX * 8) + REG8(v, 0)) & insn->amask, linear;
    if (insn->flags & INSN_SEGCHECK) {
        soft_segment_check(v, insn, insn->seg, offset, 1, false);
        linear = (uint32_t)(offset + v->ea_base[insn->seg]);
    } else {
        linear = offset + v->ea_base[insn->seg];
    }
    REG8(v, 0) = LOAD(8, linear);
    NEXT(v, insn);
}

HANDLER(nop)
{
    NEXT(v, insn);
}

enum fixed_op { CBW, CWDE, CDQE, CWD, CDQ, CQO, LAHF, SAHF, CLC, STC, CMC, CLD, STD, XLAT, NOP };

static void bind_fixed(struct decoder *decoder)
{
    static insn_run *const forms[] = {
        [CBW] = cbw, [CWDE] = cwde, [CDQE] = cdqe, [CWD] = cwd,   [CDQ] = cdq,
        [CQO] = cqo, [LAHF] = lahf, [SAHF] = sahf, [CLC] = clc,   [STC] = stc,
        [CMC] = cmc, [CLD] = cld,   [STD] = std,   [XLAT] = xlat, [NOP] = nop,
    };
    decoder->insn->run = forms[decoder->arg];
}

#define CC(condition, number)                                                                      \
    {ZYDIS_MNEMONIC_CMOV##condition, bind_cmov, number},                                           \
    {                                                                                              \
        ZYDIS_MNEMONIC_SET##condition, bind_set, number                                            \
    }

const struct op_row op_move_rows[] = {
    {ZYDIS_MNEMONIC_MOV, bind_mov, 0},
    {ZYDIS_MNEMONIC_MOVNTI, bind_mov, 0},
    {ZYDIS_MNEMONIC_MOVZX, bind_extend, ZERO},
    {ZYDIS_MNEMONIC_MOVSX, bind_extend, SIGN},
    {ZYDIS_MNEMONIC_MOVSXD, bind_extend, SIGN},
    {ZYDIS_MNEMONIC_LEA, bind_lea, 0},
    {ZYDIS_MNEMONIC_XCHG, bind_xchg, 0},
    {ZYDIS_MNEMONIC_BSWAP, bind_bswap, 0},
    {ZYDIS_MNEMONIC_MOVBE, bind_movbe, 0},
    {ZYDIS_MNEMONIC_CBW, bind_fixed, CBW},
    {ZYDIS_MNEMONIC_CWDE, bind_fixed, CWDE},
    {ZYDIS_MNEMONIC_CDQE, bind_fixed, CDQE},
    {ZYDIS_MNEMONIC_CWD, bind_fixed, CWD},
    {ZYDIS_MNEMONIC_CDQ, bind_fixed, CDQ},
    {ZYDIS_MNEMONIC_CQO, bind_fixed, CQO},
    CC(O, 0),
    CC(NO, 1),
    CC(B, 2),
    CC(NB, 3),
    CC(Z, 4),
    CC(NZ, 5),
    CC(BE, 6),
    CC(NBE, 7),
    CC(S, 8),
    CC(NS, 9),
    CC(P, 10),
    CC(NP, 11),
    CC(L, 12),
    CC(NL, 13),
    CC(LE, 14),
    CC(NLE, 15),
    {ZYDIS_MNEMONIC_LAHF, bind_fixed, LAHF},
    {ZYDIS_MNEMONIC_SAHF, bind_fixed, SAHF},
    {ZYDIS_MNEMONIC_CLC, bind_fixed, CLC},
    {ZYDIS_MNEMONIC_STC, bind_fixed, STC},
    {ZYDIS_MNEMONIC_CMC, bind_fixed, CMC},
    {ZYDIS_MNEMONIC_CLD, bind_fixed, CLD},
    {ZYDIS_MNEMONIC_STD, bind_fixed, STD},
    {ZYDIS_MNEMONIC_XLAT, bind_fixed, XLAT},
    {ZYDIS_MNEMONIC_NOP, bind_fixed, NOP},
    {ZYDIS_MNEMONIC_PREFETCH, bind_fixed, NOP},
    {ZYDIS_MNEMONIC_PREFETCHW, bind_fixed, NOP},
    {ZYDIS_MNEMONIC_PREFETCHWT1, bind_fixed, NOP},
    {ZYDIS_MNEMONIC_PREFETCHNTA, bind_fixed, NOP},
    {ZYDIS_MNEMONIC_PREFETCHT0, bind_fixed, NOP},
    {ZYDIS_MNEMONIC_PREFETCHT1, bind_fixed, NOP},
    {ZYDIS_MNEMONIC_PREFETCHT2, bind_fixed, NOP},
    {0},
};
