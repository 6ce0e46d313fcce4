/* What qemu-img cannot see from outside: holds, failures in the middle, the parts by themselves. */
#include "disk/qcow2.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

enum { CLUSTER = 65536 };

struct fixture {
    char folder[64], path[128];
    struct err err;
    struct disk *disk;
};

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    struct disk_create create = {.format = DISK_FORMAT_QCOW2, .size = MIB(64)};
    struct disk_options options = {.format = DISK_FORMAT_QCOW2};
    strcpy(fixture->folder, "/var/tmp/qcow2-XXXXXX");
    assert_non_null(mkdtemp(fixture->folder));
    snprintf(fixture->path, sizeof fixture->path, "%s/disk", fixture->folder);
    assert_int_equal(disk_create(fixture->path, &create, &fixture->err), 0);
    assert_int_equal(disk_open(fixture->path, &options, &fixture->disk, &fixture->err), 0);
    *state = fixture;
    return 0;
}

/* Every test leaves an image without errors and leaks. */
static int teardown(void **state)
{
    struct fixture *fixture = *state;
    struct disk_checker checker = {0};
    struct disk_check found = {0};
    assert_int_equal(disk_close(fixture->disk), 0);
    assert_int_equal(disk_check(fixture->path, DISK_FORMAT_QCOW2, &checker, &found, &fixture->err),
                     0);
    assert_int_equal(found.errors, 0);
    assert_int_equal(found.leaks, 0);
    unlink(fixture->path);
    rmdir(fixture->folder);
    free(fixture);
    return 0;
}

static void write_cluster(struct disk *disk, uint64_t cluster, int byte)
{
    static uint8_t bytes[CLUSTER];
    memset(bytes, byte, sizeof bytes);
    assert_int_equal(disk_write(disk, cluster * CLUSTER, bytes, sizeof bytes), 0);
}

static uint64_t place_of(struct disk *disk, uint64_t cluster)
{
    struct disk_extent extent;
    if (!disk_direct(disk, cluster * CLUSTER, CLUSTER, false, &extent))
        return 0;
    disk_direct_end(disk, &extent);
    return extent.file_offset;
}

/* --- parts --- */

static void test_refcounts_of_every_width(void **state)
{
    for (unsigned order = 0; order <= 6; order++) {
        uint8_t block[64] = {0};
        uint64_t count = sizeof block * 8 >> order;
        uint64_t most = order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << order)) - 1;
        for (uint64_t i = 0; i < count; i++)
            refcount_entry_set(block, order, i, (i * 0x123456789abcdef1) & most);
        for (uint64_t i = 0; i < count; i++)
            assert_int_equal(refcount_entry(block, order, i), (i * 0x123456789abcdef1) & most);
    }
    /* Less than a byte: the first entry is in the lowest bits. */
    uint8_t byte = 0;
    refcount_entry_set(&byte, 0, 0, 1);
    refcount_entry_set(&byte, 1, 3, 2);
    assert_int_equal(byte, 0x81);
}

static void test_a_set_of_clusters(void **state)
{
    enum { MANY = 3000 };
    struct cluster_set set = {0};
    for (uint64_t i = 0; i < MANY; i++)
        assert_int_equal(cluster_set_add(&set, i * i), 0);
    assert_int_equal(cluster_set_add(&set, 49), -EEXIST);
    for (uint64_t i = 0; i < MANY; i += 2)
        cluster_set_remove(&set, i * i);
    for (uint64_t i = 0; i < MANY; i++)
        assert_int_equal(cluster_set_has(&set, i * i), i % 2);
    assert_false(cluster_set_has(&set, 2));
    free(set.slots);
}

/* --- direct --- */

static void test_direct_says_yes_where_nothing_else_is_to_do(void **state)
{
    struct disk *disk = ((struct fixture *)*state)->disk;
    struct disk_extent extent;
    uint8_t byte;
    assert_false(disk_direct(disk, 0, CLUSTER, true, &extent));
    assert_false(disk_direct(disk, 0, CLUSTER, false, &extent));
    write_cluster(disk, 0, 1);
    write_cluster(disk, 1, 2);
    assert_true(disk_direct(disk, 512, 4 * CLUSTER, true, &extent));
    assert_int_equal(extent.length, 2 * CLUSTER - 512);
    byte = 9;
    assert_int_equal(pwrite(extent.fd, &byte, 1, (off_t)extent.file_offset), 1);
    disk_direct_end(disk, &extent);
    byte = 0;
    assert_int_equal(disk_read(disk, 512, &byte, 1), 0);
    assert_int_equal(byte, 9);
    assert_int_equal(disk_write_zeroes(disk, 0, CLUSTER, false), 0);
    assert_false(disk_direct(disk, 0, 512, true, &extent));
    assert_false(disk_direct(disk, 0, 512, false, &extent));
}

