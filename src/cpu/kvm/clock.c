/*
 * What counts inside KVM: the TSCs, the paravirtual clock, the local APICs' timers, the PIT. They
 * go on while vCPUs stand, and here they are made to stand with them.
 *
 * Stopping reads them all into `held` and disarms the timers; running writes back what is held by
 * then, which may be another machine's (vcpu_set_state(), kvm_chips_set()). In between, the state
 * of a vCPU is read from there.
 *
 *   TSC        one counter less each vCPU's TSC_ADJUST. It is moved by its offset
 *              (KVM_VCPU_TSC_OFFSET): the same for all, so that they stay together to the tick.
 *              Without it (before Linux 5.16) by writing the counter, which KVM takes for an
 *              attempt to join the vCPUs where it is within a second of what they have; after a
 *              shorter stop they then run on as if there had been none.
 *
 *   deadline   read, set to 0, set again once the TSC is right. What expired and was not delivered
 *              yet is still in the register, and expires again.
 *
 *   APIC       the timer in its other modes: through the register page, by an initial count of 0
 *              and then the right one, with the current count. Messages that arrive in the meantime
 *              change the page under us, so whoever sends one holds `messages`. A one-shot count
 *              that is at 0 has ended, or is about to be delivered: it is left alone.
 *
 *   PIT        chips.c
 */
#include "cpu/kvm/kvm.h"

#include "base/bytes.h"
#include "cpu/msr.h"

#include <errno.h>
#include <inttypes.h>

/* ---- one vCPU's timer ---- */

static int page_get(const struct engine_vcpu *vcpu, struct kvm_lapic_state *page, struct err *err)
{
    int r = kvm_ioctl(vcpu->fd, KVM_GET_LAPIC, page);
    return r < 0 ? err_errno(err, -r, "KVM_GET_LAPIC of vCPU %u", vcpu->index) : 0;
}

static int page_set(const struct engine_vcpu *vcpu, struct kvm_lapic_state *page, struct err *err)
{
    int r = kvm_ioctl(vcpu->fd, KVM_SET_LAPIC, page);
    return r < 0 ? err_errno(err, -r, "KVM_SET_LAPIC of vCPU %u", vcpu->index) : 0;
}

static int timer_stop(struct engine_vcpu *vcpu, struct err *err)
{
    struct kvm_lapic_state page;
    struct held_vcpu *held = &vcpu->held;
    held->initial = held->count = 0;
    int r = page_get(vcpu, &page, err);
    if (r < 0 || kvm_apic_deadline_mode(page.regs))
        return r < 0 || !held->deadline ? r : kvm_vcpu_set_deadline(vcpu, 0, err);
    held->initial = le32_read(page.regs + APIC_INITIAL);
    held->count = le32_read(page.regs + APIC_CURRENT);
    if (!held->count && kvm_apic_periodic(page.regs)) /* a period has just ended: tell it again */
        held->count = 1;
    if (!held->initial || !held->count)
        return 0;
    le32_write(page.regs + APIC_INITIAL, 0);
    return page_set(vcpu, &page, err);
}

static int timer_run(struct engine_vcpu *vcpu, struct err *err)
{
    struct kvm_lapic_state page;
    const struct held_vcpu *held = &vcpu->held;
    int r = 0;
    if (held->initial && held->count) {
        r = page_get(vcpu, &page, err);
        if (r < 0 || kvm_apic_deadline_mode(page.regs))
            return r;
        le32_write(page.regs + APIC_INITIAL, held->initial);
        le32_write(page.regs + APIC_CURRENT, held->count);
        r = page_set(vcpu, &page, err);
    } else if (held->deadline) {
        r = kvm_vcpu_set_deadline(vcpu, held->deadline, err);
    }
    return r;
}

/* ---- TSC ---- */

static int offset_access(const struct engine_vcpu *vcpu, unsigned long request, uint64_t *offset)
{
    struct kvm_device_attr attribute = {
        .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)offset};
    return kvm_ioctl(vcpu->fd, request, &attribute);
}

/* All vCPUs' counters are one but for what each guest's TSC_ADJUST says; as KVM does, those are
 * taken for the same that are within a second of each other. */
