/*
 * blk_limit.h: so many requests and bytes a second, and how many at once after a rest.
 *
 * A token bucket, kept as the time when it will be full again: whoever comes while that lies no
 * further ahead than a full bucket lasts may go on, and moves it ahead by what he takes. He may
 * take more than is there; then the next ones wait for longer, and nothing has to be cut in pieces.
 *
 * Threads: any. Times are in ns, of CLOCK_MONOTONIC.
 */
#pragma once

#include <pthread.h>
#include <stdint.h>

struct blk_bucket {
    uint64_t rate;     /* tokens a second; 0 = no limit */
    uint64_t burst_ns; /* how long a full bucket lasts at that rate */
    uint64_t full_at;
};

struct blk_limit {
    pthread_mutex_t mutex;
    struct blk_bucket requests, bytes;
};

/* A burst of 0 is a tenth of a second's worth. */
void blk_limit_init(struct blk_limit *limit, uint64_t iops, uint64_t iops_burst, uint64_t bps,
                    uint64_t bps_burst);
void blk_limit_fini(struct blk_limit *limit);

/* How long the next request has to wait: ns, 0 = not at all. */
uint64_t blk_limit_wait(struct blk_limit *limit);
void blk_limit_take(struct blk_limit *limit, uint64_t bytes);
/* At a time of the caller's, for tests. */
uint64_t blk_limit_wait_at(struct blk_limit *limit, uint64_t now);
void blk_limit_take_at(struct blk_limit *limit, uint64_t now, uint64_t bytes);
