#include "disk/qcow2.h"

#include <errno.h>
#include <stdlib.h>

uint64_t refcount_entry(const uint8_t *block, unsigned order, uint64_t index)
{
    switch (order) {
    case 3: return block[index];
    case 4: return be16_read(block + index * 2);
    case 5: return be32_read(block + index * 4);
    case 6: return be64_read(block + index * 8);
    default: /* less than a byte: the first entry is in the lowest bits */
        return block[index >> (3 - order)] >> ((index << order) & 7) & ((1u << (1u << order)) - 1);
    }
}

void refcount_entry_set(uint8_t *block, unsigned order, uint64_t index, uint64_t value)
{
    uint8_t *byte = block + (index >> (3 - min(order, 3u)));
    unsigned shift = (index << order) & 7;
    unsigned mask = ((1u << (1u << min(order, 3u))) - 1) << shift;
    switch (order) {
    case 3: block[index] = (uint8_t)value; break;
    case 4: be16_write(block + index * 2, (uint16_t)value); break;
    case 5: be32_write(block + index * 4, (uint32_t)value); break;
    case 6: be64_write(block + index * 8, value); break;
    default: *byte = (uint8_t)((*byte & ~mask) | ((unsigned)value << shift & mask));
    }
}

static uint64_t cluster_bytes(const struct qcow2 *q, uint64_t clusters)
{
    return clusters << q->cluster_bits;
}

static void note_used(struct qcow2 *q, uint64_t end)
{
    q->used_end = max(q->used_end, end);
    q->pristine = max(q->pristine, cluster_bytes(q, end));
}

bool qcow2_is_metadata(const struct qcow2 *q, uint64_t offset)
{
    uint64_t l1_end = q->header.l1_offset + align_up((uint64_t)q->l1_size * 8, q->cluster_size);
    uint64_t reftable_end = q->header.reftable_offset + q->reftable_entries * 8;
    return offset < q->cluster_size || (offset >= q->header.l1_offset && offset < l1_end) ||
           (offset >= q->header.reftable_offset && offset < reftable_end) ||
           cluster_set_has(&q->tables, offset >> q->cluster_bits);
}

int qcow2_broken(struct qcow2 *q)
{
    uint8_t field[8];
    if (!q->broken && !q->disk.read_only && q->header.version >= 3) {
        q->header.incompatible |= QCOW2_CORRUPT;
        be64_write(field, q->header.incompatible);
        /* Where even this fails, refusing to write is all that is left to do. */
        (void)file_write_bytes(q->disk.file, QCOW2_AT_INCOMPATIBLE, field, sizeof field);
    }
    q->broken = true;
    return -EIO;
}

/* --- refcount blocks --- */

/* The block of a cluster; NULL: there is none, all its counts are 0. */
static int find_block(struct qcow2 *q, uint64_t cluster, struct table **ret_block)
{
    uint64_t index = cluster >> q->block_bits;
    *ret_block = NULL;
    if (index >= q->reftable_entries || !q->reftable[index])
        return 0;
    uint64_t offset = q->reftable[index];
    if (offset % q->cluster_size)
        return qcow2_broken(q);
    return tables_get(&q->blocks, offset, ret_block);
}

static void set_count(struct qcow2 *q, struct table *block, uint64_t cluster, uint64_t value)
{
    uint64_t index = cluster & ((UINT64_C(1) << q->block_bits) - 1);
    unsigned order = q->header.refcount_order;
    refcount_entry_set(block->bytes, order, index, value);
    table_dirty(&q->blocks, block, (size_t)(index << order >> 3),
                order > 3 ? 1u << (order - 3) : 1);
}

/* A block for clusters that have none. It describes them, all free, and is the first of them. */
static int make_block(struct qcow2 *q, uint64_t cluster, struct table **ret_block)
{
    uint64_t index = cluster >> q->block_bits;
    uint64_t first = index << q->block_bits;
    if (index >= q->reftable_entries || cluster_bytes(q, first + 1) > QCOW2_OFFSET_MASK)
        return -EFBIG;
    if (qcow2_is_metadata(q, cluster_bytes(q, first)))
        return qcow2_broken(q);
    int r = tables_make(&q->blocks, cluster_bytes(q, first), ret_block);
    if (r >= 0 && (r = cluster_set_add(&q->tables, first)) < 0)
        tables_drop(&q->blocks, cluster_bytes(q, first));
    if (r < 0)
        return r;
    set_count(q, *ret_block, first, 1);
    qcow2_reftable_set(q, index, cluster_bytes(q, first));
    note_used(q, first + 1);
    return 0;
}