static int tsc_stop(struct engine_vm *vm, struct err *err)
{
    const uint64_t near = vm->tsc_khz * 1000;
    for (unsigned i = 0; i < vm->vcpus; i++) {
        struct engine_vcpu *vcpu = vm->vcpu[i];
        uint64_t values[CPU_MSR_MAX];
        int r = vcpu ? kvm_vcpu_get_msrs(vcpu, values, err) : 0;
        if (!vcpu || r < 0)
            return r;
        uint64_t plain = values[CPU_MSR_TSC] - values[CPU_MSR_TSC_ADJUST];
        if (i == 0)
            vm->held.tsc = plain;
        bool same = plain - vm->held.tsc < near || vm->held.tsc - plain < near;
        vcpu->held.tsc = same ? vm->held.tsc + values[CPU_MSR_TSC_ADJUST] : values[CPU_MSR_TSC];
        vcpu->held.deadline = values[CPU_MSR_TSC_DEADLINE];
    }
    return 0;
}

static int tsc_run(struct engine_vm *vm, struct err *err)
{
    uint64_t offset, now[CPU_MSR_MAX];
    struct engine_vcpu *first = vm->vcpu[0];
    bool exact = first && offset_access(first, KVM_GET_DEVICE_ATTR, &offset) >= 0;
    if (exact) {
        int r = kvm_vcpu_get_msrs(first, now, err);
        if (r < 0)
            return r;
        offset += first->held.tsc - now[CPU_MSR_TSC];
    }
    for (unsigned i = 0; i < vm->vcpus && vm->vcpu[i]; i++) {
        struct engine_vcpu *vcpu = vm->vcpu[i];
        uint64_t own = offset + (vcpu->held.tsc - first->held.tsc);
        int r = exact ? offset_access(vcpu, KVM_SET_DEVICE_ATTR, &own)
                      : kvm_vcpu_set_tsc(vcpu, vcpu->held.tsc);
        if (r < 0)
            return err_errno(err, -r, "the TSC of vCPU %u", i);
    }
    return 0;
}

/* ---- all ---- */

/* All of them, or none: those that stand already go on where another cannot be stopped. */
static int timers_stop(struct engine_vm *vm, struct err *err)
{
    unsigned stopped = 0;
    int r = 0;
    pthread_rwlock_wrlock(&vm->messages);
    while (r >= 0 && stopped < vm->vcpus && vm->vcpu[stopped])
        if ((r = timer_stop(vm->vcpu[stopped], err)) >= 0)
            stopped++;
    pthread_rwlock_unlock(&vm->messages);
    if (r >= 0)
        r = kvm_pit_stop(vm, err);
    if (r >= 0)
        return 0;
    pthread_rwlock_wrlock(&vm->messages);
    while (stopped > 0)
        timer_run(vm->vcpu[--stopped], NULL);
    pthread_rwlock_unlock(&vm->messages);
    return r;
}

int kvm_clock_stop(struct engine_vm *vm, uint64_t *ret_tsc, struct err *err)
{
    struct kvm_clock_data clock = {0};
    int r = 0;
    if (!vm->has_irqchip)
        return err_set(err, -ENOTSUP, "the clocks of this machine do not stand");
    if (!vm->stands) {
        r = tsc_stop(vm, err);
        if (r >= 0 && (r = kvm_ioctl(vm->fd, KVM_GET_CLOCK, &clock)) < 0)
            err_errno(err, -r, "KVM_GET_CLOCK");
        vm->held.kvmclock = clock.clock;
        if (r >= 0)
            r = timers_stop(vm, err);
        vm->stands = r >= 0;
    }
    if (r < 0)
        return err_prefix(err, r, "cannot stop the guest's clocks");
    *ret_tsc = vm->held.tsc;
    return 0;
}

int kvm_clock_run(struct engine_vm *vm, struct err *err)
{
    if (!vm->stands)
        return 0;
    int r = tsc_run(vm, err);
    /* After the TSCs: whether KVM can tell time by them decides how it keeps this clock. */
    struct kvm_clock_data clock = {.clock = vm->held.kvmclock};
    if (r >= 0 && (r = kvm_ioctl(vm->fd, KVM_SET_CLOCK, &clock)) < 0)
        err_errno(err, -r, "KVM_SET_CLOCK");
    pthread_rwlock_wrlock(&vm->messages);
    for (unsigned i = 0; r >= 0 && i < vm->vcpus && vm->vcpu[i]; i++)
        r = timer_run(vm->vcpu[i], err);
    pthread_rwlock_unlock(&vm->messages);
    if (r >= 0)
        r = kvm_pit_run(vm, err);
    vm->stands = false;
    return r < 0 ? err_prefix(err, r, "cannot let the guest's clocks go on") : 0;
}

uint64_t kvm_kvmclock(struct engine_vm *vm)
{
    return vm->held.kvmclock;
}

void kvm_kvmclock_set(struct engine_vm *vm, uint64_t ns)
{
    vm->held.kvmclock = ns;
}
