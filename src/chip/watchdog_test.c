#include "chip/watchdog.h"

#include "chip/chip_test.h"

struct fixture {
    struct timers *timers;
    struct watchdog *watchdog;
    int expired;
};

static void expired(void *opaque)
{
    ((struct fixture *)opaque)->expired++;
}

static void start(struct fixture *f)
{
    *f = (struct fixture){.timers = timers_new()};
    f->watchdog = watchdog_new(
        &(struct watchdog_config){.timers = f->timers, .expired = expired, .opaque = f});
    assert_non_null(f->watchdog);
}

static void stop(struct fixture *f)
{
    timers_free(f->timers);
    watchdog_free(f->watchdog);
}

static uint32_t get(struct fixture *f, unsigned offset)
{
    return (uint32_t)watchdog_ops.read(f->watchdog, offset, 4);
}

static void set(struct fixture *f, unsigned offset, uint32_t value)
{
    watchdog_ops.write(f->watchdog, offset, 4, value);
}

static void it_expires_once_where_nobody_comes_by(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    clock_run(f.timers, 100000 * MSEC); /* it does not run by itself */
    assert_int_equal(f.expired, 0);
    set(&f, WATCHDOG_PERIOD, 20);
    set(&f, WATCHDOG_RUNNING, 1);
    assert_int_equal(get(&f, WATCHDOG_COUNT), 20);
    clock_run(f.timers, 101500 * MSEC);
    assert_int_equal(get(&f, WATCHDOG_COUNT), 5);
    clock_run(f.timers, 101999 * MSEC);
    assert_int_equal(f.expired, 0);
    clock_run(f.timers, 102000 * MSEC);
    assert_int_equal(f.expired, 1);
    assert_int_equal(get(&f, WATCHDOG_RUNNING), 0);
    clock_run(f.timers, 200000 * MSEC);
    assert_int_equal(f.expired, 1);
    /* The system that comes after the reset can tell. */
    watchdog_reset(f.watchdog);
    assert_int_equal(get(&f, WATCHDOG_EXPIRED), 1);
    assert_int_equal(get(&f, WATCHDOG_PERIOD), WATCHDOG_PERIOD_RESET);
    set(&f, WATCHDOG_EXPIRED, 1);
    assert_int_equal(get(&f, WATCHDOG_EXPIRED), 0);
    stop(&f);
}

static void coming_by_stopping_and_resetting_hold_it_off(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    set(&f, WATCHDOG_PERIOD, 10);
    set(&f, WATCHDOG_RUNNING, 1);
    for (unsigned i = 1; i <= 10; i++) {
        clock_run(f.timers, i * 900 * MSEC);
        set(&f, WATCHDOG_COUNT, 0);
    }
    set(&f, WATCHDOG_PERIOD, 50); /* counts anew, too */
    clock_run(f.timers, 13999 * MSEC);
    assert_int_equal(f.expired, 0);
    set(&f, WATCHDOG_RUNNING, 0);
    clock_run(f.timers, 100000 * MSEC);
    set(&f, WATCHDOG_RUNNING, 1);
    watchdog_reset(f.watchdog);
    clock_run(f.timers, 200000 * MSEC);
    assert_int_equal(f.expired, 0);
    stop(&f);
}

static void values_are_kept_in_bounds(void **state)
{
    (void)state;
    struct fixture f;
    start(&f);
    set(&f, WATCHDOG_PERIOD, 0);
    assert_int_equal(get(&f, WATCHDOG_PERIOD), WATCHDOG_PERIOD_MIN);
    set(&f, WATCHDOG_PERIOD, UINT32_MAX);
    assert_int_equal(get(&f, WATCHDOG_PERIOD), WATCHDOG_PERIOD_MAX);
    watchdog_ops.write(f.watchdog, WATCHDOG_RUNNING, 1, 1);
    watchdog_ops.write(f.watchdog, WATCHDOG_RUNNING + 1, 4, 1);
    assert_int_equal(get(&f, WATCHDOG_RUNNING), 0);
    assert_int_equal(watchdog_ops.read(f.watchdog, WATCHDOG_PERIOD, 2), 0);
    assert_int_equal(get(&f, WATCHDOG_PERIOD + 2), 0);
    stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_expires_once_where_nobody_comes_by),
        cmocka_unit_test(coming_by_stopping_and_resetting_hold_it_off),
        cmocka_unit_test(values_are_kept_in_bounds),
    };
    return cmocka_run_group_tests_name("watchdog", tests, NULL, NULL);
}
