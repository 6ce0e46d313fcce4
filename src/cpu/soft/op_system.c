/*
 * Instructions of the system that are neither control flow nor control registers, and the table of
 * them all. Descriptor tables and selectors: SDM vol. 3, 2.4 and 5.10; the rest: vol. 2.
 *
 * What has no row raises #UD: VMX, SVM, SMM, MONITOR, ENQCMD and all else that CPUID hides.
 */
#include "cpu/soft/block.h"
#include "cpu/soft/system.h"

#include <sched.h>

/* ---- operands ---- */

uint64_t operand_load(struct soft_vcpu *v, const struct insn *insn, unsigned size)
{
    if (insn->flags & INSN_MEMORY) {
        uint64_t linear = insn_linear(v, insn, size, false);
        switch (size) {
        case 1: return load_8(v, insn, linear, insn->seg);
        case 2: return load_16(v, insn, linear, insn->seg);
        case 4: return load_32(v, insn, linear, insn->seg);
        default: return load_64(v, insn, linear, insn->seg);
        }
    }
    switch (size) {
    case 1: return REG8(v, insn->a);
    case 2: return REG16(v, insn->a);
    case 4: return REG32(v, insn->a);
    default: return REG64(v, insn->a);
    }
}

void register_write(struct soft_vcpu *v, unsigned offset, unsigned size, uint64_t value)
{
    switch (size) {
    case 1: REG8(v, offset) = (uint8_t)value; break;
    case 2: REG16(v, offset) = (uint16_t)value; break;
    case 4: reg32_write(v, offset, (uint32_t)value); break;
    default: REG64(v, offset) = value; break;
    }
}

void operand_store(struct soft_vcpu *v, const struct insn *insn, unsigned size, uint64_t value)
{
    if (!(insn->flags & INSN_MEMORY)) {
        register_write(v, insn->a, size, value);
        return;
    }
    uint64_t linear = insn_linear(v, insn, size, true);
    switch (size) {
    case 1: store_8(v, insn, linear, insn->seg, (uint8_t)value); break;
    case 2: store_16(v, insn, linear, insn->seg, (uint16_t)value); break;
    case 4: store_32(v, insn, linear, insn->seg, (uint32_t)value); break;
    default: store_64(v, insn, linear, insn->seg, value); break;
    }
}

void insn_leave(struct soft_vcpu *v, const struct insn *insn)
{
    const struct soft_block *block = v->block;
    if (block && insn >= block->insns && insn < block->insns + block->count)
        v->instructions -= (uint64_t)(block->insns + block->count - (insn + 1));
    insn_done(v, insn);
}

/* ---- descriptor tables ---- */

static void need_umip(struct soft_vcpu *v, const struct insn *insn)
{
    if (v->mode & MODE_UMIP && vcpu_cpl(v) != 0)
        soft_raise_error(v, insn, VECTOR_GP, 0);
}

static void table_load(struct soft_vcpu *v, const struct insn *insn, struct cpu_table *table)
{
    need_cpl0(v, insn);
    bool wide = v->mode & MODE_64;
    uint64_t linear = insn_linear(v, insn, wide ? 10 : 6, false);
    uint8_t bytes[10] = {0};
    soft_load_bytes(v, insn, linear, bytes, wide ? 10 : 6, insn->seg);
    uint64_t base = le64_read(bytes + 2);
    if (!wide)
        base &= insn->size == 2 ? 0xffffff : UINT32_MAX;
    if (!canonical(base))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    table->limit = le16_read(bytes);
    table->base = base;
}

static void table_store(struct soft_vcpu *v, const struct insn *insn, const struct cpu_table *table)
{
    need_umip(v, insn);
    bool wide = v->mode & MODE_64;
    uint8_t bytes[10];
    le16_write(bytes, table->limit);
    le64_write(bytes + 2, table->base);
    uint64_t linear = insn_linear(v, insn, wide ? 10 : 6, true);
    soft_store_bytes(v, insn, linear, bytes, wide ? 10 : 6, insn->seg);
}

