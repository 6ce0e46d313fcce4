/*
 * Model-specific registers. What carries state lives in v->msr by its slot of the canonical state;
 * the rest are constants, and all others raise #GP, which is how a kernel's rdmsr_safe() learns
 * that they are not there. The list is what cpuid.h promises plus what Linux reads without asking
 * CPUID first.
 */
#include "cpu/msr.h"

#include "cpu/soft/system.h"

#include <x86intrin.h>

enum {
    MSR_PLATFORM_ID = 0x17,
    MSR_APIC_BASE = 0x1b,
    MSR_EBL_CR_POWERON = 0x2a,
    MSR_FEATURE_CONTROL = 0x3a,
    MSR_BIOS_SIGN_ID = 0x8b,
    MSR_PLATFORM_INFO = 0xce,
    MSR_MTRR_CAP = 0xfe,
    MSR_MCG_CAP = 0x179,
    MSR_MCG_STATUS = 0x17a,
    MSR_MC0_CTL = 0x400, /* and STATUS, ADDR, MISC */
    MSR_MC0_MISC = 0x403,
    MSR_PERF_STATUS = 0x198,
    MSR_TSC_DEADLINE = 0x6e0,
    MSR_X2APIC_FIRST = 0x800,
    MSR_X2APIC_LAST = 0x8ff,
    MTRR_CAP = 0x508, /* write-combining, fixed ranges, eight variable ones */
    SPEC_CTRL_KNOWN = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 7, /* IBRS STIBP SSBD PSFD */
    PRED_CMD_KNOWN = 1 << 0 | 1 << 7,                    /* IBPB SBPB */
    MCG_CAP_BANKS = 1,                                   /* as few as KVM can have */
    MCG_STATUS_KNOWN = 7,
};
#define MSR_AMD_SYSCFG      UINT32_C(0xc0010010)
#define MSR_AMD_HWCR        UINT32_C(0xc0010015)
#define MSR_AMD_TOP_MEM     UINT32_C(0xc001001a)
#define MSR_AMD_TOP_MEM2    UINT32_C(0xc001001d)
#define MSR_AMD_NB_CFG      UINT32_C(0xc001001f)
#define MSR_AMD_INT_PENDING UINT32_C(0xc0010055)
#define MSR_AMD_MMIO_CONFIG UINT32_C(0xc0010058)
#define MSR_AMD_TSEG_BASE   UINT32_C(0xc0010112)
#define MSR_AMD_TSEG_MASK   UINT32_C(0xc0010113)
#define MSR_AMD_VM_CR       UINT32_C(0xc0010114)
#define MSR_AMD_LS_CFG      UINT32_C(0xc0011020)
#define MSR_AMD_IC_CFG      UINT32_C(0xc0011021)
#define MSR_AMD_DC_CFG      UINT32_C(0xc0011022)
#define MSR_AMD_DE_CFG      UINT32_C(0xc0011029)
#define MSR_AMD_TW_CFG      UINT32_C(0xc0011023)
#define MSR_AMD_BU_CFG2     UINT32_C(0xc001102a)
#define MSR_AMD_EX_CFG      UINT32_C(0xc001102c)

/* Any of these in CPUID 7.edx, or in 80000008.ebx: spec_ctrl stibp ssbd, ibrs stibp ssbd psfd;
 * ibpb.
 */
#define SPEC_CTRL_SHOWN     (1u << 26 | 1u << 27 | 1u << 31)
#define AMD_SPEC_CTRL_SHOWN (1u << 14 | 1u << 15 | 1u << 24 | 1u << 28)
#define AMD_PRED_CMD_SHOWN  (1u << 12)

#define HWCR_TSC_FREQ_SEL  (UINT64_C(1) << 24)
#define DE_CFG_LFENCE      (UINT64_C(1) << 1)
#define MICROCODE_REVISION (UINT64_C(1) << 32)

/* ---- time ---- */

uint64_t soft_vm_tsc(const struct soft_vm *vm)
{
    if (vm->config.tsc)
        return vm->config.tsc(vm->config.tsc_opaque);
    return __rdtsc() - vm->tsc_start;
}

