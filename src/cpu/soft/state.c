/*
 * The canonical state, in and out.
 *
 * Out: the vCPU is between two instructions and no event is half delivered, so of `pending` only
 * what the architecture keeps there is used. In: a state may come from a file or from another
 * engine; what would break our own invariants (modes that cannot be, bits that this CPU model does
 * not have) is refused with -EINVAL and changes nothing but the local APIC.
 */
#include "cpu/msr.h"

#include "cpu/soft/native.h"
#include "cpu/soft/system.h"

#include <errno.h>
#include <inttypes.h>

enum {
    APIC_BASE_ENABLED = 1 << 11,
    APIC_BASE_X2APIC = 1 << 10,
};

/* ---- out ---- */

static void get_msrs(struct soft_vcpu *v, struct cpu_state *state)
{
    memcpy(state->msr, v->msr, sizeof state->msr);
    state->msr[CPU_MSR_TSC] = soft_tsc(v);
    static const enum cpu_msr slots[] = {CPU_MSR_APIC_BASE, CPU_MSR_TSC_DEADLINE};
    for (unsigned i = 0; i < ARRAY_LEN(slots); i++) {
        uint64_t value;
        if (soft_msr_read(v, cpu_msr_index[slots[i]], &value))
            state->msr[slots[i]] = value;
    }
}

static void get_pending(struct soft_vcpu *v, struct cpu_pending *pending)
{
    const struct soft_system *s = &v->system;
    pending->exception = (int16_t)(s->exception - 1);
    pending->exception_has_error = s->exception && s->exception_has_error;
    pending->exception_error = s->exception ? s->exception_error : 0;
    pending->exception_has_payload = s->exception != 0;
    pending->exception_payload = s->exception ? s->exception_payload : 0;
    pending->interrupt = (int16_t)(s->interrupt - 1);
    pending->interrupt_soft = s->interrupt && s->interrupt_soft;
    pending->nmi_pending = (atomic_load(&v->signals) & EVENT_SIGNAL_NMI) != 0;
    pending->nmi_blocked = v->nmi_blocked;
    pending->interrupt_shadow = soft_shadow(v);
}

void soft_get_state(struct soft_vcpu *v, struct cpu_state *ret_state)
{
    event_take_start(v); /* INIT and SIPI have no place in the state */
    memset(ret_state, 0, sizeof *ret_state);
    memcpy(ret_state->gpr, v->gpr, sizeof ret_state->gpr);
    ret_state->rip = v->gpr[SOFT_RIP];
    ret_state->rflags = flags_to_rflags(v);
    memcpy(ret_state->segment, v->segment, sizeof ret_state->segment);
    ret_state->ldt = v->ldt;
    ret_state->task = v->task;
    ret_state->gdt = v->gdt;
    ret_state->idt = v->idt;
    ret_state->cr0 = v->cr0;
    ret_state->cr2 = v->cr2;
    ret_state->cr3 = v->cr3;
    ret_state->cr4 = v->cr4;
    ret_state->cr8 = v->vm->has_apic ? v->vm->apic.cr8_read(v->vm->apic.opaque, v->index) : v->cr8;
    ret_state->efer = v->efer;
    ret_state->xcr0 = v->xcr0;
    memcpy(ret_state->dr, v->dr, sizeof ret_state->dr);
    ret_state->dr6 = v->dr6;
    ret_state->dr7 = v->dr7;
    get_msrs(v, ret_state);
    get_pending(v, &ret_state->pending);
    /* A kick that it has not heard yet would be lost, and nothing else may wake it. */
    bool kicked = v->run_state == CPU_HALTED && atomic_load(&v->signals) & EVENT_SIGNAL_UNHALT;
    ret_state->run_state = kicked ? CPU_RUNNING : v->run_state;
    ret_state->has_apic = v->vm->has_apic;
    if (v->vm->has_apic)
        v->vm->apic.save(v->vm->apic.opaque, v->index, ret_state->apic);
    native_xsave_image(v, ret_state->xsave);
}

/* ---- in ---- */

