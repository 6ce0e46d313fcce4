/* A new image on top of a disk in use, and names of backings. */
#include "disk/disk.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { SIZE = 8 << 20, PIECE = 4096, CLUSTER = 65536, MOST = 64 };

static char folder[64];
static struct err err;

static const char *at(const char *name)
{
    static char paths[4][128];
    static unsigned turn;
    char *path = paths[turn++ % 4];
    snprintf(path, 128, "%s/%s", folder, name);
    return path;
}

static int setup(void **state)
{
    strcpy(folder, "/var/tmp/lodge-stack-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

static void create(const char *name, enum disk_format format, const char *backing)
{
    const struct disk_create how = {
        .format = format, .size = SIZE, .backing = backing, .backing_format = DISK_FORMAT_QCOW2};
    assert_int_equal(disk_create(at(name), &how, &err), 0);
}

static struct disk *open_disk(const char *name, bool read_only)
{
    const struct disk_options options = {.read_only = read_only};
    struct disk *disk;
    assert_int_equal(disk_open(at(name), &options, &disk, &err), 0);
    return disk;
}

static void put(struct disk *disk, uint64_t offset, int byte)
{
    uint8_t bytes[PIECE];
    memset(bytes, byte, sizeof bytes);
    assert_int_equal(disk_write(disk, offset, bytes, sizeof bytes), 0);
}

static void check(struct disk *disk, uint64_t offset, int byte)
{
    uint8_t bytes[PIECE];
    assert_int_equal(disk_read(disk, offset, bytes, sizeof bytes), 0);
    for (size_t i = 0; i < sizeof bytes; i++)
        assert_int_equal(bytes[i], byte);
}

static void check_image(const char *name)
{
    const struct disk_checker checker = {0};
    struct disk_check found;
    assert_int_equal(disk_check(at(name), DISK_FORMAT_QCOW2, &checker, &found, &err), 0);
    assert_int_equal(found.errors + found.leaks, 0);
}

static int stack(const char *name, struct disk *below, struct disk **ret_disk)
{
    const struct disk_options options = {0};
    return disk_stack(at(name), &options, below, ret_disk, &err);
}

static void what_is_below_stays_as_it_was(void **state)
{
    struct disk *below, *top, *old;
    create("a", DISK_FORMAT_QCOW2, NULL);
    below = open_disk("a", false);
    for (unsigned i = 0; i < 20; i++)
        put(below, i * (uint64_t)CLUSTER, 1);
    disk_discard(below, 3 * CLUSTER, CLUSTER); /* what waits to be freed is not left behind */
    create("b", DISK_FORMAT_QCOW2, "a");
    assert_int_equal(stack("b", below, &top), 0);
    disk_stack_for_good(top);
    put(top, CLUSTER, 2);
    put(top, 100, 3); /* part of a cluster: the rest comes from below */
    assert_int_equal(disk_write_zeroes(top, 5 * CLUSTER, CLUSTER, true), 0);
    assert_int_equal(disk_discard(top, 6 * CLUSTER, CLUSTER), 0);
    assert_int_equal(disk_flush(top), 0);
    check(top, CLUSTER, 2);
    check(top, 100, 3);
    check(top, 2 * CLUSTER, 1);
    check(top, 8192, 0);
    check(top, 5 * CLUSTER, 0);
    assert_int_equal(disk_close(top), 0);
    check_image("a");
    check_image("b");
    old = open_disk("a", true);
    check(old, CLUSTER, 1);
    check(old, 0, 1);
    check(old, 3 * CLUSTER, 0);
    check(old, 5 * CLUSTER, 1);
    disk_close(old);
    /* And as a chain that is opened by its names. */
    top = open_disk("b", true);
    check(top, CLUSTER, 2);
    check(top, 2 * CLUSTER, 1);
    disk_close(top);
}

static void it_can_be_taken_off(void **state)
{
    struct disk *below, *top;
    create("a", DISK_FORMAT_QCOW2, NULL);
    create("b", DISK_FORMAT_QCOW2, "a");
    below = open_disk("a", false);
    put(below, 0, 1);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(stack("b", below, &top), 0);
        assert_ptr_equal(disk_below(top), below);
        check(top, 0, 1 + (int)i);
        assert_ptr_equal(disk_unstack(top), below);
        put(below, 0, 2 + (int)i);
    }
    assert_int_equal(disk_close(below), 0);
    check_image("a");
    check_image("b");
}

static void what_does_not_fit_is_refused(void **state)
{
    struct disk *below, *top = NULL;
    const struct disk_create smaller = {.format = DISK_FORMAT_QCOW2,
                                        .size = SIZE / 2,
                                        .backing = "a",
                                        .backing_format = DISK_FORMAT_QCOW2};
    create("a", DISK_FORMAT_QCOW2, NULL);
    create("alone", DISK_FORMAT_QCOW2, NULL);
    create("raw", DISK_FORMAT_RAW, NULL);
    assert_int_equal(disk_create(at("small"), &smaller, &err), 0);
    below = open_disk("a", false);
    assert_int_equal(stack("alone", below, &top), -EINVAL);
    assert_int_equal(stack("small", below, &top), -EINVAL);
    assert_int_equal(stack("raw", below, &top), -EINVAL);
    assert_int_equal(stack("a", below, &top), -EBUSY);
    assert_int_equal(stack("missing", below, &top), -ENOENT);
    const struct disk_options unlocked = {.unlocked = true};
    assert_int_equal(link(at("a"), at("again")), 0);
    assert_true(disk_stack(at("again"), &unlocked, below, &top, &err) < 0);
    assert_null(top);
    put(below, 0, 1); /* and it goes on */
    check(below, 0, 1);
    assert_int_equal(disk_close(below), 0);
}

static void a_chain_has_an_end(void **state)
{
    struct disk *disk, *top;
    char names[MOST + 2][8];
    create("0", DISK_FORMAT_QCOW2, NULL);
    disk = open_disk("0", false);
    for (unsigned i = 1; i <= MOST + 1; i++) {
        snprintf(names[i], sizeof names[i], "%u", i);
        char below[8];
        snprintf(below, sizeof below, "%u", i - 1);
        create(names[i], DISK_FORMAT_QCOW2, below);
        int r = stack(names[i], disk, &top);
        assert_int_equal(r, i <= MOST ? 0 : -ELOOP);
        if (r < 0)
            break;
        disk_stack_for_good(top);
        disk = top;
        put(disk, i * (uint64_t)PIECE, (int)i);
    }
    assert_int_equal(disk_close(disk), 0);
    disk = open_disk(names[MOST], true); /* what could be made can be opened */
    for (unsigned i = 1; i <= MOST; i++)
        check(disk, i * (uint64_t)PIECE, (int)i);
    disk_close(disk);
}

static void a_writer_becomes_a_reader(void **state)
{
    create("a", DISK_FORMAT_QCOW2, NULL);
    int writer = open(at("a"), O_RDWR | O_CLOEXEC), reader = open(at("a"), O_RDONLY | O_CLOEXEC);
    assert_int_equal(disk_lock(writer, true), 0);
    assert_int_equal(disk_lock(reader, false), -EBUSY);
    close(reader);
    disk_lock_share(writer);
    reader = open(at("a"), O_RDONLY | O_CLOEXEC);
    assert_int_equal(disk_lock(reader, false), 0);
    int other = open(at("a"), O_RDWR | O_CLOEXEC);
    assert_int_equal(disk_lock(other, true), -EBUSY);
    close(other);
    close(reader);
    close(writer);
}

static void check_backing(const char *name, const char *expected)
{
    const struct disk_options options = {.read_only = true, .alone = true};
    struct disk_info info;
    struct disk *disk;
    assert_int_equal(disk_open(at(name), &options, &disk, &err), 0);
    assert_int_equal(disk_info(disk, &info), 0);
    assert_string_equal(info.backing, expected);
    assert_int_equal(info.backing_format, DISK_FORMAT_QCOW2);
    disk_info_free(&info);
    disk_close(disk);
}

static void a_backing_gets_another_name(void **state)
{
    char longest[1025];
    create("a", DISK_FORMAT_QCOW2, NULL);
    create("b", DISK_FORMAT_QCOW2, "a");
    struct disk *disk = open_disk("b", false);
    put(disk, 0, 9);
    assert_int_equal(disk_close(disk), 0);
    assert_int_equal(disk_rename_backing(at("b"), NULL, at("a"), &err), 0);
    check_backing("b", at("a"));
    assert_int_equal(disk_rename_backing(at("b"), NULL, "a", &err), 0);
    check_backing("b", "a");
    memset(longest, 'x', sizeof longest);
    longest[1024] = '\0';
    assert_int_equal(disk_rename_backing(at("b"), NULL, longest, &err), -ENAMETOOLONG);
    longest[1023] = '\0';
    assert_int_equal(disk_rename_backing(at("b"), NULL, longest, &err), 0);
    check_backing("b", longest);
    assert_int_equal(disk_rename_backing(at("b"), NULL, "a", &err), 0);
    check_image("b");
    disk = open_disk("b", true);
    check(disk, 0, 9);
    disk_close(disk);
    assert_int_equal(disk_rename_backing(at("a"), NULL, "b", &err), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_below_stays_as_it_was, setup, teardown),
        cmocka_unit_test_setup_teardown(it_can_be_taken_off, setup, teardown),
        cmocka_unit_test_setup_teardown(what_does_not_fit_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(a_chain_has_an_end, setup, teardown),
        cmocka_unit_test_setup_teardown(a_writer_becomes_a_reader, setup, teardown),
        cmocka_unit_test_setup_teardown(a_backing_gets_another_name, setup, teardown),
    };
    return cmocka_run_group_tests_name("stack", tests, NULL, NULL);
}
