/* The block device saved with requests on their way, and loaded beside another disk of its size. */
#include "base/bytes.h"
#include "virtio/blk.h"
#include "virtio/state_fixture.h"

#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum {
    SLOT = 2,
    QUEUES = 2,
    RING = 128,
    DISK_BYTES = 8 << 20,
    SECTORS = DISK_BYTES / 512,
    HEADERS = 16 << 20, /* guest memory: 64 bytes a request */
    DATA = 20 << 20,
    SIZE = 65536, /* of a request */
    UNTOUCHED = 0xee,
    WRITEBACK = 32, /* offset in the configuration */
};

enum { IN = 0, OUT = 1, FLUSH = 4 };
enum { F_FLUSH = 1 << 9, F_WCE = 1 << 11, F_MQ = 1 << 12 };

#define USUAL (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | F_FLUSH | F_MQ)

struct fixture {
    struct side side; /* first */
    char path[64];
    int fd;
    struct disk *disk;
    struct blk_ring *rings[QUEUES];
    struct virtio_blk *blk;
};

static uint8_t pattern(uint64_t sector)
{
    return (uint8_t)(sector * 7 + (sector >> 8));
}

static void fill_disk(int fd, uint64_t bytes)
{
    uint8_t sector[512];
    for (uint64_t i = 0; i < bytes / 512; i++) {
        memset(sector, pattern(i), sizeof sector);
        assert_int_equal(pwrite(fd, sector, sizeof sector, (off_t)i * 512), sizeof sector);
    }
}

static struct fixture *make(uint64_t bytes, bool rings, bool read_only, uint64_t iops)
{
    struct fixture *f = calloc(1, sizeof *f);
    driver_machine_init(&f->side.machine);
    strcpy(f->path, "/var/tmp/lodge-blk-state-XXXXXX");
    f->fd = mkstemp(f->path);
    assert_true(f->fd >= 0);
    fill_disk(f->fd, bytes);
    const struct disk_options options = {.format = DISK_FORMAT_RAW, .read_only = read_only};
    assert_int_equal(disk_open(f->path, &options, &f->disk, NULL), 0);
    for (int i = 0; rings && i < QUEUES; i++)
        blk_ring_new(BLK_RING_ENTRIES, &f->rings[i], NULL); /* or NULL, where the host has none */
    const struct virtio_blk_config config = {
        .disk = f->disk, .queues = QUEUES, .rings = f->rings, .iops = iops};
    assert_int_equal(virtio_blk_new(f->side.machine.mem, &config, &f->blk, NULL), 0);
    assert_int_equal(side_init(&f->side, virtio_blk_device(f->blk), SLOT), 0);
    return f;
}

static void done(struct fixture *f)
{
    side_fini(&f->side);
    for (int i = 0; i < QUEUES; i++)
        blk_ring_free(f->rings[i]);
    disk_close(f->disk);
    close(f->fd);
    unlink(f->path);
    free(f);
}

static void bring_up(struct fixture *f, uint64_t features)
{
    struct driver *driver = &f->side.driver;
    assert_true(driver_negotiate(driver, features));
    driver_msix_on(driver, QUEUES + 1);
    for (unsigned queue = 0; queue < QUEUES; queue++)
        assert_true(driver_queue(driver, queue, RING, true));
    driver_live(driver);
}

static uint8_t *guest(struct fixture *f, uint64_t address, uint64_t size)
{
    return mem_at(f->side.machine.mem, address, size, true);
}

static void offer(struct fixture *f, unsigned n, uint32_t type, uint64_t sector)
{
    uint64_t at = HEADERS + n * 64u, data = DATA + (uint64_t)n * SIZE;
    uint8_t *bytes = guest(f, at, 64);
    le32_write(bytes, type);
    le32_write(bytes + 4, 0);
    le64_write(bytes + 8, sector);
    bytes[16] = UNTOUCHED;
    const struct driver_buffer with[] = {
        {at, 16, false}, {data, SIZE, type == IN}, {at + 16, 1, true}};
    const struct driver_buffer without[] = {{at, 16, false}, {at + 16, 1, true}};
    bool flush = type == FLUSH;
    assert_true(driver_ring_add(&f->side.driver.rings[n % QUEUES], flush ? without : with,
                                flush ? 2 : 3) >= 0);
}

