/* The block device from the guest's side: a driver in plain memory, a raw disk in a temporary file.
 */
#include "virtio/blk.h"

#include "base/bytes.h"
#include "virtio/blk_limit.h"
#include "virtio/pci.h"
#include "virtio/test_driver.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum {
    SLOT = 2,
    QUEUES = 2,
    DISK_BYTES = 8 << 20,
    SECTORS = DISK_BYTES / 512,
    PATIENCE_MS = 20000,
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
    _Atomic int errors, last_error;
};

/* What differs between the fixtures. */
struct flavour {
    bool rings, read_only;
    enum disk_cache cache;
    uint64_t iops, bps;
};

static void note_error(void *opaque, bool write, int number)
{
    struct fixture *f = opaque;
    f->last_error = write ? number : -number;
    f->errors++;
}

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* What sector `n` of a fresh disk holds. */
static uint8_t pattern(uint64_t n, unsigned at)
{
    return (uint8_t)(n * 7 + at * 13 + (n >> 8));
}

static void fill_disk(int fd)
{
    uint8_t *bytes = malloc(DISK_BYTES);
    for (uint64_t i = 0; i < DISK_BYTES; i++)
        bytes[i] = pattern(i / 512, i % 512);
    assert_int_equal(pwrite(fd, bytes, DISK_BYTES, 0), DISK_BYTES);
    free(bytes);
}

static struct fixture *make(const struct flavour *flavour)
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
    };
    assert_int_equal(virtio_blk_new(f->machine.mem, &config, &f->blk, NULL), 0);
    assert_int_equal(
        virtio_pci_new(f->machine.host, SLOT, virtio_blk_device(f->blk), &f->transport, NULL), 0);
    driver_machine_place(&f->machine);
    driver_init(&f->driver, &f->machine, SLOT);
    return f;
}

static int setup(void **state)
{
    *state = make(&(struct flavour){.rings = true});
    return 0;
}

static int setup_calls(void **state)
{
    *state = make(&(struct flavour){0});
    return 0;
}

static int setup_direct(void **state)
{
    *state = make(&(struct flavour){.rings = true, .cache = DISK_CACHE_NONE});
    return 0;
}

static int setup_read_only(void **state)
{
    *state = make(&(struct flavour){.rings = true, .read_only = true});
    return 0;
}

static int setup_limited(void **state)
{
    *state = make(&(struct flavour){.rings = true, .iops = 100});
    return 0;
}

static int setup_limited_bytes(void **state)
{
    *state = make(&(struct flavour){.bps = 1 << 20});
    return 0;
}

static int teardown(void **state)
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

static void bring_up(struct fixture *f, uint64_t features)
{
    struct driver *d = &f->driver;
    assert_true(driver_negotiate(d, features));
    driver_msix_on(d, QUEUES + 1);
    for (unsigned queue = 0; queue < (features & F_MQ ? QUEUES : 1); queue++)
        assert_true(driver_queue(d, queue, 128, true));
    driver_live(d);
}

static uint8_t *guest(struct fixture *f, uint64_t address, uint64_t size)
{
    return mem_at(f->machine.mem, address, size, true);
}

/* The header of request number `n`; its status lies behind it. */
static uint64_t header(struct fixture *f, unsigned n, uint32_t type, uint64_t sector)
{
    uint64_t at = HEADERS + n * 64u;
    uint8_t *bytes = guest(f, at, 64);
    le32_write(bytes, type);
    le32_write(bytes + 4, 0);
    le64_write(bytes + 8, sector);
    bytes[16] = UNTOUCHED;
    return at;
}

static uint8_t status(struct fixture *f, unsigned n)
{
    return __atomic_load_n(guest(f, HEADERS + n * 64u + 16, 1), __ATOMIC_ACQUIRE);
}

/* Offers request `n` with its data in one buffer (none where length is 0); its head. */
static int offer(struct fixture *f, unsigned queue, unsigned n, uint32_t type, uint64_t sector,
                 uint64_t data, uint32_t length)
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

static bool take(struct fixture *f, unsigned queue, uint32_t *ret_length)
{
    uint32_t head;
    for (int tries = PATIENCE_MS * 5; tries > 0; tries--) {
        if (driver_ring_take(&f->driver.rings[queue], &head, ret_length))
            return true;
        nap();
    }
    return false;
}

