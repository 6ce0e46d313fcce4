/*
 * The paravirtual clock: Linux Documentation/virt/kvm/x86/msr.rst.
 *
 * Guest time in nanoseconds is a fixed multiple of the VM's TSC, the same on all vCPUs, and what a
 * restored machine had beyond that. So the structures never need an update while the guest runs and
 * every vCPU computes the same: that is what PVCLOCK_TSC_STABLE_BIT says. They are written when the
 * guest asks, and again when the TSC was moved or restored. Writers make `version` odd first and
 * even last.
 */
#include "cpu/soft/system.h"

#include <time.h>

enum {
    TIME_SIZE = 32,
    TIME_TSC = 8,
    TIME_NS = 16,
    TIME_MUL = 24,
    TIME_SHIFT = 28,
    TIME_FLAGS = 29,
    TIME_STABLE = 1 << 0,
    WALL_SIZE = 12,
    SYSTEM_TIME_ENABLED = 1 << 0,
};

/* ns = (shift < 0 ? tsc >> -shift : tsc << shift) * mul >> 32 */
struct scale {
    uint32_t mul;
    int8_t shift;
};

static struct scale scale_of(uint64_t tsc_khz)
{
    struct scale scale = {0};
    uint64_t ticks = tsc_khz * 1000;
    const uint64_t target = UINT64_C(1000000000);
    while (ticks > target * 2 || ticks >> 32) {
        ticks >>= 1;
        scale.shift--;
    }
    while (ticks <= target) {
        ticks <<= 1;
        scale.shift++;
    }
    scale.mul = (uint32_t)((target << 32) / ticks);
    return scale;
}

static uint64_t scaled(struct scale scale, uint64_t tsc)
{
    tsc = scale.shift < 0 ? tsc >> -scale.shift : tsc << scale.shift;
    return (uint64_t)((unsigned __int128)tsc * scale.mul >> 32);
}

uint64_t kvmclock_now(const struct soft_vm *vm)
{
    return scaled(scale_of(vm->tsc_khz), soft_vm_tsc(vm)) + vm->kvmclock_base;
}

void kvmclock_set(struct soft_vm *vm, uint64_t ns)
{
    vm->kvmclock_base = ns - scaled(scale_of(vm->tsc_khz), soft_vm_tsc(vm));
}

/* The guest named a place outside its memory: then nobody reads it either. */
static void write_versioned(struct soft_vcpu *v, uint64_t gpa, uint8_t *bytes, unsigned size)
{
    uint8_t version[4];
    if (mem_read(v->vm->mem, gpa, version, sizeof version) < 0)
        return;
    uint32_t number = (le32_read(version) | 1) + 2; /* odd, and newer than what is there */
    le32_write(bytes, number);
    mem_write(v->vm->mem, gpa, bytes, sizeof version);
    atomic_thread_fence(memory_order_seq_cst);
    mem_write(v->vm->mem, gpa + 4, bytes + 4, size - 4);
    atomic_thread_fence(memory_order_seq_cst);
    le32_write(version, number + 1);
    mem_write(v->vm->mem, gpa, version, sizeof version);
}

void kvmclock_update(struct soft_vcpu *v)
{
    uint64_t value = v->msr[CPU_MSR_KVM_SYSTEM_TIME];
    if (!(value & SYSTEM_TIME_ENABLED))
        return;
    /* Where the VM's TSC was 0. */
    struct scale scale = scale_of(v->vm->tsc_khz);
    uint8_t bytes[TIME_SIZE] = {0};
    le64_write(bytes + TIME_TSC, v->tsc_offset);
    le64_write(bytes + TIME_NS, v->vm->kvmclock_base);
    le32_write(bytes + TIME_MUL, scale.mul);
    bytes[TIME_SHIFT] = (uint8_t)scale.shift;
    bytes[TIME_FLAGS] = TIME_STABLE;
    write_versioned(v, value & ~(uint64_t)SYSTEM_TIME_ENABLED, bytes, sizeof bytes);
}

bool kvmclock_system_time_write(struct soft_vcpu *v, uint64_t value)
{
    v->msr[CPU_MSR_KVM_SYSTEM_TIME] = value;
    kvmclock_update(v);
    return true;
}

/* The wall-clock time of guest nanosecond 0. */
bool kvmclock_wall_clock_write(struct soft_vcpu *v, uint64_t value)
{
    v->msr[CPU_MSR_KVM_WALL_CLOCK] = value;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec - kvmclock_now(v->vm);
    uint8_t bytes[WALL_SIZE] = {0};
    le32_write(bytes + 4, (uint32_t)(ns / 1000000000));
    le32_write(bytes + 8, (uint32_t)(ns % 1000000000));
    write_versioned(v, value, bytes, sizeof bytes);
    return true;
}