static uint8_t status(struct fixture *f, unsigned n)
{
    return __atomic_load_n(guest(f, HEADERS + n * 64u + 16, 1), __ATOMIC_ACQUIRE);
}

/* How many were given back since the last time. */
static unsigned taken(struct fixture *f)
{
    unsigned count = 0;
    uint32_t head, length;
    for (unsigned queue = 0; queue < QUEUES; queue++)
        while (driver_ring_take(&f->side.driver.rings[queue], &head, &length))
            count++;
    return count;
}

static bool all(const uint8_t *bytes, size_t size, uint8_t value)
{
    for (size_t i = 0; i < size; i++)
        if (bytes[i] != value)
            return false;
    return true;
}

/* ---- */

enum { MANY = 40 };

static uint64_t sector_of(unsigned n, unsigned round)
{
    return (n * 389 + round * 131) % (SECTORS - SIZE / 512);
}

/* Every fifth is a write of what the disk has there already, every seventh a flush. */
static uint32_t type_of(unsigned n)
{
    return n % 7 == 6 ? FLUSH : n % 5 == 4 ? OUT : IN;
}

static void start_many(struct fixture *f, unsigned round)
{
    for (unsigned n = 0; n < MANY; n++) {
        uint64_t sector = sector_of(n, round);
        for (unsigned i = 0; i < SIZE / 512; i++)
            memset(guest(f, DATA + n * (uint64_t)SIZE + i * 512, 512),
                   type_of(n) == OUT ? pattern(sector + i) : UNTOUCHED, 512);
        offer(f, n, type_of(n), sector);
    }
    driver_kick(&f->side.driver, 0);
    if (round % 2) /* else the device does not know yet of half of them */
        driver_kick(&f->side.driver, 1);
}

static void check_many(struct fixture *f, unsigned round)
{
    for (unsigned n = 0; n < MANY; n++) {
        assert_int_equal(status(f, n), 0);
        for (unsigned i = 0; type_of(n) != FLUSH && i < SIZE / 512; i++)
            assert_true(all(guest(f, DATA + n * (uint64_t)SIZE + i * 512, 512), 512,
                            pattern(sector_of(n, round) + i)));
    }
}

/* What was begun is finished, what was not waits; there is no third. */
static void check_stands(struct fixture *f, unsigned finished)
{
    uint8_t *copy = malloc(MANY * SIZE);
    unsigned answered = 0;
    memcpy(copy, guest(f, DATA, MANY * SIZE), MANY * SIZE);
    for (unsigned n = 0; n < MANY; n++)
        answered += status(f, n) != UNTOUCHED;
    assert_int_equal(answered, finished);
    nap();
    assert_memory_equal(copy, guest(f, DATA, MANY * SIZE), MANY * SIZE);
    assert_int_equal(taken(f), 0);
    free(copy);
}

static void requests_on_their_way(bool rings)
{
    unsigned left = 0;
    for (unsigned round = 0; round < 24; round++) {
        /* A limit, now and then: some then wait, however the host shares out its time. */
        struct fixture *one = make(DISK_BYTES, rings, false, round % 8 == 7);
        struct fixture *two = make(DISK_BYTES, !rings, false, 0);
        bring_up(one, USUAL);
        start_many(one, round);
        for (unsigned i = 0; i < round % 8; i++)
            sched_yield();
        struct saved saved = side_save(&one->side);
        unsigned finished = taken(one);
        left += MANY - finished;
        check_stands(one, finished);
        assert_null(side_load(&two->side, &saved));
        driver_follow(&two->side, &one->side);
        for (int tries = PATIENCE_MS * NAPS_A_MS; finished < MANY && tries > 0; tries--) {
            finished += taken(two);
            nap();
        }
        assert_int_equal(finished, MANY);
        check_many(two, round);
        assert_true(two->side.machine.messages[1] + two->side.machine.messages[2] > 0 ||
                    one->side.machine.messages[1] + one->side.machine.messages[2] > 0);
        saved_free(&saved);
        done(one);
        done(two);
    }
    assert_true(left > 0); /* else this has tested nothing */
}

