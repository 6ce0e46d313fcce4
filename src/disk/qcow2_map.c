#include "disk/qcow2.h"

#include <errno.h>

/* True where the file reaches behind `offset`. Its length only grows while we have it open, but for
 * what resize does; asked again only where it seems too short. */
static bool in_file(struct qcow2 *q, uint64_t offset)
{
    if (offset >= q->file_end) {
        uint64_t length;
        if (file_length(q->disk.file, &length) >= 0)
            q->file_end = length;
    }
    return offset < q->file_end;
}

static int decode_packed(struct qcow2 *q, uint64_t entry, struct qcow2_place *ret_place)
{
    unsigned shift = 62 - (q->cluster_bits - 8);
    uint64_t host = entry & ((UINT64_C(1) << shift) - 1);
    uint64_t sectors = (entry & (QCOW2_COMPRESSED - 1)) >> shift;
    if (host > QCOW2_OFFSET_MASK + 511 || !in_file(q, host))
        return -EIO;
    *ret_place = (struct qcow2_place){
        .kind = QCOW2_PACKED,
        .host = host,
        .packed_length = (sectors + 1) * DISK_SECTOR - host % DISK_SECTOR,
    };
    return 0;
}

int qcow2_decode(struct qcow2 *q, uint64_t entry, struct qcow2_place *ret_place)
{
    if (entry & QCOW2_COMPRESSED)
        return entry & QCOW2_COPIED ? -EIO : decode_packed(q, entry, ret_place);
    bool zero = entry & QCOW2_ZERO;
    uint64_t host = entry & QCOW2_OFFSET_MASK;
    bool own = entry & QCOW2_COPIED;
    if (zero && q->header.version < 3)
        return -EIO;
    if (host % q->cluster_size || (own && !host) || (host && !in_file(q, host)))
        return -EIO;
    *ret_place = (struct qcow2_place){
        .kind =
            host ? (zero ? QCOW2_ZEROS_PLACE : QCOW2_DATA) : (zero ? QCOW2_ZEROS : QCOW2_NOTHING),
        .own = own,
        .host = host,
    };
    return 0;
}

static uint64_t index_in_table(const struct qcow2 *q, uint64_t cluster)
{
    return cluster & ((UINT64_C(1) << q->l2_bits) - 1);
}

uint64_t qcow2_l2_entry(const struct qcow2 *q, const struct table *table, uint64_t cluster)
{
    return be64_read(table->bytes + index_in_table(q, cluster) * 8);
}

int qcow2_l2(struct qcow2 *q, uint64_t cluster, struct table **ret_table)
{
    uint64_t index = cluster >> q->l2_bits;
    uint64_t offset = index < q->l1_size ? q->l1[index] & QCOW2_OFFSET_MASK : 0;
    *ret_table = NULL;
    if (!offset)
        return 0;
    if (offset % q->cluster_size)
        return -EIO;
    int r = tables_get(&q->l2, offset, ret_table);
    /* A new table is not in the file before its first commit, but it is in memory until then. */
    if (r >= 0 && !(*ret_table)->dirty && !(*ret_table)->writing && !in_file(q, offset))
        r = -EIO;
    return r;
}

static bool continues(const struct qcow2_place *first, const struct qcow2_place *next,
                      uint64_t distance)
{
    return next->kind == first->kind && next->own == first->own && next->kind != QCOW2_PACKED &&
           (next->kind == QCOW2_NOTHING || next->kind == QCOW2_ZEROS ||
            next->host == first->host + distance);
}

/* The run begins at the start of its first cluster here. */
static int extend_run(struct qcow2 *q, const struct table *table, uint64_t cluster, uint64_t bytes,
                      struct qcow2_run *run)
{
    uint64_t left = (UINT64_C(1) << q->l2_bits) - index_in_table(q, cluster);
    uint64_t wanted = (bytes + q->cluster_size - 1) >> q->cluster_bits;
    for (uint64_t i = 1; i < min(left, wanted); i++) {
        struct qcow2_place next;
        /* What is wrong there is said to who asks for it. */
        if (qcow2_decode(q, qcow2_l2_entry(q, table, cluster + i), &next) < 0 ||
            !continues(&run->place, &next, i << q->cluster_bits))
            break;
        run->length += q->cluster_size;
    }
    return 0;
}

