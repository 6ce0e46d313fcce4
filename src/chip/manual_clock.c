/* timer.h for unit tests: see chip_test.h. */
#include "chip/chip_test.h"

#include <assert.h>
#include <stdlib.h>

enum { TIMERS_MAX = 64, CALLBACKS_MAX = 1000 };

struct timers {
    uint64_t now;
    struct timer *armed[TIMERS_MAX];
};

struct timers *timers_new(void)
{
    return calloc(1, sizeof(struct timers));
}

void timers_free(struct timers *timers)
{
    free(timers);
}

uint64_t timers_now(struct timers *timers)
{
    return timers->now;
}

void timers_set_now(struct timers *timers, uint64_t now)
{
    timers->now = now;
}

void timer_init(struct timer *timer, struct timers *timers, void (*due)(void *opaque), void *opaque)
{
    *timer = (struct timer){.timers = timers, .due = due, .opaque = opaque, .heap_slot = SIZE_MAX};
}

void timer_arm(struct timer *timer, uint64_t at)
{
    struct timers *timers = timer->timers;
    timer->at = at;
    for (size_t slot = 0; timer->heap_slot == SIZE_MAX && slot < TIMERS_MAX; slot++) {
        if (!timers->armed[slot]) {
            timers->armed[slot] = timer;
            timer->heap_slot = slot;
        }
    }
    assert(timer->heap_slot != SIZE_MAX);
}

void timer_cancel(struct timer *timer)
{
    if (timer->heap_slot != SIZE_MAX)
        timer->timers->armed[timer->heap_slot] = NULL;
    timer->heap_slot = SIZE_MAX;
}

static struct timer *first_due(struct timers *timers)
{
    struct timer *first = NULL;
    for (size_t slot = 0; slot < TIMERS_MAX; slot++) {
        struct timer *timer = timers->armed[slot];
        if (timer && timer->at <= timers->now && (!first || timer->at < first->at))
            first = timer;
    }
    return first;
}

void clock_run(struct timers *timers, uint64_t until)
{
    timers->now = until;
    int callbacks = 0;
    for (struct timer *timer; (timer = first_due(timers));) {
        timer_cancel(timer);
        timer->due(timer->opaque);
        /* A device that always is due again would hang the host's timers' thread. */
        assert_true(++callbacks < CALLBACKS_MAX);
    }
}
