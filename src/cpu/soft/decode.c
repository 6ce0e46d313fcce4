/*
 * From bytes to bound instructions, in three passes over one block:
 *
 *   1. Zydis decodes forward until an instruction that surely ends the block.
 *   2. Backwards: which flags may somebody still look at after each instruction? Whatever may fault
 *      looks at all of them (RFLAGS is pushed), and so does the world after the block.
 *   3. Forward: the common fields of struct insn, then the row's bind function.
 *
 * A bind function may end the block early (`alone`, `ends_block`). Where pass 2 had looked past
 * that point, passes 2 and 3 run again on the shorter block.
 */
#include "cpu/soft/jit_unit.h"
#include "cpu/soft/op.h"
#include "cpu/soft/system.h"

#include <stdlib.h>

enum { FLAGS_ALL = RFLAG_ARITHMETIC, ROWS_MAX = 4096 };

enum machine { MACHINE_REAL, MACHINE_16, MACHINE_32, MACHINE_64, MACHINE_MAX };

struct decode_tables {
    ZydisDecoder decoders[MACHINE_MAX];
    bool hidden[ZYDIS_ISA_SET_MAX_VALUE + 1]; /* CPUID does not show it: #UD */
    uint16_t first[ZYDIS_MNEMONIC_MAX_VALUE + 2];
    const struct op_row *rows[ROWS_MAX];
    bool barrier[ROWS_MAX]; /* of a table whose instructions may end a block */
};

static const struct {
    const struct op_row *rows;
    bool barrier;
} row_tables[] = {
    {op_move_rows, false},   {op_alu_rows, false},    {op_shift_rows, false},
    {op_muldiv_rows, false}, {op_bit_rows, false},    {op_stack_rows, false},
    {op_string_rows, false}, {op_atomic_rows, false}, {op_bcd_rows, false},
    {op_branch_rows, true},  {op_vector_rows, false}, {op_fpu_rows, false},
    {op_system_rows, true},  {op_far_rows, true},     {op_io_rows, true},
};

/* ---- what CPUID shows ---- */

enum cpuid_register { IN_EAX, IN_EBX, IN_ECX, IN_EDX };