/* One request from kick to status. */
static uint8_t request(struct fixture *f, uint32_t type, uint64_t sector, uint64_t data,
                       uint32_t length)
{
    uint32_t used;
    offer(f, 0, 0, type, sector, data, length);
    driver_kick(&f->driver, 0);
    assert_true(take(f, 0, &used));
    return status(f, 0);
}

static bool holds(const uint8_t *bytes, uint64_t sector, unsigned sectors)
{
    for (unsigned i = 0; i < sectors * 512; i++)
        if (bytes[i] != pattern(sector + i / 512, i % 512))
            return false;
    return true;
}

static bool all(const uint8_t *bytes, size_t size, uint8_t value)
{
    for (size_t i = 0; i < size; i++)
        if (bytes[i] != value)
            return false;
    return true;
}

/* ---- */

static void the_configuration_says_what_it_is(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->driver;
    assert_int_equal(driver_config(d, 0, 4), 0x10421af4);
    assert_int_equal(driver_offered(d), FEATURES | F_BLK_SIZE | F_TOPOLOGY | F_WCE);
    bring_up(f, FEATURES | F_WCE);
    assert_int_equal(driver_read(d, d->device, 8), SECTORS);
    assert_int_equal(driver_read(d, d->device + 8, 4), 1 << 20);
    assert_int_equal(driver_read(d, d->device + 12, 4), 254);
    assert_int_equal(driver_read(d, d->device + 20, 4), 512);
    assert_int_equal(driver_read(d, d->device + 24, 1), 3);
    assert_int_equal(driver_read(d, d->device + 34, 2), QUEUES);
    assert_int_equal(driver_read(d, d->device + 36, 4), 1 << 21);
    assert_int_equal(driver_read(d, d->device + 44, 4), 8);
    assert_int_equal(driver_read(d, d->device + 56, 1), 1);
    /* The cache: write-back until the driver says otherwise, and again after a reset. */
    assert_int_equal(driver_read(d, d->device + 32, 1), 1);
    driver_write(d, d->device + 32, 1, 0);
    assert_int_equal(driver_read(d, d->device + 32, 1), 0);
    driver_write(d, d->device, 8, 1); /* the capacity is not the driver's to write */
    assert_int_equal(driver_read(d, d->device, 8), SECTORS);
    bring_up(f, FEATURES | F_WCE);
    assert_int_equal(driver_read(d, d->device + 32, 1), 1);
    /* 5.2.5.2: without FLUSH it begins as write-through. */
    bring_up(f, USUAL | F_WCE);
    assert_int_equal(driver_read(d, d->device + 32, 1), 0);
    /* Without CONFIG_WCE it is not to be chosen. */
    bring_up(f, USUAL | F_FLUSH);
    driver_write(d, d->device + 32, 1, 0);
    assert_int_equal(driver_read(d, d->device + 32, 1), 1);
}

static void reads_and_writes(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    for (unsigned i = 0; i < 20; i++) {
        uint64_t sector = i * 777 % (SECTORS - 64);
        uint32_t sectors = 1 + i * 3;
        memset(guest(f, DATA, sectors * 512), 0, sectors * 512);
        assert_int_equal(request(f, IN, sector, DATA, sectors * 512), OK);
        assert_true(holds(guest(f, DATA, sectors * 512), sector, sectors));
        memset(guest(f, DATA, sectors * 512), (int)i, sectors * 512);
        assert_int_equal(request(f, OUT, sector, DATA, sectors * 512), OK);
        uint8_t bytes[64 * 512];
        assert_int_equal(request(f, FLUSH, 0, 0, 0), OK);
        assert_int_equal(pread(f->fd, bytes, sectors * 512, (off_t)sector * 512), sectors * 512);
        assert_true(all(bytes, sectors * 512, (uint8_t)i));
        assert_int_equal(request(f, IN, sector, DATA + MIB(1), sectors * 512), OK);
        assert_true(all(guest(f, DATA + MIB(1), 512), sectors * 512, (uint8_t)i));
    }
    assert_int_equal(f->errors, 0);
}