static void op_lgdt(struct soft_vcpu *v, const struct insn *insn)
{
    table_load(v, insn, &v->gdt);
    NEXT(v, insn);
}

static void op_lidt(struct soft_vcpu *v, const struct insn *insn)
{
    table_load(v, insn, &v->idt);
    NEXT(v, insn);
}

static void op_sgdt(struct soft_vcpu *v, const struct insn *insn)
{
    table_store(v, insn, &v->gdt);
    NEXT(v, insn);
}

static void op_sidt(struct soft_vcpu *v, const struct insn *insn)
{
    table_store(v, insn, &v->idt);
    NEXT(v, insn);
}

/* A system descriptor for LLDT and LTR: present, of one of the types in the mask. */
static void fetch_system(struct soft_vcpu *v, const struct insn *insn, uint16_t selector,
                         uint32_t types, struct descriptor *d)
{
    uint32_t error = selector & 0xfffcu;
    if (selector & 4)
        soft_raise_error(v, insn, VECTOR_GP, error);
    descriptor_fetch(v, insn, selector, VECTOR_GP, 0, d);
    if (d->high & DESC_S || !(types >> descriptor_type(d) & 1))
        soft_raise_error(v, insn, VECTOR_GP, error);
    if (!(d->high & DESC_P))
        soft_raise_error(v, insn, VECTOR_NP, error);
    if (v->efer & EFER_LMA) {
        descriptor_fetch_high(v, insn, VECTOR_GP, 0, d);
        if (!canonical(descriptor_base(d)))
            soft_raise_error(v, insn, VECTOR_GP, error);
    }
}

static void op_lldt(struct soft_vcpu *v, const struct insn *insn)
{
    need_cpl0(v, insn);
    uint16_t selector = (uint16_t)operand_load(v, insn, 2);
    if (!(selector & 0xfffc)) {
        v->ldt = (struct cpu_segment){.selector = selector, .attributes = CPU_SEG_UNUSABLE};
    } else {
        struct descriptor d;
        fetch_system(v, insn, selector, 1u << SYSTEM_LDT, &d);
        v->ldt = descriptor_segment(&d, selector);
    }
    NEXT(v, insn);
}

static void op_ltr(struct soft_vcpu *v, const struct insn *insn)
{
    need_cpl0(v, insn);
    uint16_t selector = (uint16_t)operand_load(v, insn, 2);
    if (!(selector & 0xfffc))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    uint32_t types = 1u << SYSTEM_TSS | (v->efer & EFER_LMA ? 0 : 1u << SYSTEM_TSS16);
    struct descriptor d;
    fetch_system(v, insn, selector, types, &d);
    soft_system_or8(v, insn, d.address + 5, 2); /* busy */
    d.high |= 2 << 8;
    v->task = descriptor_segment(&d, selector);
    NEXT(v, insn);
}

static void op_sldt(struct soft_vcpu *v, const struct insn *insn)
{
    need_umip(v, insn);
    operand_store(v, insn, insn->flags & INSN_MEMORY ? 2 : insn->size, v->ldt.selector);
    NEXT(v, insn);
}

static void op_str(struct soft_vcpu *v, const struct insn *insn)
{
    need_umip(v, insn);
    operand_store(v, insn, insn->flags & INSN_MEMORY ? 2 : insn->size, v->task.selector);
    NEXT(v, insn);
}

/* ---- LAR LSL VERR VERW ARPL ---- */

static void set_zf(struct soft_vcpu *v, bool zero)
{
    v->flags = (uint16_t)(zero ? v->flags | SOFT_ZF : v->flags & ~SOFT_ZF);
}

/* A descriptor that software may ask about. */
static bool visible(struct soft_vcpu *v, const struct insn *insn, uint16_t selector,
                    struct descriptor *d)
{
    uint64_t linear;
    if (!(selector & 0xfffc) || !descriptor_locate(v, selector, 8, &linear))
        return false;
    descriptor_fetch(v, insn, selector, VECTOR_GP, 0, d);
    if (descriptor_is_code(d) && d->high & DESC_DOWN)
        return true;
    return descriptor_dpl(d) >= vcpu_cpl(v) && descriptor_dpl(d) >= (selector & 3u);
}

