/*
 * Every instruction form of op_vector_rows and op_fpu_rows that the decoder knows is run twice, by
 * its handler and as it is (native_host.h), from the same random state; registers, flags, memory,
 * x87 state and exceptions must be equal. The rest of the engine is replaced by flat memory.
 */
#include "cpu/soft/native_host.h"
#include "cpu/soft/native_stub.h"

#include <cpuid.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- the rest of the engine ---- */

static struct soft_vm vm;
static struct soft_vcpu *vcpu;
static uint64_t raised_payload;
static uint32_t raised_error;

_Noreturn void soft_raise(struct soft_vcpu *v, const struct insn *insn, enum vector vector)
{
    v->raised.insn = insn;
    v->raised.vector = (uint8_t)vector;
    longjmp(v->unwind, 1);
}

_Noreturn void soft_raise_error(struct soft_vcpu *v, const struct insn *insn, enum vector vector,
                                uint32_t error)
{
    raised_error = error;
    soft_raise(v, insn, vector);
}

_Noreturn void soft_raise_payload(struct soft_vcpu *v, const struct insn *insn, enum vector vector,
                                  uint32_t error, uint64_t payload)
{
    raised_payload = payload;
    soft_raise_error(v, insn, vector, error);
}

void op_undefined(struct soft_vcpu *v, const struct insn *insn)
{
    soft_raise(v, insn, VECTOR_UD);
}

void op_no_device(struct soft_vcpu *v, const struct insn *insn)
{
    soft_raise(v, insn, VECTOR_NM);
}

static uint8_t *flat(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, unsigned size,
                     unsigned seg)
{
    if ((uint64_t)((int64_t)(linear << 16) >> 16) != linear)
        soft_raise_error(v, insn, seg == CPU_SS ? VECTOR_SS : VECTOR_GP, 0);
    if (!range_fits(linear - HOST_DATA_AT, size, HOST_DATA_SIZE))
        soft_raise_payload(v, insn, VECTOR_PF, 4, linear);
    return (uint8_t *)linear;
}

void soft_load_bytes(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, void *to,
                     unsigned size, unsigned seg)
{
    memcpy(to, flat(v, insn, linear, size, seg), size);
}

void soft_store_bytes(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                      const void *from, unsigned size, unsigned seg)
{
    memcpy(flat(v, insn, linear, size, seg), from, size);
}

void soft_probe_write(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, unsigned size,
                      unsigned seg)
{
    flat(v, insn, linear, size, seg);
}

uint64_t soft_load_slow(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                        unsigned size, unsigned seg)
{
    uint64_t value = 0;
    soft_load_bytes(v, insn, linear, &value, size, seg);
    return value;
}

void soft_store_slow(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, unsigned size,
                     unsigned seg, uint64_t value)
{
    soft_store_bytes(v, insn, linear, &value, size, seg);
}

void *soft_rmw_slow(struct soft_vcpu *v, const struct insn *insn, uint64_t linear, unsigned size,
                    unsigned seg)
{
    flat(v, insn, linear, size, seg);
    return NULL;
}

void soft_segment_check(struct soft_vcpu *v, const struct insn *insn, unsigned seg, uint64_t offset,
                        unsigned size, bool write)
{
    (void)write;
    if (offset + size > 0x10000)
        soft_raise_error(v, insn, seg == CPU_SS ? VECTOR_SS : VECTOR_GP, 0);
}

/* ---- random state ---- */

static uint64_t random_seed = 1;