/* Header, data and status in buffers of odd lengths, and none of their own (2.7.4). */
static void any_layout_of_buffers_will_do(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    uint32_t used;
    uint64_t at = header(f, 0, IN, 3);
    guest(f, DATA + 4096 + 1024, 1)[0] = UNTOUCHED;
    const struct driver_buffer in[] = {
        {at, 5, false},       {at + 5, 11, false},         {DATA, 1, true},
        {DATA + 1, 99, true}, {DATA + 100, 924 + 1, true}, /* the status is this one's last byte */
    };
    driver_ring_add(&f->driver.rings[0], in, 5);
    driver_kick(&f->driver, 0);
    assert_true(take(f, 0, &used));
    assert_int_equal(used, 1025);
    assert_int_equal(*guest(f, DATA + 1024, 1), OK);
    assert_true(holds(guest(f, DATA, 1024), 3, 2));
    /* Header and data together. */
    at = header(f, 1, OUT, 9);
    memset(guest(f, at + 16, 512), 0x5a, 512);
    const struct driver_buffer out[] = {{at, 16 + 512, false}, {DATA, 1, true}};
    driver_ring_add(&f->driver.rings[0], out, 2);
    driver_kick(&f->driver, 0);
    assert_true(take(f, 0, &used));
    assert_int_equal(used, 1);
    assert_int_equal(*guest(f, DATA, 1), OK);
    uint8_t bytes[512];
    assert_int_equal(pread(f->fd, bytes, 512, 9 * 512), 512);
    assert_true(all(bytes, 512, 0x5a));
}

/* A megabyte in 254 segments through an indirect table. */
static void long_requests_use_indirect_tables(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    uint64_t table = MIB(18), at = header(f, 0, IN, 16);
    unsigned segments = 254;
    for (unsigned i = 0; i < segments + 2; i++) {
        uint8_t *entry = guest(f, table + i * 16, 16);
        bool first = i == 0, last = i == segments + 1;
        le64_write(entry, first ? at : last ? at + 16 : DATA + (segments - i) * 4096u);
        le32_write(entry + 8, first ? 16 : last ? 1 : 4096);
        le16_write(entry + 12, (uint16_t)((first ? 0 : 2) | (last ? 0 : 1)));
        le16_write(entry + 14, (uint16_t)(i + 1));
    }
    driver_ring_descriptor(&f->driver.rings[0], 0, table, (segments + 2) * 16, 4, 0);
    driver_ring_offer(&f->driver.rings[0], 0);
    driver_kick(&f->driver, 0);
    uint32_t used;
    assert_true(take(f, 0, &used));
    assert_int_equal(status(f, 0), OK);
    assert_int_equal(used, segments * 4096 + 1);
    for (unsigned i = 1; i <= segments; i++)
        assert_true(holds(guest(f, DATA + (segments - i) * 4096u, 4096), 16 + (i - 1) * 8, 8));
}

/* Adjacent, overlapping and distant requests at once, on both queues. */
static void many_requests_at_once(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    for (unsigned round = 0; round < 30; round++) {
        unsigned count = 40, step = round % 3 == 0 ? 8 : round % 3 == 1 ? 4 : 91;
        for (unsigned i = 0; i < count; i++) {
            unsigned queue = round % 5 ? i % QUEUES : 0;
            offer(f, queue, i, IN, (round * 331 + i * step) % (SECTORS - 8), DATA + i * 4096u,
                  4096);
        }
        driver_kick(&f->driver, 0);
        driver_kick(&f->driver, 1);
        uint32_t used;
        for (unsigned i = 0; i < count; i++)
            assert_true(take(f, round % 5 ? i % QUEUES : 0, &used));
        for (unsigned i = 0; i < count; i++) {
            assert_int_equal(status(f, i), OK);
            assert_true(holds(guest(f, DATA + i * 4096u, 4096),
                              (round * 331 + i * step) % (SECTORS - 8), 8));
        }
    }
    /* Writes that become one keep their places. */
    for (unsigned i = 0; i < 30; i++) {
        memset(guest(f, DATA + i * 4096u, 4096), (int)(100 + i), 4096);
        offer(f, 0, i, OUT, 1000 + i * 8, DATA + i * 4096u, 4096);
    }
    driver_kick(&f->driver, 0);
    uint32_t used;
    for (unsigned i = 0; i < 30; i++)
        assert_true(take(f, 0, &used));
    assert_int_equal(request(f, FLUSH, 0, 0, 0), OK);
    for (unsigned i = 0; i < 30; i++) {
        uint8_t bytes[4096];
        assert_int_equal(pread(f->fd, bytes, 4096, (1000 + i * 8) * 512), 4096);
        assert_true(all(bytes, 4096, (uint8_t)(100 + i)));
    }
}

