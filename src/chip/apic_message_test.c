#include "chip/apic_fixture.h"

static void shorthands_and_broadcast(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 4);
    enable_all(&f, 4);
    set(&f, 2, ICR, 0x40040); /* self */
    assert_int_equal(who_got(&f, 4, 0x40), 0x4);
    set(&f, 2, ICR, 0x80041); /* all */
    assert_int_equal(who_got(&f, 4, 0x41), 0xf);
    set(&f, 2, ICR, 0xc0042); /* all others */
    assert_int_equal(who_got(&f, 4, 0x42), 0xb);
    set(&f, 2, ICR_HIGH, 0x03000000);
    set(&f, 2, ICR, 0x43);
    assert_int_equal(who_got(&f, 4, 0x43), 0x8);
    set(&f, 2, ICR_HIGH, 0xff000000);
    set(&f, 2, ICR, 0x44);
    assert_int_equal(who_got(&f, 4, 0x44), 0xf);
    set(&f, 2, ICR_HIGH, 0x09000000);
    set(&f, 2, ICR, 0x45);
    assert_int_equal(who_got(&f, 4, 0x45), 0x0);
    assert_int_equal(get(&f, 2, ICR) & 0x1000, 0); /* never "send pending" */
    assert_false(apic_message(f.apic, APIC_ADDRESS | 9 << 12, 0x4045));
    assert_false(apic_message(f.apic, 0xfef00000, 0x4045));
    stop(&f);
}

static void logical_destinations(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 4);
    enable_all(&f, 4);
    /* Flat: one bit each. */
    for (unsigned i = 0; i < 4; i++)
        set(&f, i, LDR, 1u << (24 + i));
    set(&f, 0, ICR_HIGH, 0x0a000000);
    set(&f, 0, ICR, 0x850);
    assert_int_equal(who_got(&f, 4, 0x50), 0xa);
    assert_true(apic_message(f.apic, APIC_ADDRESS | 0x5 << 12 | 4, 0x4051));
    assert_int_equal(who_got(&f, 4, 0x51), 0x5);
    /* Cluster: 0x11, 0x12, 0x21, 0x22. */
    for (unsigned i = 0; i < 4; i++) {
        set(&f, i, DFR, 0);
        assert_int_equal(get(&f, i, DFR), 0x0fffffff);
        set(&f, i, LDR, (i / 2 + 1) << 28 | (i % 2 + 1) << 24);
    }
    set(&f, 0, ICR_HIGH, 0x13000000);
    set(&f, 0, ICR, 0x852);
    assert_int_equal(who_got(&f, 4, 0x52), 0x3);
    set(&f, 0, ICR_HIGH, 0xf2000000); /* member 2 of every cluster */
    set(&f, 0, ICR, 0x853);
    assert_int_equal(who_got(&f, 4, 0x53), 0xa);
    set(&f, 0, ICR_HIGH, 0xff000000);
    set(&f, 0, ICR, 0x854);
    assert_int_equal(who_got(&f, 4, 0x54), 0xf);
    stop(&f);
}

static void x2apic_destinations(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, CPUS);
    x2apic_all(&f, CPUS);
    wrmsr(&f, 0, X2 + 0x30, 0x1000aull << 32 | 0x850); /* cluster 1, members 1 and 3 */
    assert_int_equal(who_got(&f, CPUS, 0x50), 1 << 17 | 1 << 19);
    wrmsr(&f, 0, X2 + 0x30, 0xffffffffull << 32 | 0x51);
    assert_int_equal(who_got(&f, CPUS, 0x51), (1 << CPUS) - 1);
    wrmsr(&f, 0, X2 + 0x30, 0xffull << 32 | 0x52); /* not a broadcast here */
    assert_int_equal(who_got(&f, CPUS, 0x52), 0);
    wrmsr(&f, 0, X2 + 0x30, 0xc0053);
    assert_int_equal(who_got(&f, CPUS, 0x53), (1 << CPUS) - 2);
    /* From a message with its eight bits: physical, and cluster 0. */
    assert_true(apic_message(f.apic, APIC_ADDRESS | 18 << 12, 0x4054));
    assert_int_equal(who_got(&f, CPUS, 0x54), 1 << 18);
    assert_true(apic_message(f.apic, APIC_ADDRESS | 0x06 << 12 | 4, 0x4055));
    assert_int_equal(who_got(&f, CPUS, 0x55), 0x6);
    stop(&f);
}

