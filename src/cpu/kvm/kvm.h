/*
 * kvm.h: the KVM engine from inside; users see cpu/engine.h and the row engine_kvm.
 *
 * The files, by theme: vm.c opens, checks, makes the VM and its memory slots; vcpu.c makes vCPUs,
 * runs and kicks them; vcpu_state.c turns KVM's registers into the canonical state and back; irq.c
 * holds lines, messages, routes and event descriptors; chips.c the interrupt controllers' and the
 * PIT's state; clock.c makes time stand still; dirty.c the dirty log; leaves.c CPUID.
 *
 * Descriptors: /dev/kvm is needed only inside vm_new(); a VM keeps its own descriptor, a vCPU its
 * descriptor and the shared page (struct kvm_run).
 *
 * Kicks. A vCPU inside KVM_RUN sees another thread's wish only as a signal, and a signal that
 * arrives just before KVM_RUN would be lost. So kick() first writes run->immediate_exit, which
 * KVM_RUN reads on its way in, and then sends KICK_SIGNAL, whose handler does nothing:
 *   signal before KVM_RUN   immediate_exit makes it return at once
 *   signal during KVM_RUN   it returns with EINTR
 * KVM finishes an instruction's port or MMIO access before it looks at immediate_exit, so a run()
 * that ends with a kick leaves no half-done instruction behind: the state can always be read.
 *
 * The handler is the one thing of this engine that belongs to the process; vm_new() installs it and
 * refuses if somebody else's is there.
 */
#pragma once

#include "base/bytes.h"
#include "cpu/engine.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/types.h>

#define KICK_SIGNAL (SIGRTMIN + 5)

enum {
    GSI_LINES = 24,      /* pins of the I/O APIC */
    IRQ_FD_SLOTS = 1024, /* message routes; slot n is GSI 24 + n */
    GSI_TIMER = 0,
    GSI_CASCADE = 2, /* joins the two PICs: no line of its own */
    TIMER_PIN = 2,   /* of the I/O APIC */
    PIC_PINS = 8,
};

/* Registers of the local APIC, as offsets into its page. */
enum {
    APIC_TPR = 0x80,
    APIC_LVT_TIMER = 0x320,
    APIC_INITIAL = 0x380,
    APIC_CURRENT = 0x390,
    APIC_LVT_MASKED = 1 << 16,
    APIC_TIMER_MODES = 3 << 17,
    APIC_TIMER_PERIODIC = 1 << 17,
    APIC_TIMER_DEADLINE = 2 << 17,
};

static inline bool kvm_apic_periodic(const void *page)
{
    uint32_t timer = le32_read((const uint8_t *)page + APIC_LVT_TIMER);
    return (timer & APIC_TIMER_MODES) == APIC_TIMER_PERIODIC;
}

static inline bool kvm_apic_deadline_mode(const void *page)
{
    uint32_t timer = le32_read((const uint8_t *)page + APIC_LVT_TIMER);
    return (timer & APIC_TIMER_MODES) == APIC_TIMER_DEADLINE;
}

/* Intel only: where KVM puts four pages of its own for real mode, below the reset vector. A memory
 * map must leave [0xfeffc000, 0xff000000) free. */
#define KVM_IDENTITY_MAP UINT64_C(0xfeffc000)
#define KVM_TSS          UINT64_C(0xfeffd000)

struct irq_route {
    int fd; /* the eventfd behind it, -1 = slot is free */
    uint64_t address;
    uint32_t data;
};

/* What clock.c holds while the clocks stand: of a machine, of a vCPU. */
struct held_vm {
    uint64_t tsc, kvmclock;
    struct kvm_pit_state2 pit;
    int64_t monotonic_ns; /* when `pit` was so */
};

struct held_vcpu {
    uint64_t tsc, deadline;
    uint32_t initial, count; /* of the APIC's timer in its other modes; 0 = it does not count */
};

struct engine_vm {
    int fd;
    struct mem *mem;
    const struct engine_io *io;
    unsigned vcpus;
    bool has_irqchip;       /* ENGINE_IRQCHIP_ENGINE */
    bool portable;          /* the CPU model */
    unsigned physical_bits; /* engine.h */
    bool exception_payload;
    bool has_xcr0;    /* the processor has XSAVE */
    size_t run_size;  /* of the shared page of a vCPU */
    uint64_t tsc_khz; /* of the guest; known once there is a vCPU */
    bool tsc_scales;  /* KVM_CAP_TSC_CONTROL */

    struct engine_vcpu *vcpu[ENGINE_VCPUS_MAX]; /* those that there are */
    bool stands;                                /* the clocks do */
    struct held_vm held;
    _Atomic uint32_t lines; /* levels of the GSIs, as irq_line() was told last */
    /* Held for reading by who sends a message or raises a line, for writing by who reads and writes
     * a local APIC that must not change in between. */
    pthread_rwlock_t messages;

