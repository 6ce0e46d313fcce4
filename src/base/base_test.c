#include "base/bytes.h"
#include "base/descriptors.h"
#include "base/err.h"
#include "base/own.h"
#include "base/timer.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/wait.h>
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

static void without_its_thread_nothing_fires(void **state)
{
    (void)state;
    struct timers *timers = timers_new_paused();
    struct fired fired = {.timers = timers};
    struct timer timer;
    timer_init(&timer, timers, note_fired, &fired);
    assert_int_equal(timers_now(timers), 0);
    timer_arm(&timer, 1000000);
    timers_resume(timers);
    nap(20);
    assert_true(timers_now(timers) >= 20000000);
    assert_int_equal(fired.count, 0);
    assert_int_equal(timers_begin(timers), 0);
    assert_int_equal(timers_begin(timers), 0); /* it has begun */
    wait_for(&fired, 1);
    timers_free(timers);
    timers_free(timers_new_paused());
}

/* The thread sleeps until the first time it was told, and sees then that there is a later one; and
 * an earlier one wakes it. */
static void a_timer_is_put_off_and_pulled_forward(void **state)
{
    (void)state;
    struct timers *timers = timers_new();
    struct fired fired = {.timers = timers};
    struct timer timer;
    timer_init(&timer, timers, note_fired, &fired);
    uint64_t now = timers_now(timers);
    timer_arm(&timer, now + 20000000);
    nap(5);
    timer_arm(&timer, now + 80000000);
    nap(40);
    assert_int_equal(fired.count, 0);
    wait_for(&fired, 1);
    assert_true(timers_now(timers) >= now + 80000000);
    timer_arm(&timer, timers_now(timers) + UINT64_C(3600) * NSEC_PER_SEC);
    nap(5);
    timer_arm(&timer, timers_now(timers) + 1000000);
    wait_for(&fired, 2);
    assert_int_equal(fired.count, 2);
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

/* ---- timers_settle() and timers_set_now(), with the timers' own thread ---- */

struct slow {
    _Atomic bool begun, go, ended;
    _Atomic int count;
};

static void be_slow(void *opaque)
{
    struct slow *slow = opaque;
    slow->begun = true;
    for (int i = 0; i < 5000 && !slow->go; i++)
        nap(1);
    slow->ended = true;
    slow->count++;
}

static void *let_go(void *opaque)
{
    struct slow *slow = opaque;
    nap(30);
    slow->go = true;
    return NULL;
}

static void settling_waits_for_a_callback_under_way(void **state)
{
    (void)state;
    struct timers *timers = timers_new();
    struct slow slow = {0};
    struct timer timer;
    pthread_t thread;
    timer_init(&timer, timers, be_slow, &slow);
    timer_arm(&timer, 0);
    for (int i = 0; i < 2000 && !slow.begun; i++)
        nap(1);
    assert_true(slow.begun);
    timers_pause(timers);
    assert_int_equal(pthread_create(&thread, NULL, let_go, &slow), 0);
    timers_settle(timers);
    assert_true(slow.ended);
    pthread_join(thread, NULL);
    timers_free(timers);
}

/* Whether the thread came to a timer before the clock stopped or not, it has run once. */
static void settling_runs_what_was_due(void **state)
{
    (void)state;
    for (int i = 0; i < 200; i++) {
        struct timers *timers = timers_new();
        struct fired due = {.timers = timers}, later = {.timers = timers};
        struct timer a, b;
        timer_init(&a, timers, note_fired, &due);
        timer_init(&b, timers, note_fired, &later);
        timer_arm(&a, timers_now(timers) + 50000);
        timer_arm(&b, timers_now(timers) + UINT64_C(3600) * NSEC_PER_SEC);
        while (timers_now(timers) < a.at) {
        }
        timers_pause(timers);
        timers_settle(timers);
        assert_int_equal(due.count, 1);
        assert_int_equal(due.at > timers_now(timers), 0);
        nap(0);
        assert_int_equal(due.count, 1);
        assert_int_equal(later.count, 0);
        assert_true(timer_armed(&b));
        timers_free(timers);
    }
}

struct again {
    struct timer timer;
    uint64_t step;
    int left, count;
};

static void arm_again(void *opaque)
{
    struct again *again = opaque;
    again->count++;
    if (--again->left > 0)
        timer_arm(&again->timer, again->timer.at + again->step);
}

/* A periodic device that is late catches up, and stops where the clock has. */
static void settling_runs_what_callbacks_arm(void **state)
{
    (void)state;
    struct timers *timers = timers_new();
    struct again again = {.step = 1000, .left = 1000};
    timers_pause(timers);
    timers_set_now(timers, 10500);
    timer_init(&again.timer, timers, arm_again, &again);
    timer_arm(&again.timer, 1000);
    timers_settle(timers);
    assert_int_equal(again.count, 10);
    assert_int_equal(again.timer.at, 11000);
    assert_true(timer_armed(&again.timer));
    timers_settle(timers);
    assert_int_equal(again.count, 10);
    timers_free(timers);
}

static void a_running_clock_is_left_alone_by_settling(void **state)
{
    (void)state;
    struct timers *timers = timers_new();
    struct fired later = {.timers = timers};
    struct timer timer;
    timer_init(&timer, timers, note_fired, &later);
    timer_arm(&timer, timers_now(timers) + 20000000);
    timers_settle(timers);
    assert_int_equal(later.count, 0);
    wait_for(&later, 1);
    assert_int_equal(later.count, 1);
    assert_true(later.at >= timer.at);
    timers_free(timers);
}

/* A guest may have run for longer than this host is up, or have just begun. */
static void a_clock_that_was_set_goes_on_from_there(void **state)
{
    (void)state;
    const uint64_t years = UINT64_C(30) * 365 * 86400 * NSEC_PER_SEC, times[] = {0, 1000, years};
    for (size_t i = 0; i < ARRAY_LEN(times); i++) {
        struct timers *timers = timers_new();
        struct fired fired = {.timers = timers};
        struct timer timer;
        timer_init(&timer, timers, note_fired, &fired);
        timers_pause(timers);
        timers_set_now(timers, times[i]);
        assert_true(timers_now(timers) == times[i]);
        timer_arm(&timer, times[i] + 10000000);
        timers_resume(timers);
        wait_for(&fired, 1);
        assert_int_equal(fired.count, 1);
        assert_true(fired.at >= times[i] + 10000000);
        assert_true(timers_now(timers) < times[i] + UINT64_C(10) * NSEC_PER_SEC);
        timers_free(timers);
    }
}

static void a_descriptor_is_a_number(void **state)
{
    (void)state;
    int fd = -2;
    const char *const none[] = {"", "-1", " 3", "3 ", "+3", "0x3", "2147483648", "stdin"};
    for (size_t i = 0; i < ARRAY_LEN(none); i++)
        assert_false(descriptor_parse(none[i], &fd));
    assert_int_equal(fd, -2);
    assert_true(descriptor_parse("2147483647", &fd) && fd == INT_MAX);
    assert_true(descriptor_parse("0", &fd) && fd == 0);
}

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static void other_descriptors_are_closed(void **state)
{
    (void)state;
    pid_t pid = fork();
    if (pid == 0) {
        const int keep[] = {17, -1, 0, 12, 17, 3};
        for (int fd = 3; fd < 20; fd++)
            dup2(STDERR_FILENO, fd);
        bool fine = descriptors_close_others(keep, ARRAY_LEN(keep)) == 0;
        for (int fd = 0; fd < 20; fd++)
            fine &= is_open(fd) == (fd <= 3 || fd == 12 || fd == 17);
        fine &= descriptors_close_others(NULL, 0) == 0 && is_open(2) && !is_open(12);
        _exit(fine ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_descriptor_is_a_number),
        cmocka_unit_test(other_descriptors_are_closed),
        cmocka_unit_test(err_chains_phrases),
        cmocka_unit_test(err_cuts_what_is_too_long),
        cmocka_unit_test(ranges_do_not_wrap),
        cmocka_unit_test(cleanup_closes_unless_taken),
        cmocka_unit_test(timers_fire_once_in_order),
        cmocka_unit_test(a_deadline_already_past_fires_at_once),
        cmocka_unit_test(a_paused_clock_stands_still),
        cmocka_unit_test(without_its_thread_nothing_fires),
        cmocka_unit_test(a_timer_is_put_off_and_pulled_forward),
        cmocka_unit_test(a_driven_clock_fires_when_told),
        cmocka_unit_test(settling_waits_for_a_callback_under_way),
        cmocka_unit_test(settling_runs_what_was_due),
        cmocka_unit_test(settling_runs_what_callbacks_arm),
        cmocka_unit_test(a_running_clock_is_left_alone_by_settling),
        cmocka_unit_test(a_clock_that_was_set_goes_on_from_there),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
