/* Disks over files: ranges, holes, flushes, and what cannot be. */
#include "disk/disk.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { SIZE = 1 << 20 };

static struct disk *disk;
static int file; /* the same file */

static void open_with(const struct disk_options *options, uint64_t size)
{
    char path[] = "disk_test.XXXXXX";
    file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(ftruncate(file, (off_t)size), 0);
    assert_int_equal(disk_open_raw(dup(file), options, &disk, NULL), 0);
}

static int set_up(void **state)
{
    (void)state;
    open_with(&(struct disk_options){0}, SIZE);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    disk_close(disk);
    close(file);
    return 0;
}

static int put(uint64_t offset, const void *bytes, size_t length)
{
    struct iovec iov = {(void *)bytes, length};
    return disk_writev(disk, offset, &iov, 1);
}

static int get(uint64_t offset, void *bytes, size_t length)
{
    struct iovec iov = {bytes, length};
    return disk_readv(disk, offset, &iov, 1);
}

static void vectors_lie_one_behind_the_other(void **state)
{
    (void)state;
    struct iovec out[] = {{(void *)"abc", 3}, {(void *)"", 0}, {(void *)"defgh", 5}};
    assert_int_equal(disk_writev(disk, 1000, out, 3), 0);
    char text[8], head[2], rest[6];
    assert_int_equal(pread(file, text, sizeof text, 1000), sizeof text);
    assert_memory_equal(text, "abcdefgh", 8);
    struct iovec in[] = {{head, 2}, {rest, 6}};
    assert_int_equal(disk_readv(disk, 1000, in, 2), 0);
    assert_memory_equal(head, "ab", 2);
    assert_memory_equal(rest, "cdefgh", 6);
    assert_int_equal(disk_flush(disk), 0);
}

static void more_vectors_than_the_kernel_takes_at_once(void **state)
{
    (void)state;
    static uint8_t bytes[3000], back[3000];
    struct iovec iov[3000];
    for (unsigned i = 0; i < 3000; i++) {
        bytes[i] = (uint8_t)(i * 7);
        iov[i] = (struct iovec){&bytes[i], 1};
    }
    assert_int_equal(disk_writev(disk, 5, iov, 3000), 0);
    assert_int_equal(get(5, back, sizeof back), 0);
    assert_memory_equal(back, bytes, sizeof back);
}

static void nothing_lies_outside(void **state)
{
    (void)state;
    uint8_t byte = 0xff;
    assert_int_equal(disk_size(disk), SIZE);
    assert_int_equal(get(SIZE, &byte, 1), -EINVAL);
    assert_int_equal(get(UINT64_MAX, &byte, 1), -EINVAL);
    assert_int_equal(put(SIZE, &byte, 1), -EINVAL);
    assert_int_equal(disk_discard(disk, SIZE - 1, 2), -EINVAL);
    assert_int_equal(disk_discard(disk, 1, UINT64_MAX), -EINVAL);
    assert_int_equal(disk_write_zeroes(disk, UINT64_MAX - 1, 4, true), -EINVAL);
    assert_int_equal(get(SIZE, &byte, 0), 0);
    struct stat status;
    fstat(file, &status);
    assert_int_equal(status.st_size, SIZE);
}

static void zeroes_are_zeroes_and_discard_gives_space_back(void **state)
{
    (void)state;
    static uint8_t ones[SIZE / 2], back[SIZE / 2];
    struct stat full, less;
    memset(ones, 1, sizeof ones);
    assert_int_equal(put(0, ones, sizeof ones), 0);
    assert_int_equal(disk_flush(disk), 0);
    fstat(file, &full);
    assert_int_equal(disk_write_zeroes(disk, 100, 5000, false), 0);
    assert_int_equal(disk_write_zeroes(disk, 65536, 65536, true), 0);
    assert_int_equal(get(0, back, sizeof back), 0);
    for (size_t i = 0; i < sizeof back; i++)
        assert_int_equal(back[i], !(i - 100 < 5000 || i - 65536 < 65536));
    assert_int_equal(disk_discard(disk, 131072, 262144), 0);
    fsync(file);
    fstat(file, &less);
    /* The file system may want a block or two to remember that. */
    assert_true(less.st_blocks <= full.st_blocks - (65536 + 262144) / 512 + 64);
    assert_int_equal(less.st_size, SIZE);
}

static void a_read_only_disk_stays_as_it_is(void **state)
{
    (void)state;
    disk_close(disk);
    close(file);
    open_with(&(struct disk_options){.read_only = true}, SIZE);
    uint8_t byte = 0xff;
    assert_true(disk_read_only(disk));
    assert_int_equal(put(0, &byte, 1), -EROFS);
    assert_int_equal(disk_discard(disk, 0, 512), -EROFS);
    assert_int_equal(disk_write_zeroes(disk, 0, 512, false), -EROFS);
    assert_int_equal(disk_flush(disk), 0);
    assert_int_equal(get(0, &byte, 1), 0);
    assert_int_equal(byte, 0);
}

static void a_file_that_shrinks_reads_as_zeros(void **state)
{
    (void)state;
    uint8_t bytes[1024];
    memset(bytes, 0xee, sizeof bytes);
    assert_int_equal(put(4096, bytes, sizeof bytes), 0);
    assert_int_equal(ftruncate(file, 4096 + 512), 0);
    assert_int_equal(get(4096, bytes, sizeof bytes), 0);
    for (size_t i = 0; i < sizeof bytes; i++)
        assert_int_equal(bytes[i], i < 512 ? 0xee : 0);
}

static void sizes_are_whole_sectors(void **state)
{
    (void)state;
    disk_close(disk);
    close(file);
    open_with(&(struct disk_options){0}, 1000);
    assert_int_equal(disk_size(disk), 512);
    struct err err = {0};
    struct disk *none = NULL;
    assert_int_equal(ftruncate(file, 511), 0);
    assert_int_equal(disk_open_raw(file, &(struct disk_options){0}, &none, &err), -EINVAL);
    assert_string_equal(err.text, "a disk has at least 512 bytes");
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(disk_open_raw(ends[0], &(struct disk_options){0}, &none, &err), -ESPIPE);
    close(ends[0]);
    close(ends[1]);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(vectors_lie_one_behind_the_other),
        TEST(more_vectors_than_the_kernel_takes_at_once),
        TEST(nothing_lies_outside),
        TEST(zeroes_are_zeroes_and_discard_gives_space_back),
        TEST(a_read_only_disk_stays_as_it_is),
        TEST(a_file_that_shrinks_reads_as_zeros),
        TEST(sizes_are_whole_sectors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
