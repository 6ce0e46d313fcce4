#include "chip/apic_fixture.h"

/* --- one local APIC --- */

static void power_on_state(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 2);
    assert_int_equal(rdmsr(&f, 0, APIC_BASE_MSR), 0xfee00900);
    assert_int_equal(rdmsr(&f, 1, APIC_BASE_MSR), 0xfee00800);
    assert_int_equal(get(&f, 1, ID), 0x01000000);
    assert_int_equal(get(&f, 0, 0x30), 0x00050014);
    assert_int_equal(get(&f, 0, SVR), 0xff);
    assert_int_equal(get(&f, 0, DFR), 0xffffffff);
    assert_int_equal(get(&f, 0, LVT_TIMER), 0x10000);
    assert_int_equal(get(&f, 0, LVT_LINT0), 0x700);
    assert_int_equal(get(&f, 1, LVT_LINT0), 0x10000);
    assert_int_equal(get(&f, 0, 0x0c0), 0); /* remote read */
    /* Software-disabled: fixed interrupts are refused, LVT masks stick. */
    assert_false(apic_message(f.apic, APIC_ADDRESS, 0x4041));
    set(&f, 1, LVT_TIMER, 0x41);
    assert_int_equal(get(&f, 1, LVT_TIMER), 0x10041);
    uint64_t value;
    assert_false(apic_mmio_read(f.apic, 0, APIC_ADDRESS + 0x1000, 4, &value));
    stop(&f);
}

static void priorities_nest_and_eoi_ends_the_highest(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 1);
    enable_all(&f, 1);
    send(&f, 0, 0x41);
    send(&f, 0, 0x55);
    send(&f, 0, 0x52);
    assert_int_equal(get(&f, 0, IRR + 0x20), 0x00240002);
    expect(&f, 0, 0x55);
    assert_int_equal(get(&f, 0, PPR), 0x50);
    expect(&f, 0, -1); /* 0x52 is of the same class */
    send(&f, 0, 0x61);
    expect(&f, 0, 0x61);
    assert_int_equal(get(&f, 0, ISR + 0x20), 0x00200000);
    assert_int_equal(get(&f, 0, ISR + 0x30), 0x00000002);
    set(&f, 0, EOI, 0);
    assert_int_equal(get(&f, 0, ISR + 0x30), 0);
    expect(&f, 0, -1);
    set(&f, 0, EOI, 0);
    expect(&f, 0, 0x52);
    set(&f, 0, EOI, 0);
    expect(&f, 0, 0x41);
    set(&f, 0, EOI, 0);
    set(&f, 0, EOI, 0); /* one too many does nothing */
    expect(&f, 0, -1);
    stop(&f);
}

static void task_priority_holds_back(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 1);
    enable_all(&f, 1);
    apic_cr8_write(f.apic, 0, 5);
    assert_int_equal(get(&f, 0, TPR), 0x50);
    send(&f, 0, 0x5f);
    assert_int_equal(f.notified[0], 0);
    expect(&f, 0, -1);
    set(&f, 0, TPR, 0x4f);
    assert_int_equal(apic_cr8_read(f.apic, 0), 4);
    assert_int_equal(f.notified[0], 1);
    assert_int_equal(get(&f, 0, PPR), 0x4f);
    expect(&f, 0, 0x5f);
    assert_int_equal(get(&f, 0, PPR), 0x50);
    stop(&f);
}

static void notify_comes_after_it_is_visible(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 2);
    enable_all(&f, 2);
    send(&f, 1, 0x30);
    assert_int_equal(f.notified[1], 1);
    assert_int_equal(f.notified[0], 0);
    send(&f, 1, 0x20);
    assert_int_equal(f.notified[1], 1); /* the answer is what it was */
    send(&f, 1, 0x40);
    assert_int_equal(f.notified[1], 2);
    expect(&f, 1, 0x40);
    set(&f, 1, EOI, 0);
    assert_int_equal(f.notified[1], 3);
    stop(&f);
}

static void errors_are_reported_once_asked(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 1);
    enable_all(&f, 1);
    set(&f, 0, LVT_ERROR, 0xfe);
    set(&f, 0, ICR, 0x40005); /* self, vector 5 */
    expect(&f, 0, 0xfe);
    assert_int_equal(get(&f, 0, ESR), 0);
    set(&f, 0, ESR, 0);
    assert_int_equal(get(&f, 0, ESR), 0x20);
    assert_true(apic_message(f.apic, APIC_ADDRESS, 0x4003));
    set(&f, 0, 0x3d0, 1);
    set(&f, 0, ESR, 0);
    assert_int_equal(get(&f, 0, ESR), 0xc0);
    set(&f, 0, ESR, 0);
    assert_int_equal(get(&f, 0, ESR), 0);
    stop(&f);
}

