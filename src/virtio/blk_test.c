/* The block device from the guest's side, over a file. */
#include "virtio/blk.h"

#include "base/bytes.h"
#include "virtio/pci.h"
#include "virtio/test_driver.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum {
    SIZE = 8 << 20,
    QUEUES = 2,
    HEADER_AT = 16 << 20, /* in guest memory, one for each request under way */
    DATA_AT = 17 << 20,
    STATUS_AT = 40 << 20,
    NO_STATUS = 0xee,
    PATIENCE_MS = 10000,
};

enum { IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8, DISCARD = 11, WRITE_ZEROES = 13 };
enum { OK = 0, IOERR = 1, UNSUPP = 2 };

#define F_RO           (1u << 5)
#define F_FLUSH        (1u << 9)
#define F_DISCARD      (1u << 13)
#define F_WRITE_ZEROES (1u << 14)
#define ALL            (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | 0x7644)

struct fixture {
    struct driver_machine machine;
    struct driver driver;
    struct virtio_pci *transport;
    int file;
    unsigned requests;
};

static struct fixture *f;

static void begin(bool read_only)
{
    char path[] = "blk_test.XXXXXX";
    struct disk *disk;
    struct virtio_device *device;
    f = calloc(1, sizeof *f);
    f->file = mkstemp(path);
    assert_true(f->file >= 0);
    unlink(path);
    assert_int_equal(ftruncate(f->file, SIZE), 0);
    assert_int_equal(
        disk_open_raw(dup(f->file), &(struct disk_options){.read_only = read_only}, &disk, NULL),
        0);
    const struct virtio_blk_config config = {
        .disk = disk, .queues = QUEUES, .serial = "a-serial-of-twenty-bytes"};
    driver_machine_init(&f->machine);
    assert_int_equal(virtio_blk_new(f->machine.mem, &config, &device, NULL), 0);
    assert_int_equal(virtio_pci_new(f->machine.host, PCI_SLOT_ANY, device, &f->transport, NULL), 0);
    driver_machine_place(&f->machine);
    driver_init(&f->driver, &f->machine, pci_device_slot(virtio_pci_device(f->transport)));
}

static void live(uint64_t features)
{
    assert_true(driver_negotiate(&f->driver, features & driver_offered(&f->driver)));
    driver_msix_on(&f->driver, QUEUES + 1);
    for (unsigned i = 0; i < QUEUES; i++)
        assert_true(driver_queue(&f->driver, i, 256, true));
    driver_live(&f->driver);
}

static int set_up(void **state)
{
    (void)state;
    begin(false);
    live(ALL);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    virtio_pci_free(f->transport);
    driver_machine_fini(&f->machine);
    close(f->file);
    free(f);
    return 0;
}

static uint8_t *memory(uint64_t address, uint64_t size)
{
    return mem_at(f->machine.mem, address, size, true);
}

/* Writes a header and the initial status; the number of the request. */
static unsigned prepare(uint32_t type, uint64_t sector)
{
    unsigned number = f->requests++;
    uint8_t *header = memory(HEADER_AT + number * 16, 16);
    le32_write(header, type);
    le32_write(header + 4, 0);
    le64_write(header + 8, sector);
    *memory(STATUS_AT + number, 1) = NO_STATUS;
    return number;
}

static bool wait_take(unsigned queue, uint32_t *ret_length)
{
    uint32_t head;
    for (int i = 0; i < PATIENCE_MS * 5; i++) {
        if (driver_ring_take(&f->driver.rings[queue], &head, ret_length))
            return true;
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
    return false;
}

/* One request with `length` bytes at DATA_AT; its status. */
static unsigned request_on(unsigned queue, uint32_t type, uint64_t sector, uint32_t length,
                           bool device_writes)
{
    unsigned number = prepare(type, sector);
    struct driver_buffer buffers[] = {{HEADER_AT + number * 16, 16, false},
                                      {DATA_AT, length, device_writes},
                                      {STATUS_AT + number, 1, true}};
    if (length == 0)
        buffers[1] = buffers[2];
    uint32_t used;
    assert_true(driver_ring_add(&f->driver.rings[queue], buffers, length ? 3 : 2) >= 0);
    driver_kick(&f->driver, queue);
    assert_true(wait_take(queue, &used));
    assert_int_equal(used, device_writes ? length + 1 : 1);
    return *memory(STATUS_AT + number, 1);
}

static unsigned request(uint32_t type, uint64_t sector, uint32_t length, bool device_writes)
{
    return request_on(0, type, sector, length, device_writes);
}

static void fill(uint8_t *bytes, size_t size, uint32_t seed)
{
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)((seed = seed * 1664525 + 1013904223) >> 24);
}