static const struct {
    uint16_t isa_set;
    uint8_t reg, bit;
    uint32_t leaf, subleaf;
} features[] = {
    {ZYDIS_ISA_SET_SSE3, IN_ECX, 0, 1, 0},
    {ZYDIS_ISA_SET_SSE3X87, IN_ECX, 0, 1, 0},
    {ZYDIS_ISA_SET_PCLMULQDQ, IN_ECX, 1, 1, 0},
    {ZYDIS_ISA_SET_MONITOR, IN_ECX, 3, 1, 0},
    {ZYDIS_ISA_SET_SSSE3, IN_ECX, 9, 1, 0},
    {ZYDIS_ISA_SET_SSSE3MMX, IN_ECX, 9, 1, 0},
    {ZYDIS_ISA_SET_FMA, IN_ECX, 12, 1, 0},
    {ZYDIS_ISA_SET_CMPXCHG16B, IN_ECX, 13, 1, 0},
    {ZYDIS_ISA_SET_SSE4, IN_ECX, 19, 1, 0},
    {ZYDIS_ISA_SET_SSE42, IN_ECX, 20, 1, 0},
    {ZYDIS_ISA_SET_MOVBE, IN_ECX, 22, 1, 0},
    {ZYDIS_ISA_SET_POPCNT, IN_ECX, 23, 1, 0},
    {ZYDIS_ISA_SET_AES, IN_ECX, 25, 1, 0},
    {ZYDIS_ISA_SET_AVXAES, IN_ECX, 25, 1, 0},
    {ZYDIS_ISA_SET_XSAVE, IN_ECX, 26, 1, 0},
    {ZYDIS_ISA_SET_AVX, IN_ECX, 28, 1, 0},
    {ZYDIS_ISA_SET_F16C, IN_ECX, 29, 1, 0},
    {ZYDIS_ISA_SET_RDRAND, IN_ECX, 30, 1, 0},
    {ZYDIS_ISA_SET_CMOV, IN_EDX, 15, 1, 0},
    {ZYDIS_ISA_SET_CLFSH, IN_EDX, 19, 1, 0},
    {ZYDIS_ISA_SET_PENTIUMMMX, IN_EDX, 23, 1, 0},
    {ZYDIS_ISA_SET_FXSAVE, IN_EDX, 24, 1, 0},
    {ZYDIS_ISA_SET_FXSAVE64, IN_EDX, 24, 1, 0},
    {ZYDIS_ISA_SET_SSE, IN_EDX, 25, 1, 0},
    {ZYDIS_ISA_SET_SSEMXCSR, IN_EDX, 25, 1, 0},
    {ZYDIS_ISA_SET_SSE2, IN_EDX, 26, 1, 0},
    {ZYDIS_ISA_SET_SSE2MMX, IN_EDX, 26, 1, 0},
    {ZYDIS_ISA_SET_RDWRFSGS, IN_EBX, 0, 7, 0},
    {ZYDIS_ISA_SET_BMI1, IN_EBX, 3, 7, 0},
    {ZYDIS_ISA_SET_AVX2, IN_EBX, 5, 7, 0},
    {ZYDIS_ISA_SET_AVX2GATHER, IN_EBX, 5, 7, 0},
    {ZYDIS_ISA_SET_BMI2, IN_EBX, 8, 7, 0},
    {ZYDIS_ISA_SET_INVPCID, IN_EBX, 10, 7, 0},
    {ZYDIS_ISA_SET_RTM, IN_EBX, 11, 7, 0},
    {ZYDIS_ISA_SET_MPX, IN_EBX, 14, 7, 0},
    {ZYDIS_ISA_SET_RDSEED, IN_EBX, 18, 7, 0},
    {ZYDIS_ISA_SET_ADOX_ADCX, IN_EBX, 19, 7, 0},
    {ZYDIS_ISA_SET_SMAP, IN_EBX, 20, 7, 0},
    {ZYDIS_ISA_SET_CLFLUSHOPT, IN_EBX, 23, 7, 0},
    {ZYDIS_ISA_SET_CLWB, IN_EBX, 24, 7, 0},
    {ZYDIS_ISA_SET_PT, IN_EBX, 25, 7, 0},
    {ZYDIS_ISA_SET_SHA, IN_EBX, 29, 7, 0},
    {ZYDIS_ISA_SET_PKU, IN_ECX, 3, 7, 0},
    {ZYDIS_ISA_SET_WAITPKG, IN_ECX, 5, 7, 0},
    {ZYDIS_ISA_SET_CET, IN_ECX, 7, 7, 0},
    {ZYDIS_ISA_SET_GFNI, IN_ECX, 8, 7, 0},
    {ZYDIS_ISA_SET_AVX_GFNI, IN_ECX, 8, 7, 0},
    {ZYDIS_ISA_SET_VAES, IN_ECX, 9, 7, 0},
    {ZYDIS_ISA_SET_VPCLMULQDQ, IN_ECX, 10, 7, 0},
    {ZYDIS_ISA_SET_RDPID, IN_ECX, 22, 7, 0},
    {ZYDIS_ISA_SET_KEYLOCKER, IN_ECX, 23, 7, 0},
    {ZYDIS_ISA_SET_KEYLOCKER_WIDE, IN_ECX, 23, 7, 0},
    {ZYDIS_ISA_SET_ENQCMD, IN_ECX, 29, 7, 0},
    {ZYDIS_ISA_SET_UINTR, IN_EDX, 5, 7, 0},
    {ZYDIS_ISA_SET_SERIALIZE, IN_EDX, 14, 7, 0},
    {ZYDIS_ISA_SET_TSX_LDTRK, IN_EDX, 16, 7, 0},
    {ZYDIS_ISA_SET_PCONFIG, IN_EDX, 18, 7, 0},
    {ZYDIS_ISA_SET_AVX_VNNI, IN_EAX, 4, 7, 1},
    {ZYDIS_ISA_SET_HRESET, IN_EAX, 22, 7, 1},
    {ZYDIS_ISA_SET_XSAVEOPT, IN_EAX, 0, 0xd, 1},
    {ZYDIS_ISA_SET_XSAVEC, IN_EAX, 1, 0xd, 1},
    {ZYDIS_ISA_SET_XSAVES, IN_EAX, 3, 0xd, 1},
    {ZYDIS_ISA_SET_LZCNT, IN_ECX, 5, 0x80000001, 0},
    {ZYDIS_ISA_SET_SSE4A, IN_ECX, 6, 0x80000001, 0},
    {ZYDIS_ISA_SET_XOP, IN_ECX, 11, 0x80000001, 0},
    {ZYDIS_ISA_SET_LWP, IN_ECX, 15, 0x80000001, 0},
    {ZYDIS_ISA_SET_FMA4, IN_ECX, 16, 0x80000001, 0},
    {ZYDIS_ISA_SET_TBM, IN_ECX, 21, 0x80000001, 0},
    {ZYDIS_ISA_SET_MONITORX, IN_ECX, 29, 0x80000001, 0},
    {ZYDIS_ISA_SET_RDTSCP, IN_EDX, 27, 0x80000001, 0},
    {ZYDIS_ISA_SET_AMD3DNOW, IN_EDX, 31, 0x80000001, 0},
    {ZYDIS_ISA_SET_CLZERO, IN_EBX, 0, 0x80000008, 0},
    {ZYDIS_ISA_SET_RDPRU, IN_EBX, 4, 0x80000008, 0},
    {ZYDIS_ISA_SET_MCOMMIT, IN_EBX, 8, 0x80000008, 0},
};

