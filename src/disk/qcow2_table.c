#include "disk/qcow2.h"

#include <errno.h>
#include <stdlib.h>

void tables_init(struct table_cache *cache, struct file *file, unsigned cluster_bits)
{
    *cache = (struct table_cache){.file = file, .cluster_bits = cluster_bits};
    cache->limit = max(QCOW2_CACHE_BYTES >> cluster_bits, (int)QCOW2_CACHE_TABLES_MIN);
    TAILQ_INIT(&cache->tables);
}

static unsigned bucket_of(const struct table_cache *cache, uint64_t offset)
{
    return (unsigned)((offset >> cache->cluster_bits) * UINT64_C(0x9e3779b97f4a7c15) >> 56);
}

static void drop(struct table_cache *cache, struct table *table)
{
    TAILQ_REMOVE(&cache->tables, table, by_use);
    LIST_REMOVE(table, by_offset);
    cache->count--;
    cache->dirty -= table->dirty != 0;
    free(table->bytes);
    free(table);
}

void tables_free(struct table_cache *cache)
{
    struct table *table;
    while (cache->file && (table = TAILQ_FIRST(&cache->tables)))
        drop(cache, table);
}

static struct table *find(struct table_cache *cache, uint64_t offset)
{
    struct table *table;
    LIST_FOREACH(table, &cache->buckets[bucket_of(cache, offset)], by_offset)
    if (table->offset == offset)
        return table;
    return NULL;
}

bool tables_has(struct table_cache *cache, uint64_t offset)
{
    return find(cache, offset) != NULL;
}

/* Takes the longest unused one that can go, or memory. */
static struct table *make_slot(struct table_cache *cache)
{
    struct table *table;
    if (cache->count >= cache->limit && cache->dirty < cache->count)
        TAILQ_FOREACH(table, &cache->tables, by_use)
    if (!table->dirty && !table->writing) {
        TAILQ_REMOVE(&cache->tables, table, by_use);
        LIST_REMOVE(table, by_offset);
        cache->count--;
        return table;
    }
    table = calloc(1, sizeof *table);
    if (table && !(table->bytes = malloc((size_t)1 << cache->cluster_bits))) {
        free(table);
        table = NULL;
    }
    return table;
}

static void insert(struct table_cache *cache, struct table *table, uint64_t offset)
{
    table->offset = offset;
    TAILQ_INSERT_TAIL(&cache->tables, table, by_use);
    LIST_INSERT_HEAD(&cache->buckets[bucket_of(cache, offset)], table, by_offset);
    cache->count++;
}

int tables_get(struct table_cache *cache, uint64_t offset, struct table **ret_table)
{
    struct table *table = find(cache, offset);
    if (table) {
        if (TAILQ_NEXT(table, by_use)) {
            TAILQ_REMOVE(&cache->tables, table, by_use);
            TAILQ_INSERT_TAIL(&cache->tables, table, by_use);
        }
        *ret_table = table;
        return 0;
    }
    table = make_slot(cache);
    if (!table)
        return -ENOMEM;
    int r = file_read_bytes(cache->file, offset, table->bytes, (size_t)1 << cache->cluster_bits);
    if (r < 0) {
        free(table->bytes);
        free(table);
        return r;
    }
    insert(cache, table, offset);
    *ret_table = table;
    return 0;
}

int tables_make(struct table_cache *cache, uint64_t offset, struct table **ret_table)
{
    tables_drop(cache, offset);
    struct table *table = make_slot(cache);
    if (!table)
        return -ENOMEM;
    memset(table->bytes, 0, (size_t)1 << cache->cluster_bits);
    insert(cache, table, offset);
    table_dirty(cache, table, 0, (size_t)1 << cache->cluster_bits);
    *ret_table = table;
    return 0;
}

void tables_drop(struct table_cache *cache, uint64_t offset)
{
    struct table *table = find(cache, offset);
    if (table)
        drop(cache, table);
}

void table_dirty(struct table_cache *cache, struct table *table, size_t offset, size_t length)
{
    unsigned shift = max(cache->cluster_bits, 15u) - 6; /* granules of 512 bytes at least */
    cache->dirty += table->dirty == 0;
    for (size_t granule = offset >> shift; granule <= (offset + length - 1) >> shift; granule++)
        table->dirty |= UINT64_C(1) << granule;
}

/* --- a set of clusters --- */

static size_t slot_of(const struct cluster_set *set, uint64_t cluster)
{
    return (size_t)(cluster * UINT64_C(0x9e3779b97f4a7c15) >> 20) & (set->size - 1);
}

static size_t find_slot(const struct cluster_set *set, uint64_t cluster)
{
    size_t at = slot_of(set, cluster);
    while (set->slots[at] && set->slots[at] != cluster + 1)
        at = (at + 1) & (set->size - 1);
    return at;
}

static int grow(struct cluster_set *set)
{
    struct cluster_set larger = {.size = set->size ? set->size * 2 : 64};
    larger.slots = calloc(larger.size, sizeof *larger.slots);
    if (!larger.slots)
        return -ENOMEM;
    for (size_t i = 0; i < set->size; i++)
        if (set->slots[i])
            larger.slots[find_slot(&larger, set->slots[i] - 1)] = set->slots[i];
    larger.count = set->count;
    free(set->slots);
    *set = larger;
    return 0;
}

int cluster_set_add(struct cluster_set *set, uint64_t cluster)
{
    if (set->count * 4 >= set->size * 3) {
        int r = grow(set);
        if (r < 0)
            return r;
    }
    size_t at = find_slot(set, cluster);
    if (set->slots[at])
        return -EEXIST;
    set->slots[at] = cluster + 1;
    set->count++;
    return 0;
}

/* Open addressing: those that were pushed behind the gap come forward. */
void cluster_set_remove(struct cluster_set *set, uint64_t cluster)
{
    if (!cluster_set_has(set, cluster))
        return;
    size_t at = find_slot(set, cluster);
    set->slots[at] = 0;
    set->count--;
    for (at = (at + 1) & (set->size - 1); set->slots[at]; at = (at + 1) & (set->size - 1)) {
        uint64_t moved = set->slots[at];
        set->slots[at] = 0;
        set->slots[find_slot(set, moved - 1)] = moved;
    }
}

bool cluster_set_has(const struct cluster_set *set, uint64_t cluster)
{
    return set->count && set->slots[find_slot(set, cluster)];
}