static void what_is_written_is_read_and_lies_in_the_file(void **state)
{
    (void)state;
    static uint8_t sent[64 << 10], back[64 << 10];
    for (unsigned queue = 0; queue < QUEUES; queue++) {
        fill(sent, sizeof sent, queue + 1);
        memcpy(memory(DATA_AT, sizeof sent), sent, sizeof sent);
        assert_int_equal(request_on(queue, OUT, 100, sizeof sent, false), OK);
        assert_int_equal(pread(f->file, back, sizeof back, 100 * 512), sizeof back);
        assert_memory_equal(back, sent, sizeof sent);
        memset(memory(DATA_AT, sizeof sent), 0, sizeof sent);
        assert_int_equal(request_on(queue, IN, 101, sizeof sent - 512, true), OK);
        assert_memory_equal(memory(DATA_AT, sizeof sent), sent + 512, sizeof sent - 512);
        assert_int_equal(f->machine.messages[queue + 1] > 0, 1);
    }
    assert_int_equal(request(FLUSH, 0, 0, false), OK);
}

/* Header, data and status cut anywhere: 5.2.6 says nothing of where buffers end. */
static void buffers_may_be_cut_anywhere(void **state)
{
    (void)state;
    uint8_t sent[1024];
    fill(sent, sizeof sent, 9);
    unsigned number = prepare(OUT, 7);
    uint64_t header = HEADER_AT + number * 16;
    memcpy(memory(DATA_AT, 1024), sent, 1024);
    const struct driver_buffer out[] = {{header, 3, false},          {header + 3, 13, false},
                                        {DATA_AT, 1, false},         {DATA_AT + 1, 700, false},
                                        {DATA_AT + 701, 323, false}, {STATUS_AT + number, 1, true}};
    uint32_t used;
    driver_ring_add(&f->driver.rings[0], out, ARRAY_LEN(out));
    driver_kick(&f->driver, 0);
    assert_true(wait_take(0, &used));
    assert_int_equal(*memory(STATUS_AT + number, 1), OK);
    /* The status in the same buffer as the last byte of data. */
    number = prepare(IN, 7);
    memset(memory(DATA_AT, 1025), NO_STATUS, 1025);
    const struct driver_buffer in[] = {
        {HEADER_AT + number * 16, 16, false}, {DATA_AT, 1000, true}, {DATA_AT + 1000, 25, true}};
    driver_ring_add(&f->driver.rings[0], in, ARRAY_LEN(in));
    driver_kick(&f->driver, 0);
    assert_true(wait_take(0, &used));
    assert_int_equal(used, 1025);
    assert_memory_equal(memory(DATA_AT, 1024), sent, 1024);
    assert_int_equal(*memory(DATA_AT + 1024, 1), OK);
}

static void many_at_once_all_come_back(void **state)
{
    (void)state;
    enum { COUNT = 80 };
    for (unsigned i = 0; i < COUNT; i++) {
        unsigned number = prepare(OUT, i * 8);
        memset(memory(DATA_AT + i * 4096, 4096), (int)i + 1, 4096);
        const struct driver_buffer buffers[] = {{HEADER_AT + number * 16, 16, false},
                                                {DATA_AT + i * 4096, 4096, false},
                                                {STATUS_AT + number, 1, true}};
        assert_true(driver_ring_add(&f->driver.rings[i % QUEUES], buffers, 3) >= 0);
    }
    for (unsigned queue = 0; queue < QUEUES; queue++)
        driver_kick(&f->driver, queue);
    uint32_t used;
    for (unsigned i = 0; i < COUNT; i++)
        assert_true(wait_take(i % QUEUES, &used));
    for (unsigned i = 0; i < COUNT; i++) {
        uint8_t byte;
        assert_int_equal(*memory(STATUS_AT + i, 1), OK);
        assert_int_equal(pread(f->file, &byte, 1, i * 4096 + 4095), 1);
        assert_int_equal(byte, i + 1);
    }
}

