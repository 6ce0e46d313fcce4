/* The block device from the guest's side. */
#include "virtio/blk_device.h"
#include "virtio/blk_fixture.h"

#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

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

/* As on a host that makes writers wait: writes are the ring's. */
static int setup_slow(void **state)
{
    struct fixture *f = *state = make(&(struct flavour){.rings = true});
    for (unsigned i = 0; i < QUEUES; i++)
        f->blk->queues[i].slow_until = UINT64_MAX;
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
    return eventually(driver_status(&f->driver) & VIRTIO_STATUS_NEEDS_RESET);
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
    int64_t begin = clock_ms();
    for (unsigned i = 0; i < 40; i++) /* ten at once, then 100 a second */
        offer(f, 0, i, IN, i * 8, DATA, 512);
    driver_kick(&f->driver, 0);
    for (unsigned i = 0; i < 40; i++)
        assert_true(take(f, 0, &used));
    assert_in_range(clock_ms() - begin, 250, 5000);
    /* A reset does not wait for the limit. */
    for (unsigned i = 0; i < 40; i++)
        offer(f, 0, i, IN, i * 8, DATA, 512);
    driver_kick(&f->driver, 0);
    begin = clock_ms();
    driver_set_status(&f->driver, 0);
    assert_in_range(clock_ms() - begin, 0, 200);
}

static void limits_of_bytes_hold(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    int64_t begin = clock_ms();
    for (unsigned i = 0; i < 8; i++) /* 512 KiB, of which a tenth of a MiB at once */
        assert_int_equal(request(f, i & 1 ? OUT : IN, i * 128, DATA, 65536), OK);
    assert_in_range(clock_ms() - begin, 250, 5000);
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

#define WITH(test, setup_) cmocka_unit_test_setup_teardown(test, setup_, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(the_configuration_says_what_it_is, setup),
        WITH(reads_and_writes, setup),
        WITH(reads_and_writes, setup_calls),
        WITH(reads_and_writes, setup_direct),
        WITH(reads_and_writes, setup_slow),
        WITH(any_layout_of_buffers_will_do, setup),
        WITH(any_layout_of_buffers_will_do, setup_direct),
        WITH(long_requests_use_indirect_tables, setup),
        WITH(long_requests_use_indirect_tables, setup_calls),
        WITH(many_requests_at_once, setup),
        WITH(many_requests_at_once, setup_calls),
        WITH(many_requests_at_once, setup_direct),
        WITH(many_requests_at_once, setup_slow),
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
        WITH(a_reset_waits_for_what_is_in_flight, setup_slow),
        WITH(writes_mark_pages, setup),
        WITH(a_host_that_is_full_is_reported, setup),
        WITH(a_host_that_is_full_is_reported, setup_calls),
        WITH(a_host_that_is_full_is_reported, setup_slow),
        WITH(write_through_is_answered_too, setup),
        WITH(limits_hold, setup_limited),
        WITH(limits_of_bytes_hold, setup_limited_bytes),
        WITH(a_stopped_disk_is_left_alone, setup),
        WITH(bad_configurations_are_refused, setup),
    };
    return cmocka_run_group_tests_name("virtio-blk", tests, NULL, NULL);
}