static bool cpuid_shows(const struct cpuid *cpuid, uint32_t leaf, uint32_t subleaf, unsigned reg,
                        unsigned bit)
{
    struct cpuid_leaf found = cpuid_find(cpuid, leaf & 0x80000000, 0);
    if (found.eax < leaf) /* past the end cpuid_find() answers with another leaf */
        return false;
    found = cpuid_find(cpuid, leaf, subleaf);
    uint32_t registers[] = {found.eax, found.ebx, found.ecx, found.edx};
    return registers[reg] >> bit & 1;
}

static bool cpuid_is_amd(const struct cpuid *cpuid)
{
    uint32_t ebx = cpuid_find(cpuid, 0, 0).ebx;
    return ebx == 0x68747541 /* AuthenticAMD */ || ebx == 0x6f677948 /* HygonGenuine */;
}

static void decoders_init(struct decode_tables *tables, const struct cpuid *cpuid)
{
    static const struct {
        ZydisMachineMode machine;
        ZydisStackWidth stack;
    } modes[MACHINE_MAX] = {
        [MACHINE_REAL] = {ZYDIS_MACHINE_MODE_REAL_16, ZYDIS_STACK_WIDTH_16},
        [MACHINE_16] = {ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16},
        [MACHINE_32] = {ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32},
        [MACHINE_64] = {ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64},
    };
    for (unsigned i = 0; i < MACHINE_MAX; i++) {
        ZydisDecoder *decoder = &tables->decoders[i];
        ZydisDecoderInit(decoder, modes[i].machine, modes[i].stack);
        /* Hidden extensions fall back to what older processors made of the same bytes. */
        ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_AMD_BRANCHES, cpuid_is_amd(cpuid));
        ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
        ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
        ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
        ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_LZCNT,
                               !tables->hidden[ZYDIS_ISA_SET_LZCNT]);
        ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_TZCNT,
                               !tables->hidden[ZYDIS_ISA_SET_BMI1]);
        ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_WBNOINVD,
                               cpuid_shows(cpuid, 0x80000008, 0, IN_EBX, 9));
    }
}

struct decode_tables *decode_tables_new(const struct soft_vcpu *v)
{
    struct decode_tables *tables = calloc(1, sizeof *tables);
    if (!tables)
        return NULL;
    const struct cpuid *cpuid = &v->vm->cpuid;
    for (size_t i = 0; i < ARRAY_LEN(features); i++)
        tables->hidden[features[i].isa_set] = !cpuid_shows(
            cpuid, features[i].leaf, features[i].subleaf, features[i].reg, features[i].bit);
    decoders_init(tables, cpuid);

