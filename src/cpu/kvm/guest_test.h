/*
 * guest_test.h: tiny machines for the tests of the KVM engine.
 *
 * A `struct guest` is 64 KiB of memory at 0 and a page of ROM at 0x20000, one to four vCPUs, and a
 * log of what they did outside memory. Programs are assembled by the compiler between guest_X and
 * guest_X_end (PROGRAM16, PROGRAM64) and copied to PROGRAM_AT. Real-mode guests start at
 * 0:PROGRAM_AT with their stack below 0x8000; 64-bit guests run in ring 0 with the first 4 GiB
 * mapped 1:1 by 2 MiB pages of which the memory is the first and the MMIO range the next to last.
 */
#pragma once

#include "cpu/kvm/kvm.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum {
    PROGRAM_AT = 0x1000,
    STACK_AT = 0x8000,
    TABLES_AT = 0x9000, /* PML4, PDPT, directory */
    MEMORY_SIZE = 0x10000,
    ROM_AT = 0x20000,
    MMIO_AT = 0xd0000,
    LOG_MAX = 64,
};

#define PROGRAM_(bits, name, text)                                                                 \
    __asm__(".pushsection .rodata\n.global guest_" #name ", guest_" #name "_end\n.code" #bits      \
            "\nguest_" #name ":\n" text "\nguest_" #name "_end:\n.code64\n.popsection\n");         \
    extern const uint8_t guest_##name[], guest_##name##_end[];
#define PROGRAM16(name, text) PROGRAM_(16, name, text)
#define PROGRAM64(name, text) PROGRAM_(64, name, text)

enum access_kind { PORT_READ, PORT_WRITE, MMIO_READ, MMIO_WRITE };

struct access {
    enum access_kind kind;
    unsigned vcpu, size;
    uint64_t address, value;
};

struct guest {
    struct mem *mem;
    struct engine_vm *vm;
    struct engine_vcpu *vcpu[4];
    struct engine_io io;
    struct access log[LOG_MAX];
    _Atomic unsigned count;
    int kick_at_port; /* this port's write kicks its own vCPU; 0 = none */
};

static unsigned tests_skipped;

/* Skips where /dev/kvm cannot be used, as on most build machines. */
static inline void need_kvm(void)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        print_message("skipped: /dev/kvm does not open: %s\n", strerror(errno));
        tests_skipped++;
        skip();
    }
    close(fd);
}

/* Meson's word for "nothing could be tested" is 77. */
static inline int tests_result(int failed, size_t tests)
{
    return !failed && tests_skipped == tests ? 77 : failed;
}

static inline void guest_note(struct guest *guest, struct access access)
{
    unsigned at = guest->count;
    if (at < LOG_MAX) {
        guest->log[at] = access;
        guest->count = at + 1;
    }
}

static inline uint32_t guest_port_read(void *opaque, unsigned vcpu, uint16_t port, unsigned size)
{
    uint32_t value = 0xa1b2c3d4;
    guest_note(opaque, (struct access){PORT_READ, vcpu, size, port, value});
    return value;
}

static inline void guest_port_write(void *opaque, unsigned vcpu, uint16_t port, unsigned size,
                                    uint32_t value)
{
    struct guest *guest = opaque;
    guest_note(guest, (struct access){PORT_WRITE, vcpu, size, port, value});
    if (guest->kick_at_port && port == guest->kick_at_port)
        engine_kvm.vcpu_kick(guest->vcpu[vcpu]);
}

static inline uint64_t guest_mmio_read(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size)
{
    uint64_t value = 0x1122334455667788;
    guest_note(opaque, (struct access){MMIO_READ, vcpu, size, gpa, value});
    return value;
}

static inline void guest_mmio_write(void *opaque, unsigned vcpu, uint64_t gpa, unsigned size,
                                    uint64_t value)
{
    guest_note(opaque, (struct access){MMIO_WRITE, vcpu, size, gpa, value});
}

static inline void guest_make(struct guest *guest, enum engine_irqchip irqchip, unsigned vcpus)
{
    struct err err = {0};
    *guest = (struct guest){.io = {.opaque = guest,
                                   .port_read = guest_port_read,
                                   .port_write = guest_port_write,
                                   .mmio_read = guest_mmio_read,
                                   .mmio_write = guest_mmio_write}};
    guest->mem = mem_new();
    assert_non_null(guest->mem);
    assert_int_equal(mem_add(guest->mem, 0, MEMORY_SIZE, false, NULL), 0);
    assert_int_equal(mem_add(guest->mem, ROM_AT, MEM_PAGE_SIZE, true, NULL), 0);
    struct engine_config config = {
        .mem = guest->mem, .vcpus = vcpus, .irqchip = irqchip, .io = &guest->io, .kvm_fd = -1};
    if (engine_kvm.vm_new(&config, &guest->vm, &err) < 0)
        fail_msg("vm_new: %s", err.text);
    for (unsigned i = 0; i < vcpus; i++)
        if (engine_kvm.vcpu_new(guest->vm, i, &guest->vcpu[i], &err) < 0)
            fail_msg("vcpu_new: %s", err.text);
}

