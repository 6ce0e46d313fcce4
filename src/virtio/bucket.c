#include "virtio/bucket.h"

#include "base/bytes.h"
#include "base/clock.h"

/* The time that `tokens` take, no more than a quarter of all time. */
static uint64_t duration(uint64_t tokens, uint64_t rate)
{
    unsigned __int128 ns = (unsigned __int128)tokens * NSEC_PER_SEC / rate;
    return ns > UINT64_MAX / 4 ? UINT64_MAX / 4 : (uint64_t)ns;
}

void bucket_init(struct bucket *bucket, uint64_t rate, uint64_t burst)
{
    *bucket = (struct bucket){.rate = rate};
    if (rate)
        bucket->burst_ns = burst ? duration(burst, rate) : NSEC_PER_SEC / 10;
    pthread_mutex_init(&bucket->mutex, NULL);
}

void bucket_fini(struct bucket *bucket)
{
    pthread_mutex_destroy(&bucket->mutex);
}

uint64_t bucket_wait(struct bucket *bucket, uint64_t now)
{
    if (bucket->rate == 0)
        return 0;
    pthread_mutex_lock(&bucket->mutex);
    uint64_t allowed = now + bucket->burst_ns;
    uint64_t wait = bucket->full_at > allowed ? bucket->full_at - allowed : 0;
    pthread_mutex_unlock(&bucket->mutex);
    return wait;
}

void bucket_spend(struct bucket *bucket, uint64_t now, uint64_t tokens)
{
    if (bucket->rate == 0)
        return;
    pthread_mutex_lock(&bucket->mutex);
    bucket->full_at =
        min(max(bucket->full_at, now), UINT64_MAX / 2) + duration(tokens, bucket->rate);
    pthread_mutex_unlock(&bucket->mutex);
}
