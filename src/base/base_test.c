#include "base/bytes.h"
#include "base/err.h"
#include "base/own.h"
#include "base/timer.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

static int disk_open(struct err *err)
{
    return err_errno(err, ENOENT, "disk '%s'", "/x.qcow2");
}

static void err_chains_phrases(void **state)
{
    (void)state;
    struct err err = {0};
    int r = disk_open(&err);
    r = err_prefix(&err, r, "cannot start guest '%s'", "web");
    assert_int_equal(r, -ENOENT);
    assert_string_equal(err.text,
                        "cannot start guest 'web': disk '/x.qcow2': No such file or directory");
    assert_int_equal(err_set(NULL, -EINVAL, "nobody reads this"), -EINVAL);
}

static void err_cuts_what_is_too_long(void **state)
{
    (void)state;
    struct err err = {0};
    err_set(&err, -EINVAL, "%2000d", 7);
    assert_int_equal(strlen(err.text), ERR_TEXT_MAX - 1);
    err_prefix(&err, -EINVAL, "%s", "front");
    assert_int_equal(strlen(err.text), ERR_TEXT_MAX - 1);
    assert_int_equal(strncmp(err.text, "front: ", 7), 0);
}

static void ranges_do_not_wrap(void **state)
{
    (void)state;
    assert_true(range_fits(0, 10, 10));
    assert_true(range_fits(10, 0, 10));
    assert_false(range_fits(1, 10, 10));
    assert_false(range_fits(UINT64_MAX, 2, 10));
    assert_false(range_fits(5, UINT64_MAX, 10));
}

static void cleanup_closes_unless_taken(void **state)
{
    (void)state;
    int kept, closed;
    {
        _cleanup_fd_ int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        closed = fd;
        _cleanup_fd_ int other = open("/dev/null", O_RDONLY | O_CLOEXEC);
        kept = take_fd(&other);
    }
    assert_int_equal(fcntl(closed, F_GETFD), -1);
    assert_true(fcntl(kept, F_GETFD) >= 0);
    close(kept);
}

struct fired {
    _Atomic int count;
    _Atomic uint64_t at;
    struct timers *timers;
};

static void note_fired(void *opaque)
{
    struct fired *fired = opaque;
    fired->at = timers_now(fired->timers);
    fired->count++;
}

static void nap(long ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

static void wait_for(struct fired *fired, int count)
{
    for (int i = 0; i < 2000 && fired->count < count; i++)
        nap(1);
}

static void timers_fire_once_in_order(void **state)
{
    (void)state;
    struct timers *timers = timers_new();
    struct fired late = {.timers = timers}, early = {.timers = timers}, never = {.timers = timers};
    struct timer a, b, c;
    timer_init(&a, timers, note_fired, &late);
    timer_init(&b, timers, note_fired, &early);
    timer_init(&c, timers, note_fired, &never);
    uint64_t now = timers_now(timers);
    timer_arm(&a, now + 30000000);
    timer_arm(&c, now + 20000000);
    timer_arm(&b, now + 10000000);
    assert_true(timer_armed(&a));
    timer_cancel(&c);
    wait_for(&late, 1);
    nap(5);
    assert_int_equal(early.count, 1);
    assert_int_equal(late.count, 1);
    assert_int_equal(never.count, 0);
    assert_true(early.at >= now + 10000000);
    assert_true(late.at >= now + 30000000 && late.at > early.at);
    assert_false(timer_armed(&a));
    timers_free(timers);
}

static void a_deadline_already_past_fires_at_once(void **state)
{
    (void)state;
    struct timers *timers = timers_new();
    struct fired fired = {.timers = timers};
    struct timer timer;
    timer_init(&timer, timers, note_fired, &fired);
    timer_arm(&timer, 0);
    wait_for(&fired, 1);
    assert_int_equal(fired.count, 1);
    timers_free(timers);
}

static void a_paused_clock_stands_still(void **state)
{
    (void)state;
    struct timers *timers = timers_new();
    struct fired fired = {.timers = timers};
    struct timer timer;
    timer_init(&timer, timers, note_fired, &fired);
    timers_pause(timers);
    uint64_t before = timers_now(timers);
    timer_arm(&timer, before + 1000000);
    nap(20);
    assert_int_equal(timers_now(timers), before);
    assert_int_equal(fired.count, 0);
    timers_resume(timers);
    wait_for(&fired, 1);
    assert_int_equal(fired.count, 1);
    timers_free(timers);
}

static uint64_t hand(void *opaque)
{
    return *(uint64_t *)opaque;
}

static void a_driven_clock_fires_when_told(void **state)
{
    (void)state;
    uint64_t now = 100;
    struct timers *timers = timers_new_driven(hand, &now);
    struct fired early = {.timers = timers}, late = {.timers = timers};
    struct timer a, b;
    timer_init(&a, timers, note_fired, &late);
    timer_init(&b, timers, note_fired, &early);
    assert_int_equal(timers_next(timers), UINT64_MAX);
    timer_arm(&a, 300);
    timer_arm(&b, 200);
    assert_int_equal(timers_next(timers), 200);
    timers_pause(timers);
    timers_resume(timers);
    assert_int_equal(timers_now(timers), 100);
    timers_fire(timers, 199);
    assert_int_equal(early.count, 0);
    now = 250;
    timers_fire(timers, now);
    assert_int_equal(early.count, 1);
    assert_int_equal(early.at, 250);
    assert_int_equal(late.count, 0);
    assert_int_equal(timers_next(timers), 300);
    timers_free(timers);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(err_chains_phrases),
        cmocka_unit_test(err_cuts_what_is_too_long),
        cmocka_unit_test(ranges_do_not_wrap),
        cmocka_unit_test(cleanup_closes_unless_taken),
        cmocka_unit_test(timers_fire_once_in_order),
        cmocka_unit_test(a_deadline_already_past_fires_at_once),
        cmocka_unit_test(a_paused_clock_stands_still),
        cmocka_unit_test(a_driven_clock_fires_when_told),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
