/*
 * Copying an instruction: which may be, with which registers, and the bytes. The guest's own
 * opcode, prefixes and immediate stay; registers are renamed by the map of jit_unit.h, and a memory
 * operand is written anew behind its check.
 *
 * To let another integer instruction through, whose operands are all explicit: a row in `integers`.
 * Vector and x87 instructions need none, but those of is_peculiar() must not be.
 */
#include "cpu/soft/jit_copy.h"
#include "cpu/soft/native_stub.h"

/* Integer instructions that are copied. SLOT: where r/m is a register, it may as well be memory, if
 * it is only read or 64 bits wide. */
enum { COPIED = 1, SLOT = 2 };
static const uint8_t integers[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
    [ZYDIS_MNEMONIC_MOV] = COPIED | SLOT,   [ZYDIS_MNEMONIC_MOVZX] = COPIED | SLOT,
    [ZYDIS_MNEMONIC_MOVSX] = COPIED | SLOT, [ZYDIS_MNEMONIC_MOVSXD] = COPIED | SLOT,
    [ZYDIS_MNEMONIC_ADD] = COPIED | SLOT,   [ZYDIS_MNEMONIC_OR] = COPIED | SLOT,
    [ZYDIS_MNEMONIC_ADC] = COPIED | SLOT,   [ZYDIS_MNEMONIC_SBB] = COPIED | SLOT,
    [ZYDIS_MNEMONIC_AND] = COPIED | SLOT,   [ZYDIS_MNEMONIC_SUB] = COPIED | SLOT,
    [ZYDIS_MNEMONIC_XOR] = COPIED | SLOT,   [ZYDIS_MNEMONIC_CMP] = COPIED | SLOT,
    [ZYDIS_MNEMONIC_TEST] = COPIED | SLOT,  [ZYDIS_MNEMONIC_INC] = COPIED | SLOT,
    [ZYDIS_MNEMONIC_DEC] = COPIED | SLOT,   [ZYDIS_MNEMONIC_NEG] = COPIED | SLOT,
    [ZYDIS_MNEMONIC_NOT] = COPIED | SLOT,   [ZYDIS_MNEMONIC_IMUL] = COPIED | SLOT,
    [ZYDIS_MNEMONIC_SHL] = COPIED | SLOT,   [ZYDIS_MNEMONIC_SHR] = COPIED | SLOT,
    [ZYDIS_MNEMONIC_SAR] = COPIED | SLOT,   [ZYDIS_MNEMONIC_ROL] = COPIED,
    [ZYDIS_MNEMONIC_ROR] = COPIED,          [ZYDIS_MNEMONIC_RCL] = COPIED,
    [ZYDIS_MNEMONIC_RCR] = COPIED,          [ZYDIS_MNEMONIC_SHLD] = COPIED,
    [ZYDIS_MNEMONIC_SHRD] = COPIED,         [ZYDIS_MNEMONIC_BSF] = COPIED,
    [ZYDIS_MNEMONIC_BSR] = COPIED,          [ZYDIS_MNEMONIC_TZCNT] = COPIED,
    [ZYDIS_MNEMONIC_LZCNT] = COPIED,        [ZYDIS_MNEMONIC_POPCNT] = COPIED,
    [ZYDIS_MNEMONIC_CRC32] = COPIED,        [ZYDIS_MNEMONIC_BSWAP] = COPIED,
    [ZYDIS_MNEMONIC_MOVBE] = COPIED,        [ZYDIS_MNEMONIC_XCHG] = COPIED,
    [ZYDIS_MNEMONIC_XADD] = COPIED,         [ZYDIS_MNEMONIC_ANDN] = COPIED,
    [ZYDIS_MNEMONIC_BEXTR] = COPIED,        [ZYDIS_MNEMONIC_BLSI] = COPIED,
    [ZYDIS_MNEMONIC_BLSMSK] = COPIED,       [ZYDIS_MNEMONIC_BLSR] = COPIED,
    [ZYDIS_MNEMONIC_BZHI] = COPIED,         [ZYDIS_MNEMONIC_MULX] = COPIED,
    [ZYDIS_MNEMONIC_PDEP] = COPIED,         [ZYDIS_MNEMONIC_PEXT] = COPIED,
    [ZYDIS_MNEMONIC_RORX] = COPIED,         [ZYDIS_MNEMONIC_SARX] = COPIED,
    [ZYDIS_MNEMONIC_SHLX] = COPIED,         [ZYDIS_MNEMONIC_SHRX] = COPIED,
    [ZYDIS_MNEMONIC_ADCX] = COPIED,         [ZYDIS_MNEMONIC_ADOX] = COPIED,
};