static void lowest_priority_picks_the_idlest(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 4);
    enable_all(&f, 3); /* 3 stays software-disabled */
    for (unsigned i = 0; i < 4; i++)
        set(&f, i, LDR, 1u << (24 + i));
    set(&f, 0, TPR, 0x30);
    set(&f, 1, TPR, 0x20);
    set(&f, 2, TPR, 0x40);
    for (int i = 0; i < 4; i++) {
        assert_true(apic_message(f.apic, APIC_ADDRESS | 0x0f << 12 | 0xc, 0x4160));
        assert_int_equal(who_got(&f, 4, 0x60), 0x2);
    }
    /* Among equals each gets its turn. */
    set(&f, 0, TPR, 0x20);
    uint32_t got = 0;
    for (int i = 0; i < 8; i++) {
        assert_true(apic_message(f.apic, APIC_ADDRESS | 0x0f << 12 | 0xc, 0x4160));
        got |= who_got(&f, 4, 0x60);
    }
    assert_int_equal(got, 0x3);
    stop(&f);
}

static void processors_start_by_init_and_sipi(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 3);
    enable_all(&f, 3);
    send(&f, 1, 0x40);
    set(&f, 1, LVT_LINT1, 0x400);
    set(&f, 0, ICR_HIGH, 0x01000000);
    set(&f, 0, ICR, 0x4500);
    assert_int_equal(f.signals[1][APIC_SIGNAL_INIT], 1);
    assert_int_equal(apic_poll(f.apic, 1), 0x40); /* nothing until the vCPU takes it */
    apic_init(f.apic, 1);
    assert_int_equal(apic_poll(f.apic, 1), -1);
    assert_int_equal(get(&f, 1, SVR), 0xff);
    assert_int_equal(get(&f, 1, LVT_LINT1), 0x10000);
    set(&f, 0, ICR, 0x8500); /* level de-assert */
    assert_int_equal(f.signals[1][APIC_SIGNAL_INIT], 1);
    set(&f, 0, ICR, 0xc500); /* level assert */
    assert_int_equal(f.signals[1][APIC_SIGNAL_INIT], 2);
    set(&f, 0, ICR, 0x469a);
    assert_int_equal(f.signals[1][APIC_SIGNAL_SIPI], 1);
    assert_int_equal(f.sipi[1], 0x9a);
    set(&f, 0, ICR, 0xc4500); /* all others */
    assert_int_equal(f.signals[0][APIC_SIGNAL_INIT], 0);
    assert_int_equal(f.signals[2][APIC_SIGNAL_INIT], 1);
    set(&f, 0, ICR, 0x400);
    assert_int_equal(f.signals[1][APIC_SIGNAL_NMI], 1);
    set(&f, 0, ICR, 0x200); /* SMI: dropped */
    assert_int_equal(f.signals[1][APIC_SIGNAL_NMI], 1);
    /* A disabled APIC hears nothing. */
    wrmsr(&f, 1, APIC_BASE_MSR, 0xfee00000);
    set(&f, 0, ICR, 0x400);
    assert_int_equal(f.signals[1][APIC_SIGNAL_NMI], 1);
    stop(&f);
}

