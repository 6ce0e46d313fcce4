/* What a guest asks of its hypervisor: Linux Documentation/virt/kvm/x86/hypercalls.rst. Number in
 * RAX, arguments in RBX RCX RDX RSI, answer in RAX. */
#include "cpu/soft/block.h"
#include "cpu/soft/system.h"

enum {
    HC_VAPIC_POLL_IRQ = 1,
    HC_KICK_CPU = 5,
    HC_SEND_IPI = 10,
    HC_EPERM = -1,
    HC_EINVAL = -22,
    HC_ENOSYS = -1000,
    X2APIC_ICR = 0x830,
    XAPIC_ICR_LOW = 0x300,
    XAPIC_ICR_HIGH = 0x310,
    ICR_DESTINATION = 56, /* in the xAPIC's register pair, bits 56..63 */
};
#define XAPIC_BASE UINT64_C(0xfee00000)

/* A vCPU asleep in HLT wakes up, one that is not will not fall asleep the next time. */
static int64_t kick_cpu(struct soft_vcpu *v, uint64_t apic_id)
{
    if (apic_id >= v->vm->config.vcpus)
        return 0;
    struct soft_vcpu *target = __atomic_load_n(&v->vm->vcpus[apic_id], __ATOMIC_ACQUIRE);
    if (target && target != v) {
        atomic_fetch_or(&target->signals, EVENT_SIGNAL_UNHALT);
        soft_attend(target, ATTENTION_SIGNAL);
    }
    return 0;
}

static bool send_ipi(struct soft_vcpu *v, uint64_t apic_id, uint32_t icr)
{
    const struct engine_apic *apic = &v->vm->apic;
    if (apic->msr_write(apic->opaque, v->index, X2APIC_ICR, apic_id << 32 | icr))
        return true;
    /* Not in x2APIC mode: the register pair of the xAPIC, destination first. */
    const struct engine_io *io = &v->vm->io;
    if (apic_id > 0xfe || !io->mmio_write)
        return false;
    io->mmio_write(io->opaque, v->index, XAPIC_BASE + XAPIC_ICR_HIGH, 4, apic_id << 24);
    io->mmio_write(io->opaque, v->index, XAPIC_BASE + XAPIC_ICR_LOW, 4, icr);
    return true;
}

static int64_t send_ipis(struct soft_vcpu *v, uint64_t low, uint64_t high, uint64_t first,
                         uint32_t icr, bool wide)
{
    enum { ICR_SHORTHAND = 3 << 18, ICR_LOGICAL = 1 << 11 };
    if (!v->vm->has_apic || icr & (ICR_SHORTHAND | ICR_LOGICAL))
        return HC_EINVAL;
    unsigned bits = wide ? 64 : 32;
    uint64_t words[2] = {low, high};
    int64_t sent = 0;
    for (unsigned i = 0; i < 2; i++)
        for (uint64_t left = words[i]; left; left &= left - 1) {
            uint64_t id = first + i * bits + (unsigned)__builtin_ctzll(left);
            if (id < v->vm->config.vcpus)
                sent += send_ipi(v, id, icr);
        }
    return sent;
}

void hypercall(struct soft_vcpu *v, const struct insn *insn)
{
    bool wide = v->mode & MODE_64;
    uint64_t mask = wide ? UINT64_MAX : UINT32_MAX;
    uint64_t number = v->gpr[CPU_RAX] & mask;
    uint64_t a[4] = {v->gpr[CPU_RBX] & mask, v->gpr[CPU_RCX] & mask, v->gpr[CPU_RDX] & mask,
                     v->gpr[CPU_RSI] & mask};
    int64_t answer = HC_ENOSYS;
    exclusive_leave(v); /* the board may wait for other vCPUs */
    if (vcpu_cpl(v) != 0)
        answer = HC_EPERM;
    else if (number == HC_VAPIC_POLL_IRQ)
        answer = 0;
    else if (number == HC_KICK_CPU)
        answer = kick_cpu(v, a[1]);
    else if (number == HC_SEND_IPI)
        answer = send_ipis(v, a[0], a[1], a[2], (uint32_t)a[3], wide);
    exclusive_enter(v);
    register_write(v, CPU_RAX * 8, wide ? 8 : 4, (uint64_t)answer);
}
