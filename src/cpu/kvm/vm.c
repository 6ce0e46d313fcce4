/* A VM: what /dev/kvm must offer, in which order it is asked, and the engine's row. */
#include "cpu/kvm/kvm.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>

enum { KVM_API_VERSION_WANTED = 12 }; /* the only one since Linux 2.6.22 */

struct capability {
    unsigned number;
    const char *name, *what_for;
    bool irqchip; /* needed with ENGINE_IRQCHIP_ENGINE only */
};

static const struct capability capabilities[] = {
    {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY", "guest memory", false},
    {KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID", "the CPU model", false},
    {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", "stopping a vCPU", false},
    {KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE", "vCPU state", false},
    {KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS", "vCPU state", false},
    {KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS", "vCPU state", false},
    {KVM_CAP_XSAVE, "KVM_CAP_XSAVE", "vector registers", false},
    {KVM_CAP_USER_NMI, "KVM_CAP_USER_NMI", "NMIs", false},
    {KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP", "interrupts", true},
    {KVM_CAP_PIT2, "KVM_CAP_PIT2", "the interval timer", true},
    {KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING", "message interrupts", true},
    {KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI", "message interrupts", true},
    {KVM_CAP_IRQFD, "KVM_CAP_IRQFD", "message interrupts", true},
    {KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD", "queue notifications", true},
    {KVM_CAP_X2APIC_API, "KVM_CAP_X2APIC_API", "APIC state", true},
    {KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK", "the paravirtual clock", true},
};

int kvm_ioctl(int fd, unsigned long request, void *argument)
{
    int r;
    do
        r = ioctl(fd, request, argument);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : r;
}

int kvm_ioctl_number(int fd, unsigned long request, unsigned long argument)
{
    return kvm_ioctl(fd, request, (void *)argument);
}

static int has(int fd, unsigned capability)
{
    return kvm_ioctl_number(fd, KVM_CHECK_EXTENSION, capability);
}

static int check(int kvm, const struct engine_config *config, struct err *err)
{
    int version = kvm_ioctl_number(kvm, KVM_GET_API_VERSION, 0);
    if (version < 0)
        return err_errno(err, -version, "the descriptor given as /dev/kvm is none");
    if (version != KVM_API_VERSION_WANTED)
        return err_set(err, -ENOTSUP, "KVM speaks API version %d, not %d", version,
                       KVM_API_VERSION_WANTED);
    for (unsigned i = 0; i < ARRAY_LEN(capabilities); i++) {
        const struct capability *row = &capabilities[i];
        if (row->irqchip && config->irqchip != ENGINE_IRQCHIP_ENGINE)
            continue;
        if (has(kvm, row->number) <= 0)
            return err_set(err, -ENOTSUP, "this KVM lacks %s (%s)", row->name, row->what_for);
    }
    int routes = config->irqchip == ENGINE_IRQCHIP_ENGINE ? has(kvm, KVM_CAP_IRQ_ROUTING) : 0;
    if (config->irqchip == ENGINE_IRQCHIP_ENGINE && routes < GSI_LINES + IRQ_FD_SLOTS)
        return err_set(err, -ENOTSUP, "this KVM has %d interrupt routes, %d are needed", routes,
                       GSI_LINES + IRQ_FD_SLOTS);
    int most = has(kvm, KVM_CAP_MAX_VCPUS);
    if (most > 0 && (unsigned)most < config->vcpus)
        return err_set(err, -ENOTSUP, "this KVM has at most %d vCPUs, %u are wanted", most,
                       config->vcpus);
    for (unsigned i = 0; i < config->mem->count; i++)
        if (config->mem->regions[i].read_only && has(kvm, KVM_CAP_READONLY_MEM) <= 0)
            return err_set(err, -ENOTSUP, "this KVM lacks KVM_CAP_READONLY_MEM (ROM)");
    return 0;
}

static int check_config(const struct engine_config *config, struct err *err)
{
    if (config->irqchip == ENGINE_IRQCHIP_BOARD)
        return err_set(err, -ENOTSUP, "KVM does not use the board's interrupt controllers");
    if (config->tsc)
        return err_set(err, -ENOTSUP, "KVM does not run on a time-stamp counter of ours");
    if (config->vcpus < 1 || config->vcpus > ENGINE_VCPUS_MAX)
        return err_set(err, -EINVAL, "%u vCPUs, 1 to %d are possible", config->vcpus,
                       ENGINE_VCPUS_MAX);
    return 0;
}

static int open_kvm(const char *path, struct err *err)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0)
        return fd;
    int number = errno;
    err_errno(err, number, "cannot open '%s'", path);
    return number == ENOENT || number == ENXIO ? -ENODEV : -number;
}

/* `ret_opened` is to be closed. */
static int open_given(const struct engine_config *config, int *ret_opened, struct err *err)
{
    if (config->kvm_fd >= 0)
        return config->kvm_fd;
    *ret_opened = open_kvm(config->kvm_path ? config->kvm_path : "/dev/kvm", err);
    return *ret_opened;
}

/* Optional things: each is turned on where it exists and the engine does without elsewhere. */
static int enable(struct engine_vm *vm, int kvm, struct err *err)
{
    vm->tsc_scales = has(kvm, KVM_CAP_TSC_CONTROL) > 0;
    if (has(kvm, KVM_CAP_EXCEPTION_PAYLOAD) > 0) {
        struct kvm_enable_cap cap = {.cap = KVM_CAP_EXCEPTION_PAYLOAD, .args = {1}};
        vm->exception_payload = kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &cap) >= 0;
    }
    vm->has_xcr0 = has(kvm, KVM_CAP_XCRS) > 0;
    /* AMD's counters need no CPUID bit, and their state is in no snapshot. Per VM since Linux 5.18.
     */
    struct kvm_enable_cap counters = {.cap = KVM_CAP_PMU_CAPABILITY, .args = {KVM_PMU_CAP_DISABLE}};
    if (has(kvm, KVM_CAP_PMU_CAPABILITY) > 0)
        kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &counters);
    if (!vm->has_irqchip)
        return 0;
    struct kvm_enable_cap cap = {
        .cap = KVM_CAP_X2APIC_API,
        .args = {KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK}};
    int r = kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &cap);
    if (r < 0)
        return err_errno(err, -r, "KVM_CAP_X2APIC_API");
    return 0;
}

/* Places for KVM's own pages, which Intel needs to run real mode (KVM API, 4.36 and 4.41). Other
 * processors take and ignore them. */
static int set_aside(struct engine_vm *vm, int kvm, struct err *err)
{
    uint64_t identity = KVM_IDENTITY_MAP;
    int r;
    if (has(kvm, KVM_CAP_SET_IDENTITY_MAP_ADDR) > 0) {
        r = kvm_ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
        if (r < 0)
            return err_errno(err, -r, "KVM_SET_IDENTITY_MAP_ADDR");
    }
    if (has(kvm, KVM_CAP_SET_TSS_ADDR) > 0) {
        r = kvm_ioctl_number(vm->fd, KVM_SET_TSS_ADDR, KVM_TSS);
        if (r < 0)
            return err_errno(err, -r, "KVM_SET_TSS_ADDR");
    }
    return 0;
}

static void vm_free(struct engine_vm *vm)
{
    if (!vm)
        return;
    if (vm->fd >= 0)
        close(vm->fd); /* irq and I/O descriptors are let go of by the kernel */
    pthread_rwlock_destroy(&vm->messages);
    pthread_mutex_destroy(&vm->lock);
    free(vm);
}

static void own_vm(struct engine_vm **vm)
{
    vm_free(*vm);
}

static int make_vm(struct engine_vm *vm, int kvm, const struct engine_config *config,
                   struct err *err)
{
    int size = kvm_ioctl_number(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (size < (int)sizeof(struct kvm_run))
        return err_set(err, -ENOTSUP, "KVM_GET_VCPU_MMAP_SIZE gives %d", size);
    vm->run_size = (size_t)size;
    vm->fd = kvm_ioctl_number(kvm, KVM_CREATE_VM, 0);
    if (vm->fd < 0)
        return err_errno(err, -vm->fd, "KVM_CREATE_VM");
    int r = enable(vm, kvm, err);
    if (r >= 0)
        r = set_aside(vm, kvm, err);
    if (r >= 0)
        r = kvm_slots_set(vm, false, err);
    if (r >= 0 && vm->has_irqchip)
        r = kvm_irqchip_new(vm, err);
    if (r < 0)
        return r;
    if (config->cpuid) {
        vm->cpuid = *config->cpuid;
        cpuid_limit_physical(&vm->cpuid, vm->physical_bits);
        vm->cpuid_known = true;
        return 0;
    }
    return kvm_supported_cpuid(kvm, vm->has_irqchip, &vm->supported, err);
}

static int vm_new(const struct engine_config *config, struct engine_vm **ret_vm, struct err *err)
{
    int r = check_config(config, err);
    if (r < 0)
        return r;
    _cleanup_fd_ int opened = -1;
    int kvm = open_given(config, &opened, err);
    if (kvm < 0)
        return kvm;
    r = check(kvm, config, err);
    if (r < 0)
        return r;
    r = kvm_kick_prepare(err);
    if (r < 0)
        return r;
    _cleanup_(own_vm)
    struct engine_vm *vm = calloc(1, sizeof *vm);
    if (!vm)
        return err_set(err, -ENOMEM, "no memory for a virtual machine");
    vm->fd = -1;
    vm->mem = config->mem;
    vm->io = config->io;
    vm->vcpus = config->vcpus;
    vm->tsc_khz = config->tsc_khz;
    vm->portable = config->portable;
    vm->physical_bits = config->physical_bits;
    vm->has_irqchip = config->irqchip == ENGINE_IRQCHIP_ENGINE;
    pthread_mutex_init(&vm->lock, NULL);
    pthread_rwlock_init(&vm->messages, NULL);
    for (unsigned i = 0; i < IRQ_FD_SLOTS; i++)
        vm->routes[i].fd = -1;
    r = make_vm(vm, kvm, config, err);
    if (r < 0)
        return r;
    *ret_vm = take_ptr(vm);
    return 0;
}

/* KVM counts instructions only where the guest has performance counters, which ours has not. */
static uint64_t vcpu_instructions(struct engine_vcpu *vcpu)
{
    (void)vcpu;
    return 0;
}

/* Nothing to notify: the interrupt controllers are the kernel's. */
static void vcpu_notify(struct engine_vcpu *vcpu)
{
    (void)vcpu;
}

static int cpuid_able_here(const struct engine_config *config, struct cpuid *ret_cpuid,
                           struct err *err)
{
    struct cpuid supported;
    _cleanup_fd_ int opened = -1;
    int kvm = open_given(config, &opened, err);
    int r = kvm < 0 ? kvm
                    : kvm_supported_cpuid(kvm, config->irqchip == ENGINE_IRQCHIP_ENGINE, &supported,
                                          err);
    if (r >= 0)
        cpuid_able(ret_cpuid, CPUID_KVM, &supported, config->vcpus, config->tsc_khz);
    return r;
}

static const struct cpuid *vm_cpuid(struct engine_vm *vm)
{
    return &vm->cpuid;
}

const struct engine_ops engine_kvm = {
    .name = "kvm",
    .irqchip = ENGINE_IRQCHIP_ENGINE,
    .vm_new = vm_new,
    .vm_free = vm_free,
    .cpuid_able = cpuid_able_here,
    .vm_cpuid = vm_cpuid,
    .vcpu_new = kvm_vcpu_new,
    .vcpu_free = kvm_vcpu_free,
    .vcpu_get_state = kvm_vcpu_get_state,
    .vcpu_set_state = kvm_vcpu_set_state,
    .vcpu_run = kvm_vcpu_run,
    .vcpu_kick = kvm_vcpu_kick,
    .vcpu_notify = vcpu_notify,
    .vcpu_signal = kvm_vcpu_signal,
    .clock_stop = kvm_clock_stop,
    .clock_run = kvm_clock_run,
    .kvmclock = kvm_kvmclock,
    .kvmclock_set = kvm_kvmclock_set,
    .chips_get = kvm_chips_get,
    .chips_set = kvm_chips_set,
    .irq_line = kvm_irq_line,
    .msi = kvm_msi,
    .irq_fd = kvm_irq_fd,
    .io_fd = kvm_io_fd,
    .dirty_start = kvm_dirty_start,
    .dirty_sync = kvm_dirty_sync,
    .dirty_stop = kvm_dirty_stop,
    .vcpu_instructions = vcpu_instructions,
};