static void the_configuration_says_what_it_is(void **state)
{
    (void)state;
    struct driver *d = &f->driver;
    assert_int_equal(driver_config(d, 0, 4), 0x10421af4);
    assert_int_equal(driver_read(d, d->device, 4), SIZE / 512);
    assert_int_equal(driver_read(d, d->device + 4, 4), 0);
    assert_int_equal(driver_read(d, d->device + 12, 4), 254);
    assert_int_equal(driver_read(d, d->device + 20, 4), 512);
    assert_int_equal(driver_read(d, d->device + 34, 2), QUEUES);
    assert_int_equal(driver_read(d, d->device + 40, 4), 16);
    assert_int_equal(driver_read(d, d->device + 56, 1), 1);
    assert_int_equal(request(GET_ID, 0, 20, true), OK);
    assert_memory_equal(memory(DATA_AT, 20), "a-serial-of-twenty-bytes", 20);
    assert_int_equal(request(GET_ID, 0, 19, true), IOERR);
}

static unsigned range(uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags)
{
    uint8_t *bytes = memory(DATA_AT, 16);
    le64_write(bytes, sector);
    le32_write(bytes + 8, sectors);
    le32_write(bytes + 12, flags);
    return request(type, 0, 16, false);
}

static void ranges_are_zeroed_and_given_back(void **state)
{
    (void)state;
    static uint8_t back[1 << 20];
    struct stat full, less;
    memset(memory(DATA_AT, sizeof back), 1, sizeof back);
    assert_int_equal(request(OUT, 0, sizeof back, false), OK);
    assert_int_equal(request(FLUSH, 0, 0, false), OK);
    fstat(f->file, &full);
    assert_int_equal(range(WRITE_ZEROES, 8, 8, 0), OK);
    assert_int_equal(range(WRITE_ZEROES, 128, 128, 1), OK);
    assert_int_equal(range(DISCARD, 1024, 512, 0), OK);
    assert_int_equal(pread(f->file, back, 512 * 1024, 0), 512 * 1024);
    for (unsigned i = 0; i < 1024; i++)
        assert_int_equal(back[i * 512], !(i - 8 < 8 || i - 128 < 128));
    fsync(f->file);
    fstat(f->file, &less);
    /* The file system may want a block or two to remember that. */
    assert_true(less.st_blocks <= full.st_blocks - 128 - 512 + 64);
    /* What is not asked for properly. */
    assert_int_equal(range(DISCARD, 0, 8, 1), UNSUPP);
    assert_int_equal(range(WRITE_ZEROES, 0, 8, 2), UNSUPP);
    assert_int_equal(range(DISCARD, SIZE / 512 - 4, 8, 0), IOERR);
    assert_int_equal(range(DISCARD, UINT64_MAX, 1, 0), IOERR);
    assert_int_equal(range(DISCARD, 0, UINT32_MAX, 0), IOERR);
    assert_int_equal(request(DISCARD, 0, 0, false), IOERR);
    assert_int_equal(request(DISCARD, 0, 17, false), IOERR);
    assert_int_equal(request(DISCARD, 0, 16 * 17, false), IOERR);
}

static void what_lies_outside_is_an_error(void **state)
{
    (void)state;
    assert_int_equal(request(IN, SIZE / 512, 512, true), IOERR);
    assert_int_equal(request(IN, SIZE / 512 - 1, 1024, true), IOERR);
    assert_int_equal(request(IN, UINT64_MAX, 512, true), IOERR);
    assert_int_equal(request(IN, (UINT64_MAX >> 9) + 1, 512, true), IOERR);
    assert_int_equal(request(IN, 0, 100, true), IOERR);
    assert_int_equal(request(OUT, SIZE / 512, 512, false), IOERR);
    assert_int_equal(request(OUT, 0, 513, false), IOERR);
    assert_int_equal(request(99, 0, 512, true), UNSUPP);
    assert_int_equal(request(IN, SIZE / 512 - 1, 512, true), OK);
}