static bool system_type_in(const struct soft_vcpu *v, const struct descriptor *d, uint32_t legacy,
                           uint32_t wide)
{
    if (d->high & DESC_S)
        return true;
    return (v->efer & EFER_LMA ? wide : legacy) >> descriptor_type(d) & 1;
}

/* SDM vol. 2, LAR and LSL: the types that are valid, legacy and in IA-32e mode. */
#define LAR_LEGACY UINT32_C(0x1a3e) /* 1 2 3 4 5 9 11 12 */
#define LAR_LONG   UINT32_C(0x1a04) /* 2 9 11 12 */
#define LSL_LEGACY UINT32_C(0x0a0e) /* 1 2 3 9 11 */
#define LSL_LONG   UINT32_C(0x0a04) /* 2 9 11 */

static void op_lar(struct soft_vcpu *v, const struct insn *insn)
{
    uint16_t selector = (uint16_t)operand_load(v, insn, 2);
    struct descriptor d;
    bool found = visible(v, insn, selector, &d) && system_type_in(v, &d, LAR_LEGACY, LAR_LONG);
    if (found)
        register_write(v, insn->b, insn->size, d.high & 0x00ffff00);
    set_zf(v, found);
    NEXT(v, insn);
}

static void op_lsl(struct soft_vcpu *v, const struct insn *insn)
{
    uint16_t selector = (uint16_t)operand_load(v, insn, 2);
    struct descriptor d;
    bool found = visible(v, insn, selector, &d) && system_type_in(v, &d, LSL_LEGACY, LSL_LONG);
    if (found)
        register_write(v, insn->b, insn->size, descriptor_limit(&d));
    set_zf(v, found);
    NEXT(v, insn);
}

static void op_verify(struct soft_vcpu *v, const struct insn *insn)
{
    uint16_t selector = (uint16_t)operand_load(v, insn, 2);
    struct descriptor d;
    bool found = visible(v, insn, selector, &d) && d.high & DESC_S;
    bool code = found && d.high & DESC_CODE;
    if (found && insn->imm) /* VERW */
        found = !code && d.high & DESC_WRITE;
    else if (found)
        found = !code || d.high & DESC_WRITE;
    set_zf(v, found);
    NEXT(v, insn);
}

static void op_arpl(struct soft_vcpu *v, const struct insn *insn)
{
    uint16_t to = (uint16_t)operand_load(v, insn, 2), from = REG16(v, insn->b);
    bool less = (to & 3) < (from & 3);
    if (less)
        operand_store(v, insn, 2, (uint16_t)((to & ~3) | (from & 3)));
    else if (insn->flags & INSN_MEMORY)
        soft_probe_write(v, insn, insn_linear(v, insn, 2, true), 2, insn->seg);
    set_zf(v, less);
    NEXT(v, insn);
}

/* ---- caches and TLB ---- */

static void op_invlpg(struct soft_vcpu *v, const struct insn *insn)
{
    need_cpl0(v, insn);
    uint64_t linear = insn_offset(v, insn) + v->ea_base[insn->seg];
    if (!(v->mode & MODE_64))
        linear = (uint32_t)linear;
    if (canonical(linear))
        soft_tlb_flush_page(v, linear);
    insn_leave(v, insn);
}

/* SDM vol. 2, INVPCID. Only the current address space is ever cached. */
static void op_invpcid(struct soft_vcpu *v, const struct insn *insn)
{
    need_cpl0(v, insn);
    uint64_t type = v->mode & MODE_64 ? REG64(v, insn->a) : REG32(v, insn->a);
    uint8_t bytes[16];
    soft_load_bytes(v, insn, insn_linear(v, insn, sizeof bytes, false), bytes, sizeof bytes,
                    insn->seg);
    uint64_t pcid = le64_read(bytes), linear = le64_read(bytes + 8);
    bool bad = type > 3 || pcid >> 12 || (type == 0 && !canonical(linear)) ||
               (type <= 1 && pcid && !(v->cr4 & CR4_PCIDE));
    if (bad)
        soft_raise_error(v, insn, VECTOR_GP, 0);
    bool current = !(v->cr4 & CR4_PCIDE) || pcid == (v->cr3 & 0xfff);
    switch (type) {
    case 0:
        if (current)
            soft_tlb_flush_page(v, linear);
        break;
    case 1:
        if (current)
            soft_tlb_flush(v, false);
        break;
    case 2: soft_tlb_flush(v, true); break;
    case 3: soft_tlb_flush(v, false); break;
    }
    insn_leave(v, insn);
}

