/*
 * A test picks mnemonics evenly, then a form, then randomizes registers, addressing, displacement
 * and immediate, and solves the address registers so that memory operands fall into the window,
 * often at its edges.
 */
#include "generator.h"

#include <string.h>

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

uint64_t window_address(uint64_t *random)
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
static bool taken(const struct maker *maker, int reg)
{
    return (maker->pinned | maker->written) >> reg & 1;
}

/* Chooses registers so that base + index * scale + disp is `target`. */
static bool aim(struct maker *maker, const ZydisDecodedOperand *operand, uint64_t target)
{
    uint64_t *gpr = maker->test->in.gpr;
    int base = gpr_number(operand->mem.base), index = gpr_number(operand->mem.index);
    uint64_t scale = operand->mem.scale ? operand->mem.scale : 1;
    uint64_t left = target - (uint64_t)operand->mem.disp.value;
    if (operand->mem.index != ZYDIS_REGISTER_NONE && index < 0) { /* a vector index: small steps */
        if (base < 0 || taken(maker, base))
            return false;
        gpr[base] = left;
        maker->pinned |= 1u << base;
        return true;
    }
    if (base >= 0 && base == index) {
        if (left % (1 + scale) || taken(maker, base))
            return false;
        gpr[base] = left / (1 + scale);
    } else if (base >= 0) {
        if (taken(maker, base) || (index >= 0 && (maker->written >> index & 1)))
            return false;
        if (index >= 0) {
            if (!taken(maker, index))
                gpr[index] = maker_random(maker) % 4096;
            maker->pinned |= 1u << index;
            left -= gpr[index] * scale;
        }
        gpr[base] = left;
    } else if (index >= 0) {
        if (left % scale || taken(maker, index))
            return false;
        gpr[index] = left / scale;
        maker->pinned |= 1u << index;
        return true;
    } else {
        return false;
    }
    maker->pinned |= 1u << base;
    return true;
}

/* What is being appended. */
struct candidate {
    uint8_t *code;
    ZydisDecodedInstruction insn;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
};

static bool is_base(const struct maker *maker, int reg)
{
    for (unsigned i = 0; i < maker->base_count; i++)
        if (maker->bases[i] == (unsigned)reg)
            return true;
    return false;
}

/* ModRM and what follows, anything. */
static void write_operands(struct maker *maker, const struct form *form, uint64_t bits,
                           uint8_t *code)
{
    unsigned at = form_write(form, bits, code);
    uint64_t r = maker_random(maker);
    code[at] = (uint8_t)((r & 3) << 6 | form->reg << 3 | (r >> 2 & 7));
    for (unsigned i = at + 1; i < at + 12; i++)
        code[i] = (uint8_t)maker_random(maker);
}

/* A memory operand of a block: a register that points into the window, perhaps an index with a
 * small number, a displacement. One that has 32 bits is made small later. */
static void write_near(struct maker *maker, const struct form *form, uint64_t bits, uint8_t *code)
{
    uint64_t r = maker_random(maker);
    unsigned base = maker->bases[r % maker->base_count], mod = 1 + (r >> 8 & 1), rm = base & 7;
    bool indexed = maker->index >= 0 && (r >> 9 & 3) == 0;
    if ((r >> 11 & 3) == 0 && rm != 5)
        mod = 0;
    bits &= ~(uint64_t)(FORM_X | FORM_B);
    bits |= base & 8 ? FORM_B : 0;
    bits |= indexed && maker->index & 8 ? FORM_X : 0;
    write_operands(maker, form, bits, code);
    unsigned at = form_write(form, bits, code);
    if (indexed || rm == 4) {
        unsigned index = indexed ? maker->index & 7 : 4;
        code[at + 1] = (uint8_t)((r >> 16 & 3) << 6 | index << 3 | rm);
        rm = 4;
    }
    code[at] = (uint8_t)(mod << 6 | form->reg << 3 | rm);
}

