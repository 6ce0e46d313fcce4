/*
 * Every instruction form of op_vector_rows and op_fpu_rows that the decoder knows, and integer ones
 * that other rows give to native_bind(), is run twice, by its handler and as it is
 * (host_harness.h), from the same random state; registers, flags, memory, x87 state and exceptions
 * must be equal.
 *
 * NATIVE_TEST_ROUNDS and NATIVE_TEST_SEED ask for more and for others.
 */
#include "cpu/soft/native_harness.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

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
        form->bytes[at++] = (uint8_t)(opcode->w << 7 | vvvv << 3 | opcode->l << 2 | opcode->prefix);
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
        uint64_t at =
            state->gpr[ZydisRegisterGetId(operand->mem.base)] + (uint64_t)operand->mem.disp.value;
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

/* MASKMOV may or may not look at bytes that it does not store (SDM vol. 2, MASKMOVDQU). */
static bool may_probe_more(const struct form *form)
{
    switch (form->zydis.mnemonic) {
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU: return true;
    default: return false;
    }
}

struct tally {
    unsigned forms, runs, faults[32], mismatches;
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
    if (!form_bind(form, MODE_TEST, insns) && row_is_integer(form->row))
        return; /* not ours to run: implied AH, bit strings, ... */
    run_vcpu(insns, &ours);
    tally->runs++;
    tally->faults[hosts.trap % 32]++;
    if (ours.trap == 0 && hosts.trap == VECTOR_PF && may_probe_more(form))
        return;
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

static void compare_opcode(const struct opcode *opcode, struct tally *tally)
{
    bool found = false;
    for (unsigned round = 0; round < (found ? harness.rounds : 24); round++) {
        struct form form;
        random_form(&form, opcode);
        if (!form_decode(&form, &harness.decoder_64) || skip_form(&form))
            continue;
        found = true;
        tally->forms += first_of(form_signature(&form));
        enum place place = random_below(2) ? PLACE_MIDDLE : (enum place)random_below(PLACE_MAX);
        compare_form(&form, place, random_below(3) != 0, tally);
    }
}

void forms_agree_with_the_host(void **state)
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
    print_message("%u forms, %u runs; #UD %u, #GP %u, #PF %u, #MF %u, #XM %u\n", tally.forms,
                  tally.runs, tally.faults[VECTOR_UD], tally.faults[VECTOR_GP],
                  tally.faults[VECTOR_PF], tally.faults[VECTOR_MF], tally.faults[VECTOR_XM]);
    assert_int_equal(tally.mismatches, 0);
    assert_true(tally.forms > 1000);
    assert_true(tally.faults[VECTOR_MF] > 100 && tally.faults[VECTOR_XM] > 100);
}

/* ---- other modes ---- */

static bool same_operands(const struct form *a, const struct form *b)
{
    for (unsigned i = 0; i < a->zydis.operand_count_visible; i++) {
        const ZydisDecodedOperand *x = &a->operands[i], *y = &b->operands[i];
        if (x->type != y->type || x->size != y->size ||
            (x->type == ZYDIS_OPERAND_TYPE_REGISTER && x->reg.value != y->reg.value))
            return false;
    }
    return true;
}

/* In 32-bit code the same bytes without REX mean the same, so they must give the same stub. */
void legacy_modes_make_the_same_stubs(void **state)
{
    (void)state;
    unsigned same = 0;
    for (unsigned index = 0; index < 4 * 4 * 256 * 16; index++) {
        struct opcode opcode = {
            .map = index >> 14 & 3, .prefix = index >> 12 & 3, .byte = (uint8_t)(index >> 4)};
        struct form wide = {0}, narrow;
        struct insn a[2], b[2];
        random_form(&wide, &opcode);
        narrow = wide;
        if (!form_decode(&wide, &harness.decoder_64) ||
            !form_decode(&narrow, &harness.decoder_32) || wide.zydis.raw.rex.W ||
            wide.zydis.mnemonic != narrow.zydis.mnemonic ||
            wide.zydis.length != narrow.zydis.length || !same_operands(&wide, &narrow))
            continue;
        form_bind(&wide, MODE_TEST, a);
        form_bind(&narrow, MODE_TEST & ~(uint32_t)(MODE_64 | MODE_LONG), b);
        assert_ptr_equal(a->run, b->run);
        assert_ptr_equal(a->data, b->data);
        same++;
    }
    assert_true(same > 1000);
}

/* What 16-bit code does without prefix 66, 64-bit code does with it, and the other way round; an
 * instruction that does not care gives the same stub too. */
void operand_size_follows_the_mode(void **state)
{
    (void)state;
    unsigned same = 0, wide_prefixed = 0;
    for (unsigned index = 0; index < 4 * 4 * 256 * 32; index++) {
        struct opcode opcode = {
            .map = index >> 15 & 3, .prefix = index >> 13 & 3, .byte = (uint8_t)(index >> 5)};
        struct form narrow, wide;
        struct insn a[2], b[2];
        random_form(&narrow, &opcode);
        if (!form_decode(&narrow, &harness.decoder_16) || narrow.zydis.raw.modrm.mod != 3)
            continue;
        wide = narrow;
        if (index & 1) {
            memcpy(wide.bytes + 1, narrow.bytes, 15);
            wide.bytes[0] = 0x66;
        }
        if (!form_decode(&wide, &harness.decoder_64) || wide.zydis.raw.rex.W ||
            wide.zydis.mnemonic != narrow.zydis.mnemonic || !same_operands(&wide, &narrow))
            continue;
        form_bind(&wide, MODE_TEST, a);
        form_bind(&narrow, MODE_SSE | MODE_PROTECTED, b);
        if (a->run != b->run || a->data != b->data)
            form_print(&narrow, "another stub in 16-bit code");
        assert_ptr_equal(a->run, b->run);
        assert_ptr_equal(a->data, b->data);
        same++;
        wide_prefixed += index & 1;
    }
    assert_true(same > 400 && wide_prefixed > 100);
}
