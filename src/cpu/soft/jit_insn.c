/*
 * Instructions. Nearly all are *copied*: the same prefixes, opcode and immediate, with registers
 * renamed by the map of jit_unit.h and the memory operand rewritten behind its check (copy()). The
 * table at the end names those that need something of their own. To add an instruction of the first
 * kind: nothing, if its operands are explicit; of the second: a row and a function.
 *
 * A function that returns false has emitted nothing that counts: the handler of the interpreter
 * then does the instruction.
 */
#include "cpu/soft/jit_unit.h"
#include "cpu/soft/native_stub.h"
#include "cpu/soft/system.h"

static bool is_general(ZydisRegister reg)
{
    ZydisRegisterClass class = ZydisRegisterGetClass(reg);
    return class == ZYDIS_REGCLASS_GPR8 || class == ZYDIS_REGCLASS_GPR16 ||
           class == ZYDIS_REGCLASS_GPR32 || class == ZYDIS_REGCLASS_GPR64;
}

static bool is_high_byte(ZydisRegister reg)
{
    return reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH;
}

static unsigned guest_of(ZydisRegister reg)
{
    if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL)
        return (unsigned)(reg - ZYDIS_REGISTER_AL);
    if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B)
        return (unsigned)(reg - ZYDIS_REGISTER_SPL) + CPU_RSP;
    return (unsigned)ZydisRegisterGetId(
        ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg));
}

/* ---- copying ---- */

struct copy {
    const ZydisDecodedOperand *memory;
    struct jit_ea ea;
    /* The host register for each general register that is named, and where it lives. */
    struct {
        uint8_t guest, host;
        bool load, store;
    } general[4];
    unsigned general_count;
    uint8_t reg, rm, vvvv, opcode; /* host numbers by field, or JIT_NONE */
    bool rm_slot;                  /* the register of r/m is taken from v->gpr as it lies there */
    uint8_t rm_guest;
    uint8_t scratch[2];
    unsigned scratch_count, scratch_used;
    bool byte_registers;
    unsigned written; /* host registers, by bit */
};

/* Instructions whose r/m register may as well be memory, if it is only read or 64 bits wide. */
static bool rm_may_be_memory(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
    case ZYDIS_MNEMONIC_MOVZX:
    case ZYDIS_MNEMONIC_MOVSX:
    case ZYDIS_MNEMONIC_MOVSXD:
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_ADC:
    case ZYDIS_MNEMONIC_SBB:
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_SUB:
    case ZYDIS_MNEMONIC_XOR:
    case ZYDIS_MNEMONIC_CMP:
    case ZYDIS_MNEMONIC_TEST:
    case ZYDIS_MNEMONIC_IMUL:
    case ZYDIS_MNEMONIC_INC:
    case ZYDIS_MNEMONIC_DEC:
    case ZYDIS_MNEMONIC_NEG:
    case ZYDIS_MNEMONIC_NOT:
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR: return true;
    default: return false;
    }
}

