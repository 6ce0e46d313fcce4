/*
 * Instructions over the decoder's own tables. At start every opcode of every map, with every
 * mandatory prefix, REX.W or VEX.W and L, and every ModRM.reg, is offered to Zydis; what it accepts
 * and ring 3 may run is filed under its mnemonic. A test picks mnemonics evenly, then a form, then
 * randomizes registers, addressing, displacement and immediate, and solves the address registers so
 * that memory operands fall into the window, often at its edges.
 */
#include "differential.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct form {
    uint8_t prefix; /* 0, 66, F2, F3; for VEX the pp field */
    uint8_t map;    /* 0 one byte, 1 0F, 2 0F38, 3 0F3A */
    uint8_t opcode, reg;
    bool vex, w, l, lock;
};

struct forms {
    struct form *list;
    unsigned count, room;
};

struct generator {
    ZydisDecoder decoder;
    struct forms by_mnemonic[ZYDIS_MNEMONIC_MAX_VALUE + 1];
    ZydisMnemonic mnemonics[ZYDIS_MNEMONIC_MAX_VALUE + 1];
    unsigned mnemonic_count;
};

/* What ring 3 cannot run to a comparable end, or what answers differently by nature. */
static bool left_out(const ZydisDecodedInstruction *insn)
{
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_CPUID: /* the guest has a CPU of its own */
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_RDPID:
    case ZYDIS_MNEMONIC_RDRAND:
    case ZYDIS_MNEMONIC_RDSEED:
    case ZYDIS_MNEMONIC_XGETBV:
    case ZYDIS_MNEMONIC_MASKMOVQ: /* whether and where a masked store faults is the model's choice
                                   */
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
    case ZYDIS_MNEMONIC_SYSCALL: /* the host's kernel would answer */
    case ZYDIS_MNEMONIC_SYSENTER:
    case ZYDIS_MNEMONIC_SYSEXIT:
    case ZYDIS_MNEMONIC_SYSRET:
    case ZYDIS_MNEMONIC_INT:
    case ZYDIS_MNEMONIC_INT1:
    case ZYDIS_MNEMONIC_VMCALL: /* a hypervisor under the host might */
    case ZYDIS_MNEMONIC_VMMCALL:
    case ZYDIS_MNEMONIC_VMFUNC:
    case ZYDIS_MNEMONIC_ENCLU:
    case ZYDIS_MNEMONIC_WRFSBASE: /* the C library's own thread pointer */
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE: /* differ in what they start from */
    case ZYDIS_MNEMONIC_WRGSBASE:
    case ZYDIS_MNEMONIC_LAR: /* look into the host's descriptor tables */
    case ZYDIS_MNEMONIC_LSL:
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW:
    case ZYDIS_MNEMONIC_SGDT:
    case ZYDIS_MNEMONIC_SIDT:
    case ZYDIS_MNEMONIC_SLDT:
    case ZYDIS_MNEMONIC_STR:
    case ZYDIS_MNEMONIC_SMSW:
    case ZYDIS_MNEMONIC_LFS:
    case ZYDIS_MNEMONIC_LGS:
    case ZYDIS_MNEMONIC_LSS:
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
    case ZYDIS_MNEMONIC_POPF: /* TF, AC, ID: the signal frame is no fair witness */
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ:
    case ZYDIS_MNEMONIC_PUSHF: /* shows RF and the like */
    case ZYDIS_MNEMONIC_PUSHFD:
    case ZYDIS_MNEMONIC_PUSHFQ:
    case ZYDIS_MNEMONIC_IN: /* the host may grant ports; ours does not: tested by guests */
    case ZYDIS_MNEMONIC_OUT:
    case ZYDIS_MNEMONIC_INSB:
    case ZYDIS_MNEMONIC_INSW:
    case ZYDIS_MNEMONIC_INSD:
    case ZYDIS_MNEMONIC_OUTSB:
    case ZYDIS_MNEMONIC_OUTSW:
    case ZYDIS_MNEMONIC_OUTSD:
    case ZYDIS_MNEMONIC_XSAVE: /* native_test.c and the guests test these */
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVES: /* hidden: #UD there, #GP here */
    case ZYDIS_MNEMONIC_XSAVES64:
    case ZYDIS_MNEMONIC_XRSTORS:
    case ZYDIS_MNEMONIC_XRSTORS64:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_FNSAVE: /* instruction and data pointers */
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_STAC: /* ring 3: #UD on the host, tested by guests */
    case ZYDIS_MNEMONIC_CLAC:
    case ZYDIS_MNEMONIC_SERIALIZE:
    case ZYDIS_MNEMONIC_MONITOR:
    case ZYDIS_MNEMONIC_MWAIT:
    case ZYDIS_MNEMONIC_MONITORX:
    case ZYDIS_MNEMONIC_MWAITX:
    case ZYDIS_MNEMONIC_CLZERO:
    case ZYDIS_MNEMONIC_UMONITOR:
    case ZYDIS_MNEMONIC_UMWAIT:
    case ZYDIS_MNEMONIC_TPAUSE:
    case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_RDPRU:
    case ZYDIS_MNEMONIC_RDPKRU:
    case ZYDIS_MNEMONIC_WRPKRU:
    case ZYDIS_MNEMONIC_MCOMMIT:
    case ZYDIS_MNEMONIC_PSMASH:
    case ZYDIS_MNEMONIC_INVLPGB: return true;
    default: break;
    }
    const ZydisISAExt ext = insn->meta.isa_ext;
    switch (ext) { /* hidden from the guest: there they are #UD, here they run */
    case ZYDIS_ISA_EXT_AVX512VEX:
    case ZYDIS_ISA_EXT_SSE4A:
    case ZYDIS_ISA_EXT_AMD3DNOW:
    case ZYDIS_ISA_EXT_TBM:
    case ZYDIS_ISA_EXT_XOP:
    case ZYDIS_ISA_EXT_FMA4:
    case ZYDIS_ISA_EXT_MPX:
    case ZYDIS_ISA_EXT_CET:
    case ZYDIS_ISA_EXT_RTM:
    case ZYDIS_ISA_EXT_GFNI:
    case ZYDIS_ISA_EXT_VAES:
    case ZYDIS_ISA_EXT_VPCLMULQDQ:
    case ZYDIS_ISA_EXT_MOVDIR:
    case ZYDIS_ISA_EXT_PKU:
    case ZYDIS_ISA_EXT_AMX_TILE:
    case ZYDIS_ISA_EXT_UINTR:
    case ZYDIS_ISA_EXT_HRESET:
    case ZYDIS_ISA_EXT_KEYLOCKER:
    case ZYDIS_ISA_EXT_KEYLOCKER_WIDE:
    case ZYDIS_ISA_EXT_ENQCMD:
    case ZYDIS_ISA_EXT_SNP:
    case ZYDIS_ISA_EXT_SVM:
    case ZYDIS_ISA_EXT_VTX:
    case ZYDIS_ISA_EXT_CLDEMOTE:
    case ZYDIS_ISA_EXT_AVX_VNNI:
    case ZYDIS_ISA_EXT_RDPRU:
    case ZYDIS_ISA_EXT_MONITOR:
    case ZYDIS_ISA_EXT_MONITORX: return true;
    default: break;
    }
    return insn->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ||
           insn->encoding == ZYDIS_INSTRUCTION_ENCODING_MVEX ||
           insn->encoding == ZYDIS_INSTRUCTION_ENCODING_XOP;
}