    /* Counting sort by mnemonic; rows of one mnemonic keep the order of the tables. */
    for (size_t t = 0; t < ARRAY_LEN(row_tables); t++)
        for (const struct op_row *row = row_tables[t].rows; row->bind; row++)
            tables->first[row->mnemonic + 1]++;
    for (unsigned i = 1; i < ARRAY_LEN(tables->first); i++)
        tables->first[i] = (uint16_t)(tables->first[i] + tables->first[i - 1]);
    assert(tables->first[ZYDIS_MNEMONIC_MAX_VALUE + 1] <= ROWS_MAX);
    for (size_t t = 0; t < ARRAY_LEN(row_tables); t++)
        for (const struct op_row *row = row_tables[t].rows; row->bind; row++) {
            unsigned at = tables->first[row->mnemonic];
            while (tables->rows[at])
                at++;
            tables->rows[at] = row;
            tables->barrier[at] = row_tables[t].barrier;
        }
    return tables;
}

void decode_tables_free(struct decode_tables *tables)
{
    free(tables);
}

/* ---- handlers of what is no instruction ---- */

void op_undefined(struct soft_vcpu *v, const struct insn *insn)
{
    soft_raise(v, insn, VECTOR_UD);
}

void op_privileged(struct soft_vcpu *v, const struct insn *insn)
{
    soft_raise_error(v, insn, VECTOR_GP, 0);
}

void op_no_device(struct soft_vcpu *v, const struct insn *insn)
{
    soft_raise(v, insn, VECTOR_NM);
}

void op_continue(struct soft_vcpu *v, const struct insn *insn)
{
    return block_branch(v, insn);
}

/* The terminator after an `alone` instruction. */
static void op_stop(struct soft_vcpu *v, const struct insn *insn)
{
    v->gpr[SOFT_RIP] += insn->imm;
    LEAVE;
}

/* ---- pass 1 ---- */

static const ZydisDecoder *decoder_for(const struct decode_tables *tables, uint32_t mode)
{
    if (mode & MODE_64)
        return &tables->decoders[MACHINE_64];
    if (mode & MODE_CODE32)
        return &tables->decoders[MACHINE_32];
    if (mode & (MODE_PROTECTED | MODE_VM86))
        return &tables->decoders[MACHINE_16];
    return &tables->decoders[MACHINE_REAL];
}

static bool is_hidden(const struct decode_tables *tables, const ZydisDecodedInstruction *zydis,
                      uint32_t mode)
{
    switch (zydis->encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_LEGACY: break;
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
        if (!(mode & MODE_PROTECTED) || (mode & MODE_VM86))
            return true;
        break;
    default: return true; /* 3DNow!, XOP, EVEX, MVEX */
    }
    switch (zydis->meta.isa_ext) {
    case ZYDIS_ISA_EXT_KNC: /* VEX forms of Knights Corner alone */
    case ZYDIS_ISA_EXT_KNCE:
    case ZYDIS_ISA_EXT_KNCV: return true;
    default: return tables->hidden[zydis->meta.isa_set];
    }
}

static bool surely_ends(const ZydisDecodedInstruction *zydis)
{
    switch (zydis->meta.category) {
    case ZYDIS_CATEGORY_COND_BR:
    case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_RET:
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET: return true;
    default: return zydis->mnemonic == ZYDIS_MNEMONIC_HLT;
    }
}

/* Jcc of 64-bit mode. Its target, from the block's start; `end`: of the instruction. */
static bool is_jcc(const struct decoded *decoded, unsigned end, int64_t *ret_target)
{
    const ZydisDecodedInstruction *zydis = &decoded->zydis;
    *ret_target = (int64_t)end + decoded->operands[0].imm.value.s;
    return zydis->meta.category == ZYDIS_CATEGORY_COND_BR && zydis->operand_width == 64 &&
           zydis->mnemonic != ZYDIS_MNEMONIC_LOOP && zydis->mnemonic != ZYDIS_MNEMONIC_LOOPE &&
           zydis->mnemonic != ZYDIS_MNEMONIC_LOOPNE && zydis->mnemonic != ZYDIS_MNEMONIC_JRCXZ &&
           zydis->mnemonic != ZYDIS_MNEMONIC_JECXZ;
}

/* F3 90 with REX.B is no PAUSE but XCHG R8, RAX: the F3 means nothing. Decodes again with a prefix
 * that means nothing to the tables either (CS, in 64-bit mode). */
