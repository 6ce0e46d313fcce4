/*
 * admit.h: whether a guest fits on a host, and what is promised to it. Pure functions: no I/O, no
 * clock; any thread.
 *
 * Of CPUs (thousandths, "milli") and of memory (bytes) each guest has a *share*: it requests so
 * much, is guaranteed so much, and gets at most so much. Its mode says how the three hang together:
 *
 *     fixed     guarantee = request = limit: reserved whole, never shrunk or grown
 *     dynamic   guarantee 0, request <= limit: from demand; given back when idle (balance.h)
 *     mixed     0 < guarantee <= request <= limit: a fixed part, and the rest dynamic
 *
 * What a host can admit follows from two sums over its guests and the newcomer, for each resource:
 *
 *     requests    <=  capacity x ratio          the ratio is the overcommit: 1.5 = half as much
 * again guarantees  <=  capacity x min(ratio, 1)  what does not exist cannot be guaranteed
 *
 * Limits are not summed: what is above the requests comes from what others do not use. Disks are
 * bytes in pools, each with one sum: they have no guarantee apart.
 *
 * Sums that would overflow do not fit. Errors: -EINVAL for what contradicts itself, -ENOENT for a
 * pool that is none, -ENOSPC for what does not fit, with the sum:
 *
 *     memory: 6.0 GiB asked for + 3.0 GiB promised > 8.0 GiB x 1.0
 */
#pragma once

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

enum {
    ADMIT_RATIO_ONE = 1000,   /* ratios are thousandths */
    ADMIT_RATIO_MAX = 100000, /* a hundredfold */
};

struct admit_share {
    uint64_t request;
    uint64_t guarantee; /* 0: not said */
    uint64_t limit;     /* 0: not said */
};

enum admit_mode {
    ADMIT_FIXED,
    ADMIT_DYNAMIC,
    ADMIT_MIXED,
    ADMIT_MODE_MAX,
};

struct admit_disk {
    const char *pool;
    uint64_t size;
};

struct admit_guest {
    enum admit_mode mode;
    struct admit_share cpu, memory; /* milli-CPUs, bytes */
    const struct admit_disk *disks;
    size_t disk_count;
};

struct admit_pool {
    const char *name;
    uint64_t size; /* bytes, for guests */
};

struct admit_capacity {
    uint64_t cpu;    /* milli-CPUs */
    uint64_t memory; /* bytes, without what the host keeps for itself */
    const struct admit_pool *pools;
    size_t pool_count;
    uint32_t cpu_ratio, memory_ratio, disk_ratio; /* ADMIT_RATIO_ONE: no overcommit */
};

/* "fixed"; NULL for a number that is none. */
const char *admit_mode_name(enum admit_mode mode);
int admit_mode_parse(const char *name, enum admit_mode *ret_mode, struct err *err);

/* Fills in what was not said (a limit is the request then) and checks the three against the mode.
 * `what` begins the message: "memory". */
int admit_share_resolve(enum admit_mode mode, const struct admit_share *share, const char *what,
                        struct admit_share *ret_share, struct err *err);

/* 0: `guest` fits beside `others`, who are on the host already and are taken as they were admitted,
 * whether the sums hold without the newcomer or not. */
int admit(const struct admit_capacity *capacity, const struct admit_guest *others, size_t count,
          const struct admit_guest *guest, struct err *err);
