#include "disk/http_cache.h"

#include "disk/http_wire.h"

#include "base/bytes.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#define NOWHERE UINT32_MAX

struct slot {
    uint64_t block, request;
    uint32_t next; /* of the same bucket */
    uint32_t holders;
    int failure;
    enum http_cache_state state;
    bool used; /* since the hand came by: clock replacement */
};

struct http_cache {
    uint32_t count, buckets, hand;
    uint32_t *heads;
    struct slot slots[];
};

int http_cache_new(uint32_t slots, struct http_cache **ret_cache)
{
    struct http_cache *cache = calloc(1, sizeof *cache + slots * sizeof *cache->slots);
    if (!cache)
        return -ENOMEM;
    cache->count = slots;
    cache->buckets = 1;
    while (cache->buckets < slots)
        cache->buckets *= 2;
    cache->heads = malloc(cache->buckets * sizeof *cache->heads);
    if (!cache->heads) {
        free(cache);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < cache->buckets; i++)
        cache->heads[i] = NOWHERE;
    *ret_cache = cache;
    return 0;
}

void http_cache_free(struct http_cache *cache)
{
    if (cache)
        free(cache->heads);
    free(cache);
}

static uint32_t *head_of(struct http_cache *cache, uint64_t block)
{
    return &cache->heads[block & (cache->buckets - 1)];
}

enum http_cache_state http_cache_find(struct http_cache *cache, uint64_t block, uint32_t *ret_slot)
{
    for (uint32_t i = *head_of(cache, block); i != NOWHERE; i = cache->slots[i].next)
        if (cache->slots[i].block == block) {
            *ret_slot = i;
            return cache->slots[i].state;
        }
    return HTTP_CACHE_NONE;
}

/* Out of its bucket. */
static void forget(struct http_cache *cache, uint32_t index)
{
    struct slot *slot = &cache->slots[index];
    uint32_t *link = head_of(cache, slot->block);
    while (*link != index)
        link = &cache->slots[*link].next;
    *link = slot->next;
    slot->state = HTTP_CACHE_NONE;
}

/* A slot that nobody needs, by one and a bit rounds of the clock at most. */
static uint32_t find_free(struct http_cache *cache)
{
    for (uint64_t step = 0; step <= 2 * (uint64_t)cache->count; step++) {
        uint32_t index = cache->hand;
        struct slot *slot = &cache->slots[index];
        cache->hand = index + 1 == cache->count ? 0 : index + 1;
        if (slot->state == HTTP_CACHE_NONE)
            return index;
        if (slot->state == HTTP_CACHE_COMING || slot->holders)
            continue;
        if (!slot->used) {
            forget(cache, index);
            return index;
        }
        slot->used = false;
    }
    return NOWHERE;
}

uint32_t http_cache_reserve(struct http_cache *cache, uint64_t id, uint64_t block, uint32_t count,
                            uint32_t *ret_slots)
{
    uint32_t done = 0, index;
    for (; done < count; done++, block++) {
        if (http_cache_find(cache, block, &index) != HTTP_CACHE_NONE)
            break;
        index = find_free(cache);
        if (index == NOWHERE)
            break;
        struct slot *slot = &cache->slots[index];
        uint32_t *head = head_of(cache, block);
        *slot =
            (struct slot){.block = block, .request = id, .next = *head, .state = HTTP_CACHE_COMING};
        *head = index;
        ret_slots[done] = index;
    }
    return done;
}

bool http_cache_done(struct http_cache *cache, uint64_t id, int status)
{
    bool any = false;
    for (uint32_t i = 0; i < cache->count; i++) {
        struct slot *slot = &cache->slots[i];
        if (slot->state != HTTP_CACHE_COMING || slot->request != id)
            continue;
        if (status < 0)
            forget(cache, i);
        else
            slot->state = HTTP_CACHE_THERE;
        slot->failure = status;
        any = true;
    }
    return any;
}

uint64_t http_cache_request(const struct http_cache *cache, uint32_t slot)
{
    return cache->slots[slot].request;
}

int http_cache_failure(const struct http_cache *cache, uint32_t slot, uint64_t id)
{
    return cache->slots[slot].request == id ? cache->slots[slot].failure : 0;
}

void http_cache_hold(struct http_cache *cache, uint32_t slot)
{
    cache->slots[slot].used = true;
    cache->slots[slot].holders++;
}

bool http_cache_release(struct http_cache *cache, uint32_t slot)
{
    assert(cache->slots[slot].holders);
    return --cache->slots[slot].holders == 0;
}
