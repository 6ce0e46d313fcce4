/*
 * native_encode.c: the bytes of a stub (native.h).
 *
 * Register plan. rdi is the vCPU, rsi the instruction, rdx the memory operand. Vector registers
 * keep their numbers, since no C caller expects any to survive. Of the general registers only
 * those that an instruction uses without naming them keep theirs, and only RAX, RCX, RDX can be
 * that; whatever it names goes to r8, r9, r10. When RDX is one of the former, the memory operand
 * moves to r11. AH, CH, DH and BH become low bytes of registers of their own, so REX may stand
 * beside them.
 *
 *     movzx eax, word [rdi + flags]; add al, 0x7f; sahf      flags, where read or kept
 *     mov r8, [rdi + gpr]; ...                               general registers
 *     movaps xmm1, [rdi + vector]; ...                       vector registers
 *     the instruction
 *     mov [rdi + gpr], r8; ...; movaps [rdi + vector], xmm1; ...
 *     lahf; seto al; mov [rdi + flags], ax                   flags, where written
 *     vzeroupper                                             after VEX
 *     add rsi, 56; jmp [rsi]
 *
 * A legacy SSE instruction keeps bits 128 and up of its destination: the stub moves the low half
 * only. A VEX instruction zeroes them: the stub stores the whole YMM register.
 *
 * Instructions are always written for 64-bit mode, whatever mode the guest runs in: only forms that
 * mean the same in both reach this file. Prefixes, W and L follow the SDM, vol. 2, chapter 2.
 */
#include "cpu/soft/native_stub.h"

enum host_register {
    HOST_RAX = 0,
    HOST_RDX = 2,
    HOST_RDI = 7,
    HOST_R8 = 8,
    HOST_R10 = 10,
    HOST_R11 = 11,
};

struct general {
    uint8_t offset; /* into gpr; of the byte for AH..BH */
    uint8_t host;
    bool high_byte;
    bool written;
};

enum { GENERAL_MAX = 8, SLOT_NONE = 0xff };

struct plan {
    struct general general[GENERAL_MAX];
    unsigned general_count;
    unsigned next_host;
    uint8_t load[16]; /* bytes of each vector register to load: 0, 16, 32 */
    bool written[16]; /* vector registers */
    bool vex;
    bool flags_loaded, flags_stored;
    uint8_t memory_base;
    uint8_t reg, rm, vvvv, opcode; /* host numbers by encoding slot, or SLOT_NONE */
};

/* ---- bytes ---- */

static void put(struct native_stub *stub, uint8_t byte)
{
    assert(stub->length < NATIVE_STUB_MAX);
    stub->bytes[stub->length++] = byte;
}

static void put_bytes(struct native_stub *stub, const char *bytes, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        put(stub, (uint8_t)bytes[i]);
}

/* ModRM and displacement of [rdi + offset]. */
static void put_vcpu_operand(struct native_stub *stub, unsigned reg, unsigned offset)
{
    bool small = offset < 128;
    put(stub, (uint8_t)((small ? 0x40 : 0x80) | (reg & 7) << 3 | HOST_RDI));
    for (unsigned i = 0; i < (small ? 1u : 4u); i++)
        put(stub, (uint8_t)(offset >> (8 * i)));
}

static void put_general_load(struct native_stub *stub, const struct general *general)
{
    unsigned offset = (unsigned)offsetof(struct soft_vcpu, gpr) + general->offset;
    put(stub, (uint8_t)((general->high_byte ? 0x40 : 0x48) | (general->host >> 3) << 2));
    if (general->high_byte)
        put_bytes(stub, "\x0f\xb6", 2); /* movzx */
    else
        put(stub, 0x8b);
    put_vcpu_operand(stub, general->host, offset);
}

static void put_general_store(struct native_stub *stub, const struct general *general)
{
    unsigned offset = (unsigned)offsetof(struct soft_vcpu, gpr) + general->offset;
    put(stub, (uint8_t)((general->high_byte ? 0x40 : 0x48) | (general->host >> 3) << 2));
    put(stub, general->high_byte ? 0x88 : 0x89);
    put_vcpu_operand(stub, general->host, offset);
}