static void base_register_transitions(void **state)
{
    (void)state;
    /* Rows: from; columns: to. 0 disabled, 1 xAPIC, 2 x2APIC (SDM figure 11-27). */
    static const uint64_t bits[3] = {0x000, 0x800, 0xc00};
    static const bool legal[3][3] = {{1, 1, 0}, {1, 1, 1}, {1, 0, 1}};
    struct fixture f;
    start(&f, 1);
    for (unsigned from = 0; from < 3; from++) {
        for (unsigned to = 0; to < 3; to++) {
            assert_true(apic_base_restore(f.apic, 0, 0xfee00100 | bits[from]));
            assert_int_equal(apic_msr_write(f.apic, 0, APIC_BASE_MSR, 0xfee00100 | bits[to]),
                             legal[from][to]);
            assert_int_equal(rdmsr(&f, 0, APIC_BASE_MSR),
                             0xfee00100 | bits[legal[from][to] ? to : from]);
        }
    }
    assert_true(apic_base_restore(f.apic, 0, 0xfee00900));
    assert_true(refused(&f, 0, APIC_BASE_MSR, 0xfee00d01)); /* reserved bit 0 */
    assert_true(refused(&f, 0, APIC_BASE_MSR, 0xfee00500)); /* EXTD without EN */
    assert_true(refused(&f, 0, APIC_BASE_MSR, 1ull << 50 | 0xfee00900));
    /* Moved: the page answers there and nowhere else. */
    wrmsr(&f, 0, APIC_BASE_MSR, 0xfed00900);
    uint64_t value;
    assert_false(apic_mmio_read(f.apic, 0, APIC_ADDRESS + SVR, 4, &value));
    assert_true(apic_mmio_read(f.apic, 0, 0xfed00000 + SVR, 4, &value));
    assert_int_equal(value, 0xff);
    /* Disabling loses the state. */
    assert_true(apic_mmio_write(f.apic, 0, 0xfed00000 + SVR, 4, 0x1ff));
    wrmsr(&f, 0, APIC_BASE_MSR, 0xfee00100);
    assert_false(apic_mmio_write(f.apic, 0, APIC_ADDRESS + SVR, 4, 0x1ff));
    wrmsr(&f, 0, APIC_BASE_MSR, 0xfee00900);
    assert_int_equal(get(&f, 0, SVR), 0xff);
    stop(&f);
}

static void x2apic_registers_fault_where_they_must(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, CPUS);
    uint64_t value;
    assert_false(apic_msr_read(f.apic, 0, X2 + 0x2, &value)); /* still xAPIC */
    assert_true(refused(&f, 0, X2 + 0x8, 0));
    x2apic_all(&f, CPUS);
    assert_false(apic_mmio_read(f.apic, 0, APIC_ADDRESS + ID, 4, &value));
    assert_int_equal(rdmsr(&f, 19, X2 + 0x2), 19);
    assert_int_equal(rdmsr(&f, 19, X2 + 0xd), 1 << 16 | 1 << 3);
    static const uint16_t unreadable[] = {0x00, 0x09, 0x0b, 0x0c, 0x0e,
                                          0x2f, 0x31, 0x3f, 0x40, 0xff};
    for (unsigned i = 0; i < ARRAY_LEN(unreadable); i++)
        assert_false(apic_msr_read(f.apic, 0, X2 + unreadable[i], &value));
    static const uint16_t unwritable[] = {0x02, 0x03, 0x0a, 0x0d, 0x0e,
                                          0x10, 0x20, 0x31, 0x39, 0x40};
    for (unsigned i = 0; i < ARRAY_LEN(unwritable); i++)
        assert_true(refused(&f, 0, X2 + unwritable[i], 0));
    assert_true(refused(&f, 0, X2 + 0x8, 0x100));
    assert_true(refused(&f, 0, X2 + 0x8, 1ull << 32));
    assert_true(refused(&f, 0, X2 + 0xb, 1));
    assert_true(refused(&f, 0, X2 + 0x28, 1));
    assert_true(refused(&f, 0, X2 + 0x30, 1 << 20));
    assert_true(refused(&f, 0, X2 + 0x32, 1 << 20));
    assert_true(refused(&f, 0, X2 + 0x3e, 4));
    assert_true(refused(&f, 0, X2 + 0x3f, 0x100));
    wrmsr(&f, 0, X2 + 0x3f, 0x77); /* SELF_IPI */
    expect(&f, 0, 0x77);
    wrmsr(&f, 0, X2 + 0xb, 0);
    wrmsr(&f, 0, X2 + 0x30, 5ull << 32 | 0x78);
    assert_int_equal(rdmsr(&f, 0, X2 + 0x30), 5ull << 32 | 0x78);
    expect(&f, 5, 0x78);
    stop(&f);
}

