/* Control, debug and extended control registers: SDM vol. 3, 2.5, 2.6 and 17.2. */
#include "cpu/soft/system.h"

#define CR0_KNOWN                                                                                  \
    (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD |     \
     CR0_PG)
#define CR3_NO_FLUSH (UINT64_C(1) << 63)

enum {
    DR6_WRITABLE = 0xe00f,
    EFER_LONG = EFER_LME | EFER_LMA,
};
#define DR7_WRITABLE UINT32_C(0xffff23ff)

static bool pae_tables(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
    return cr0 & CR0_PG && cr4 & CR4_PAE && !(efer & EFER_LME);
}

/* ---- writes ---- */

static bool cr0_write(struct soft_vcpu *v, uint64_t value)
{
    if (value >> 32)
        return false;
    value = (value & CR0_KNOWN) | CR0_ET;
    uint64_t changed = value ^ v->cr0, efer = v->efer;
    if ((value & CR0_PG && !(value & CR0_PE)) || (value & CR0_NW && !(value & CR0_CD)))
        return false;
    bool code_long = v->segment[CPU_CS].attributes & CPU_SEG_L;
    if (changed & CR0_PG && value & CR0_PG && efer & EFER_LME) {
        if (!(v->cr4 & CR4_PAE) || code_long)
            return false;
        efer |= EFER_LMA;
    } else if (changed & CR0_PG && !(value & CR0_PG)) {
        if (v->mode & MODE_64 || v->cr4 & CR4_PCIDE)
            return false;
        efer &= ~(uint64_t)EFER_LMA;
    }
    if (changed & (CR0_PG | CR0_CD | CR0_NW) && pae_tables(value, v->cr4, efer) &&
        !mmu_load_pdptes(v, v->cr3))
        return false;
    v->cr0 = value;
    v->efer = efer;
    if (changed & (CR0_PG | CR0_WP | CR0_PE))
        soft_tlb_flush(v, true);
    soft_mode_update(v);
    return true;
}

static bool cr3_write(struct soft_vcpu *v, uint64_t value)
{
    bool hint = value & CR3_NO_FLUSH && v->cr4 & CR4_PCIDE;
    if (hint)
        value &= ~CR3_NO_FLUSH;
    if (v->efer & EFER_LMA && value & ~v->system.physical_mask)
        return false;
    if (pae_tables(v->cr0, v->cr4, v->efer) && !mmu_load_pdptes(v, value))
        return false;
    /* Only one address space is cached, so bit 63 can be honoured only where nothing changes. */
    bool same = hint && value == v->cr3;
    v->cr3 = value;
    if (!same)
        soft_tlb_flush(v, false);
    return true;
}

static bool cr4_write(struct soft_vcpu *v, uint64_t value)
{
    if (value & ~v->system.cr4_allowed)
        return false;
    uint64_t changed = value ^ v->cr4;
    if (v->efer & EFER_LMA && !(value & CR4_PAE))
        return false;
    if (changed & value & CR4_PCIDE && (!(v->efer & EFER_LMA) || v->cr3 & 0xfff))
        return false;
    if (changed & (CR4_PGE | CR4_PSE | CR4_PAE | CR4_SMEP) && pae_tables(v->cr0, value, v->efer) &&
        !mmu_load_pdptes(v, v->cr3))
        return false;
    v->cr4 = value;
    if (changed & (CR4_PGE | CR4_PSE | CR4_PAE | CR4_SMEP | CR4_SMAP | CR4_PCIDE))
        soft_tlb_flush(v, true);
    if (changed & CR4_DE)
        debug_update(v);
    v->system.cpuid_ready = false;
    soft_mode_update(v);
    return true;
}

static bool cr8_write(struct soft_vcpu *v, uint64_t value)
{
    if (value > 15)
        return false;
    v->cr8 = value;
    if (v->vm->has_apic && v->vm->apic.cr8_write) {
        v->vm->apic.cr8_write(v->vm->apic.opaque, v->index, value);
        atomic_fetch_or(&v->attention, ATTENTION_INTERRUPT);
    }
    return true;
}

bool control_write(struct soft_vcpu *v, unsigned number, uint64_t value)
{
    switch (number) {
    case 0: return cr0_write(v, value);
    case 2: v->cr2 = value; return true;
    case 3: return cr3_write(v, value);
    case 4: return cr4_write(v, value);
    default: return cr8_write(v, value);
    }
}

bool xcr0_write(struct soft_vcpu *v, uint64_t value)
{
    if (!(value & 1) || value & ~v->system.xsave_allowed || (value & 6) == 4)
        return false;
    v->xcr0 = value;
    v->system.cpuid_ready = false;
    soft_mode_update(v);
    return true;
}

static uint64_t control_read(struct soft_vcpu *v, unsigned number)
{
    switch (number) {
    case 0: return v->cr0;
    case 2: return v->cr2;
    case 3: return v->cr3;
    case 4: return v->cr4;
    default:
        return v->vm->has_apic && v->vm->apic.cr8_read
                   ? v->vm->apic.cr8_read(v->vm->apic.opaque, v->index)
                   : v->cr8;
    }
}

/* ---- MOV CR, MOV DR: a = general register, aux = number, size ---- */

static void op_control_read(struct soft_vcpu *v, const struct insn *insn)
{
    need_cpl0(v, insn);
    uint64_t value = control_read(v, insn->aux);
    register_write(v, insn->a, insn->size, value);
    NEXT(v, insn);
}

static void op_control_write(struct soft_vcpu *v, const struct insn *insn)
{
    need_cpl0(v, insn);
    uint64_t value = insn->size == 8 ? REG64(v, insn->a) : REG32(v, insn->a);
    if (!control_write(v, insn->aux, value))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    insn_leave(v, insn);
}