/* (v)movaps between a register and its place; the places are aligned. */
static void put_vector_move(struct native_stub *stub, bool vex, unsigned number, unsigned size,
                            bool store)
{
    if (vex) {
        put(stub, 0xc5);
        put(stub, (uint8_t)((number < 8 ? 0x80 : 0) | 0x78 | (size == 32 ? 4 : 0)));
    } else {
        if (number >= 8)
            put(stub, 0x44);
        put(stub, 0x0f);
    }
    put(stub, store ? 0x29 : 0x28);
    put_vcpu_operand(stub, number, (unsigned)offsetof(struct soft_vcpu, vector) + number * 32);
}

/* ---- the plan ---- */

static bool is_general(ZydisRegisterClass class)
{
    return class == ZYDIS_REGCLASS_GPR8 || class == ZYDIS_REGCLASS_GPR16 ||
           class == ZYDIS_REGCLASS_GPR32 || class == ZYDIS_REGCLASS_GPR64;
}

/* The host register that stands for a general register; SLOT_NONE when there is none left. */
static uint8_t plan_general(struct plan *plan, const ZydisDecodedOperand *operand, bool pinned)
{
    ZydisRegister reg = operand->reg.value;
    bool high = reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH;
    unsigned number = high ? (unsigned)(reg - ZYDIS_REGISTER_AH)
                           : (unsigned)ZydisRegisterGetId(
                                 ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg));
    uint8_t offset = (uint8_t)(number * 8 + high);
    bool written = operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    for (unsigned i = 0; i < plan->general_count; i++) {
        struct general *general = &plan->general[i];
        if (general->offset == offset) {
            general->written |= written;
            return general->host;
        }
    }
    if (plan->general_count == GENERAL_MAX || (pinned && (high || number > HOST_RDX)) ||
        (!pinned && plan->next_host > HOST_R10))
        return SLOT_NONE;
    uint8_t host = (uint8_t)(pinned ? number : plan->next_host++);
    plan->general[plan->general_count++] =
        (struct general){.offset = offset, .host = host, .high_byte = high, .written = written};
    if (pinned && host == HOST_RDX)
        plan->memory_base = HOST_R11;
    return host;
}

static uint8_t plan_vector(struct plan *plan, const ZydisDecodedOperand *operand, unsigned size)
{
    unsigned number = (unsigned)ZydisRegisterGetId(operand->reg.value);
    if (number > 15)
        return SLOT_NONE;
    bool written = operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    bool read = operand->actions & ZYDIS_OPERAND_ACTION_MASK_READ;
    if (read || !plan->vex)
        plan->load[number] = (uint8_t)max((unsigned)plan->load[number], size);
    plan->written[number] |= written;
    return (uint8_t)number;
}

/* Plans one register operand and says which host number stands for it. */
static bool plan_register(struct plan *plan, const ZydisDecodedOperand *operand, uint8_t *ret_host)
{
    ZydisRegisterClass class = ZydisRegisterGetClass(operand->reg.value);
    bool hidden = operand->encoding == ZYDIS_OPERAND_ENCODING_NONE;
    *ret_host = 0;
    if (is_general(class))
        *ret_host = plan_general(plan, operand, hidden);
    else if (class == ZYDIS_REGCLASS_XMM || class == ZYDIS_REGCLASS_YMM)
        *ret_host = plan_vector(plan, operand, class == ZYDIS_REGCLASS_YMM ? 32 : 16);
    else if (class == ZYDIS_REGCLASS_MMX || class == ZYDIS_REGCLASS_X87)
        *ret_host = (uint8_t)ZydisRegisterGetId(operand->reg.value) & 7;
    else if (class != ZYDIS_REGCLASS_FLAGS && operand->reg.value != ZYDIS_REGISTER_MXCSR &&
             operand->reg.value != ZYDIS_REGISTER_X87CONTROL &&
             operand->reg.value != ZYDIS_REGISTER_X87STATUS &&
             operand->reg.value != ZYDIS_REGISTER_X87TAG)
        return false;
    return *ret_host != SLOT_NONE;
}

