/*
 * The host's disk is full, at every instant: an image in memory whose nth change fails for want of
 * space, and the next ones too, until there is some. Whatever failed is tried again, as a guest's
 * request is that waits for space; nothing may be lost, and nothing leaked.
 */
#include "disk/qcow2.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

enum {
    ROOM = 16 << 20, /* of the file; untouched memory costs nothing */
    SIZE = 256 << 10,
    BACKED = 100 << 10,
    STEPS = 48,
};

/* --- a file in memory --- */

struct memory {
    uint8_t *bytes;
    uint64_t length;
    unsigned changes, fail_at, fail_for; /* the changes from fail_at on, so many of them */
};

/* A write that fails has done half of its work. */
static bool full(struct memory *memory)
{
    unsigned number = ++memory->changes;
    return memory->fail_at && number >= memory->fail_at &&
           number < memory->fail_at + memory->fail_for;
}

static void memory_free(void *opaque)
{
}

static int memory_length(void *opaque, uint64_t *ret_length)
{
    *ret_length = ((struct memory *)opaque)->length;
    return 0;
}

static int memory_read(void *opaque, uint64_t offset, struct span *to, uint64_t length)
{
    struct memory *memory = opaque;
    if (!range_fits(offset, length, ROOM))
        return -EIO;
    span_fill(to, memory->bytes + offset, length);
    return 0;
}

static int memory_write(void *opaque, uint64_t offset, struct span *from, uint64_t length)
{
    struct memory *memory = opaque;
    bool fails = full(memory);
    uint64_t part = fails ? align_down(length / 2, DISK_SECTOR) : length;
    if (!range_fits(offset, length, ROOM))
        return -EIO;
    span_take(from, memory->bytes + offset, part);
    if (part)
        memory->length = max(memory->length, offset + part);
    return fails ? -ENOSPC : 0;
}

static int memory_zero(void *opaque, uint64_t offset, uint64_t length)
{
    struct memory *memory = opaque;
    if (full(memory))
        return -ENOSPC;
    memset(memory->bytes + offset, 0, length);
    memory->length = max(memory->length, offset + length);
    return 0;
}

static int memory_discard(void *opaque, uint64_t offset, uint64_t length)
{
    struct memory *memory = opaque;
    if (full(memory))
        return -EDQUOT;
    memset(memory->bytes + offset, 0, length);
    return 0;
}

static int memory_truncate(void *opaque, uint64_t length)
{
    struct memory *memory = opaque;
    if (full(memory))
        return -ENOSPC;
    if (length < memory->length)
        memset(memory->bytes + length, 0, memory->length - length);
    memory->length = length;
    return 0;
}

static int memory_flush(void *opaque)
{
    return full(opaque) ? -EDQUOT : 0;
}

static int memory_status(void *opaque, uint64_t offset, uint64_t length, bool *ret_hole,
                         uint64_t *ret_length)
{
    *ret_hole = false;
    *ret_length = length;
    return 0;
}

static const struct file_layer memory_layer = {
    .free = memory_free,
    .length = memory_length,
    .read = memory_read,
    .write = memory_write,
    .zero = memory_zero,
    .discard = memory_discard,
    .reserve = memory_zero,
    .truncate = memory_truncate,
    .flush = memory_flush,
    .status = memory_status,
};

static struct file *file_of(struct memory *memory)
{
    struct file *file;
    assert_int_equal(file_new_layer(&memory_layer, memory, NULL, &file), 0);
    return file;
}

/* --- an image in it --- */