static void requests_on_their_way_are_finished_or_wait(void **state)
{
    requests_on_their_way(true);
}

static void so_are_those_without_a_ring(void **state)
{
    requests_on_their_way(false);
}

/* The limit's bucket is the host's: whoever waits for it is served there when it has its turn. */
static void what_a_limit_holds_back_waits(void **state)
{
    struct fixture *one = make(DISK_BYTES, true, false, 1), *two = make(DISK_BYTES, true, false, 0);
    bring_up(one, USUAL);
    start_many(one, 3);
    struct saved saved = side_save(&one->side);
    unsigned finished = taken(one);
    assert_true(finished < MANY);
    check_stands(one, finished);
    assert_null(side_load(&two->side, &saved));
    driver_follow(&two->side, &one->side);
    for (int tries = PATIENCE_MS * NAPS_A_MS; finished < MANY && tries > 0; tries--) {
        finished += taken(two);
        nap();
    }
    assert_int_equal(finished, MANY);
    check_many(two, 3);
    saved_free(&saved);
    done(one);
    done(two);
}

/* While it is held, not a byte of guest memory is written: it is being saved. */
static void stand_held(uint64_t features)
{
    struct fixture *f = make(DISK_BYTES, true, false, 0);
    struct mem *mem = f->side.machine.mem;
    bring_up(f, features);
    virtio_hold(f->side.device);
    mem->dirty_log = true;
    for (unsigned round = 0; round < 20; round++) {
        offer(f, 0, IN, 0);
        offer(f, 1, IN, 0);
        driver_kick(&f->side.driver, 0);
        driver_kick(&f->side.driver, 1);
        nap();
        for (unsigned page = 0; page < mem->regions[0].size >> MEM_PAGE_SHIFT; page++)
            assert_int_equal(mem->regions[0].marks[page] & MEM_PAGE_DIRTY, 0);
    }
    virtio_release(f->side.device);
    for (unsigned finished = 0, tries = PATIENCE_MS * NAPS_A_MS; finished < 40; tries--) {
        assert_true(tries > 0);
        finished += taken(f);
        nap();
    }
    /* And the driver is heard as before. */
    for (unsigned queue = 0; queue < QUEUES; queue++)
        for (int tries = PATIENCE_MS * NAPS_A_MS;
             driver_ring_used_flags(&f->side.driver.rings[queue]) && tries > 0; tries--)
            nap();
    assert_int_equal(driver_ring_used_flags(&f->side.driver.rings[0]), 0);
    assert_int_equal(driver_ring_used_flags(&f->side.driver.rings[1]), 0);
    done(f);
}

static void a_held_device_leaves_memory_alone(void **state)
{
    stand_held(USUAL);                       /* where starting notifications is a write */
    stand_held(USUAL & ~VIRTIO_F_EVENT_IDX); /* where stopping them is one, too */
}

static void holding_twice_and_an_idle_device(void **state)
{
    struct fixture *f = make(DISK_BYTES, true, false, 0);
    virtio_hold(f->side.device); /* no driver yet */
    virtio_release(f->side.device);
    bring_up(f, USUAL);
    for (unsigned round = 0; round < 50; round++) {
        virtio_hold(f->side.device);
        virtio_hold(f->side.device);
        virtio_release(f->side.device);
        start_many(f, 2 * round + 1);
        for (unsigned finished = 0, tries = PATIENCE_MS * NAPS_A_MS; finished < MANY; tries--) {
            assert_true(tries > 0);
            finished += taken(f);
            nap();
        }
        check_many(f, 2 * round + 1);
    }
    done(f);
}

