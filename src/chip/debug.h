/*
 * debug.h: ports that exist for people and tests.
 *
 * - exit (0xf4 by habit): writing v calls `exit` with v; a test runner ends the process with
 *   debug_exit_status(v) = (v << 1) | 1, as QEMU's isa-debug-exit does. Reads are 0.
 * - POST (0x80): swallows codes and remembers the last; kernels write it for a short delay.
 * - console (0xe9, 0x402): each byte goes to `console`; reads return the port's magic 0xe9, by
 *   which a guest knows that somebody listens, or all ones without a `console`.
 *
 * Threads: any; callbacks run on the writer's thread with no lock held.
 * Errors: debug_new() is NULL without memory.
 *
 *     bus_claim(bus, BUS_PORT, DEBUG_EXIT_PORT, 4, &debug_exit_ops, debug, err);
 *     bus_claim(bus, BUS_PORT, DEBUG_POST_PORT, 1, &debug_post_ops, debug, err);
 *     bus_claim(bus, BUS_PORT, DEBUG_CONSOLE_PORT, 1, &debug_console_ops, debug, err);
 */
#pragma once

#include "bus/bus.h"

#include <stddef.h>

enum { DEBUG_EXIT_PORT = 0xf4, DEBUG_POST_PORT = 0x80, DEBUG_CONSOLE_PORT = 0xe9 };

struct debug;

struct debug_config {
    void (*exit)(void *opaque, uint32_t value);                        /* NULL = ignored */
    void (*console)(void *opaque, const uint8_t *bytes, size_t count); /* NULL = nobody there */
    void *opaque;
};

struct debug *debug_new(const struct debug_config *config);
void debug_reset(void *debug);
void debug_free(void *debug);

extern const struct bus_ops debug_exit_ops, debug_post_ops, debug_console_ops;
extern const struct device_ops debug_device;

static inline int debug_exit_status(uint32_t value)
{
    return (int)((value << 1 | 1) & 0xff);
}
