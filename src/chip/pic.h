/*
 * pic.h: the two 8259A interrupt controllers of a PC (Intel 231468-003; ELCR as in the PIIX).
 *
 * One object is the cascaded pair: IRQ 0..7 on the master, 8..15 on the slave, whose output is the
 * master's IRQ 2. Devices raise inputs with pic_line(), an irq_line function. The INT output goes
 * to `config.output`, which the board wires to LINT0 of vCPU 0 (apic_lint0() of apic.h); whoever
 * runs the vCPU then asks pic_poll() and acknowledges with pic_accept().
 *
 * An edge-triggered request stays latched until it is acknowledged, even if its line falls first.
 *
 * Threads: all functions from any thread; registers, lines and accept take the chip's own mutex,
 * pic_poll() takes none. `output` is set with the mutex held, and only when its level changes.
 *
 * Errors: pic_new() is NULL without memory.
 *
 *     pic = pic_new(&(struct pic_config){.output = {apic_lint0, apic, 0}});
 *     bus_claim(bus, BUS_PORT, PIC_MASTER_PORT, 2, &pic_master_ops, pic, err);
 *     bus_claim(bus, BUS_PORT, PIC_SLAVE_PORT, 2, &pic_slave_ops, pic, err);
 *     bus_claim(bus, BUS_PORT, PIC_ELCR_PORT, 2, &pic_elcr_ops, pic, err);
 *     struct irq_line keyboard = {pic_line, pic, 1};
 */
#pragma once

#include "bus/bus.h"

enum { PIC_MASTER_PORT = 0x20, PIC_SLAVE_PORT = 0xa0, PIC_ELCR_PORT = 0x4d0, PIC_LINES = 16 };

struct pic;

struct pic_config {
    struct irq_line output; /* INT of the master */
};

struct pic *pic_new(const struct pic_config *config);
void pic_reset(void *pic); /* all inputs' levels are kept: they belong to the devices */
void pic_free(void *pic);

extern const struct bus_ops pic_master_ops, pic_slave_ops, pic_elcr_ops; /* two ports each */
extern const struct device_ops pic_device;

/* Input `irq` (0..15; 2 is the cascade and ignored) has this level. */
void pic_line(void *pic, unsigned irq, bool level);

/* The vector that pic_accept() would return now, or -1 while INT is low. Lock-free. */
int pic_poll(void *pic);
/* The INTA cycle: acknowledges and returns the vector. A request that went away since INT was seen
 * is answered with IRQ 7 (or 15) and no in-service bit, as the chip does. */
int pic_accept(void *pic);