static void a_read_only_disk_refuses_writes(void **state)
{
    (void)state;
    tear_down(NULL);
    begin(true);
    uint64_t offered = driver_offered(&f->driver);
    assert_true(offered & F_RO);
    assert_false(offered & (F_DISCARD | F_WRITE_ZEROES));
    live(ALL | F_RO);
    assert_int_equal(request(OUT, 0, 512, false), IOERR);
    assert_int_equal(range(DISCARD, 0, 8, 0), UNSUPP);
    assert_int_equal(request(IN, 0, 512, true), OK);
    assert_int_equal(request(FLUSH, 0, 0, false), OK);
}

/* The driver breaks the protocol: a reset is asked for, and mends it. */
static void broken_requests_need_a_reset(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        unsigned number = prepare(IN, 0);
        const struct driver_buffer chains[3][2] = {
            {{HEADER_AT + number * 16, 16, false}, {DATA_AT, 512, false}}, /* no status */
            {{HEADER_AT + number * 16, 15, false}, {STATUS_AT + number, 1, true}},
            {{DATA_AT, 512, true}, {STATUS_AT + number, 1, true}}, /* no header */
        };
        driver_ring_add(&f->driver.rings[0], chains[i], 2);
        driver_kick(&f->driver, 0);
        for (int tries = 0; !(driver_status(&f->driver) & VIRTIO_STATUS_NEEDS_RESET); tries++) {
            assert_true(tries < PATIENCE_MS);
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        }
        assert_int_equal(*memory(STATUS_AT + number, 1), NO_STATUS);
        live(ALL);
        assert_int_equal(request(IN, 0, 512, true), OK);
    }
}

static void the_hosts_errors_are_the_guests(void **state)
{
    (void)state;
    /* The disk believes that it may write, and its descriptor may not. */
    struct disk *disk;
    struct virtio_device *device;
    struct virtio_pci *transport;
    struct driver_machine machine;
    char path[] = "/proc/self/fd/XXXXXXXXXX";
    snprintf(path, sizeof path, "/proc/self/fd/%d", f->file);
    int reader = open(path, O_RDONLY);
    assert_int_equal(disk_open_raw(reader, &(struct disk_options){0}, &disk, NULL), 0);
    const struct virtio_blk_config config = {.disk = disk, .queues = 1};
    driver_machine_init(&machine);
    assert_int_equal(virtio_blk_new(machine.mem, &config, &device, NULL), 0);
    assert_int_equal(virtio_pci_new(machine.host, PCI_SLOT_ANY, device, &transport, NULL), 0);
    driver_machine_place(&machine);
    struct driver *d = calloc(1, sizeof *d);
    driver_init(d, &machine, pci_device_slot(virtio_pci_device(transport)));
    assert_true(driver_negotiate(d, ALL & driver_offered(d)));
    assert_true(driver_queue(d, 0, 64, false));
    driver_live(d);
    uint8_t *header = mem_at(machine.mem, HEADER_AT, 16, true);
    le32_write(header, OUT);
    const struct driver_buffer buffers[] = {
        {HEADER_AT, 16, false}, {DATA_AT, 512, false}, {STATUS_AT, 1, true}};
    driver_ring_add(&d->rings[0], buffers, 3);
    driver_kick(d, 0);
    uint32_t head, used;
    int tries = 0;
    while (!driver_ring_take(&d->rings[0], &head, &used) && ++tries < PATIENCE_MS)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    assert_int_equal(*(uint8_t *)mem_at(machine.mem, STATUS_AT, 1, false), IOERR);
    virtio_pci_free(transport);
    driver_machine_fini(&machine);
    free(d);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_written_is_read_and_lies_in_the_file),
        TEST(buffers_may_be_cut_anywhere),
        TEST(many_at_once_all_come_back),
        TEST(the_configuration_says_what_it_is),
        TEST(ranges_are_zeroed_and_given_back),
        TEST(what_lies_outside_is_an_error),
        TEST(a_read_only_disk_refuses_writes),
        TEST(broken_requests_need_a_reset),
        TEST(the_hosts_errors_are_the_guests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