static bool add_general(struct jit_copy *copy, const ZydisDecodedInstruction *zydis,
                        const ZydisDecodedOperand *operand, uint8_t *ret_field)
{
    ZydisRegister reg = operand->reg.value;
    if (jit_is_high_byte(reg))
        return false;
    unsigned guest = jit_guest_of(reg);
    bool write = operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    bool whole = operand->size >= 32 && !(operand->actions & ZYDIS_OPERAND_ACTION_CONDWRITE);
    bool read = (operand->actions & ZYDIS_OPERAND_ACTION_MASK_READ) || !whole ||
                zydis->mnemonic == ZYDIS_MNEMONIC_BSF || zydis->mnemonic == ZYDIS_MNEMONIC_BSR;
    copy->byte_registers |= operand->size == 8;
    if (jit_host_of[guest] != JIT_NONE) {
        *ret_field = jit_host_of[guest];
        if (write)
            copy->written |= 1u << *ret_field;
        return true;
    }
    for (unsigned i = 0; i < copy->general_count; i++)
        if (copy->general[i].guest == guest) {
            copy->general[i].load |= read;
            copy->general[i].store |= write;
            *ret_field = copy->general[i].host;
            return true;
        }
    if (operand->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM && integers[zydis->mnemonic] & SLOT &&
        (!write || operand->size != 32)) {
        copy->rm_slot = true;
        copy->rm_guest = (uint8_t)guest;
        *ret_field = JIT_NONE;
        return true;
    }
    if (copy->scratch_used == copy->scratch_count)
        return false;
    unsigned n = copy->general_count++;
    copy->general[n].guest = (uint8_t)guest;
    copy->general[n].host = *ret_field = copy->scratch[copy->scratch_used++];
    copy->general[n].load = read;
    copy->general[n].store = write;
    return true;
}

static bool add_register(struct jit_copy *copy, const ZydisDecodedInstruction *zydis,
                         const ZydisDecodedOperand *operand)
{
    ZydisRegister reg = operand->reg.value;
    uint8_t host = 0;
    switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR8:
    case ZYDIS_REGCLASS_GPR16:
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64:
        if (operand->encoding == ZYDIS_OPERAND_ENCODING_NONE) {
            /* Implied: only where it is the same register here. */
            unsigned guest = jit_guest_of(reg);
            if (jit_is_high_byte(reg) || jit_host_of[guest] != guest)
                return false;
            if (operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
                copy->written |= 1u << guest;
            return true;
        }
        if (!add_general(copy, zydis, operand, &host))
            return false;
        break;
    case ZYDIS_REGCLASS_XMM:
    case ZYDIS_REGCLASS_YMM: host = (uint8_t)ZydisRegisterGetId(reg); break;
    case ZYDIS_REGCLASS_MMX:
    case ZYDIS_REGCLASS_X87: host = (uint8_t)ZydisRegisterGetId(reg) & 7; break;
    case ZYDIS_REGCLASS_FLAGS: return true;
    default:
        return reg == ZYDIS_REGISTER_MXCSR || reg == ZYDIS_REGISTER_X87CONTROL ||
               reg == ZYDIS_REGISTER_X87STATUS || reg == ZYDIS_REGISTER_X87TAG;
    }
    switch (operand->encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG: copy->reg = host; return true;
    case ZYDIS_OPERAND_ENCODING_MODRM_RM: copy->rm = host; return true;
    case ZYDIS_OPERAND_ENCODING_NDSNDD: copy->vvvv = host; return true;
    case ZYDIS_OPERAND_ENCODING_OPCODE: copy->opcode = host; return true;
    case ZYDIS_OPERAND_ENCODING_IS4:
    case ZYDIS_OPERAND_ENCODING_NONE: return true;
    default: return false;
    }
}

