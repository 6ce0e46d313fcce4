/*
 * i8042.h: the keyboard controller of a PC, with no keyboard and no mouse on it.
 *
 * What is left of its use: the reset pulse (command 0xfe), the A20 gate, and being probed. Bytes
 * sent to the absent keyboard are answered as the controller does when a device stays silent: 0xfe
 * with the time-out bit, at once, so that probing costs no waiting. The second port tests as
 * broken, so that no driver takes it. A machine that does not want the probe at all clears bit 1
 * (8042 present) of the FADT's IAPC_BOOT_ARCH; a legacy guest still finds the chip.
 *
 * Threads: any; own mutex, held while `keyboard_irq` is set. `reset` and `a20` are called without
 * it, on the vCPU's thread. Errors: i8042_new() is NULL without memory.
 *
 *     bus_claim(bus, BUS_PORT, I8042_DATA_PORT, 1, &i8042_data_ops, i8042, err);
 *     bus_claim(bus, BUS_PORT, I8042_COMMAND_PORT, 1, &i8042_command_ops, i8042, err);
 */
#pragma once

#include "bus/bus.h"

enum { I8042_DATA_PORT = 0x60, I8042_COMMAND_PORT = 0x64 };

struct i8042;

struct i8042_config {
    struct irq_line keyboard_irq;         /* IRQ 1 */
    void (*reset)(void *opaque);          /* NULL = ignored */
    void (*a20)(void *opaque, bool open); /* NULL = ignored; open after reset */
    void *opaque;
};

struct i8042 *i8042_new(const struct i8042_config *config);
void i8042_reset(void *i8042);
void i8042_free(void *i8042);

extern const struct bus_ops i8042_data_ops, i8042_command_ops; /* one port each */
extern const struct device_ops i8042_device;