/* A device that was held in the middle of its work and has nothing left to do hears the driver. */
static void a_held_device_is_not_deaf_afterwards(void **state)
{
    struct fixture *f = make(DISK_BYTES, true, false, 0);
    bring_up(f, USUAL);
    for (unsigned round = 0; round < 200; round++) {
        start_many(f, 2 * round + 1);
        for (unsigned i = 0; i < round % 16; i++)
            sched_yield();
        virtio_hold(f->side.device);
        nap(); /* its threads sleep */
        virtio_release(f->side.device);
        for (unsigned finished = 0, tries = PATIENCE_MS * 5; finished < MANY; tries--) {
            assert_true(tries > 0);
            finished += taken(f);
            nap();
        }
        for (unsigned queue = 0; queue < QUEUES; queue++)
            for (int tries = PATIENCE_MS; f->side.device->queues[queue].notifications_off;
                 tries--) {
                assert_true(tries > 0);
                nap();
            }
    }
    done(f);
}

static void the_drivers_cache_mode_is_kept(void **state)
{
    for (unsigned mode = 0; mode < 3; mode++) {
        struct fixture *one = make(DISK_BYTES, true, false, 0);
        struct fixture *two = make(DISK_BYTES, true, false, 0);
        struct driver *driver = &one->side.driver;
        bring_up(one, USUAL | F_WCE);
        if (mode < 2)
            driver_write(driver, driver->device + WRITEBACK, 1, mode);
        struct saved saved = side_save(&one->side);
        assert_null(side_load(&two->side, &saved));
        driver_follow(&two->side, &one->side);
        driver = &two->side.driver;
        assert_int_equal(driver_read(driver, driver->device + WRITEBACK, 1), mode != 0);
        saved_free(&saved);
        done(one);
        done(two);
    }
}

static void another_disk_is_refused(void **state)
{
    struct fixture *one = make(DISK_BYTES, true, false, 0);
    bring_up(one, USUAL);
    struct saved saved = side_save(&one->side);
    struct fixture *two = make(DISK_BYTES - 512, true, false, 0);
    const char *why = side_load(&two->side, &saved);
    assert_non_null(why);
    assert_non_null(strstr(why, "another size"));
    done(two);
    saved_free(&saved);
    done(one);

    one = make(DISK_BYTES, true, true, 0);
    saved = side_save(&one->side);
    two = make(DISK_BYTES, true, false, 0);
    why = side_load(&two->side, &saved);
    assert_non_null(why);
    assert_non_null(strstr(why, "may be written to"));
    done(two);
    saved_free(&saved);
    done(one);
}

/* ---- another disk in place of one, under load ---- */

enum { EXCHANGES = 12, STEP = SIZE / 512 };

struct exchange {
    char path[96];          /* of what was frozen */
    uint8_t expected[MANY]; /* what its piece of the disk holds; 0: as it was in the beginning */
};

static void check_disk(struct disk *disk, const uint8_t expected[MANY])
{
    static uint8_t bytes[SIZE];
    for (unsigned n = 0; n < MANY; n++) {
        assert_int_equal(disk_read(disk, n * (uint64_t)SIZE, bytes, SIZE), 0);
        for (unsigned i = 0; i < STEP; i++)
            assert_true(all(bytes + i * 512, 512,
                            expected[n] ? expected[n] : pattern(n * (uint64_t)STEP + i)));
    }
}

static void write_many(struct fixture *f, unsigned round)
{
    for (unsigned n = 0; n < MANY; n++) {
        memset(guest(f, DATA + n * (uint64_t)SIZE, SIZE), (int)(round * MANY + n) % 251 + 1, SIZE);
        offer(f, n, n % 7 == 6 ? FLUSH : OUT, n * (uint64_t)STEP);
    }
    driver_kick(&f->side.driver, 0);
    driver_kick(&f->side.driver, 1);
    for (unsigned i = 0; i < round % 5; i++)
        sched_yield();
}