static void op_cache_privileged(struct soft_vcpu *v, const struct insn *insn)
{
    need_cpl0(v, insn);
    NEXT(v, insn);
}

static void op_cache_line(struct soft_vcpu *v, const struct insn *insn)
{
    soft_probe_read(v, insn, insn_linear(v, insn, 1, false), insn->seg);
    NEXT(v, insn);
}

/* ---- CPUID, time, MSRs ---- */

void cpuid_refresh(struct soft_vcpu *v)
{
    struct soft_system *s = &v->system;
    if (s->cpuid_ready && s->cpuid_cr4 == v->cr4 && s->cpuid_xcr0 == v->xcr0)
        return;
    cpuid_for_vcpu(&v->vm->cpuid, v->index, v->vm->config.vcpus, v->cr4, v->xcr0, &v->cpuid);
    s->cpuid_ready = true;
    s->cpuid_cr4 = v->cr4;
    s->cpuid_xcr0 = v->xcr0;
}

static void op_cpuid(struct soft_vcpu *v, const struct insn *insn)
{
    cpuid_refresh(v);
    struct cpuid_leaf leaf = cpuid_find(&v->cpuid, REG32(v, CPU_RAX * 8), REG32(v, CPU_RCX * 8));
    reg32_write(v, CPU_RAX * 8, leaf.eax);
    reg32_write(v, CPU_RBX * 8, leaf.ebx);
    reg32_write(v, CPU_RCX * 8, leaf.ecx);
    reg32_write(v, CPU_RDX * 8, leaf.edx);
    NEXT(v, insn);
}

static void write_edx_eax(struct soft_vcpu *v, uint64_t value)
{
    reg32_write(v, CPU_RAX * 8, (uint32_t)value);
    reg32_write(v, CPU_RDX * 8, (uint32_t)(value >> 32));
}

static void op_rdtsc(struct soft_vcpu *v, const struct insn *insn)
{
    if (v->cr4 & CR4_TSD && vcpu_cpl(v) != 0)
        soft_raise_error(v, insn, VECTOR_GP, 0);
    write_edx_eax(v, soft_tsc(v));
    if (insn->imm) /* RDTSCP */
        reg32_write(v, CPU_RCX * 8, (uint32_t)v->msr[CPU_MSR_TSC_AUX]);
    NEXT(v, insn);
}

static void op_rdpid(struct soft_vcpu *v, const struct insn *insn)
{
    register_write(v, insn->a, v->mode & MODE_64 ? 8 : 4, (uint32_t)v->msr[CPU_MSR_TSC_AUX]);
    NEXT(v, insn);
}

static void op_rdmsr(struct soft_vcpu *v, const struct insn *insn)
{
    need_cpl0(v, insn);
    uint64_t value;
    if (!soft_msr_read(v, REG32(v, CPU_RCX * 8), &value))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    write_edx_eax(v, value);
    NEXT(v, insn);
}

static void op_wrmsr(struct soft_vcpu *v, const struct insn *insn)
{
    need_cpl0(v, insn);
    uint64_t value = (uint64_t)REG32(v, CPU_RDX * 8) << 32 | REG32(v, CPU_RAX * 8);
    if (!soft_msr_write(v, REG32(v, CPU_RCX * 8), value))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    insn_leave(v, insn);
}

/* ---- FS and GS ---- */

static void op_swapgs(struct soft_vcpu *v, const struct insn *insn)
{
    need_cpl0(v, insn);
    uint64_t base = v->segment[CPU_GS].base;
    v->segment[CPU_GS].base = v->msr[CPU_MSR_KERNEL_GS_BASE];
    v->ea_base[CPU_GS] = v->segment[CPU_GS].base;
    v->msr[CPU_MSR_KERNEL_GS_BASE] = base;
    NEXT(v, insn);
}

