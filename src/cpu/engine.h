/*
 * engine.h: the contract between a machine and whatever executes its instructions.
 *
 * An engine is one `struct engine_ops` row: KVM (src/cpu/kvm) or software (src/cpu/soft). It makes
 * a VM over a memory map, vCPUs in it, and runs each vCPU on a thread of the caller's until
 * something happens that the caller must know. No engine contains a device.
 *
 * Accesses that are not memory (ports, MMIO) go through `struct engine_io` while the guest's
 * instruction waits: a callback, not an exit, because one x86 instruction may touch several such
 * places and read each before it goes on. (KVM does return to its user for them; src/cpu/kvm turns
 * that into the same callbacks.) Exits are what is left: halt, shutdown, kick, debug, fault.
 *
 * Interrupts come in one of three arrangements, fixed when the VM is made:
 *   ENGINE_IRQCHIP_NONE    no interrupt controller; HLT is an exit. For unit tests.
 *   ENGINE_IRQCHIP_ENGINE  local APICs, I/O APIC, PIC and PIT live in the engine (KVM's kernel
 *                          ones); the board raises lines with irq_line() and messages with msi().
 *   ENGINE_IRQCHIP_BOARD   they are devices of the board (src/chip); the engine asks them through
 *                          `struct engine_apic`, and they tell it with vcpu_notify() and
 *                          vcpu_signal(). HLT sleeps inside run().
 * The soft engine offers NONE and BOARD, KVM offers NONE and ENGINE.
 *
 * Threads: run(), get_state(), set_state() belong to the vCPU's own thread, or to any one thread
 * while the vCPU is not running. kick(), notify(), signal(), irq_line(), msi() and the dirty log
 * may be called from any thread at any time. Callbacks run on the vCPU's thread; they may call
 * notify() and signal() for any vCPU.
 *
 * Errors: >= 0, or -errno with *err filled: -ENODEV (no such engine here), -ENOTSUP (the host's
 * engine lacks something, named), -ENOMEM, -EINVAL. Nothing a guest does is an error of run(): it
 * is an exit.
 *
 *     const struct engine_ops *engine = &engine_soft;
 *     struct engine_vm *vm;
 *     r = engine->vm_new(&config, &vm, err);
 *     r = engine->vcpu_new(vm, 0, &vcpu, err);
 *     engine->vcpu_set_state(vcpu, &state, err);
 *     do
 *         r = engine->vcpu_run(vcpu, &exit, err);
 *     while (r >= 0 && exit.reason == ENGINE_EXIT_KICK);
 */
#pragma once

#include "base/err.h"
#include "cpu/cpuid.h"
#include "cpu/state.h"
#include "mem/mem.h"

#include <stdbool.h>
#include <stdint.h>

struct engine_vm;
struct engine_vcpu;
struct chip_states; /* chip/state/state.h */

enum { ENGINE_VCPUS_MAX = 64 };

enum engine_exit_reason {
    ENGINE_EXIT_KICK,     /* vcpu_kick() was called; nothing else happened */
    ENGINE_EXIT_HALT,     /* HLT with ENGINE_IRQCHIP_NONE; RIP is past it */
    ENGINE_EXIT_SHUTDOWN, /* triple fault; the state is that before the first of the three */
    ENGINE_EXIT_DEBUG,    /* a breakpoint or step that the debugger asked for */
    ENGINE_EXIT_FAULT,    /* the engine cannot go on: `detail` says why (its own limit, or KVM's) */
    ENGINE_EXIT_MAX
};

struct engine_exit {
    enum engine_exit_reason reason;
    char detail[160]; /* for FAULT: one phrase */
};

/* What a guest reaches outside its memory. Sizes are 1, 2, 4 for ports and 1, 2, 4, 8 for MMIO;
 * values are little-endian numbers in the low bits, reads must fill all `size` bytes. A NULL table
 * or nobody at home reads as all ones and drops writes. MMIO accesses never cross a page. Writes to
 * read-only memory are MMIO, too. */
struct engine_io {
    void *opaque;
    uint32_t (*port_read)(void *opaque, unsigned vcpu, uint16_t port, unsigned size);
    void (*port_write)(void *opaque, unsigned vcpu, uint16_t port, unsigned size, uint32_t value);
    uint64_t (*mmio_read)(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size);
    void (*mmio_write)(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value);
};

/* The board's interrupt controllers, as a vCPU sees them (ENGINE_IRQCHIP_BOARD). All are called on
 * the vCPU's thread only. */
