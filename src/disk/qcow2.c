#include "disk/qcow2.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static int read_entries(struct file *file, uint64_t offset, uint64_t count, uint64_t **ret_entries)
{
    uint64_t *entries = calloc(count + 1, 8);
    if (!entries)
        return -ENOMEM;
    int r = file_read_bytes(file, offset, entries, count * 8);
    if (r < 0) {
        free(entries);
        return r;
    }
    for (uint64_t i = 0; i < count; i++)
        entries[i] = be64_read(&entries[i]);
    *ret_entries = entries;
    return 0;
}

static uint64_t *dirty_bits(uint64_t entries)
{
    return calloc(entries / 64 / 64 + 1, 8);
}

static int read_tables(struct qcow2 *q)
{
    q->l1_size = q->header.l1_size;
    q->reftable_entries = ((uint64_t)q->header.reftable_clusters << q->cluster_bits) / 8;
    int r = read_entries(q->disk.file, q->header.l1_offset, q->l1_size, &q->l1);
    if (r >= 0)
        r = read_entries(q->disk.file, q->header.reftable_offset, q->reftable_entries,
                         &q->reftable);
    if (r < 0)
        return r;
    q->l1_dirty = dirty_bits(q->l1_size);
    q->reftable_dirty = dirty_bits(q->reftable_entries);
    return q->l1_dirty && q->reftable_dirty ? 0 : -ENOMEM;
}

/* --- opening for writing --- */

static int note_table(struct qcow2 *q, uint64_t offset)
{
    if (!offset)
        return 0;
    if (offset % q->cluster_size || offset >= q->file_end || qcow2_is_metadata(q, offset))
        return -EUCLEAN;
    return cluster_set_add(&q->tables, offset >> q->cluster_bits);
}

/* No two tables in one place: each would be the guest's way to write the other. */
static int note_tables(struct qcow2 *q)
{
    int r = 0;
    for (uint64_t i = 0; r >= 0 && i < q->reftable_entries; i++)
        r = note_table(q, q->reftable[i] & ~UINT64_C(511));
    for (uint64_t i = 0; r >= 0 && i < q->l1_size; i++)
        r = note_table(q, q->l1[i] & QCOW2_OFFSET_MASK);
    return r;
}

static int clear_autoclear(struct qcow2 *q)
{
    static const uint8_t nothing[8];
    if (!q->header.autoclear)
        return 0;
    q->header.autoclear = 0;
    return file_write_bytes(q->disk.file, QCOW2_AT_AUTOCLEAR, nothing, sizeof nothing);
}

static int start_writing(struct qcow2 *q, const char *path, struct err *err)
{
    if (q->header.incompatible & QCOW2_CORRUPT)
        return err_set(err, -EROFS,
                       "disk '%s' is marked as damaged; mend it with lodge disk check --repair, or "
                       "open it for reading only",
                       path);
    int r = note_tables(q);
    if (r == -EUCLEAN || r == -EEXIST)
        return err_set(
            err, -EIO,
            "disk '%s' is damaged: its tables lie where they cannot; it can only be read", path);
    if (r >= 0)
        r = clear_autoclear(q);
    if (r < 0)
        return err_errno(err, -r, "disk '%s'", path);
    uint64_t clusters = (q->file_end + q->cluster_size - 1) >> q->cluster_bits;
    q->used_end = clusters;
    q->pristine = file_is_regular(q->disk.file) ? clusters << q->cluster_bits : UINT64_MAX;
    return 0;
}

/* Lazy refcounts: whoever wrote last did not live to write them down. */
static int mend_dirty(struct file *file, const char *path, struct qcow2_header *header,
                      struct err *err)
{
    struct disk_checker checker = {.repair = true};
    struct disk_check check;
    int r = qcow2_scan(file, path, &checker, &check, err);
    if (r < 0)
        return err_prefix(err, r, "its refcounts must be mended first");
    if (check.errors)
        return err_set(err, -EIO, "disk '%s' is damaged beyond its refcounts; it can only be read",
                       path);
    qcow2_header_free(header);
    return qcow2_header_read(file, path, header, err);
}

static void image_init(struct qcow2 *q, struct file *file)
{
    q->disk.ops = &qcow2_ops;
    q->disk.file = file;
    q->disk.size = align_up(q->header.size, DISK_SECTOR);
    q->cluster_bits = q->header.cluster_bits;
    q->cluster_size = UINT64_C(1) << q->cluster_bits;
    q->l2_bits = q->cluster_bits - 3;
    q->block_bits = q->cluster_bits + 3 - q->header.refcount_order;
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->changed, NULL);
    pthread_mutex_init(&q->inflated.lock, NULL);
    LIST_INIT(&q->allocations);
    TAILQ_INIT(&q->holds);
    TAILQ_INIT(&q->freed);
    TAILQ_INIT(&q->ready);
    tables_init(&q->l2, file, q->cluster_bits);
    tables_init(&q->blocks, file, q->cluster_bits);
}

