/* Time that stands, and the state of KVM's chips; against a real /dev/kvm. */
#include "cpu/kvm/chips.h"
#include "cpu/kvm/guest_test.h"

PROGRAM16(loop, "cli\n 1: jmp 1b")

enum {
    APIC_SVR = 0xf0,
    APIC_DIVIDE = 0x3e0,
    APIC_IRR = 0x200,
    VECTOR = 0x51,
    PAUSE_MS = 60,
    TSC_START = 1 << 30,
};

static uint64_t ms_of_tsc(const struct guest *guest, uint64_t ms)
{
    return guest->vm->tsc_khz * ms;
}

/* It loops with interrupts off: what its local APIC was sent stays in the request register. */
static void looping(struct guest *guest, struct cpu_state *state, unsigned vcpus)
{
    guest_make(guest, ENGINE_IRQCHIP_ENGINE, vcpus);
    GUEST_LOAD(guest, loop);
    real_mode(state);
    state->msr[CPU_MSR_TSC] = TSC_START;
    le32_write(state->apic + APIC_SVR, 0x1ff);
    le32_write(state->apic + APIC_DIVIDE, 0xb);
}

static void stop(struct guest *guest)
{
    uint64_t tsc;
    struct err err = {0};
    if (engine_kvm.clock_stop(guest->vm, &tsc, &err) < 0)
        fail_msg("%s", err.text);
}

static void go(struct guest *guest)
{
    struct err err = {0};
    if (engine_kvm.clock_run(guest->vm, &err) < 0)
        fail_msg("%s", err.text);
}

static void run_for(struct guest *guest, long ms)
{
    struct runner runner;
    runner_start(&runner, guest, 0);
    nap_ms(ms);
    runner_stop(&runner);
}

static bool interrupted(const struct cpu_state *state)
{
    return le32_read(state->apic + APIC_IRR + VECTOR / 32 * 16) >> VECTOR % 32 & 1;
}

static void the_tsc_stands(void **test)
{
    need_kvm();
    struct guest guest;
    struct cpu_state state, back;
    uint64_t tsc, again;
    looping(&guest, &state, 2);
    stop(&guest);
    guest_set(&guest, 0, &state);
    state.msr[CPU_MSR_TSC] += 5000; /* the guest has written to it */
    state.msr[CPU_MSR_TSC_ADJUST] = 5000;
    guest_set(&guest, 1, &state);
    nap_ms(PAUSE_MS);
    guest_get(&guest, 0, &back);
    assert_int_equal(back.msr[CPU_MSR_TSC], TSC_START);
    go(&guest);
    guest_get(&guest, 0, &back);
    assert_in_range(back.msr[CPU_MSR_TSC], TSC_START, TSC_START + ms_of_tsc(&guest, 1000));
    for (unsigned turn = 0; turn < 5; turn++) {
        assert_int_equal(engine_kvm.clock_stop(guest.vm, &tsc, NULL), 0);
        nap_ms(PAUSE_MS);
        assert_int_equal(engine_kvm.clock_stop(guest.vm, &again, NULL), 0); /* twice is once */
        assert_int_equal(again, tsc);
        guest_get(&guest, 0, &back);
        assert_int_equal(back.msr[CPU_MSR_TSC], tsc);
        guest_get(&guest, 1, &back);
        assert_int_equal(back.msr[CPU_MSR_TSC], tsc + 5000);
        go(&guest);
        go(&guest);
        guest_get(&guest, 0, &back);
        assert_in_range(back.msr[CPU_MSR_TSC], tsc, tsc + ms_of_tsc(&guest, PAUSE_MS));
    }
    guest_end(&guest);
}

static void the_paravirtual_clock_stands(void **test)
{
    need_kvm();
    struct guest guest;
    struct cpu_state state;
    looping(&guest, &state, 1);
    stop(&guest);
    guest_set(&guest, 0, &state);
    engine_kvm.kvmclock_set(guest.vm, UINT64_C(7000000000));
    nap_ms(PAUSE_MS);
    assert_int_equal(engine_kvm.kvmclock(guest.vm), UINT64_C(7000000000));
    go(&guest);
    stop(&guest);
    assert_in_range(engine_kvm.kvmclock(guest.vm), UINT64_C(7000000000), UINT64_C(8000000000));
    guest_end(&guest);
}

