/*
 * serial.h: a 16550A UART (National PC16550D) between a guest and two byte streams of the host.
 *
 * Out: what the guest transmits is gathered and handed to `config.output` at each newline, when
 * SERIAL_BATCH bytes have come together, or SERIAL_BATCH_NS after the first of them; so a kernel
 * log costs one call per line and a prompt still appears at once. serial_flush() hands over the
 * rest: call it before the process ends. The transmitter is always ready again at once.
 *
 * In: serial_receive() takes as many bytes as the receive FIFO has room for; the caller keeps the
 * others, and `config.room` tells it when to offer them again. Nothing is ever dropped for want of
 * room, so no overrun can happen except in the guest's own loopback. As with a modem that honours
 * its handshake, nothing is taken while the guest asserts neither RTS nor DTR: bytes typed
 * before the guest has opened its port wait instead of falling to the FIFO reset at its start.
 *
 * Line speed is accepted, and times only the receive time-out. DCD, DSR and CTS are asserted.
 *
 * Threads: any; own mutex. `output` and `irq` are called with it held, on the writer's thread or
 * the timers'; `output` must not block (hand the bytes to somebody) and must not call back.
 * `room` is called without it, on a vCPU's thread, and may call serial_receive(). Free the object
 * after timers_free(). Errors: serial_new() is NULL without memory.
 *
 *     com1 = serial_new(&(struct serial_config){.timers = timers, .irq = {board_irq, board, 4},
 *                                               .output = console_write, .room = console_read_more,
 *                                               .opaque = console});
 *     bus_claim(bus, BUS_PORT, 0x3f8, SERIAL_PORTS, &serial_ops, com1, err);
 *     taken = serial_receive(com1, bytes, n);      // keep bytes + taken for the next room()
 */
#pragma once

#include "base/timer.h"
#include "bus/bus.h"

#include <stddef.h>

enum {
    SERIAL_PORTS = 8,
    SERIAL_FIFO = 16,
    SERIAL_BATCH = 256,
    SERIAL_BATCH_NS = 2000000,
};

struct serial;

struct serial_config {
    struct timers *timers; /* borrowed */
    struct irq_line irq;
    void (*output)(void *opaque, const uint8_t *bytes, size_t count); /* NULL = discard */
    /* serial_receive() took less than it was offered, and now there is room. NULL = polled. */
    void (*room)(void *opaque);
    void *opaque;
};

struct serial *serial_new(const struct serial_config *config);
void serial_reset(void *serial);
void serial_free(void *serial); /* flushes first */

extern const struct bus_ops serial_ops;
extern const struct device_ops serial_device;

/* Returns how many of `bytes` were taken, from the front: 0..count. */
size_t serial_receive(struct serial *serial, const uint8_t *bytes, size_t count);
/* The line breaks (the terminal's Ctrl-A b): a zero byte with the break indicator. False when the
 * FIFO is full or the guest is not listening. */
bool serial_break(struct serial *serial);
void serial_flush(struct serial *serial);
