// needs: base mem bus disk virtio
/*
 * A whole virtio-blk behind its PCI transport, over a small file, with a driver that begins well
 * and then does what the input says: requests of every kind, chains that are in order and others,
 * rings and registers scribbled on, resets. The file must never grow.
 */
#include "base/bytes.h"
#include "virtio/blk.h"
#include "virtio/pci.h"
#include "virtio/test_driver.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SLOT = 1, QUEUES = 2, STEPS = 128, SIZE = 1 << 20, DATA = 8 << 20, RINGS = 1 << 20 };

#define FEATURES                                                                                   \
    (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | UINT64_C(0x7664))

struct table {
    struct driver_machine machine;
    struct driver driver;
    struct virtio_pci *transport;
    int file;
    const uint8_t *at;
    size_t left;
};

static uint64_t next(struct table *t, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes && t->left > 0; i++, t->left--)
        value |= (uint64_t)*t->at++ << 8 * i;
    return value;
}

static void table_init(struct table *t)
{
    struct disk *disk;
    struct virtio_device *device;
    t->file = memfd_create("disk", MFD_CLOEXEC);
    int r = ftruncate(t->file, SIZE);
    const struct disk_options options = {.read_only = next(t, 1) % 8 == 0};
    if (r >= 0)
        r = disk_open_raw(dup(t->file), &options, &disk, NULL);
    assert(r >= 0);
    driver_machine_init(&t->machine);
    const struct virtio_blk_config config = {.disk = disk, .queues = QUEUES, .serial = "fuzz"};
    r = virtio_blk_new(t->machine.mem, &config, &device, NULL);
    if (r >= 0)
        r = virtio_pci_new(t->machine.host, SLOT, device, &t->transport, NULL);
    assert(r >= 0);
    (void)r;
    driver_machine_place(&t->machine);
    driver_init(&t->driver, &t->machine, SLOT);
}

static void bring_up(struct table *t)
{
    driver_negotiate(&t->driver, FEATURES & driver_offered(&t->driver));
    driver_msix_on(&t->driver, QUEUES + 1);
    for (unsigned queue = 0; queue < QUEUES; queue++)
        driver_queue(&t->driver, queue, 16, true);
    driver_live(&t->driver);
}

/* A request as drivers make them, but for what the input changes of it. */
static void add_request(struct table *t)
{
    static const uint8_t types[] = {0, 1, 4, 8, 11, 13, 13, 255};
    unsigned queue = (unsigned)next(t, 1) % QUEUES, how = (unsigned)next(t, 1);
    uint64_t at = DATA + queue * 0x100000u;
    uint8_t header[16];
    le32_write(header, types[next(t, 1) % sizeof types]);
    le32_write(header + 4, 0);
    le64_write(header + 8, how & 1 ? next(t, 8) : next(t, 2));
    mem_write(t->machine.mem, at, header, sizeof header);
    uint8_t range[16];
    le64_write(range, how & 2 ? next(t, 8) : next(t, 2));
    le64_write(range + 8, how & 4 ? next(t, 8) : next(t, 1));
    mem_write(t->machine.mem, at + 4096, range, sizeof range);
    uint32_t length = how & 8 ? (uint32_t)next(t, 2) : (uint32_t)(next(t, 1) % 16 * 512);
    struct driver_buffer buffers[] = {{at, how & 16 ? (uint32_t)next(t, 1) + 1 : 16, false},
                                      {at + 4096, length + 1u, how & 32},
                                      {at + 0x80000, 1, !(how & 64)}};
    if (!(how & 8))
        buffers[1].length = length ? length : 16;
    driver_ring_add(&t->driver.rings[queue], buffers, how & 128 ? 2 : 3);
    driver_kick(&t->driver, queue);
}

static void scribble(struct table *t)
{
    uint64_t address = RINGS + next(t, 3) % 0x40000;
    uint8_t bytes[16];
    unsigned length = (unsigned)next(t, 1) % sizeof bytes;
    for (unsigned i = 0; i < length; i++)
        bytes[i] = (uint8_t)next(t, 1);
    mem_write(t->machine.mem, address, bytes, length);
}

static void step(struct table *t)
{
    uint32_t head, length;
    switch (next(t, 1) % 8) {
    case 0:
    case 1:
    case 2: add_request(t); break;
    case 3: scribble(t); break;
    case 4:
        for (unsigned queue = 0; queue < QUEUES; queue++)
            while (driver_ring_take(&t->driver.rings[queue], &head, &length))
                ;
        break;
    case 5: driver_kick(&t->driver, (unsigned)next(t, 1) % QUEUES); break;
    case 6:
        driver_write(&t->driver, t->driver.common + next(t, 1) % 64, 1u << next(t, 1) % 3,
                     next(t, 4));
        break;
    default:
        driver_read(&t->driver, t->driver.device + next(t, 1) % 64, 1u << next(t, 1) % 4);
        if (next(t, 1) % 8 == 0)
            bring_up(t);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct table *t = calloc(1, sizeof *t);
    struct stat status;
    t->at = data;
    t->left = size;
    table_init(t);
    bring_up(t);
    for (int i = 0; i < STEPS && t->left > 0; i++)
        step(t);
    virtio_pci_free(t->transport);
    driver_machine_fini(&t->machine);
    int r = fstat(t->file, &status);
    assert(r == 0 && status.st_size == SIZE);
    (void)r;
    close(t->file);
    free(t);
    return 0;
}