struct fixture {
    struct memory memory, copy, below;
    uint8_t *fresh; /* a new image */
    uint64_t fresh_length;
    struct file *file, *below_file;
    struct disk backing;
    struct qcow2 *q;
    uint8_t model[SIZE], read[SIZE];
    bool unflushed[SIZE / DISK_SECTOR]; /* changed since the last flush */
    unsigned failures;
    uint64_t seed;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    const struct disk_create create = {
        .format = DISK_FORMAT_QCOW2, .size = SIZE, .cluster_bits = QCOW2_CLUSTER_BITS_MIN};
    struct err err = {0};
    f->memory.bytes = calloc(1, ROOM);
    f->copy.bytes = calloc(1, ROOM);
    f->below.bytes = calloc(1, ROOM);
    f->below.length = BACKED;
    memset(f->below.bytes, 0xbb, BACKED);
    f->below_file = file_of(&f->below);
    f->backing = (struct disk){.ops = &raw_ops, .file = f->below_file, .size = BACKED};
    f->file = file_of(&f->memory);
    assert_int_equal(qcow2_create_in(f->file, "image", &create, &err), 0);
    f->fresh_length = f->memory.length;
    f->fresh = malloc(f->fresh_length);
    memcpy(f->fresh, f->memory.bytes, f->fresh_length);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    file_free(f->file);
    file_free(f->below_file);
    free(f->fresh);
    free(f->memory.bytes);
    free(f->copy.bytes);
    free(f->below.bytes);
    free(f);
    return 0;
}

static struct qcow2 *open_image(struct fixture *f, struct file *file)
{
    struct qcow2 *q;
    struct err err = {0};
    assert_int_equal(qcow2_open_image(file, "image", true, &q, &err), 0);
    q->disk.backing = &f->backing;
    q->backing_size = BACKED;
    return q;
}

static struct disk_check check_image(struct file *file)
{
    const struct disk_checker checker = {0};
    struct disk_check found = {0};
    struct err err = {0};
    assert_int_equal(qcow2_scan(file, "image", &checker, &found, &err), 0);
    assert_int_equal(found.errors, 0);
    return found;
}

/* What a host that dies now leaves: no error, and all that was flushed. */
static void check_crash(struct fixture *f)
{
    memcpy(f->copy.bytes, f->memory.bytes, f->memory.length);
    f->copy.length = f->memory.length;
    struct file *file = file_of(&f->copy);
    check_image(file);
    struct qcow2 *q = open_image(f, file);
    assert_int_equal(disk_read(&q->disk, 0, f->read, SIZE), 0);
    for (unsigned i = 0; i < SIZE / DISK_SECTOR; i++)
        if (!f->unflushed[i])
            assert_memory_equal(f->read + i * DISK_SECTOR, f->model + i * DISK_SECTOR, DISK_SECTOR);
    qcow2_close_image(q);
    file_free(file);
}

static uint64_t next(struct fixture *f, uint64_t below)
{
    f->seed = f->seed * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (f->seed >> 33) % below;
}

enum act { WRITE, WRITE_BIG, ZEROS, ZEROS_KEEP, DISCARD, FLUSH, ACT_MAX };

static int act(struct fixture *f, enum act what, uint64_t offset, uint64_t length)
{
    struct disk *disk = &f->q->disk;
    switch (what) {
    case WRITE:
    case WRITE_BIG: return disk_write(disk, offset, f->read, length);
    case ZEROS:
    case ZEROS_KEEP: return disk_write_zeroes(disk, offset, length, what == ZEROS);
    case DISCARD: return disk_discard(disk, offset, length);
    default: return disk_flush(disk);
    }
}

static void expect(struct fixture *f, enum act what, uint64_t offset, uint64_t length)
{
    if (what == WRITE || what == WRITE_BIG)
        memcpy(f->model + offset, f->read, length);
    else if (what == ZEROS || what == ZEROS_KEEP)
        memset(f->model + offset, 0, length);
    else if (what == DISCARD) /* anything: from here on what it is now */
        assert_int_equal(disk_read(&f->q->disk, offset, f->model + offset, length), 0);
    else
        memset(f->unflushed, 0, sizeof f->unflushed);
}

