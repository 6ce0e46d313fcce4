/* A vCPU: made, run, kicked. Why kicks cannot be lost is told in kvm.h. */
#include "cpu/kvm/kvm.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

static void kick_handler(int signal)
{
    (void)signal; /* it is enough that KVM_RUN was interrupted */
}

int kvm_kick_prepare(struct err *err)
{
    struct sigaction present;
    if (sigaction(KICK_SIGNAL, NULL, &present) < 0)
        return err_errno(err, errno, "sigaction");
    if (present.sa_handler == kick_handler)
        return 0;
    if (present.sa_handler != SIG_DFL && present.sa_handler != SIG_IGN)
        return err_set(err, -EBUSY, "signal %d, which stops vCPUs, has another handler",
                       KICK_SIGNAL);
    /* SA_RESTART: a late signal must not disturb what the thread does after run(). KVM_RUN
     * returns EINTR whatever this flag says. */
    struct sigaction ours = {.sa_handler = kick_handler, .sa_flags = SA_RESTART};
    if (sigaction(KICK_SIGNAL, &ours, NULL) < 0)
        return err_errno(err, errno, "sigaction");
    return 0;
}

void kvm_vcpu_free(struct engine_vcpu *vcpu)
{
    if (!vcpu)
        return;
    if (vcpu->run)
        munmap(vcpu->run, vcpu->vm->run_size);
    if (vcpu->vm->vcpu[vcpu->index] == vcpu)
        vcpu->vm->vcpu[vcpu->index] = NULL;
    if (vcpu->fd >= 0)
        close(vcpu->fd);
    pthread_mutex_destroy(&vcpu->thread_lock);
    free(vcpu);
}

static void own_vcpu(struct engine_vcpu **vcpu)
{
    kvm_vcpu_free(*vcpu);
}

int kvm_vcpu_new(struct engine_vm *vm, unsigned index, struct engine_vcpu **ret_vcpu,
                 struct err *err)
{
    if (index >= vm->vcpus)
        return err_set(err, -EINVAL, "vCPU %u of %u", index, vm->vcpus);
    _cleanup_(own_vcpu)
    struct engine_vcpu *vcpu = calloc(1, sizeof *vcpu);
    if (!vcpu)
        return err_set(err, -ENOMEM, "no memory for a vCPU");
    vcpu->vm = vm;
    vcpu->index = index;
    vcpu->run_state = index == 0 ? CPU_RUNNING : CPU_WAIT_FOR_SIPI;
    pthread_mutex_init(&vcpu->thread_lock, NULL);
    vcpu->fd = kvm_ioctl_number(vm->fd, KVM_CREATE_VCPU, index);
    if (vcpu->fd < 0)
        return err_errno(err, -vcpu->fd, "KVM_CREATE_VCPU %u", index);
    void *run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (run == MAP_FAILED)
        return err_errno(err, errno, "cannot map the shared page of vCPU %u", index);
    vcpu->run = run;
    /* One bank, where KVM would have 32: a guest asks them all again and again, and must find them
     * under the software engine, too. Optional: without MCE there are none. */
    uint64_t banks = 1;
    kvm_ioctl(vcpu->fd, KVM_X86_SETUP_MCE, &banks);
    int r = kvm_vcpu_set_tsc_khz(vcpu, err);
    if (r >= 0)
        r = kvm_vcpu_set_cpuid(vcpu, err);
    if (r >= 0)
        r = kvm_vcpu_find_msrs(vcpu, err);
    if (r < 0)
        return err_prefix(err, r, "vCPU %u", index);
    vm->vcpu[index] = vcpu;
    *ret_vcpu = take_ptr(vcpu);
    return 0;
}

/* --- port and MMIO accesses ------------------------------------------------------------------ */

static uint64_t all_ones(unsigned size)
{
    return size >= 8 ? UINT64_MAX : (UINT64_C(1) << 8 * size) - 1;
}