/* The deadline is PAUSE_MS ahead, and the stop is longer. */
static void a_deadline_waits(void **test)
{
    need_kvm();
    struct guest guest;
    struct cpu_state state, back;
    looping(&guest, &state, 1);
    uint64_t deadline = TSC_START + ms_of_tsc(&guest, PAUSE_MS);
    le32_write(state.apic + APIC_LVT_TIMER, APIC_TIMER_DEADLINE | VECTOR);
    state.msr[CPU_MSR_TSC_DEADLINE] = deadline;
    stop(&guest);
    guest_set(&guest, 0, &state);
    for (unsigned turn = 0; turn < 2; turn++) {
        nap_ms(2 * PAUSE_MS);
        guest_get(&guest, 0, &back);
        assert_int_equal(back.msr[CPU_MSR_TSC_DEADLINE], deadline);
        assert_false(interrupted(&back));
        go(&guest);
        stop(&guest);
    }
    go(&guest);
    run_for(&guest, 3 * PAUSE_MS);
    guest_get(&guest, 0, &back);
    assert_int_equal(back.msr[CPU_MSR_TSC_DEADLINE], 0);
    assert_true(interrupted(&back));
    assert_true(back.msr[CPU_MSR_TSC] >= deadline);
    guest_end(&guest);
}

static void a_count_waits(void **test)
{
    need_kvm();
    for (unsigned periodic = 0; periodic < 2; periodic++) {
        struct guest guest;
        struct cpu_state state, back;
        const uint32_t count = PAUSE_MS * 1000000; /* ns */
        looping(&guest, &state, 1);
        le32_write(state.apic + APIC_LVT_TIMER, periodic << 17 | VECTOR);
        le32_write(state.apic + APIC_INITIAL, 2 * count);
        le32_write(state.apic + APIC_CURRENT, count);
        stop(&guest);
        guest_set(&guest, 0, &state);
        nap_ms(2 * PAUSE_MS);
        guest_get(&guest, 0, &back);
        assert_int_equal(le32_read(back.apic + APIC_INITIAL), 2 * count);
        assert_int_equal(le32_read(back.apic + APIC_CURRENT), count);
        go(&guest);
        stop(&guest);
        nap_ms(2 * PAUSE_MS);
        guest_get(&guest, 0, &back);
        assert_in_range(le32_read(back.apic + APIC_CURRENT), 1, count);
        assert_false(interrupted(&back));
        go(&guest);
        run_for(&guest, 3 * PAUSE_MS);
        guest_get(&guest, 0, &back);
        assert_true(interrupted(&back));
        guest_end(&guest);
    }
}

/* Messages come while others rewrite the local APIC's page. */
static void *send_messages(void *guest)
{
    for (unsigned i = 0; i < 200; i++)
        engine_kvm.msi(((struct guest *)guest)->vm, 0xfee00000, 0x20 + i);
    return NULL;
}

static void no_message_is_lost(void **test)
{
    need_kvm();
    struct guest guest;
    struct cpu_state state, back;
    pthread_t thread;
    looping(&guest, &state, 1);
    le32_write(state.apic + APIC_LVT_TIMER, 1 << 17 | 1 << 16 | VECTOR);
    le32_write(state.apic + APIC_INITIAL, 1000000000);
    guest_set(&guest, 0, &state);
    assert_int_equal(pthread_create(&thread, NULL, send_messages, &guest), 0);
    for (unsigned turn = 0; turn < 50; turn++) {
        stop(&guest);
        go(&guest);
    }
    pthread_join(thread, NULL);
    guest_get(&guest, 0, &back);
    for (unsigned vector = 0x20; vector < 0x20 + 200; vector++)
        if (!(le32_read(back.apic + APIC_IRR + vector / 32 * 16) >> vector % 32 & 1))
            fail_msg("vector %#x is lost", vector);
    guest_end(&guest);
}