uint64_t soft_tsc(struct soft_vcpu *v)
{
    return soft_vm_tsc(v->vm) + v->tsc_offset;
}

/* IA32_TSC_ADJUST follows every write to the TSC and the other way round: SDM vol. 3, 17.17.3. */
static void tsc_move(struct soft_vcpu *v, uint64_t by)
{
    v->tsc_offset += by;
    v->msr[CPU_MSR_TSC_ADJUST] += by;
    kvmclock_update(v);
}

void msr_tsc_restore(struct soft_vcpu *v, uint64_t tsc, uint64_t adjust)
{
    uint64_t offset = tsc - soft_vm_tsc(v->vm);
    v->msr[CPU_MSR_TSC_ADJUST] = adjust;
    v->tsc_offset = offset;
    /* The vCPUs of one VM are set one after the other, but their counters are one: within a second
     * of each other they become the same, the latest of all, so that none goes backwards. */
    uint64_t near = v->vm->tsc_khz * 1000, plain = offset - adjust;
    for (unsigned i = 0; i < ENGINE_VCPUS_MAX; i++) {
        struct soft_vcpu *other = __atomic_load_n(&v->vm->vcpus[i], __ATOMIC_ACQUIRE);
        if (!other || other == v)
            continue;
        uint64_t theirs = other->tsc_offset - other->msr[CPU_MSR_TSC_ADJUST];
        if (theirs - plain < near)
            v->tsc_offset = theirs + adjust;
        else if (plain - theirs < near)
            other->tsc_offset = plain + other->msr[CPU_MSR_TSC_ADJUST];
    }
}

/* ---- reads ---- */

/* The local APIC compares its deadline with the VM's counter, the guest gives it in its own. */
static uint64_t deadline_to_vm(const struct soft_vcpu *v, uint64_t deadline)
{
    if (deadline == 0) /* disarmed */
        return 0;
    bool past = (int64_t)v->tsc_offset > 0 && deadline <= v->tsc_offset;
    return past ? 1 : deadline - v->tsc_offset;
}

static bool apic_read(struct soft_vcpu *v, uint32_t index, uint64_t *ret_value)
{
    if (v->vm->has_apic) {
        uint64_t value;
        if (!v->vm->apic.msr_read(v->vm->apic.opaque, v->index, index, &value))
            return false;
        *ret_value = index == MSR_TSC_DEADLINE && value ? value + v->tsc_offset : value;
        return true;
    }
    if (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST)
        return false;
    *ret_value = v->msr[index == MSR_APIC_BASE ? CPU_MSR_APIC_BASE : CPU_MSR_TSC_DEADLINE];
    return true;
}

static bool is_apic(uint32_t index)
{
    return index == MSR_APIC_BASE || index == MSR_TSC_DEADLINE ||
           (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST);
}

static bool constant_read(const struct soft_vcpu *v, uint32_t index, uint64_t *ret_value)
{
    bool amd = v->system.amd;
    uint64_t value = 0;
    switch (index) {
    case MSR_MTRR_CAP: value = MTRR_CAP; break;
    case MSR_MCG_CAP: value = MCG_CAP_BANKS; break;
    case MSR_MC0_CTL ... MSR_MC0_MISC: break; /* nothing ever happens in it */
    case MSR_MCG_STATUS: value = v->system.mcg_status; break;
    case MSR_BIOS_SIGN_ID: value = amd ? 0 : MICROCODE_REVISION; break;
    case MSR_PLATFORM_ID:
    case MSR_EBL_CR_POWERON:
    case MSR_PLATFORM_INFO:
    case MSR_PERF_STATUS:
        if (amd)
            return false;
        break;
    case MSR_FEATURE_CONTROL:
        if (amd)
            return false;
        value = 1; /* locked, nothing enabled */
        break;
    case MSR_ARCH_CAPABILITIES:
        if (!v->system.has_arch_capabilities)
            return false;
        value = CPUID_ARCH_CAPABILITIES;
        break;
    case MSR_AMD_HWCR: value = HWCR_TSC_FREQ_SEL; break;
    case MSR_AMD_DE_CFG: value = DE_CFG_LFENCE; break;
    case MSR_AMD_SYSCFG:
    case MSR_AMD_TOP_MEM:
    case MSR_AMD_TOP_MEM2:
    case MSR_AMD_NB_CFG:
    case MSR_AMD_INT_PENDING:
    case MSR_AMD_MMIO_CONFIG:
    case MSR_AMD_TSEG_BASE:
    case MSR_AMD_TSEG_MASK:
    case MSR_AMD_VM_CR:
    case MSR_AMD_LS_CFG:
    case MSR_AMD_IC_CFG:
    case MSR_AMD_DC_CFG:
    case MSR_AMD_TW_CFG:
    case MSR_AMD_EX_CFG:
    case MSR_AMD_BU_CFG2: break;
    default: return false;
    }
    if (index >= MSR_AMD_SYSCFG && !amd)
        return false;
    *ret_value = value;
    return true;
}

