/*
 * blk_device.h: what blk.c (life, configuration), blk_queue.c (threads), blk_run.c (transfers) and
 * blk_request.c (what a request says, the calls) share. Private to them.
 *
 * A request's way, under its queue's mutex but for the calls themselves:
 *
 *   popped --> bad, or GET_ID ------------------------------------------------> answered
 *     |                                                                             ^
 *     +--> run (adjacent transfers) --> parts, one per extent, in the ring --> all -+
 *     |        | no place, no ring                 | a part failed           |      |
 *     |        v                                   v                         v      |
 *     +------> calls: a list that the queue's thread works off <-- flush, if write-through
 *                 ^                        |
 *                 +--- in front again <----+ no space: the queue is full, and waits
 *
 * Parts of writes that go into the host's page cache are not in the ring, but on a list that the
 * queue's thread works off, too. `in_flight` counts requests that were popped and are not answered.
 */
#pragma once

#include "virtio/blk.h"
#include "virtio/bucket.h"
#include "virtio/worker.h"

#include <pthread.h>

enum {
    BLK_QUEUE_SIZE = 256,
    BLK_SEGMENTS_MAX = BLK_QUEUE_SIZE - 2, /* header and status take two descriptors */
    BLK_SEGMENT_BYTES_MAX = 1 << 20,
    /* Descriptors may name the same memory again and again, so a chain of a small guest can be
     * terabytes. This is more than the two limits above allow. */
    BLK_REQUEST_BYTES_MAX = 256 << 20,
    BLK_REQUESTS = 128,   /* in flight at once, a queue */
    BLK_EXTENTS_MAX = 16, /* of one run; what is scattered more is left to the calls */
    BLK_RUN_BYTES_MAX = 2 << 20,
    BLK_DISCARD_SECTORS_MAX = 1 << 21, /* 1 GiB a segment */
    BLK_DISCARD_SEGMENTS_MAX = 32,
    BLK_ZERO_SECTORS_MAX = 1 << 17, /* 64 MiB: a host may have to write them all */
    BLK_ZERO_SEGMENTS_MAX = 1,
};

/* Feature bits, 5.2.3. */
enum {
    BLK_F_SIZE_MAX = 1 << 1,
    BLK_F_SEG_MAX = 1 << 2,
    BLK_F_RO = 1 << 5,
    BLK_F_BLK_SIZE = 1 << 6,
    BLK_F_FLUSH = 1 << 9,
    BLK_F_TOPOLOGY = 1 << 10,
    BLK_F_CONFIG_WCE = 1 << 11,
    BLK_F_MQ = 1 << 12,
    BLK_F_DISCARD = 1 << 13,
    BLK_F_WRITE_ZEROES = 1 << 14,
};

/* Request types, 5.2.6. */
enum blk_type {
    BLK_T_IN = 0,
    BLK_T_OUT = 1,
    BLK_T_FLUSH = 4,
    BLK_T_GET_ID = 8,
    BLK_T_DISCARD = 11,
    BLK_T_WRITE_ZEROES = 13,
};

enum { BLK_HEADER_SIZE = 16, BLK_RANGE_SIZE = 16 };

/* Mostly untouched memory: pages that no chain is long enough for are never there. */
struct blk_request {
    struct blk_request *next; /* of its list: free, run or calls */
    uint32_t type;
    uint64_t offset, length; /* bytes; of transfers */

    /* Of the first request of a run: the whole run. */
    struct blk_request *last;
    uint64_t run_length;
    unsigned parts; /* in the ring */
    bool failed;    /* one of them was */
    unsigned iov_count;
    uintptr_t iov_bits; /* all addresses and lengths or-ed: how aligned is the worst? */
    struct iovec iov[QUEUE_CHAIN_MAX + BLK_EXTENTS_MAX]; /* room to cut where extents meet */

    struct queue_chain chain;
};

struct blk_list {
    struct blk_request *first, *last;
};

/* A run's piece, in the ring or among the writes. */
struct blk_part {
    struct blk_part *next; /* free list, or writes */
    struct blk_request *run;
    struct disk_extent extent;
    const struct iovec *iov;
    unsigned iov_count;
};

