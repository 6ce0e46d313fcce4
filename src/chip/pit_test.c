#include "chip/pit.h"

#include "chip/chip_test.h"

struct fixture {
    struct timers *timers;
    struct pit *pit;
    struct line irq;
};

static void start(struct fixture *f)
{
    *f = (struct fixture){.timers = timers_new()};
    f->pit = pit_new(&(struct pit_config){.timers = f->timers, .irq = {line_set, &f->irq, 0}});
    assert_non_null(f->pit);
    f->irq.rises = 0;
}

static void stop(struct fixture *f)
{
    timers_free(f->timers);
    pit_free(f->pit);
}

/* The moment in the middle of tick `tick`. */
static uint64_t at_tick(uint64_t tick)
{
    return (uint64_t)((unsigned __int128)(tick * 2 + 1) * NSEC_PER_SEC / 2 / PIT_HZ);
}

static void go(struct fixture *f, uint64_t tick)
{
    clock_run(f->timers, at_tick(tick));
}

static void control(struct fixture *f, uint8_t value)
{
    out8(&pit_ops, f->pit, 3, value);
}

/* Control word for `channel`, both bytes, and the count. */
static void load(struct fixture *f, unsigned channel, unsigned mode, uint16_t count)
{
    control(f, (uint8_t)(channel << 6 | 0x30 | mode << 1));
    out8(&pit_ops, f->pit, channel, (uint8_t)count);
    out8(&pit_ops, f->pit, channel, (uint8_t)(count >> 8));
}

static unsigned count(struct fixture *f, unsigned channel)
{
    control(f, (uint8_t)(channel << 6));
    unsigned low = in8(&pit_ops, f->pit, channel);
    return low | (unsigned)in8(&pit_ops, f->pit, channel) << 8;
}

static uint8_t status(struct fixture *f, unsigned channel)
{
    control(f, (uint8_t)(0xe0 | 2u << channel));
    return in8(&pit_ops, f->pit, channel);
}

static bool out2(struct fixture *f)
{
    return in8(&pit_speaker_ops, f->pit, 0) & 0x20;
}

static void gate2(struct fixture *f, bool gate)
{
    out8(&pit_speaker_ops, f->pit, 0, gate);
}

static void mode_0_counts_down_once(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    go(&f, 100);
    load(&f, 0, 0, 1000);
    assert_false(f.irq.level);
    assert_int_equal(status(&f, 0), 0x70); /* OUT low, null count, both bytes, mode 0 */
    go(&f, 101);
    assert_int_equal(count(&f, 0), 1000);
    assert_int_equal(status(&f, 0), 0x30);
    go(&f, 1100);
    assert_int_equal(count(&f, 0), 1);
    assert_int_equal(f.irq.rises, 0);
    go(&f, 1101); /* N + 1 clocks after the write */
    assert_true(f.irq.level);
    assert_int_equal(f.irq.rises, 1);
    assert_int_equal(status(&f, 0), 0xb0);
    go(&f, 1103);
    assert_int_equal(count(&f, 0), 0xfffe);
    go(&f, 200000);
    assert_int_equal(f.irq.rises, 1);
    stop(&f);
}

static void mode_2_interrupts_every_period(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    load(&f, 0, 2, 1193);
    for (int i = 1; i <= 5; i++) {
        go(&f, (uint64_t)i * 1193);
        assert_int_equal(count(&f, 0), 1);
        assert_int_equal(status(&f, 0) & 0x80, 0);
        assert_int_equal(f.irq.rises, i - 1);
        go(&f, (uint64_t)i * 1193 + 1);
        assert_int_equal(count(&f, 0), 1193);
        assert_int_equal(f.irq.rises, i);
    }
    stop(&f);
}

static void missed_periods_are_one_interrupt_and_keep_the_grid(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    load(&f, 0, 2, 1193);
    go(&f, 1000 * 1193 + 500);
    assert_int_equal(f.irq.rises, 1);
    go(&f, 1001 * 1193);
    assert_int_equal(f.irq.rises, 1);
    go(&f, 1001 * 1193 + 1);
    assert_int_equal(f.irq.rises, 2);
    stop(&f);
}

static void mode_2_takes_a_new_count_at_the_end_of_the_period(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    load(&f, 0, 2, 10000);
    go(&f, 5001);
    out8(&pit_ops, f.pit, 0, 0x00);
    out8(&pit_ops, f.pit, 0, 0x10);
    assert_int_equal(count(&f, 0), 5000);
    assert_int_equal(status(&f, 0) & 0x40, 0x40);
    go(&f, 10001);
    assert_int_equal(count(&f, 0), 0x1000);
    assert_int_equal(status(&f, 0) & 0x40, 0);
    assert_int_equal(f.irq.rises, 1);
    go(&f, 10001 + 0x1000);
    assert_int_equal(f.irq.rises, 2);
    stop(&f);
}

static void mode_3_is_a_square_wave(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    gate2(&f, true);
    load(&f, 2, 3, 8);
    /* Even: four clocks high, four low, counting by two. */
    const unsigned even[] = {8, 6, 4, 2, 8, 6, 4, 2, 8};
    for (unsigned i = 0; i < 9; i++) {
        go(&f, 1 + i);
        assert_int_equal(count(&f, 2), even[i]);
        assert_int_equal(out2(&f), i < 4 || i == 8);
    }
    uint64_t from = 100;
    go(&f, from - 1);
    load(&f, 2, 3, 5);
    const unsigned odd[] = {4, 2, 0, 4, 2, 4};
    for (unsigned i = 0; i < 6; i++) {
        go(&f, from + i);
        assert_int_equal(count(&f, 2), odd[i]);
        assert_int_equal(out2(&f), i < 3 || i == 5);
    }
    stop(&f);
}