static inline void guest_end(struct guest *guest)
{
    for (unsigned i = 0; i < ARRAY_LEN(guest->vcpu); i++)
        engine_kvm.vcpu_free(guest->vcpu[i]);
    engine_kvm.vm_free(guest->vm);
    mem_free(guest->mem);
}

static inline void guest_load(struct guest *guest, const uint8_t *begin, const uint8_t *end)
{
    memcpy(mem_at_load(guest->mem, PROGRAM_AT, (uint64_t)(end - begin)), begin,
           (size_t)(end - begin));
}
#define GUEST_LOAD(guest, name) guest_load(guest, guest_##name, guest_##name##_end)

static inline void real_mode(struct cpu_state *state)
{
    cpu_state_reset(state, 0);
    state->segment[CPU_CS].selector = 0;
    state->segment[CPU_CS].base = 0;
    state->rip = PROGRAM_AT;
    state->gpr[CPU_RSP] = STACK_AT;
    state->run_state = CPU_RUNNING;
}

static inline void long_mode(struct guest *guest, struct cpu_state *state)
{
    uint8_t *tables = mem_at_load(guest->mem, TABLES_AT, 3 * MEM_PAGE_SIZE);
    le64_write(tables, (TABLES_AT + 0x1000) | 3);
    le64_write(tables + 0x1000, (TABLES_AT + 0x2000) | 3);
    for (unsigned i = 0; i < 512; i++)
        le64_write(tables + 0x2000 + 8 * i, (uint64_t)i << 21 | 0x83);
    cpu_state_reset(state, 0);
    for (unsigned i = 0; i < CPU_SEG_MAX; i++)
        state->segment[i] =
            (struct cpu_segment){.selector = 0x10, .limit = UINT32_MAX, .attributes = 0xc093};
    state->segment[CPU_CS].selector = 8;
    state->segment[CPU_CS].attributes = 0xa09b;
    state->cr3 = TABLES_AT;
    state->cr4 = 1 << 5 | 1 << 9; /* PAE, OSFXSR */
    state->efer = 1 << 8 | 1 << 10;
    state->cr0 = 0x80000011;
    state->rip = PROGRAM_AT;
    state->gpr[CPU_RSP] = STACK_AT;
}

static inline void guest_set(struct guest *guest, unsigned vcpu, const struct cpu_state *state)
{
    struct err err = {0};
    if (engine_kvm.vcpu_set_state(guest->vcpu[vcpu], state, &err) < 0)
        fail_msg("vcpu_set_state: %s", err.text);
}

static inline void guest_get(struct guest *guest, unsigned vcpu, struct cpu_state *state)
{
    struct err err = {0};
    if (engine_kvm.vcpu_get_state(guest->vcpu[vcpu], state, &err) < 0)
        fail_msg("vcpu_get_state: %s", err.text);
}

static inline struct engine_exit guest_run(struct guest *guest, unsigned vcpu)
{
    struct err err = {0};
    struct engine_exit exit;
    if (engine_kvm.vcpu_run(guest->vcpu[vcpu], &exit, &err) < 0)
        fail_msg("vcpu_run: %s", err.text);
    if (exit.reason == ENGINE_EXIT_FAULT)
        print_message("fault: %s\n", exit.detail);
    return exit;
}

/* A vCPU on a thread of its own, for what needs one: kicks, interrupts, several vCPUs. */
struct runner {
    struct guest *guest;
    unsigned vcpu;
    pthread_t thread;
    struct engine_exit exit;
    int r;
    _Atomic bool ended;
};

static inline void *runner_main(void *opaque)
{
    struct runner *runner = opaque;
    struct err err = {0};
    runner->r = engine_kvm.vcpu_run(runner->guest->vcpu[runner->vcpu], &runner->exit, &err);
    runner->ended = true;
    return NULL;
}

static inline void runner_start(struct runner *runner, struct guest *guest, unsigned vcpu)
{
    *runner = (struct runner){.guest = guest, .vcpu = vcpu};
    assert_int_equal(pthread_create(&runner->thread, NULL, runner_main, runner), 0);
}

static inline void nap_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* Ends the run with a kick where it has not ended by itself. */
static inline void runner_stop(struct runner *runner)
{
    engine_kvm.vcpu_kick(runner->guest->vcpu[runner->vcpu]);
    pthread_join(runner->thread, NULL);
    assert_int_equal(runner->r, 0);
}

/* Waits, at most five seconds, until the guest has made `count` accesses. */
static inline bool guest_wait(struct guest *guest, unsigned count)
{
    for (int i = 0; i < 5000 && guest->count < count; i++)
        nap_ms(1);
    return guest->count >= count;
}