struct engine_apic {
    void *opaque;
    /* Vector that could be delivered now (the local APIC's at its TPR, else the PIC's through
     * LINT0), or -1. Changes nothing. */
    int (*poll)(void *opaque, unsigned vcpu);
    /* Acknowledges and returns the vector to deliver, or -1 when it went away meanwhile. */
    int (*accept)(void *opaque, unsigned vcpu);
    /* CR8, the task priority class 0..15. */
    uint64_t (*cr8_read)(void *opaque, unsigned vcpu);
    void (*cr8_write)(void *opaque, unsigned vcpu, uint64_t value);
    /* IA32_APIC_BASE, the x2APIC range 0x800..0x8ff and IA32_TSC_DEADLINE. False is #GP. */
    bool (*msr_read)(void *opaque, unsigned vcpu, uint32_t index, uint64_t *ret_value);
    bool (*msr_write)(void *opaque, unsigned vcpu, uint32_t index, uint64_t value);
    /* For the canonical state: the register page (CPU_APIC_SIZE bytes). */
    void (*save)(void *opaque, unsigned vcpu, uint8_t *ret_page);
    bool (*load)(void *opaque, unsigned vcpu, const uint8_t *page);
    /* INIT reached this vCPU: put its local APIC into the state after INIT. */
    void (*init)(void *opaque, unsigned vcpu);
};

enum engine_irqchip { ENGINE_IRQCHIP_NONE, ENGINE_IRQCHIP_ENGINE, ENGINE_IRQCHIP_BOARD };

enum engine_translate {
    ENGINE_TRANSLATE_HOT,    /* what is executed often; the rest is interpreted */
    ENGINE_TRANSLATE_NEVER,  /* the interpreter alone */
    ENGINE_TRANSLATE_ALWAYS, /* everything, the first time already: for tests */
    ENGINE_TRANSLATE_MAX
};

#define ENGINE_CODE_CACHE (UINT64_C(64) << 20)

struct engine_config {
    struct mem *mem; /* borrowed; outlives the VM */
    unsigned vcpus;  /* 1..ENGINE_VCPUS_MAX */
    enum engine_irqchip irqchip;
    const struct engine_io *io;     /* borrowed; may be NULL */
    const struct engine_apic *apic; /* borrowed; set with ENGINE_IRQCHIP_BOARD */
    const struct cpuid *cpuid;      /* borrowed during vm_new(); NULL = as `portable` says */
    bool portable;                  /* a model that both engines have, else all that this one has */
    unsigned physical_bits;         /* of addresses, at most; 0 = as many as the model has */
    /* Guest time-stamp counter in its own ticks; NULL = the host's, starting at 0 with the VM. For
     * the soft engine's deterministic modes. */
    uint64_t (*tsc)(void *opaque);
    void *tsc_opaque;
    uint64_t tsc_khz; /* its frequency; 0 = the host's */
    /* The software engine's translator. Of code that it holds: `code_cache` bytes at most for the
     * whole VM, but at least 1 MiB for each vCPU; 0 = ENGINE_CODE_CACHE. Decoded blocks may take as
     * much again. */
    enum engine_translate translate;
    uint64_t code_cache;
    bool count; /* vcpu_instructions() is exact with ENGINE_TRANSLATE_HOT too, which costs a little
                 */
    /* For tests of the translator: so few entries of the TLB, a power of two, are used by what it
     * makes; 0 = all. */
    unsigned tlb_entries;
    /* For tests of the translator: each hit of the TLB is held against the guest's memory, and the
     * process aborts where it leads out of it. Slow. And the first blocks are translated as soon as
     * those that follow. */
    bool check_tlb;
    const char *kvm_path; /* NULL = /dev/kvm */
    int kvm_fd;           /* an open /dev/kvm, or -1 to open kvm_path; borrowed */
};

enum engine_signal { ENGINE_SIGNAL_NMI, ENGINE_SIGNAL_INIT, ENGINE_SIGNAL_SIPI };

struct engine_ops {
    const char *name;            /* "kvm", "soft" */
    enum engine_irqchip irqchip; /* the arrangement a machine uses with this engine */

    int (*vm_new)(const struct engine_config *config, struct engine_vm **ret_vm, struct err *err);
    void (*vm_free)(struct engine_vm *vm); /* after all its vCPUs */

    /* What guests may have been told about their processor to go on here (cpuid.h). */
    int (*cpuid_able)(const struct engine_config *config, struct cpuid *ret_cpuid, struct err *err);
    /* What its vCPUs are told about themselves; known once there is a vCPU. */
    const struct cpuid *(*vm_cpuid)(struct engine_vm *vm);