static ZyanStatus decode_xchg_r8(const ZydisDecoder *zydis, struct decoded *decoded,
                                 const uint8_t *text)
{
    uint8_t copy[ZYDIS_MAX_INSTRUCTION_LENGTH];
    unsigned length = decoded->zydis.length;
    memcpy(copy, text, length);
    for (unsigned i = 0; i < length; i++)
        if (copy[i] == 0xf3 || copy[i] == 0xf2)
            copy[i] = 0x2e;
    return ZydisDecoderDecodeFull(zydis, copy, length, &decoded->zydis, decoded->operands);
}

static ZyanStatus decode_bytes(const ZydisDecoder *zydis, struct decoded *decoded,
                               const uint8_t *text, unsigned size)
{
    ZyanStatus status =
        ZydisDecoderDecodeFull(zydis, text, size, &decoded->zydis, decoded->operands);
    if (ZYAN_SUCCESS(status) && decoded->zydis.mnemonic == ZYDIS_MNEMONIC_PAUSE &&
        decoded->zydis.raw.rex.B)
        status = decode_xchg_r8(zydis, decoded, text);
    return status;
}

/* Returns how many instructions there are; 0 when the first one is cut off. With cache->through a
 * loop is decoded to its end, Jcc on the way included; where it is none, up to the first branch all
 * the same. */
static unsigned decode_forward(struct soft_vcpu *v, unsigned size, unsigned max)
{
    struct soft_cache *cache = v->cache;
    unsigned passed = 0, first = 0; /* Jcc; instructions up to the first of them */
    const ZydisDecoder *zydis = decoder_for(cache->tables, v->mode);
    unsigned at = 0;
    for (unsigned n = 0; n < max; n++) {
        struct decoded *decoded = &cache->decoded[n];
        unsigned left = size - at;
        if (at + ZYDIS_MAX_INSTRUCTION_LENGTH > BLOCK_BYTES_MAX)
            return passed ? first : n;
        decoded->undefined = decoded->too_long = false;
        ZyanStatus status = left == 0
                                ? ZYDIS_STATUS_NO_MORE_DATA
                                : decode_bytes(zydis, decoded, cache->text + at,
                                               min(left, (unsigned)ZYDIS_MAX_INSTRUCTION_LENGTH));
        if (ZYAN_SUCCESS(status)) {
            decoded->undefined = is_hidden(cache->tables, &decoded->zydis, v->mode);
        } else {
            if (status == ZYDIS_STATUS_NO_MORE_DATA && left < ZYDIS_MAX_INSTRUCTION_LENGTH)
                return passed ? first : n;
            decoded->too_long =
                status == ZYDIS_STATUS_NO_MORE_DATA || status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG;
            decoded->undefined = !decoded->too_long;
            decoded->zydis.length = 1; /* RIP stays here */
        }
        at += decoded->zydis.length;
        decoded->end = (uint8_t)at;
        /* What is wrong may be any byte of those that were looked at. */
        decoded->seen =
            ZYAN_SUCCESS(status) ? at : at - 1 + min(left, (unsigned)ZYDIS_MAX_INSTRUCTION_LENGTH);
        if (decoded->undefined || decoded->too_long)
            return passed ? first : n + 1;
        if (!surely_ends(&decoded->zydis))
            continue;
        int64_t target;
        if (!is_jcc(decoded, at, &target) || !cache->through)
            return passed ? first : n + 1;
        if (target == 0)
            return n + 1;
        if (passed == BLOCK_JCC_MAX)
            return first;
        if (passed++ == 0)
            first = n + 1;
    }
    return passed ? first : max;
}

/* ---- pass 2 ---- */

static bool is_barrier(const struct decode_tables *tables, const struct decoded *decoded)
{
    if (decoded->undefined || decoded->too_long)
        return true;
    unsigned mnemonic = decoded->zydis.mnemonic;
    for (unsigned i = tables->first[mnemonic]; i < tables->first[mnemonic + 1]; i++)
        if (tables->barrier[i])
            return true;
    return false;
}