bool jit_copy_plan(const struct jit *jit, unsigned k, struct jit_copy *copy)
{
    const struct decoded *d = &jit->decoded[k];
    *copy = JIT_COPY_EMPTY;
    copy->scratch[0] = JIT_RAX;
    copy->scratch[1] = JIT_T;
    for (unsigned i = 0; i < d->zydis.operand_count; i++)
        if (d->operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY) {
            const ZydisDecodedOperand *operand = &d->operands[i];
            if (copy->memory || operand->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM ||
                operand->mem.type != ZYDIS_MEMOP_TYPE_MEM || !jit_ea_of(jit, k, operand, &copy->ea))
                return false;
            copy->memory = operand;
        }
    copy->scratch_count = copy->memory ? 1 : 2;
    for (unsigned i = 0; i < d->zydis.operand_count; i++) {
        const ZydisDecodedOperand *operand = &d->operands[i];
        if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER
                ? !add_register(copy, &d->zydis, operand)
                : operand->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && operand->imm.is_relative)
            return false;
    }
    return true;
}

static void put_immediates(struct jit_asm *a, const ZydisDecodedInstruction *zydis)
{
    for (unsigned i = 0; i < ARRAY_LEN(zydis->raw.imm); i++)
        asm_number(a, zydis->raw.imm[i].value.u, zydis->raw.imm[i].size / 8u);
}

/* The instruction itself, its operands being where they belong. */
void jit_copy_put(struct jit_asm *a, const ZydisDecodedInstruction *zydis,
                  const struct jit_copy *copy, struct jit_rm memory)
{
    struct jit_op op = {.wide = zydis->raw.rex.W, .opcode = zydis->opcode};
    switch (zydis->opcode_map) {
    case ZYDIS_OPCODE_MAP_0F: op.map = 1; break;
    case ZYDIS_OPCODE_MAP_0F38: op.map = 2; break;
    case ZYDIS_OPCODE_MAP_0F3A: op.map = 3; break;
    default: break;
    }
    if (zydis->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
        op.vex = true;
        op.map = zydis->raw.vex.m_mmmm;
        op.wide = zydis->raw.vex.W;
        op.vex_pp = zydis->raw.vex.pp;
        op.vex_l = zydis->raw.vex.L;
        op.vex_v = copy->vvvv == JIT_NONE ? 0 : copy->vvvv;
    } else {
        for (unsigned i = 0; i < zydis->raw.prefix_count; i++) {
            uint8_t prefix = zydis->raw.prefixes[i].value;
            bool matters = prefix == 0x66 || prefix == 0xf0 ||
                           ((prefix == 0xf2 || prefix == 0xf3) &&
                            zydis->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY);
            /* Each once: more would not fit. */
            if (matters && !memchr(op.prefix, prefix, op.prefixes))
                op.prefix[op.prefixes++] = prefix;
        }
        op.rex = copy->byte_registers;
    }
    if (copy->opcode != JIT_NONE && !(zydis->attributes & ZYDIS_ATTRIB_HAS_MODRM)) {
        asm_bytes(a, op.prefix, op.prefixes);
        unsigned rex = (op.wide ? 8u : 0) | (copy->opcode >> 3);
        if (rex || op.rex)
            asm_byte(a, 0x40 | rex);
        if (op.map)
            asm_byte(a, 0x0f);
        asm_byte(a, (op.opcode & 0xf8u) | (copy->opcode & 7));
    } else if (zydis->attributes & ZYDIS_ATTRIB_HAS_MODRM) {
        struct jit_rm rm = copy->memory || copy->rm_slot ? memory
                           : copy->rm == JIT_NONE        ? JIT_REG(zydis->raw.modrm.rm)
                                                         : JIT_REG(copy->rm);
        unsigned reg = copy->reg == JIT_NONE ? zydis->raw.modrm.reg : copy->reg;
        asm_insn(a, &op, reg, rm);
    } else { /* no operands at all */
        asm_bytes(a, op.prefix, op.prefixes);
        if (op.vex) {
            asm_byte(a, 0xc5);
            asm_byte(a, 0xf8u | op.vex_l << 2 | op.vex_pp);
        } else {
            if (op.wide)
                asm_byte(a, 0x48);
            if (op.map)
                asm_byte(a, 0x0f);
        }
        asm_byte(a, op.opcode);
    }
    put_immediates(a, zydis);
}