static uint64_t random_64(void)
{
    random_seed += 0x9e3779b97f4a7c15; /* splitmix64 */
    uint64_t z = random_seed;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static unsigned random_below(unsigned bound)
{
    return (unsigned)(random_64() >> 33) % bound;
}

static uint64_t random_value(void)
{
    static const uint64_t special[] = {
        0,
        1,
        UINT64_MAX,
        0x8000000000000000,
        0x3ff0000000000000, /* 1.0 */
        0x3f8000003f800000, /* 1.0f twice */
        0x7ff8000000000001, /* quiet and signalling NaN */
        0x7ff0000000000001,
        0x7f8000017fc00001,
        0x7ff0000000000000, /* infinity, denormals, the largest */
        0x7f800000ff800000,
        0x0000000000000123,
        0x0000012380000456,
        0x7fefffffffffffff,
        0x7f7fffffff7fffff,
        0x0000000041414141,
        0x00ff00ff8000807f,
    };
    switch (random_below(5)) {
    case 0: return special[random_below(ARRAY_LEN(special))];
    case 1: return random_below(256);
    case 2: /* doubles around 1 */
        return (0x3f00 + (uint64_t)random_below(512)) << 48 | random_64() >> 16 |
               (uint64_t)random_below(2) << 63;
    case 3: /* floats around 1 */
        return ((random_64() & 0x83ffffff83ffffff) | 0x3c0000003c000000);
    default: return random_64();
    }
}

static void random_fx(uint8_t *fx, bool unmasked)
{
    memset(fx, 0, 512);
    le16_write(fx, (uint16_t)(0x37f & (0xf0ff | random_below(16) << 8)));
    le16_write(fx, (uint16_t)((le16_read(fx) & 0xf0ff) | random_below(4) << 10 |
                              (random_below(4) ? 0x300 : 0x200)));
    le16_write(fx + 2, (uint16_t)(random_below(8) << 11 | (random_64() & 0x4700)));
    fx[4] = (uint8_t)(random_below(2) ? random_64() | random_64() : 0);
    uint32_t mxcsr = NATIVE_MXCSR_INIT;
    if (random_below(3) == 0)
        mxcsr |= random_64() & 0xe07f; /* rounding, FTZ, DAZ, old status */
    if (unmasked) {
        mxcsr &= ~(random_64() & 0x1f80);
        mxcsr &= ~(uint32_t)0x3f;
        le16_write(fx, (uint16_t)(le16_read(fx) & ~(random_64() & 0x3f)));
        if (random_below(3) == 0)
            le16_write(fx + 2, (uint16_t)(le16_read(fx + 2) | (random_64() & 0x3f)));
    }
    le32_write(fx + 24, mxcsr);
    le32_write(fx + 28, NATIVE_MXCSR_MASK);
    for (unsigned i = 0; i < 8; i++) {
        uint64_t mantissa = random_value();
        uint16_t exponent = (uint16_t)(0x3fff - 40 + random_below(80));
        if (random_below(2))
            mantissa |= UINT64_C(1) << 63;
        if (random_below(6) == 0)
            exponent = random_below(2) ? 0x7fff : 0;
        le64_write(fx + 32 + 16 * i, mantissa);
        le16_write(fx + 40 + 16 * i, (uint16_t)(exponent | (random_64() & 0x8000)));
    }
}

static void random_state(struct host_state *state, bool unmasked)
{
    for (unsigned i = 0; i < 16; i++)
        state->gpr[i] = random_value();
    state->rflags = 0x202 | (random_64() & RFLAG_ARITHMETIC);
    random_fx(state->fx, unmasked);
    for (unsigned i = 0; i < 16; i++)
        for (unsigned k = 0; k < 4; k++)
            le64_write(state->vector[i] + 8 * k, random_value());
    for (unsigned i = 0; i < HOST_DATA_SIZE; i += 8)
        le64_write(host_data() + i, random_value());
}

/* ---- running both ways ---- */

struct outcome {
    struct host_state state;
    uint8_t data[HOST_DATA_SIZE];
    unsigned trap;
};

static void run_end(struct soft_vcpu *v, const struct insn *insn)
{
    (void)v;
    (void)insn;
}

static void load_vcpu(const struct host_state *state)
{
    struct soft_vcpu *v = vcpu;
    memcpy(v->gpr, state->gpr, sizeof state->gpr);
    v->gpr[SOFT_ZERO] = 0;
    v->gpr[SOFT_RIP] = 0x1000;
    flags_from_rflags(v, state->rflags);
    memcpy(v->vector, state->vector, sizeof v->vector);
    memcpy(v->fpu, state->fx, sizeof v->fpu);
    memset(v->fpu + 160, 0, sizeof v->fpu - 160);
}

static void set_tlb(bool fast)
{
    for (unsigned i = 0; i < SOFT_TLB_SIZE; i++)
        vcpu->tlb[i] = (struct soft_tlb_entry){.read = TLB_NONE, .write = TLB_NONE};
    for (uint64_t at = HOST_DATA_AT; fast && at < HOST_DATA_AT + HOST_DATA_SIZE; at += 4096)
        *tlb_slot(vcpu, at) = (struct soft_tlb_entry){.read = at, .write = at};
}

/* What we compare of x87 and MXCSR: not the pointers, not the reserved parts. */
static void plain_fx(uint8_t *fx)
{
    memset(fx + 5, 0, 19);
    memset(fx + 28, 0, 4);
    for (unsigned i = 0; i < 8; i++)
        memset(fx + 32 + 16 * i + 10, 0, 6);
    memset(fx + 160, 0, 512 - 160);
}

static unsigned run_vcpu(const struct insn *insns, struct outcome *outcome)
{
    struct soft_vcpu *v = vcpu;
    outcome->trap = 0;
    native_enter(v);
    if (setjmp(v->unwind) == 0)
        insns->run(v, insns);
    else
        outcome->trap = v->raised.vector ? v->raised.vector : 256;
    native_leave(v);
    memcpy(outcome->state.gpr, v->gpr, sizeof outcome->state.gpr);
    outcome->state.rflags = flags_to_rflags(v);
    memcpy(outcome->state.vector, v->vector, sizeof v->vector);
    memcpy(outcome->state.fx, v->fpu, sizeof v->fpu);
    memcpy(outcome->data, host_data(), HOST_DATA_SIZE);
    plain_fx(outcome->state.fx);
    return outcome->trap;
}

static void run_host(const uint8_t *code, unsigned length, struct outcome *outcome)
{
    outcome->trap = host_run(code, length);
    outcome->state = *host_state();
    memcpy(outcome->data, host_data(), HOST_DATA_SIZE);
    plain_fx(outcome->state.fx);
}

static const char *difference(const struct outcome *a, const struct outcome *b)
{
    static char text[96];
    if (a->trap != b->trap) {
        snprintf(text, sizeof text, "exception %u, host %u", a->trap, b->trap);
        return text;
    }
    for (unsigned i = 0; i < 16; i++)
        if (a->state.gpr[i] != b->state.gpr[i]) {
            snprintf(text, sizeof text, "register %u: %#lx, host %#lx", i, a->state.gpr[i],
                     b->state.gpr[i]);
            return text;
        }
    if ((a->state.rflags ^ b->state.rflags) & RFLAG_ARITHMETIC) {
        snprintf(text, sizeof text, "flags %#lx, host %#lx", a->state.rflags & RFLAG_ARITHMETIC,
                 b->state.rflags & RFLAG_ARITHMETIC);
        return text;
    }
    for (unsigned i = 0; i < 16; i++)
        if (memcmp(a->state.vector[i], b->state.vector[i], 32) != 0) {
            snprintf(text, sizeof text, "vector register %u", i);
            return text;
        }
    for (unsigned i = 0; i < 512; i++)
        if (a->state.fx[i] != b->state.fx[i]) {
            snprintf(text, sizeof text, "FXSAVE byte %u: %#x, host %#x", i, a->state.fx[i],
                     b->state.fx[i]);
            return text;
        }
    for (unsigned i = 0; i < HOST_DATA_SIZE; i++)
        if (a->data[i] != b->data[i]) {
            snprintf(text, sizeof text, "memory byte %u: %#x, host %#x", i, a->data[i], b->data[i]);
            return text;
        }
    return NULL;
}

/* ---- decoding as decode.c does ---- */

struct form {
    uint8_t bytes[16];
    ZydisDecodedInstruction zydis;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    const struct op_row *row;
};

static ZydisDecoder decoder_64, decoder_32;

static const struct op_row *row_of(ZydisMnemonic mnemonic)
{
    for (const struct op_row *row = op_vector_rows; row->bind; row++)
        if (row->mnemonic == mnemonic)
            return row;
    for (const struct op_row *row = op_fpu_rows; row->bind; row++)
        if (row->mnemonic == mnemonic)
            return row;
    return NULL;
}

static bool form_decode(struct form *form, const ZydisDecoder *zydis)
{
    static const struct op_row *rows[ZYDIS_MNEMONIC_MAX_VALUE + 1];
    static bool known[ZYDIS_MNEMONIC_MAX_VALUE + 1];
    if (ZYAN_FAILED(ZydisDecoderDecodeFull(zydis, form->bytes, 15, &form->zydis, form->operands)))
        return false;
    unsigned mnemonic = form->zydis.mnemonic;
    if (!known[mnemonic]) {
        known[mnemonic] = true;
        rows[mnemonic] = row_of((ZydisMnemonic)mnemonic);
    }
    form->row = rows[mnemonic];
    /* Two names are those of string instructions too. */
    return form->row && form->zydis.meta.category != ZYDIS_CATEGORY_STRINGOP &&
           (form->zydis.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY ||
            form->zydis.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX);
}

enum { MODE_TEST = MODE_64 | MODE_PROTECTED | MODE_LONG | MODE_SSE | MODE_AVX | 3 };

static uint8_t register_offset(ZydisRegister reg)
{
    if (ZydisRegisterGetClass(reg) != ZYDIS_REGCLASS_GPR64 &&
        ZydisRegisterGetClass(reg) != ZYDIS_REGCLASS_GPR32)
        return SOFT_ZERO * 8;
    return (uint8_t)(ZydisRegisterGetId(reg) * 8);
}

/* insns[0] is bound; insns[1] ends the block. */
static void form_bind(struct form *form, uint32_t mode, struct insn insns[2])
{
    struct insn *insn = &insns[0];
    insns[1] = (struct insn){.run = run_end};
    *insn = (struct insn){.len = form->zydis.length,
                          .end = form->zydis.length,
                          .base = SOFT_ZERO * 8,
                          .index = SOFT_ZERO * 8,
                          .size = (uint8_t)(form->zydis.operand_width / 8),
                          .seg = CPU_DS,
                          .amask = form->zydis.address_width == 32 ? UINT32_MAX : UINT64_MAX};
    struct decoder decoder = {.vm = &vm,
                              .v = vcpu,
                              .zydis = &form->zydis,
                              .operands = form->operands,
                              .mode = mode,
                              .arg = form->row->arg,
                              .flags_needed = RFLAG_ARITHMETIC,
                              .insn = insn};
    const ZydisDecodedOperand *memory = native_memory_operand(&decoder);
    if (memory) {
        insn->flags |= INSN_MEMORY;
        insn->base = register_offset(memory->mem.base);
        insn->index = register_offset(memory->mem.index);
        insn->scale = memory->mem.scale > 1 ? (uint8_t)__builtin_ctz(memory->mem.scale) : 0;
        insn->disp = memory->mem.disp.value;
        insn->seg = (uint8_t)ZydisRegisterGetId(memory->mem.segment);
    }
    if (native_full(vcpu))
        native_reset(vcpu);
    form->row->bind(&decoder);
    if (!insn->run)
        insn->run = op_undefined;
}

/* What makes two encodings the same form: the instruction and its operands' kinds and sizes. */
static uint64_t form_signature(const struct form *form)
{
    uint64_t hash = form->zydis.mnemonic * 2 + (form->zydis.encoding != 0);
    for (unsigned i = 0; i < form->zydis.operand_count_visible; i++) {
        const ZydisDecodedOperand *operand = &form->operands[i];
        uint64_t kind = operand->type;
        if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER)
            kind = 16 + ZydisRegisterGetClass(operand->reg.value);
        hash = (hash * 131 + kind) * 1031 + operand->size;
    }
    return hash;
}

