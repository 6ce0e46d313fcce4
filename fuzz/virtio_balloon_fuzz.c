// needs: base mem bus disk virtio
/*
 * A whole balloon behind its PCI transport, with a driver that begins well and then does what the
 * input says: lists of pages good and bad, reports, statistics, rings and registers scribbled on,
 * resets; the host asks and sets targets meanwhile.
 */
#include "base/bytes.h"
#include "input.h"
#include "virtio/balloon.h"
#include "virtio/pci.h"
#include "virtio/test_driver.h"

#include <assert.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SLOT = 1, QUEUES = 5, STEPS = 128, LIST = 8 << 20, RINGS = 1 << 20 };

#define FEATURES (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)

struct table {
    struct driver_machine machine;
    struct driver driver;
    struct virtio_pci *transport;
    struct virtio_balloon *balloon;
    struct input input;
};

static uint64_t next(struct table *t, unsigned bytes)
{
    return input_next(&t->input, bytes);
}

static void bring_up(struct table *t)
{
    driver_negotiate(&t->driver, FEATURES | (next(t, 1) & 0x36));
    driver_msix_on(&t->driver, QUEUES + 1);
    for (unsigned queue = 0; queue < QUEUES; queue++)
        driver_queue(&t->driver, queue, 16, true);
    driver_live(&t->driver);
}

static void add_list(struct table *t)
{
    unsigned queue = (unsigned)next(t, 1) % 3, how = (unsigned)next(t, 1);
    uint8_t bytes[256];
    unsigned length = (unsigned)next(t, 1);
    for (unsigned i = 0; i < length; i += 4) {
        uint32_t pfn = how & 1 ? (uint32_t)next(t, 4) : 0x2800 + (uint32_t)next(t, 1);
        le32_write(bytes + i % 252, pfn);
    }
    mem_write(t->machine.mem, LIST, bytes, length);
    struct driver_buffer buffers[] = {{LIST, how & 2 ? length + 1 : (length | 3) + 1, false},
                                      {LIST + 4096, 4u * (uint32_t)next(t, 1) + 4, false}};
    driver_ring_add(&t->driver.rings[queue], buffers, how & 4 ? 2 : 1);
    driver_kick(&t->driver, queue);
}

static void add_report(struct table *t)
{
    unsigned queue = 2 + (unsigned)next(t, 1) % 3;
    struct driver_buffer buffers[4];
    unsigned count = 1 + (unsigned)next(t, 1) % ARRAY_LEN(buffers);
    for (unsigned i = 0; i < count; i++)
        buffers[i] = (struct driver_buffer){next(t, 4), (uint32_t)next(t, 3) + 1, true};
    driver_ring_add(&t->driver.rings[queue], buffers, count);
    driver_kick(&t->driver, queue);
}

static void scribble(struct table *t)
{
    uint64_t address = RINGS + next(t, 3) % 0x40000;
    input_scribble(&t->input, t->machine.mem, address);
}

static void host(struct table *t)
{
    struct virtio_balloon_info info;
    virtio_balloon_target(t->balloon, next(t, 4));
    virtio_balloon_ask(t->balloon);
    virtio_balloon_info(t->balloon, &info);
    assert(info.target <= DRIVER_MEMORY && info.actual <= DRIVER_MEMORY);
}

static void step(struct table *t)
{
    uint32_t head, length;
    switch (next(t, 1) % 8) {
    case 0:
    case 1: add_list(t); break;
    case 2: add_report(t); break;
    case 3: scribble(t); break;
    case 4:
        for (unsigned queue = 0; queue < QUEUES; queue++)
            while (driver_ring_take(&t->driver.rings[queue], &head, &length))
                ;
        break;
    case 5: host(t); break;
    case 6:
        driver_write(&t->driver, t->driver.common + next(t, 1) % 64, 1u << next(t, 1) % 3,
                     next(t, 4));
        break;
    default:
        driver_write(&t->driver, t->driver.device + next(t, 1) % 32, 1u << next(t, 1) % 4,
                     next(t, 4));
        if (next(t, 1) % 8 == 0)
            bring_up(t);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct table *t = calloc(1, sizeof *t);
    const struct virtio_balloon_config config = {0};
    t->input = (struct input){data, size};
    driver_machine_init(&t->machine);
    int r = virtio_balloon_new(t->machine.mem, &config, &t->balloon, NULL);
    if (r >= 0)
        r = virtio_pci_new(t->machine.host, SLOT, virtio_balloon_device(t->balloon), &t->transport,
                           NULL);
    if (r >= 0)
        r = virtio_begin(virtio_balloon_device(t->balloon), NULL);
    assert(r >= 0);
    (void)r;
    driver_machine_place(&t->machine);
    driver_init(&t->driver, &t->machine, SLOT);
    bring_up(t);
    for (int i = 0; i < STEPS && t->input.left > 0; i++)
        step(t);
    virtio_pci_free(t->transport);
    driver_machine_fini(&t->machine);
    free(t);
    return 0;
}