static bool write_candidate(struct maker *maker, ZydisMnemonic mnemonic,
                            struct candidate *candidate)
{
    const struct forms *forms = &maker->generator->by_mnemonic[mnemonic];
    if (forms->count == 0)
        return false;
    const struct form *form = &forms->list[maker_random(maker) % forms->count];
    struct test *test = maker->test;
    candidate->code = test->code + test->length;
    uint64_t bits = maker_random(maker);
    if (maker->block && maker->base_count && (bits >> 16) % 8 < 5)
        write_near(maker, form, bits, candidate->code);
    else
        write_operands(maker, form, bits, candidate->code);
    return !ZYAN_FAILED(ZydisDecoderDecodeFull(&maker->generator->decoder, candidate->code,
                                               ZYDIS_MAX_INSTRUCTION_LENGTH, &candidate->insn,
                                               candidate->operands)) &&
           (!maker->block || candidate->insn.mnemonic == mnemonic);
}

static bool segment_register(const ZydisDecodedOperand *operand)
{
    return operand->type == ZYDIS_OPERAND_TYPE_REGISTER &&
           ZydisRegisterGetClass(operand->reg.value) == ZYDIS_REGCLASS_SEGMENT &&
           ((operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) ||
            operand->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN);
}

/* Whether host and guest can be expected to agree on it. */
static bool comparable(const struct maker *maker, const struct candidate *candidate)
{
    const ZydisDecodedInstruction *insn = &candidate->insn;
    if (form_left_out(insn))
        return false;
    if (insn->attributes & (ZYDIS_ATTRIB_HAS_SEGMENT_FS | ZYDIS_ATTRIB_HAS_SEGMENT_GS))
        return false;
    /* Far branches look into the host's descriptor tables; near ones with an operand-size prefix,
     * and 0F 0D with a register, are what Intel and AMD disagree about. */
    if (insn->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ||
        (insn->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE &&
         (insn->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE)) ||
        (insn->opcode_map == ZYDIS_OPCODE_MAP_0F && insn->opcode == 0x0d &&
         insn->raw.modrm.mod == 3))
        return false;
    /* Zydis 4.0 reads 67 with REX.B and a SIB without base as if there were a base; so would aim().
     */
    if (insn->address_width == 32 && insn->raw.modrm.mod == 0 && insn->raw.modrm.rm == 4 &&
        insn->raw.sib.base == 5 && (insn->attributes & ZYDIS_ATTRIB_HAS_SIB))
        return false;
    if (maker->block && insn->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE && !maker->may_branch)
        return false;
    if (maker->block && insn->mnemonic == ZYDIS_MNEMONIC_PAUSE && insn->raw.rex.B)
        return false; /* what Zydis 4.0 calls so exchanges R8, perhaps a counter, with RAX */
    if (maker->block && insn->attributes & ZYDIS_ATTRIB_IS_PRIVILEGED && !maker->may_branch)
        return false; /* the end of every block */
    for (unsigned i = 0; i < insn->operand_count; i++) {
        const ZydisDecodedOperand *operand = &candidate->operands[i];
        if (segment_register(operand)) /* the host's selectors are its own */
            return false;
        if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY &&
            (operand->mem.segment == ZYDIS_REGISTER_FS ||
             operand->mem.segment == ZYDIS_REGISTER_GS))
            return false;
        if (operand->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && operand->imm.is_relative &&
            maker->test->length + insn->length + (uint64_t)operand->imm.value.s < TEST_CODE_MAX)
            return false; /* a branch into the test itself may never end */
    }
    const ZydisAccessedFlags *flags = insn->cpu_flags;
    return !flags || !((flags->tested & maker->test->undefined_flags) ||
                       (maker->keep_flags && flags->undefined));
}

/* Writes a displacement of 8 or 32 bits; it is part of the operand too, for aim(). */
static void displace(struct candidate *candidate, ZydisDecodedOperand *operand, int32_t value)
{
    const ZydisDecodedInstruction *insn = &candidate->insn;
    memcpy(candidate->code + insn->raw.disp.offset, &value, insn->raw.disp.size / 8);
    operand->mem.disp.value = value;
}

