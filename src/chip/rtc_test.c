#include "chip/rtc.h"

#include "chip/chip_test.h"

struct fixture {
    struct timers *timers;
    struct rtc *rtc;
    struct line irq;
    int64_t origin; /* UTC at clock 0, ns */
};

static int64_t realtime(void *opaque)
{
    struct fixture *f = opaque;
    return f->origin + (int64_t)timers_now(f->timers);
}

/* 2024-02-29 23:59:58 UTC, a Thursday. */
#define LEAP_EVENING (1709251198ll * NSEC_PER_SEC)

static void start(struct fixture *f)
{
    *f = (struct fixture){.timers = timers_new(), .origin = LEAP_EVENING};
    f->rtc = rtc_new(&(struct rtc_config){.timers = f->timers,
                                          .irq = {line_set, &f->irq, 8},
                                          .realtime = realtime,
                                          .realtime_opaque = f});
    assert_non_null(f->rtc);
}

static void stop(struct fixture *f)
{
    timers_free(f->timers);
    rtc_free(f->rtc);
}

static uint8_t get(struct fixture *f, uint8_t reg)
{
    out8(&rtc_ops, f->rtc, 0, reg);
    return in8(&rtc_ops, f->rtc, 1);
}

static void set(struct fixture *f, uint8_t reg, uint8_t value)
{
    out8(&rtc_ops, f->rtc, 0, reg);
    out8(&rtc_ops, f->rtc, 1, value);
}

static void expect_time(struct fixture *f, uint8_t century, uint8_t year, uint8_t month,
                        uint8_t day, uint8_t hour, uint8_t minute, uint8_t second)
{
    assert_int_equal(get(f, 0x32), century);
    assert_int_equal(get(f, 0x09), year);
    assert_int_equal(get(f, 0x08), month);
    assert_int_equal(get(f, 0x07), day);
    assert_int_equal(get(f, 0x04), hour);
    assert_int_equal(get(f, 0x02), minute);
    assert_int_equal(get(f, 0x00), second);
}

static void time_of_day_in_all_formats(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    expect_time(&f, 0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58);
    assert_int_equal(get(&f, 0x06), 5); /* Thursday, Sunday being 1 */
    set(&f, 0x0b, 0x06);
    expect_time(&f, 20, 24, 2, 29, 23, 59, 58);
    set(&f, 0x0b, 0x00);
    assert_int_equal(get(&f, 0x04), 0x91); /* 11 PM */
    set(&f, 0x0b, 0x04);
    assert_int_equal(get(&f, 0x04), 0x8b);
    set(&f, 0x0b, 0x02);
    clock_run(f.timers, 2ull * NSEC_PER_SEC);
    expect_time(&f, 0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00);
    assert_int_equal(get(&f, 0x06), 6);
    set(&f, 0x0b, 0x00);
    assert_int_equal(get(&f, 0x04), 0x12); /* 12 AM */
    clock_run(f.timers, (2 + 12 * 3600) * (uint64_t)NSEC_PER_SEC);
    assert_int_equal(get(&f, 0x04), 0x92); /* 12 PM */
    stop(&f);
}

static void update_in_progress_precedes_the_second(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    assert_int_equal(get(&f, 0x0a), 0x26);
    clock_run(f.timers, 997 * MSEC);
    assert_int_equal(get(&f, 0x0a), 0x26);
    clock_run(f.timers, 999 * MSEC);
    assert_int_equal(get(&f, 0x0a), 0xa6);
    assert_int_equal(get(&f, 0x00), 0x58);
    clock_run(f.timers, 1000 * MSEC);
    assert_int_equal(get(&f, 0x0a), 0x26);
    assert_int_equal(get(&f, 0x00), 0x59);
    set(&f, 0x0b, 0x82);
    clock_run(f.timers, 1999 * MSEC);
    assert_int_equal(get(&f, 0x0a), 0x26); /* no updates while SET */
    stop(&f);
}

static void setting_the_time_as_kernels_do(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    clock_run(f.timers, 300 * MSEC);
    set(&f, 0x0b, 0x82); /* SET */
    set(&f, 0x0a, 0x70); /* divider reset */
    set(&f, 0x09, 0x99);
    set(&f, 0x08, 0x12);
    set(&f, 0x07, 0x31);
    set(&f, 0x04, 0x23);
    set(&f, 0x02, 0x59);
    set(&f, 0x00, 0x59);
    set(&f, 0x32, 0x19);
    clock_run(f.timers, 5000 * MSEC); /* it stands */
    expect_time(&f, 0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59);
    set(&f, 0x0b, 0x02);
    set(&f, 0x0a, 0x26);
    expect_time(&f, 0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59);
    clock_run(f.timers, 5499 * MSEC);
    expect_time(&f, 0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59);
    clock_run(f.timers, 5501 * MSEC); /* the first update half a second after the divider */
    expect_time(&f, 0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00);
    rtc_reset(f.rtc);
    expect_time(&f, 0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00);
    stop(&f);
}

static void nonsense_is_brought_into_range(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    set(&f, 0x0b, 0x82);
    for (uint8_t reg = 0; reg <= 9; reg++)
        set(&f, reg, 0xff);
    set(&f, 0x32, 0xff);
    set(&f, 0x0b, 0x02);
    expect_time(&f, 0x99, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59);
    stop(&f);
}

