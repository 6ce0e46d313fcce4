// needs: base mem bus disk nic virtio
/*
 * A whole virtio-blk behind its PCI transport, on a raw disk in memory, with a driver that begins
 * well and then does what the input says: requests of all types with lengths and sectors of its
 * own, rings and descriptors overwritten while the device is at work, resets in the middle. What
 * must hold: no access outside guest memory, every wait ends, nothing behind the disk's end is
 * written.
 */
#include "base/bytes.h"
#include "input.h"
#include "virtio/blk.h"
#include "virtio/pci.h"
#include "virtio/test_driver.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    SLOT = 1,
    QUEUES = 2,
    STEPS = 256,
    DISK_BYTES = 1 << 20,
    DATA = 8 << 20,
    RINGS = 1 << 20,
    OWN_FEATURES = 1 << 1 | 1 << 2 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14,
};

#define FEATURES (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | OWN_FEATURES)

struct table {
    struct driver_machine machine;
    struct driver driver;
    struct virtio_blk *blk;
    struct virtio_pci *transport;
    struct disk *disk;
    int fd;
    struct input input;
};

static uint64_t next(struct table *t, unsigned bytes)
{
    return input_next(&t->input, bytes);
}

static int open_memory(void *opaque, const char *path, const char *from, bool write, bool direct)
{
    struct table *t = opaque;
    t->fd = memfd_create("disk", MFD_CLOEXEC);
    int r = ftruncate(t->fd, DISK_BYTES);
    assert(r == 0);
    (void)r;
    return t->fd;
}

/* Made once: a ring costs more than all the rest. */
static struct blk_ring *const *rings(bool wanted)
{
    static struct blk_ring *made[QUEUES];
    for (unsigned i = 0; i < QUEUES && !made[i]; i++)
        blk_ring_new(BLK_RING_ENTRIES, &made[i], NULL);
    return wanted ? made : NULL;
}

static void table_init(struct table *t)
{
    uint8_t how = (uint8_t)next(t, 1);
    const struct disk_opener opener = {open_memory, t};
    const struct disk_options options = {
        .format = how & 1 ? DISK_FORMAT_RAW : DISK_FORMAT_PROBE,
        .read_only = (how & 14) == 14,
        .opener = &opener,
    };
    driver_machine_init(&t->machine);
    t->machine.mem->dirty_log = true;
    int r = disk_open("fuzz", &options, &t->disk, NULL);
    const struct virtio_blk_config config = {
        .disk = t->disk,
        .serial = "fuzz",
        .queues = QUEUES,
        .rings = rings(how & 16),
        .iops = how & 32 ? 100000 : 0,
    };
    if (r >= 0)
        r = virtio_blk_new(t->machine.mem, &config, &t->blk, NULL);
    if (r >= 0)
        r = virtio_pci_new(t->machine.host, SLOT, virtio_blk_device(t->blk), &t->transport, NULL);
    assert(r >= 0);
    (void)r;
    driver_machine_place(&t->machine);
    driver_init(&t->driver, &t->machine, SLOT);
}

static void table_fini(struct table *t)
{
    struct stat about;
    virtio_pci_free(t->transport);
    int r = fstat(t->fd, &about);
    assert(r == 0 && about.st_size == DISK_BYTES);
    (void)r;
    disk_close(t->disk);
    driver_machine_fini(&t->machine);
}

static void bring_up(struct table *t, uint64_t features)
{
    driver_negotiate(&t->driver, features);
    driver_msix_on(&t->driver, QUEUES + 1);
    for (unsigned queue = 0; queue < QUEUES; queue++)
        driver_queue(&t->driver, queue, 32, true);
    driver_live(&t->driver);
}

/* A chain that is nearly in order. */
static void add_request(struct table *t)
{
    static const uint8_t types[] = {0, 1, 0, 1, 4, 8, 11, 13};
    unsigned queue = (unsigned)next(t, 1) % QUEUES;
    uint8_t what = (uint8_t)next(t, 1);
    uint32_t type = what & 0x80 ? (uint32_t)next(t, 2) : types[what % 8];
    uint64_t header = DATA + next(t, 1) * 64, data = DATA + next(t, 2) * 16;
    uint64_t sector = next(t, 2) % (DISK_BYTES / 512 + 64);
    uint32_t length = (uint32_t)next(t, 2);
    if (!(what & 0x40))
        length = (length % 128) * 512;
    uint8_t bytes[32];
    le32_write(bytes, type);
    le64_write(bytes + 8, what & 0x20 ? next(t, 8) : sector);
    mem_write(t->machine.mem, header, bytes, 16);
    if (type == 11 || type == 13) { /* one segment, or what lies there */
        length = what & 0x40 ? length : 16;
        le64_write(bytes, sector);
        le32_write(bytes + 8, (uint32_t)next(t, 1));
        le32_write(bytes + 12, (uint32_t)next(t, 1) & 3);
        mem_write(t->machine.mem, data, bytes, 16);
    }
    struct driver_buffer buffers[] = {
        {header, what & 0x10 ? (uint32_t)next(t, 1) + 1 : 16, false},
        {data, length, type == 0 || type == 8},
        {header + 32, 1, true},
    };
    if (length == 0)
        buffers[1] = buffers[2];
    driver_ring_add(&t->driver.rings[queue], buffers, length ? 3 : 2);
    if (next(t, 1) & 1)
        driver_kick(&t->driver, queue);
}

static void take(struct table *t)
{
    uint32_t head, length;
    struct driver_ring *ring = &t->driver.rings[next(t, 1) % QUEUES];
    /* The head may be anything by now, for the input writes into the rings. */
    const uint8_t *at =
        mem_at(t->machine.mem, ring->used + 4 + 8u * (ring->used_index % ring->size), 8, false);
    if (at && le32_read(at) < ring->size && ring->free_count < ring->size)
        driver_ring_take(ring, &head, &length);
}

static void scribble(struct table *t)
{
    uint64_t address = (next(t, 1) & 1 ? RINGS : DATA) + next(t, 2);
    input_scribble(&t->input, t->machine.mem, address);
}

static void step(struct table *t)
{
    uint64_t bar = t->driver.common & ~UINT64_C(0xfff);
    unsigned width = 1u << next(t, 1) % 4;
    switch (next(t, 1) % 12) {
    case 0: driver_write(&t->driver, bar + next(t, 2) % 0x8000, width, next(t, width)); break;
    case 1: driver_read(&t->driver, bar + next(t, 2) % 0x8000, width); break;
    case 2: driver_write(&t->driver, bar + 0x2000 + next(t, 1), width, next(t, width)); break;
    case 3:
        driver_config_set(&t->driver, (unsigned)next(t, 1), width > 4 ? 4 : width,
                          (uint32_t)next(t, 4));
        break;
    case 4: scribble(t); break;
    case 5:
        if (next(t, 1) % 4 == 0)
            bring_up(t, next(t, 1) & 1 ? FEATURES : next(t, 8));
        break;
    case 6: driver_kick(&t->driver, (unsigned)next(t, 1) % 4); break;
    case 7: take(t); break;
    default: add_request(t); break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct table *t = calloc(1, sizeof *t);
    t->input = (struct input){data, size};
    table_init(t);
    bring_up(t, FEATURES);
    for (int i = 0; i < STEPS && t->input.left > 0; i++)
        step(t);
    table_fini(t);
    free(t);
    return 0;
}
