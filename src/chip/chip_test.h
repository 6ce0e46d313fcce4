/*
 * chip_test.h: what the unit tests of this folder share: a clock that a test moves, and a line that
 * remembers.
 *
 * The tests link manual_clock.c, which is timer.h without a thread and without the host's time:
 * the clock stands still except inside clock_run(), so counters read exact values on however busy
 * a machine.
 */
#pragma once

#include "base/timer.h"
#include "bus/bus.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define USEC 1000ull
#define MSEC 1000000ull

/* The clock jumps to `until`; then, on this thread, everything due by then happens in order. */
void clock_run(struct timers *timers, uint64_t until);

/* An interrupt line that remembers. */
struct line {
    bool level;
    int rises;
};

static inline void line_set(void *opaque, unsigned number, bool level)
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