static void the_driver_is_interrupted(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    assert_int_equal(request(f, IN, 0, DATA, 512), OK);
    for (int i = 0; i < 1000 && f->machine.messages[1] == 0; i++)
        nap();
    assert_int_equal(f->machine.messages[1], 1);
    assert_int_equal(f->machine.messages[2], 0);
}

static void the_serial_is_read(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    memset(guest(f, DATA, 64), UNTOUCHED, 64);
    assert_int_equal(request(f, GET_ID, 0, DATA, 20), OK);
    assert_memory_equal(guest(f, DATA, 20), "serial-20-characters", 20);
    assert_int_equal(*guest(f, DATA + 20, 1), UNTOUCHED);
    memset(guest(f, DATA, 64), UNTOUCHED, 64);
    assert_int_equal(request(f, GET_ID, 0, DATA, 6), OK);
    assert_memory_equal(guest(f, DATA, 7), "serial\xee", 7);
}

static uint8_t range_request(struct fixture *f, uint32_t type, uint64_t sector, uint32_t sectors,
                             uint32_t flags)
{
    uint8_t *range = guest(f, DATA, 16);
    le64_write(range, sector);
    le32_write(range + 8, sectors);
    le32_write(range + 12, flags);
    return request(f, type, 0, DATA, 16);
}

static uint64_t allocated(struct fixture *f)
{
    struct stat about;
    fstat(f->fd, &about);
    return (uint64_t)about.st_blocks * 512;
}

static void space_is_given_back(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    uint8_t bytes[4096];
    fsync(f->fd);
    uint64_t before = allocated(f);
    assert_int_equal(range_request(f, DISCARD, 2048, 4096, 0), OK);
    assert_true(allocated(f) + MIB(1) <= before);
    assert_int_equal(range_request(f, WRITE_ZEROES, 8192, 2048, 1), OK);
    assert_true(allocated(f) + MIB(2) <= before);
    assert_int_equal(range_request(f, WRITE_ZEROES, 1, 3, 0), OK);
    assert_int_equal(pread(f->fd, bytes, 4096, 0), 4096);
    assert_true(holds(bytes, 0, 1) && all(bytes + 512, 3 * 512, 0) && holds(bytes + 2048, 4, 4));
    assert_int_equal(request(f, IN, 8192, DATA, 4096), OK);
    assert_true(all(guest(f, DATA, 4096), 4096, 0));
    /* 5.2.6.2: unknown flags, and unmap with a discard, are unsupported. */
    assert_int_equal(range_request(f, DISCARD, 0, 1, 1), UNSUPP);
    assert_int_equal(range_request(f, DISCARD, 0, 1, 2), UNSUPP);
    assert_int_equal(range_request(f, WRITE_ZEROES, 0, 1, 2), UNSUPP);
    /* Outside the disk, too much, no whole segment, too many. */
    assert_int_equal(range_request(f, DISCARD, SECTORS, 1, 0), IOERR);
    assert_int_equal(range_request(f, DISCARD, UINT64_MAX, 2, 0), IOERR);
    assert_int_equal(range_request(f, WRITE_ZEROES, 0, 1 << 18, 0), IOERR);
    assert_int_equal(request(f, DISCARD, 0, DATA, 15), IOERR);
    assert_int_equal(request(f, DISCARD, 0, 0, 0), IOERR);
    assert_int_equal(request(f, DISCARD, 0, DATA, 33 * 16), IOERR);
    assert_int_equal(request(f, WRITE_ZEROES, 0, DATA, 32), IOERR);
    /* One bad segment: nothing is done. */
    memset(guest(f, DATA, 32), 0, 32);
    le32_write(guest(f, DATA + 8, 4), 1);
    le64_write(guest(f, DATA + 16, 8), SECTORS);
    le32_write(guest(f, DATA + 24, 4), 1);
    assert_int_equal(request(f, DISCARD, 0, DATA, 32), IOERR);
    assert_int_equal(pread(f->fd, bytes, 512, 0), 512);
    assert_true(holds(bytes, 0, 1));
    assert_int_equal(f->errors, 0);
    /* Not negotiated, not there. */
    bring_up(f, USUAL);
    assert_int_equal(range_request(f, DISCARD, 0, 1, 0), UNSUPP);
    assert_int_equal(range_request(f, WRITE_ZEROES, 0, 1, 0), UNSUPP);
}