/* ---- flags that can be computed again ---- */

/* Instruction k, copied so, has just set all flags. */
static void remember_again(struct jit *jit, unsigned k, const struct jit_copy *copy)
{
    const struct decoded *d = &jit->decoded[k];
    struct jit_flags *flags = &jit->flags;
    if (copy->memory || copy->rm_slot || copy->general_count || copy->opcode != JIT_NONE)
        return;
    struct jit_asm again = {
        .start = flags->again, .at = flags->again, .end = flags->again + sizeof flags->again};
    unsigned reg = copy->reg, rm = copy->rm;
    uint32_t uses = (reg == JIT_NONE ? 0 : 1u << reg) | (rm == JIT_NONE ? 0 : 1u << rm);
    struct jit_copy inverse = *copy;
    ZydisDecodedInstruction other = d->zydis;
    switch (d->zydis.mnemonic) {
    case ZYDIS_MNEMONIC_CMP:
    case ZYDIS_MNEMONIC_TEST: break;
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
        /* Opcodes 00..03 and 28..2b, or /0 and /5 of 80..83: the one takes the other back. */
        if (reg == rm)
            return;
        if (d->zydis.opcode >= 0x80)
            other.raw.modrm.reg ^= 5;
        else
            other.opcode ^= 0x28;
        jit_copy_put(&again, &other, &inverse, JIT_REG(0));
        break;
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR: {
        /* TEST of the result with itself: r/m or, by bit 1 of the opcode, r. */
        unsigned result = d->zydis.opcode >= 0x80 || !(d->zydis.opcode & 2) ? rm : reg;
        other.opcode = 0x84 | (d->zydis.opcode & 1);
        memset(other.raw.imm, 0, sizeof other.raw.imm);
        inverse.reg = inverse.rm = (uint8_t)result;
        jit_copy_put(&again, &other, &inverse, JIT_REG(0));
        flags->again_size = (uint8_t)(again.at - again.start);
        flags->again_uses = 1u << result;
        return;
    }
    default: return;
    }
    jit_copy_put(&again, &d->zydis, copy, JIT_REG(0));
    if (again.full)
        return;
    flags->again_size = (uint8_t)(again.at - again.start);
    flags->again_uses = uses;
}

/* Instruction k, whose accesses have been checked, is about to write these host registers. */
void jit_will_write(struct jit *jit, unsigned k, unsigned written)
{
    const struct decoded *d = &jit->decoded[k];
    if (!(jit->flags.again_uses & written) || !jit->flags.again_size ||
        (decode_kills_flags(d) && !decode_uses_flags(d)))
        return; /* or these flags are nobody's business any more */
    if (jit_flags_dead(jit, k + 1)) {
        jit_flags_forget(jit);
        return;
    }
    for (; written; written &= written - 1)
        jit_flags_wrote(jit, (unsigned)__builtin_ctz(written));
}

/* ---- what may be copied ---- */

/* Vector, MMX and x87 instructions that have more to do than their operands say. */
static bool is_peculiar(const ZydisDecodedInstruction *zydis)
{
    switch (zydis->meta.category) {
    case ZYDIS_CATEGORY_XSAVE:
    case ZYDIS_CATEGORY_XSAVEOPT:
    case ZYDIS_CATEGORY_AVX2GATHER: return true;
    default: break;
    }
    switch (zydis->mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
    case ZYDIS_MNEMONIC_LDMXCSR:
    case ZYDIS_MNEMONIC_STMXCSR:
    case ZYDIS_MNEMONIC_VLDMXCSR:
    case ZYDIS_MNEMONIC_VSTMXCSR:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FLDCW:
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FNCLEX:
    case ZYDIS_MNEMONIC_FNINIT: return true;
    default: return false;
    }
}

