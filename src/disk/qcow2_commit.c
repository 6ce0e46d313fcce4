/*
 * What is dirty is copied at one instant, under the lock; then the copies are written without it,
 * in the order that qcow2.h draws. Tables whose copy is under way must stay in memory, since what
 * the file has is old.
 */
#include "disk/qcow2.h"

#include <errno.h>
#include <stdlib.h>

/* A piece of a table for the file. */
struct piece {
    uint64_t offset;
    size_t length;
    uint8_t *bytes;
    struct table *table; /* NULL: of the L1 or the refcount table */
    uint64_t dirty;      /* granules of the table; sectors' index otherwise */
};

struct batch {
    struct piece *pieces;
    size_t count, size;
};

struct commit {
    struct batch blocks, reftable, l2, l1;
    struct freed_list freed;
};

static struct piece *add_piece(struct batch *batch, uint64_t offset, const uint8_t *from,
                               size_t length)
{
    if (batch->count == batch->size) {
        size_t size = batch->size ? batch->size * 2 : 16;
        struct piece *larger = realloc(batch->pieces, size * sizeof *larger);
        if (!larger)
            return NULL;
        batch->pieces = larger;
        batch->size = size;
    }
    uint8_t *bytes = malloc(length);
    if (!bytes)
        return NULL;
    if (from)
        memcpy(bytes, from, length);
    struct piece *piece = &batch->pieces[batch->count++];
    *piece = (struct piece){.offset = offset, .length = length, .bytes = bytes};
    return piece;
}

static void batch_free(struct batch *batch)
{
    for (size_t i = 0; i < batch->count; i++)
        free(batch->pieces[i].bytes);
    free(batch->pieces);
    *batch = (struct batch){0};
}

/* --- taking copies --- */

static int copy_table(struct batch *batch, struct table_cache *cache, struct table *table)
{
    unsigned shift = max(cache->cluster_bits, 15u) - 6;
    uint64_t left = table->dirty;
    while (left) {
        unsigned first = (unsigned)__builtin_ctzll(left);
        unsigned count = ~(left >> first) ? (unsigned)__builtin_ctzll(~(left >> first)) : 64;
        uint64_t mask = (count == 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1) << first;
        struct piece *piece =
            add_piece(batch, table->offset + ((uint64_t)first << shift),
                      table->bytes + ((size_t)first << shift), (size_t)count << shift);
        if (!piece)
            return -ENOMEM;
        piece->table = table;
        piece->dirty = mask;
        left &= ~mask;
    }
    return 0;
}