static int check_control(const struct soft_vcpu *v, const struct cpu_state *state, struct err *err)
{
    const struct soft_system *s = &v->system;
    bool paging = state->cr0 & CR0_PG, lma = state->efer & EFER_LMA;
    if (state->cr4 & ~s->cr4_allowed || state->efer & ~s->efer_allowed)
        return err_set(err, -EINVAL,
                       "CPU state has features that this CPU model lacks: cr4 %" PRIx64
                       ", efer %" PRIx64,
                       state->cr4 & ~s->cr4_allowed, state->efer & ~s->efer_allowed);
    if (state->cr0 >> 32 || (paging && !(state->cr0 & CR0_PE)) ||
        lma != (paging && state->efer & EFER_LME) || (lma && !(state->cr4 & CR4_PAE)))
        return err_set(err, -EINVAL,
                       "CPU state is in no mode that exists: cr0 %" PRIx64 " cr4 %" PRIx64
                       " efer %" PRIx64,
                       state->cr0, state->cr4, state->efer);
    if (state->cr3 & ~s->physical_mask)
        return err_set(err, -EINVAL, "CPU state has cr3 %" PRIx64 ", wider than memory",
                       state->cr3);
    if (!(state->xcr0 & 1) || state->xcr0 & ~s->xsave_allowed || (state->xcr0 & 6) == 4)
        return err_set(err, -EINVAL, "CPU state has xcr0 %" PRIx64 ", this CPU model %" PRIx64,
                       state->xcr0, s->xsave_allowed);
    return 0;
}

static int check_rest(const struct cpu_state *state, struct err *err)
{
    if (state->run_state >= CPU_RUN_STATE_MAX)
        return err_set(err, -EINVAL, "CPU state has run state %" PRIu32, state->run_state);
    if (!canonical(state->gdt.base) || !canonical(state->idt.base) ||
        !canonical(state->task.base) || !canonical(state->ldt.base))
        return err_set(err, -EINVAL, "CPU state has a table at a non-canonical address");
    for (unsigned i = 0; i < CPU_SEG_MAX; i++)
        if (!canonical(state->segment[i].base))
            return err_set(err, -EINVAL, "CPU state has segment %u at %" PRIx64, i,
                           state->segment[i].base);
    static const enum cpu_msr addresses[] = {CPU_MSR_LSTAR, CPU_MSR_CSTAR, CPU_MSR_KERNEL_GS_BASE,
                                             CPU_MSR_SYSENTER_ESP, CPU_MSR_SYSENTER_EIP};
    for (unsigned i = 0; i < ARRAY_LEN(addresses); i++)
        if (!canonical(state->msr[addresses[i]]))
            return err_set(err, -EINVAL, "CPU state has MSR %" PRIx32 " = %" PRIx64,
                           cpu_msr_index[addresses[i]], state->msr[addresses[i]]);
    if (state->pending.exception < -1 || state->pending.exception > 31 ||
        state->pending.interrupt < -1 || state->pending.interrupt > 255)
        return err_set(err, -EINVAL, "CPU state has pending event %d, %d", state->pending.exception,
                       state->pending.interrupt);
    return 0;
}

/* The mode of the local APIC moves only along the arrows of SDM vol. 3, figure 11-27. */
static bool set_apic_base(struct soft_vcpu *v, uint64_t value)
{
    const struct engine_apic *apic = &v->vm->apic;
    uint32_t index = cpu_msr_index[CPU_MSR_APIC_BASE];
    uint64_t off = value & ~(uint64_t)(APIC_BASE_ENABLED | APIC_BASE_X2APIC);
    if (apic->msr_write(apic->opaque, v->index, index, value))
        return true;
    return apic->msr_write(apic->opaque, v->index, index, off) &&
           (!(value & APIC_BASE_X2APIC) ||
            apic->msr_write(apic->opaque, v->index, index, off | APIC_BASE_ENABLED)) &&
           apic->msr_write(apic->opaque, v->index, index, value);
}