enum jit_kind jit_kind_of(const struct jit *jit, const struct decoded *d)
{
    const ZydisDecodedInstruction *zydis = &d->zydis;
    if (!jit->v->native->isa[zydis->meta.isa_set])
        return JIT_KIND_NO;
    if (zydis->meta.isa_ext == ZYDIS_ISA_EXT_X87 || zydis->mnemonic == ZYDIS_MNEMONIC_FISTTP)
        return is_peculiar(zydis) ? JIT_KIND_NO : JIT_KIND_X87;
    bool mmx = false;
    for (unsigned i = 0; i < zydis->operand_count; i++) {
        if (d->operands[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        switch (ZydisRegisterGetClass(d->operands[i].reg.value)) {
        case ZYDIS_REGCLASS_XMM:
        case ZYDIS_REGCLASS_YMM: return is_peculiar(zydis) ? JIT_KIND_NO : JIT_KIND_VECTOR;
        case ZYDIS_REGCLASS_MMX: mmx = true; break;
        default: break;
        }
    }
    if (mmx)
        return is_peculiar(zydis) ? JIT_KIND_NO : JIT_KIND_X87;
    switch (zydis->mnemonic) {
    case ZYDIS_MNEMONIC_VZEROUPPER:
    case ZYDIS_MNEMONIC_VZEROALL: return JIT_KIND_VECTOR;
    case ZYDIS_MNEMONIC_EMMS: return JIT_KIND_X87;
    default: break;
    }
    switch (zydis->meta.isa_ext) {
    case ZYDIS_ISA_EXT_BASE:
    case ZYDIS_ISA_EXT_LONGMODE:
    case ZYDIS_ISA_EXT_BMI1:
    case ZYDIS_ISA_EXT_BMI2:
    case ZYDIS_ISA_EXT_LZCNT:
    case ZYDIS_ISA_EXT_ADOX_ADCX:
    case ZYDIS_ISA_EXT_MOVBE:
    case ZYDIS_ISA_EXT_SSE4: /* POPCNT, CRC32 */ break;
    default: return JIT_KIND_NO;
    }
    switch (zydis->mnemonic) {
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        /* With a register as bit number the operand in memory may lie elsewhere. */
        return d->operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY &&
                       d->operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER
                   ? JIT_KIND_NO
                   : JIT_KIND_INTEGER;
    default: break;
    }
    switch (zydis->meta.category) {
    case ZYDIS_CATEGORY_CMOV:
    case ZYDIS_CATEGORY_SETCC: return JIT_KIND_INTEGER;
    default: return integers[zydis->mnemonic] ? JIT_KIND_INTEGER : JIT_KIND_NO;
    }
}

/* Alignment that the memory operand must have here; 1: any. */
unsigned jit_copy_alignment(const struct decoded *d, const struct jit_copy *copy,
                            enum jit_kind kind)
{
    unsigned size = copy->memory->size / 8;
    if (d->zydis.attributes & ZYDIS_ATTRIB_HAS_LOCK || d->zydis.mnemonic == ZYDIS_MNEMONIC_XCHG)
        return size; /* what could be a split lock is left to the handler */
    if (kind == JIT_KIND_INTEGER)
        return 1;
    return native_alignment(&d->zydis, size);
}

/* AH, CH, DH, BH cannot stand beside REX: so nothing here may need it. The guest's RAX is brought
 * to the host's, the others are where they belong. */
static bool copy_high_byte(struct jit *jit, unsigned k)
{
    struct jit_asm *a = &jit->a;
    const struct decoded *d = &jit->decoded[k];
    struct jit_copy copy = JIT_COPY_EMPTY;
    bool rax = false, rax_written = false;
    if (d->zydis.attributes & ZYDIS_ATTRIB_HAS_LOCK || d->zydis.mnemonic == ZYDIS_MNEMONIC_MUL)
        return false;
    for (unsigned i = 0; i < d->zydis.operand_count_visible; i++) {
        const ZydisDecodedOperand *operand = &d->operands[i];
        if (operand->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
            continue;
        if (operand->type != ZYDIS_OPERAND_TYPE_REGISTER ||
            operand->reg.value < ZYDIS_REGISTER_AL || operand->reg.value > ZYDIS_REGISTER_BH)
            return false;
        bool high = jit_is_high_byte(operand->reg.value);
        unsigned guest =
            (unsigned)(operand->reg.value - (high ? ZYDIS_REGISTER_AH : ZYDIS_REGISTER_AL));
        bool write = operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
        rax |= guest == CPU_RAX;
        rax_written |= guest == CPU_RAX && write;
        if (write)
            copy.written |= 1u << jit_host_of[guest];
        uint8_t number = (uint8_t)(guest + (high ? 4 : 0));
        switch (operand->encoding) {
        case ZYDIS_OPERAND_ENCODING_MODRM_REG: copy.reg = number; break;
        case ZYDIS_OPERAND_ENCODING_MODRM_RM: copy.rm = number; break;
        case ZYDIS_OPERAND_ENCODING_OPCODE: copy.opcode = number; break;
        case ZYDIS_OPERAND_ENCODING_NONE: /* CL of a shift */
            if (number != CPU_RCX)
                return false;
            break;
        default: return false;
        }
    }
    if (decode_uses_flags(d))
        jit_flags_need_host(jit);
    jit_will_write(jit, k, copy.written);
    if (rax)
        asm_op(a, 0x8b, 8, JIT_RAX, JIT_REG(JIT_R11));
    jit_copy_put(a, &d->zydis, &copy, JIT_REG(0));
    if (rax_written)
        asm_op(a, 0x8b, 8, JIT_R11, JIT_REG(JIT_RAX));
    if (decode_writes_flags(d)) {
        jit_flags_set(jit);
        bool pure =
            d->zydis.mnemonic == ZYDIS_MNEMONIC_CMP || d->zydis.mnemonic == ZYDIS_MNEMONIC_TEST;
        if (pure) {
            struct jit_asm again = {.at = jit->flags.again,
                                    .end = jit->flags.again + sizeof jit->flags.again};
            if (rax)
                asm_op(&again, 0x8b, 8, JIT_RAX, JIT_REG(JIT_R11));
            jit_copy_put(&again, &d->zydis, &copy, JIT_REG(0));
            jit->flags.again_size = (uint8_t)(again.at - jit->flags.again);
            jit->flags.again_uses = 1u << JIT_R11 | 1u << JIT_RCX | 1u << JIT_RDX | 1u << JIT_RBX;
        }
    }
    return true;
}

bool jit_names_high_byte(const struct decoded *d)
{
    for (unsigned i = 0; i < d->zydis.operand_count_visible; i++)
        if (d->operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            jit_is_high_byte(d->operands[i].reg.value))
            return true;
    return false;
}

bool jit_copy_insn(struct jit *jit, unsigned k)
{
    struct jit_asm *a = &jit->a;
    const struct decoded *d = &jit->decoded[k];
    enum jit_kind kind = jit_kind_of(jit, d);
    struct jit_copy copy;
    if (kind == JIT_KIND_INTEGER && jit_names_high_byte(d))
        return copy_high_byte(jit, k);
    if (kind == JIT_KIND_NO || !jit_copy_plan(jit, k, &copy))
        return false;
    bool uses_flags = decode_uses_flags(d);
    struct jit_rm memory = {0};
    if (copy.rm_slot)
        memory = jit_slot(jit, copy.rm_guest);
    if (copy.memory) {
        unsigned size = copy.memory->size / 8;
        bool write = copy.memory->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
        if (size == 0 || size > 64)
            return false;
        memory = jit_access(jit, k, &copy.ea, size, write, jit_copy_alignment(d, &copy, kind));
    }
    if (uses_flags)
        jit_flags_need_host(jit);
    struct jit_trap *trap = kind != JIT_KIND_INTEGER ? jit_may_trap(jit, k) : NULL;
    jit_will_write(jit, k, copy.written);
    for (unsigned i = 0; i < copy.general_count; i++)
        if (copy.general[i].load)
            asm_load(a, copy.general[i].host, jit_slot(jit, copy.general[i].guest));
    if (trap)
        trap->at = asm_here(a);
    jit_copy_put(a, &d->zydis, &copy, memory);
    for (unsigned i = 0; i < copy.general_count; i++)
        if (copy.general[i].store)
            asm_store(a, copy.general[i].host, jit_slot(jit, copy.general[i].guest));
    if (decode_writes_flags(d)) {
        jit_flags_set(jit);
        if (!uses_flags && kind == JIT_KIND_INTEGER)
            remember_again(jit, k, &copy);
    }
    return true;
}