static void op_base_read(struct soft_vcpu *v, const struct insn *insn)
{
    if (!(v->cr4 & CR4_FSGSBASE))
        soft_raise(v, insn, VECTOR_UD);
    register_write(v, insn->a, insn->size, v->segment[insn->b].base);
    NEXT(v, insn);
}

static void op_base_write(struct soft_vcpu *v, const struct insn *insn)
{
    if (!(v->cr4 & CR4_FSGSBASE))
        soft_raise(v, insn, VECTOR_UD);
    uint64_t base = insn->size == 8 ? REG64(v, insn->a) : REG32(v, insn->a);
    if (!canonical(base))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    v->segment[insn->b].base = v->ea_base[insn->b] = base;
    NEXT(v, insn);
}

/* ---- HLT, PAUSE, calls to the hypervisor ---- */

static void op_hlt(struct soft_vcpu *v, const struct insn *insn)
{
    need_cpl0(v, insn);
    v->run_state = CPU_HALTED;
    v->shadow = 0; /* what STI left protects until here */
    v->system.shadow_passed = false;
    insn_leave(v, insn);
}

/* A guest that spins may wait for a vCPU whose thread does not run: let it. */
static void op_pause(struct soft_vcpu *v, const struct insn *insn)
{
    enum { PAUSES_PER_YIELD = 64 };
    if (v->vm->config.vcpus > 1 && ++v->system.pauses % PAUSES_PER_YIELD == 0) {
        exclusive_leave(v);
        sched_yield();
        exclusive_enter(v);
    }
    NEXT(v, insn);
}

static void op_vmcall(struct soft_vcpu *v, const struct insn *insn)
{
    if (!protected_mode(v->mode))
        soft_raise(v, insn, VECTOR_UD);
    hypercall(v, insn);
    insn_leave(v, insn);
}

static void op_rdpmc(struct soft_vcpu *v, const struct insn *insn)
{
    soft_raise_error(v, insn, VECTOR_GP, 0); /* there are no counters */
}

/* ---- binding ---- */

enum system_flag {
    BIND_PROTECTED = 1 << 8, /* #UD in real and virtual-8086 mode */
    BIND_LONG = 1 << 9,      /* #UD outside 64-bit mode */
    BIND_ENDS = 1 << 10,     /* the handler leaves the block */
    BIND_MEMORY = 1 << 11,   /* #UD with a register operand */
    BIND_OTHER = 1 << 12,    /* argument for the handler: insn->imm = 1 */
};

enum system_op {
    OP_LGDT,
    OP_LIDT,
    OP_SGDT,
    OP_SIDT,
    OP_LLDT,
    OP_LTR,
    OP_SLDT,
    OP_STR,
    OP_LAR,
    OP_LSL,
    OP_VERIFY,
    OP_ARPL,
    OP_INVLPG,
    OP_INVPCID,
    OP_CACHE_PRIVILEGED,
    OP_CACHE_LINE,
    OP_CPUID,
    OP_RDTSC,
    OP_RDPID,
    OP_RDMSR,
    OP_WRMSR,
    OP_SWAPGS,
    OP_HLT,
    OP_PAUSE,
    OP_VMCALL,
    OP_RDPMC,
};

static insn_run *const handlers[] = {
    [OP_LGDT] = op_lgdt,
    [OP_LIDT] = op_lidt,
    [OP_SGDT] = op_sgdt,
    [OP_SIDT] = op_sidt,
    [OP_LLDT] = op_lldt,
    [OP_LTR] = op_ltr,
    [OP_SLDT] = op_sldt,
    [OP_STR] = op_str,
    [OP_LAR] = op_lar,
    [OP_LSL] = op_lsl,
    [OP_VERIFY] = op_verify,
    [OP_ARPL] = op_arpl,
    [OP_INVLPG] = op_invlpg,
    [OP_INVPCID] = op_invpcid,
    [OP_CACHE_PRIVILEGED] = op_cache_privileged,
    [OP_CACHE_LINE] = op_cache_line,
    [OP_CPUID] = op_cpuid,
    [OP_RDTSC] = op_rdtsc,
    [OP_RDPID] = op_rdpid,
    [OP_RDMSR] = op_rdmsr,
    [OP_WRMSR] = op_wrmsr,
    [OP_SWAPGS] = op_swapgs,
    [OP_HLT] = op_hlt,
    [OP_PAUSE] = op_pause,
    [OP_VMCALL] = op_vmcall,
    [OP_RDPMC] = op_rdpmc,
};