static bool plan_operand(struct plan *plan, struct native_stub *stub,
                         const ZydisDecodedOperand *operand)
{
    if (operand->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
        return !operand->imm.is_relative;
    if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        stub->memory_size = operand->size / 8;
        stub->memory_read = operand->actions & ZYDIS_OPERAND_ACTION_MASK_READ;
        stub->memory_write = operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
        return operand->mem.type == ZYDIS_MEMOP_TYPE_MEM &&
               operand->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM && stub->memory_size > 0 &&
               stub->memory_size <= NATIVE_BOUNCE_SIZE;
    }
    if (operand->type != ZYDIS_OPERAND_TYPE_REGISTER)
        return false;
    uint8_t host;
    if (!plan_register(plan, operand, &host))
        return false;
    switch (operand->encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG: plan->reg = host; return true;
    case ZYDIS_OPERAND_ENCODING_MODRM_RM: plan->rm = host; return true;
    case ZYDIS_OPERAND_ENCODING_NDSNDD: plan->vvvv = host; return true;
    case ZYDIS_OPERAND_ENCODING_OPCODE: plan->opcode = host; return true;
    case ZYDIS_OPERAND_ENCODING_IS4: /* its number is in the immediate already */
    case ZYDIS_OPERAND_ENCODING_NONE: return true;
    default: return false;
    }
}

/* Those whose register operand moves the address as well. */
static bool is_bit_string(ZydisMnemonic mnemonic)
{
    return mnemonic == ZYDIS_MNEMONIC_BT || mnemonic == ZYDIS_MNEMONIC_BTS ||
           mnemonic == ZYDIS_MNEMONIC_BTR || mnemonic == ZYDIS_MNEMONIC_BTC;
}

/* Flags are loaded where some are read or survive. A shift leaves all alone when its count is 0. */
static bool plan_flags(struct plan *plan, const ZydisDecodedInstruction *zydis)
{
    const ZydisAccessedFlags *flags = zydis->cpu_flags;
    if (!flags)
        return true;
    uint32_t defined = flags->modified | flags->set_0 | flags->set_1;
    uint32_t written = defined | flags->undefined;
    bool conditional = zydis->meta.category == ZYDIS_CATEGORY_SHIFT ||
                       zydis->meta.category == ZYDIS_CATEGORY_ROTATE;
    bool replaced = (defined & RFLAG_ARITHMETIC) == RFLAG_ARITHMETIC && !conditional;
    plan->flags_stored = written & RFLAG_ARITHMETIC;
    plan->flags_loaded = (flags->tested & RFLAG_ARITHMETIC) || (plan->flags_stored && !replaced);
    /* DF, IF and the rest are not in the host's flags. */
    return ((written | flags->tested) & ~(uint32_t)RFLAG_ARITHMETIC) == 0;
}

static bool plan_make(const struct decoder *decoder, struct native_stub *stub, struct plan *plan)
{
    const ZydisDecodedInstruction *zydis = decoder->zydis;
    *plan = (struct plan){.next_host = HOST_R8,
                          .memory_base = HOST_RDX,
                          .vex = zydis->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX,
                          .reg = SLOT_NONE,
                          .rm = SLOT_NONE,
                          .vvvv = SLOT_NONE,
                          .opcode = SLOT_NONE};
    /* Those that keep their numbers first, so that a named RAX finds the implied one. */
    for (unsigned pass = 0; pass < 2; pass++) {
        for (unsigned i = 0; i < zydis->operand_count; i++) {
            const ZydisDecodedOperand *operand = &decoder->operands[i];
            bool pinned = operand->encoding == ZYDIS_OPERAND_ENCODING_NONE;
            if (pinned == (pass == 0) && !plan_operand(plan, stub, operand))
                return false;
        }
    }
    if (stub->memory_size && plan->reg != SLOT_NONE && is_bit_string(zydis->mnemonic))
        return false;
    return plan_flags(plan, zydis);
}

/* ---- the instruction ---- */

static bool has_prefix(const ZydisDecodedInstruction *zydis, uint8_t prefix)
{
    for (unsigned i = 0; i < zydis->raw.prefix_count; i++)
        if (zydis->raw.prefixes[i].value == prefix &&
            zydis->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY)
            return true;
    return false;
}