    pthread_mutex_t lock; /* guards what follows */
    struct cpuid supported;
    struct cpuid cpuid; /* valid once cpuid_known: waits for the TSC frequency, a vCPU's to tell */
    bool cpuid_known;
    bool logging;
    struct irq_route routes[IRQ_FD_SLOTS];
};

struct engine_vcpu {
    struct engine_vm *vm;
    unsigned index;
    int fd;
    struct kvm_run *run;
    /* Slots of the canonical MSR table that this KVM knows, in order. */
    uint8_t msrs[CPU_MSR_MAX];
    unsigned msr_count;
    struct held_vcpu held;
    uint64_t wall_clock; /* the register's value from a state that was set; KVM is not told */
    uint32_t run_state;  /* without an irqchip KVM knows only running: ours then */

    pthread_mutex_t thread_lock; /* guards `thread`: nobody is signalled who has left run() */
    pid_t thread;                /* inside run(), or 0 */
    pid_t unblocked;             /* the last thread for which KICK_SIGNAL was let through */
    atomic_bool kicked;
    atomic_bool nmi;
};

/* ioctl() that goes on after a signal. Returns what ioctl returns, or -errno. */
int kvm_ioctl(int fd, unsigned long request, void *argument);
/* The same for requests whose argument is a number. */
int kvm_ioctl_number(int fd, unsigned long request, unsigned long argument);

/* leaves.c */
int kvm_supported_cpuid(int kvm, bool irqchip, struct cpuid *ret_cpuid, struct err *err);
int kvm_vcpu_set_tsc_khz(struct engine_vcpu *vcpu, struct err *err);
int kvm_vcpu_set_cpuid(struct engine_vcpu *vcpu, struct err *err);

/* vcpu.c */
int kvm_vcpu_new(struct engine_vm *vm, unsigned index, struct engine_vcpu **ret_vcpu,
                 struct err *err);
void kvm_vcpu_free(struct engine_vcpu *vcpu);
int kvm_vcpu_run(struct engine_vcpu *vcpu, struct engine_exit *ret_exit, struct err *err);
void kvm_vcpu_kick(struct engine_vcpu *vcpu);
void kvm_vcpu_signal(struct engine_vcpu *vcpu, enum engine_signal signal, uint8_t vector);
int kvm_kick_prepare(struct err *err);

/* vcpu_state.c */
int kvm_vcpu_find_msrs(struct engine_vcpu *vcpu, struct err *err);
int kvm_vcpu_get_state(struct engine_vcpu *vcpu, struct cpu_state *ret_state, struct err *err);
int kvm_vcpu_set_state(struct engine_vcpu *vcpu, const struct cpu_state *state, struct err *err);

int kvm_vcpu_get_msrs(const struct engine_vcpu *vcpu, uint64_t *ret_values, struct err *err);
int kvm_vcpu_set_tsc(const struct engine_vcpu *vcpu, uint64_t value);
int kvm_vcpu_set_deadline(const struct engine_vcpu *vcpu, uint64_t value, struct err *err);

/* clock.c */
int kvm_clock_stop(struct engine_vm *vm, uint64_t *ret_tsc, struct err *err);
int kvm_clock_run(struct engine_vm *vm, struct err *err);
uint64_t kvm_kvmclock(struct engine_vm *vm);
void kvm_kvmclock_set(struct engine_vm *vm, uint64_t ns);

/* chips.c; what has no struct in a header of KVM's is in chips.h */
int kvm_chips_get(struct engine_vm *vm, uint64_t now, struct chip_states *ret_states,
                  struct err *err);
int kvm_chips_set(struct engine_vm *vm, uint64_t now, const struct chip_states *states,
                  struct err *err);
int kvm_pit_stop(struct engine_vm *vm, struct err *err);
int kvm_pit_run(struct engine_vm *vm, struct err *err);

/* irq.c */
int kvm_irqchip_new(struct engine_vm *vm, struct err *err);
int kvm_irq_line(struct engine_vm *vm, unsigned gsi, bool level);
int kvm_msi(struct engine_vm *vm, uint64_t address, uint32_t data);
int kvm_irq_fd(struct engine_vm *vm, int fd, unsigned slot, uint64_t address, uint32_t data,
               bool assign, struct err *err);
int kvm_io_fd(struct engine_vm *vm, int fd, uint64_t gpa, unsigned size, bool assign,
              struct err *err);

/* dirty.c */
int kvm_slots_set(struct engine_vm *vm, bool logging, struct err *err);
int kvm_dirty_start(struct engine_vm *vm, struct err *err);
int kvm_dirty_sync(struct engine_vm *vm, struct err *err);
int kvm_dirty_stop(struct engine_vm *vm, struct err *err);