static void image_free(struct qcow2 *q)
{
    struct freed *freed;
    TAILQ_CONCAT(&q->ready, &q->freed, next);
    while ((freed = TAILQ_FIRST(&q->ready))) {
        TAILQ_REMOVE(&q->ready, freed, next);
        free(freed);
    }
    while (q->spare_hold_count)
        free(q->spare_holds[--q->spare_hold_count]);
    tables_free(&q->l2);
    tables_free(&q->blocks);
    free(q->tables.slots);
    free(q->l1);
    free(q->reftable);
    free(q->l1_dirty);
    free(q->reftable_dirty);
    qcow2_header_free(&q->header);
    pthread_cond_destroy(&q->changed);
    pthread_mutex_destroy(&q->inflated.lock);
    free(q->inflated.bytes);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

static int load(struct qcow2 *q, const char *path, bool write, struct err *err)
{
    int r = file_length(q->disk.file, &q->file_end);
    if (r >= 0)
        r = read_tables(q);
    if (r < 0)
        return err_errno(err, -r, "disk '%s'", path);
    return write ? start_writing(q, path, err) : 0;
}

int qcow2_open_image(struct file *file, const char *path, bool write, struct qcow2 **ret_q,
                     struct err *err)
{
    struct qcow2 *q = calloc(1, sizeof *q);
    if (!q)
        return err_set(err, -ENOMEM, "disk '%s': no memory", path);
    int r = qcow2_header_read(file, path, &q->header, err);
    if (r >= 0 && write && q->header.incompatible & QCOW2_DIRTY &&
        !(q->header.incompatible & QCOW2_CORRUPT))
        r = mend_dirty(file, path, &q->header, err);
    if (r < 0) {
        qcow2_header_free(&q->header);
        free(q);
        return r;
    }
    image_init(q, file);
    q->disk.read_only = !write;
    r = load(q, path, write, err);
    if (r < 0)
        image_free(q);
    else
        *ret_q = q;
    return r;
}

static int open_backing(struct qcow2 *q, const struct disk_opening *opening, struct err *err)
{
    if (q->header.backing_format == DISK_FORMAT_OTHER)
        return err_set(err, -ENOTSUP,
                       "disk '%s': its backing '%s' has a format that is neither raw nor qcow2",
                       opening->path, q->header.backing);
    q->disk.path = (char *)(uintptr_t)opening->path; /* lent: the backing's path starts from it */
    q->disk.from = opening->from;
    int r = disk_open_backing(&q->disk, opening, q->header.backing, q->header.backing_format, err);
    if (r >= 0)
        q->backing_size = q->disk.backing->size;
    return r;
}

static int qcow2_open(const struct disk_opening *opening, struct file *file, struct disk **ret_disk,
                      struct err *err)
{
    struct qcow2 *q;
    int r = qcow2_open_image(file, opening->path, opening->write, &q, err);
    if (r < 0)
        return r;
    if (q->header.backing && !opening->options->alone)
        r = open_backing(q, opening, err);
    if (r < 0)
        image_free(q);
    else
        *ret_disk = &q->disk;
    return r;
}

bool qcow2_stands_on_something(const struct disk *disk)
{
    return ((const struct qcow2 *)disk)->header.backing;
}

void qcow2_join(struct disk *disk, struct disk *below)
{
    disk->backing = below;
    qcow2_of(disk)->backing_size = below->size;
}

/* --- the end --- */

static int qcow2_flush(struct disk *disk)
{
    struct qcow2 *q = qcow2_of(disk);
    pthread_mutex_lock(&q->lock);
    int r = qcow2_commit(q, true);
    pthread_mutex_unlock(&q->lock);
    return r;
}

int qcow2_close_image(struct qcow2 *q)
{
    int r = 0;
    if (!q->disk.read_only) {
        r = qcow2_flush(&q->disk);
        assert(TAILQ_EMPTY(&q->holds) && LIST_EMPTY(&q->allocations));
    }
    image_free(q);
    return r;
}

static int qcow2_close(struct disk *disk)
{
    return qcow2_close_image(qcow2_of(disk));
}

static int qcow2_info(struct disk *disk, struct disk_info *info)
{
    const struct qcow2 *q = qcow2_of(disk);
    info->cluster_bits = q->cluster_bits;
    info->dirty = q->header.incompatible & QCOW2_DIRTY;
    info->corrupt = q->header.incompatible & QCOW2_CORRUPT;
    info->backing_format = q->header.backing_format;
    info->snapshots = q->header.snapshot_count;
    info->backing = q->header.backing ? strdup(q->header.backing) : NULL;
    return q->header.backing && !info->backing ? -ENOMEM : 0;
}

const struct disk_ops qcow2_ops = {
    .name = "qcow2",
    .format = DISK_FORMAT_QCOW2,
    .open = qcow2_open,
    .close = qcow2_close,
    .read = qcow2_read,
    .write = qcow2_write,
    .write_zeroes = qcow2_write_zeroes,
    .discard = qcow2_discard,
    .flush = qcow2_flush,
    .direct = qcow2_direct,
    .direct_end = qcow2_direct_end,
    .status = qcow2_status,
    .resize = qcow2_resize,
    .info = qcow2_info,
};