static void port_access(struct engine_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    const struct engine_io *io = vcpu->vm->io;
    unsigned size = run->io.size;
    uint8_t *at = (uint8_t *)run + run->io.data_offset;
    /* KVM's numbers, but bounded by the mapping all the same: `count` comes from a guest's RCX. */
    if (size > 4 ||
        !range_fits(run->io.data_offset, (uint64_t)size * run->io.count, vcpu->vm->run_size))
        return;
    for (uint32_t i = 0; i < run->io.count; i++, at += size) {
        uint32_t value = 0;
        if (run->io.direction == KVM_EXIT_IO_OUT) {
            memcpy(&value, at, size);
            if (io && io->port_write)
                io->port_write(io->opaque, vcpu->index, run->io.port, size, value);
        } else {
            value = io && io->port_read ? io->port_read(io->opaque, vcpu->index, run->io.port, size)
                                        : UINT32_MAX;
            memcpy(at, &value, size);
        }
    }
}

static void mmio_part(struct engine_vcpu *vcpu, uint64_t gpa, uint8_t *at, unsigned size,
                      bool write)
{
    const struct engine_io *io = vcpu->vm->io;
    uint64_t value = 0;
    if (write) {
        memcpy(&value, at, size);
        if (io && io->mmio_write)
            io->mmio_write(io->opaque, vcpu->index, gpa, size, value);
        return;
    }
    value =
        io && io->mmio_read ? io->mmio_read(io->opaque, vcpu->index, gpa, size) : all_ones(size);
    memcpy(at, &value, size);
}

/* KVM splits at pages and at eight bytes, and can so leave 3, 5, 6 or 7: the engine's callers see
 * powers of two. */
static void mmio_access(struct engine_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    unsigned length = min(run->mmio.len, (uint32_t)sizeof run->mmio.data);
    for (unsigned done = 0; done < length;) {
        unsigned size = 8;
        while (size > length - done)
            size /= 2;
        mmio_part(vcpu, run->mmio.phys_addr + done, run->mmio.data + done, size,
                  run->mmio.is_write);
        done += size;
    }
}

/* --- what ends a run -------------------------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static int fault(struct engine_exit *exit, const char *format,
                                                       ...)
{
    va_list arguments;
    va_start(arguments, format);
    exit->reason = ENGINE_EXIT_FAULT;
    vsnprintf(exit->detail, sizeof exit->detail, format, arguments);
    va_end(arguments);
    return 1;
}

static uint64_t rip_of(const struct engine_vcpu *vcpu)
{
    struct kvm_regs regs = {0};
    kvm_ioctl(vcpu->fd, KVM_GET_REGS, &regs);
    return regs.rip;
}

static int internal_error(const struct engine_vcpu *vcpu, struct engine_exit *exit)
{
    const struct kvm_run *run = vcpu->run;
    if (run->internal.suberror != KVM_INTERNAL_ERROR_EMULATION)
        return fault(exit,
                     "KVM internal error %" PRIu32 " at rip 0x%" PRIx64 " (data 0x%" PRIx64
                     " 0x%" PRIx64 ")",
                     run->internal.suberror, rip_of(vcpu), (uint64_t)run->internal.data[0],
                     (uint64_t)run->internal.data[1]);
    char bytes[3 * 15 + 1] = "";
    bool known = run->emulation_failure.ndata >= 1 + 2 &&
                 run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
    unsigned count = known ? min(run->emulation_failure.insn_size, (__u8)15) : 0;
    for (unsigned i = 0; i < count; i++)
        snprintf(bytes + 3 * i, sizeof bytes - 3 * i, " %02x",
                 run->emulation_failure.insn_bytes[i]);
    return fault(exit, "KVM cannot emulate the instruction at rip 0x%" PRIx64 "%s%s", rip_of(vcpu),
                 count ? ":" : "", bytes);
}

/* > 0: *exit is filled; 0: go on running. */
static int handle(struct engine_vcpu *vcpu, struct engine_exit *exit)
{
    const struct kvm_run *run = vcpu->run;
    switch (run->exit_reason) {
    case KVM_EXIT_IO: port_access(vcpu); return 0;
    case KVM_EXIT_MMIO: mmio_access(vcpu); return 0;
    case KVM_EXIT_HLT: exit->reason = ENGINE_EXIT_HALT; return 1;
    case KVM_EXIT_SHUTDOWN: exit->reason = ENGINE_EXIT_SHUTDOWN; return 1;
    case KVM_EXIT_DEBUG: exit->reason = ENGINE_EXIT_DEBUG; return 1;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_SET_TPR: return 0;
    case KVM_EXIT_FAIL_ENTRY:
        return fault(exit, "the processor refuses to enter the guest: reason 0x%" PRIx64,
                     (uint64_t)run->fail_entry.hardware_entry_failure_reason);
    case KVM_EXIT_INTERNAL_ERROR: return internal_error(vcpu, exit);
    case KVM_EXIT_SYSTEM_EVENT:
        return fault(exit, "KVM system event %" PRIu32, run->system_event.type);
    default:
        return fault(exit, "KVM exit %" PRIu32 " is not one that was asked for", run->exit_reason);
    }
}

