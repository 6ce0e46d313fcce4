#include "virtio/blk_ring.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <liburing.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

struct blk_ring {
    struct io_uring uring;
    bool made;
    int event_fd;
};

/* Debian 12's liburing declares functions for these two and does not export them. */
static int register_ring(const struct io_uring *uring, unsigned opcode, const void *argument,
                         unsigned count)
{
    return syscall(SYS_io_uring_register, uring->ring_fd, opcode, argument, count) < 0 ? -errno : 0;
}

static int restrict_ring(const struct io_uring *uring)
{
    const struct io_uring_restriction allowed[] = {
        {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READV},
        {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_WRITEV},
    };
    int r = register_ring(uring, IORING_REGISTER_RESTRICTIONS, allowed, ARRAY_LEN(allowed));
    return r < 0 ? r : register_ring(uring, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

int blk_ring_new(unsigned entries, struct blk_ring **ret_ring, struct err *err)
{
    struct blk_ring *ring = calloc(1, sizeof *ring);
    if (!ring)
        return err_set(err, -ENOMEM, "no memory for an I/O ring");
    ring->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int r = ring->event_fd < 0 ? -errno : 0;
    if (r >= 0)
        r = io_uring_queue_init(entries, &ring->uring, IORING_SETUP_R_DISABLED);
    ring->made = r >= 0;
    if (r >= 0)
        r = io_uring_register_eventfd(&ring->uring, ring->event_fd);
    if (r >= 0)
        r = restrict_ring(&ring->uring);
    if (r < 0) {
        blk_ring_free(ring);
        return err_errno(err, -r, "no io_uring");
    }
    *ret_ring = ring;
    return 0;
}

void blk_ring_free(struct blk_ring *ring)
{
    if (!ring)
        return;
    if (ring->made)
        io_uring_queue_exit(&ring->uring);
    own_close(&ring->event_fd);
    free(ring);
}

bool blk_ring_add(struct blk_ring *ring, bool write, int fd, uint64_t offset,
                  const struct iovec *iov, unsigned count, void *tag)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
    if (!sqe)
        return false;
    io_uring_prep_rw(write ? IORING_OP_WRITEV : IORING_OP_READV, sqe, fd, iov, count, offset);
    io_uring_sqe_set_data(sqe, tag);
    return true;
}

bool blk_ring_submit(struct blk_ring *ring)
{
    while (io_uring_sq_ready(&ring->uring) > 0) {
        int r = io_uring_submit(&ring->uring);
        if (r < 0 && r != -EINTR)
            return false;
    }
    return true;
}

bool blk_ring_reap(struct blk_ring *ring, void **ret_tag, int *ret_result)
{
    struct io_uring_cqe *cqe;
    unsigned head;
    /* Looks only; a call into the kernel is needed where completions overflowed, which cannot be:
     * there are never more under way than the ring has entries. */
    io_uring_for_each_cqe(&ring->uring, head, cqe)
    {
        *ret_tag = io_uring_cqe_get_data(cqe);
        *ret_result = cqe->res;
        io_uring_cqe_seen(&ring->uring, cqe);
        return true;
    }
    return false;
}

void blk_ring_await(struct blk_ring *ring, bool await)
{
    io_uring_cq_eventfd_toggle(&ring->uring, await);
    /* The kernel adds a completion and then looks at the flag; we set it and look for more. */
    atomic_thread_fence(memory_order_seq_cst);
}

int blk_ring_fd(const struct blk_ring *ring)
{
    return ring->event_fd;
}

void blk_ring_drained(struct blk_ring *ring)
{
    eventfd_t count;
    eventfd_read(ring->event_fd, &count);
}