static bool may_fault(const struct decoded *decoded)
{
    switch (decoded->zydis.mnemonic) {
    case ZYDIS_MNEMONIC_DIV:
    case ZYDIS_MNEMONIC_IDIV:
    case ZYDIS_MNEMONIC_AAM: return true;
    default: break;
    }
    for (unsigned i = 0; i < decoded->zydis.operand_count; i++) {
        const ZydisDecodedOperand *operand = &decoded->operands[i];
        if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY &&
            operand->mem.type != ZYDIS_MEMOP_TYPE_AGEN)
            return true;
        if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER)
            switch (ZydisRegisterGetClass(operand->reg.value)) {
            case ZYDIS_REGCLASS_GPR8:
            case ZYDIS_REGCLASS_GPR16:
            case ZYDIS_REGCLASS_GPR32:
            case ZYDIS_REGCLASS_GPR64:
            case ZYDIS_REGCLASS_FLAGS:
            case ZYDIS_REGCLASS_IP: break;
            default: return true; /* #NM, #MF, #XM */
            }
    }
    return decoded->zydis.meta.isa_ext == ZYDIS_ISA_EXT_X87;
}

static bool writes_memory(const struct decoded *decoded)
{
    for (unsigned i = 0; i < decoded->zydis.operand_count; i++)
        if (decoded->operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY &&
            decoded->operands[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
            return true;
    return false;
}

/* Does the instruction leave flags alone that the tables call modified or undefined? */
static ZydisAccessedFlagsMask flags_killed(const struct decoded *decoded)
{
    const ZydisAccessedFlags *flags = decoded->zydis.cpu_flags;
    ZydisAccessedFlagsMask killed = flags->modified | flags->set_0 | flags->set_1;
    switch (decoded->zydis.meta.category) {
    case ZYDIS_CATEGORY_SHIFT:
    case ZYDIS_CATEGORY_ROTATE: {
        /* A masked count of 0 changes nothing. */
        bool two_registers = decoded->zydis.mnemonic == ZYDIS_MNEMONIC_SHLD ||
                             decoded->zydis.mnemonic == ZYDIS_MNEMONIC_SHRD;
        const ZydisDecodedOperand *count = &decoded->operands[two_registers ? 2 : 1];
        unsigned mask = decoded->zydis.operand_width == 64 ? 63 : 31;
        if (count->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || (count->imm.value.u & mask) == 0)
            return 0;
        return killed;
    }
    case ZYDIS_CATEGORY_BITBYTE: return killed; /* "undefined" is "unchanged" in most of these */
    case ZYDIS_CATEGORY_STRINGOP:
        return decoded->zydis.attributes & (ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)
                   ? 0
                   : killed;
    default: break;
    }
    switch (decoded->zydis.mnemonic) {
    case ZYDIS_MNEMONIC_MUL:
    case ZYDIS_MNEMONIC_IMUL: return killed; /* here too, on some processors */
    default: return killed | flags->undefined;
    }
}

bool decode_kills_flags(const struct decoded *decoded)
{
    const ZydisAccessedFlags *flags = decoded->zydis.cpu_flags;
    if (!flags)
        return false;
    uint32_t killed = flags_killed(decoded);
    /* Some leave alone, on some processors, what the manuals call undefined. */
    switch (decoded->zydis.mnemonic) {
    case ZYDIS_MNEMONIC_DIV:
    case ZYDIS_MNEMONIC_IDIV:
    case ZYDIS_MNEMONIC_TZCNT:
    case ZYDIS_MNEMONIC_LZCNT: return false;
    default: break;
    }
    /* A shift by a constant leaves AF undefined, which is never what it was. */
    if (decoded->zydis.meta.category == ZYDIS_CATEGORY_SHIFT && killed)
        killed |= flags->undefined;
    return (killed & FLAGS_ALL) == FLAGS_ALL;
}

bool decode_writes_flags(const struct decoded *decoded)
{
    const ZydisAccessedFlags *flags = decoded->zydis.cpu_flags;
    return flags && (flags->modified | flags->set_0 | flags->set_1 | flags->undefined) & FLAGS_ALL;
}

bool decode_uses_flags(const struct decoded *decoded)
{
    const ZydisAccessedFlags *flags = decoded->zydis.cpu_flags;
    return flags && (flags->tested & FLAGS_ALL ||
                     (decode_writes_flags(decoded) && !decode_kills_flags(decoded)));
}

bool decode_is_barrier(const struct soft_vcpu *v, const struct decoded *decoded)
{
    return is_barrier(v->cache->tables, decoded);
}

bool decode_shows_flags(const struct soft_vcpu *v, const struct decoded *decoded)
{
    return decode_is_barrier(v, decoded) || may_fault(decoded);
}

void decode_again(struct soft_vcpu *v, const struct soft_block *block)
{
    memcpy(v->cache->text, block->bytes, block->size);
    v->cache->through = true;
    decode_forward(v, block->size, block->count);
    v->cache->through = false;
    for (unsigned i = 0; i < block->count; i++)
        if (block->insns[i].run == op_undefined)
            v->cache->decoded[i].undefined = true;
}

static void flags_backward(const struct decode_tables *tables, struct decoded *decoded,
                           unsigned count)
{
    uint32_t live = FLAGS_ALL;
    while (count-- > 0) {
        struct decoded *d = &decoded[count];
        if (is_barrier(tables, d)) {
            d->flags_needed = live = FLAGS_ALL;
            continue;
        }
        /* The block may end behind a store, for it may have changed what follows (spoil_running).
         */
        d->flags_needed = writes_memory(d) ? FLAGS_ALL : live;
        if (d->zydis.cpu_flags)
            live = (live & ~flags_killed(d)) | (d->zydis.cpu_flags->tested & FLAGS_ALL);
        if (may_fault(d))
            live = FLAGS_ALL;
    }
}

/* ---- pass 3 ---- */

uint8_t decode_register(ZydisRegister reg)
{
    if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH)
        return (uint8_t)((reg - ZYDIS_REGISTER_AH) * 8 + 1);
    if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL)
        return (uint8_t)((reg - ZYDIS_REGISTER_AL) * 8);
    if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B)
        return (uint8_t)((reg - ZYDIS_REGISTER_SPL + CPU_RSP) * 8);
    if (reg >= ZYDIS_REGISTER_AX && reg <= ZYDIS_REGISTER_R15W)
        return (uint8_t)((reg - ZYDIS_REGISTER_AX) * 8);
    if (reg >= ZYDIS_REGISTER_EAX && reg <= ZYDIS_REGISTER_R15D)
        return (uint8_t)((reg - ZYDIS_REGISTER_EAX) * 8);
    if (reg >= ZYDIS_REGISTER_RAX && reg <= ZYDIS_REGISTER_R15)
        return (uint8_t)((reg - ZYDIS_REGISTER_RAX) * 8);
    if (reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP || reg == ZYDIS_REGISTER_IP)
        return SOFT_RIP * 8;
    return SOFT_ZERO * 8;
}