/* --- timer --- */

static void timer_one_shot(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 1);
    enable_all(&f, 1);
    set(&f, 0, LVT_TIMER, 0xec);
    set(&f, 0, DIVIDE, 0x3); /* by 16 */
    set(&f, 0, INITIAL, 1000);
    assert_int_equal(get(&f, 0, CURRENT), 1000);
    clock_run(f.timers, 8000);
    assert_int_equal(get(&f, 0, CURRENT), 500);
    expect(&f, 0, -1);
    clock_run(f.timers, 16000);
    assert_int_equal(get(&f, 0, CURRENT), 0);
    expect(&f, 0, 0xec);
    set(&f, 0, EOI, 0);
    clock_run(f.timers, 100000);
    expect(&f, 0, -1);
    /* 0 stops; a masked entry counts silently. */
    set(&f, 0, INITIAL, 1000);
    set(&f, 0, INITIAL, 0);
    clock_run(f.timers, 200000);
    expect(&f, 0, -1);
    set(&f, 0, LVT_TIMER, 0x100ec);
    set(&f, 0, INITIAL, 1000);
    clock_run(f.timers, 300000);
    expect(&f, 0, -1);
    assert_int_equal(get(&f, 0, CURRENT), 0);
    stop(&f);
}

static void timer_periodic(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 1);
    enable_all(&f, 1);
    set(&f, 0, LVT_TIMER, 0x200ec);
    set(&f, 0, DIVIDE, 0xb); /* by 1 */
    set(&f, 0, INITIAL, 1000000);
    for (uint64_t i = 1; i <= 3; i++) {
        clock_run(f.timers, i * MSEC - 10);
        expect(&f, 0, -1);
        assert_int_equal(get(&f, 0, CURRENT), 10);
        clock_run(f.timers, i * MSEC);
        expect(&f, 0, 0xec);
        set(&f, 0, EOI, 0);
        assert_int_equal(get(&f, 0, CURRENT), 1000000);
    }
    /* Late by many periods: one interrupt, and the old grid. */
    clock_run(f.timers, 50 * MSEC + 500000);
    expect(&f, 0, 0xec);
    set(&f, 0, EOI, 0);
    expect(&f, 0, -1);
    assert_int_equal(get(&f, 0, CURRENT), 500000);
    clock_run(f.timers, 51 * MSEC);
    expect(&f, 0, 0xec);
    set(&f, 0, EOI, 0);
    set(&f, 0, DIVIDE, 0x0); /* by 2: what is left takes twice as long */
    clock_run(f.timers, 52 * MSEC);
    expect(&f, 0, -1);
    clock_run(f.timers, 53 * MSEC);
    expect(&f, 0, 0xec);
    stop(&f);
}

