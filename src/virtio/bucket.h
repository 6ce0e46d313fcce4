/*
 * bucket.h: a token bucket, for limits in bytes or requests a second.
 *
 * It is kept as the time when it will be full again: whoever comes while that lies no further ahead
 * than a full bucket lasts may pass, and moves it ahead by what he takes. He may take more than is
 * there; then the next ones wait for longer, and nothing has to be cut in pieces.
 *
 * Threads: any; a bucket has a lock of its own. Times are of clock_ns().
 */
#pragma once

#include <pthread.h>
#include <stdint.h>

struct bucket {
    pthread_mutex_t mutex;
    uint64_t rate;     /* tokens a second, fixed; 0 = no limit: then nobody need ask the clock */
    uint64_t burst_ns; /* how long a full bucket lasts at that rate */
    uint64_t full_at;
};

/* Full at first. A burst of 0 is a tenth of a second's worth. */
void bucket_init(struct bucket *bucket, uint64_t rate, uint64_t burst);
void bucket_fini(struct bucket *bucket);

/* 0 where something may pass now, else for how many ns it may not. */
uint64_t bucket_wait(struct bucket *bucket, uint64_t now);
void bucket_spend(struct bucket *bucket, uint64_t now, uint64_t tokens);
