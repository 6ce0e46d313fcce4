/*
 * watchdog.h: a timer that expires unless the guest comes by.
 *
 * Four registers of 32 bits, described to the guest by an ACPI table (WDAT), so that no driver of
 * our own is needed:
 *   WATCHDOG_RUNNING    1 = it runs; writing 1 starts it from its full period, 0 stops it
 *   WATCHDOG_PERIOD     ticks of WATCHDOG_TICK_MS, within WATCHDOG_PERIOD_MIN and _MAX; writing it
 *                       starts the count anew
 *   WATCHDOG_COUNT      ticks left; writing anything starts the count anew ("ping")
 *   WATCHDOG_EXPIRED    1 = the last reset was its doing; writing anything clears it
 * Accesses of other sizes, and between registers, read as zero and are ignored.
 *
 * It does not run after a reset. When it expires it stops, and `expired` is called.
 *
 * Threads: any; own mutex. `expired` is called without it, on the timers' thread. Free after
 * timers_free(). Errors: watchdog_new() is NULL without memory.
 */
#pragma once

#include "base/timer.h"
#include "bus/bus.h"

enum {
    WATCHDOG_RUNNING = 0x0,
    WATCHDOG_PERIOD = 0x4,
    WATCHDOG_COUNT = 0x8,
    WATCHDOG_EXPIRED = 0xc,
    WATCHDOG_PORTS = 0x10,

    WATCHDOG_TICK_MS = 100,
    WATCHDOG_PERIOD_MIN = 2,
    WATCHDOG_PERIOD_MAX = 0xffff, /* 109 minutes */
    WATCHDOG_PERIOD_RESET = 300,
};

struct watchdog;

struct watchdog_config {
    struct timers *timers; /* borrowed */
    void (*expired)(void *opaque);
    void *opaque;
};

struct watchdog *watchdog_new(const struct watchdog_config *config);
void watchdog_reset(void *watchdog);
void watchdog_free(void *watchdog);

extern const struct bus_ops watchdog_ops; /* WATCHDOG_PORTS ports */
extern const struct device_ops watchdog_device;
