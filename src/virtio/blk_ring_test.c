/* The block device's io_uring. */
#include "virtio/blk_fixture.h"

#include <linux/io_uring.h>
#include <stdio.h>
#include <sys/syscall.h>

static int setup(void **state)
{
    *state = make(&(struct flavour){.rings = true});
    return 0;
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_ring_only_reads_and_writes, setup, teardown),
    };
    return cmocka_run_group_tests_name("blk_ring", tests, NULL, NULL);
}
