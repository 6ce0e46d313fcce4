/*
 * ioapic.h: the 82093AA I/O APIC (Intel 290566), version 0x11, as KVM's is, with 24 pins. The
 * EOI register of version 0x20 is there for guests that were told of it before.
 *
 * A pin's interrupt leaves as the message-signalled interrupt that says the same (SDM 11.11), so
 * the chip knows nothing of local APICs; `config.deliver` is apic_message() of apic.h. It returns
 * false when no local APIC took the message; a level-triggered pin then stays without remote IRR
 * and is tried again when the entry is next written or the line moves.
 *
 * The board wires pins: IRQ 0 arrives at pin 2 by the usual override, so it raises pin 2 for it.
 * Pin polarity bits are stored and otherwise ignored: a line of `true` means asserted.
 *
 * Threads: any; own mutex, held while `deliver` is called. ioapic_eoi() is called by the local
 * APICs with none of their locks held. Errors: ioapic_new() is NULL without memory.
 *
 *     ioapic = ioapic_new(&(struct ioapic_config){.deliver = apic_message, .opaque = apic});
 *     bus_claim(bus, BUS_MMIO, IOAPIC_ADDRESS, IOAPIC_SIZE, &ioapic_ops, ioapic, err);
 */
#pragma once

#include "bus/bus.h"
#include "chip/state/state.h"

enum { IOAPIC_SIZE = 0x1000 };
#define IOAPIC_ADDRESS 0xfec00000u

struct ioapic;

struct ioapic_config {
    bool (*deliver)(void *opaque, uint64_t address, uint32_t data);
    void *opaque;
    uint8_t id; /* 0..15 at reset; the MADT's I/O APIC ID */
};

struct ioapic *ioapic_new(const struct ioapic_config *config);
void ioapic_reset(void *ioapic);
void ioapic_free(void *ioapic);

extern const struct bus_ops ioapic_ops;
extern const struct device_ops ioapic_device;

/* irq_line function: pin 0..23. */
void ioapic_line(void *ioapic, unsigned pin, bool level);
/* A local APIC ended the level-triggered interrupt `vector`. */
void ioapic_eoi(void *ioapic, uint8_t vector);