static unsigned debug_number(struct soft_vcpu *v, const struct insn *insn)
{
    unsigned number = insn->aux;
    if (number == 4 || number == 5) {
        if (v->cr4 & CR4_DE)
            soft_raise(v, insn, VECTOR_UD);
        number += 2;
    }
    need_cpl0(v, insn);
    if (v->dr7 & DR7_GD)
        soft_raise_payload(v, insn, VECTOR_DB, 0, DR6_BD);
    return number;
}

static void op_debug_read(struct soft_vcpu *v, const struct insn *insn)
{
    unsigned number = debug_number(v, insn);
    uint64_t value = number == 7 ? v->dr7 : number == 6 ? v->dr6 : v->dr[number & 3];
    register_write(v, insn->a, insn->size, value);
    NEXT(v, insn);
}

static void op_debug_write(struct soft_vcpu *v, const struct insn *insn)
{
    unsigned number = debug_number(v, insn);
    uint64_t value = insn->size == 8 ? REG64(v, insn->a) : REG32(v, insn->a);
    if (number >= 6 && value >> 32)
        soft_raise_error(v, insn, VECTOR_GP, 0);
    if (number == 6)
        v->dr6 = (value & DR6_WRITABLE) | DR6_FIXED;
    else if (number == 7)
        v->dr7 = (value & DR7_WRITABLE) | DR7_FIXED;
    else
        v->dr[number] = value;
    if (number != 6)
        debug_update(v);
    insn_leave(v, insn);
}

void op_control_bind(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    if (insn->flags & INSN_LOCK || decoder->zydis->operand_count_visible < 2)
        return;
    ZydisRegister to = decoder->operands[0].reg.value, from = decoder->operands[1].reg.value;
    bool write = ZydisRegisterGetClass(to) == ZYDIS_REGCLASS_CONTROL ||
                 ZydisRegisterGetClass(to) == ZYDIS_REGCLASS_DEBUG;
    ZydisRegister special = write ? to : from, general = write ? from : to;
    insn->a = decode_register(general);
    insn->size = decoder->mode & MODE_64 ? 8 : 4;
    insn->aux = (uint32_t)ZydisRegisterGetId(special);
    decoder->ends_block = write;
    switch (ZydisRegisterGetClass(special)) {
    case ZYDIS_REGCLASS_CONTROL: insn->run = write ? op_control_write : op_control_read; break;
    case ZYDIS_REGCLASS_DEBUG:
        if (insn->aux < 8)
            insn->run = write ? op_debug_write : op_debug_read;
        break;
    default: break;
    }
}

/* ---- LMSW, SMSW, CLTS, XGETBV, XSETBV ---- */

static void op_lmsw(struct soft_vcpu *v, const struct insn *insn)
{
    need_cpl0(v, insn);
    uint64_t value = operand_load(v, insn, 2);
    uint64_t low = (v->cr0 & CR0_PE) | (value & 15); /* cannot clear PE */
    if (!cr0_write(v, (v->cr0 & ~UINT64_C(15)) | low))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    insn_leave(v, insn);
}

static void op_smsw(struct soft_vcpu *v, const struct insn *insn)
{
    if (v->mode & MODE_UMIP && vcpu_cpl(v) != 0)
        soft_raise_error(v, insn, VECTOR_GP, 0);
    operand_store(v, insn, insn->flags & INSN_MEMORY ? 2 : insn->size, v->cr0);
    NEXT(v, insn);
}

static void op_clts(struct soft_vcpu *v, const struct insn *insn)
{
    need_cpl0(v, insn);
    v->cr0 &= ~(uint64_t)CR0_TS;
    soft_mode_update(v);
    insn_leave(v, insn);
}

static void op_xgetbv(struct soft_vcpu *v, const struct insn *insn)
{
    if (!(v->cr4 & CR4_OSXSAVE))
        soft_raise(v, insn, VECTOR_UD);
    if (REG32(v, CPU_RCX * 8) != 0)
        soft_raise_error(v, insn, VECTOR_GP, 0);
    reg32_write(v, CPU_RAX * 8, (uint32_t)v->xcr0);
    reg32_write(v, CPU_RDX * 8, (uint32_t)(v->xcr0 >> 32));
    NEXT(v, insn);
}

static void op_xsetbv(struct soft_vcpu *v, const struct insn *insn)
{
    if (!(v->cr4 & CR4_OSXSAVE))
        soft_raise(v, insn, VECTOR_UD);
    need_cpl0(v, insn);
    uint64_t value = (uint64_t)REG32(v, CPU_RDX * 8) << 32 | REG32(v, CPU_RAX * 8);
    if (REG32(v, CPU_RCX * 8) != 0 || !xcr0_write(v, value))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    insn_leave(v, insn);
}

void control_bind(struct decoder *decoder)
{
    static insn_run *const handlers[] = {[CONTROL_LMSW] = op_lmsw,
                                         [CONTROL_SMSW] = op_smsw,
                                         [CONTROL_CLTS] = op_clts,
                                         [CONTROL_XGETBV] = op_xgetbv,
                                         [CONTROL_XSETBV] = op_xsetbv};
    struct insn *insn = decoder->insn;
    if (insn->flags & INSN_LOCK)
        return;
    if (decoder->arg <= CONTROL_SMSW && decoder->operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER)
        insn->a = decode_register(decoder->operands[0].reg.value);
    insn->run = handlers[decoder->arg];
    decoder->ends_block = decoder->arg != CONTROL_SMSW && decoder->arg != CONTROL_XGETBV;
}