static void a_read_only_disk_is_not_written_to(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(driver_offered(&f->driver) & (F_RO | F_DISCARD | F_ZEROES), F_RO);
    bring_up(f, USUAL | F_RO);
    assert_int_equal(request(f, IN, 5, DATA, 512), OK);
    assert_true(holds(guest(f, DATA, 512), 5, 1));
    assert_int_equal(request(f, OUT, 5, DATA + 4096, 512), IOERR);
    assert_int_equal(range_request(f, DISCARD, 0, 8, 0), UNSUPP);
    assert_int_equal(request(f, FLUSH, 0, 0, 0), OK);
    assert_int_equal(f->errors, 0);
}

static void bad_requests_are_answered(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    static const uint32_t types[] = {2, 3, 5, 10, 14, 15, 16, 26, 0x80000000, UINT32_MAX};
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        assert_int_equal(request(f, types[i], 0, DATA, 512), UNSUPP);
    assert_int_equal(request(f, IN, SECTORS, DATA, 512), IOERR);
    assert_int_equal(request(f, IN, SECTORS - 1, DATA, 1024), IOERR);
    assert_int_equal(request(f, IN, UINT64_MAX, DATA, 512), IOERR);
    assert_int_equal(request(f, IN, UINT64_MAX / 512, DATA, 1024), IOERR);
    assert_int_equal(request(f, OUT, SECTORS, DATA, 512), IOERR);
    assert_int_equal(request(f, IN, 0, DATA, 511), IOERR);
    assert_int_equal(request(f, OUT, 0, DATA, 513), IOERR);
    assert_int_equal(request(f, IN, 0, 0, 0), OK); /* of nothing */
    assert_int_equal(request(f, OUT, 0, 0, 0), OK);
    /* A header that is too short. */
    uint32_t used;
    uint64_t at = header(f, 0, IN, 0);
    const struct driver_buffer stump[] = {{at, 15, false}, {at + 16, 1, true}};
    driver_ring_add(&f->driver.rings[0], stump, 2);
    driver_kick(&f->driver, 0);
    assert_true(take(f, 0, &used));
    assert_int_equal(status(f, 0), IOERR);
    const struct driver_buffer none[] = {{at + 16, 1, true}};
    guest(f, at, 64)[16] = UNTOUCHED;
    driver_ring_add(&f->driver.rings[0], none, 1);
    driver_kick(&f->driver, 0);
    assert_true(take(f, 0, &used));
    assert_int_equal(status(f, 0), IOERR);
    assert_int_equal(request(f, IN, 1, DATA, 512), OK);
    assert_true(holds(guest(f, DATA, 512), 1, 1));
    assert_int_equal(f->errors, 0);
}

/* The same 32 MiB a thousand times is more than any disk that we have. */
static void gigabytes_in_one_request_are_refused(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    uint64_t table = MIB(18), at = header(f, 0, IN, 0);
    for (unsigned i = 0; i < 1000; i++) {
        uint8_t *entry = guest(f, table + i * 16, 16);
        le64_write(entry, i == 0 ? at : i == 999 ? at + 16 : DATA);
        le32_write(entry + 8, i == 0 ? 16 : i == 999 ? 1 : 32 << 20);
        le16_write(entry + 12, (uint16_t)((i ? 2 : 0) | (i == 999 ? 0 : 1)));
        le16_write(entry + 14, (uint16_t)(i + 1));
    }
    driver_ring_descriptor(&f->driver.rings[0], 0, table, 1000 * 16, 4, 0);
    driver_ring_offer(&f->driver.rings[0], 0);
    driver_kick(&f->driver, 0);
    uint32_t used;
    assert_true(take(f, 0, &used));
    assert_int_equal(status(f, 0), IOERR);
}

static bool needs_reset(struct fixture *f)
{
    for (int tries = PATIENCE_MS * 5; tries > 0; tries--) {
        if (driver_status(&f->driver) & VIRTIO_STATUS_NEEDS_RESET)
            return true;
        nap();
    }
    return false;
}