static uint8_t decode_segment(ZydisRegister reg)
{
    switch (reg) {
    case ZYDIS_REGISTER_ES: return CPU_ES;
    case ZYDIS_REGISTER_CS: return CPU_CS;
    case ZYDIS_REGISTER_SS: return CPU_SS;
    case ZYDIS_REGISTER_FS: return CPU_FS;
    case ZYDIS_REGISTER_GS: return CPU_GS;
    default: return CPU_DS;
    }
}

static void fill_memory(struct insn *insn, const struct decoded *decoded,
                        const ZydisDecodedOperandMem *mem, uint32_t mode)
{
    insn->flags |= INSN_MEMORY;
    insn->base = decode_register(mem->base);
    insn->index = decode_register(mem->index); /* the VSIB forms look at the operand themselves */
    insn->scale = mem->scale > 1 ? (uint8_t)__builtin_ctz(mem->scale) : 0;
    insn->disp = mem->disp.value;
    if (insn->base == SOFT_RIP * 8)
        insn->disp += insn->end;
    insn->seg = decode_segment(mem->segment);
    insn->amask = decoded->zydis.address_width == 64   ? UINT64_MAX
                  : decoded->zydis.address_width == 32 ? UINT32_MAX
                                                       : UINT16_MAX;
    /* CS is flat where MODE_SEGCHECK is off, but it is never writable. */
    if (!(mode & MODE_64) && ((mode & MODE_SEGCHECK) || insn->seg == CPU_FS ||
                              insn->seg == CPU_GS || insn->seg == CPU_CS))
        insn->flags |= INSN_SEGCHECK;
}

