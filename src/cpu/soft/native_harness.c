#include "cpu/soft/native_harness.h"

#include "cpu/soft/jit.h"

#include <cpuid.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* The translator is not part of this harness. */
bool jit_redirect(struct soft_vcpu *v, greg_t *regs)
{
    (void)v;
    (void)regs;
    return false;
}

/* ---- start ---- */

struct harness harness = {.seed = 1, .rounds = 60};

/* Rows that the engine's CPU model hides are tested as well where this host has them. */
static void show_all_of_host(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
        return;
    for (unsigned i = 0; i < harness.vm.cpuid.count; i++)
        if (harness.vm.cpuid.leaves[i].leaf == 7 && harness.vm.cpuid.leaves[i].subleaf == 0) {
            harness.vm.cpuid.leaves[i].ebx |= ebx & bit_SHA;
            harness.vm.cpuid.leaves[i].ecx |= ecx & (bit_GFNI | bit_VAES | bit_VPCLMULQDQ);
        }
}

void harness_start(void)
{
    host_start();
    harness.vcpu = aligned_alloc(64, align_up(sizeof *harness.vcpu, 64));
    struct soft_vcpu *v = harness.vcpu;
    assert_non_null(v);
    memset(v, 0, sizeof *v);
    v->vm = &harness.vm;
    v->tlb = v->tlbs[0];
    v->mode = MODE_TEST;
    v->cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    v->xcr0 = 7;
    cpuid_model(&harness.vm.cpuid, CPUID_SOFT, NULL, 1, 1000000);
    show_all_of_host();
    struct err err;
    assert_int_equal(native_new(v, &err), 0);
    ZydisDecoderInit(&harness.decoder_64, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisDecoderInit(&harness.decoder_32, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
    ZydisDecoderInit(&harness.decoder_16, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
    host_signals_remember();
}

void harness_stop(void)
{
    native_free(harness.vcpu);
    free(harness.vcpu);
}

/* ---- the rest of the engine ---- */

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

uint64_t random_64(void)
{
    harness.seed += 0x9e3779b97f4a7c15; /* splitmix64 */
    uint64_t z = harness.seed;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

unsigned random_below(unsigned bound)
{
    return (unsigned)(random_64() >> 33) % bound;
}

uint64_t random_value(void)
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
    case 3: /* floats around 1 */ return ((random_64() & 0x83ffffff83ffffff) | 0x3c0000003c000000);
    default: return random_64();
    }
}

void random_fx(uint8_t *fx, bool unmasked)
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

void random_state(struct host_state *state, bool unmasked)
{
    for (unsigned i = 0; i < 16; i++)
        state->gpr[i] = random_value();
    /* A signal's return to a stack that is no address is #GP under some hypervisors. */
    state->gpr[CPU_RSP] = (uint64_t)((int64_t)(state->gpr[CPU_RSP] << 16) >> 16);
    state->rflags = 0x202 | (random_64() & RFLAG_ARITHMETIC);
    random_fx(state->fx, unmasked);
    for (unsigned i = 0; i < 16; i++)
        for (unsigned k = 0; k < 4; k++)
            le64_write(state->vector[i] + 8 * k, random_value());
    for (unsigned i = 0; i < HOST_DATA_SIZE; i += 8)
        le64_write(host_data() + i, random_value());
}

/* ---- running both ways ---- */

static void run_end(struct soft_vcpu *v, const struct insn *insn)
{
    (void)v;
    (void)insn;
}

void load_vcpu(const struct host_state *state)
{
    struct soft_vcpu *v = harness.vcpu;
    memcpy(v->gpr, state->gpr, sizeof state->gpr);
    v->gpr[SOFT_ZERO] = 0;
    v->gpr[SOFT_RIP] = 0x1000;
    flags_from_rflags(v, state->rflags);
    memcpy(v->vector, state->vector, sizeof v->vector);
    memcpy(v->fpu, state->fx, sizeof v->fpu);
    memset(v->fpu + 160, 0, sizeof v->fpu - 160);
}

void set_tlb(bool fast)
{
    for (unsigned i = 0; i < SOFT_TLB_SIZE; i++)
        harness.vcpu->tlb[i] = (struct soft_tlb_entry){.read = TLB_NONE, .write = TLB_NONE};
    for (uint64_t at = HOST_DATA_AT; fast && at < HOST_DATA_AT + HOST_DATA_SIZE; at += 4096)
        *tlb_slot(harness.vcpu, at) = (struct soft_tlb_entry){.read = at, .write = at};
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

unsigned run_vcpu(const struct insn *insns, struct outcome *outcome)
{
    struct soft_vcpu *v = harness.vcpu;
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

void run_host(const uint8_t *code, unsigned length, struct outcome *outcome)
{
    outcome->trap = host_run(code, length);
    outcome->state = *host_state();
    memcpy(outcome->data, host_data(), HOST_DATA_SIZE);
    plain_fx(outcome->state.fx);
}

const char *difference(const struct outcome *a, const struct outcome *b)
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

/* Integer instructions, for native_bind() as other rows use it. */
// clang-format off
#define NATIVE(name) {ZYDIS_MNEMONIC_##name, native_bind, 0}
static const struct op_row integer_rows[] = {
    NATIVE(ADC), NATIVE(ADD), NATIVE(AND), NATIVE(BSF), NATIVE(BSR), NATIVE(BSWAP), NATIVE(BT),
    NATIVE(BTC), NATIVE(BTR), NATIVE(BTS), NATIVE(CMOVB), NATIVE(CMOVBE), NATIVE(CMOVL),
    NATIVE(CMOVLE), NATIVE(CMOVNB), NATIVE(CMOVNBE), NATIVE(CMOVNL), NATIVE(CMOVNLE),
    NATIVE(CMOVNO), NATIVE(CMOVNP), NATIVE(CMOVNS), NATIVE(CMOVNZ), NATIVE(CMOVO), NATIVE(CMOVP),
    NATIVE(CMOVS), NATIVE(CMOVZ), NATIVE(CMP), NATIVE(CMPXCHG), NATIVE(DEC), NATIVE(DIV),
    NATIVE(IDIV), NATIVE(IMUL), NATIVE(INC), NATIVE(MOVSX), NATIVE(MOVSXD), NATIVE(MOVZX),
    NATIVE(MUL), NATIVE(NEG), NATIVE(NOT), NATIVE(OR), NATIVE(RCL), NATIVE(RCR), NATIVE(ROL),
    NATIVE(ROR), NATIVE(SAR), NATIVE(SBB), NATIVE(SETB), NATIVE(SETBE), NATIVE(SETL), NATIVE(SETO),
    NATIVE(SETP), NATIVE(SETZ), NATIVE(SHL), NATIVE(SHLD), NATIVE(SHR), NATIVE(SHRD), NATIVE(SUB),
    NATIVE(TEST), NATIVE(XADD), NATIVE(XOR),
    {0},
};
// clang-format on

bool row_is_integer(const struct op_row *row)
{
    return row >= integer_rows && row < integer_rows + ARRAY_LEN(integer_rows);
}

static const struct op_row *row_of(ZydisMnemonic mnemonic)
{
    for (const struct op_row *row = op_vector_rows; row->bind; row++)
        if (row->mnemonic == mnemonic)
            return row;
    for (const struct op_row *row = op_fpu_rows; row->bind; row++)
        if (row->mnemonic == mnemonic)
            return row;
    for (const struct op_row *row = integer_rows; row->bind; row++)
        if (row->mnemonic == mnemonic)
            return row;
    return NULL;
}

bool form_decode(struct form *form, const ZydisDecoder *zydis)
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
    /* Zydis 4.0 takes R13 for the base of such an operand when REX.B meets prefix 67. */
    if (form->zydis.raw.modrm.mod == 0 && form->zydis.raw.modrm.rm == 4 &&
        form->zydis.raw.sib.base == 5)
        return false;
    /* Two names are those of string instructions too. */
    return form->row && form->zydis.meta.category != ZYDIS_CATEGORY_STRINGOP &&
           (form->zydis.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY ||
            form->zydis.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX);
}

static uint8_t register_offset(ZydisRegister reg)
{
    if (ZydisRegisterGetClass(reg) != ZYDIS_REGCLASS_GPR64 &&
        ZydisRegisterGetClass(reg) != ZYDIS_REGCLASS_GPR32)
        return SOFT_ZERO * 8;
    return (uint8_t)(ZydisRegisterGetId(reg) * 8);
}

/* insns[0] is bound; insns[1] ends the block. */
bool form_bind(struct form *form, uint32_t mode, struct insn insns[2])
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
    struct decoder decoder = {.vm = &harness.vm,
                              .v = harness.vcpu,
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
    if (native_full(harness.vcpu))
        native_reset(harness.vcpu);
    form->row->bind(&decoder);
    bool bound = insn->run;
    if (!bound)
        insn->run = op_undefined;
    return bound;
}

/* What makes two encodings the same form: the instruction and its operands' kinds and sizes. */
uint64_t form_signature(const struct form *form)
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

void form_print(const struct form *form, const char *what)
{
    fprintf(stderr, "%s:", ZydisMnemonicGetString(form->zydis.mnemonic));
    for (unsigned i = 0; i < form->zydis.length; i++)
        fprintf(stderr, " %02x", form->bytes[i]);
    fprintf(stderr, ": %s\n", what);
}
