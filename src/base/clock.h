/*
 * clock.h: the host's monotonic clock. Any thread.
 */
#pragma once

#include <stdint.h>
#include <time.h>

enum { NSEC_PER_SEC = 1000000000 };

static inline uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NSEC_PER_SEC + (uint64_t)now.tv_nsec;
}

static inline int64_t clock_ms(void)
{
    return (int64_t)(clock_ns() / 1000000);
}