static void broken_rings_want_a_reset(void **state)
{
    struct fixture *f = *state;
    uint64_t at = header(f, 0, IN, 0);
    for (int fault = 0; fault < 7; fault++) {
        bring_up(f, FEATURES);
        struct driver_ring *ring = &f->driver.rings[0];
        switch (fault) {
        case 0: /* nowhere to put a status */
            driver_ring_descriptor(ring, 0, at, 16, 0, 0);
            driver_ring_offer(ring, 0);
            break;
        case 1: /* a loop */
            driver_ring_descriptor(ring, 0, at, 16, 1, 1);
            driver_ring_descriptor(ring, 1, at, 16, 1, 0);
            driver_ring_offer(ring, 0);
            break;
        case 2: /* memory that is not there */
            driver_ring_descriptor(ring, 0, at, 16, 1, 1);
            driver_ring_descriptor(ring, 1, DRIVER_MEMORY - 256, 512, 2, 0);
            driver_ring_offer(ring, 0);
            break;
        case 3: /* readable after writable */
            driver_ring_descriptor(ring, 0, at + 16, 1, 1 | 2, 1);
            driver_ring_descriptor(ring, 1, at, 16, 0, 0);
            driver_ring_offer(ring, 0);
            break;
        case 4: driver_ring_offer(ring, 4000); break;
        case 5: /* the index runs away */
            for (int i = 0; i < 300; i++)
                driver_ring_offer(ring, 0);
            break;
        default: /* an indirect table that ends in the middle of an entry */
            driver_ring_descriptor(ring, 0, MIB(18), 40, 4, 0);
            driver_ring_offer(ring, 0);
            break;
        }
        driver_kick(&f->driver, 0);
        assert_true(needs_reset(f));
    }
    bring_up(f, FEATURES);
    assert_int_equal(request(f, IN, 77, DATA, 512), OK);
    assert_true(holds(guest(f, DATA, 512), 77, 1));
}

/* Whatever was in flight: after the reset nothing moves any more. */
static void a_reset_waits_for_what_is_in_flight(void **state)
{
    struct fixture *f = *state;
    for (unsigned round = 0; round < 60; round++) {
        bring_up(f, FEATURES);
        for (unsigned i = 0; i < 40; i++) {
            uint32_t type = i % 7 == 6 ? FLUSH : IN;
            offer(f, i % QUEUES, i, type, i * 97, DATA + i * 65536u, type == IN ? 65536 : 0);
        }
        driver_kick(&f->driver, 0);
        driver_kick(&f->driver, 1);
        for (unsigned i = 0; i < round % 8; i++)
            sched_yield();
        driver_set_status(&f->driver, 0);
        assert_int_equal(driver_status(&f->driver), 0);
        memset(guest(f, HEADERS, 4096), 0x77, 4096);
        memset(guest(f, DATA, 40 * 65536), 0x77, 40 * 65536);
        if (round % 4 == 0)
            nap();
        assert_true(all(guest(f, HEADERS, 4096), 4096, 0x77));
        assert_true(all(guest(f, DATA, 40 * 65536), 40 * 65536, 0x77));
    }
}

static void writes_mark_pages(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    f->machine.mem->dirty_log = true;
    uint8_t *marks = f->machine.mem->regions[0].marks;
    assert_int_equal(request(f, IN, 0, DATA, 8192), OK);
    for (uint64_t page = DATA >> 12; page < (DATA >> 12) + 2; page++)
        assert_true(marks[page] & MEM_PAGE_DIRTY);
    assert_false(marks[(DATA >> 12) + 2] & MEM_PAGE_DIRTY);
    assert_true(marks[HEADERS >> 12] & MEM_PAGE_DIRTY);
    assert_int_equal(request(f, OUT, 0, DATA + 65536, 512), OK);
    assert_false(marks[(DATA + 65536) >> 12] & MEM_PAGE_DIRTY);
}

/* A file that may not grow: the write at its end fails on the host. */
static void a_host_that_is_full_is_reported(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    assert_int_equal(ftruncate(f->fd, DISK_BYTES - 8192), 0);
    struct rlimit before, low = {DISK_BYTES - 8192, RLIM_INFINITY};
    getrlimit(RLIMIT_FSIZE, &before);
    low.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    /* Two that are merged: the one that can be done is. */
    memset(guest(f, DATA, 8192), 0x33, 8192);
    offer(f, 0, 0, OUT, SECTORS - 24, DATA, 4096);
    offer(f, 0, 1, OUT, SECTORS - 16, DATA + 4096, 4096);
    driver_kick(&f->driver, 0);
    uint32_t used;
    assert_true(take(f, 0, &used) && take(f, 0, &used));
    assert_int_equal(status(f, 0), OK);
    assert_int_equal(status(f, 1), IOERR);
    assert_int_equal(f->errors, 1);
    assert_int_equal(f->last_error, EFBIG);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_equal(request(f, OUT, SECTORS - 16, DATA, 4096), OK);
    assert_int_equal(request(f, IN, SECTORS - 8, DATA, 4096), OK); /* never written: zeros */
    assert_true(all(guest(f, DATA, 4096), 4096, 0));
}