static int set_apic(struct soft_vcpu *v, const struct cpu_state *state, struct err *err)
{
    const struct engine_apic *apic = &v->vm->apic;
    if (!v->vm->has_apic || !state->has_apic)
        return 0;
    if (!set_apic_base(v, state->msr[CPU_MSR_APIC_BASE]) ||
        !apic->load(apic->opaque, v->index, state->apic))
        return err_set(err, -EINVAL, "CPU state has a local APIC that cannot be");
    return 0;
}

static void set_pending(struct soft_vcpu *v, const struct cpu_state *state)
{
    struct soft_system *s = &v->system;
    const struct cpu_pending *pending = &state->pending;
    s->exception = (int16_t)(pending->exception + 1);
    s->exception_has_error = pending->exception_has_error;
    s->exception_error = pending->exception_error;
    s->exception_payload = pending->exception_has_payload    ? pending->exception_payload
                           : pending->exception == VECTOR_PF ? state->cr2
                                                             : 0;
    s->interrupt = (int16_t)(pending->interrupt + 1);
    s->interrupt_soft = pending->interrupt_soft;
    s->interrupt_waiting = false;
    s->shadow_passed = s->step_armed = s->resume_passed = false;
    s->debug_traps = 0;
    v->shadow = pending->interrupt_shadow <= 2 ? pending->interrupt_shadow : 0;
    v->shadow_at = v->instructions;
    v->nmi_blocked = pending->nmi_blocked;
    v->in_delivery = false;
    atomic_store(&v->signals, pending->nmi_pending ? EVENT_SIGNAL_NMI : 0);
    v->run_state = state->run_state;
    atomic_fetch_or(&v->attention, ATTENTION_INTERRUPT | ATTENTION_SIGNAL | ATTENTION_STEP);
}

static void set_registers(struct soft_vcpu *v, const struct cpu_state *state)
{
    memcpy(v->gpr, state->gpr, sizeof state->gpr);
    v->gpr[SOFT_ZERO] = 0;
    v->gpr[SOFT_RIP] = state->rip;
    flags_from_rflags(v, state->rflags);
    memcpy(v->segment, state->segment, sizeof v->segment);
    v->ldt = state->ldt;
    v->task = state->task;
    v->gdt = state->gdt;
    v->idt = state->idt;
    v->cr0 = state->cr0 | CR0_ET;
    v->cr2 = state->cr2;
    v->cr3 = state->cr3;
    v->cr4 = state->cr4;
    v->cr8 = state->cr8 & 15;
    v->efer = state->efer;
    v->xcr0 = state->xcr0;
    memcpy(v->dr, state->dr, sizeof v->dr);
    v->dr6 = state->dr6;
    v->dr7 = state->dr7;
    memcpy(v->msr, state->msr, sizeof v->msr);
}

int soft_set_state(struct soft_vcpu *v, const struct cpu_state *state, struct err *err)
{
    cpuid_configure(v);
    int r = check_control(v, state, err);
    if (r >= 0)
        r = check_rest(state, err);
    if (r < 0)
        return r;
    bool pae = state->cr0 & CR0_PG && state->cr4 & CR4_PAE && !(state->efer & EFER_LMA);
    if (pae && !mmu_load_pdptes(v, state->cr3))
        return err_set(err, -EINVAL, "CPU state has page directory pointers that cannot be");
    r = set_apic(v, state, err);
    if (r < 0)
        return r;
    if (!native_xrstor_image(v, state->xsave))
        return err_set(err, -EINVAL, "CPU state has an XSAVE image of another CPU model");
    set_registers(v, state);
    set_pending(v, state);
    cpuid_refresh(v);
    soft_tlb_flush(v, true);
    debug_update(v);
    soft_mode_update(v);
    msr_tsc_restore(v, state->msr[CPU_MSR_TSC], state->msr[CPU_MSR_TSC_ADJUST]);
    /* Refused where the timer is in another mode: then the deadline means nothing. */
    soft_msr_write(v, cpu_msr_index[CPU_MSR_TSC_DEADLINE], state->msr[CPU_MSR_TSC_DEADLINE]);
    kvmclock_update(v);
    return 0;
}