static void mode_3_interrupts_at_its_rate(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    load(&f, 0, 3, 0); /* 65536 */
    for (int i = 1; i <= 3; i++) {
        go(&f, (uint64_t)i * 65536);
        assert_int_equal(f.irq.rises, i - 1);
        go(&f, (uint64_t)i * 65536 + 1);
        assert_int_equal(f.irq.rises, i);
    }
    stop(&f);
}

static void mode_4_strobes(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    gate2(&f, true);
    load(&f, 2, 4, 50);
    load(&f, 0, 4, 50);
    go(&f, 50);
    assert_true(out2(&f));
    go(&f, 51);
    assert_false(out2(&f));
    go(&f, 52);
    assert_true(out2(&f));
    assert_int_equal(f.irq.rises, 1);
    go(&f, 100000);
    assert_int_equal(f.irq.rises, 1);
    stop(&f);
}

static void modes_1_and_5_wait_for_their_gate(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    load(&f, 2, 1, 20);
    go(&f, 100);
    assert_true(out2(&f));
    gate2(&f, true);
    go(&f, 101);
    assert_false(out2(&f));
    go(&f, 110);
    gate2(&f, false);
    gate2(&f, true); /* retrigger */
    go(&f, 130);
    assert_false(out2(&f));
    go(&f, 131);
    assert_true(out2(&f));

    gate2(&f, false);
    load(&f, 2, 5, 10);
    go(&f, 200);
    gate2(&f, true);
    go(&f, 210);
    assert_true(out2(&f));
    go(&f, 211);
    assert_false(out2(&f));
    go(&f, 212);
    assert_true(out2(&f));
    stop(&f);
}

static void calibration_through_port_61(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    /* What kernels do: gate low, mode 0, count, gate high, wait for bit 5. */
    gate2(&f, false);
    load(&f, 2, 0, 11931);
    go(&f, 500);
    assert_false(out2(&f));
    assert_int_equal(count(&f, 2), 11931);
    gate2(&f, true);
    go(&f, 500 + 11930);
    assert_false(out2(&f));
    go(&f, 500 + 11931);
    assert_true(out2(&f));
    /* A low gate freezes the count. */
    load(&f, 2, 0, 1000);
    go(&f, 500 + 11931 + 401);
    gate2(&f, false);
    go(&f, 50000);
    assert_int_equal(count(&f, 2), 600);
    gate2(&f, true);
    go(&f, 50001);
    assert_int_equal(count(&f, 2), 599);
    assert_int_equal(in8(&pit_speaker_ops, f.pit, 0) & 0x0f, 1);
    stop(&f);
}

static void latches_hold_and_stack(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    load(&f, 0, 2, 0x5678);
    go(&f, 1);
    control(&f, 0xc2 | 0x00); /* read back count and status of channel 0 */
    go(&f, 0x1001);
    control(&f, 0x00);                               /* ignored: something is latched */
    assert_int_equal(in8(&pit_ops, f.pit, 0), 0xb4); /* status first: OUT, both bytes, mode 2 */
    assert_int_equal(in8(&pit_ops, f.pit, 0), 0x78);
    assert_int_equal(in8(&pit_ops, f.pit, 0), 0x56);
    assert_int_equal(count(&f, 0), 0x4678);
    /* Single-byte access reads that byte. */
    control(&f, 0x14);
    out8(&pit_ops, f.pit, 0, 0x20);
    go(&f, 0x1001 + 17);
    assert_int_equal(in8(&pit_ops, f.pit, 0), 0x10);
    stop(&f);
}

static void binary_coded_decimal(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    control(&f, 0x31);
    out8(&pit_ops, f.pit, 0, 0x00);
    out8(&pit_ops, f.pit, 0, 0x12); /* 1200 */
    go(&f, 2);
    assert_int_equal(count(&f, 0), 0x1199);
    go(&f, 1202);
    assert_int_equal(count(&f, 0), 0x9999);
    stop(&f);
}

static void a_tiny_period_does_not_flood(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    load(&f, 0, 2, 2);
    for (int i = 1; i <= 100; i++)
        clock_run(f.timers, (uint64_t)i * 10000); /* 1 ms in all */
    assert_in_range(f.irq.rises, 5, 22);
    stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mode_0_counts_down_once),
        cmocka_unit_test(mode_2_interrupts_every_period),
        cmocka_unit_test(missed_periods_are_one_interrupt_and_keep_the_grid),
        cmocka_unit_test(mode_2_takes_a_new_count_at_the_end_of_the_period),
        cmocka_unit_test(mode_3_is_a_square_wave),
        cmocka_unit_test(mode_3_interrupts_at_its_rate),
        cmocka_unit_test(mode_4_strobes),
        cmocka_unit_test(modes_1_and_5_wait_for_their_gate),
        cmocka_unit_test(calibration_through_port_61),
        cmocka_unit_test(latches_hold_and_stack),
        cmocka_unit_test(binary_coded_decimal),
        cmocka_unit_test(a_tiny_period_does_not_flood),
    };
    return cmocka_run_group_tests_name("pit", tests, NULL, NULL);
}