/* --- running and kicking ---------------------------------------------------------------------- */

static int enter(struct engine_vcpu *vcpu, struct err *err)
{
    pid_t self = gettid();
    if (vcpu->unblocked != self) {
        sigset_t kick;
        sigemptyset(&kick);
        sigaddset(&kick, KICK_SIGNAL);
        int r = pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
        if (r)
            return err_errno(err, r, "cannot unblock the signal that stops vCPUs");
        vcpu->unblocked = self;
    }
    pthread_mutex_lock(&vcpu->thread_lock);
    vcpu->thread = self;
    pthread_mutex_unlock(&vcpu->thread_lock);
    return 0;
}

static void leave(struct engine_vcpu *vcpu)
{
    pthread_mutex_lock(&vcpu->thread_lock);
    vcpu->thread = 0;
    pthread_mutex_unlock(&vcpu->thread_lock);
}

/* KVM_RUN came back because somebody wanted something. > 0: it was a kick. */
static int interrupted(struct engine_vcpu *vcpu, struct engine_exit *exit)
{
    /* First the flag, then the wishes: a kick after this line sets both again. */
    __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    if (atomic_exchange(&vcpu->nmi, false))
        kvm_ioctl_number(vcpu->fd, KVM_NMI, 0);
    if (!atomic_exchange(&vcpu->kicked, false))
        return 0;
    exit->reason = ENGINE_EXIT_KICK;
    return 1;
}

static int run_until(struct engine_vcpu *vcpu, struct engine_exit *exit, struct err *err)
{
    for (;;) {
        int r = ioctl(vcpu->fd, KVM_RUN, 0);
        int number = errno;
        if (r < 0 && (number == EINTR || number == EAGAIN)) {
            if (interrupted(vcpu, exit))
                return 0;
            continue;
        }
        if (r < 0 && number == EFAULT) {
            fault(exit, "KVM cannot reach the memory behind rip 0x%" PRIx64, rip_of(vcpu));
            return 0;
        }
        if (r < 0)
            return err_errno(err, number, "KVM_RUN of vCPU %u", vcpu->index);
        if (handle(vcpu, exit))
            return 0;
    }
}

int kvm_vcpu_run(struct engine_vcpu *vcpu, struct engine_exit *ret_exit, struct err *err)
{
    *ret_exit = (struct engine_exit){0};
    int r = enter(vcpu, err);
    if (r < 0)
        return r;
    if (!vcpu->vm->has_irqchip && vcpu->run_state != CPU_RUNNING) {
        /* Nothing but its user can wake it. */
        if (!interrupted(vcpu, ret_exit))
            ret_exit->reason = ENGINE_EXIT_HALT;
    } else {
        r = run_until(vcpu, ret_exit, err);
    }
    leave(vcpu);
    return r;
}

static void interrupt(struct engine_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_lock(&vcpu->thread_lock);
    if (vcpu->thread)
        tgkill(getpid(), vcpu->thread, KICK_SIGNAL);
    pthread_mutex_unlock(&vcpu->thread_lock);
}

void kvm_vcpu_kick(struct engine_vcpu *vcpu)
{
    atomic_store(&vcpu->kicked, true);
    interrupt(vcpu);
}

/* KVM_NMI waits until the vCPU is out of KVM_RUN, so its own thread does it. */
void kvm_vcpu_signal(struct engine_vcpu *vcpu, enum engine_signal signal, uint8_t vector)
{
    (void)vector;
    if (signal != ENGINE_SIGNAL_NMI)
        return;
    atomic_store(&vcpu->nmi, true);
    interrupt(vcpu);
}