/* Explicit register operands go to a and b: the r/m operand to a where there are two. */
static void bind_registers(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    const ZydisDecodedOperand *o = decoder->operands;
    unsigned count = decoder->zydis->operand_count_visible;
    uint32_t op = decoder->arg & 0xff;
    bool register_first = op == OP_LAR || op == OP_LSL || op == OP_INVPCID;
    unsigned general = register_first ? 0 : 1, rm = register_first ? 1 : 0;
    if (rm < count && o[rm].type == ZYDIS_OPERAND_TYPE_REGISTER)
        insn->a = decode_register(o[rm].reg.value);
    if (general < count && o[general].type == ZYDIS_OPERAND_TYPE_REGISTER)
        insn->b = decode_register(o[general].reg.value);
    if (op == OP_INVPCID)
        insn->a = insn->b;
}

static void system_bind(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    uint32_t arg = decoder->arg;
    if (insn->flags & INSN_LOCK || (arg & BIND_PROTECTED && !protected_mode(decoder->mode)) ||
        (arg & BIND_LONG && !(decoder->mode & MODE_64)) ||
        (arg & BIND_MEMORY && !(insn->flags & INSN_MEMORY)))
        return;
    bind_registers(decoder);
    insn->imm = arg & BIND_OTHER ? 1 : 0;
    insn->run = handlers[arg & 0xff];
    decoder->ends_block = arg & BIND_ENDS;
}

static void base_bind(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    if (!(decoder->mode & MODE_64) || insn->flags & INSN_LOCK)
        return;
    insn->a = decode_register(decoder->operands[0].reg.value);
    insn->b = (uint8_t)(decoder->arg & 0xff);
    insn->run = decoder->arg >> 8 ? op_base_write : op_base_read;
}

#define SIZED(op, size) (op | size << 8)

