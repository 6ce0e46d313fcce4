/*
 * queue.h: the device's side of a split virtqueue (virtio 1.2, 2.7).
 *
 * The driver lays out three rings in guest memory: descriptors, available (driver to device) and
 * used (device to driver). queue_pop() takes the next available chain and returns it as host
 * addresses, each one checked to lie inside guest memory; queue_push() gives it back.
 *
 * Everything in the rings is hostile. Each field is read once. A walk is bounded by
 * QUEUE_CHAIN_MAX buffers, which also ends loops. Where a driver breaks a rule that we cannot serve
 * (below), queue_pop() returns -EPROTO, the queue is `broken` and gives nothing more until
 * queue_reset(); the caller then asks for a device reset (device.h does both):
 *   Q1  the available index runs ahead by no more than the queue's size
 *   Q2  a head, a next and an indirect entry name a descriptor inside their table
 *   Q3  a chain ends, within QUEUE_CHAIN_MAX buffers
 *   Q4  a buffer has at least one byte and lies inside one region of memory; writable buffers not
 *       in read-only memory
 *   Q5  device-readable buffers come before device-writable ones (2.7.4.2)
 *   Q6  an indirect table has a length of whole entries, at least one, is not nested, not mixed
 *       with NEXT, and only used when it was negotiated (2.7.5.3)
 *
 * Threads: one at a time; the device that owns the queue has a mutex for that. The guest's vCPUs
 * run beside us: the barriers are in queue.c. After a device has written into a chain, queue_push()
 * tells struct mem about it (mem_written()), so devices need not.
 *
 *     while (queue_pop(queue, &chain) == 1) {
 *         size_t written = serve(&chain);
 *         queue_push(queue, &chain, written);
 *     }
 *     if (queue_should_notify(queue))
 *         interrupt();
 */
#pragma once

#include "mem/mem.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum {
    QUEUE_SIZE_MAX = 1024,
    QUEUE_CHAIN_MAX = 1024, /* = IOV_MAX, so that one readv() takes any chain */
};

struct queue {
    struct mem *mem;   /* borrowed */
    uint16_t size_max; /* what the device offers: a power of two, <= QUEUE_SIZE_MAX */

    /* Set by the driver through its transport while `ready` is false. */
    uint16_t size;
    uint64_t descriptors, available, used; /* guest-physical */
    bool indirect, event_index;            /* negotiated features */

    bool ready, broken;
    const uint8_t *descriptor_ring, *available_ring; /* where they are in this process */
    uint8_t *used_ring;
    uint16_t next_available; /* free-running index of the next chain to pop */
    uint16_t next_used;      /* free-running index of the next used element */
    uint16_t signalled;      /* next_used at the last answer of queue_should_notify() */
    bool notifications_off;
};

/* One chain. buffers[0 .. readable) may be read by the device, the `writable` after them written.
 */
struct queue_chain {
    uint16_t head;
    unsigned readable, writable;
    uint64_t readable_bytes, writable_bytes;
    struct iovec buffers[QUEUE_CHAIN_MAX];
    uint64_t addresses[QUEUE_CHAIN_MAX]; /* guest-physical, of each buffer */
};

void queue_init(struct queue *queue, struct mem *mem, uint16_t size_max);

/* Forgets everything that the driver has set. Chains popped before must not be pushed after. */
void queue_reset(struct queue *queue);

/* Checks size, alignment (2.7: 16, 2, 4) and that the rings lie in memory, then sets ready.
 * -EINVAL or -EFAULT otherwise. */
int queue_enable(struct queue *queue);

/* 1 and a chain, 0 when there is none, -EPROTO when the driver broke a rule. */
int queue_pop(struct queue *queue, struct queue_chain *ret_chain);

/* Gives the chain back; `written` bytes from the start of its writable part were filled. */
void queue_push(struct queue *queue, const struct queue_chain *chain, uint64_t written);

/* The two halves of queue_push(), for what takes several chains that must appear at once: the first
 * fills the next used element, which the driver does not see before the second. */
void queue_fill(struct queue *queue, const struct queue_chain *chain, uint64_t written);
void queue_publish(struct queue *queue);
/* Takes back the last `count` elements that were filled and not published. */
void queue_unfill(struct queue *queue, unsigned count);

/* Tells struct mem of bytes that were written into a chain after it was filled. */
void queue_chain_touched(struct queue *queue, const struct queue_chain *chain, uint64_t written);

/* Forgets that the chain was popped: the next queue_pop() returns it again. Only for the chain
 * that was popped last; then for the one before it, and so on. */
void queue_unpop(struct queue *queue);

/* True where the driver wants to be interrupted for what was pushed since the last call. */
bool queue_should_notify(struct queue *queue);

/* True while chains wait. */
bool queue_pending(const struct queue *queue);

/* Asks the driver not to notify, a hint. */
void queue_notifications_stop(struct queue *queue);
/* Asks the driver to notify again. True where chains have come meanwhile: pop once more, for these
 * no notification will come. */
bool queue_notifications_start(struct queue *queue);

struct record;
/* Saves or loads what driver and device have set; the rings' contents are memory. A loaded queue
 * that says it is ready must lie in memory, or the record fails. */
void queue_state(struct queue *queue, struct record *record);

/* Copies between the chain's readable (writable) bytes from `offset` on and a buffer. Returns how
 * many bytes were copied: less than `size` where the chain is shorter. */
size_t queue_chain_read(const struct queue_chain *chain, uint64_t offset, void *to, size_t size);
size_t queue_chain_write(const struct queue_chain *chain, uint64_t offset, const void *from,
                         size_t size);

/* The readable (writable) bytes from `offset` on as iovecs, at most `room`; returns their count. */
unsigned queue_chain_readable(const struct queue_chain *chain, uint64_t offset,
                              struct iovec *ret_iov, unsigned room);
unsigned queue_chain_writable(const struct queue_chain *chain, uint64_t offset,
                              struct iovec *ret_iov, unsigned room);
/* Cuts such a list to `room` bytes; returns how many of it are left. */
unsigned queue_iov_cut(struct iovec *iov, unsigned count, uint64_t room);
