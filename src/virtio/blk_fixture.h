/*
 * blk_fixture.h: for tests of the block device from the guest's side: a driver in plain memory, a
 * raw disk in a temporary file.
 */
#pragma once

#include "virtio/blk.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "virtio/pci.h"
#include "virtio/test_driver.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

enum {
    SLOT = 2,
    QUEUES = 2,
    DISK_BYTES = 8 << 20,
    SECTORS = DISK_BYTES / 512,
    HEADERS = 16 << 20, /* guest memory: 64 bytes a request */
    DATA = 20 << 20,
    OK = 0,
    IOERR = 1,
    UNSUPP = 2,
    UNTOUCHED = 0xee,
};

enum { IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8, DISCARD = 11, WRITE_ZEROES = 13 };

enum {
    F_SIZE_MAX = 1 << 1,
    F_SEG_MAX = 1 << 2,
    F_RO = 1 << 5,
    F_BLK_SIZE = 1 << 6,
    F_FLUSH = 1 << 9,
    F_TOPOLOGY = 1 << 10,
    F_WCE = 1 << 11,
    F_MQ = 1 << 12,
    F_DISCARD = 1 << 13,
    F_ZEROES = 1 << 14,
};

#define USUAL    (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)
#define FEATURES (USUAL | F_FLUSH | F_MQ | F_DISCARD | F_ZEROES | F_SEG_MAX | F_SIZE_MAX)

struct fixture {
    struct driver_machine machine;
    struct driver driver;
    char path[64];
    int fd; /* the disk's file, as the host sees it */
    struct disk *disk;
    struct blk_ring *rings[QUEUES];
    struct virtio_blk *blk;
    struct virtio_pci *transport;
    _Atomic int errors, last_error, fulls;
};

/* What differs between the fixtures. */
struct flavour {
    bool rings, read_only, waits;
    enum disk_cache cache;
    uint64_t iops, bps;
};

static inline void note_error(void *opaque, bool write, int number)
{
    struct fixture *f = opaque;
    f->last_error = write ? number : -number;
    f->errors++;
}

static inline void note_full(void *opaque)
{
    ((struct fixture *)opaque)->fulls++;
}

/* What sector `n` of a fresh disk holds. */
static inline uint8_t pattern(uint64_t n, unsigned at)
{
    return (uint8_t)(n * 7 + at * 13 + (n >> 8));
}

static inline void fill_disk(int fd)
{
    uint8_t *bytes = malloc(DISK_BYTES);
    for (uint64_t i = 0; i < DISK_BYTES; i++)
        bytes[i] = pattern(i / 512, i % 512);
    assert_int_equal(pwrite(fd, bytes, DISK_BYTES, 0), DISK_BYTES);
    free(bytes);
}

static inline struct fixture *make(const struct flavour *flavour)
{
    struct fixture *f = calloc(1, sizeof *f);
    driver_machine_init(&f->machine);
    strcpy(f->path, "/var/tmp/lodge-blk-test-XXXXXX"); /* a file system that knows O_DIRECT */
    f->fd = mkstemp(f->path);
    assert_true(f->fd >= 0);
    fill_disk(f->fd);
    const struct disk_options options = {
        .format = DISK_FORMAT_RAW, .cache = flavour->cache, .read_only = flavour->read_only};
    assert_int_equal(disk_open(f->path, &options, &f->disk, NULL), 0);
    for (int i = 0; flavour->rings && i < QUEUES; i++)
        blk_ring_new(BLK_RING_ENTRIES, &f->rings[i], NULL); /* or NULL, where the host has none */
    const struct virtio_blk_config config = {
        .disk = f->disk,
        .serial = "serial-20-characters",
        .queues = QUEUES,
        .rings = f->rings,
        .iops = flavour->iops,
        .bps = flavour->bps,
        .on_error = note_error,
        .opaque = f,
        .on_full = flavour->waits ? note_full : NULL,
        .full_opaque = f,
    };
    assert_int_equal(virtio_blk_new(f->machine.mem, &config, &f->blk, NULL), 0);
    assert_int_equal(
        virtio_pci_new(f->machine.host, SLOT, virtio_blk_device(f->blk), &f->transport, NULL), 0);
    driver_machine_place(&f->machine);
    driver_init(&f->driver, &f->machine, SLOT);
    return f;
}

static inline int teardown(void **state)
{
    struct fixture *f = *state;
    virtio_pci_free(f->transport);
    for (int i = 0; i < QUEUES; i++)
        blk_ring_free(f->rings[i]);
    disk_close(f->disk);
    close(f->fd);
    unlink(f->path);
    driver_machine_fini(&f->machine);
    free(f);
    return 0;
}

static inline void bring_up(struct fixture *f, uint64_t features)
{
    struct driver *d = &f->driver;
    assert_true(driver_negotiate(d, features));
    driver_msix_on(d, QUEUES + 1);
    for (unsigned queue = 0; queue < (features & F_MQ ? QUEUES : 1); queue++)
        assert_true(driver_queue(d, queue, 128, true));
    driver_live(d);
}

static inline uint8_t *guest(struct fixture *f, uint64_t address, uint64_t size)
{
    return mem_at(f->machine.mem, address, size, true);
}

/* The header of request number `n`; its status lies behind it. */
static inline uint64_t header(struct fixture *f, unsigned n, uint32_t type, uint64_t sector)
{
    uint64_t at = HEADERS + n * 64u;
    uint8_t *bytes = guest(f, at, 64);
    le32_write(bytes, type);
    le32_write(bytes + 4, 0);
    le64_write(bytes + 8, sector);
    bytes[16] = UNTOUCHED;
    return at;
}

static inline uint8_t status(struct fixture *f, unsigned n)
{
    return __atomic_load_n(guest(f, HEADERS + n * 64u + 16, 1), __ATOMIC_ACQUIRE);
}

/* Offers request `n` with its data in one buffer (none where length is 0); its head. */
static inline int offer(struct fixture *f, unsigned queue, unsigned n, uint32_t type,
                        uint64_t sector, uint64_t data, uint32_t length)
{
    uint64_t at = header(f, n, type, sector);
    bool write = type == IN || type == GET_ID;
    const struct driver_buffer with[] = {
        {at, 16, false}, {data, length, write}, {at + 16, 1, true}};
    const struct driver_buffer without[] = {{at, 16, false}, {at + 16, 1, true}};
    int head = driver_ring_add(&f->driver.rings[queue], length ? with : without, length ? 3 : 2);
    assert_true(head >= 0);
    return head;
}

static inline bool take(struct fixture *f, unsigned queue, uint32_t *ret_length)
{
    uint32_t head;
    return eventually(driver_ring_take(&f->driver.rings[queue], &head, ret_length));
}

/* One request from kick to status. */
static inline uint8_t request(struct fixture *f, uint32_t type, uint64_t sector, uint64_t data,
                              uint32_t length)
{
    uint32_t used;
    offer(f, 0, 0, type, sector, data, length);
    driver_kick(&f->driver, 0);
    assert_true(take(f, 0, &used));
    return status(f, 0);
}

static inline bool holds(const uint8_t *bytes, uint64_t sector, unsigned sectors)
{
    for (unsigned i = 0; i < sectors * 512; i++)
        if (bytes[i] != pattern(sector + i / 512, i % 512))
            return false;
    return true;
}

static inline bool all(const uint8_t *bytes, size_t size, uint8_t value)
{
    for (size_t i = 0; i < size; i++)
        if (bytes[i] != value)
            return false;
    return true;
}