/* 66 as the operand size prefix of an integer instruction. In 16-bit code it is the default size
 * that has to become a prefix, so the operands decide. */
static bool is_16_bit(const struct decoder *decoder)
{
    const ZydisDecodedInstruction *zydis = decoder->zydis;
    if (zydis->meta.isa_ext == ZYDIS_ISA_EXT_X87)
        return false;
    for (unsigned i = 0; i < zydis->operand_count_visible; i++) {
        const ZydisDecodedOperand *operand = &decoder->operands[i];
        if (operand->type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        ZydisRegisterClass class = ZydisRegisterGetClass(operand->reg.value);
        if (!is_general(class))
            return false;
    }
    unsigned sized = zydis->mnemonic == ZYDIS_MNEMONIC_CRC32 ? 1 : 0;
    return zydis->operand_count_visible > sized && decoder->operands[sized].size == 16;
}

static uint8_t slot(uint8_t host)
{
    return host == SLOT_NONE ? 0 : host;
}

/* VEX.W is ignored outside 64-bit mode where it would choose a 64-bit general register. */
static bool vex_w(const struct decoder *decoder)
{
    const ZydisDecodedInstruction *zydis = decoder->zydis;
    if (!zydis->raw.vex.W || (decoder->mode & MODE_64))
        return zydis->raw.vex.W;
    for (unsigned i = 0; i < zydis->operand_count_visible; i++)
        if (decoder->operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            is_general(ZydisRegisterGetClass(decoder->operands[i].reg.value)))
            return false;
    switch (zydis->mnemonic) {
    case ZYDIS_MNEMONIC_VCVTSI2SS:
    case ZYDIS_MNEMONIC_VCVTSI2SD:
    case ZYDIS_MNEMONIC_VMOVD:
    case ZYDIS_MNEMONIC_VPEXTRD:
    case ZYDIS_MNEMONIC_VPINSRD: return false;
    default: return true;
    }
}

static bool put_legacy_prefixes(const struct decoder *decoder, struct native_stub *stub,
                                unsigned rex)
{
    const ZydisDecodedInstruction *zydis = decoder->zydis;
    if (has_prefix(zydis, 0x66) || is_16_bit(decoder))
        put(stub, 0x66);
    if (has_prefix(zydis, 0xf2))
        put(stub, 0xf2);
    if (has_prefix(zydis, 0xf3))
        put(stub, 0xf3);
    /* Also without any bit set: it makes byte registers 4..7 low bytes, which they are here. */
    if (zydis->meta.isa_ext != ZYDIS_ISA_EXT_X87 || rex)
        put(stub, (uint8_t)(0x40 | rex | (zydis->raw.rex.W ? 8 : 0)));
    switch (zydis->opcode_map) {
    case ZYDIS_OPCODE_MAP_DEFAULT: return true;
    case ZYDIS_OPCODE_MAP_0F: put(stub, 0x0f); return true;
    case ZYDIS_OPCODE_MAP_0F38: put_bytes(stub, "\x0f\x38", 2); return true;
    case ZYDIS_OPCODE_MAP_0F3A: put_bytes(stub, "\x0f\x3a", 2); return true;
    default: return false;
    }
}

static void put_vex_prefix(const struct decoder *decoder, struct native_stub *stub, unsigned rex,
                           uint8_t vvvv)
{
    const ZydisDecodedInstruction *zydis = decoder->zydis;
    put(stub, 0xc4);
    put(stub, (uint8_t)((~rex & 7) << 5 | zydis->raw.vex.m_mmmm));
    put(stub, (uint8_t)((vex_w(decoder) ? 0x80 : 0) | (~slot(vvvv) & 15) << 3 |
                        zydis->raw.vex.L << 2 | zydis->raw.vex.pp));
}

static bool put_instruction(const struct decoder *decoder, struct native_stub *stub,
                            const struct plan *plan)
{
    const ZydisDecodedInstruction *zydis = decoder->zydis;
    bool modrm = zydis->attributes & ZYDIS_ATTRIB_HAS_MODRM;
    bool memory = stub->memory_size > 0;
    uint8_t rm = memory ? plan->memory_base : slot(plan->rm);
    uint8_t base = plan->opcode == SLOT_NONE ? rm : plan->opcode;
    unsigned rex = (slot(plan->reg) >> 3) << 2 | base >> 3;

    if (zydis->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
        put_vex_prefix(decoder, stub, rex, plan->vvvv);
    else if (zydis->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY ||
             !put_legacy_prefixes(decoder, stub, rex))
        return false;
    if (plan->opcode != SLOT_NONE)
        put(stub, (uint8_t)((zydis->opcode & 0xf8) | (plan->opcode & 7)));
    else
        put(stub, zydis->opcode);
    if (modrm) {
        unsigned reg = plan->reg == SLOT_NONE ? zydis->raw.modrm.reg : plan->reg & 7u;
        if (!memory && plan->rm == SLOT_NONE)
            rm = zydis->raw.modrm.rm;
        put(stub, (uint8_t)((memory ? 0 : 0xc0) | reg << 3 | (rm & 7)));
    }
    for (unsigned i = 0; i < ARRAY_LEN(zydis->raw.imm); i++)
        for (unsigned byte = 0; byte < zydis->raw.imm[i].size / 8u; byte++)
            put(stub, (uint8_t)(zydis->raw.imm[i].value.u >> (8 * byte)));
    return true;
}

/* Outside 64-bit mode bit 7 of the immediate that names a register is ignored. */
static void clear_is4(const struct decoder *decoder, struct native_stub *stub)
{
    for (unsigned i = 0; i < decoder->zydis->operand_count; i++)
        if (decoder->operands[i].encoding == ZYDIS_OPERAND_ENCODING_IS4 &&
            !(decoder->mode & MODE_64))
            stub->bytes[stub->length - 1] &= 0x7f;
}

bool native_encode(const struct decoder *decoder, struct native_stub *ret_stub)
{
    struct native_stub *stub = ret_stub;
    struct plan plan;
    stub->length = stub->memory_size = 0;
    stub->memory_read = stub->memory_write = false;
    if (!plan_make(decoder, stub, &plan))
        return false;

    if (stub->memory_size && plan.memory_base == HOST_R11)
        put_bytes(stub, "\x49\x89\xd3", 3); /* mov r11, rdx */
    if (plan.flags_loaded) {
        put_bytes(stub, "\x0f\xb7", 2);
        put_vcpu_operand(stub, HOST_RAX, offsetof(struct soft_vcpu, flags));
        put_bytes(stub, "\x04\x7f\x9e", 3); /* add al, 0x7f; sahf */
    }
    for (unsigned i = 0; i < plan.general_count; i++)
        put_general_load(stub, &plan.general[i]);
    for (unsigned i = 0; i < 16; i++)
        if (plan.load[i])
            put_vector_move(stub, plan.vex, i, plan.load[i], false);

    if (!put_instruction(decoder, stub, &plan))
        return false;
    clear_is4(decoder, stub);

    /* AH..BH after the whole registers that they are part of. */
    for (unsigned high = 0; high < 2; high++)
        for (unsigned i = 0; i < plan.general_count; i++)
            if (plan.general[i].written && plan.general[i].high_byte == high)
                put_general_store(stub, &plan.general[i]);
    for (unsigned i = 0; i < 16; i++)
        if (plan.written[i])
            put_vector_move(stub, plan.vex, i, plan.vex ? 32 : 16, true);
    if (plan.flags_stored) {
        put_bytes(stub, "\x9f\x0f\x90\xc0\x66\x89", 6); /* lahf; seto al; mov [flags], ax */
        put_vcpu_operand(stub, HOST_RAX, offsetof(struct soft_vcpu, flags));
    }
    if (plan.vex && decoder->zydis->meta.isa_ext != ZYDIS_ISA_EXT_BMI1 &&
        decoder->zydis->meta.isa_ext != ZYDIS_ISA_EXT_BMI2)
        put_bytes(stub, "\xc5\xf8\x77", 3); /* vzeroupper */
    put_bytes(stub, "\x48\x83\xc6", 3);     /* add rsi, sizeof(struct insn); jmp [rsi] */
    put(stub, sizeof(struct insn));
    put_bytes(stub, "\xff\x26", 2);
    return true;
}