static void fill(struct insn *insn, const struct decoded *decoded, uint32_t mode)
{
    const ZydisDecodedInstruction *zydis = &decoded->zydis;
    *insn = (struct insn){.len = zydis->length,
                          .end = decoded->end,
                          .base = SOFT_ZERO * 8,
                          .index = SOFT_ZERO * 8,
                          .seg = CPU_DS,
                          .amask = UINT64_MAX};
    if (decoded->undefined || decoded->too_long)
        return;
    insn->size = (uint8_t)(zydis->operand_width / 8);
    if (zydis->attributes & ZYDIS_ATTRIB_HAS_LOCK)
        insn->flags |= INSN_LOCK;
    for (unsigned i = 0; i < zydis->raw.prefix_count; i++) {
        /* The last of F2 and F3 counts. */
        unsigned value = zydis->raw.prefixes[i].value;
        if (value == 0xf2 || value == 0xf3)
            insn->flags = (uint16_t)((insn->flags & ~(INSN_REP | INSN_REPNE)) |
                                     (value == 0xf3 ? INSN_REP : INSN_REPNE));
    }
    for (unsigned i = 0; i < zydis->operand_count; i++)
        if (decoded->operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY) {
            fill_memory(insn, decoded, &decoded->operands[i].mem, mode);
            break;
        }
}

static void bind_one(struct soft_vcpu *v, struct decoder *decoder, struct decoded *decoded)
{
    const struct decode_tables *tables = v->cache->tables;
    struct insn *insn = decoder->insn;
    decoder->ends_block = decoder->alone = false;
    fill(insn, decoded, v->mode);
    if (!decoded->undefined && !decoded->too_long) {
        decoder->zydis = &decoded->zydis;
        decoder->operands = decoded->operands;
        decoder->flags_needed = decoded->flags_needed;
        unsigned mnemonic = decoded->zydis.mnemonic;
        for (unsigned i = tables->first[mnemonic]; i < tables->first[mnemonic + 1] && !insn->run;
             i++) {
            decoder->arg = tables->rows[i]->arg;
            tables->rows[i]->bind(decoder);
        }
    }
    if (!insn->run) {
        decoded->undefined = !decoded->too_long;
        insn->run = decoded->too_long ? op_privileged : op_undefined;
        decoder->ends_block = true;
    }
}

struct decode_result decode_text(struct soft_vcpu *v, unsigned size, unsigned max)
{
    struct soft_cache *cache = v->cache;
    struct decoder decoder = {.vm = v->vm, .v = v, .mode = v->mode};
    struct decode_result result = {0};
    unsigned count = decode_forward(v, size, max);
    bool again = count > 0;
    while (again) {
        again = false;
        flags_backward(cache->tables, cache->decoded, count);
        for (unsigned i = 0; i < count; i++) {
            decoder.insn = &cache->insns[i];
            struct decoded *decoded = &cache->decoded[i];
            bool barrier = is_barrier(cache->tables, decoded);
            bind_one(v, &decoder, decoded);
            bool inside = decoder.insn->flags & INSN_JCC && i + 1 < count;
            if (inside)
                branch_inside(decoder.insn);
            else if (decoded->undefined || decoder.ends_block || decoder.alone) {
                /* What it would have written counts for nothing; nor does what follows. */
                again = !barrier && (decoded->undefined || i + 1 < count);
                count = i + 1;
            }
        }
        result.alone = decoder.alone;
    }
    if (count == 0)
        return result;
    result.count = count;
    result.size = cache->decoded[count - 1].seen;
    unsigned end = cache->decoded[count - 1].end;
    /* The translator runs single handlers. */
    if (!v->jit && count >= 2 && cache->insns[count - 1].flags & INSN_JCC)
        alu_fuse(&cache->insns[count - 2], &cache->insns[count - 1]);
    cache->insns[count] = (struct insn){.run = result.alone ? op_stop : op_continue,
                                        .imm = end,
                                        .flags = INSN_LINK,
                                        .end = (uint8_t)end,
                                        .data = &cache->nowhere};
    return result;
}
