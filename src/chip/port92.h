/*
 * port92.h: system control port A of the PS/2: fast A20 (bit 1) and fast reset (bit 0, on its
 * rising edge).
 *
 * Threads: any; own mutex. `reset` and `a20` are called without it, on the vCPU's thread. The
 * machine's A20 is the OR of this gate and the keyboard controller's; both are open after reset.
 * Errors: port92_new() is NULL without memory.
 */
#pragma once

#include "bus/bus.h"

enum { PORT92_PORT = 0x92 };

struct port92;

struct port92_config {
    void (*reset)(void *opaque);          /* NULL = ignored */
    void (*a20)(void *opaque, bool open); /* NULL = ignored */
    void *opaque;
};

struct port92 *port92_new(const struct port92_config *config);
void port92_reset(void *port92);
void port92_free(void *port92);

extern const struct bus_ops port92_ops; /* one port */
extern const struct device_ops port92_device;