static void form_print(const struct form *form, const char *what)
{
    fprintf(stderr, "%s:", ZydisMnemonicGetString(form->zydis.mnemonic));
    for (unsigned i = 0; i < form->zydis.length; i++)
        fprintf(stderr, " %02x", form->bytes[i]);
    fprintf(stderr, ": %s\n", what);
}

/* ---- the generator ---- */

struct opcode {
    bool vex;
    uint8_t map, prefix, w, l, byte;
};

static void random_modrm(struct form *form, unsigned at)
{
    uint8_t modrm = (uint8_t)random_64();
    if (random_below(3)) /* memory as often as registers */
        modrm &= 0x7f;
    if ((modrm & 0xc7) == 5) /* no RIP-relative operand: its value depends on the place */
        modrm |= 0x40;
    form->bytes[at] = modrm;
    for (unsigned i = at + 1; i < 16; i++)
        form->bytes[i] = (uint8_t)random_64();
    if ((modrm & 7) == 4 && (modrm & 0xc0) != 0xc0 && (form->bytes[at + 1] & 7) == 5 &&
        (modrm & 0xc0) == 0)
        form->bytes[at + 1] ^= 1; /* no absolute operand either */
}

static void random_form(struct form *form, const struct opcode *opcode)
{
    static const uint8_t prefixes[] = {0, 0x66, 0xf3, 0xf2};
    unsigned at = 0;
    if (random_below(16) == 0)
        form->bytes[at++] = 0x67;
    if (opcode->vex) {
        form->bytes[at++] = 0xc4;
        form->bytes[at++] = (uint8_t)((random_64() & 0xe0) | opcode->map);
        unsigned vvvv = random_below(2) ? 15 : random_below(16);
        form->bytes[at++] =
            (uint8_t)(opcode->w << 7 | vvvv << 3 | opcode->l << 2 | opcode->prefix);
    } else {
        if (opcode->prefix)
            form->bytes[at++] = prefixes[opcode->prefix];
        if (opcode->prefix > 1 && random_below(4) == 0)
            form->bytes[at++] = 0x66;
        if (opcode->w || random_below(2))
            form->bytes[at++] = (uint8_t)(0x40 | opcode->w << 3 | random_below(8));
        if (opcode->map)
            form->bytes[at++] = 0x0f;
        if (opcode->map > 1)
            form->bytes[at++] = opcode->map == 2 ? 0x38 : 0x3a;
    }
    form->bytes[at++] = opcode->byte;
    random_modrm(form, at);
}