static void level_interrupts_end_at_the_ioapic(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 2);
    enable_all(&f, 2);
    ioapic_ops.write(f.ioapic, 0, 4, 0x11 + 2 * 10);
    ioapic_ops.write(f.ioapic, 0x10, 4, 0x01000000);
    ioapic_ops.write(f.ioapic, 0, 4, 0x10 + 2 * 10);
    ioapic_ops.write(f.ioapic, 0x10, 4, 0x8059);
    ioapic_line(f.ioapic, 10, true);
    expect(&f, 1, 0x59);
    assert_int_equal(get(&f, 1, TMR + 0x20), 1 << 25);
    assert_int_equal(ioapic_ops.read(f.ioapic, 0x10, 4), 0xc059);
    expect(&f, 1, -1);
    set(&f, 1, EOI, 0);
    expect(&f, 1, 0x59); /* still asserted: again */
    ioapic_line(f.ioapic, 10, false);
    set(&f, 1, EOI, 0);
    expect(&f, 1, -1);
    assert_int_equal(ioapic_ops.read(f.ioapic, 0x10, 4), 0x8059);
    /* The same vector by an edge clears its trigger mode. */
    send(&f, 1, 0x59);
    assert_int_equal(get(&f, 1, TMR + 0x20), 0);
    stop(&f);
}

static void pic_reaches_the_boot_processor(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 2);
    out8(&pic_master_ops, f.pic, 0, 0x11);
    static const uint8_t icw_then_mask[] = {0x30, 0x04, 0x01, 0xfc};
    for (unsigned i = 0; i < ARRAY_LEN(icw_then_mask); i++)
        out8(&pic_master_ops, f.pic, 1, icw_then_mask[i]);

    pic_line(f.pic, 1, true);
    assert_int_equal(f.notified[0], 1);
    assert_int_equal(apic_poll(f.apic, 1), -1);
    expect(&f, 0, 0x31);
    expect(&f, 0, -1);
    pic_line(f.pic, 0, true); /* above the one in service */
    assert_int_equal(f.notified[0], 2);
    expect(&f, 0, 0x30);
    out8(&pic_master_ops, f.pic, 0, 0x20);
    out8(&pic_master_ops, f.pic, 0, 0x20);
    /* The local APIC's own come first; what waits behind them is announced. */
    set(&f, 0, SVR, 0x1ff);
    pic_line(f.pic, 1, false);
    pic_line(f.pic, 1, true);
    send(&f, 0, 0x44);
    int before = f.notified[0];
    expect(&f, 0, 0x44);
    assert_int_equal(f.notified[0], before + 1);
    expect(&f, 0, 0x31);
    out8(&pic_master_ops, f.pic, 0, 0x20);
    /* A masked LINT0 shuts it out; a disabled APIC lets it through. */
    set(&f, 0, LVT_LINT0, 0x10700);
    pic_line(f.pic, 0, false);
    pic_line(f.pic, 0, true);
    expect(&f, 0, -1);
    wrmsr(&f, 0, APIC_BASE_MSR, 0xfee00100);
    expect(&f, 0, 0x30);
    stop(&f);
}

static void lint_pins_deliver_what_their_entry_says(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 1);
    enable_all(&f, 1);
    set(&f, 0, LVT_LINT0, 0x4a); /* fixed */
    apic_lint0(f.apic, 0, true);
    apic_lint0(f.apic, 0, true);
    expect(&f, 0, 0x4a);
    expect(&f, 0, -1);
    set(&f, 0, LVT_LINT1, 0x400);
    apic_lint1(f.apic, 0, true);
    assert_int_equal(f.signals[0][APIC_SIGNAL_NMI], 1);
    set(&f, 0, SVR, 0xff); /* software disable masks for good */
    set(&f, 0, SVR, 0x1ff);
    apic_lint1(f.apic, 0, false);
    apic_lint1(f.apic, 0, true);
    assert_int_equal(f.signals[0][APIC_SIGNAL_NMI], 1);
    stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shorthands_and_broadcast),
        cmocka_unit_test(logical_destinations),
        cmocka_unit_test(x2apic_destinations),
        cmocka_unit_test(lowest_priority_picks_the_idlest),
        cmocka_unit_test(processors_start_by_init_and_sipi),
        cmocka_unit_test(level_interrupts_end_at_the_ioapic),
        cmocka_unit_test(pic_reaches_the_boot_processor),
        cmocka_unit_test(lint_pins_deliver_what_their_entry_says),
    };
    return cmocka_run_group_tests_name("apic-message", tests, NULL, NULL);
}
