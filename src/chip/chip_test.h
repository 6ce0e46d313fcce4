/*
 * chip_test.h: a clock that a test moves, for the unit tests of this folder.
 *
 * The clock stands still except inside clock_run(), so counters read exact values; clock_run()
 * lets everything due up to a moment happen, in order, and stands still there again.
 */
#pragma once

#include "base/timer.h"
#include "bus/bus.h"

#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define USEC 1000ull
#define MSEC 1000000ull

struct clock_stop {
    struct timer timer;
    sem_t done;
};

static void clock_stop_due(void *opaque)
{
    struct clock_stop *stop = opaque;
    timers_pause(stop->timer.timers);
    sem_post(&stop->done);
}

static inline struct timers *clock_new(void)
{
    struct timers *timers = timers_new();
    assert_non_null(timers);
    timers_pause(timers);
    timers_set_now(timers, 0);
    return timers;
}

/* The clock jumps to `until`; what was due before sees that time. */
static inline void clock_run(struct timers *timers, uint64_t until)
{
    struct clock_stop stop;
    sem_init(&stop.done, 0, 0);
    timer_init(&stop.timer, timers, clock_stop_due, &stop);
    timers_set_now(timers, until + 1);
    timer_arm(&stop.timer, until + 1);
    timers_resume(timers);
    sem_wait(&stop.done);
    timers_set_now(timers, until);
    sem_destroy(&stop.done);
}

/* An interrupt line that remembers. */
struct line {
    bool level;
    int rises;
};

static void line_set(void *opaque, unsigned number, bool level)
{
    struct line *line = opaque;
    if (level && !line->level)
        line->rises++;
    line->level = level;
}

static inline uint8_t in8(const struct bus_ops *ops, void *device, uint64_t offset)
{
    return (uint8_t)ops->read(device, offset, 1);
}

static inline void out8(const struct bus_ops *ops, void *device, uint64_t offset, uint8_t value)
{
    ops->write(device, offset, 1, value);
}