enum place { PLACE_MIDDLE, PLACE_END, PLACE_BEYOND, PLACE_CROSS, PLACE_MAX };

/* Where a memory operand of `size` bytes goes: somewhere, against the guarded end of memory, one
 * byte beyond it, or across the two pages. */
static uint64_t place_address(enum place place, unsigned size)
{
    switch (place) {
    case PLACE_END: return HOST_DATA_AT + HOST_DATA_SIZE - size;
    case PLACE_BEYOND: return HOST_DATA_AT + HOST_DATA_SIZE - size + 1;
    case PLACE_CROSS: return HOST_DATA_AT + 4096 - (size > 1 ? 1 + random_below(size - 1) : 0);
    default: {
        uint64_t at = HOST_DATA_AT + 512 + random_below(2048);
        return random_below(4) ? at & ~UINT64_C(63) : at;
    }
    }
}

static bool is_gather(const struct form *form)
{
    return form->zydis.meta.isa_set == ZYDIS_ISA_SET_AVX2GATHER;
}

/* Indices that stay in memory nearly always; also elsewhere sometimes, for faults. */
static void set_indices(struct host_state *state, const ZydisDecodedOperand *memory)
{
    uint8_t *index = state->vector[ZydisRegisterGetId(memory->mem.index)];
    bool wide = random_below(2);
    for (unsigned i = 0; i < 32; i += wide ? 8 : 4) {
        int64_t value = (int64_t)random_below(100) - 50;
        if (random_below(40) == 0)
            value = (int32_t)random_64();
        memcpy(index + i, &value, wide ? 8 : 4);
    }
}