struct blk_queue {
    struct virtio_blk *blk;
    unsigned index;
    struct blk_ring *ring; /* NULL = calls only */
    struct worker worker;

    pthread_mutex_t mutex;
    pthread_cond_t idle; /* in_flight has become 0 */
    bool live;
    bool unsubmitted; /* the kernel has not taken all of the ring yet */
    unsigned in_flight, parts_in_flight;
    struct blk_list calls;
    bool full;         /* the first call found no space; nothing is popped */
    uint64_t retry_at; /* CLOCK_MONOTONIC ns; then it is made again */
    bool retry_asked;  /* since the last call began */
    struct blk_request *requests, *free_requests;
    unsigned requests_used; /* those from here on were never used */
    struct blk_part parts[BLK_RING_ENTRIES], *free_parts;
    struct blk_part *writes, **writes_end; /* into the page cache; the queue's thread does them */
    uint64_t slow_until; /* one took long: writes go to the ring until then; CLOCK_MONOTONIC ns */
};

struct virtio_blk {
    struct virtio_device device; /* first: ops get this pointer */
    struct disk *disk;
    uint8_t serial[BLK_SERIAL_MAX];
    uint32_t discard_alignment; /* sectors */
    struct bucket requests, bytes;
    _Atomic bool writes_wait; /* the host's file system has no writes that do not wait */
    _Atomic int writeback;    /* the driver's choice; -1 = it has made none */
    void (*on_error)(void *opaque, bool write, int number);
    void *opaque;
    void (*on_full)(void *opaque);
    void *full_opaque;
    _Atomic unsigned full_queues;
    _Atomic int full_number;
    unsigned queue_count;
    struct blk_queue *queues;
};

/* True where a write is to be safe before it is answered (5.2.6.2). */
bool blk_write_through(const struct virtio_blk *blk);

/* How long the next request has to wait for the limits: ns, 0 = not at all. */
uint64_t blk_limit_wait(struct virtio_blk *blk);
void blk_limit_spend(struct virtio_blk *blk, uint64_t bytes);

/* blk_queue.c */
int blk_queue_init(struct blk_queue *queue, struct virtio_blk *blk, unsigned index,
                   struct blk_ring *ring, struct err *err);
void blk_queue_stop(struct blk_queue *queue);
void blk_queue_fini(struct blk_queue *queue);
void blk_queue_start(struct blk_queue *queue);
void blk_queue_reset(struct blk_queue *queue);
/* Returns when nothing is in flight, or nothing but what waits for space; while nothing can be
 * popped. */
void blk_queue_settle(struct blk_queue *queue);
bool blk_queue_settled(struct blk_queue *queue);
/* What waits for space is tried now. */
void blk_queue_retry(struct blk_queue *queue);
/* On the vCPU's thread. */
void blk_queue_notified(struct blk_queue *queue);
void blk_list_add(struct blk_list *list, struct blk_request *request);
/* It is over: 0 or -errno. */
void blk_answer(struct blk_queue *queue, struct blk_request *request, int r);

/* blk_run.c; with the mutex, and room for BLK_EXTENTS_MAX parts where a run is started */
void blk_run_begin(struct blk_request *request);
bool blk_run_takes(const struct blk_request *run, const struct blk_request *request);
void blk_run_add(struct blk_request *run, struct blk_request *request);
/* Its parts, to the ring or the writes; or all of it to the calls. */
void blk_run_start(struct blk_queue *queue, struct blk_request *run);
/* Hands to the kernel what the ring holds. */
void blk_submit(struct blk_queue *queue);
/* What is done; true where something was. */
bool blk_reap(struct blk_queue *queue);
/* Makes the next of the writes, without the mutex; false where there is none. */
bool blk_write_next(struct blk_queue *queue);
/* Completions wake the queue's thread from here on; true where some came before. */
bool blk_await(struct blk_queue *queue);

/* blk_request.c */
/* Reads what was popped: 1 where there is something to do; else the request is over, with 0 or why
 * it failed. */
int blk_request_read(struct virtio_blk *blk, struct blk_request *request);
/* Does it by the disk's calls; may take its time. 0 or -errno. */
int blk_request_call(struct virtio_blk *blk, struct blk_request *request);
bool blk_request_is_transfer(const struct blk_request *request);