/* Writes a form with the given ModRM and tail; returns where ModRM is, or -1 for an opcode without.
 */
static unsigned write_form(const struct form *form, uint64_t bits, uint8_t *code)
{
    unsigned n = 0;
    uint8_t r = bits & 1, x = bits >> 1 & 1, b = bits >> 2 & 1, v = bits >> 3 & 15;
    if (form->vex) {
        code[n++] = 0xc4;
        code[n++] = (uint8_t)(!r << 7 | !x << 6 | !b << 5 | form->map);
        code[n++] = (uint8_t)(form->w << 7 | (v ^ 15) << 3 | form->l << 2 | form->prefix);
    } else {
        if (form->lock)
            code[n++] = 0xf0;
        if (form->prefix)
            code[n++] = form->prefix;
        if (form->w || r || x || b || (bits >> 7 & 7) == 0)
            code[n++] = (uint8_t)(0x40 | form->w << 3 | r << 2 | x << 1 | b);
        if (form->map >= 1)
            code[n++] = 0x0f;
        if (form->map == 2)
            code[n++] = 0x38;
        if (form->map == 3)
            code[n++] = 0x3a;
    }
    code[n++] = form->opcode;
    return n;
}

static void offer(struct generator *generator, const struct form *form, const char *only)
{
    for (unsigned mod = 0; mod < 4; mod += 3) {
        uint8_t code[32] = {0};
        unsigned at = write_form(form, UINT64_C(1) << 7 | UINT64_C(0) << 3, code);
        code[at] = (uint8_t)(mod << 6 | form->reg << 3 | 3);
        ZydisDecodedInstruction insn;
        if (ZYAN_FAILED(ZydisDecoderDecodeInstruction(&generator->decoder, NULL, code, sizeof code,
                                                      &insn)) ||
            left_out(&insn))
            continue;
        if (only && strcmp(ZydisMnemonicGetString(insn.mnemonic), only) != 0)
            continue;
        struct forms *forms = &generator->by_mnemonic[insn.mnemonic];
        if (forms->count == forms->room) {
            forms->room = forms->room ? forms->room * 2 : 16;
            forms->list = reallocarray(forms->list, forms->room, sizeof *forms->list);
        }
        forms->list[forms->count++] = *form;
        return;
    }
}

