/*
 * http_cache.h: which block of a remote file lies in which slot of its cache. No I/O, no lock: the
 * caller's.
 *
 *              reserve                 done, 0
 *     free ─────────────▶ coming ───────────────▶ there ──▶ free, when room is needed and nobody
 *       ▲                    │ done, -errno                  holds it
 *       └────────────────────┘
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct http_cache;

enum http_cache_state { HTTP_CACHE_NONE, HTTP_CACHE_COMING, HTTP_CACHE_THERE };

int http_cache_new(uint32_t slots, struct http_cache **ret_cache); /* -ENOMEM */
void http_cache_free(struct http_cache *cache);

/* *ret_slot where it is COMING or THERE. */
enum http_cache_state http_cache_find(struct http_cache *cache, uint64_t block, uint32_t *ret_slot);

/* Slots for up to `count` blocks from `block` on, which are not in the cache, for request `id`: as
 * many as come before one that is. 0: all slots are held or coming. */
uint32_t http_cache_reserve(struct http_cache *cache, uint64_t id, uint64_t block, uint32_t count,
                            uint32_t *ret_slots);
/* That request has ended; false: there was none. */
bool http_cache_done(struct http_cache *cache, uint64_t id, int status);

/* The request that a slot belongs to, and how it failed; 0 if it did not, or the slot is another's
 * by now. */
uint64_t http_cache_request(const struct http_cache *cache, uint32_t slot);
int http_cache_failure(const struct http_cache *cache, uint32_t slot, uint64_t id);

/* While it is held a slot keeps its block. True: nobody holds it any more. */
void http_cache_hold(struct http_cache *cache, uint32_t slot);
bool http_cache_release(struct http_cache *cache, uint32_t slot);