/* An address that needs no register: relative to RIP, or absolute. False where it is neither. */
static bool place_fixed(struct maker *maker, struct candidate *candidate,
                        ZydisDecodedOperand *operand)
{
    const ZydisDecodedInstruction *insn = &candidate->insn;
    const struct test *test = maker->test;
    uint64_t target = window_address(&maker->random);
    if (operand->mem.base == ZYDIS_REGISTER_RIP && insn->raw.disp.size == 32)
        displace(candidate, operand,
                 (int32_t)(target - (test->in.rip + test->length + insn->length)));
    else if (operand->mem.base == ZYDIS_REGISTER_NONE &&
             operand->mem.index == ZYDIS_REGISTER_NONE && insn->raw.disp.size == 32)
        displace(candidate, operand, (int32_t)target);
    else if (operand->mem.base == ZYDIS_REGISTER_NONE &&
             operand->mem.index == ZYDIS_REGISTER_NONE && insn->raw.disp.size == 64)
        memcpy(candidate->code + insn->raw.disp.offset, &target, sizeof target);
    else
        return false;
    return true;
}

/* A pinned base has its value; what is added to it must be small. */
static bool near_enough(struct maker *maker, struct candidate *candidate,
                        ZydisDecodedOperand *operand)
{
    int index = gpr_number(operand->mem.index);
    bool small = operand->mem.index == ZYDIS_REGISTER_NONE ||
                 operand->mem.index == ZYDIS_REGISTER_AL || (index >= 0 && index == maker->index);
    if (!small)
        return false;
    uint64_t r = maker_random(maker);
    int32_t value = (int32_t)(r % 256) - 128;
    if (operand->size >= 128 && (r >> 8) % 8) /* most of these must be aligned */
        value &= ~15;
    if (operand->mem.disp.has_displacement)
        displace(candidate, operand, value);
    return true;
}

static bool place(struct maker *maker, struct candidate *candidate, ZydisDecodedOperand *operand)
{
    int base = gpr_number(operand->mem.base);
    if (operand->mem.type == ZYDIS_MEMOP_TYPE_AGEN && maker_random(maker) % 2)
        return true; /* LEA may compute what it likes */
    if (place_fixed(maker, candidate, operand))
        return true;
    if (maker->block && base >= 0 && (is_base(maker, base) || base == 4))
        return near_enough(maker, candidate, operand);
    uint64_t target = window_address(&maker->random);
    if (maker->block && operand->size >= 128 && maker_random(maker) % 8)
        target &= ~UINT64_C(15);
    if (aim(maker, operand, target))
        return true;
    return maker->block && maker_random(maker) % 32 == 0;
}

/* PUSH and POP, but not LEAVE. */
static bool moves_stack(const struct maker *maker, const struct candidate *candidate,
                        const ZydisDecodedOperand *operand, int reg)
{
    return reg == 4 && operand->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN &&
           candidate->insn.mnemonic != ZYDIS_MNEMONIC_LEAVE && !maker->keep_stack;
}

