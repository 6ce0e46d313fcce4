/*
 * bus.h: how a guest's access finds its device, and how a device reaches the interrupt controller.
 *
 * Two address spaces, ports (16 bits) and MMIO (64 bits), each a sorted list of claims. A claim is
 * a range and a table of functions; an access must lie wholly inside one. Unclaimed reads are all
 * ones, unclaimed writes are dropped, as on a PC.
 *
 * Threads: accesses may come from all vCPU threads at once. The list is guarded by a read-write
 * lock that is held for reading during a device's function; therefore a device must not claim,
 * release or access the bus from inside its own access, except through pci.h, which moves BARs
 * after the access that asked for it has let go of the lock (bus_ops.written). bus_release() waits
 * for accesses under way, so after it nobody is inside the device through that claim. Each device
 * guards itself with its own mutex. Interrupt lines and messages may be raised from any thread,
 * with the device's mutex held; what they call never calls back into the device.
 *
 * Errors: -EEXIST where a claim overlaps another, -EINVAL for an empty range or one that leaves
 * the space, -ENOMEM.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct bus;
struct record;

struct bus_ops {
    const char *name;
    /* `offset` counts from the start of the claim; `size` is 1, 2, 4 (or 8 on MMIO). */
    uint64_t (*read)(void *opaque, uint64_t offset, unsigned size);
    void (*write)(void *opaque, uint64_t offset, unsigned size, uint64_t value);
    /* Optional: runs on the writer's thread after each write() here, once the lock is let go of and
     * before the guest goes on. The one place where an access may claim and release (pci.c). */
    void (*written)(void *opaque);
};

enum bus_space { BUS_PORT, BUS_MMIO };

struct bus *bus_new(void);
void bus_free(struct bus *bus);

/* Claims [start, start + size). The claim is named by its start when it is released. */
int bus_claim(struct bus *bus, enum bus_space space, uint64_t start, uint64_t size,
              const struct bus_ops *ops, void *opaque, struct err *err);
void bus_release(struct bus *bus, enum bus_space space, uint64_t start);

uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t address, unsigned size);
void bus_write(struct bus *bus, enum bus_space space, uint64_t address, unsigned size,
               uint64_t value);

/* One interrupt input, as function + opaque + number: what a device holds of the controller. */
struct irq_line {
    void (*set)(void *opaque, unsigned number, bool level);
    void *opaque;
    unsigned number;
};

static inline void irq_set(const struct irq_line *line, bool level)
{
    if (line->set)
        line->set(line->opaque, line->number, level);
}

/* Where message-signalled interrupts go: address and data as the guest wrote them (SDM 11.11). */
struct msi_target {
    void (*send)(void *opaque, uint64_t address, uint32_t data);
    void *opaque;
};

/* One device of a board: the row that reset, snapshots and free go through. */
struct device_ops {
    const char *name;
    void (*reset)(void *opaque);
    void (*free)(void *opaque);
    /* Optional: all that the guest could tell the device by, saved or loaded (base/record.h), with
     * the machine's clock standing. Loading sets timers and raises the interrupt lines that are up;
     * on a record that fails the device may be anything, and is freed. */
    void (*state)(void *opaque, struct record *record);
    unsigned state_version; /* of what state() saves */
};
