/*
 * blk_ring.h: an io_uring that can do two things: read and write, at an offset, from and to
 * vectors.
 *
 * io_uring knows calls that a system call filter would have to see (open, connect): so a ring is
 * made before the filter is entered, the kernel is told to refuse everything else on it, and no
 * ring can be made after. One that falls into wrong hands is worth as much as preadv().
 *
 * Completions that come while blk_ring_submit() runs are there when it returns. For those that come
 * later the descriptor of blk_ring_fd() becomes readable, between blk_ring_await(true) and
 * blk_ring_await(false); look for completions once more after the first.
 *
 * Threads: one at a time; not always the same. Errors: -ENOSYS, -EPERM and the like where the
 * kernel has no io_uring for us; callers then use plain calls.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct blk_ring;

int blk_ring_new(unsigned entries, struct blk_ring **ret_ring, struct err *err);
/* With nothing under way. NULL is fine. */
void blk_ring_free(struct blk_ring *ring);

/* Queues one transfer; iov and what it names stay until it is reaped. False where the ring is full.
 */
bool blk_ring_add(struct blk_ring *ring, bool write, int fd, uint64_t offset,
                  const struct iovec *iov, unsigned count, void *tag);
/* Hands over what was added. False where the kernel does not take all of it now: try again. */
bool blk_ring_submit(struct blk_ring *ring);
/* The next completion: its tag, and bytes or -errno. */
bool blk_ring_reap(struct blk_ring *ring, void **ret_tag, int *ret_result);

void blk_ring_await(struct blk_ring *ring, bool await);
int blk_ring_fd(const struct blk_ring *ring);
/* Forgets that the descriptor was readable; before reaping. */
void blk_ring_drained(struct blk_ring *ring);