struct generator *generator_new(const char *only)
{
    struct generator *generator = calloc(1, sizeof *generator);
    ZydisDecoderInit(&generator->decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    const uint8_t prefixes[] = {0, 0x66, 0xf2, 0xf3};
    struct form form;
    for (unsigned n = 0; n < 1u << 18; n++) {
        form = (struct form){.opcode = (uint8_t)n,
                             .reg = n >> 8 & 7,
                             .map = n >> 11 & 3,
                             .w = n >> 13 & 1,
                             .prefix = prefixes[n >> 14 & 3],
                             .lock = n >> 16 & 1};
        if (n < 1u << 17)
            offer(generator, &form, only);
        form.vex = true;
        form.prefix = n >> 14 & 3;
        form.l = n >> 16 & 1;
        form.lock = false;
        if (form.map && n < 1u << 17)
            offer(generator, &form, only);
    }
    for (unsigned i = 0; i <= ZYDIS_MNEMONIC_MAX_VALUE; i++)
        if (generator->by_mnemonic[i].count)
            generator->mnemonics[generator->mnemonic_count++] = i;
    return generator;
}

void generator_free(struct generator *generator)
{
    for (unsigned i = 0; i <= ZYDIS_MNEMONIC_MAX_VALUE; i++)
        free(generator->by_mnemonic[i].list);
    free(generator);
}

unsigned generator_mnemonics(const struct generator *generator)
{
    return generator->mnemonic_count;
}

void window_fill(uint64_t seed, uint8_t *memory, size_t size)
{
    for (size_t i = 0; i < size; i += 64) {
        uint64_t state = seed + i / 64 % 16; /* repeats: quick to make, easy to tell apart */
        for (size_t j = 0; j < 64; j += 8) {
            uint64_t value = random_next(&state);
            memcpy(memory + i + j, &value, sizeof value);
        }
    }
}

static uint64_t interesting(uint64_t *random)
{
    static const uint64_t values[] = {0,
                                      1,
                                      2,
                                      0x7f,
                                      0x80,
                                      0xff,
                                      0x7fff,
                                      0x8000,
                                      0xffff,
                                      0x7fffffff,
                                      0x80000000,
                                      0xffffffff,
                                      INT64_MAX,
                                      UINT64_C(1) << 63,
                                      UINT64_MAX,
                                      0x3f800000,
                                      UINT64_C(0x3ff0000000000000),
                                      UINT64_C(0x7ff0000000000000),
                                      UINT64_C(0x7ff8000000000000),
                                      0x7f800001};
    uint64_t r = random_next(random);
    if (r % 3 == 0)
        return values[r / 3 % (sizeof values / sizeof *values)];
    if (r % 3 == 1)
        return random_next(random) >> (r / 3 % 64);
    return random_next(random);
}

/* An address in the window, its edges preferred. */
static uint64_t window_address(uint64_t *random)
{
    uint64_t r = random_next(random);
    uint64_t offset = r >> 8;
    switch (r % 8) {
    case 0: return WINDOW_AT + 4096 - offset % 64;                  /* across two pages */
    case 1: return WINDOW_AT + WINDOW_WRITABLE - offset % 64;       /* into read-only */
    case 2: return WINDOW_AT + WINDOW_SIZE - offset % 64;           /* into nothing */
    case 3: return WINDOW_AT - offset % 64;                         /* from nothing */
    case 4: return WINDOW_AT + (offset % WINDOW_WRITABLE & ~63ull); /* well aligned */
    default: return WINDOW_AT + offset % (WINDOW_WRITABLE - 128);
    }
}

static int gpr_number(ZydisRegister reg)
{
    if (reg == ZYDIS_REGISTER_NONE)
        return -1;
    ZydisRegister whole = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
    if (whole < ZYDIS_REGISTER_RAX || whole > ZYDIS_REGISTER_R15)
        return -1;
    return whole - ZYDIS_REGISTER_RAX;
}

/* Chooses registers so that base + index * scale + disp is `target`. */
static bool aim(const ZydisDecodedOperand *operand, uint64_t target, uint64_t *random,
                uint64_t *gpr, uint32_t *fixed)
{
    int base = gpr_number(operand->mem.base), index = gpr_number(operand->mem.index);
    uint64_t scale = operand->mem.scale ? operand->mem.scale : 1;
    uint64_t left = target - (uint64_t)operand->mem.disp.value;
    if (operand->mem.index != ZYDIS_REGISTER_NONE && index < 0) { /* a vector index: small steps */
        if (base < 0 || (*fixed >> base & 1))
            return false;
        gpr[base] = left;
        *fixed |= 1u << base;
        return true;
    }
    if (base >= 0 && base == index) {
        if (left % (1 + scale) || (*fixed >> base & 1))
            return false;
        gpr[base] = left / (1 + scale);
    } else if (base >= 0) {
        if (*fixed >> base & 1)
            return false;
        if (index >= 0) {
            if (!(*fixed >> index & 1))
                gpr[index] = random_next(random) % 4096;
            *fixed |= 1u << index;
            left -= gpr[index] * scale;
        }
        gpr[base] = left;
    } else if (index >= 0) {
        if (left % scale || (*fixed >> index & 1))
            return false;
        gpr[index] = left / scale;
        *fixed |= 1u << index;
        return true;
    } else {
        return false;
    }
    *fixed |= 1u << base;
    return true;
}

static uint64_t vector_part(uint64_t *random)
{
    uint64_t r = random_next(random);
    if (r % 4 == 0)
        return interesting(random);
    if (r % 4 == 1) { /* two floats of modest size */
        float pair[2] = {(float)(int32_t)random_next(random) / 1024,
                         (float)(int16_t)random_next(random)};
        uint64_t value;
        memcpy(&value, pair, sizeof value);
        return value;
    }
    if (r % 4 == 2) {
        double number = (double)(int64_t)random_next(random) / 65536;
        uint64_t value;
        memcpy(&value, &number, sizeof value);
        return value;
    }
    return random_next(random);
}

static void random_vectors(uint64_t *random, struct registers *in)
{
    static const uint16_t control = 0x37f;
    static const uint32_t mxcsr = 0x1f80;
    memset(in->legacy, 0, sizeof in->legacy);
    memcpy(in->legacy, &control, sizeof control);
    memcpy(in->legacy + 24, &mxcsr, sizeof mxcsr);
    for (unsigned i = 0; i < 8; i++) { /* x87 stack: full, valid numbers and some patterns */
        uint64_t mantissa = random_next(random) | UINT64_C(1) << 63;
        uint16_t exponent = (uint16_t)(0x3fff - 20 + random_next(random) % 40) |
                            (uint16_t)(random_next(random) % 2 << 15);
        memcpy(in->legacy + 32 + i * 16, &mantissa, sizeof mantissa);
        memcpy(in->legacy + 32 + i * 16 + 8, &exponent, sizeof exponent);
    }
    in->legacy[4] = (uint8_t)random_next(random); /* which are in use */
    in->legacy[3] = (uint8_t)(random_next(random) & 0x38);
    for (unsigned i = 0; i < 32; i++) {
        uint64_t value = vector_part(random);
        memcpy(in->legacy + 160 + i * 8, &value, sizeof value);
        value = vector_part(random);
        memcpy(&in->upper[i / 2][i % 2 * 8], &value, sizeof value);
    }
}

/* Appends one instruction; false when this try cannot be aimed or compared. */
static bool append(struct generator *generator, uint64_t *random, struct test *test,
                   uint32_t *fixed)
{
    ZydisMnemonic mnemonic = generator->mnemonics[random_next(random) % generator->mnemonic_count];
    const struct forms *forms = &generator->by_mnemonic[mnemonic];
    const struct form *form = &forms->list[random_next(random) % forms->count];
    uint8_t *code = test->code + test->length;
    uint64_t bits = random_next(random);
    unsigned at = write_form(form, bits, code);
    uint64_t r = random_next(random);
    code[at] = (uint8_t)((r & 3) << 6 | form->reg << 3 | (r >> 2 & 7));
    for (unsigned i = at + 1; i < at + 12 && test->length + i < TEST_CODE_MAX; i++)
        code[i] = (uint8_t)random_next(random);

    ZydisDecodedInstruction insn;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    if (ZYAN_FAILED(ZydisDecoderDecodeFull(&generator->decoder, code, TEST_CODE_MAX - test->length,
                                           &insn, operands)) ||
        left_out(&insn))
        return false;
    if (insn.attributes & (ZYDIS_ATTRIB_HAS_SEGMENT_FS | ZYDIS_ATTRIB_HAS_SEGMENT_GS))
        return false;
    /* Far branches look into the host's descriptor tables; near ones with an operand-size prefix,
     * and 0F 0D with a register, are what Intel and AMD disagree about. */
    if (insn.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ||
        (insn.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE &&
         (insn.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE)) ||
        (insn.opcode_map == ZYDIS_OPCODE_MAP_0F && insn.opcode == 0x0d && insn.raw.modrm.mod == 3))
        return false;
    /* Zydis 4.0 reads 67 with REX.B and a SIB without base as if there were a base; so would aim().
     */
    if (insn.address_width == 32 && insn.raw.modrm.mod == 0 && insn.raw.modrm.rm == 4 &&
        insn.raw.sib.base == 5 && (insn.attributes & ZYDIS_ATTRIB_HAS_SIB))
        return false;
    const ZydisAccessedFlags *flags = insn.cpu_flags;
    if (flags && (flags->tested & test->undefined_flags))
        return false;

    uint64_t *gpr = test->in.gpr;
    for (unsigned i = 0; i < insn.operand_count; i++) {
        const ZydisDecodedOperand *operand = &operands[i];
        if (operand->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && operand->imm.is_relative &&
            test->length + insn.length + (uint64_t)operand->imm.value.s < TEST_CODE_MAX)
            return false; /* a branch into the test itself may never end */
        if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER &&
            (operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
            ZydisRegisterGetClass(operand->reg.value) == ZYDIS_REGCLASS_SEGMENT)
            return false;
        if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(operand->reg.value) == ZYDIS_REGCLASS_SEGMENT &&
            operand->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN)
            return false; /* MOV or PUSH of a segment register: the host's selectors are its own */
        if (operand->type != ZYDIS_OPERAND_TYPE_MEMORY)
            continue;
        if (operand->mem.segment == ZYDIS_REGISTER_FS || operand->mem.segment == ZYDIS_REGISTER_GS)
            return false;
        if (operand->mem.base == ZYDIS_REGISTER_RIP) {
            int32_t wanted =
                (int32_t)(window_address(random) - (test->in.rip + test->length + insn.length));
            if (insn.raw.disp.size != 32)
                return false;
            memcpy(code + insn.raw.disp.offset, &wanted, sizeof wanted);
            continue;
        }
        uint64_t target = window_address(random);
        if (operand->mem.type == ZYDIS_MEMOP_TYPE_AGEN && (r & 0x100))
            continue;
        if (!aim(operand, target, random, gpr, fixed)) {
            /* A second instruction on the same base runs into what the first one left there. */
            if (test->insns == 0)
                return false;
        }
    }
    /* String loops and the stack need sane counts and places. */
    if (insn.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE))
        if (!(*fixed >> 1 & 1)) {
            gpr[1] = random_next(random) % 96;
            *fixed |= 2;
        }
    if (insn.mnemonic == ZYDIS_MNEMONIC_ENTER)
        code[insn.length - 1] &= 7;
    /* A register that a later branch of this test overwrites must not become undefined. */
    if (flags)
        test->undefined_flags =
            (test->undefined_flags & ~(flags->modified | flags->set_0 | flags->set_1)) |
            flags->undefined;
    if (flags)
        test->undefined_ever |= flags->undefined;
    test->mnemonic = insn.mnemonic;
    test->length += insn.length;
    test->insns++;
    return true;
}

void generator_make(struct generator *generator, uint64_t seed, unsigned insns, struct test *test)
{
    uint64_t random = seed;
    for (;;) {
        memset(test, 0, sizeof *test);
        test->memory_seed = random_next(&random);
        for (unsigned i = 0; i < 16; i++)
            test->in.gpr[i] = interesting(&random);
        test->in.gpr[4] = window_address(&random) & ~UINT64_C(7);
        random_vectors(&random, &test->in);
        uint64_t r = random_next(&random);
        test->in.rflags = (r & 0x8d5) | 0x202; /* the six; DF sometimes */
        if ((r >> 16) % 8 == 0)
            test->in.rflags |= 0x400;
        test->in.rip = CODE_AT + 1024 + (r >> 32) % 2048;
        uint32_t fixed = 0;
        for (unsigned tries = 0; test->insns < insns && tries < 40; tries++)
            append(generator, &random, test, &fixed);
        if (test->insns == insns)
            return;
    }
}
