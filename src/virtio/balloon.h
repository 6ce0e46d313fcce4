/*
 * balloon.h: the virtio memory balloon (virtio 1.2, 5.5).
 *
 * The host names a size; the guest's driver takes as many pages away from itself and tells us
 * which, and we give them back to the host (mem_discard()). Deflated pages are simply used again:
 * they read as zeroes. Offered besides:
 *
 *   STATS_VQ        what the guest's kernel says about its memory, whenever it is asked for
 *   DEFLATE_ON_OOM  a guest in need takes pages back by itself before it kills anybody
 *   REPORTING       the guest names large free blocks, with no balloon at all, and they go back
 *   PAGE_POISON     the guest says what free pages are filled with; where that is not zero,
 *                   reported blocks are left alone, for they would come back as zeroes
 *
 * FREE_PAGE_HINT is not.
 *
 * What a driver says is checked: a page that is no writable memory, a list of more than 4096 pages
 * (Linux sends 256), or one that is no whole number of entries breaks the protocol (virtio_fail()).
 * A driver may name pages that it goes on to use, its own rings among them; it then finds zeroes
 * there.
 *
 * While pages are in the balloon, guest memory gets no huge pages (mem_keep_small()).
 *
 * Threads: virtio_balloon_target(), _ask() and _info() from any. `heard` is called on the device's
 * thread, with its mutex held: it must not call back. The device is freed by its transport.
 */
#pragma once

#include "base/err.h"
#include "virtio/device.h"

enum {
    BALLOON_STATS = 16, /* tags 0..15; 0 to 9 are named by 5.5.6.4 */
};

struct virtio_balloon;

struct virtio_balloon_config {
    void (*heard)(void *opaque); /* statistics that were asked for are there; may be NULL */
    void *opaque;
};

struct virtio_balloon_info {
    bool driver;       /* a driver is there */
    bool has_stats;    /* and gives statistics */
    uint64_t target;   /* bytes that the host wants */
    uint64_t actual;   /* bytes that the driver says it has given */
    uint64_t reported; /* bytes of free blocks given back since the guest's start */
    uint32_t known;    /* a bit for each tag that has a value */
    uint64_t stats[BALLOON_STATS];
    uint64_t stats_at; /* CLOCK_MONOTONIC ns; 0 = never */
};

int virtio_balloon_new(struct mem *mem, const struct virtio_balloon_config *config,
                       struct virtio_balloon **ret_balloon, struct err *err);
struct virtio_device *virtio_balloon_device(struct virtio_balloon *balloon);

/* How large the balloon shall be; whole pages, at most all of the guest's memory. It stays so over
 * a reset. */
void virtio_balloon_target(struct virtio_balloon *balloon, uint64_t bytes);
/* Asks for fresh statistics. False where no driver gives any: then `heard` is not called. */
bool virtio_balloon_ask(struct virtio_balloon *balloon);
void virtio_balloon_info(struct virtio_balloon *balloon, struct virtio_balloon_info *ret_info);
