/*
 * apic_fixture.h: local APICs with a PIC and an I/O APIC around them, and short names for their
 * registers, for the unit tests of apic.h.
 */
#pragma once

#include "base/bytes.h"
#include "chip/apic.h"
#include "chip/chip_test.h"
#include "chip/ioapic.h"
#include "chip/pic.h"

enum {
    ID = 0x020,
    TPR = 0x080,
    PPR = 0x0a0,
    EOI = 0x0b0,
    LDR = 0x0d0,
    DFR = 0x0e0,
    SVR = 0x0f0,
    ISR = 0x100,
    TMR = 0x180,
    IRR = 0x200,
    ESR = 0x280,
    ICR = 0x300,
    ICR_HIGH = 0x310,
    LVT_TIMER = 0x320,
    LVT_LINT0 = 0x350,
    LVT_LINT1 = 0x360,
    LVT_ERROR = 0x370,
    INITIAL = 0x380,
    CURRENT = 0x390,
    DIVIDE = 0x3e0,

    APIC_BASE_MSR = 0x1b,
    DEADLINE_MSR = 0x6e0,
    X2 = 0x800,

    TSC_KHZ = 2000000, /* two ticks per nanosecond */
    CPUS = 20,
};

struct fixture {
    struct timers *timers;
    struct apic *apic;
    struct ioapic *ioapic;
    struct pic *pic;
    _Atomic int notified[CPUS];
    _Atomic int signals[CPUS][3];
    _Atomic int sipi[CPUS];
};

static inline uint64_t tsc(void *opaque, unsigned vcpu)
{
    struct fixture *f = opaque;
    return timers_now(f->timers) * 2;
}

static inline void notify(void *opaque, unsigned vcpu)
{
    struct fixture *f = opaque;
    f->notified[vcpu]++;
}

static inline void signal_vcpu(void *opaque, unsigned vcpu, enum apic_signal signal, uint8_t vector)
{
    struct fixture *f = opaque;
    f->signals[vcpu][signal]++;
    if (signal == APIC_SIGNAL_SIPI)
        f->sipi[vcpu] = vector;
}

static inline void broadcast_eoi(void *opaque, uint8_t vector)
{
    struct fixture *f = opaque;
    ioapic_eoi(f->ioapic, vector);
}

/* The two know each other, so the PIC is reached through what exists when both do. */
static inline int poll_pic(void *opaque)
{
    struct fixture *f = opaque;
    return pic_poll(f->pic);
}

static inline int accept_pic(void *opaque)
{
    struct fixture *f = opaque;
    return pic_accept(f->pic);
}

static inline void start(struct fixture *f, unsigned vcpus)
{
    memset(f, 0, sizeof *f);
    f->timers = timers_new();
    f->apic = apic_new(&(struct apic_config){.vcpus = vcpus,
                                             .timers = f->timers,
                                             .tsc = tsc,
                                             .tsc_khz = TSC_KHZ,
                                             .notify = notify,
                                             .signal = signal_vcpu,
                                             .eoi = broadcast_eoi,
                                             .opaque = f,
                                             .pic_poll = poll_pic,
                                             .pic_accept = accept_pic,
                                             .pic = f});
    f->ioapic =
        ioapic_new(&(struct ioapic_config){.deliver = apic_message, .opaque = f->apic, .id = 1});
    assert_non_null(f->apic);
    f->pic = pic_new(&(struct pic_config){.output = {apic_lint0, f->apic, 0}});
}

static inline void stop(struct fixture *f)
{
    timers_free(f->timers);
    ioapic_free(f->ioapic);
    apic_free(f->apic);
    pic_free(f->pic);
}

static inline uint32_t get(struct fixture *f, unsigned vcpu, unsigned reg)
{
    uint64_t value;
    assert_true(apic_mmio_read(f->apic, vcpu, APIC_ADDRESS + reg, 4, &value));
    return (uint32_t)value;
}

static inline void set(struct fixture *f, unsigned vcpu, unsigned reg, uint32_t value)
{
    assert_true(apic_mmio_write(f->apic, vcpu, APIC_ADDRESS + reg, 4, value));
}

static inline void enable_all(struct fixture *f, unsigned vcpus)
{
    for (unsigned i = 0; i < vcpus; i++)
        set(f, i, SVR, 0x1ff);
}

static inline void x2apic_all(struct fixture *f, unsigned vcpus)
{
    for (unsigned i = 0; i < vcpus; i++) {
        uint64_t base;
        assert_true(apic_msr_read(f->apic, i, APIC_BASE_MSR, &base));
        assert_true(apic_msr_write(f->apic, i, APIC_BASE_MSR, base | 0x400));
        assert_true(apic_msr_write(f->apic, i, X2 + 0xf, 0x1ff));
    }
}

static inline uint64_t rdmsr(struct fixture *f, unsigned vcpu, uint32_t index)
{
    uint64_t value = 0;
    assert_true(apic_msr_read(f->apic, vcpu, index, &value));
    return value;
}

static inline void wrmsr(struct fixture *f, unsigned vcpu, uint32_t index, uint64_t value)
{
    assert_true(apic_msr_write(f->apic, vcpu, index, value));
}

static inline bool refused(struct fixture *f, unsigned vcpu, uint32_t index, uint64_t value)
{
    return !apic_msr_write(f->apic, vcpu, index, value);
}

static inline void send(struct fixture *f, unsigned vcpu, uint8_t vector)
{
    assert_true(apic_message(f->apic, APIC_ADDRESS | vcpu << 12, 0x4000u | vector));
}

/* Takes exactly this vector, and the poll before says so too. */
static inline void expect(struct fixture *f, unsigned vcpu, int vector)
{
    assert_int_equal(apic_poll(f->apic, vcpu), vector);
    assert_int_equal(apic_accept(f->apic, vcpu), vector);
}

/* Bit i: vCPU i has `vector` pending. All of it is taken and ended. */
static inline uint32_t who_got(struct fixture *f, unsigned vcpus, int vector)
{
    uint32_t got = 0;
    for (unsigned i = 0; i < vcpus; i++) {
        if (apic_poll(f->apic, i) != vector)
            continue;
        got |= 1u << i;
        expect(f, i, vector);
        if (rdmsr(f, i, APIC_BASE_MSR) & 0x400)
            wrmsr(f, i, X2 + 0xb, 0);
        else
            set(f, i, EOI, 0);
    }
    return got;
}