static void update_interrupt_every_second(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    get(&f, 0x0c);
    set(&f, 0x0b, 0x12);
    clock_run(f.timers, 999 * MSEC);
    assert_int_equal(f.irq.rises, 0);
    clock_run(f.timers, 1001 * MSEC);
    assert_int_equal(f.irq.rises, 1);
    assert_int_equal(get(&f, 0x0c) & 0x90, 0x90);
    assert_false(f.irq.level);
    assert_int_equal(get(&f, 0x0c), 0x00);
    clock_run(f.timers, 2001 * MSEC);
    assert_int_equal(f.irq.rises, 2);
    stop(&f);
}

static void alarm_at_its_time(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    set(&f, 0x01, 0x01); /* 00:00:01 */
    set(&f, 0x03, 0x00);
    set(&f, 0x05, 0x00);
    get(&f, 0x0c);
    set(&f, 0x0b, 0x22);
    clock_run(f.timers, 2500 * MSEC);
    assert_int_equal(f.irq.rises, 0);
    clock_run(f.timers, 3100 * MSEC);
    assert_int_equal(f.irq.rises, 1);
    assert_int_equal(get(&f, 0x0c) & 0xa0, 0xa0);
    /* Any minute, any hour: once a minute. */
    set(&f, 0x03, 0xff);
    set(&f, 0x05, 0xc0);
    clock_run(f.timers, 62100 * MSEC);
    assert_int_equal(f.irq.rises, 1);
    clock_run(f.timers, 63100 * MSEC);
    assert_int_equal(f.irq.rises, 2);
    /* Without its interrupt the flag is there for who polls. */
    get(&f, 0x0c);
    set(&f, 0x0b, 0x02);
    timers_set_now(f.timers, 123100 * MSEC);
    assert_int_equal(get(&f, 0x0c) & 0xa0, 0x20);
    stop(&f);
}

static void periodic_interrupt_at_its_rate(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    get(&f, 0x0c);
    set(&f, 0x0b, 0x42); /* 1024 Hz */
    for (uint64_t i = 1; i <= 10; i++) {
        clock_run(f.timers, i * NSEC_PER_SEC / 1024 + 100);
        assert_int_equal(f.irq.rises, i);
        assert_int_equal(get(&f, 0x0c) & 0xc0, 0xc0);
    }
    /* Nobody acknowledges: one stays pending. */
    clock_run(f.timers, 500 * MSEC);
    assert_int_equal(f.irq.rises, 11);
    get(&f, 0x0c);
    set(&f, 0x0a, 0x2f); /* 2 Hz */
    clock_run(f.timers, 999 * MSEC);
    assert_int_equal(f.irq.rises, 11);
    clock_run(f.timers, 1001 * MSEC);
    assert_int_equal(f.irq.rises, 12);
    set(&f, 0x0a, 0x20);
    get(&f, 0x0c);
    clock_run(f.timers, 5000 * MSEC);
    assert_int_equal(f.irq.rises, 12);
    stop(&f);
}

static void memory_and_fixed_registers(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    assert_int_equal(get(&f, 0x0d), 0x80);
    set(&f, 0x0d, 0x00);
    assert_int_equal(get(&f, 0x8d), 0x80); /* NMI-disable bit set */
    set(&f, RTC_SHUTDOWN, 0x05);
    set(&f, 0x7f, 0xa5);
    rtc_reset(f.rtc);
    assert_int_equal(get(&f, RTC_SHUTDOWN), 0x05);
    assert_int_equal(get(&f, 0xff), 0xa5);
    assert_int_equal(in8(&rtc_ops, f.rtc, 0), 0xff);
    stop(&f);
}

static void firmware_finds_the_size_of_memory(void **state)
{
    (void)state;
    struct fixture f = {.timers = timers_new()};
    f.rtc = rtc_new(&(struct rtc_config){.timers = f.timers,
                                         .low_memory = UINT64_C(0xb0000000),
                                         .high_memory = UINT64_C(0x123450000)});
    assert_int_equal(get(&f, 0x34) | get(&f, 0x35) << 8, (0xb0000000 - (16 << 20)) >> 16);
    assert_int_equal(get(&f, 0x5b) | get(&f, 0x5c) << 8 | get(&f, 0x5d) << 16, 0x12345);
    assert_int_equal(get(&f, 0x17) | get(&f, 0x18) << 8, 0xffff); /* KiB, at most so many */
    stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(time_of_day_in_all_formats),
        cmocka_unit_test(update_in_progress_precedes_the_second),
        cmocka_unit_test(setting_the_time_as_kernels_do),
        cmocka_unit_test(nonsense_is_brought_into_range),
        cmocka_unit_test(update_interrupt_every_second),
        cmocka_unit_test(alarm_at_its_time),
        cmocka_unit_test(periodic_interrupt_at_its_rate),
        cmocka_unit_test(memory_and_fixed_registers),
        cmocka_unit_test(firmware_finds_the_size_of_memory),
    };
    return cmocka_run_group_tests_name("rtc", tests, NULL, NULL);
}
