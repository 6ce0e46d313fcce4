#include "disk/qcow2.h"

#include "base/own.h"

#include <errno.h>
#include <stdlib.h>

static uint64_t l1_entries_for(const struct qcow2 *q, uint64_t size)
{
    return size ? ((size - 1) >> (q->cluster_bits + q->l2_bits)) + 1 : 0;
}

static int write_size(struct qcow2 *q, uint64_t size)
{
    uint8_t field[8];
    be64_write(field, size);
    int r = file_write_bytes(q->disk.file, QCOW2_AT_SIZE, field, sizeof field);
    return r < 0 ? r : file_flush(q->disk.file);
}

/* --- a larger L1 table: written elsewhere, then the header says so --- */

static int write_l1(struct qcow2 *q, uint64_t offset, const uint64_t *entries, uint64_t count)
{
    _cleanup_free_ uint8_t *bytes = calloc(count, 8);
    struct qcow2_header moved = q->header;
    if (!bytes)
        return -ENOMEM;
    for (uint64_t i = 0; i < count; i++)
        be64_write(bytes + i * 8, entries[i]);
    moved.l1_size = (uint32_t)count;
    moved.l1_offset = offset;
    int r = file_write_bytes(q->disk.file, offset, bytes, count * 8);
    return r < 0 ? r : qcow2_move_tables(q, &moved);
}

static int grow_l1(struct qcow2 *q, uint64_t count)
{
    uint64_t clusters = (count * 8 + q->cluster_size - 1) >> q->cluster_bits;
    uint64_t old_offset = q->header.l1_offset;
    uint64_t old_clusters = ((uint64_t)q->l1_size * 8 + q->cluster_size - 1) >> q->cluster_bits;
    uint64_t offset = 0;
    if (count * 8 > QCOW2_L1_BYTES_MAX)
        return -EFBIG;
    uint64_t *entries = calloc(count, 8), *dirty = calloc(count / 64 / 64 + 1, 8);
    int r = entries && dirty ? qcow2_take_row(q, clusters, &offset) : -ENOMEM;
    if (r >= 0) /* the refcounts of the new place, and every L2 table that is in it */
        r = qcow2_commit(q, true);
    if (r >= 0) {
        memcpy(entries, q->l1, (uint64_t)q->l1_size * 8);
        r = write_l1(q, offset, entries, count);
    }
    if (r < 0) {
        free(entries);
        free(dirty);
        if (offset)
            (void)qcow2_free_later(q, offset >> q->cluster_bits, clusters);
        return r;
    }
    free(q->l1);
    free(q->l1_dirty);
    q->l1 = entries;
    q->l1_dirty = dirty;
    q->l1_changed = false;
    q->l1_size = (uint32_t)count;
    q->header.l1_size = (uint32_t)count;
    q->header.l1_offset = offset;
    if (old_clusters)
        (void)qcow2_free_later(q, old_offset >> q->cluster_bits, old_clusters);
    return 0;
}

/* What appears must be zeros: the rest of the last cluster, and where a longer backing would show.
 */
static int clear_tail(struct qcow2 *q, uint64_t from, uint64_t to)
{
    uint64_t end = max(align_up(from, q->cluster_size), q->backing_size);
    end = min(end, to);
    return end > from ? qcow2_write_zeroes(&q->disk, from, end - from, true) : 0;
}

static int grow(struct qcow2 *q, uint64_t size)
{
    uint64_t old = q->disk.size, entries = l1_entries_for(q, size);
    pthread_mutex_lock(&q->lock);
    int r = qcow2_prepare(q);
    if (r >= 0)
        r = qcow2_make_room(q, 2 * entries * 8 >> q->cluster_bits);
    if (r >= 0 && entries > q->l1_size)
        r = grow_l1(q, entries);
    pthread_mutex_unlock(&q->lock);
    if (r < 0)
        return r;
    /* The header says it last: until then a crash shows the old disk. */
    q->disk.size = size;
    r = clear_tail(q, old, size);
    if (r >= 0)
        r = disk_flush(&q->disk);
    if (r >= 0)
        r = write_size(q, size);
    if (r < 0)
        q->disk.size = old;
    return r;
}

