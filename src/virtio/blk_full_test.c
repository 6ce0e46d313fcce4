/*
 * A host's disk that is full, under the block device: what finds no space waits, in order, and goes
 * on by itself. Writes of this program go through its own functions, which can find none.
 */
#include "virtio/blk_fixture.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/syscall.h>
#include <sys/uio.h>

static _Atomic int no_space;       /* or why there is none */
static _Atomic unsigned attempts;  /* that found none */
static _Atomic uint64_t space_end; /* of a file that fills up: writes behind find none */

static bool refused(int64_t offset, size_t length)
{
    if (!no_space || (space_end && (uint64_t)offset + length <= space_end))
        return false;
    attempts++;
    errno = no_space;
    return true;
}

static size_t bytes_of(const struct iovec *iov, int count)
{
    size_t length = 0;
    for (int i = 0; i < count; i++)
        length += iov[i].iov_len;
    return length;
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    return refused(offset, bytes_of(iov, count))
               ? -1
               : syscall(SYS_pwritev, fd, iov, (long)count, offset, 0L);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    return refused(offset, bytes_of(iov, count))
               ? -1
               : syscall(SYS_pwritev2, fd, iov, (long)count, offset, 0L, (long)flags);
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    return refused(offset, (size_t)length)
               ? -1
               : (int)syscall(SYS_fallocate, fd, (long)mode, offset, length);
}

static int setup(void **state)
{
    no_space = 0;
    space_end = 0;
    attempts = 0;
    *state = make(&(struct flavour){.waits = true});
    return 0;
}

static int setup_error(void **state)
{
    setup(state);
    teardown(state);
    *state = make(&(struct flavour){0});
    return 0;
}

static bool becomes_full(struct fixture *f, int number)
{
    return eventually(virtio_blk_full(f->blk) == number);
}

static void write_pattern(struct fixture *f, unsigned queue, unsigned n, uint64_t sector)
{
    memset(guest(f, DATA + n * 4096u, 4096), (int)(n + 1), 4096);
    offer(f, queue, n, OUT, sector, DATA + n * 4096u, 4096);
}

static bool on_disk(struct fixture *f, unsigned n, uint64_t sector)
{
    uint8_t bytes[4096];
    return pread(f->fd, bytes, sizeof bytes, (off_t)sector * 512) == sizeof bytes &&
           all(bytes, sizeof bytes, (uint8_t)(n + 1));
}

static void what_finds_no_space_waits_for_it(void **state)
{
    struct fixture *f = *state;
    uint32_t used;
    bring_up(f, FEATURES);
    no_space = ENOSPC;
    write_pattern(f, 0, 0, 100);
    write_pattern(f, 0, 1, 300); /* another run */
    offer(f, 0, 2, FLUSH, 0, 0, 0);
    driver_kick(&f->driver, 0);
    assert_true(becomes_full(f, ENOSPC));
    write_pattern(f, 0, 3, 500); /* behind them: not even begun */
    driver_kick(&f->driver, 0);
    assert_true(eventually(attempts >= 3)); /* by itself */
    assert_int_equal(virtio_blk_full(f->blk), ENOSPC);
    assert_false(driver_ring_take(&f->driver.rings[0], &(uint32_t){0}, &used));
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(status(f, i), UNTOUCHED);
    no_space = 0;
    for (unsigned i = 0; i < 4; i++) {
        assert_true(take(f, 0, &used));
        assert_int_equal(status(f, i), OK); /* in order */
    }
    assert_true(becomes_full(f, 0));
    assert_true(on_disk(f, 0, 100) && on_disk(f, 1, 300) && on_disk(f, 3, 500));
    assert_int_equal(f->errors, 0);
    assert_true(f->fulls >= 2);
}

/* Long before a second has passed. */
static void a_retry_is_made_at_once(void **state)
{
    struct fixture *f = *state;
    uint32_t used;
    bring_up(f, FEATURES);
    no_space = EDQUOT;
    write_pattern(f, 0, 0, 100);
    driver_kick(&f->driver, 0);
    assert_true(becomes_full(f, EDQUOT));
    for (unsigned i = 0; i < 20; i++) {
        unsigned before = attempts;
        virtio_blk_retry(f->blk);
        assert_true(eventually(attempts >= before + 1));
    }
    assert_int_equal(virtio_blk_full(f->blk), EDQUOT);
    no_space = 0;
    int64_t begin = clock_ms();
    virtio_blk_retry(f->blk);
    assert_true(take(f, 0, &used));
    assert_in_range(clock_ms() - begin, 0, 900);
    assert_int_equal(status(f, 0), OK);
}