/* One call, again and again until there is space. */
static void step(struct fixture *f)
{
    enum act what = (enum act)next(f, ACT_MAX);
    uint64_t length = 1 + next(f, what == WRITE_BIG ? 30000 : 3000);
    uint64_t offset = next(f, SIZE - length + 1);
    uint8_t byte = (uint8_t)(1 + next(f, 255));
    for (uint64_t i = offset / DISK_SECTOR;
         what != FLUSH && i <= (offset + length - 1) / DISK_SECTOR; i++)
        f->unflushed[i] = true;
    int r;
    memset(f->read, byte, length);
    while ((r = act(f, what, offset, length)) == -ENOSPC || r == -EDQUOT) {
        f->failures++;
        check_crash(f);
        memset(f->read, byte, length);
    }
    assert_int_equal(r, 0);
    expect(f, what, offset, length);
}

static void begin(struct fixture *f, unsigned fail_at, unsigned fail_for)
{
    struct memory *memory = &f->memory;
    memset(memory->bytes, 0, memory->length);
    memcpy(memory->bytes, f->fresh, f->fresh_length);
    memory->length = f->fresh_length;
    memset(f->unflushed, 0, sizeof f->unflushed);
    memset(f->model, 0, SIZE);
    memset(f->model, 0xbb, BACKED);
    f->failures = 0;
    f->seed = 7;
    f->q = open_image(f, f->file);
    memory->changes = 0;
    memory->fail_at = fail_at;
    memory->fail_for = fail_for;
}

static void end(struct fixture *f)
{
    f->memory.fail_at = 0;
    assert_int_equal(qcow2_close_image(f->q), 0);
    assert_int_equal(check_image(f->file).leaks, 0);
    f->q = open_image(f, f->file);
    assert_int_equal(disk_read(&f->q->disk, 0, f->read, SIZE), 0);
    assert_memory_equal(f->read, f->model, SIZE);
    assert_int_equal(qcow2_close_image(f->q), 0);
}

/* How often something failed. */
static unsigned run(struct fixture *f, unsigned fail_at, unsigned fail_for, unsigned grow_at)
{
    begin(f, fail_at, fail_for);
    for (unsigned i = 1; i <= STEPS; i++) {
        if (i == grow_at) /* as if the image were so large that its refcount table has to grow */
            f->q->used_end = (f->q->reftable_entries << f->q->block_bits) - 1;
        step(f);
    }
    end(f);
    return f->failures;
}

static void every_instant(struct fixture *f, unsigned fail_for, unsigned grow_at)
{
    unsigned n = 1, failed = 0;
    for (; run(f, n, fail_for, grow_at) || n < f->memory.changes; n++)
        failed += f->failures > 0;
    assert_true(failed > n / 2); /* discards may fail unnoticed, and little else */
}

static void test_no_change_that_fails_once_loses_anything(void **state)
{
    every_instant(*state, 1, 0);
}

static void test_no_change_that_fails_for_a_while_loses_anything(void **state)
{
    every_instant(*state, 7, 0);
}

static void test_a_refcount_table_that_cannot_grow_yet(void **state)
{
    every_instant(*state, 1, 30);
}

/* Nobody tries it again; what was to move stays where it was, whatever the header says. */
static void test_a_disk_that_cannot_grow_goes_on_as_it_is(void **state)
{
    struct fixture *f = *state;
    struct err err = {0};
    unsigned n = 1, refused = 0;
    do {
        begin(f, n, 1);
        refused += qcow2_resize(&f->q->disk, 8 * SIZE, &err) < 0;
        check_crash(f);
        f->memory.fail_at = 0;
        memset(f->model + SIZE / 2, 0x11, 5000);
        assert_int_equal(disk_write(&f->q->disk, SIZE / 2, f->model + SIZE / 2, 5000), 0);
        assert_int_equal(disk_flush(&f->q->disk), 0);
        check_crash(f);
        end(f);
    } while (n++ < f->memory.changes);
    assert_true(refused > 4);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_no_change_that_fails_once_loses_anything),
        TEST(test_no_change_that_fails_for_a_while_loses_anything),
        TEST(test_a_refcount_table_that_cannot_grow_yet),
        TEST(test_a_disk_that_cannot_grow_goes_on_as_it_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