static void test_what_is_held_is_given_to_nobody(void **state)
{
    struct disk *disk = ((struct fixture *)*state)->disk;
    struct disk_extent extent;
    uint8_t byte;
    write_cluster(disk, 3, 3);
    assert_int_equal(disk_flush(disk), 0);
    assert_true(disk_direct(disk, 3 * CLUSTER, CLUSTER, true, &extent));
    assert_int_equal(disk_discard(disk, 3 * CLUSTER, CLUSTER), 0);
    for (uint64_t i = 10; i < 30; i++) {
        write_cluster(disk, i, 0x10);
        assert_int_equal(disk_flush(disk), 0);
        assert_int_not_equal(place_of(disk, i), extent.file_offset);
    }
    /* Neither taken nor punched. */
    assert_int_equal(pread(extent.fd, &byte, 1, (off_t)extent.file_offset), 1);
    assert_int_equal(byte, 3);
    disk_direct_end(disk, &extent);
    /* From the next commit on it is free, and the lowest that is. */
    assert_int_equal(disk_discard(disk, 29 * CLUSTER, CLUSTER), 0);
    assert_int_equal(disk_flush(disk), 0);
    write_cluster(disk, 40, 0x40);
    assert_int_equal(place_of(disk, 40), extent.file_offset);
}

static void test_what_is_freed_is_not_taken_before_a_flush(void **state)
{
    struct disk *disk = ((struct fixture *)*state)->disk;
    write_cluster(disk, 3, 3);
    assert_int_equal(disk_flush(disk), 0);
    uint64_t place = place_of(disk, 3);
    assert_int_equal(disk_write_zeroes(disk, 3 * CLUSTER, CLUSTER, true), 0);
    write_cluster(disk, 4, 4);
    assert_int_not_equal(place_of(disk, 4), place);
    assert_int_equal(disk_flush(disk), 0);
    write_cluster(disk, 5, 5);
    assert_int_equal(place_of(disk, 5), place);
}

/* --- when the host's disk is full --- */

static void test_a_full_disk_is_an_error_that_passes(void **state)
{
    struct fixture *fixture = *state;
    struct rlimit was, small;
    static uint8_t bytes[MIB(4)];
    memset(bytes, 0x77, sizeof bytes);
    write_cluster(fixture->disk, 0, 1);
    assert_int_equal(disk_flush(fixture->disk), 0);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    small = (struct rlimit){MIB(1), was.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    assert_true(disk_write(fixture->disk, MIB(1), bytes, sizeof bytes) < 0);
    assert_int_equal(disk_flush(fixture->disk), 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    assert_int_equal(disk_write(fixture->disk, MIB(1), bytes, sizeof bytes), 0);
    memset(bytes, 0, sizeof bytes);
    assert_int_equal(disk_read(fixture->disk, MIB(1), bytes, sizeof bytes), 0);
    for (size_t i = 0; i < sizeof bytes; i++)
        assert_int_equal(bytes[i], 0x77);
}

/* --- the bound of the cache --- */

static void test_tables_in_memory_are_bounded(void **state)
{
    struct fixture *fixture = *state;
    struct disk_options options = {.format = DISK_FORMAT_QCOW2, .cache = DISK_CACHE_UNSAFE};
    assert_int_equal(disk_close(fixture->disk), 0);
    unlink(fixture->path);
    struct disk_create create = {
        .format = DISK_FORMAT_QCOW2, .size = GIB(64), .cluster_bits = 12}; /* 2 MiB a table */
    assert_int_equal(disk_create(fixture->path, &create, &fixture->err), 0);
    assert_int_equal(disk_open(fixture->path, &options, &fixture->disk, &fixture->err), 0);
    struct qcow2 *q = qcow2_of(fixture->disk);
    for (uint64_t i = 0; i < 8192; i++)
        assert_int_equal(disk_write(fixture->disk, i * MIB(2), &i, sizeof i), 0);
    assert_true(q->l2.count <= q->l2.limit + 2);
    for (uint64_t i = 0; i < 8192; i++) {
        uint64_t back;
        assert_int_equal(disk_read(fixture->disk, i * MIB(2), &back, sizeof back), 0);
        assert_int_equal(back, i);
    }
    assert_true(q->l2.count <= q->l2.limit + 2);
    assert_true(q->l2.limit << 12 <= QCOW2_CACHE_BYTES);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refcounts_of_every_width),
        cmocka_unit_test(test_a_set_of_clusters),
        TEST(test_direct_says_yes_where_nothing_else_is_to_do),
        TEST(test_what_is_held_is_given_to_nobody),
        TEST(test_what_is_freed_is_not_taken_before_a_flush),
        TEST(test_a_full_disk_is_an_error_that_passes),
        TEST(test_tables_in_memory_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
