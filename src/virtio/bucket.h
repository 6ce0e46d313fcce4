/*
 * bucket.h: a token bucket, for limits in bytes a second.
 *
 * The bucket fills at `rate` up to `burst`. Something may pass while there is anything in it, and
 * then takes its whole size out, so that what is larger than the bucket passes too and is waited
 * for afterwards. A rate of 0 is no limit.
 *
 * Threads: any; a bucket has a lock of its own.
 */
#pragma once

#include <pthread.h>
#include <stdint.h>

struct bucket {
    pthread_mutex_t mutex;
    uint64_t rate, burst; /* bytes a second; bytes */
    int64_t level;        /* bytes; below 0: owed */
    uint64_t filled_at;   /* ns */
};

/* A burst of 0 is a tenth of a second's worth, at least 64 KiB. The bucket is full at first. `now`
 * is CLOCK_MONOTONIC, here and below. */
void bucket_init(struct bucket *bucket, uint64_t rate, uint64_t burst, uint64_t now);
void bucket_fini(struct bucket *bucket);

/* 0 where something may pass now, else for how many ns it may not. */
uint64_t bucket_wait(struct bucket *bucket, uint64_t now);
void bucket_spend(struct bucket *bucket, uint64_t bytes);
