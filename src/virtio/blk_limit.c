#include "virtio/blk_limit.h"

#include "base/bytes.h"

#include <stdbool.h>
#include <time.h>

enum { SECOND = 1000000000 };

/* The time that `tokens` take at `rate`, no more than a quarter of all time. */
static uint64_t duration(uint64_t tokens, uint64_t rate)
{
    unsigned __int128 ns = (unsigned __int128)tokens * SECOND / rate;
    return ns > UINT64_MAX / 4 ? UINT64_MAX / 4 : (uint64_t)ns;
}

static struct blk_bucket bucket(uint64_t rate, uint64_t burst)
{
    struct blk_bucket bucket = {.rate = rate};
    if (rate)
        bucket.burst_ns = burst ? duration(burst, rate) : SECOND / 10;
    return bucket;
}

void blk_limit_init(struct blk_limit *limit, uint64_t iops, uint64_t iops_burst, uint64_t bps,
                    uint64_t bps_burst)
{
    *limit = (struct blk_limit){
        .requests = bucket(iops, iops_burst),
        .bytes = bucket(bps, bps_burst),
    };
    pthread_mutex_init(&limit->mutex, NULL);
}

void blk_limit_fini(struct blk_limit *limit)
{
    pthread_mutex_destroy(&limit->mutex);
}

static uint64_t wait_for(const struct blk_bucket *bucket, uint64_t now)
{
    uint64_t allowed = now + bucket->burst_ns;
    return bucket->rate && bucket->full_at > allowed ? bucket->full_at - allowed : 0;
}

static void take(struct blk_bucket *bucket, uint64_t now, uint64_t tokens)
{
    if (bucket->rate)
        bucket->full_at = max(bucket->full_at, now) + duration(tokens, bucket->rate);
}

/* The rates never change; most disks have none, and ask no clock. */
static bool limits(const struct blk_limit *limit)
{
    return limit->requests.rate || limit->bytes.rate;
}

static uint64_t clock_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

uint64_t blk_limit_wait(struct blk_limit *limit)
{
    return limits(limit) ? blk_limit_wait_at(limit, clock_now()) : 0;
}

void blk_limit_take(struct blk_limit *limit, uint64_t bytes)
{
    if (limits(limit))
        blk_limit_take_at(limit, clock_now(), bytes);
}

uint64_t blk_limit_wait_at(struct blk_limit *limit, uint64_t now)
{
    pthread_mutex_lock(&limit->mutex);
    uint64_t wait = max(wait_for(&limit->requests, now), wait_for(&limit->bytes, now));
    pthread_mutex_unlock(&limit->mutex);
    return wait;
}

void blk_limit_take_at(struct blk_limit *limit, uint64_t now, uint64_t bytes)
{
    pthread_mutex_lock(&limit->mutex);
    take(&limit->requests, now, 1);
    take(&limit->bytes, now, bytes);
    pthread_mutex_unlock(&limit->mutex);
}