/* Points the memory operand at a good place. False where registers make that impossible. */
static bool set_memory(struct form *form, struct host_state *state, enum place place)
{
    for (unsigned i = 0; i < form->zydis.operand_count; i++) {
        const ZydisDecodedOperand *operand = &form->operands[i];
        if (operand->type != ZYDIS_OPERAND_TYPE_MEMORY)
            continue;
        const ZydisDecodedOperandMem *mem = &operand->mem;
        if (mem->base == ZYDIS_REGISTER_NONE || mem->base == ZYDIS_REGISTER_RIP ||
            mem->base == ZYDIS_REGISTER_EIP)
            return false;
        if (mem->segment == ZYDIS_REGISTER_FS || mem->segment == ZYDIS_REGISTER_GS)
            return false;
        unsigned base = (unsigned)ZydisRegisterGetId(mem->base);
        uint64_t address = place_address(place, operand->size / 8);
        if (is_gather(form)) {
            set_indices(state, operand);
        } else if (mem->index != ZYDIS_REGISTER_NONE) {
            unsigned index = (unsigned)ZydisRegisterGetId(mem->index);
            if (index == base)
                return false;
            state->gpr[index] = random_below(64);
            address -= state->gpr[index] * mem->scale;
        }
        state->gpr[base] = address - (uint64_t)mem->disp.value;
        return true;
    }
    return true;
}