static void write_through_is_answered_too(void **state)
{
    struct fixture *f = *state;
    bring_up(f, USUAL); /* neither FLUSH nor CONFIG_WCE */
    memset(guest(f, DATA, 4096), 0x42, 4096);
    assert_int_equal(request(f, OUT, 8, DATA, 4096), OK);
    bring_up(f, FEATURES | F_WCE);
    driver_write(&f->driver, f->driver.device + 32, 1, 0);
    assert_int_equal(request(f, OUT, 16, DATA, 4096), OK);
    uint8_t bytes[8192];
    assert_int_equal(pread(f->fd, bytes, 8192, 8 * 512), 8192);
    assert_true(all(bytes, 8192, 0x42));
}

static void limits_hold(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    uint32_t used;
    uint64_t begin = now_ms();
    for (unsigned i = 0; i < 40; i++) /* ten at once, then 100 a second */
        offer(f, 0, i, IN, i * 8, DATA, 512);
    driver_kick(&f->driver, 0);
    for (unsigned i = 0; i < 40; i++)
        assert_true(take(f, 0, &used));
    assert_in_range(now_ms() - begin, 250, 5000);
    /* A reset does not wait for the limit. */
    for (unsigned i = 0; i < 40; i++)
        offer(f, 0, i, IN, i * 8, DATA, 512);
    driver_kick(&f->driver, 0);
    begin = now_ms();
    driver_set_status(&f->driver, 0);
    assert_in_range(now_ms() - begin, 0, 200);
}

static void limits_of_bytes_hold(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    uint64_t begin = now_ms();
    for (unsigned i = 0; i < 8; i++) /* 512 KiB, of which a tenth of a MiB at once */
        assert_int_equal(request(f, i & 1 ? OUT : IN, i * 128, DATA, 65536), OK);
    assert_in_range(now_ms() - begin, 250, 5000);
}

static void the_bucket_counts(void **state)
{
    (void)state;
    struct blk_limit limit;
    blk_limit_init(&limit, 1000, 5, 0, 0);
    uint64_t now = UINT64_C(1000000000000);
    int at_once = 0;
    while (blk_limit_wait_at(&limit, now) == 0 && at_once < 100) {
        blk_limit_take_at(&limit, now, 1 << 30);
        at_once++;
    }
    assert_int_equal(at_once, 6);
    assert_int_equal(blk_limit_wait_at(&limit, now), 1000000);
    assert_int_equal(blk_limit_wait_at(&limit, now + 1000000), 0);
    blk_limit_fini(&limit);
    /* One that takes more than there is makes the next wait. */
    blk_limit_init(&limit, 0, 0, 1000, 1000);
    blk_limit_take_at(&limit, now, 10000);
    assert_int_equal(blk_limit_wait_at(&limit, now), UINT64_C(9000000000));
    blk_limit_take_at(&limit, now, UINT64_MAX);
    assert_true(blk_limit_wait_at(&limit, now) > 0);
    blk_limit_fini(&limit);
    blk_limit_init(&limit, 0, 0, 0, 0);
    blk_limit_take_at(&limit, now, UINT64_MAX);
    assert_int_equal(blk_limit_wait_at(&limit, now), 0);
    blk_limit_fini(&limit);
}

static void a_stopped_disk_is_left_alone(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    for (unsigned i = 0; i < 40; i++)
        offer(f, 0, i, IN, i * 8, DATA + i * 4096u, 4096);
    driver_kick(&f->driver, 0);
    virtio_blk_stop(f->blk);
    virtio_blk_stop(f->blk);
    memset(guest(f, DATA, 4096), 0x77, 4096);
    uint32_t used;
    while (driver_ring_take(&f->driver.rings[0], &(uint32_t){0}, &used))
        ;
    offer(f, 0, 0, IN, 0, DATA, 4096);
    driver_kick(&f->driver, 0);
    nap();
    assert_true(all(guest(f, DATA, 4096), 4096, 0x77));
    driver_set_status(&f->driver, 0);
}

