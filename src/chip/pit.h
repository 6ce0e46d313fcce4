/*
 * pit.h: the 8254 timer (Intel 231164-005) with the PC's port 0x61 around it.
 *
 * Channel 0 drives `config.irq` (IRQ 0); channel 1 counts and is wired to nothing; channel 2 is
 * gated by port 0x61 bit 0 and its output is read back in bit 5, which is how kernels calibrate
 * the TSC. Bit 4 toggles every 15.085 us like the refresh request once did.
 *
 * Counting follows the guest's clock exactly, in ticks of 1.193182 MHz since its start, so periods
 * do not drift. Interrupts of one channel are never queued: after a delay of several periods one
 * interrupt comes and the next is due on the old grid; periods shorter than PIT_PERIOD_MIN_NS
 * interrupt only that often. In the periodic modes the irq line makes its low pulse and its rising
 * edge together, at the start of each period.
 *
 * Threads: any; own mutex, held while `irq` is set. Free it after timers_free().
 * Errors: pit_new() is NULL without memory.
 *
 *     pit = pit_new(&(struct pit_config){.timers = timers, .irq = {board_irq, board, 0}});
 *     bus_claim(bus, BUS_PORT, PIT_PORT, PIT_PORTS, &pit_ops, pit, err);
 *     bus_claim(bus, BUS_PORT, PIT_SPEAKER_PORT, 1, &pit_speaker_ops, pit, err);
 */
#pragma once

#include "base/timer.h"
#include "bus/bus.h"
#include "chip/state/state.h"

enum {
    PIT_PORT = 0x40,
    PIT_PORTS = 4,
    PIT_SPEAKER_PORT = 0x61,
    PIT_PERIOD_MIN_NS = 50000,
};

struct pit;

struct pit_config {
    struct timers *timers; /* borrowed */
    struct irq_line irq;
};

struct pit *pit_new(const struct pit_config *config);
void pit_reset(void *pit);
void pit_free(void *pit);

extern const struct bus_ops pit_ops, pit_speaker_ops;
extern const struct device_ops pit_device;