static void chips_come_back(void **test)
{
    need_kvm();
    struct guest guest;
    struct cpu_state state;
    struct chip_states set = {0}, back;
    struct err err = {0};
    looping(&guest, &state, 1);
    assert_int_equal(engine_kvm.chips_get(guest.vm, 0, &back, &err), -EINVAL); /* it runs */
    stop(&guest);
    set.pic.half[0] = (struct pic_half){.lines = 0x10, .imr = 0xff, .vector = 0x30, .icw1 = 0x11};
    set.pic.half[1] = (struct pic_half){
        .imr = 0xff, .elcr = 0x0c, .vector = 0x38, .icw1 = 0x11, .mask_mode = true};
    set.ioapic.select = 0x12;
    set.ioapic.lines = 0x20010;
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
        set.ioapic.entry[pin] =
            IOAPIC_ENTRY_MASKED | (0x40 + pin) | (pin >= 16 ? IOAPIC_ENTRY_LEVEL : 0);
    set.pit.channel[0] = (struct pit_channel){.mode = 2,
                                              .access = PIT_ACCESS_BOTH,
                                              .gate = true,
                                              .loaded = true,
                                              .running = true,
                                              .count = 11932};
    set.pit.channel[1] = set.pit.channel[0];
    set.pit.channel[2] = set.pit.channel[0];
    set.pit.channel[2].gate = false;
    assert_int_equal(engine_kvm.chips_set(guest.vm, 0, &set, &err), 0);
    for (unsigned turn = 0; turn < 2; turn++) {
        assert_int_equal(engine_kvm.chips_get(guest.vm, 0, &back, &err), 0);
        assert_int_equal(back.pic.half[0].lines, 0x11); /* and the PIT's own */
        assert_int_equal(back.pic.half[0].vector, 0x30);
        assert_int_equal(back.pic.half[1].elcr, 0x0c);
        assert_true(back.pic.half[1].mask_mode);
        assert_int_equal(back.ioapic.lines, 0x20014);
        assert_int_equal(back.ioapic.select, 0x12);
        assert_memory_equal(back.ioapic.entry, set.ioapic.entry, sizeof set.ioapic.entry);
        assert_int_equal(back.pit.channel[0].count, 11932);
        assert_int_equal(back.pit.channel[0].mode, 2);
        assert_false(back.pit.channel[2].gate);
        go(&guest); /* and KVM itself has them */
        stop(&guest);
    }
    guest_end(&guest);
}

/* A level that is up when it is set interrupts as soon as it may; and it can be let down. */
static void a_line_that_is_up_is_seen(void **test)
{
    need_kvm();
    struct guest guest;
    struct cpu_state state, back;
    struct chip_states set = {.ioapic.lines = 1 << 17}, now;
    struct err err = {0};
    looping(&guest, &state, 1);
    stop(&guest);
    guest_set(&guest, 0, &state);
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
        set.ioapic.entry[pin] = IOAPIC_ENTRY_MASKED;
    set.ioapic.entry[17] = IOAPIC_ENTRY_LEVEL | VECTOR;
    assert_int_equal(engine_kvm.chips_set(guest.vm, 0, &set, &err), 0);
    assert_int_equal(engine_kvm.irq_line(guest.vm, 17, true), 0); /* its device says so as well */
    guest_get(&guest, 0, &back);
    assert_true(interrupted(&back));
    assert_int_equal(engine_kvm.chips_get(guest.vm, 0, &now, &err), 0);
    assert_true(now.ioapic.entry[17] & IOAPIC_ENTRY_REMOTE_IRR);
    assert_true(now.ioapic.lines >> 17 & 1);
    assert_int_equal(engine_kvm.irq_line(guest.vm, 17, false) < 0, 0);
    assert_int_equal(engine_kvm.chips_get(guest.vm, 0, &now, &err), 0);
    assert_false(now.ioapic.lines >> 17 & 1);
    guest_end(&guest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_tsc_stands),
        cmocka_unit_test(the_paravirtual_clock_stands),
        cmocka_unit_test(a_deadline_waits),
        cmocka_unit_test(a_count_waits),
        cmocka_unit_test(no_message_is_lost),
        cmocka_unit_test(chips_come_back),
        cmocka_unit_test(a_line_that_is_up_is_seen),
    };
    int failed = cmocka_run_group_tests_name("kvm clock", tests, NULL, NULL);
    return tests_result(failed, ARRAY_LEN(tests));
}