static void timer_deadline(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 1);
    enable_all(&f, 1);
    clock_run(f.timers, MSEC);
    wrmsr(&f, 0, DEADLINE_MSR, 1); /* not in this mode: ignored */
    assert_int_equal(rdmsr(&f, 0, DEADLINE_MSR), 0);
    set(&f, 0, LVT_TIMER, 0x400ec);
    set(&f, 0, INITIAL, 5);
    assert_int_equal(get(&f, 0, CURRENT), 0);
    wrmsr(&f, 0, DEADLINE_MSR, 2 * 2 * MSEC);
    assert_int_equal(rdmsr(&f, 0, DEADLINE_MSR), 2 * 2 * MSEC);
    clock_run(f.timers, 2 * MSEC - 10);
    expect(&f, 0, -1);
    clock_run(f.timers, 2 * MSEC + 10);
    assert_int_equal(rdmsr(&f, 0, DEADLINE_MSR), 0);
    expect(&f, 0, 0xec);
    set(&f, 0, EOI, 0);
    /* Already past: at once, with the clock standing still. */
    wrmsr(&f, 0, DEADLINE_MSR, 2 * MSEC);
    expect(&f, 0, 0xec);
    set(&f, 0, EOI, 0);
    assert_int_equal(rdmsr(&f, 0, DEADLINE_MSR), 0);
    /* Moved later and earlier, and cancelled. */
    wrmsr(&f, 0, DEADLINE_MSR, 2 * 5 * MSEC);
    wrmsr(&f, 0, DEADLINE_MSR, 2 * 8 * MSEC);
    clock_run(f.timers, 6 * MSEC);
    expect(&f, 0, -1);
    clock_run(f.timers, 8 * MSEC + 10);
    expect(&f, 0, 0xec);
    set(&f, 0, EOI, 0);
    wrmsr(&f, 0, DEADLINE_MSR, 2 * 20 * MSEC);
    wrmsr(&f, 0, DEADLINE_MSR, 2 * 10 * MSEC);
    clock_run(f.timers, 10 * MSEC + 10);
    expect(&f, 0, 0xec);
    set(&f, 0, EOI, 0);
    wrmsr(&f, 0, DEADLINE_MSR, 2 * 12 * MSEC);
    wrmsr(&f, 0, DEADLINE_MSR, 0);
    clock_run(f.timers, 30 * MSEC);
    expect(&f, 0, -1);
    /* Leaving the mode disarms. */
    wrmsr(&f, 0, DEADLINE_MSR, UINT64_MAX);
    set(&f, 0, LVT_TIMER, 0xec);
    assert_int_equal(rdmsr(&f, 0, DEADLINE_MSR), 0);
    stop(&f);
}

/* --- state --- */

static void state_survives_save_and_load(void **state)
{
    (void)state;
    struct fixture f, g;
    start(&f, 2);
    x2apic_all(&f, 2);
    wrmsr(&f, 0, X2 + 0x8, 0x20);
    wrmsr(&f, 0, X2 + 0x32, 0x200ec);
    wrmsr(&f, 0, X2 + 0x3e, 0xb);
    wrmsr(&f, 0, X2 + 0x38, 3000000);
    clock_run(f.timers, 1 * MSEC);
    wrmsr(&f, 0, X2 + 0x30, 1ull << 32 | 0x41);
    wrmsr(&f, 0, X2 + 0x3f, 0x51);
    expect(&f, 0, 0x51);
    wrmsr(&f, 0, X2 + 0x3f, 0x42);
    uint8_t page[APIC_PAGE_SIZE], again[APIC_PAGE_SIZE];
    apic_save(f.apic, 0, page);

    start(&g, 2);
    assert_false(apic_load(g.apic, 0, again) && memcmp(again, page, sizeof page) == 0);
    assert_true(apic_base_restore(g.apic, 0, rdmsr(&f, 0, APIC_BASE_MSR)));
    assert_true(apic_load(g.apic, 0, page));
    apic_save(g.apic, 0, again);
    assert_memory_equal(page, again, sizeof page);
    expect(&g, 0, -1);
    wrmsr(&g, 0, X2 + 0xb, 0);
    assert_int_equal(g.notified[0], 1);
    expect(&g, 0, 0x42);
    wrmsr(&g, 0, X2 + 0xb, 0);
    clock_run(g.timers, 2 * MSEC + 10); /* two thirds of the period were left */
    expect(&g, 0, 0xec);
    /* What no APIC can be in. */
    uint8_t bad[APIC_PAGE_SIZE];
    memcpy(bad, page, sizeof bad);
    bad[ID] ^= 1;
    assert_false(apic_load(g.apic, 0, bad));
    memcpy(bad, page, sizeof bad);
    bad[IRR] |= 1;
    assert_false(apic_load(g.apic, 0, bad));
    stop(&f);
    stop(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(power_on_state),
        cmocka_unit_test(priorities_nest_and_eoi_ends_the_highest),
        cmocka_unit_test(task_priority_holds_back),
        cmocka_unit_test(notify_comes_after_it_is_visible),
        cmocka_unit_test(errors_are_reported_once_asked),
        cmocka_unit_test(base_register_transitions),
        cmocka_unit_test(x2apic_registers_fault_where_they_must),
        cmocka_unit_test(timer_one_shot),
        cmocka_unit_test(timer_periodic),
        cmocka_unit_test(timer_deadline),
        cmocka_unit_test(state_survives_save_and_load),
    };
    return cmocka_run_group_tests_name("apic", tests, NULL, NULL);
}