static int block_of(struct qcow2 *q, uint64_t cluster, struct table **ret_block)
{
    int r = find_block(q, cluster, ret_block);
    return r >= 0 && !*ret_block ? make_block(q, cluster, ret_block) : r;
}

static uint64_t count_in(const struct qcow2 *q, const struct table *block, uint64_t cluster)
{
    return refcount_entry(block->bytes, q->header.refcount_order,
                          cluster & ((UINT64_C(1) << q->block_bits) - 1));
}

/* --- taking --- */

/* The first free cluster at or behind free_from, whose block exists after. */
static int find_free(struct qcow2 *q, struct table **ret_block, uint64_t *ret_cluster)
{
    uint64_t cluster = q->free_from;
    for (;;) {
        struct table *block;
        int r = block_of(q, cluster, &block);
        if (r < 0)
            return r;
        uint64_t end = ((cluster >> q->block_bits) + 1) << q->block_bits;
        while (cluster < end && count_in(q, block, cluster))
            cluster++;
        q->free_from = cluster;
        if (cluster < end) {
            *ret_block = block;
            *ret_cluster = cluster;
            return 0;
        }
    }
}

int qcow2_take(struct qcow2 *q, uint64_t want, uint64_t *ret_offset, uint64_t *ret_got)
{
    struct table *block;
    uint64_t first, got = 0;
    int r = find_free(q, &block, &first);
    if (r < 0)
        return r;
    uint64_t end = min(((first >> q->block_bits) + 1) << q->block_bits, first + want);
    end = min(end, QCOW2_OFFSET_MASK >> q->cluster_bits);
    for (; first + got < end && !count_in(q, block, first + got); got++) {
        if (qcow2_is_metadata(q, cluster_bytes(q, first + got))) /* in use, says the image itself */
            return qcow2_broken(q);
        set_count(q, block, first + got, 1);
    }
    if (got == 0)
        return -EFBIG;
    q->free_from = first + got;
    note_used(q, first + got);
    *ret_offset = cluster_bytes(q, first);
    *ret_got = got;
    return 0;
}

/* Where nothing has a block yet: the blocks for what is taken, then the clusters themselves. */
static int take_long_row(struct qcow2 *q, uint64_t count, uint64_t *ret_offset)
{
    uint64_t per_block = UINT64_C(1) << q->block_bits;
    uint64_t index = (q->used_end + per_block - 1) >> q->block_bits, blocks = 1;
    for (uint64_t i = index; i < q->reftable_entries; i++)
        if (q->reftable[i])
            index = i + 1;
    while (blocks * per_block < blocks + count)
        blocks++;
    if (index + blocks > q->reftable_entries)
        return -EFBIG;
    uint64_t first = index << q->block_bits;
    struct table *block = NULL;
    for (uint64_t i = 0; i < blocks; i++) {
        int r = tables_make(&q->blocks, cluster_bytes(q, first + i), &block);
        if (r >= 0)
            r = cluster_set_add(&q->tables, first + i);
        if (r < 0)
            return r;
        qcow2_reftable_set(q, index + i, cluster_bytes(q, first + i));
    }
    for (uint64_t i = 0; i < blocks + count; i++) {
        int r = find_block(q, first + i, &block);
        if (r < 0)
            return r;
        set_count(q, block, first + i, 1);
    }
    note_used(q, first + blocks + count);
    *ret_offset = cluster_bytes(q, first + blocks);
    return 0;
}

int qcow2_take_row(struct qcow2 *q, uint64_t count, uint64_t *ret_offset)
{
    uint64_t got;
    for (int tries = 0; tries < 64 && count < UINT64_C(1) << q->block_bits; tries++) {
        int r = qcow2_take(q, count, ret_offset, &got);
        if (r < 0 || got == count)
            return r;
        (void)qcow2_free_later(q, *ret_offset >> q->cluster_bits, got);
    }
    return take_long_row(q, count, ret_offset);
}