static void note_answered(struct fixture *f, unsigned round, uint8_t expected[MANY])
{
    for (unsigned n = 0; n < MANY; n++)
        if (n % 7 != 6 && status(f, n) == 0)
            expected[n] = (uint8_t)((round * MANY + n) % 251 + 1);
}

static struct disk *put_on_top(struct fixture *f, const char *below, unsigned round, char *path)
{
    struct disk_create create = {.format = DISK_FORMAT_QCOW2,
                                 .backing = below,
                                 .backing_format = round ? DISK_FORMAT_QCOW2 : DISK_FORMAT_RAW,
                                 .size = DISK_BYTES};
    const struct disk_options options = {0};
    struct disk *top;
    sprintf(path, "%s.%u", f->path, round);
    assert_int_equal(disk_create(path, &create, NULL), 0);
    assert_int_equal(disk_stack(path, &options, f->disk, &top, NULL), 0);
    virtio_blk_exchange(f->blk, top);
    return top;
}

/* What was answered before is in the old file and stays so; what waited goes into the new one.
 * Every third time it is taken back: then it goes into the old one as well. */
static void a_disk_is_exchanged_under_load(void **state)
{
    static struct exchange rows[EXCHANGES];
    struct fixture *f = make(DISK_BYTES, true, false, 0);
    uint8_t expected[MANY] = {0};
    unsigned waited = 0, count = 0;
    char below[96];
    strcpy(below, f->path);
    bring_up(f, USUAL);
    for (unsigned round = 0; round < EXCHANGES; round++) {
        char path[96];
        write_many(f, round);
        virtio_hold(f->side.device);
        assert_int_equal(virtio_blk_flush(f->blk), 0);
        unsigned finished = taken(f);
        waited += MANY - finished;
        note_answered(f, round, expected);
        struct disk *top = put_on_top(f, below, count, path);
        if (round % 3 == 2) {
            virtio_blk_exchange(f->blk, disk_below(top));
            assert_ptr_equal(disk_unstack(top), f->disk);
            unlink(path);
        } else {
            disk_stack_for_good(top);
            f->disk = top;
            strcpy(rows[count].path, below);
            memcpy(rows[count++].expected, expected, sizeof expected);
            strcpy(below, path);
        }
        virtio_release(f->side.device);
        for (int tries = PATIENCE_MS * 5; finished < MANY && tries > 0; tries--) {
            finished += taken(f);
            nap();
        }
        assert_int_equal(finished, MANY);
        note_answered(f, round, expected);
    }
    assert_true(waited > 0);
    check_disk(f->disk, expected);
    for (unsigned i = 0; i < count; i++) {
        const struct disk_options options = {
            .format = i ? DISK_FORMAT_QCOW2 : DISK_FORMAT_RAW, .read_only = true, .unlocked = true};
        struct disk *old;
        assert_int_equal(disk_open(rows[i].path, &options, &old, NULL), 0);
        check_disk(old, rows[i].expected);
        disk_close(old);
    }
    char name[96];
    strcpy(name, f->path);
    done(f);
    for (unsigned i = 0; i < count; i++) {
        char path[128];
        struct disk_checker checker = {0};
        struct disk_check found;
        snprintf(path, sizeof path, "%s.%u", name, i);
        assert_int_equal(disk_check(path, DISK_FORMAT_QCOW2, &checker, &found, NULL), 0);
        assert_int_equal(found.errors + found.leaks, 0);
        unlink(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_on_their_way_are_finished_or_wait),
        cmocka_unit_test(so_are_those_without_a_ring),
        cmocka_unit_test(what_a_limit_holds_back_waits),
        cmocka_unit_test(a_held_device_leaves_memory_alone),
        cmocka_unit_test(holding_twice_and_an_idle_device),
        cmocka_unit_test(a_held_device_is_not_deaf_afterwards),
        cmocka_unit_test(the_drivers_cache_mode_is_kept),
        cmocka_unit_test(another_disk_is_refused),
        cmocka_unit_test(a_disk_is_exchanged_under_load),
    };
    return cmocka_run_group_tests_name("blk state", tests, NULL, NULL);
}