int qcow2_map(struct qcow2 *q, uint64_t offset, uint64_t length, struct qcow2_run *ret_run)
{
    uint64_t cluster = offset >> q->cluster_bits;
    uint64_t inside = offset & (q->cluster_size - 1);
    struct table *table;
    struct qcow2_run run = {.length = q->cluster_size};
    int r = qcow2_l2(q, cluster, &table);
    if (r < 0)
        return r;
    if (!table) {
        run.place.kind = QCOW2_NOTHING;
        uint64_t left = (UINT64_C(1) << q->l2_bits) - index_in_table(q, cluster);
        run.length = left << q->cluster_bits;
    } else {
        r = qcow2_decode(q, qcow2_l2_entry(q, table, cluster), &run.place);
        if (r >= 0)
            r = extend_run(q, table, cluster, inside + length, &run);
    }
    if (r < 0)
        return r;
    run.length = min(run.length - inside, length);
    *ret_run = run;
    return 0;
}

bool qcow2_map_cached(struct qcow2 *q, uint64_t offset, uint64_t length, struct qcow2_run *ret_run)
{
    uint64_t index = offset >> q->cluster_bits >> q->l2_bits;
    return index < q->l1_size && tables_has(&q->l2, q->l1[index] & QCOW2_OFFSET_MASK) &&
           qcow2_map(q, offset, length, ret_run) >= 0;
}

/* --- changes --- */

void qcow2_l1_set(struct qcow2 *q, uint64_t index, uint64_t entry)
{
    q->l1[index] = entry;
    q->l1_dirty[index / 64 / 64] |= UINT64_C(1) << index / 64 % 64;
    q->l1_changed = true;
}

void qcow2_reftable_set(struct qcow2 *q, uint64_t index, uint64_t entry)
{
    q->reftable[index] = entry;
    q->reftable_dirty[index / 64 / 64] |= UINT64_C(1) << index / 64 % 64;
    q->reftable_changed = true;
}

/* A new table in place of `old`, which the active disk does not use any more; 0: there was none. */
static int make_l2(struct qcow2 *q, uint64_t index, uint64_t old, struct table **ret_table)
{
    uint64_t offset, got;
    struct table *from, *to;
    int r = qcow2_take(q, 1, &offset, &got);
    if (r < 0)
        return r;
    r = tables_make(&q->l2, offset, &to);
    if (r >= 0 && old && (r = tables_get(&q->l2, old, &from)) >= 0)
        memcpy(to->bytes, from->bytes, q->cluster_size);
    if (r >= 0)
        r = cluster_set_add(&q->tables, offset >> q->cluster_bits);
    if (r < 0) {
        tables_drop(&q->l2, offset);
        qcow2_untake(q, offset, 1);
        return r;
    }
    qcow2_l1_set(q, index, offset | QCOW2_COPIED);
    if (old) {
        cluster_set_remove(&q->tables, old >> q->cluster_bits);
        (void)qcow2_free_later(q, old >> q->cluster_bits, 1);
    }
    *ret_table = to;
    return 0;
}

int qcow2_l2_own(struct qcow2 *q, uint64_t cluster, struct table **ret_table)
{
    uint64_t index = cluster >> q->l2_bits;
    struct table *table;
    int r = qcow2_l2(q, cluster, &table);
    if (r < 0)
        return r;
    if (table && q->l1[index] & QCOW2_COPIED) {
        *ret_table = table;
        return 0;
    }
    return make_l2(q, index, table ? table->offset : 0, ret_table);
}

void qcow2_packed_clusters(unsigned cluster_bits, const struct qcow2_place *place,
                           uint64_t *ret_first, uint64_t *ret_count)
{
    *ret_first = place->host >> cluster_bits;
    *ret_count = ((place->host + place->packed_length - 1) >> cluster_bits) - *ret_first + 1;
}

int qcow2_l2_replace(struct qcow2 *q, struct table *table, uint64_t cluster, uint64_t entry)
{
    struct qcow2_place old;
    int r = qcow2_decode(q, qcow2_l2_entry(q, table, cluster), &old);
    if (r < 0)
        return r;
    size_t at = (size_t)index_in_table(q, cluster) * 8;
    be64_write(table->bytes + at, entry);
    table_dirty(&q->l2, table, at, 8);
    uint64_t first = old.host >> q->cluster_bits, count = 1;
    if (old.kind == QCOW2_PACKED)
        qcow2_packed_clusters(q->cluster_bits, &old, &first, &count);
    else if (!old.host || old.host == (entry & QCOW2_OFFSET_MASK))
        return 0;
    /* Without memory for that the space is leaked, nothing else. */
    (void)qcow2_free_later(q, first, count);
    return 0;
}