const struct op_row op_system_rows[] = {
    {ZYDIS_MNEMONIC_LGDT, system_bind, OP_LGDT | BIND_MEMORY},
    {ZYDIS_MNEMONIC_LIDT, system_bind, OP_LIDT | BIND_MEMORY},
    {ZYDIS_MNEMONIC_SGDT, system_bind, OP_SGDT | BIND_MEMORY},
    {ZYDIS_MNEMONIC_SIDT, system_bind, OP_SIDT | BIND_MEMORY},
    {ZYDIS_MNEMONIC_LLDT, system_bind, OP_LLDT | BIND_PROTECTED},
    {ZYDIS_MNEMONIC_LTR, system_bind, OP_LTR | BIND_PROTECTED},
    {ZYDIS_MNEMONIC_SLDT, system_bind, OP_SLDT | BIND_PROTECTED},
    {ZYDIS_MNEMONIC_STR, system_bind, OP_STR | BIND_PROTECTED},
    {ZYDIS_MNEMONIC_LAR, system_bind, OP_LAR | BIND_PROTECTED},
    {ZYDIS_MNEMONIC_LSL, system_bind, OP_LSL | BIND_PROTECTED},
    {ZYDIS_MNEMONIC_VERR, system_bind, OP_VERIFY | BIND_PROTECTED},
    {ZYDIS_MNEMONIC_VERW, system_bind, OP_VERIFY | BIND_PROTECTED | BIND_OTHER},
    {ZYDIS_MNEMONIC_ARPL, system_bind, OP_ARPL | BIND_PROTECTED},
    {ZYDIS_MNEMONIC_INVLPG, system_bind, OP_INVLPG | BIND_MEMORY | BIND_ENDS},
    {ZYDIS_MNEMONIC_INVPCID, system_bind, OP_INVPCID | BIND_MEMORY | BIND_ENDS},
    {ZYDIS_MNEMONIC_INVD, system_bind, OP_CACHE_PRIVILEGED},
    {ZYDIS_MNEMONIC_WBINVD, system_bind, OP_CACHE_PRIVILEGED},
    {ZYDIS_MNEMONIC_CLFLUSH, system_bind, OP_CACHE_LINE | BIND_MEMORY},
    {ZYDIS_MNEMONIC_CLFLUSHOPT, system_bind, OP_CACHE_LINE | BIND_MEMORY},
    {ZYDIS_MNEMONIC_CLWB, system_bind, OP_CACHE_LINE | BIND_MEMORY},
    {ZYDIS_MNEMONIC_CPUID, system_bind, OP_CPUID},
    {ZYDIS_MNEMONIC_RDTSC, system_bind, OP_RDTSC},
    {ZYDIS_MNEMONIC_RDTSCP, system_bind, OP_RDTSC | BIND_OTHER},
    {ZYDIS_MNEMONIC_RDPID, system_bind, OP_RDPID},
    {ZYDIS_MNEMONIC_RDPMC, system_bind, OP_RDPMC},
    {ZYDIS_MNEMONIC_RDMSR, system_bind, OP_RDMSR},
    {ZYDIS_MNEMONIC_WRMSR, system_bind, OP_WRMSR | BIND_ENDS},
    {ZYDIS_MNEMONIC_SWAPGS, system_bind, OP_SWAPGS | BIND_LONG},
    {ZYDIS_MNEMONIC_RDFSBASE, base_bind, CPU_FS},
    {ZYDIS_MNEMONIC_RDGSBASE, base_bind, CPU_GS},
    {ZYDIS_MNEMONIC_WRFSBASE, base_bind, CPU_FS | 1 << 8},
    {ZYDIS_MNEMONIC_WRGSBASE, base_bind, CPU_GS | 1 << 8},
    {ZYDIS_MNEMONIC_HLT, system_bind, OP_HLT | BIND_ENDS},
    {ZYDIS_MNEMONIC_PAUSE, system_bind, OP_PAUSE},
    {ZYDIS_MNEMONIC_VMCALL, system_bind, OP_VMCALL | BIND_ENDS},
    {ZYDIS_MNEMONIC_VMMCALL, system_bind, OP_VMCALL | BIND_ENDS},
    {ZYDIS_MNEMONIC_LMSW, control_bind, CONTROL_LMSW},
    {ZYDIS_MNEMONIC_SMSW, control_bind, CONTROL_SMSW},
    {ZYDIS_MNEMONIC_CLTS, control_bind, CONTROL_CLTS},
    {ZYDIS_MNEMONIC_XGETBV, control_bind, CONTROL_XGETBV},
    {ZYDIS_MNEMONIC_XSETBV, control_bind, CONTROL_XSETBV},
    {ZYDIS_MNEMONIC_PUSHF, flags_bind, SIZED(FLAGS_PUSH, 2)},
    {ZYDIS_MNEMONIC_PUSHFD, flags_bind, SIZED(FLAGS_PUSH, 4)},
    {ZYDIS_MNEMONIC_PUSHFQ, flags_bind, SIZED(FLAGS_PUSH, 8)},
    {ZYDIS_MNEMONIC_POPF, flags_bind, SIZED(FLAGS_POP, 2)},
    {ZYDIS_MNEMONIC_POPFD, flags_bind, SIZED(FLAGS_POP, 4)},
    {ZYDIS_MNEMONIC_POPFQ, flags_bind, SIZED(FLAGS_POP, 8)},
    {ZYDIS_MNEMONIC_CLI, flags_bind, FLAGS_CLI},
    {ZYDIS_MNEMONIC_STI, flags_bind, FLAGS_STI},
    {ZYDIS_MNEMONIC_STAC, flags_bind, FLAGS_STAC},
    {ZYDIS_MNEMONIC_CLAC, flags_bind, FLAGS_CLAC},
    {0},
};