static bool add_general(struct copy *copy, const ZydisDecodedInstruction *zydis,
                        const ZydisDecodedOperand *operand, uint8_t *ret_field)
{
    ZydisRegister reg = operand->reg.value;
    if (is_high_byte(reg))
        return false;
    unsigned guest = guest_of(reg);
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
    if (operand->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM && rm_may_be_memory(zydis->mnemonic) &&
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

static bool add_register(struct copy *copy, const ZydisDecodedInstruction *zydis,
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
            unsigned guest = guest_of(reg);
            if (is_high_byte(reg) || jit_host_of[guest] != guest)
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

static bool plan(const struct jit *jit, unsigned k, struct copy *copy)
{
    const struct decoded *d = &jit->decoded[k];
    *copy = (struct copy){.reg = JIT_NONE,
                          .rm = JIT_NONE,
                          .vvvv = JIT_NONE,
                          .opcode = JIT_NONE,
                          .scratch = {JIT_RAX, JIT_T}};
    for (unsigned i = 0; i < d->zydis.operand_count; i++)
        if (d->operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY) {
            const ZydisDecodedOperand *operand = &d->operands[i];
            if (copy->memory || operand->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM ||
                operand->mem.type != ZYDIS_MEMOP_TYPE_MEM ||
                !jit_ea_of(jit, k, operand, &copy->ea))
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
static void put_copy(struct jit_asm *a, const ZydisDecodedInstruction *zydis,
                     const struct copy *copy, struct jit_rm memory)
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
            if (matters && op.prefixes < sizeof op.prefix)
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

/* `written`: host registers that the instruction has just written, `copy` what it was. Called after
 * jit_flags_set(). */
static void remember_again(struct jit *jit, unsigned k, const struct copy *copy)
{
    const struct decoded *d = &jit->decoded[k];
    struct jit_flags *flags = &jit->flags;
    if (copy->memory || copy->rm_slot || copy->general_count || copy->opcode != JIT_NONE)
        return;
    struct jit_asm again = {.start = flags->again, .at = flags->again,
                            .end = flags->again + sizeof flags->again};
    unsigned reg = copy->reg, rm = copy->rm;
    uint32_t uses = (reg == JIT_NONE ? 0 : 1u << reg) | (rm == JIT_NONE ? 0 : 1u << rm);
    struct copy inverse = *copy;
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
        put_copy(&again, &other, &inverse, JIT_REG(0));
        break;
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR: {
        /* TEST of the result with itself. 1 and 3 of the last opcode bits: r/m first, or r first. */
        unsigned result = d->zydis.opcode >= 0x80 || !(d->zydis.opcode & 2) ? rm : reg;
        other.opcode = 0x84 | (d->zydis.opcode & 1);
        memset(other.raw.imm, 0, sizeof other.raw.imm);
        inverse.reg = inverse.rm = (uint8_t)result;
        put_copy(&again, &other, &inverse, JIT_REG(0));
        flags->again_size = (uint8_t)(again.at - again.start);
        flags->again_uses = 1u << result;
        return;
    }
    default: return;
    }
    put_copy(&again, &d->zydis, copy, JIT_REG(0));
    if (again.full)
        return;
    flags->again_size = (uint8_t)(again.at - again.start);
    flags->again_uses = uses;
}

/* Instruction k, whose accesses have been checked, is about to write these host registers. */
static void will_write(struct jit *jit, unsigned k, unsigned written)
{
    const struct decoded *d = &jit->decoded[k];
    if (!(jit->flags.again_uses & written) || !jit->flags.again_size ||
        (decode_kills_flags(d) && !decode_uses_flags(d)))
        return; /* or these flags are nobody's business any more */
    if (jit_flags_dead(jit, k + 1)) {
        jit_flags_set(jit);
        return;
    }
    for (; written; written &= written - 1)
        jit_flags_wrote(jit, (unsigned)__builtin_ctz(written));
}

static void flags_after(struct jit *jit, unsigned k)
{
    if (decode_writes_flags(&jit->decoded[k]))
        jit_flags_set(jit);
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

enum kind { KIND_NO, KIND_INTEGER, KIND_VECTOR, KIND_X87 };

static enum kind kind_of(const struct jit *jit, const struct decoded *d)
{
    const ZydisDecodedInstruction *zydis = &d->zydis;
    if (!jit->v->native->isa[zydis->meta.isa_set])
        return KIND_NO;
    if (zydis->meta.isa_ext == ZYDIS_ISA_EXT_X87 || zydis->mnemonic == ZYDIS_MNEMONIC_FISTTP)
        return is_peculiar(zydis) ? KIND_NO : KIND_X87;
    bool mmx = false;
    for (unsigned i = 0; i < zydis->operand_count; i++) {
        if (d->operands[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        switch (ZydisRegisterGetClass(d->operands[i].reg.value)) {
        case ZYDIS_REGCLASS_XMM:
        case ZYDIS_REGCLASS_YMM: return is_peculiar(zydis) ? KIND_NO : KIND_VECTOR;
        case ZYDIS_REGCLASS_MMX: mmx = true; break;
        default: break;
        }
    }
    if (mmx)
        return is_peculiar(zydis) ? KIND_NO : KIND_X87;
    switch (zydis->mnemonic) {
    case ZYDIS_MNEMONIC_VZEROUPPER:
    case ZYDIS_MNEMONIC_VZEROALL: return KIND_VECTOR;
    case ZYDIS_MNEMONIC_EMMS: return KIND_X87;
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
    default: return KIND_NO;
    }
    switch (zydis->mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
    case ZYDIS_MNEMONIC_MOVZX:
    case ZYDIS_MNEMONIC_MOVSX:
    case ZYDIS_MNEMONIC_MOVSXD:
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_ADC:
    case ZYDIS_MNEMONIC_SBB:
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_SUB:
    case ZYDIS_MNEMONIC_XOR:
    case ZYDIS_MNEMONIC_CMP:
    case ZYDIS_MNEMONIC_TEST:
    case ZYDIS_MNEMONIC_INC:
    case ZYDIS_MNEMONIC_DEC:
    case ZYDIS_MNEMONIC_NEG:
    case ZYDIS_MNEMONIC_NOT:
    case ZYDIS_MNEMONIC_IMUL:
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RCL:
    case ZYDIS_MNEMONIC_RCR:
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD:
    case ZYDIS_MNEMONIC_BSF:
    case ZYDIS_MNEMONIC_BSR:
    case ZYDIS_MNEMONIC_TZCNT:
    case ZYDIS_MNEMONIC_LZCNT:
    case ZYDIS_MNEMONIC_POPCNT:
    case ZYDIS_MNEMONIC_CRC32:
    case ZYDIS_MNEMONIC_BSWAP:
    case ZYDIS_MNEMONIC_MOVBE:
    case ZYDIS_MNEMONIC_XCHG:
    case ZYDIS_MNEMONIC_XADD:
    case ZYDIS_MNEMONIC_ANDN:
    case ZYDIS_MNEMONIC_BEXTR:
    case ZYDIS_MNEMONIC_BLSI:
    case ZYDIS_MNEMONIC_BLSMSK:
    case ZYDIS_MNEMONIC_BLSR:
    case ZYDIS_MNEMONIC_BZHI:
    case ZYDIS_MNEMONIC_MULX:
    case ZYDIS_MNEMONIC_PDEP:
    case ZYDIS_MNEMONIC_PEXT:
    case ZYDIS_MNEMONIC_RORX:
    case ZYDIS_MNEMONIC_SARX:
    case ZYDIS_MNEMONIC_SHLX:
    case ZYDIS_MNEMONIC_SHRX:
    case ZYDIS_MNEMONIC_ADCX:
    case ZYDIS_MNEMONIC_ADOX: return KIND_INTEGER;
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        /* With a register as bit number the operand in memory may lie elsewhere. */
        return d->operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY &&
                       d->operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER
                   ? KIND_NO
                   : KIND_INTEGER;
    default:
        switch (zydis->meta.category) {
        case ZYDIS_CATEGORY_CMOV:
        case ZYDIS_CATEGORY_SETCC: return KIND_INTEGER;
        default: return KIND_NO;
        }
    }
}

/* Alignment that the memory operand must have here; 1: any. */
static unsigned alignment_of(const struct decoded *d, const struct copy *copy, enum kind kind)
{
    unsigned size = copy->memory->size / 8;
    if (d->zydis.attributes & ZYDIS_ATTRIB_HAS_LOCK || d->zydis.mnemonic == ZYDIS_MNEMONIC_XCHG)
        return size; /* what could be a split lock is left to the handler */
    if (kind == KIND_INTEGER)
        return 1;
    return native_alignment(&d->zydis, size);
}

/* AH, CH, DH, BH cannot stand beside REX: so nothing here may need it. The guest's RAX is brought to
 * the host's, the others are where they belong. */
static bool copy_high_byte(struct jit *jit, unsigned k)
{
    struct jit_asm *a = &jit->a;
    const struct decoded *d = &jit->decoded[k];
    struct copy copy = {.reg = JIT_NONE, .rm = JIT_NONE, .vvvv = JIT_NONE, .opcode = JIT_NONE};
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
        bool high = is_high_byte(operand->reg.value);
        unsigned guest = (unsigned)(operand->reg.value -
                                    (high ? ZYDIS_REGISTER_AH : ZYDIS_REGISTER_AL));
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
    will_write(jit, k, copy.written);
    if (rax)
        asm_op(a, 0x8b, 8, JIT_RAX, JIT_REG(JIT_R11));
    put_copy(a, &d->zydis, &copy, JIT_REG(0));
    if (rax_written)
        asm_op(a, 0x8b, 8, JIT_R11, JIT_REG(JIT_RAX));
    if (decode_writes_flags(d)) {
        jit_flags_set(jit);
        bool pure = d->zydis.mnemonic == ZYDIS_MNEMONIC_CMP ||
                    d->zydis.mnemonic == ZYDIS_MNEMONIC_TEST;
        if (pure) {
            struct jit_asm again = {.at = jit->flags.again,
                                    .end = jit->flags.again + sizeof jit->flags.again};
            if (rax)
                asm_op(&again, 0x8b, 8, JIT_RAX, JIT_REG(JIT_R11));
            put_copy(&again, &d->zydis, &copy, JIT_REG(0));
            jit->flags.again_size = (uint8_t)(again.at - jit->flags.again);
            jit->flags.again_uses = 1u << JIT_R11 | 1u << JIT_RCX | 1u << JIT_RDX | 1u << JIT_RBX;
        }
    }
    return true;
}

static bool names_high_byte(const struct decoded *d)
{
    for (unsigned i = 0; i < d->zydis.operand_count_visible; i++)
        if (d->operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            is_high_byte(d->operands[i].reg.value))
            return true;
    return false;
}

static bool copy_insn(struct jit *jit, unsigned k)
{
    struct jit_asm *a = &jit->a;
    const struct decoded *d = &jit->decoded[k];
    enum kind kind = kind_of(jit, d);
    struct copy copy;
    if (kind == KIND_INTEGER && names_high_byte(d))
        return copy_high_byte(jit, k);
    if (kind == KIND_NO || !plan(jit, k, &copy))
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
        memory = jit_access(jit, k, &copy.ea, size, write, alignment_of(d, &copy, kind));
    }
    /* A host exception must find the flags. */
    bool may_trap = kind != KIND_INTEGER;
    if (uses_flags || (may_trap && !jit->flags.saved))
        jit_flags_need_host(jit);
    will_write(jit, k, copy.written);
    for (unsigned i = 0; i < copy.general_count; i++)
        if (copy.general[i].load)
            asm_load(a, copy.general[i].host, jit_slot(jit, copy.general[i].guest));
    if (jit->flags.host)
        jit->trap_host |= 1u << k;
    put_copy(a, &d->zydis, &copy, memory);
    for (unsigned i = 0; i < copy.general_count; i++)
        if (copy.general[i].store)
            asm_store(a, copy.general[i].host, jit_slot(jit, copy.general[i].guest));
    if (decode_writes_flags(d)) {
        jit_flags_set(jit);
        if (!uses_flags && kind == KIND_INTEGER)
            remember_again(jit, k, &copy);
    }
    return true;
}

/* ---- those with something of their own ---- */

static bool nothing(struct jit *jit, unsigned k)
{
    (void)jit;
    (void)k;
    return true;
}

static bool fence(struct jit *jit, unsigned k)
{
    const ZydisDecodedInstruction *zydis = &jit->decoded[k].zydis;
    asm_bytes(&jit->a, "\x0f\xae", 2);
    asm_byte(&jit->a, zydis->raw.modrm.reg << 3 | 0xc0u);
    return true;
}

static bool lea(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    struct jit_asm *a = &jit->a;
    struct jit_ea ea;
    unsigned size = d->operands[0].size / 8;
    if (size < 4 || !jit_ea_of(jit, k, &d->operands[1], &ea))
        return false;
    ea.seg = JIT_NONE;
    unsigned guest = guest_of(d->operands[0].reg.value), to = jit_host_of[guest];
    will_write(jit, k, to == JIT_NONE ? 0 : 1u << to);
    unsigned host = to == JIT_NONE ? JIT_RAX : to;
    struct jit_rm rm = {.reg = JIT_NONE,
                        .base = ea.base == JIT_NONE ? JIT_NONE : jit_host_of[ea.base],
                        .index = ea.index == JIT_NONE ? JIT_NONE : jit_host_of[ea.index],
                        .scale = ea.scale,
                        .disp = (int32_t)ea.disp};
    if (ea.rip) {
        asm_load(a, JIT_RAX, JIT_V(jit, jit_state.page_base));
        rm.base = JIT_RAX;
    }
    if (ea.base != JIT_NONE && rm.base == JIT_NONE) {
        asm_load(a, JIT_RAX, jit_slot(jit, ea.base));
        rm.base = JIT_RAX;
    }
    if (ea.index != JIT_NONE && rm.index == JIT_NONE) {
        asm_load(a, JIT_T, jit_slot(jit, ea.index));
        rm.index = JIT_T;
    }
    asm_op(a, 0x8d, size, host, rm);
    if (to == JIT_NONE)
        asm_store(a, JIT_RAX, jit_slot(jit, guest));
    return true;
}

static const struct jit_ea stack_top = {.base = CPU_RSP, .index = JIT_NONE, .seg = JIT_NONE};

static bool push(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    const ZydisDecodedOperand *from = &d->operands[0];
    struct jit_asm *a = &jit->a;
    if (d->zydis.operand_width != 64)
        return false;
    struct jit_ea ea = stack_top;
    ea.disp = -8;
    if (from->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        if (!is_general(from->reg.value))
            return false;
        unsigned guest = guest_of(from->reg.value), host = jit_host_of[guest];
        struct jit_rm rm = jit_access(jit, k, &ea, 8, true, 1);
        will_write(jit, k, 1u << JIT_R15);
        if (host == JIT_NONE) {
            asm_load(a, JIT_RAX, jit_slot(jit, guest));
            host = JIT_RAX;
        }
        asm_store(a, host, rm);
    } else if (from->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        struct jit_rm rm = jit_access(jit, k, &ea, 8, true, 1);
        will_write(jit, k, 1u << JIT_R15);
        asm_op(a, 0xc7, 8, 0, rm);
        asm_number(a, (uint32_t)from->imm.value.u, 4);
    } else {
        struct jit_ea source;
        if (from->type != ZYDIS_OPERAND_TYPE_MEMORY || !jit_ea_of(jit, k, from, &source))
            return false;
        bool grouping = jit->grouping;
        jit->grouping = false; /* the second access would take JIT_T from a group of the first */
        asm_load(a, JIT_RAX, jit_access(jit, k, &source, 8, false, 1));
        jit->grouping = grouping;
        asm_store(a, JIT_RAX, JIT_V(jit, jit_state.target));
        struct jit_rm rm = jit_access(jit, k, &ea, 8, true, 1);
        will_write(jit, k, 1u << JIT_R15);
        asm_load(a, JIT_RAX, JIT_V(jit, jit_state.target));
        asm_store(a, JIT_RAX, rm);
    }
    asm_lea(a, JIT_R15, JIT_MEM(JIT_R15, -8));
    return true;
}

static bool pop(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    const ZydisDecodedOperand *to = &d->operands[0];
    struct jit_asm *a = &jit->a;
    if (d->zydis.operand_width != 64 || to->type != ZYDIS_OPERAND_TYPE_REGISTER ||
        !is_general(to->reg.value))
        return false;
    unsigned guest = guest_of(to->reg.value), host = jit_host_of[guest];
    struct jit_rm rm = jit_access(jit, k, &stack_top, 8, false, 1);
    will_write(jit, k, 1u << JIT_R15 | (host == JIT_NONE ? 0 : 1u << host));
    if (guest == CPU_RSP) {
        asm_load(a, JIT_R15, rm);
        return true;
    }
    asm_load(a, host == JIT_NONE ? JIT_RAX : host, rm);
    asm_lea(a, JIT_R15, JIT_MEM(JIT_R15, 8));
    if (host == JIT_NONE)
        asm_store(a, JIT_RAX, jit_slot(jit, guest));
    return true;
}

static bool leave(struct jit *jit, unsigned k)
{
    struct jit_asm *a = &jit->a;
    if (jit->decoded[k].zydis.operand_width != 64)
        return false;
    struct jit_ea ea = {.base = CPU_RBP, .index = JIT_NONE, .seg = JIT_NONE};
    struct jit_rm rm = jit_access(jit, k, &ea, 8, false, 1);
    will_write(jit, k, 1u << JIT_R15 | 1u << JIT_RBP);
    asm_lea(a, JIT_R15, JIT_MEM(JIT_RBP, 8));
    asm_load(a, JIT_RBP, rm);
    return true;
}

/* CBW CWDE CDQE: inside RAX. CWD CDQ CQO: its sign into RDX. */
static bool extend(struct jit *jit, unsigned k)
{
    struct jit_asm *a = &jit->a;
    will_write(jit, k, 1u << JIT_R11 | 1u << JIT_RDX);
    switch (jit->decoded[k].zydis.mnemonic) {
    case ZYDIS_MNEMONIC_CDQE: asm_op(a, 0x63, 8, JIT_R11, JIT_REG(JIT_R11)); return true;
    case ZYDIS_MNEMONIC_CWDE: asm_op_0f(a, 0xbf, 4, JIT_R11, JIT_REG(JIT_R11)); return true;
    case ZYDIS_MNEMONIC_CDQ:
        asm_op(a, 0x8b, 4, JIT_RAX, JIT_REG(JIT_R11));
        asm_byte(a, 0x99);
        return true;
    case ZYDIS_MNEMONIC_CQO:
        asm_op(a, 0x8b, 8, JIT_RAX, JIT_REG(JIT_R11));
        asm_bytes(a, "\x48\x99", 2);
        return true;
    default: return false;
    }
}

/* MUL, DIV, IDIV and IMUL with one operand; CMPXCHG: with the guest's RAX in the host's meanwhile.
 * The operand, if it is a register, may be the guest's RAX too. */
static bool with_rax(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    const ZydisDecodedInstruction *zydis = &d->zydis;
    struct jit_asm *a = &jit->a;
    bool exchange = zydis->mnemonic == ZYDIS_MNEMONIC_CMPXCHG;
    bool divides = zydis->mnemonic == ZYDIS_MNEMONIC_DIV || zydis->mnemonic == ZYDIS_MNEMONIC_IDIV;
    if (zydis->mnemonic == ZYDIS_MNEMONIC_IMUL && zydis->opcode != 0xf7 && zydis->opcode != 0xf6)
        return copy_insn(jit, k);
    struct copy copy = {.reg = JIT_NONE, .rm = JIT_NONE, .vvvv = JIT_NONE, .opcode = JIT_NONE};
    unsigned width = d->operands[0].size;
    copy.byte_registers = width == 8;
    unsigned visible = exchange ? 2 : 1;
    for (unsigned i = 0; i < visible; i++) {
        const ZydisDecodedOperand *operand = &d->operands[i];
        if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            if (!jit_ea_of(jit, k, operand, &copy.ea))
                return false;
            copy.memory = operand;
            continue;
        }
        if (operand->type != ZYDIS_OPERAND_TYPE_REGISTER || is_high_byte(operand->reg.value))
            return false;
        unsigned guest = guest_of(operand->reg.value), host = jit_host_of[guest];
        if (host == JIT_NONE && (exchange || i > 0))
            return false;
        if (host == JIT_NONE) {
            copy.rm_slot = true;
            copy.rm_guest = (uint8_t)guest;
        } else if (i == 0) {
            copy.rm = (uint8_t)host;
        } else {
            copy.reg = (uint8_t)host;
        }
    }
    /* CMPXCHG with RAX as its first operand: where that is written, RAX must be the same. */
    if (exchange && copy.rm == JIT_R11)
        return false;
    struct jit_rm memory = {0};
    if (copy.rm_slot)
        memory = jit_slot(jit, copy.rm_guest);
    if (copy.memory) {
        bool lock = zydis->attributes & ZYDIS_ATTRIB_HAS_LOCK;
        memory = jit_access(jit, k, &copy.ea, width / 8, exchange, lock ? width / 8 : 1);
    }
    if (decode_uses_flags(d) || (divides && !jit->flags.saved))
        jit_flags_need_host(jit);
    will_write(jit, k, 1u << JIT_R11 | (exchange ? 0 : 1u << JIT_RDX) |
                           (exchange && copy.rm != JIT_NONE ? 1u << copy.rm : 0));
    asm_op(a, 0x8b, 8, JIT_RAX, JIT_REG(JIT_R11));
    if (jit->flags.host)
        jit->trap_host |= 1u << k;
    put_copy(a, zydis, &copy, memory);
    asm_op(a, 0x8b, 8, JIT_R11, JIT_REG(JIT_RAX));
    flags_after(jit, k);
    return true;
}

/* ADD ... CMP and TEST of the accumulator with an immediate have opcodes of their own, XCHG with it
 * too: as their general forms. */
static bool accumulator(struct jit *jit, unsigned k)
{
    struct decoded *d = &jit->decoded[k];
    ZydisDecodedInstruction *zydis = &d->zydis;
    if (zydis->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT || zydis->attributes & ZYDIS_ATTRIB_HAS_MODRM)
        return copy_insn(jit, k);
    ZydisDecodedInstruction saved = *zydis;
    ZydisDecodedOperand first = d->operands[0], second = d->operands[1];
    if (zydis->mnemonic == ZYDIS_MNEMONIC_XCHG) {
        zydis->opcode = 0x87;
        d->operands[0].encoding = ZYDIS_OPERAND_ENCODING_MODRM_RM;
        d->operands[1].encoding = ZYDIS_OPERAND_ENCODING_MODRM_REG;
    } else if (zydis->mnemonic == ZYDIS_MNEMONIC_TEST) {
        zydis->opcode = zydis->opcode == 0xa8 ? 0xf6 : 0xf7;
        zydis->raw.modrm.reg = 0;
        d->operands[0].encoding = ZYDIS_OPERAND_ENCODING_MODRM_RM;
    } else if (zydis->opcode < 0x40) {
        zydis->raw.modrm.reg = zydis->opcode >> 3;
        zydis->opcode = zydis->opcode & 1 ? 0x81 : 0x80;
        d->operands[0].encoding = ZYDIS_OPERAND_ENCODING_MODRM_RM;
    } else { /* MOV of an immediate, or of an absolute address */
        return copy_insn(jit, k);
    }
    zydis->attributes |= ZYDIS_ATTRIB_HAS_MODRM;
    bool done = copy_insn(jit, k);
    if (!done) {
        *zydis = saved;
        d->operands[0] = first;
        d->operands[1] = second;
    }
    return done;
}

/* MOVZX and MOVSX of AH, BH, CH, DH; MOV of one into a low byte. */
static bool from_high_byte(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    const ZydisDecodedOperand *to = &d->operands[0], *from = &d->operands[1];
    struct jit_asm *a = &jit->a;
    if (from->type != ZYDIS_OPERAND_TYPE_REGISTER || !is_high_byte(from->reg.value) ||
        to->type != ZYDIS_OPERAND_TYPE_REGISTER || is_high_byte(to->reg.value))
        return copy_insn(jit, k);
    unsigned source = (unsigned)(from->reg.value - ZYDIS_REGISTER_AH);
    unsigned guest = guest_of(to->reg.value), host = jit_host_of[guest];
    if (host == JIT_NONE || to->size == 16)
        return false;
    will_write(jit, k, 1u << host);
    /* RCX, RDX and RBX are themselves and their second byte is encoded as that of RAX is: 4 + n. */
    if (source == CPU_RAX)
        asm_op(a, 0x8b, 4, JIT_RAX, JIT_REG(JIT_R11));
    asm_bytes(a, "\x0f", 1);
    asm_byte(a, d->zydis.mnemonic == ZYDIS_MNEMONIC_MOVSX ? 0xbe : 0xb6); /* to EAX */
    asm_byte(a, 0xc0 | (4 + source));
    if (to->size == 8) {
        asm_insn(a, &(struct jit_op){.rex = true, .opcode = 0x88}, JIT_RAX, JIT_REG((uint8_t)host));
    } else if (to->size == 64 && d->zydis.mnemonic == ZYDIS_MNEMONIC_MOVSX) {
        asm_op(a, 0x63, 8, host, JIT_REG(JIT_RAX));
    } else {
        asm_op(a, 0x8b, 4, host, JIT_REG(JIT_RAX));
    }
    return true;
}

/* CMPXCHG16B, which always writes, and must be aligned. */
static bool exchange_16(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    struct jit_asm *a = &jit->a;
    struct copy copy = {.reg = JIT_NONE,
                        .rm = JIT_NONE,
                        .vvvv = JIT_NONE,
                        .opcode = JIT_NONE,
                        .memory = &d->operands[0]};
    if (copy.memory->type != ZYDIS_OPERAND_TYPE_MEMORY ||
        !jit_ea_of(jit, k, copy.memory, &copy.ea))
        return false;
    struct jit_rm memory = jit_access(jit, k, &copy.ea, 16, true, 16);
    jit_flags_need_host(jit); /* all but ZF stay */
    will_write(jit, k, 1u << JIT_R11 | 1u << JIT_RDX);
    asm_op(a, 0x8b, 8, JIT_RAX, JIT_REG(JIT_R11));
    put_copy(a, &d->zydis, &copy, memory);
    asm_op(a, 0x8b, 8, JIT_R11, JIT_REG(JIT_RAX));
    jit_flags_set(jit);
    return true;
}

/* CLC, STC, CMC. */
static bool carry(struct jit *jit, unsigned k)
{
    jit_flags_need_host(jit);
    asm_byte(&jit->a, jit->decoded[k].zydis.opcode);
    jit_flags_set(jit);
    return true;
}

static const struct {
    ZydisMnemonic mnemonic;
    bool (*translate)(struct jit *jit, unsigned k);
} rows[] = {
    {ZYDIS_MNEMONIC_NOP, nothing},
    {ZYDIS_MNEMONIC_ENDBR64, nothing},
    {ZYDIS_MNEMONIC_PREFETCH, nothing},
    {ZYDIS_MNEMONIC_PREFETCHW, nothing},
    {ZYDIS_MNEMONIC_PREFETCHNTA, nothing},
    {ZYDIS_MNEMONIC_PREFETCHT0, nothing},
    {ZYDIS_MNEMONIC_PREFETCHT1, nothing},
    {ZYDIS_MNEMONIC_PREFETCHT2, nothing},
    {ZYDIS_MNEMONIC_LFENCE, fence},
    {ZYDIS_MNEMONIC_MFENCE, fence},
    {ZYDIS_MNEMONIC_SFENCE, fence},
    {ZYDIS_MNEMONIC_LEA, lea},
    {ZYDIS_MNEMONIC_PUSH, push},
    {ZYDIS_MNEMONIC_POP, pop},
    {ZYDIS_MNEMONIC_LEAVE, leave},
    {ZYDIS_MNEMONIC_CBW, extend},
    {ZYDIS_MNEMONIC_CWDE, extend},
    {ZYDIS_MNEMONIC_CDQE, extend},
    {ZYDIS_MNEMONIC_CWD, extend},
    {ZYDIS_MNEMONIC_CDQ, extend},
    {ZYDIS_MNEMONIC_CQO, extend},
    {ZYDIS_MNEMONIC_MUL, with_rax},
    {ZYDIS_MNEMONIC_IMUL, with_rax},
    {ZYDIS_MNEMONIC_DIV, with_rax},
    {ZYDIS_MNEMONIC_IDIV, with_rax},
    {ZYDIS_MNEMONIC_CMPXCHG, with_rax},
    {ZYDIS_MNEMONIC_ADD, accumulator},
    {ZYDIS_MNEMONIC_OR, accumulator},
    {ZYDIS_MNEMONIC_ADC, accumulator},
    {ZYDIS_MNEMONIC_SBB, accumulator},
    {ZYDIS_MNEMONIC_AND, accumulator},
    {ZYDIS_MNEMONIC_SUB, accumulator},
    {ZYDIS_MNEMONIC_XOR, accumulator},
    {ZYDIS_MNEMONIC_CMP, accumulator},
    {ZYDIS_MNEMONIC_TEST, accumulator},
    {ZYDIS_MNEMONIC_XCHG, accumulator},
    {ZYDIS_MNEMONIC_MOV, from_high_byte},
    {ZYDIS_MNEMONIC_MOVZX, from_high_byte},
    {ZYDIS_MNEMONIC_MOVSX, from_high_byte},
    {ZYDIS_MNEMONIC_CMPXCHG16B, exchange_16},
    {ZYDIS_MNEMONIC_CLC, carry},
    {ZYDIS_MNEMONIC_STC, carry},
    {ZYDIS_MNEMONIC_CMC, carry},
    {ZYDIS_MNEMONIC_STAC, jit_smap},
    {ZYDIS_MNEMONIC_CLAC, jit_smap},
    {ZYDIS_MNEMONIC_CLI, jit_cli},
    {ZYDIS_MNEMONIC_CLD, jit_cld},
    {ZYDIS_MNEMONIC_PUSHFQ, jit_pushf},
    {ZYDIS_MNEMONIC_SWAPGS, jit_swapgs},
};

enum jit_touch jit_touches(const struct jit *jit, unsigned k, struct jit_ea *ret_ea,
                           unsigned *ret_size, bool *ret_write)
{
    const struct decoded *d = &jit->decoded[k];
    insn_run *run = jit->block->insns[k].run;
    if (d->undefined || d->too_long || run == op_privileged || run == op_no_device)
        return JIT_TOUCH_STOP;
    switch (d->zydis.mnemonic) {
    case ZYDIS_MNEMONIC_LEA:
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_CDQE:
    case ZYDIS_MNEMONIC_CWDE:
    case ZYDIS_MNEMONIC_CDQ:
    case ZYDIS_MNEMONIC_CQO: return JIT_TOUCH_NOTHING;
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
        if (d->zydis.operand_width != 64 ||
            (d->operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER
                 ? !is_general(d->operands[0].reg.value)
                 : d->operands[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE))
            return JIT_TOUCH_STOP;
        *ret_ea = stack_top;
        *ret_size = 8;
        *ret_write = d->zydis.mnemonic == ZYDIS_MNEMONIC_PUSH;
        ret_ea->disp = *ret_write ? -8 : 0;
        return JIT_TOUCH_ONE;
    default: break;
    }
    enum kind kind = kind_of(jit, d);
    struct copy copy;
    bool special = decode_is_barrier(jit->v, d) && d->zydis.mnemonic != ZYDIS_MNEMONIC_MOV;
    if (kind == KIND_NO || special || names_high_byte(d) ||
        (d->zydis.mnemonic == ZYDIS_MNEMONIC_IMUL && d->zydis.operand_count_visible == 1))
        return JIT_TOUCH_STOP;
    if (!plan(jit, k, &copy))
        return JIT_TOUCH_STOP;
    if (!copy.memory)
        return JIT_TOUCH_NOTHING;
    *ret_ea = copy.ea;
    *ret_size = copy.memory->size / 8;
    *ret_write = copy.memory->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    return alignment_of(d, &copy, kind) == 1 ? JIT_TOUCH_ONE : JIT_TOUCH_OTHER;
}

bool jit_uses_vectors(const struct jit *jit)
{
    for (unsigned k = 0; k < jit->count; k++)
        if (!jit->decoded[k].undefined && !jit->decoded[k].too_long &&
            kind_of(jit, &jit->decoded[k]) == KIND_VECTOR)
            return true;
    return false;
}

bool jit_insn(struct jit *jit, unsigned k)
{
    const struct decoded *d = &jit->decoded[k];
    insn_run *run = jit->block->insns[k].run;
    if (d->undefined || d->too_long || run == op_undefined || run == op_privileged ||
        run == op_no_device)
        return false;
    for (unsigned i = 0; i < ARRAY_LEN(rows); i++)
        if (rows[i].mnemonic == d->zydis.mnemonic)
            return rows[i].translate(jit, k);
    return !decode_is_barrier(jit->v, d) && copy_insn(jit, k);
}