/* Those of one queue do not wait for those of another, nor a read for a write before it. */
static void only_what_needs_space_waits(void **state)
{
    struct fixture *f = *state;
    uint32_t used;
    bring_up(f, FEATURES);
    space_end = MIB(1);
    no_space = ENOSPC;
    write_pattern(f, 0, 0, MIB(1) / 512);
    write_pattern(f, 1, 1, 8);
    driver_kick(&f->driver, 0);
    assert_true(becomes_full(f, ENOSPC));
    driver_kick(&f->driver, 1);
    assert_true(take(f, 1, &used));
    assert_int_equal(status(f, 1), OK);
    offer(f, 1, 2, IN, 8, DATA + MIB(1), 4096);
    driver_kick(&f->driver, 1);
    assert_true(take(f, 1, &used));
    assert_true(all(guest(f, DATA + MIB(1), 4096), 4096, 2));
    /* Both are full, then one: the disk is as long as any is. */
    write_pattern(f, 1, 3, MIB(2) / 512);
    driver_kick(&f->driver, 1);
    assert_true(eventually(attempts >= 3));
    space_end = MIB(1) + 4096;
    assert_true(take(f, 0, &used));
    assert_int_equal(virtio_blk_full(f->blk), ENOSPC);
    no_space = 0;
    assert_true(take(f, 1, &used));
    assert_true(becomes_full(f, 0));
}

static void zeroes_that_find_no_space_wait_too(void **state)
{
    struct fixture *f = *state;
    uint32_t used;
    uint8_t *range = guest(f, DATA, 16);
    bring_up(f, FEATURES);
    le64_write(range, 16);
    le32_write(range + 8, 8);
    le32_write(range + 12, 0);
    no_space = ENOSPC;
    offer(f, 0, 0, WRITE_ZEROES, 0, DATA, 16);
    driver_kick(&f->driver, 0);
    assert_true(becomes_full(f, ENOSPC));
    no_space = 0;
    virtio_blk_retry(f->blk);
    assert_true(take(f, 0, &used));
    assert_int_equal(status(f, 0), OK);
    uint8_t bytes[4096];
    assert_int_equal(pread(f->fd, bytes, sizeof bytes, 16 * 512), sizeof bytes);
    assert_true(all(bytes, sizeof bytes, 0));
}

static void a_reset_drops_what_waits(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    no_space = ENOSPC;
    write_pattern(f, 0, 0, 100);
    driver_kick(&f->driver, 0);
    assert_true(becomes_full(f, ENOSPC));
    driver_set_status(&f->driver, 0);
    assert_int_equal(driver_status(&f->driver), 0);
    assert_int_equal(virtio_blk_full(f->blk), 0);
    no_space = 0;
    bring_up(f, FEATURES);
    assert_int_equal(request(f, IN, 100, DATA, 4096), OK);
    assert_true(holds(guest(f, DATA, 4096), 100, 8));
}

/* It is held without an end to wait for, and says that it cannot be saved. */
static void a_full_disk_does_not_settle(void **state)
{
    struct fixture *f = *state;
    struct virtio_device *device = virtio_blk_device(f->blk);
    uint32_t used;
    bring_up(f, FEATURES);
    no_space = ENOSPC;
    write_pattern(f, 0, 0, 100);
    driver_kick(&f->driver, 0);
    virtio_hold(device); /* perhaps before it is full, perhaps while it is becoming so */
    virtio_release(device);
    assert_true(becomes_full(f, ENOSPC));
    virtio_hold(device);
    assert_false(virtio_blk_settled(f->blk));
    virtio_release(device);
    no_space = 0;
    virtio_blk_retry(f->blk);
    assert_true(take(f, 0, &used));
    virtio_hold(device);
    assert_true(virtio_blk_settled(f->blk));
    virtio_release(device);
}

static void a_full_disk_can_be_an_error(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    no_space = ENOSPC;
    assert_int_equal(request(f, OUT, 100, DATA, 4096), IOERR);
    assert_int_equal(f->last_error, ENOSPC);
    assert_int_equal(virtio_blk_full(f->blk), 0);
}

static void other_errors_do_not_wait(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    no_space = EIO;
    assert_int_equal(request(f, OUT, 100, DATA, 4096), IOERR);
    assert_int_equal(f->last_error, EIO);
}

static void a_full_disk_can_be_taken_away(void **state)
{
    struct fixture *f = *state;
    bring_up(f, FEATURES);
    no_space = ENOSPC;
    write_pattern(f, 0, 0, 100);
    driver_kick(&f->driver, 0);
    assert_true(becomes_full(f, ENOSPC));
    virtio_blk_stop(f->blk);
    assert_int_equal(virtio_blk_full(f->blk), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(what_finds_no_space_waits_for_it),
        TEST(a_retry_is_made_at_once),
        TEST(only_what_needs_space_waits),
        TEST(zeroes_that_find_no_space_wait_too),
        TEST(a_reset_drops_what_waits),
        TEST(a_full_disk_does_not_settle),
        TEST(other_errors_do_not_wait),
        TEST(a_full_disk_can_be_taken_away),
        cmocka_unit_test_setup_teardown(a_full_disk_can_be_an_error, setup_error, teardown),
    };
    return cmocka_run_group_tests_name("blk_full", tests, NULL, NULL);
}
