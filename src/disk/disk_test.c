/* Raw disks and what all formats have in common. */
#include "disk/disk.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

struct fixture {
    char folder[64];
    char path[128];
    struct err err;
};

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    strcpy(fixture->folder, "/var/tmp/disk-XXXXXX"); /* /tmp may have no O_DIRECT */
    assert_non_null(mkdtemp(fixture->folder));
    snprintf(fixture->path, sizeof fixture->path, "%s/disk", fixture->folder);
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    unlink(fixture->path);
    assert_int_equal(rmdir(fixture->folder), 0);
    free(fixture);
    return 0;
}

static struct disk *make(struct fixture *fixture, uint64_t size, struct disk_options options)
{
    struct disk *disk = NULL;
    struct disk_create create = {.format = DISK_FORMAT_RAW, .size = size};
    assert_int_equal(disk_create(fixture->path, &create, &fixture->err), 0);
    assert_int_equal(disk_open(fixture->path, &options, &disk, &fixture->err), 0);
    return disk;
}

static void fill(uint8_t *bytes, size_t length, unsigned seed)
{
    for (size_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)(seed + i * 7 + (i >> 8));
}

static void any_alignment(void **state, enum disk_cache cache)
{
    static uint8_t model[20 * DISK_SECTOR], bytes[20 * DISK_SECTOR];
    struct disk *disk = make(*state, sizeof model,
                             (struct disk_options){.format = DISK_FORMAT_RAW, .cache = cache});
    memset(model, 0, sizeof model);
    unsigned seed = 1;
    for (int i = 0; i < 300; i++) {
        seed = seed * 1103515245 + 12345;
        size_t offset = (seed >> 8) % sizeof model;
        size_t length = (seed >> 3) % 5000 % (sizeof model - offset + 1);
        fill(model + offset, length, seed);
        memcpy(bytes, model + offset, length);
        struct iovec iov[] = {
            {bytes, length / 3}, {bytes, 0}, {bytes + length / 3, length - length / 3}};
        assert_int_equal(disk_writev(disk, offset, iov, 3), 0);
        offset = (seed >> 5) % sizeof model;
        length = sizeof model - offset;
        assert_int_equal(disk_read(disk, offset, bytes, length), 0);
        assert_memory_equal(bytes, model + offset, length);
    }
    assert_int_equal(disk_flush(disk), 0);
    assert_int_equal(disk_close(disk), 0);
    struct stat about;
    assert_int_equal(stat(((struct fixture *)*state)->path, &about), 0);
    assert_int_equal(about.st_size, sizeof model);
}

static void test_any_alignment(void **state)
{
    any_alignment(state, DISK_CACHE_WRITEBACK);
}

static void test_any_alignment_past_the_cache(void **state)
{
    any_alignment(state, DISK_CACHE_NONE);
}

static void test_ranges_outside_are_refused(void **state)
{
    uint8_t bytes[DISK_SECTOR] = {0};
    struct disk *disk = make(*state, MIB(1), (struct disk_options){.format = DISK_FORMAT_RAW});
    assert_int_equal(disk_size(disk), MIB(1));
    assert_int_equal(disk_read(disk, MIB(1) - 511, bytes, 512), -EINVAL);
    assert_int_equal(disk_write(disk, UINT64_MAX, bytes, 2), -EINVAL);
    assert_int_equal(disk_write(disk, MIB(1), bytes, 0), 0);
    assert_int_equal(disk_discard(disk, 0, MIB(1) + 1), -EINVAL);
    assert_int_equal(disk_write_zeroes(disk, 1, UINT64_MAX, true), -EINVAL);
    struct iovec iov[] = {{bytes, SIZE_MAX}, {bytes, 2}};
    assert_int_equal(disk_readv(disk, 0, iov, 2), -EINVAL);
    struct disk_extent extent;
    assert_false(disk_direct(disk, MIB(1), 512, false, &extent));
    disk_close(disk);
}

static void test_read_only(void **state)
{
    struct fixture *fixture = *state;
    uint8_t byte = 1;
    struct disk_extent extent;
    disk_close(make(fixture, MIB(1), (struct disk_options){0}));
    struct disk *disk;
    struct disk_options options = {.read_only = true};
    assert_int_equal(disk_open(fixture->path, &options, &disk, NULL), 0);
    assert_true(disk_read_only(disk));
    assert_int_equal(disk_write(disk, 0, &byte, 1), -EROFS);
    assert_int_equal(disk_discard(disk, 0, 512), -EROFS);
    assert_int_equal(disk_write_zeroes(disk, 0, 512, false), -EROFS);
    assert_int_equal(disk_resize(disk, MIB(2), &fixture->err), -EROFS);
    assert_false(disk_direct(disk, 0, 512, true, &extent));
    assert_int_equal(disk_flush(disk), 0);
    disk_close(disk);
}