/* ---- what the two ways may differ in ---- */

static bool skip_form(const struct form *form)
{
    switch (form->zydis.mnemonic) {
    case ZYDIS_MNEMONIC_RDRAND: /* tests of their own */
    case ZYDIS_MNEMONIC_RDSEED:
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64: return true;
    default: return false;
    }
}

/* Pointers to the last x87 instruction, and bytes that the architecture leaves open. */
static void plain_memory(const struct form *form, struct outcome *outcome)
{
    ZydisMnemonic mnemonic = form->zydis.mnemonic;
    bool fxsave = mnemonic == ZYDIS_MNEMONIC_FXSAVE || mnemonic == ZYDIS_MNEMONIC_FXSAVE64;
    bool environment = mnemonic == ZYDIS_MNEMONIC_FNSTENV || mnemonic == ZYDIS_MNEMONIC_FNSAVE;
    if (!fxsave && !environment)
        return;
    for (unsigned i = 0; i < form->zydis.operand_count; i++) {
        const ZydisDecodedOperand *operand = &form->operands[i];
        if (operand->type != ZYDIS_OPERAND_TYPE_MEMORY)
            continue;
        const struct host_state *state = host_state();
        uint64_t at = state->gpr[ZydisRegisterGetId(operand->mem.base)] +
                      (uint64_t)operand->mem.disp.value;
        if (operand->mem.index != ZYDIS_REGISTER_NONE)
            at += state->gpr[ZydisRegisterGetId(operand->mem.index)] * operand->mem.scale;
        uint8_t *bytes = outcome->data + (at - HOST_DATA_AT);
        if (fxsave) {
            memset(bytes + 5, 0, 19);
            memset(bytes + 28, 0, 4);
            for (unsigned k = 0; k < 8; k++)
                memset(bytes + 42 + 16 * k, 0, 6);
            memset(bytes + 416, 0, 96);
        } else if (form->zydis.operand_width == 16) {
            memset(bytes + 6, 0, 8);
        } else {
            memset(bytes + 12, 0, 14);
        }
    }
}

/* After a gather that faulted only the top bit of each mask element means something. */
static void plain_mask(const struct form *form, struct outcome *outcome)
{
    if (!is_gather(form) || outcome->trap == 0)
        return;
    unsigned size = form->row->arg >> 4;
    uint8_t *mask = outcome->state.vector[ZydisRegisterGetId(form->operands[2].reg.value)];
    for (unsigned i = 0; i < 32; i += size)
        memset(mask + i, mask[i + size - 1] & 0x80 ? 0xff : 0, size);
}

/* An exception in a comparison of faults may be one of two that are both due. */
static bool both_due(const struct outcome *ours, const struct outcome *hosts)
{
    return (ours->trap == VECTOR_PF || ours->trap == VECTOR_GP) &&
           (hosts->trap == VECTOR_PF || hosts->trap == VECTOR_GP || hosts->trap == VECTOR_SS);
}

struct tally {
    unsigned forms, runs, faults, mismatches;
};

static void compare_form(struct form *form, enum place place, bool fast, struct tally *tally)
{
    static struct outcome ours, hosts;
    static struct host_state before;
    static uint8_t data[HOST_DATA_SIZE];
    struct insn insns[2];
    struct host_state *state = host_state();
    random_state(state, random_below(4) == 0);
    if (!set_memory(form, state, place))
        return;
    before = *state;
    memcpy(data, host_data(), sizeof data);
    run_host(form->bytes, form->zydis.length, &hosts);

    memcpy(host_data(), data, sizeof data);
    load_vcpu(&before);
    set_tlb(fast);
    form_bind(form, MODE_TEST, insns);
    run_vcpu(insns, &ours);
    tally->runs++;
    tally->faults += hosts.trap != 0;
    if (hosts.trap == 0 && ours.trap == 0) {
        *state = before;
        plain_memory(form, &ours);
        plain_memory(form, &hosts);
    }
    plain_mask(form, &ours);
    plain_mask(form, &hosts);
    if (hosts.trap != ours.trap && both_due(&ours, &hosts))
        ours.trap = hosts.trap;
    const char *text = difference(&ours, &hosts);
    if (text) {
        if (tally->mismatches++ < 40)
            form_print(form, text);
    }
}