/* Lowers one count; the cluster may be taken again when it is 0. */
static int lower(struct qcow2 *q, uint64_t cluster)
{
    struct table *block;
    int r = find_block(q, cluster, &block);
    if (r < 0)
        return r;
    uint64_t count = block ? count_in(q, block, cluster) : 0;
    if (count == 0)
        return qcow2_broken(q);
    set_count(q, block, cluster, count - 1);
    if (count == 1)
        q->free_from = min(q->free_from, cluster);
    return 0;
}

void qcow2_untake(struct qcow2 *q, uint64_t offset, uint64_t count)
{
    /* An error leaks the cluster, which is harmless; it will be met again. */
    for (uint64_t i = 0; i < count; i++)
        (void)lower(q, (offset >> q->cluster_bits) + i);
}

int qcow2_free_later(struct qcow2 *q, uint64_t cluster, uint64_t count)
{
    struct freed *last = TAILQ_LAST(&q->freed, freed_list);
    q->sequence++;
    if (last && last->cluster + last->count == cluster) {
        last->count += count;
        last->sequence = q->sequence;
        return 0;
    }
    struct freed *freed = malloc(sizeof *freed);
    if (!freed)
        return -ENOMEM;
    *freed = (struct freed){.cluster = cluster, .count = count, .sequence = q->sequence};
    TAILQ_INSERT_TAIL(&q->freed, freed, next);
    q->freed_count++;
    return 0;
}

/* --- giving back what is ready: part of a commit --- */

/* How many of the run, from its start, nobody else uses; 0: the first one is shared. */
static int count_sole(struct qcow2 *q, const struct freed *freed, uint64_t *ret_sole)
{
    uint64_t sole = 0;
    for (; sole < freed->count; sole++) {
        struct table *block;
        int r = find_block(q, freed->cluster + sole, &block);
        if (r < 0)
            return r;
        if (!block || count_in(q, block, freed->cluster + sole) != 1)
            break;
    }
    *ret_sole = sole;
    return 0;
}

static int give_back(struct qcow2 *q, struct freed *freed)
{
    while (freed->count) {
        uint64_t sole;
        int r = count_sole(q, freed, &sole);
        if (r < 0)
            return r;
        if (sole) {
            /* Before the count says that it may be taken; we alone commit, so nobody lowers it. */
            uint64_t from = cluster_bytes(q, freed->cluster);
            pthread_mutex_unlock(&q->lock);
            (void)file_discard(q->disk.file, from, cluster_bytes(q, sole));
            pthread_mutex_lock(&q->lock);
        }
        for (uint64_t i = 0; r >= 0 && i < max(sole, UINT64_C(1)); i++) {
            r = lower(q, freed->cluster);
            freed->cluster++;
            freed->count--;
        }
        if (r < 0)
            return r;
    }
    return 0;
}

void qcow2_reap(struct qcow2 *q)
{
    struct freed *freed;
    while (!q->broken && (freed = TAILQ_FIRST(&q->ready))) {
        struct hold *oldest = TAILQ_FIRST(&q->holds);
        if (oldest && oldest->sequence < freed->sequence)
            return;
        TAILQ_REMOVE(&q->ready, freed, next);
        q->freed_count--;
        /* What cannot be given back is leaked. */
        (void)give_back(q, freed);
        free(freed);
    }
}

/* --- a larger refcount table --- */

struct growth {
    uint64_t first;  /* cluster where the new blocks begin, the table behind them */
    uint64_t blocks; /* enough to describe themselves and the table */
    uint64_t table;  /* clusters */
    uint8_t *bytes;  /* all of it, as it will lie in the file */
};

static int plan_growth(struct qcow2 *q, struct growth *growth)
{
    uint64_t old = q->reftable_entries * 8 >> q->cluster_bits;
    growth->table = old * 2;
    growth->first = q->reftable_entries << q->block_bits;
    growth->blocks = 1;
    while (growth->blocks << q->block_bits < growth->blocks + growth->table)
        growth->blocks++;
    if (cluster_bytes(q, growth->table) > QCOW2_REFTABLE_BYTES_MAX ||
        cluster_bytes(q, growth->first + growth->blocks + growth->table) > QCOW2_OFFSET_MASK ||
        growth->blocks + q->reftable_entries > cluster_bytes(q, growth->table) / 8)
        return -EFBIG;
    growth->bytes = calloc(growth->blocks + growth->table, q->cluster_size);
    return growth->bytes ? 0 : -ENOMEM;
}