/* Is the paravirtual register in `slot` announced? Its bit in leaf 0x40000001, by slot. */
static bool paravirtual_shown(const struct soft_vcpu *v, uint32_t index, int slot)
{
    static const uint32_t bit[] = {
        [CPU_MSR_KVM_WALL_CLOCK - CPU_MSR_KVM_WALL_CLOCK] = 1u << 3,
        [CPU_MSR_KVM_SYSTEM_TIME - CPU_MSR_KVM_WALL_CLOCK] = 1u << 3,
        [CPU_MSR_KVM_ASYNC_PF - CPU_MSR_KVM_WALL_CLOCK] = 0, /* the host never swaps in secret */
        [CPU_MSR_KVM_STEAL_TIME - CPU_MSR_KVM_WALL_CLOCK] = 0,
        [CPU_MSR_KVM_PV_EOI - CPU_MSR_KVM_WALL_CLOCK] = 0,
        [CPU_MSR_KVM_POLL_CONTROL - CPU_MSR_KVM_WALL_CLOCK] = 0,
    };
    bool old = index == MSR_KVM_WALL_CLOCK_OLD || index == MSR_KVM_SYSTEM_TIME_OLD;
    uint32_t wanted = old ? 1u << 0 : bit[slot - CPU_MSR_KVM_WALL_CLOCK];
    return v->system.paravirtual & wanted;
}

bool soft_msr_read(struct soft_vcpu *v, uint32_t index, uint64_t *ret_value)
{
    if (is_apic(index))
        return apic_read(v, index, ret_value);
    switch (index) {
    case MSR_EFER: *ret_value = v->efer; return true;
    case MSR_FS_BASE: *ret_value = v->segment[CPU_FS].base; return true;
    case MSR_GS_BASE: *ret_value = v->segment[CPU_GS].base; return true;
    default: break;
    }
    int slot = cpu_msr_slot(index);
    if (slot < 0)
        return constant_read(v, index, ret_value);
    if (slot >= CPU_MSR_KVM_WALL_CLOCK && !paravirtual_shown(v, index, slot))
        return false;
    if ((slot == CPU_MSR_SPEC_CTRL && !v->system.has_spec_ctrl) ||
        (slot == CPU_MSR_MISC_ENABLE && v->system.amd))
        return false;
    *ret_value = slot == CPU_MSR_TSC ? soft_tsc(v) : v->msr[slot];
    return true;
}

/* ---- writes ---- */

static bool apic_write(struct soft_vcpu *v, uint32_t index, uint64_t value)
{
    if (!v->vm->has_apic) {
        if (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST)
            return false;
        v->msr[index == MSR_APIC_BASE ? CPU_MSR_APIC_BASE : CPU_MSR_TSC_DEADLINE] = value;
        return true;
    }
    if (index == MSR_TSC_DEADLINE)
        value = deadline_to_vm(v, value);
    bool done = v->vm->apic.msr_write(v->vm->apic.opaque, v->index, index, value);
    if (done) /* EOI and TPR may have uncovered something */
        atomic_fetch_or(&v->attention, ATTENTION_INTERRUPT);
    return done;
}