static void bad_configurations_are_refused(void **state)
{
    struct fixture *f = *state;
    struct virtio_blk *blk;
    struct err err = {0};
    struct virtio_blk_config config = {.disk = f->disk, .queues = 5};
    assert_int_equal(virtio_blk_new(f->machine.mem, &config, &blk, &err), -EINVAL);
    config.queues = 0;
    assert_int_equal(virtio_blk_new(f->machine.mem, &config, &blk, &err), -EINVAL);
    config.queues = 1;
    config.serial = "twenty-one characters";
    assert_int_equal(virtio_blk_new(f->machine.mem, &config, &blk, &err), -EINVAL);
    assert_non_null(strstr(err.text, "twenty-one characters"));
}

/* Every io_uring of this process refuses to be changed; how many there are. */
static unsigned rings_refuse(void)
{
    unsigned rings = 0;
    for (int fd = 3; fd < 256; fd++) {
        char path[32], name[64] = "";
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (readlink(path, name, sizeof name - 1) <= 0 || !strstr(name, "[io_uring]"))
            continue;
        rings++;
        assert_int_equal(syscall(SYS_io_uring_register, fd, IORING_UNREGISTER_EVENTFD, NULL, 0),
                         -1);
        assert_int_equal(errno, EACCES);
    }
    return rings;
}

/* One queue, one thread, a vCPU beside it: what the ring is told not to do, it does not. */
static void a_ring_only_reads_and_writes(void **state)
{
    struct fixture *f = *state;
    struct blk_ring *ring;
    if (blk_ring_new(8, &ring, NULL) < 0)
        skip();
    uint8_t bytes[512];
    const struct iovec iov = {bytes, sizeof bytes};
    void *tag;
    int result;
    assert_true(blk_ring_add(ring, false, f->fd, 512, &iov, 1, f));
    assert_true(blk_ring_submit(ring));
    for (int i = 0; i < 10000 && !blk_ring_reap(ring, &tag, &result); i++)
        nap();
    assert_ptr_equal(tag, f);
    assert_int_equal(result, 512);
    assert_true(holds(bytes, 1, 1));
    for (int i = 0; i < 8; i++)
        assert_true(blk_ring_add(ring, false, f->fd, 0, &iov, 1, f));
    assert_false(blk_ring_add(ring, false, f->fd, 0, &iov, 1, f));
    assert_true(blk_ring_submit(ring));
    for (int i = 0; i < 8;)
        i += blk_ring_reap(ring, &tag, &result);
    assert_true(rings_refuse() > 0);
    blk_ring_free(ring);
}

#define WITH(test, setup_) cmocka_unit_test_setup_teardown(test, setup_, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(the_configuration_says_what_it_is, setup),
        WITH(reads_and_writes, setup),
        WITH(reads_and_writes, setup_calls),
        WITH(reads_and_writes, setup_direct),
        WITH(any_layout_of_buffers_will_do, setup),
        WITH(any_layout_of_buffers_will_do, setup_direct),
        WITH(long_requests_use_indirect_tables, setup),
        WITH(long_requests_use_indirect_tables, setup_calls),
        WITH(many_requests_at_once, setup),
        WITH(many_requests_at_once, setup_calls),
        WITH(many_requests_at_once, setup_direct),
        WITH(the_driver_is_interrupted, setup),
        WITH(the_serial_is_read, setup),
        WITH(space_is_given_back, setup),
        WITH(a_read_only_disk_is_not_written_to, setup_read_only),
        WITH(bad_requests_are_answered, setup),
        WITH(bad_requests_are_answered, setup_calls),
        WITH(gigabytes_in_one_request_are_refused, setup),
        WITH(broken_rings_want_a_reset, setup),
        WITH(a_reset_waits_for_what_is_in_flight, setup),
        WITH(a_reset_waits_for_what_is_in_flight, setup_calls),
        WITH(a_reset_waits_for_what_is_in_flight, setup_direct),
        WITH(writes_mark_pages, setup),
        WITH(a_host_that_is_full_is_reported, setup),
        WITH(a_host_that_is_full_is_reported, setup_calls),
        WITH(write_through_is_answered_too, setup),
        WITH(limits_hold, setup_limited),
        WITH(limits_of_bytes_hold, setup_limited_bytes),
        WITH(a_stopped_disk_is_left_alone, setup),
        WITH(bad_configurations_are_refused, setup),
        WITH(a_ring_only_reads_and_writes, setup),
        cmocka_unit_test(the_bucket_counts),
    };
    return cmocka_run_group_tests_name("virtio-blk", tests, NULL, NULL);
}