static void fill_growth(const struct qcow2 *q, const struct growth *growth, uint64_t *entries)
{
    memcpy(entries, q->reftable, q->reftable_entries * 8);
    for (uint64_t i = 0; i < growth->blocks; i++)
        entries[q->reftable_entries + i] = cluster_bytes(q, growth->first + i);
    /* The blocks lie side by side, so one index runs through all of them. */
    for (uint64_t i = 0; i < growth->blocks + growth->table; i++) {
        uint8_t *block = growth->bytes + cluster_bytes(q, i >> q->block_bits);
        refcount_entry_set(block, q->header.refcount_order,
                           i & ((UINT64_C(1) << q->block_bits) - 1), 1);
    }
    uint8_t *table = growth->bytes + cluster_bytes(q, growth->blocks);
    for (uint64_t i = 0; i < q->reftable_entries + growth->blocks; i++)
        be64_write(table + i * 8, entries[i]);
}

/* The new one first, then the header says so. */
static int write_growth(struct qcow2 *q, const struct growth *growth)
{
    struct qcow2_header moved = q->header;
    moved.reftable_offset = cluster_bytes(q, growth->first + growth->blocks);
    moved.reftable_clusters = (uint32_t)growth->table;
    int r = file_write_bytes(q->disk.file, cluster_bytes(q, growth->first), growth->bytes,
                             cluster_bytes(q, growth->blocks + growth->table));
    return r < 0 ? r : qcow2_move_tables(q, &moved);
}

static int apply_growth(struct qcow2 *q, const struct growth *growth, uint64_t *entries,
                        uint64_t *dirty)
{
    uint64_t old_first = q->header.reftable_offset >> q->cluster_bits;
    uint64_t old_count = q->reftable_entries * 8 >> q->cluster_bits;
    q->header.reftable_offset = cluster_bytes(q, growth->first + growth->blocks);
    q->header.reftable_clusters = (uint32_t)growth->table;
    free(q->reftable);
    free(q->reftable_dirty);
    q->reftable = entries;
    q->reftable_dirty = dirty;
    q->reftable_entries = cluster_bytes(q, growth->table) / 8;
    note_used(q, growth->first + growth->blocks + growth->table);
    for (uint64_t i = 0; i < growth->blocks; i++)
        if (cluster_set_add(&q->tables, growth->first + i) < 0)
            return qcow2_broken(q);
    return qcow2_free_later(q, old_first, old_count);
}

static int grow_reftable(struct qcow2 *q)
{
    struct growth growth = {0};
    int r = plan_growth(q, &growth);
    if (r < 0)
        return r;
    size_t size = cluster_bytes(q, growth.table);
    uint64_t *entries = calloc(1, size);
    uint64_t *dirty = calloc(size / 512 / 64 + 1, 8);
    r = entries && dirty ? 0 : -ENOMEM;
    if (r >= 0) {
        fill_growth(q, &growth, entries);
        r = write_growth(q, &growth);
    }
    free(growth.bytes);
    if (r >= 0)
        return apply_growth(q, &growth, entries, dirty);
    free(entries);
    free(dirty);
    return r;
}

int qcow2_make_room(struct qcow2 *q, uint64_t clusters)
{
    /* Twice: what is taken may be spread over one block and the next. */
    uint64_t room = 2 * (clusters + 8) + (UINT64_C(2) << q->block_bits);
    while (!q->broken && (q->reftable_entries << q->block_bits) < q->used_end + room) {
        /* The new table has all entries in it, so the blocks must be there: invariant 3. */
        int r = qcow2_commit(q, true);
        if (r < 0)
            return r;
        if (q->reftable_changed || q->committing) /* somebody was faster than we */
            continue;
        r = grow_reftable(q);
        if (r < 0)
            return r;
    }
    return 0;
}