static bool efer_write(struct soft_vcpu *v, uint64_t value)
{
    value = (value & ~(uint64_t)EFER_LMA) | (v->efer & EFER_LMA);
    uint64_t changed = value ^ v->efer;
    if (value & ~v->system.efer_allowed || (changed & EFER_LME && v->cr0 & CR0_PG))
        return false;
    v->efer = value;
    if (changed & EFER_NXE)
        soft_tlb_flush(v, true);
    soft_mode_update(v);
    return true;
}

static bool constant_write(struct soft_vcpu *v, uint32_t index, uint64_t value)
{
    switch (index) {
    case MSR_PRED_CMD: return v->system.has_pred_cmd && !(value & ~(uint64_t)PRED_CMD_KNOWN);
    case MSR_BIOS_SIGN_ID: return true; /* before CPUID shows the revision, SDM vol. 3, 9.11.7.1 */
    case MSR_MC0_CTL: return true;
    case MSR_MC0_CTL + 1 ... MSR_MC0_MISC: return value == 0; /* SDM vol. 3, 16.3.2.2 */
    case MSR_MCG_STATUS:
        if (value & ~(uint64_t)MCG_STATUS_KNOWN)
            return false;
        v->system.mcg_status = value;
        return true;
    case MSR_AMD_HWCR:
    case MSR_AMD_SYSCFG:
    case MSR_AMD_TOP_MEM:
    case MSR_AMD_TOP_MEM2:
    case MSR_AMD_NB_CFG:
    case MSR_AMD_INT_PENDING:
    case MSR_AMD_MMIO_CONFIG:
    case MSR_AMD_LS_CFG:
    case MSR_AMD_IC_CFG:
    case MSR_AMD_DC_CFG:
    case MSR_AMD_DE_CFG:
    case MSR_AMD_TW_CFG:
    case MSR_AMD_EX_CFG:
    case MSR_AMD_BU_CFG2: return v->system.amd; /* errata that this processor does not have */
    default: return false;
    }
}

static bool slot_write(struct soft_vcpu *v, int slot, uint64_t value)
{
    switch (slot) {
    case CPU_MSR_TSC: tsc_move(v, value - soft_tsc(v)); return true;
    case CPU_MSR_TSC_ADJUST: tsc_move(v, value - v->msr[slot]); return true;
    case CPU_MSR_SYSENTER_ESP:
    case CPU_MSR_SYSENTER_EIP:
    case CPU_MSR_LSTAR:
    case CPU_MSR_CSTAR:
    case CPU_MSR_KERNEL_GS_BASE:
        if (!canonical(value))
            return false;
        break;
    case CPU_MSR_SYSCALL_MASK: value &= UINT32_MAX; break;
    case CPU_MSR_TSC_AUX:
        if (value >> 32)
            return false;
        break;
    case CPU_MSR_SPEC_CTRL:
        if (!v->system.has_spec_ctrl || value & ~(uint64_t)SPEC_CTRL_KNOWN)
            return false;
        break;
    case CPU_MSR_MISC_ENABLE:
        if (v->system.amd)
            return false;
        break;
    case CPU_MSR_DEBUGCTL:
        if (value & ~(uint64_t)EVENT_DEBUGCTL_BTF) /* there are no branch records */
            return false;
        break;
    case CPU_MSR_PAT:
    case CPU_MSR_MTRR_DEF_TYPE ... CPU_MSR_MTRR_PHYS_MASK7:
        if (!mtrr_valid(v, (enum cpu_msr)slot, value))
            return false;
        break;
    default: break;
    }
    v->msr[slot] = value;
    return true;
}

static bool base_write(struct soft_vcpu *v, unsigned seg, uint64_t value)
{
    if (!canonical(value))
        return false;
    v->segment[seg].base = value;
    soft_mode_update(v);
    return true;
}