/* RSI and RDI of a string instruction move on. */
static bool moves_on(const struct candidate *candidate, const ZydisDecodedOperand *operand, int reg)
{
    for (unsigned i = 0; i < candidate->insn.operand_count; i++)
        if (candidate->operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY && (reg == 6 || reg == 7) &&
            candidate->operands[i].visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN &&
            gpr_number(candidate->operands[i].mem.base) == reg &&
            operand->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
            return true;
    return false;
}

/* Registers that it may change; false where one of them is pinned. Zydis shows the operands of
 * string instructions and PUSH as hidden ones. */
static bool results(const struct maker *maker, const struct candidate *candidate,
                    uint32_t *ret_written)
{
    *ret_written = 0;
    for (unsigned i = 0; maker->block && i < candidate->insn.operand_count; i++) {
        const ZydisDecodedOperand *operand = &candidate->operands[i];
        if (operand->type != ZYDIS_OPERAND_TYPE_REGISTER ||
            !(operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
            continue;
        int reg = gpr_number(operand->reg.value);
        if (reg < 0 || moves_stack(maker, candidate, operand, reg) ||
            moves_on(candidate, operand, reg))
            continue;
        if (maker->pinned >> reg & 1)
            return false;
        *ret_written |= 1u << reg;
    }
    return true;
}

static bool repeats(const ZydisDecodedInstruction *insn)
{
    return insn->attributes &
           (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE);
}

/* Shifts by 0 and string loops of no turn leave the flags as they are. */
static bool surely_sets_flags(const ZydisDecodedInstruction *insn)
{
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RCL:
    case ZYDIS_MNEMONIC_RCR:
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD: return false;
    default: return !repeats(insn);
    }
}

static bool masked_store(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ: return true;
    default: return false;
    }
}

static void take(struct maker *maker, const struct candidate *candidate, uint32_t written)
{
    struct test *test = maker->test;
    const ZydisDecodedInstruction *insn = &candidate->insn;
    const ZydisAccessedFlags *flags = insn->cpu_flags;
    if (insn->mnemonic == ZYDIS_MNEMONIC_ENTER)
        candidate->code[insn->length - 1] &= 7;
    if (flags) {
        if (surely_sets_flags(insn))
            test->undefined_flags &= ~(flags->modified | flags->set_0 | flags->set_1);
        test->undefined_flags |= flags->undefined;
        test->undefined_ever |= flags->undefined;
    }
    test->any_byte_faults |= masked_store(insn->mnemonic);
    test->mnemonic = insn->mnemonic;
    test->length += insn->length;
    test->insns++;
    maker->pinned &= ~written; /* an address that it overwrote itself, as MOV RAX, [RAX] does */
    maker->written |= written;
}

bool maker_append(struct maker *maker, ZydisMnemonic mnemonic)
{
    struct candidate candidate;
    uint32_t written;
    if (!write_candidate(maker, mnemonic, &candidate) || !comparable(maker, &candidate) ||
        !results(maker, &candidate, &written))
        return false;
    for (unsigned i = 0; i < candidate.insn.operand_count; i++)
        if (candidate.operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY &&
            !place(maker, &candidate, &candidate.operands[i]))
            return false;
    /* String loops need sane counts; one that knows its count is over soon. */
    if (repeats(&candidate.insn) && !taken(maker, 1))
        maker->test->in.gpr[1] = maker_random(maker) % 96;
    else if (repeats(&candidate.insn) && maker->block && maker_random(maker) % 4)
        return false;
    take(maker, &candidate, written);
    return true;
}

static void random_registers(struct maker *maker, unsigned insns)
{
    struct registers *in = &maker->test->in;
    for (unsigned i = 0; i < 16; i++)
        in->gpr[i] = interesting(&maker->random);
    in->gpr[4] = window_address(&maker->random) & ~UINT64_C(7);
    random_vectors(&maker->random, in);
    uint64_t r = maker_random(maker);
    in->rflags = (r & 0x8d5) | 0x202; /* the six; DF sometimes */
    if ((r >> 16) % 8 == 0)
        in->rflags |= 0x400;
    in->rip = CODE_AT + 1024 + (r >> 32) % 2048;
    if ((r >> 20) % 8 == 0) /* across the two pages */
        in->rip = CODE_AT + 4096 - (r >> 32) % (16 * insns);
    else if ((r >> 20) % 64 == 1) /* into nothing */
        in->rip = CODE_AT + CODE_SIZE - (r >> 32) % 32;
}

static bool single_make(struct maker *maker)
{
    const struct generator *generator = maker->generator;
    for (unsigned tries = 0; tries < 40; tries++)
        if (maker_append(maker,
                         generator->mnemonics[maker_random(maker) % generator->mnemonic_count])) {
            maker->test->end = maker->test->length;
            return true;
        }
    return false;
}

void generator_make(struct generator *generator, uint64_t seed, unsigned insns, struct test *test)
{
    struct maker maker = {.generator = generator, .random = seed, .test = test};
    do {
        memset(test, 0, sizeof *test);
        test->memory_seed = maker_random(&maker);
        test->warm = test->memory_seed & 1;
        test->runs = (test->memory_seed >> 1 & 3) == 0 ? 2 : 1;
        maker.pinned = maker.written = 0;
        maker.block = false;
        random_registers(&maker, insns);
    } while (!(insns > 1 ? block_make(&maker, insns) : single_make(&maker)));
}