    int (*vcpu_new)(struct engine_vm *vm, unsigned index, struct engine_vcpu **ret_vcpu,
                    struct err *err);
    void (*vcpu_free)(struct engine_vcpu *vcpu);
    int (*vcpu_get_state)(struct engine_vcpu *vcpu, struct cpu_state *ret_state, struct err *err);
    int (*vcpu_set_state)(struct engine_vcpu *vcpu, const struct cpu_state *state, struct err *err);
    int (*vcpu_run)(struct engine_vcpu *vcpu, struct engine_exit *ret_exit, struct err *err);

    /* Makes run() return ENGINE_EXIT_KICK soon, or the next run() at once. Sticky: one kick, one
     * exit. Wakes a halted vCPU. */
    void (*vcpu_kick)(struct engine_vcpu *vcpu);
    /* BOARD only: the local APIC's or PIC's answer to poll() may have changed. */
    void (*vcpu_notify)(struct engine_vcpu *vcpu);
    /* BOARD: NMI, INIT or SIPI (vector = start page, 0..255) for this vCPU. ENGINE: NMI only. */
    void (*vcpu_signal)(struct engine_vcpu *vcpu, enum engine_signal signal, uint8_t vector);

    /* ENGINE only. All vCPUs stand; what counts inside the engine stands with them from stop to
     * run: TSCs, the paravirtual clock, local APICs' timers, the interval timer. Stopping twice is
     * one stop. Meanwhile states that are read are those of that moment, and what is set counts
     * from the moment of running. `ret_tsc`: the machine's TSC, which is each vCPU's less its
     * TSC_ADJUST. A new VM runs. */
    int (*clock_stop)(struct engine_vm *vm, uint64_t *ret_tsc, struct err *err);
    int (*clock_run)(struct engine_vm *vm, struct err *err);
    /* The paravirtual clock (kvmclock), in ns, while the TSC stands. To be set before the vCPUs'
     * states. */
    uint64_t (*kvmclock)(struct engine_vm *vm);
    void (*kvmclock_set)(struct engine_vm *vm, uint64_t ns);
    /* ENGINE only, while the clocks stand: the state of the interrupt controllers and the interval
     * timer inside the engine. `now`: nanoseconds of the machine's clock, by which the timer is
     * described. The levels of lines are part of it: who holds one up need not raise it again. */
    int (*chips_get)(struct engine_vm *vm, uint64_t now, struct chip_states *ret_states,
                     struct err *err);
    int (*chips_set)(struct engine_vm *vm, uint64_t now, const struct chip_states *states,
                     struct err *err);

    /* ENGINE only. gsi 0..23; a level of true or false. */
    int (*irq_line)(struct engine_vm *vm, unsigned gsi, bool level);
    int (*msi)(struct engine_vm *vm, uint64_t address, uint32_t data);
    /* ENGINE only, optional (NULL elsewhere): writing to eventfd `fd` sends the message. `slot` is
     * the caller's number for the route, 0..1023; assigning it again changes the message. */
    int (*irq_fd)(struct engine_vm *vm, int fd, unsigned slot, uint64_t address, uint32_t data,
                  bool assign, struct err *err);
    /* Optional: a guest write of `size` bytes at `gpa` becomes a write to `fd`, without an exit. */
    int (*io_fd)(struct engine_vm *vm, int fd, uint64_t gpa, unsigned size, bool assign,
                 struct err *err);

    /* From start on, writes by guests set MEM_PAGE_DIRTY in the map's marks, at the latest when
     * dirty_sync() returns. A page that was only read may be marked too, one never touched is not.
     */
    int (*dirty_start)(struct engine_vm *vm, struct err *err);
    int (*dirty_sync)(struct engine_vm *vm, struct err *err);
    int (*dirty_stop)(struct engine_vm *vm, struct err *err);

    /* Guest instructions executed so far, or 0 where the engine cannot tell. Any thread; exact
     * where the vCPU is not running. What faulted was not executed, and a repeated string
     * instruction is one when it is complete. */
    uint64_t (*vcpu_instructions)(struct engine_vcpu *vcpu);
    /* Optional, for tests, while the vCPU is not running: the next run() is kicked exactly when
     * vcpu_instructions() says `instructions`, or when the vCPU would sleep before; UINT64_MAX
     * takes it back. With `attempt` one instruction is begun first, whatever the count: it may end
     * in an exception, which nobody counts. Slow, and interpreted. */
    void (*vcpu_stop_at)(struct engine_vcpu *vcpu, uint64_t instructions, bool attempt);
};

extern const struct engine_ops engine_kvm;
extern const struct engine_ops engine_soft;

/* All engines of this build, ended by NULL; the first that works is the one `auto` prefers. */
extern const struct engine_ops *const engine_all[];