bool soft_msr_write(struct soft_vcpu *v, uint32_t index, uint64_t value)
{
    if (is_apic(index))
        return apic_write(v, index, value);
    switch (index) {
    case MSR_EFER: return efer_write(v, value);
    case MSR_FS_BASE: return base_write(v, CPU_FS, value);
    case MSR_GS_BASE: return base_write(v, CPU_GS, value);
    default: break;
    }
    int slot = cpu_msr_slot(index);
    if (slot < 0)
        return constant_write(v, index, value);
    if (slot < CPU_MSR_KVM_WALL_CLOCK)
        return slot_write(v, slot, value);
    if (!paravirtual_shown(v, index, slot))
        return false;
    return slot == CPU_MSR_KVM_WALL_CLOCK ? kvmclock_wall_clock_write(v, value)
                                          : kvmclock_system_time_write(v, value);
}

/* ---- what CPUID allows ---- */

struct allowed {
    uint64_t bit;
    uint32_t leaf;
    uint8_t reg, shift; /* of EAX EBX ECX EDX */
};

static const struct allowed cr4_rows[] = {
    {CR4_TSD, 1, 3, 4},      {CR4_DE, 1, 3, 2},          {CR4_PSE, 1, 3, 3},
    {CR4_PAE, 1, 3, 6},      {CR4_MCE, 1, 3, 7},         {CR4_PGE, 1, 3, 13},
    {CR4_OSFXSR, 1, 3, 24},  {CR4_OSXMMEXCPT, 1, 3, 25}, {CR4_PCIDE, 1, 2, 17},
    {CR4_OSXSAVE, 1, 2, 26}, {CR4_FSGSBASE, 7, 1, 0},    {CR4_SMEP, 7, 1, 7},
    {CR4_SMAP, 7, 1, 20},    {CR4_UMIP, 7, 2, 2},
};

static const struct allowed efer_rows[] = {
    {EFER_SCE, 0x80000001, 3, 11},
    {EFER_LME | EFER_LMA, 0x80000001, 3, 29},
    {EFER_NXE, 0x80000001, 3, 20},
    {EFER_AIBRSE, 0x80000021, 0, 8},
};

static uint32_t cpuid_register(const struct soft_vcpu *v, uint32_t leaf, unsigned reg)
{
    struct cpuid_leaf found = cpuid_find(&v->cpuid, leaf, 0);
    if (found.leaf != leaf) /* past the end another leaf answers */
        return 0;
    return (const uint32_t[]){found.eax, found.ebx, found.ecx, found.edx}[reg];
}

static uint64_t allowed_bits(const struct soft_vcpu *v, const struct allowed *rows, unsigned count)
{
    uint64_t allowed = 0;
    for (unsigned i = 0; i < count; i++)
        if (cpuid_register(v, rows[i].leaf, rows[i].reg) >> rows[i].shift & 1)
            allowed |= rows[i].bit;
    return allowed;
}

void cpuid_configure(struct soft_vcpu *v)
{
    struct soft_system *s = &v->system;
    cpuid_refresh(v);
    uint32_t vendor = cpuid_find(&v->cpuid, 0, 0).ebx;
    s->amd = vendor == 0x68747541 || vendor == 0x6f677948; /* AuthenticAMD, HygonGenuine */
    s->cr4_allowed = CR4_PCE | allowed_bits(v, cr4_rows, ARRAY_LEN(cr4_rows));
    s->efer_allowed = allowed_bits(v, efer_rows, ARRAY_LEN(efer_rows));
    s->xsave_allowed = 1 | (cpuid_register(v, 0xd, 0) & 6);
    uint32_t controls = cpuid_register(v, 7, 3), amd_controls = cpuid_register(v, 0x80000008, 1);
    s->has_spec_ctrl = controls & SPEC_CTRL_SHOWN || amd_controls & AMD_SPEC_CTRL_SHOWN;
    s->has_pred_cmd = controls & SPEC_CTRL_SHOWN || amd_controls & AMD_PRED_CMD_SHOWN;
    s->has_arch_capabilities = cpuid_register(v, 7, 3) >> 29 & 1;
    s->paravirtual = cpuid_register(v, 0x40000001, 0);
    mmu_configure(v);
}