/* --- shrinking --- */

/* The tables behind the end, once nothing is in them. */
static void drop_l2(struct qcow2 *q, uint64_t from)
{
    for (uint64_t i = from; i < q->l1_size; i++) {
        uint64_t offset = q->l1[i] & QCOW2_OFFSET_MASK;
        if (!offset)
            continue;
        qcow2_l1_set(q, i, 0);
        tables_drop(&q->l2, offset);
        cluster_set_remove(&q->tables, offset >> q->cluster_bits);
        (void)qcow2_free_later(q, offset >> q->cluster_bits, 1);
    }
}

static int shrink(struct qcow2 *q, uint64_t size, struct err *err)
{
    if (q->header.snapshot_count)
        return err_set(err, -ENOTSUP, "it has snapshots, which may be larger");
    uint64_t old = q->disk.size, from = align_up(size, q->cluster_size);
    uint64_t backing = q->backing_size;
    int r = write_size(q, size);
    q->backing_size = 0; /* what is cut off need not hide the backing */
    if (r >= 0 && from < old)
        r = qcow2_discard(&q->disk, from, old - from);
    q->backing_size = backing;
    if (r >= 0)
        r = disk_flush(&q->disk);
    if (r < 0)
        return err_errno(err, -r, "cannot shrink");
    pthread_mutex_lock(&q->lock);
    drop_l2(q, l1_entries_for(q, size));
    r = qcow2_commit(q, true);
    pthread_mutex_unlock(&q->lock);
    q->disk.size = size;
    return r < 0 ? err_errno(err, -r, "cannot shrink") : 0;
}

int qcow2_resize(struct disk *disk, uint64_t size, struct err *err)
{
    struct qcow2 *q = qcow2_of(disk);
    if (size < disk->size)
        return shrink(q, size, err);
    if (size == disk->size)
        return 0;
    int r = grow(q, size);
    if (r == -EFBIG)
        return err_set(err, r, "its clusters are too small for that size");
    return r < 0 ? err_errno(err, -r, "cannot grow") : 0;
}

/* --- preallocation --- */

static int64_t preallocate_some(struct qcow2 *q, uint64_t cluster, uint64_t count)
{
    struct table *table;
    uint64_t host, got;
    uint64_t left = (UINT64_C(1) << q->l2_bits) - (cluster & ((UINT64_C(1) << q->l2_bits) - 1));
    int r = qcow2_prepare(q);
    if (r >= 0)
        r = qcow2_l2_own(q, cluster, &table);
    if (r >= 0)
        r = qcow2_take(q, min(min(count, left), (uint64_t)QCOW2_RUN_MAX), &host, &got);
    if (r >= 0)
        r = file_reserve(q->disk.file, host, got << q->cluster_bits);
    for (uint64_t i = 0; r >= 0 && i < got; i++)
        r = qcow2_l2_replace(q, table, cluster + i, (host + (i << q->cluster_bits)) | QCOW2_COPIED);
    return r < 0 ? r : (int64_t)got;
}

/* A new image, which is a hole behind its tables: what is reserved there reads as zeros. */
int qcow2_preallocate(struct qcow2 *q, struct err *err)
{
    uint64_t clusters = (q->disk.size + q->cluster_size - 1) >> q->cluster_bits;
    int64_t r = 0;
    pthread_mutex_lock(&q->lock);
    for (uint64_t done = 0; done < clusters && r >= 0; done += (uint64_t)r)
        r = preallocate_some(q, done, clusters - done);
    pthread_mutex_unlock(&q->lock);
    return r < 0 ? err_errno(err, (int)-r, "cannot reserve its space") : 0;
}