static bool first_of(uint64_t signature)
{
    static uint64_t seen[1 << 16];
    unsigned slot = (unsigned)(signature * 0x9e3779b97f4a7c15 >> 48);
    while (seen[slot] && seen[slot] != signature)
        slot = (slot + 1) % ARRAY_LEN(seen);
    bool first = !seen[slot];
    seen[slot] = signature;
    return first;
}

static unsigned rounds = 100;

static void compare_opcode(const struct opcode *opcode, struct tally *tally)
{
    bool found = false;
    for (unsigned round = 0; round < (found ? rounds : 24); round++) {
        struct form form;
        random_form(&form, opcode);
        if (!form_decode(&form, &decoder_64) || skip_form(&form))
            continue;
        found = true;
        tally->forms += first_of(form_signature(&form));
        enum place place = random_below(2) ? PLACE_MIDDLE : (enum place)random_below(PLACE_MAX);
        compare_form(&form, place, random_below(3) != 0, tally);
    }
}

static void forms_agree_with_the_host(void **state)
{
    (void)state;
    host_signals_restore();
    struct tally tally = {0};
    for (unsigned index = 0; index < 4 * 4 * 2 * 256; index++)
        compare_opcode(&(struct opcode){.map = index >> 11 & 3,
                                        .prefix = index >> 9 & 3,
                                        .w = index >> 8 & 1,
                                        .byte = (uint8_t)index},
                       &tally);
    for (unsigned index = 0; index < 3 * 4 * 2 * 2 * 256; index++)
        compare_opcode(&(struct opcode){.vex = true,
                                        .map = (uint8_t)(1 + (index >> 12)),
                                        .prefix = index >> 10 & 3,
                                        .w = index >> 9 & 1,
                                        .l = index >> 8 & 1,
                                        .byte = (uint8_t)index},
                       &tally);
    print_message("%u forms, %u runs, %u of them faults\n", tally.forms, tally.runs, tally.faults);
    assert_int_equal(tally.mismatches, 0);
    assert_true(tally.forms > 1000);
}

/* Rows that the engine's CPU model hides are tested as well where this host has them. */
static void show_all_of_host(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
        return;
    for (unsigned i = 0; i < vm.cpuid.count; i++)
        if (vm.cpuid.leaves[i].leaf == 7 && vm.cpuid.leaves[i].subleaf == 0) {
            vm.cpuid.leaves[i].ebx |= ebx & bit_SHA;
            vm.cpuid.leaves[i].ecx |= ecx & (bit_GFNI | bit_VAES | bit_VPCLMULQDQ);
        }
}

int main(void)
{
    const char *text = getenv("NATIVE_TEST_ROUNDS");
    if (text)
        rounds = (unsigned)strtoul(text, NULL, 10);
    text = getenv("NATIVE_TEST_SEED");
    if (text)
        random_seed = strtoull(text, NULL, 10);
    host_start();
    vcpu = aligned_alloc(64, align_up(sizeof *vcpu, 64));
    assert_non_null(vcpu);
    memset(vcpu, 0, sizeof *vcpu);
    vcpu->vm = &vm;
    vcpu->tlb = vcpu->tlbs[0];
    vcpu->mode = MODE_TEST;
    vcpu->cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    vcpu->xcr0 = 7;
    cpuid_model(&vm.cpuid, CPUID_SOFT, NULL, 1, 1000000);
    show_all_of_host();
    struct err err;
    assert_int_equal(native_new(vcpu, &err), 0);
    ZydisDecoderInit(&decoder_64, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisDecoderInit(&decoder_32, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);

    host_signals_remember();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forms_agree_with_the_host),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    native_free(vcpu);
    free(vcpu);
    return failed;
}