static void test_a_probed_disk_stays_raw(void **state)
{
    struct fixture *fixture = *state;
    struct disk_extent extent;
    struct disk *disk = make(fixture, MIB(1), (struct disk_options){0});
    assert_int_equal(disk_write(disk, 0, "QFI\xfb", 4), -EPERM);
    /* Nor in pieces, nor by a device itself. */
    assert_int_equal(disk_write(disk, 2, "I\xfb", 2), 0);
    assert_int_equal(disk_write(disk, 0, "QF", 2), -EPERM);
    assert_false(disk_direct(disk, 0, 4096, true, &extent));
    assert_true(disk_direct(disk, 4096, 4096, true, &extent));
    disk_direct_end(disk, &extent);
    assert_int_equal(disk_write(disk, 512, "QFI\xfb", 4), 0);
    disk_close(disk);
    struct disk_options options = {.format = DISK_FORMAT_RAW};
    assert_int_equal(disk_open(fixture->path, &options, &disk, NULL), 0);
    assert_int_equal(disk_write(disk, 0, "QFI\xfb", 4), 0);
    disk_close(disk);
}

static void test_zeroes_and_discard_give_space_back(void **state)
{
    static uint8_t bytes[1 << 20];
    struct fixture *fixture = *state;
    struct stat about;
    memset(bytes, 0x5a, sizeof bytes);
    struct disk *disk = make(fixture, MIB(2), (struct disk_options){.format = DISK_FORMAT_RAW});
    assert_int_equal(disk_write(disk, MIB(1), bytes, sizeof bytes), 0);
    enum disk_extent_kind kind;
    uint64_t length;
    assert_int_equal(disk_status(disk, 0, MIB(2), &kind, &length), 0);
    assert_int_equal(kind, DISK_EXTENT_HOLE);
    assert_int_equal(length, MIB(1));
    assert_int_equal(disk_status(disk, MIB(1), MIB(1), &kind, &length), 0);
    assert_int_equal(kind, DISK_EXTENT_DATA);
    assert_int_equal(disk_write_zeroes(disk, MIB(1) + 1000, MIB(1) / 2, true), 0);
    assert_int_equal(disk_read(disk, MIB(1), bytes, sizeof bytes), 0);
    for (size_t i = 0; i < sizeof bytes; i++)
        assert_int_equal(bytes[i], i >= 1000 && i < 1000 + sizeof bytes / 2 ? 0 : 0x5a);
    stat(fixture->path, &about);
    assert_true(about.st_blocks * 512 < (1 << 20) * 3 / 4);
    assert_int_equal(disk_discard(disk, MIB(1), MIB(1)), 0);
    stat(fixture->path, &about);
    assert_true(about.st_blocks * 512 < 65536);
    disk_close(disk);
}

static void test_direct_says_where(void **state)
{
    struct fixture *fixture = *state;
    struct disk *disk = make(fixture, MIB(1), (struct disk_options){.format = DISK_FORMAT_RAW});
    struct disk_extent extent;
    char bytes[5];
    assert_true(disk_direct(disk, 8192, 4096, true, &extent));
    assert_int_equal(extent.length, 4096);
    assert_int_equal(pwrite(extent.fd, "hello", 5, (off_t)extent.file_offset), 5);
    disk_direct_end(disk, &extent);
    assert_int_equal(disk_read(disk, 8192, bytes, 5), 0);
    assert_memory_equal(bytes, "hello", 5);
    disk_close(disk);
}

static void test_resize(void **state)
{
    uint8_t byte;
    struct fixture *fixture = *state;
    struct disk *disk = make(fixture, MIB(1), (struct disk_options){.format = DISK_FORMAT_RAW});
    assert_int_equal(disk_resize(disk, MIB(3) + 1, &fixture->err), 0);
    assert_int_equal(disk_size(disk), MIB(3) + 512);
    assert_int_equal(disk_read(disk, MIB(3), &byte, 1), 0);
    assert_int_equal(disk_resize(disk, 0, &fixture->err), -EINVAL);
    assert_int_equal(disk_resize(disk, UINT64_MAX, &fixture->err), -EFBIG);
    assert_int_equal(disk_resize(disk, MIB(1), &fixture->err), 0);
    assert_int_equal(disk_read(disk, MIB(1), &byte, 1), -EINVAL);
    disk_close(disk);
}

static void test_nothing_is_overwritten(void **state)
{
    struct fixture *fixture = *state;
    struct disk_create create = {.format = DISK_FORMAT_RAW, .size = 512};
    disk_close(make(fixture, MIB(1), (struct disk_options){0}));
    assert_int_equal(disk_create(fixture->path, &create, &fixture->err), -EEXIST);
}

static void test_what_is_no_disk(void **state)
{
    struct fixture *fixture = *state;
    struct disk *disk = NULL;
    struct disk_options options = {0};
    assert_int_equal(disk_open("/no/such/disk", &options, &disk, &fixture->err), -ENOENT);
    assert_non_null(strstr(fixture->err.text, "'/no/such/disk'"));
    options.read_only = true;
    assert_int_equal(disk_open("/", &options, &disk, &fixture->err), -EINVAL);
    assert_int_equal(disk_open("/dev/null", &options, &disk, &fixture->err), -EINVAL);
    assert_null(disk);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_any_alignment),
        TEST(test_any_alignment_past_the_cache),
        TEST(test_ranges_outside_are_refused),
        TEST(test_read_only),
        TEST(test_a_probed_disk_stays_raw),
        TEST(test_zeroes_and_discard_give_space_back),
        TEST(test_direct_says_where),
        TEST(test_resize),
        TEST(test_nothing_is_overwritten),
        TEST(test_what_is_no_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
