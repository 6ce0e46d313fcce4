#include "base/timer.h"
#include "chip/apic.h"
#include "chip/ioapic.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

enum { APIC_BASE_MSR = 0x1b, DEADLINE_MSR = 0x6e0, X2 = 0x800 };

enum { RING = 4, TOKENS = 8, HOPS = 100000 };

struct ring_vcpu {
    struct ring *ring;
    unsigned index;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool notified;
    uint32_t random;
};

/* Tokens are vectors 0x30.. that travel between vCPUs: whoever accepts one ends it and sends it
 * on. A token is in one place at a time, so none can merge with another, and one lost interrupt or
 * one lost notify stops its token for good. */
struct ring {
    struct apic *apic;
    struct ring_vcpu vcpu[RING];
    _Atomic int hops;
    _Atomic bool stop;
    struct ioapic *ioapic;
};

static void ring_notify(void *opaque, unsigned index)
{
    struct ring *ring = opaque;
    struct ring_vcpu *vcpu = &ring->vcpu[index];
    pthread_mutex_lock(&vcpu->lock);
    vcpu->notified = true;
    pthread_cond_signal(&vcpu->wake);
    pthread_mutex_unlock(&vcpu->lock);
}

static void ring_signal(void *opaque, unsigned vcpu, enum apic_signal signal, uint8_t vector)
{
}

static void ring_eoi(void *opaque, uint8_t vector)
{
    struct ring *ring = opaque;
    ioapic_eoi(ring->ioapic, vector);
}

static uint64_t ring_tsc(void *opaque, unsigned vcpu)
{
    return clock_ns();
}

static void ring_take(struct ring_vcpu *vcpu)
{
    struct ring *ring = vcpu->ring;
    int vector = apic_accept(ring->apic, vcpu->index);
    if (vector < 0)
        return;
    apic_msr_write(ring->apic, vcpu->index, X2 + 0xb, 0);
    if (vector >= 0x30 && vector < 0x30 + TOKENS) {
        vcpu->random = vcpu->random * 1103515245 + 12345;
        uint64_t to = vcpu->random >> 16 & (RING - 1);
        if (ring->hops++ < HOPS)
            apic_msr_write(ring->apic, vcpu->index, X2 + 0x30, to << 32 | (unsigned)vector);
        else
            ring->stop = true;
    } else if (vector == 0x21) {
        /* A deadline a few microseconds ahead, or already behind; below the tokens in priority. */
        vcpu->random = vcpu->random * 1103515245 + 12345;
        apic_msr_write(ring->apic, vcpu->index, DEADLINE_MSR,
                       ring_tsc(ring, vcpu->index) + (vcpu->random >> 20 & 0x1fff));
    }
}

static void *ring_thread(void *opaque)
{
    struct ring_vcpu *vcpu = opaque;
    struct ring *ring = vcpu->ring;
    while (!ring->stop) {
        /* As an engine does: clear, poll, sleep only if neither says otherwise. */
        pthread_mutex_lock(&vcpu->lock);
        while (!vcpu->notified && !ring->stop && apic_poll(ring->apic, vcpu->index) < 0)
            pthread_cond_wait(&vcpu->wake, &vcpu->lock);
        vcpu->notified = false;
        pthread_mutex_unlock(&vcpu->lock);
        for (int i = 0; i < 100 && apic_poll(ring->apic, vcpu->index) >= 0; i++)
            ring_take(vcpu);
    }
    return NULL;
}

static void no_interrupt_is_lost_between_threads(void **state)
{
    (void)state;
    struct ring ring = {0};
    struct timers *timers = timers_new();
    ring.apic = apic_new(&(struct apic_config){.vcpus = RING,
                                               .timers = timers,
                                               .tsc = ring_tsc,
                                               .tsc_khz = 1000000,
                                               .notify = ring_notify,
                                               .signal = ring_signal,
                                               .eoi = ring_eoi,
                                               .opaque = &ring});
    ring.ioapic = ioapic_new(&(struct ioapic_config){.deliver = apic_message, .opaque = ring.apic});
    ioapic_ops.write(ring.ioapic, 0, 4, 0x10 + 2 * 10);
    ioapic_ops.write(ring.ioapic, 0x10, 4, 0x8022); /* level, to vCPU 0 */
    for (unsigned i = 0; i < RING; i++) {
        struct ring_vcpu *vcpu = &ring.vcpu[i];
        *vcpu = (struct ring_vcpu){.ring = &ring, .index = i, .random = i + 1};
        pthread_mutex_init(&vcpu->lock, NULL);
        pthread_cond_init(&vcpu->wake, NULL);
        assert_true(apic_msr_write(ring.apic, i, APIC_BASE_MSR, 0xfee00c00));
        assert_true(apic_msr_write(ring.apic, i, X2 + 0xf, 0x1ff));
        assert_true(apic_msr_write(ring.apic, i, X2 + 0x32, 0x40021));
        assert_true(apic_msr_write(ring.apic, i, DEADLINE_MSR, 1));
    }
    for (unsigned i = 0; i < RING; i++)
        assert_int_equal(pthread_create(&ring.vcpu[i].thread, NULL, ring_thread, &ring.vcpu[i]), 0);
    for (unsigned i = 0; i < TOKENS; i++)
        assert_true(apic_message(ring.apic, APIC_ADDRESS | (i % RING) << 12, 0x4030 + i));
    /* Meanwhile a device flickers on a level line. */
    int before = -1;
    for (int quiet = 0; !ring.stop && quiet < 10000; quiet++) {
        ioapic_line(ring.ioapic, 10, quiet & 1);
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
        if (ring.hops != before)
            quiet &= 1;
        before = ring.hops;
    }
    ring.stop = true;
    for (unsigned i = 0; i < RING; i++)
        ring_notify(&ring, i);
    for (unsigned i = 0; i < RING; i++)
        pthread_join(ring.vcpu[i].thread, NULL);
    assert_true(ring.hops > HOPS); /* otherwise a token got stuck */
    timers_free(timers);
    ioapic_free(ring.ioapic);
    apic_free(ring.apic);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_interrupt_is_lost_between_threads),
    };
    return cmocka_run_group_tests_name("apic-ring", tests, NULL, NULL);
}
