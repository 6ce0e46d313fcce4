/*
 * test_driver.h: the guest's side of virtio, for unit tests and fuzzers. Not part of any program.
 *
 * A `struct driver_ring` is the driver's half of a split queue, laid out in plain guest memory at
 * `base` (three pages or more, by size). A `struct driver` finds a virtio device on a PCI bus
 * through configuration space alone, as a guest would, and keeps book of its interrupts.
 */
#pragma once

#include "bus/pci.h"
#include "mem/mem.h"
#include "virtio/device.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* For what a device's own thread does. */
enum { PATIENCE_MS = 20000, NAPS_A_MS = 5 };

static inline void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 1000000 / NAPS_A_MS}, NULL);
}

/* True as soon as the condition is, false where it does not become so. */
#define eventually(condition)                                                                      \
    ({                                                                                             \
        int tries_ = PATIENCE_MS * NAPS_A_MS;                                                      \
        while (!(condition) && --tries_ > 0)                                                       \
            nap();                                                                                 \
        tries_ > 0;                                                                                \
    })

struct driver_ring {
    struct mem *mem;
    uint16_t size;
    uint64_t descriptors, available, used;
    uint16_t available_index, used_index; /* free-running */
    uint16_t free[QUEUE_SIZE_MAX];        /* a stack of free descriptors */
    unsigned free_count;
    uint16_t chain_length[QUEUE_SIZE_MAX]; /* by head */
    uint16_t chain_next[QUEUE_SIZE_MAX];
};

struct driver_buffer {
    uint64_t address;
    uint32_t length;
    bool write;
};

/* Bytes that a ring of `size` takes. */
uint64_t driver_ring_bytes(uint16_t size);
void driver_ring_init(struct driver_ring *ring, struct mem *mem, uint64_t base, uint16_t size);

void driver_ring_descriptor(struct driver_ring *ring, unsigned index, uint64_t address,
                            uint32_t length, uint16_t flags, uint16_t next);
/* Makes `head` available, whatever it is. */
void driver_ring_offer(struct driver_ring *ring, uint16_t head);
/* Adds a chain and makes it available; its head, or -1 with too few descriptors free. */
int driver_ring_add(struct driver_ring *ring, const struct driver_buffer *buffers, unsigned count);
/* The next used element: true, its head and length. Its descriptors are free again. */
bool driver_ring_take(struct driver_ring *ring, uint32_t *ret_head, uint32_t *ret_length);
/* Interrupt me when used passes `index` (EVENT_IDX). */
void driver_ring_used_event(struct driver_ring *ring, uint16_t index);
uint16_t driver_ring_available_event(struct driver_ring *ring);
uint16_t driver_ring_used_flags(struct driver_ring *ring);
void driver_ring_available_flags(struct driver_ring *ring, uint16_t flags);

/* A machine with nothing but memory, a PCI bus and a counter of interrupts. */
enum { DRIVER_ECAM = 0xb0000000, DRIVER_MEMORY = 64 << 20, DRIVER_MESSAGES = 64 };

struct driver_machine {
    struct mem *mem;
    struct bus *bus;
    struct pci_host *host;
    _Atomic int messages[DRIVER_MESSAGES]; /* by MSI-X data */
    _Atomic int line[PCI_LINES];           /* level */
};

void driver_machine_init(struct driver_machine *machine);
void driver_machine_place(struct driver_machine *machine); /* BARs, once the devices are made */
void driver_machine_fini(struct driver_machine *machine);

struct driver {
    struct driver_machine *machine;
    unsigned slot;
    uint64_t common, notify, isr, device; /* addresses; 0 = no such capability */
    uint32_t notify_stride;
    unsigned access; /* offset of the access capability */
    unsigned msix;   /* and of MSI-X */
    uint64_t msix_table;
    struct driver_ring rings[VIRTIO_QUEUES_MAX];
    uint64_t next_base; /* of the next ring */
};

uint32_t driver_config(struct driver *driver, unsigned offset, unsigned size);
void driver_config_set(struct driver *driver, unsigned offset, unsigned size, uint32_t value);
uint64_t driver_read(struct driver *driver, uint64_t address, unsigned size);
void driver_write(struct driver *driver, uint64_t address, unsigned size, uint64_t value);

/* Finds the capabilities; turns memory and bus mastering on. */
void driver_init(struct driver *driver, struct driver_machine *machine, unsigned slot);
uint8_t driver_status(struct driver *driver);
void driver_set_status(struct driver *driver, uint8_t status);
uint64_t driver_offered(struct driver *driver);
/* Reset, ACKNOWLEDGE, DRIVER, features, FEATURES_OK. True where the device has kept that bit. */
bool driver_negotiate(struct driver *driver, uint64_t features);
/* Vector v sends message data v. Vector 0 is for configuration, q + 1 for queue q. */
void driver_msix_on(struct driver *driver, unsigned vectors);
/* False where the device does not say that the queue is enabled. */
bool driver_queue(struct driver *driver, unsigned queue, uint16_t size, bool msix);
void driver_live(struct driver *driver);
void driver_kick(struct driver *driver, unsigned queue);