static int copy_tables(struct batch *batch, struct table_cache *cache)
{
    struct table *table;
    TAILQ_FOREACH(table, &cache->tables, by_use)
    {
        int r = table->dirty ? copy_table(batch, cache, table) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

/* Sectors of 64 entries of the L1 or the refcount table. */
static int copy_sectors(struct batch *batch, uint64_t offset, const uint64_t *entries,
                        uint64_t count, const uint64_t *dirty)
{
    for (uint64_t sector = 0; sector * 64 < count; sector++) {
        if (!(dirty[sector / 64] >> sector % 64 & 1))
            continue;
        size_t inside = (size_t)min(count - sector * 64, UINT64_C(64));
        struct piece *piece = add_piece(batch, offset + sector * 512, NULL, inside * 8);
        if (!piece)
            return -ENOMEM;
        piece->dirty = sector;
        for (size_t i = 0; i < inside; i++)
            be64_write(piece->bytes + i * 8, entries[sector * 64 + i]);
    }
    return 0;
}

static int copy_all(struct qcow2 *q, struct commit *commit)
{
    int r = copy_tables(&commit->blocks, &q->blocks);
    if (r >= 0 && q->reftable_changed)
        r = copy_sectors(&commit->reftable, q->header.reftable_offset, q->reftable,
                         q->reftable_entries, q->reftable_dirty);
    if (r >= 0)
        r = copy_tables(&commit->l2, &q->l2);
    if (r >= 0 && q->l1_changed)
        r = copy_sectors(&commit->l1, q->header.l1_offset, q->l1, q->l1_size, q->l1_dirty);
    return r;
}

/* From here on the copies stand for what was dirty. */
static void mark_tables(struct batch *batch, struct table_cache *cache)
{
    for (size_t i = 0; i < batch->count; i++) {
        struct table *table = batch->pieces[i].table;
        cache->dirty -= table->dirty != 0;
        table->dirty = 0;
        table->writing = true;
    }
}

static void mark_sectors(struct batch *batch, uint64_t *dirty, bool *changed)
{
    for (size_t i = 0; i < batch->count; i++)
        dirty[batch->pieces[i].dirty / 64] &= ~(UINT64_C(1) << batch->pieces[i].dirty % 64);
    *changed = false;
}

static void unmark_tables(struct batch *batch, struct table_cache *cache, bool failed)
{
    for (size_t i = 0; i < batch->count; i++) {
        struct piece *piece = &batch->pieces[i];
        piece->table->writing = false;
        if (!failed)
            continue;
        cache->dirty += piece->table->dirty == 0;
        piece->table->dirty |= piece->dirty;
    }
}

static void unmark_sectors(struct batch *batch, uint64_t *dirty, bool *changed, bool failed)
{
    for (size_t i = 0; failed && i < batch->count; i++) {
        dirty[batch->pieces[i].dirty / 64] |= UINT64_C(1) << batch->pieces[i].dirty % 64;
        *changed = true;
    }
}

static void take_freed(struct qcow2 *q, struct commit *commit)
{
    TAILQ_INIT(&commit->freed);
    TAILQ_CONCAT(&commit->freed, &q->freed, next);
}

static void settle_freed(struct qcow2 *q, struct commit *commit, bool failed)
{
    if (failed) {
        TAILQ_CONCAT(&commit->freed, &q->freed, next);
        TAILQ_CONCAT(&q->freed, &commit->freed, next);
    } else {
        TAILQ_CONCAT(&q->ready, &commit->freed, next);
    }
}

/* --- writing --- */

static int write_batch(struct file *file, const struct batch *batch)
{
    int r = 0;
    for (size_t i = 0; r >= 0 && i < batch->count; i++)
        r = file_write_bytes(file, batch->pieces[i].offset, batch->pieces[i].bytes,
                             batch->pieces[i].length);
    return r;
}

static int write_all(struct file *file, const struct commit *commit, bool sync)
{
    bool pointers = commit->l2.count || commit->l1.count;
    int r = write_batch(file, &commit->blocks);
    if (r >= 0 && commit->reftable.count) {
        r = file_flush(file);
        if (r >= 0)
            r = write_batch(file, &commit->reftable);
    }
    if (r >= 0 && pointers)
        r = file_flush(file); /* data and refcounts, before what points to them */
    if (r >= 0)
        r = write_batch(file, &commit->l2);
    if (r >= 0 && commit->l1.count) {
        r = file_flush(file);
        if (r >= 0)
            r = write_batch(file, &commit->l1);
    }
    if (r >= 0 && (sync || !TAILQ_EMPTY(&commit->freed)))
        r = file_flush(file);
    return r;
}

static int commit_once(struct qcow2 *q, bool sync)
{
    struct commit commit = {0};
    int r = copy_all(q, &commit);
    if (r >= 0) {
        mark_tables(&commit.blocks, &q->blocks);
        mark_tables(&commit.l2, &q->l2);
        mark_sectors(&commit.reftable, q->reftable_dirty, &q->reftable_changed);
        mark_sectors(&commit.l1, q->l1_dirty, &q->l1_changed);
        take_freed(q, &commit);
        pthread_mutex_unlock(&q->lock);
        r = write_all(q->disk.file, &commit, sync);
        pthread_mutex_lock(&q->lock);
        unmark_tables(&commit.blocks, &q->blocks, r < 0);
        unmark_tables(&commit.l2, &q->l2, r < 0);
        unmark_sectors(&commit.reftable, q->reftable_dirty, &q->reftable_changed, r < 0);
        unmark_sectors(&commit.l1, q->l1_dirty, &q->l1_changed, r < 0);
        settle_freed(q, &commit, r < 0);
    }
    batch_free(&commit.blocks);
    batch_free(&commit.reftable);
    batch_free(&commit.l2);
    batch_free(&commit.l1);
    return r;
}

/* Lowered refcounts, soon: nobody needs them, but until then a crash leaks. */
static void write_lowered(struct qcow2 *q)
{
    struct batch blocks = {0};
    if (copy_tables(&blocks, &q->blocks) >= 0) {
        mark_tables(&blocks, &q->blocks);
        pthread_mutex_unlock(&q->lock);
        int r = write_batch(q->disk.file, &blocks);
        pthread_mutex_lock(&q->lock);
        unmark_tables(&blocks, &q->blocks, r < 0);
    }
    batch_free(&blocks);
}

/* Where the L1 and the refcount table are: 24 bytes of one sector. */
static int write_places(struct qcow2 *q, const struct qcow2_header *header)
{
    uint8_t fields[24];
    be32_write(fields, header->l1_size);
    be64_write(fields + 4, header->l1_offset);
    be64_write(fields + 12, header->reftable_offset);
    be32_write(fields + 20, header->reftable_clusters);
    int r = file_write_bytes(q->disk.file, QCOW2_AT_L1_SIZE, fields, sizeof fields);
    return r < 0 ? r : file_flush(q->disk.file);
}

int qcow2_move_tables(struct qcow2 *q, const struct qcow2_header *moved)
{
    int r = file_flush(q->disk.file); /* invariant 3 */
    if (r < 0)
        return r;
    q->places_unsure = true;
    r = write_places(q, moved);
    q->places_unsure = r < 0;
    return r;
}

int qcow2_commit(struct qcow2 *q, bool sync)
{
    while (q->committing)
        pthread_cond_wait(&q->changed, &q->lock);
    q->committing = true;
    int r = 0;
    /* Until now both places have the same to say; what comes goes to the one that we know. */
    if (q->places_unsure && (r = write_places(q, &q->header)) >= 0)
        q->places_unsure = false;
    if (r >= 0)
        r = commit_once(q, sync);
    if (r >= 0 && !TAILQ_EMPTY(&q->ready)) {
        qcow2_reap(q);
        /* A block that is new has no entry in the refcount table yet: that is the next commit's. */
        write_lowered(q);
    }
    q->committing = false;
    pthread_cond_broadcast(&q->changed);
    return r;
}

int qcow2_prepare(struct qcow2 *q)
{
    int r = 0;
    if (q->l2.dirty > q->l2.limit / 2 || q->blocks.dirty > q->blocks.limit / 2 ||
        q->freed_count > QCOW2_FREED_MAX)
        r = qcow2_commit(q, false);
    if (r >= 0)
        r = qcow2_make_room(q, QCOW2_RUN_MAX);
    return r >= 0 && q->broken ? -EIO : r;
}

/* --- transfers that are under way --- */

void qcow2_hold(struct qcow2 *q, struct hold *hold)
{
    hold->sequence = q->sequence;
    TAILQ_INSERT_TAIL(&q->holds, hold, next);
}

void qcow2_release(struct qcow2 *q, struct hold *hold)
{
    TAILQ_REMOVE(&q->holds, hold, next);
}
