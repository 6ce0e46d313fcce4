/*
 * state_fixture.h: for tests of what virtio devices save and load: a machine's memory, bridge and
 * device go into records and from there into another machine, as board_snapshot.c does it.
 */
#pragma once

#include "base/record.h"
#include "virtio/pci.h"
#include "virtio/test_driver.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct side {
    struct driver_machine machine;
    struct driver driver;
    struct virtio_device *device;
    struct virtio_pci *transport;
};

/* The device is there; the machine is made round it. */
static inline int side_init(struct side *side, struct virtio_device *device, unsigned slot)
{
    side->device = device;
    int r = virtio_pci_new(side->machine.host, (int)slot, device, &side->transport, NULL);
    if (r < 0)
        return r;
    driver_machine_place(&side->machine);
    driver_init(&side->driver, &side->machine, slot);
    return 0;
}

static inline void side_fini(struct side *side)
{
    virtio_pci_free(side->transport);
    driver_machine_fini(&side->machine);
}

enum { SIDE_PAGES = DRIVER_MEMORY / MEM_PAGE_SIZE };

struct saved {
    struct record bridge, device;
    uint8_t *memory;
    unsigned char touched[SIDE_PAGES]; /* pages that are not simply zero: mincore() */
};

/* The device is held, and stays so. */
static inline struct saved side_save(struct side *side)
{
    struct saved saved = {.memory = calloc(1, DRIVER_MEMORY)};
    const uint8_t *memory = mem_at(side->machine.mem, 0, DRIVER_MEMORY, false);
    virtio_hold(side->device);
    record_save(&saved.bridge, 1);
    pci_host_state(side->machine.host, &saved.bridge);
    record_save(&saved.device, 1);
    virtio_pci_state(side->transport, &saved.device);
    mincore((void *)(uintptr_t)memory, DRIVER_MEMORY, saved.touched);
    for (size_t i = 0; i < SIDE_PAGES; i++)
        if (saved.touched[i] & 1)
            memcpy(saved.memory + i * MEM_PAGE_SIZE, memory + i * MEM_PAGE_SIZE, MEM_PAGE_SIZE);
    return saved;
}

static inline void saved_free(struct saved *saved)
{
    record_free(&saved->bridge);
    record_free(&saved->device);
    free(saved->memory);
}

/* NULL, or why not; then the device is still held. */
static inline const char *side_load(struct side *side, const struct saved *saved)
{
    struct record record;
    uint8_t *memory = mem_at(side->machine.mem, 0, DRIVER_MEMORY, true);
    for (size_t i = 0; i < SIDE_PAGES; i++)
        if (saved->touched[i] & 1)
            memcpy(memory + i * MEM_PAGE_SIZE, saved->memory + i * MEM_PAGE_SIZE, MEM_PAGE_SIZE);
    record_load(&record, saved->bridge.bytes, saved->bridge.size, 1);
    pci_host_state(side->machine.host, &record);
    if (!record_ended(&record))
        return record.why;
    virtio_hold(side->device);
    record_load(&record, saved->device.bytes, saved->device.size, 1);
    virtio_pci_state(side->transport, &record);
    if (!record_ended(&record))
        return record.why;
    virtio_release(side->device);
    return NULL;
}

/* The driver is part of the guest: it finds itself there. */
static inline void driver_follow(struct side *to, const struct side *from)
{
    to->driver = from->driver;
    to->driver.machine = &to->machine;
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
        to->driver.rings[i].mem = to->machine.mem;
}
