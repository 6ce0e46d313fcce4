#include "virtio/bucket.h"

#include "base/bytes.h"
#include "base/timer.h"

/* So that no product below overflows: a terabyte a second is no limit. */
#define RATE_MAX (UINT64_C(1) << 40)

void bucket_init(struct bucket *bucket, uint64_t rate, uint64_t burst, uint64_t now)
{
    rate = min(rate, RATE_MAX);
    burst = burst ? min(burst, RATE_MAX) : max(rate / 10, KIB(64));
    *bucket =
        (struct bucket){.rate = rate, .burst = burst, .level = (int64_t)burst, .filled_at = now};
    pthread_mutex_init(&bucket->mutex, NULL);
}

void bucket_fini(struct bucket *bucket)
{
    pthread_mutex_destroy(&bucket->mutex);
}

/* What is not enough for a byte stays for the next time. */
static void refill(struct bucket *bucket, uint64_t now)
{
    if (now <= bucket->filled_at)
        return;
    unsigned __int128 came =
        (unsigned __int128)(now - bucket->filled_at) * bucket->rate / NSEC_PER_SEC;
    int64_t room = (int64_t)bucket->burst - bucket->level;
    if (came >= (unsigned __int128)room) {
        bucket->level += room;
        bucket->filled_at = now;
        return;
    }
    bucket->level += (int64_t)came;
    bucket->filled_at += (uint64_t)(came * NSEC_PER_SEC / bucket->rate);
}

uint64_t bucket_wait(struct bucket *bucket, uint64_t now)
{
    if (bucket->rate == 0)
        return 0;
    pthread_mutex_lock(&bucket->mutex);
    refill(bucket, now);
    uint64_t wait = 0;
    if (bucket->level <= 0)
        wait = (uint64_t)((unsigned __int128)(1 - bucket->level) * NSEC_PER_SEC / bucket->rate) + 1;
    pthread_mutex_unlock(&bucket->mutex);
    return wait;
}

void bucket_spend(struct bucket *bucket, uint64_t bytes)
{
    if (bucket->rate == 0)
        return;
    pthread_mutex_lock(&bucket->mutex);
    bucket->level -= (int64_t)bytes;
    pthread_mutex_unlock(&bucket->mutex);
}
