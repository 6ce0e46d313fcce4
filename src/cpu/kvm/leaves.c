/* CPUID between our table and KVM's. */
#include "cpu/kvm/kvm.h"

#include "base/bytes.h"
#include "base/own.h"

#include <asm/kvm_para.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

enum { ENTRIES_MAX = 512 };

/* What depends on an interrupt controller: x2APIC and TSC deadline; PV EOI, unhalt, IPI. */
#define LEAF1_ECX_TSC_DEADLINE (UINT32_C(1) << 24)
#define LEAF1_ECX_X2APIC       (UINT32_C(1) << 21)
#define KVM_BITS_OF_APIC       (UINT32_C(1) << 6 | UINT32_C(1) << 7 | UINT32_C(1) << 11)

static struct kvm_cpuid2 *cpuid2_new(unsigned entries)
{
    struct kvm_cpuid2 *list = calloc(1, sizeof *list + entries * sizeof list->entries[0]);
    if (list)
        list->nent = entries;
    return list;
}

int kvm_supported_cpuid(int kvm, bool irqchip, struct cpuid *ret_cpuid, struct err *err)
{
    _cleanup_free_ struct kvm_cpuid2 *list = cpuid2_new(ENTRIES_MAX);
    if (!list)
        return err_set(err, -ENOMEM, "no memory for CPUID");
    int r = kvm_ioctl(kvm, KVM_GET_SUPPORTED_CPUID, list);
    if (r < 0)
        return err_errno(err, -r, "KVM_GET_SUPPORTED_CPUID");
    bool deadline = kvm_ioctl_number(kvm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
    ret_cpuid->count = 0;
    for (unsigned i = 0; i < list->nent && ret_cpuid->count < CPUID_LEAVES_MAX; i++) {
        struct kvm_cpuid_entry2 *from = &list->entries[i];
        if (!(from->eax | from->ebx | from->ecx | from->edx))
            continue; /* the table would be full of them; an absent leaf reads the same */
        if (from->function == 1) {
            from->ecx &= ~(LEAF1_ECX_TSC_DEADLINE | LEAF1_ECX_X2APIC);
            if (irqchip)
                from->ecx |= LEAF1_ECX_X2APIC | (deadline ? LEAF1_ECX_TSC_DEADLINE : 0);
        }
        if (from->function == KVM_CPUID_FEATURES && !irqchip)
            from->eax &= ~KVM_BITS_OF_APIC;
        ret_cpuid->leaves[ret_cpuid->count++] = (struct cpuid_leaf){
            .leaf = from->function,
            .subleaf = from->index,
            .by_subleaf = from->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            .eax = from->eax,
            .ebx = from->ebx,
            .ecx = from->ecx,
            .edx = from->edx,
        };
    }
    return 0;
}

/* KVM's own tolerance: without scaling, a frequency within it is the host's (tsc_tolerance_ppm). */
enum { TSC_TOLERANCE_PPM = 250 };

/* The frequency that is wanted, or what there is. Two measurements of one processor differ a
 * little: such a difference is none. */
int kvm_vcpu_set_tsc_khz(struct engine_vcpu *vcpu, struct err *err)
{
    struct engine_vm *vm = vcpu->vm;
    int answer = kvm_ioctl_number(vcpu->fd, KVM_GET_TSC_KHZ, 0);
    uint64_t host = answer > 0 ? (uint64_t)answer : cpuid_host_tsc_khz();
    if (!vm->tsc_khz)
        vm->tsc_khz = host;
    uint64_t apart = host > vm->tsc_khz ? host - vm->tsc_khz : vm->tsc_khz - host;
    if (apart <= host * TSC_TOLERANCE_PPM * 2 / 1000000)
        return 0;
    /* Without scaling KVM would let a faster counter limp behind: no guest is served by that. */
    if (!vm->tsc_scales)
        return err_set(err, -ENOTSUP,
                       "the guest's TSC runs at %" PRIu64 " MHz, this host's at %" PRIu64
                       ", and its KVM cannot scale it; use --engine soft",
                       vm->tsc_khz / 1000, host / 1000);
    int r = kvm_ioctl_number(vcpu->fd, KVM_SET_TSC_KHZ, vm->tsc_khz);
    return r < 0 ? err_errno(err, -r, "KVM_SET_TSC_KHZ of %" PRIu64, vm->tsc_khz) : 0;
}

/* The VM's table, made when the first vCPU can tell the frequency of its TSC. */
static void know_cpuid(struct engine_vcpu *vcpu)
{
    struct engine_vm *vm = vcpu->vm;
    pthread_mutex_lock(&vm->lock);
    if (!vm->cpuid_known) {
        if (vm->portable)
            cpuid_portable(&vm->cpuid, CPUID_KVM, &vm->supported, vm->vcpus, vm->tsc_khz);
        else
            cpuid_model(&vm->cpuid, CPUID_KVM, &vm->supported, vm->vcpus, vm->tsc_khz);
        cpuid_limit_physical(&vm->cpuid, vm->physical_bits);
        vm->cpuid_known = true;
    }
    pthread_mutex_unlock(&vm->lock);
}

int kvm_vcpu_set_cpuid(struct engine_vcpu *vcpu, struct err *err)
{
    struct cpuid cpuid;
    know_cpuid(vcpu);
    cpuid_for_vcpu(&vcpu->vm->cpuid, vcpu->index, vcpu->vm->vcpus, 0, 1, &cpuid);
    _cleanup_free_ struct kvm_cpuid2 *list = cpuid2_new(cpuid.count);
    if (!list)
        return err_set(err, -ENOMEM, "no memory for CPUID");
    for (unsigned i = 0; i < cpuid.count; i++) {
        const struct cpuid_leaf *leaf = &cpuid.leaves[i];
        list->entries[i] = (struct kvm_cpuid_entry2){
            .function = leaf->leaf,
            .index = leaf->subleaf,
            .flags = leaf->by_subleaf ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
            .eax = leaf->eax,
            .ebx = leaf->ebx,
            .ecx = leaf->ecx,
            .edx = leaf->edx,
        };
    }
    int r = kvm_ioctl(vcpu->fd, KVM_SET_CPUID2, list);
    return r < 0 ? err_errno(err, -r, "KVM_SET_CPUID2") : 0;
}
