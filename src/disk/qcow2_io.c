#include "disk/qcow2.h"

#include "base/own.h"

#include <errno.h>
#include <stdlib.h>

/* --- reading --- */

static bool read_inflated(struct qcow2 *q, uint64_t host, uint64_t inside, struct span *to,
                          uint64_t length)
{
    struct qcow2_inflated *last = &q->inflated;
    pthread_mutex_lock(&last->lock);
    bool hit = last->bytes && last->host == host;
    if (hit)
        span_fill(to, last->bytes + inside, length);
    pthread_mutex_unlock(&last->lock);
    return hit;
}

static void keep_inflated(struct qcow2 *q, uint64_t host, uint8_t **bytes)
{
    struct qcow2_inflated *last = &q->inflated;
    pthread_mutex_lock(&last->lock);
    uint8_t *before = last->bytes;
    last->bytes = *bytes;
    last->host = host;
    pthread_mutex_unlock(&last->lock);
    *bytes = before;
}

static int read_packed(struct qcow2 *q, const struct qcow2_place *place, uint64_t inside,
                       struct span *to, uint64_t length)
{
    if (read_inflated(q, place->host, inside, to, length))
        return 0;
    _cleanup_free_ uint8_t *packed = malloc(place->packed_length);
    _cleanup_free_ uint8_t *whole = malloc(q->cluster_size);
    if (!packed || !whole)
        return -ENOMEM;
    int r = file_read_bytes(q->disk.file, place->host, packed, place->packed_length);
    if (r >= 0)
        r = qcow2_inflate(q->header.zstd, packed, place->packed_length, whole, q->cluster_size);
    if (r < 0)
        return r;
    span_fill(to, whole + inside, length);
    keep_inflated(q, place->host, &whole);
    return 0;
}

static int read_run(struct qcow2 *q, const struct qcow2_run *run, uint64_t offset, struct span *to)
{
    uint64_t inside = offset & (q->cluster_size - 1);
    switch (run->place.kind) {
    case QCOW2_NOTHING: return disk_read_padded(q->disk.backing, offset, to, run->length);
    case QCOW2_DATA: return file_read(q->disk.file, run->place.host + inside, to, run->length);
    case QCOW2_PACKED: return read_packed(q, &run->place, inside, to, run->length);
    default: span_zero(to, run->length); return 0;
    }
}

int qcow2_read(struct disk *disk, uint64_t offset, struct span *to, uint64_t length)
{
    struct qcow2 *q = qcow2_of(disk);
    while (length) {
        struct qcow2_run run;
        struct hold hold;
        pthread_mutex_lock(&q->lock);
        int r = qcow2_map(q, offset, length, &run);
        qcow2_hold(q, &hold);
        pthread_mutex_unlock(&q->lock);
        if (r >= 0)
            r = read_run(q, &run, offset, to);
        pthread_mutex_lock(&q->lock);
        qcow2_release(q, &hold);
        pthread_mutex_unlock(&q->lock);
        if (r < 0)
            return r;
        offset += run.length;
        length -= run.length;
    }
    return 0;
}

/* --- writing --- */

/* One step of a write: clusters that get a place, or keep the one they have for later. */
struct step {
    uint64_t first, count; /* guest clusters */
    uint64_t host;
    bool taken; /* the place is new */
    bool fresh; /* and reads as zeros */
    bool head_zero, tail_zero;
    struct allocation allocation;
};

static uint64_t busy_from(struct qcow2 *q, uint64_t first, uint64_t count)
{
    uint64_t from = first + count;
    struct allocation *other;
    LIST_FOREACH(other, &q->allocations, next)
    if (other->first < first + count && first < other->first + other->count)
        from = min(from, max(other->first, first));
    return from;
}

/* Ready to change what lies at `first`: waits for whoever gives it a place just now. Lets go of the
 * lock, so whatever was known before is not known any more. */
static int begin_change(struct qcow2 *q, uint64_t first, uint64_t count)
{
    for (;;) {
        int r = qcow2_prepare(q);
        if (r < 0)
            return r;
        if (busy_from(q, first, count) == first + count)
            return 0;
        pthread_cond_wait(&q->changed, &q->lock);
    }
}

static bool in_place(const struct qcow2_place *place)
{
    return place->kind == QCOW2_DATA && place->own;
}

static bool reads_as_zeros(const struct qcow2 *q, const struct qcow2_place *place, uint64_t cluster)
{
    return place->kind == QCOW2_ZEROS || place->kind == QCOW2_ZEROS_PLACE ||
           (place->kind == QCOW2_NOTHING && qcow2_nothing_is_zero(q, cluster));
}

/* How many clusters from `first` on need a new place, at most `max_count`, one at least. */
static int count_needy(struct qcow2 *q, const struct table *table, uint64_t first,
                       uint64_t max_count, uint64_t *ret_count)
{
    uint64_t count = 1;
    max_count =
        min(max_count, (UINT64_C(1) << q->l2_bits) - (first & ((UINT64_C(1) << q->l2_bits) - 1)));
    max_count = busy_from(q, first, min(max_count, (uint64_t)QCOW2_RUN_MAX)) - first;
    for (; count < max_count; count++) {
        struct qcow2_place place;
        int r = qcow2_decode(q, qcow2_l2_entry(q, table, first + count), &place);
        if (r < 0)
            return r;
        if (place.own)
            break;
    }
    *ret_count = count;
    return 0;
}

/* Finds a place for the clusters at the start of [offset, offset + length). */
static int plan(struct qcow2 *q, const struct qcow2_place *place, uint64_t offset, uint64_t length,
                struct step *step)
{
    struct table *table;
    struct qcow2_place last;
    uint64_t pristine = q->pristine;
    uint64_t wanted = ((offset + length - 1) >> q->cluster_bits) - step->first + 1;
    int r = qcow2_l2_own(q, step->first, &table);
    if (r < 0)
        return r;
    if (place->own) { /* zeros that have a place */
        step->host = place->host;
        step->count = 1;
        r = qcow2_is_metadata(q, place->host) ? qcow2_broken(q) : 0;
    } else {
        r = count_needy(q, table, step->first, wanted, &wanted);
        if (r >= 0)
            r = qcow2_take(q, wanted, &step->host, &step->count);
        step->taken = r >= 0;
        step->fresh = step->taken && step->host >= pristine;
    }
    if (r < 0)
        return r;
    r = qcow2_decode(q, qcow2_l2_entry(q, table, step->first + step->count - 1), &last);
    step->head_zero = reads_as_zeros(q, place, step->first);
    step->tail_zero = r >= 0 && reads_as_zeros(q, &last, step->first + step->count - 1);
    return r;
}

/* What is around the new bytes in their first and last cluster, read from where it was. */
static int read_around(struct qcow2 *q, uint64_t offset, uint8_t *to, uint64_t length, bool zero)
{
    struct iovec iov = {to, length};
    /* The last cluster may reach behind the end of the disk. */
    uint64_t size = q->disk.size;
    uint64_t inside = !zero && offset < size ? min(length, size - offset) : 0;
    if (inside < length)
        memset(to + inside, 0, length - inside);
    return inside ? qcow2_read(&q->disk, offset, &(struct span){&iov, 1, 0}, inside) : 0;
}

enum { JOINED_MAX = 62 };

/* Head, new bytes and tail, in one call where they are few pieces. */
static int write_pieces(struct qcow2 *q, uint64_t at, struct iovec head, struct span *from,
                        uint64_t length, struct iovec tail)
{
    struct iovec iov[JOINED_MAX + 2];
    size_t got;
    unsigned count = span_window(from, length, iov + 1, JOINED_MAX, &got);
    if (got == length) {
        iov[0] = head;
        iov[count + 1] = tail;
        span_advance(from, length);
        return file_write(q->disk.file, at, &(struct span){iov, count + 2, 0},
                          head.iov_len + length + tail.iov_len);
    }
    int r = file_write(q->disk.file, at + head.iov_len, from, length);
    if (r >= 0 && head.iov_len)
        r = file_write_bytes(q->disk.file, at, head.iov_base, head.iov_len);
    if (r >= 0 && tail.iov_len)
        r = file_write_bytes(q->disk.file, at + head.iov_len + length, tail.iov_base, tail.iov_len);
    return r;
}

static int fill_step(struct qcow2 *q, const struct step *step, uint64_t offset, struct span *from,
                     uint64_t length)
{
    uint64_t begin = step->first << q->cluster_bits;
    uint64_t end = (step->first + step->count) << q->cluster_bits;
    uint64_t head = offset - begin, tail = end - (offset + length);
    uint64_t at = step->host;
    if (step->fresh && step->head_zero) { /* it is a hole that reads as zeros as it is */
        at += head;
        head = 0;
    }
    if (step->fresh && step->tail_zero)
        tail = 0;
    /* Two parts, each aligned for O_DIRECT. */
    size_t tail_at = align_up(head, 4096);
    _cleanup_free_ uint8_t *around =
        head + tail ? aligned_alloc(4096, tail_at + align_up(tail, 4096)) : NULL;
    if (head + tail && !around)
        return -ENOMEM;
    int r = read_around(q, begin, around, head, step->head_zero);
    if (r >= 0)
        r = read_around(q, offset + length, around ? around + tail_at : NULL, tail,
                        step->tail_zero);
    if (r < 0)
        return r;
    return write_pieces(q, at, (struct iovec){around, head}, from, length,
                        (struct iovec){around ? around + tail_at : NULL, tail});
}

static int link_step(struct qcow2 *q, const struct step *step)
{
    struct table *table;
    int r = qcow2_l2_own(q, step->first, &table);
    for (uint64_t i = 0; r >= 0 && i < step->count; i++)
        r = qcow2_l2_replace(q, table, step->first + i,
                             (step->host + (i << q->cluster_bits)) | QCOW2_COPIED);
    return r;
}

/* With the lock held, which it lets go of. Returns how many bytes were written. */
static int64_t write_step(struct qcow2 *q, const struct qcow2_place *place, uint64_t offset,
                          struct span *from, uint64_t length)
{
    struct step step = {.first = offset >> q->cluster_bits};
    int r = plan(q, place, offset, length, &step);
    if (r < 0) {
        if (step.taken)
            qcow2_untake(q, step.host, step.count);
        return r;
    }
    step.allocation.first = step.first;
    step.allocation.count = step.count;
    LIST_INSERT_HEAD(&q->allocations, &step.allocation, next);
    uint64_t end = (step.first + step.count) << q->cluster_bits;
    uint64_t part = min(length, end - offset);
    pthread_mutex_unlock(&q->lock);
    r = fill_step(q, &step, offset, from, part);
    pthread_mutex_lock(&q->lock);
    if (r >= 0)
        r = link_step(q, &step);
    else if (step.taken)
        qcow2_untake(q, step.host, step.count);
    LIST_REMOVE(&step.allocation, next);
    pthread_cond_broadcast(&q->changed);
    return r < 0 ? r : (int64_t)part;
}

static bool run_is_metadata(const struct qcow2 *q, const struct qcow2_run *run, uint64_t inside)
{
    for (uint64_t at = 0; at < inside + run->length; at += q->cluster_size)
        if (qcow2_is_metadata(q, run->place.host + at))
            return true;
    return false;
}

static int64_t write_in_place(struct qcow2 *q, const struct qcow2_run *run, uint64_t offset,
                              struct span *from)
{
    struct hold hold;
    uint64_t inside = offset & (q->cluster_size - 1);
    if (run_is_metadata(q, run, inside))
        return qcow2_broken(q);
    qcow2_hold(q, &hold);
    pthread_mutex_unlock(&q->lock);
    int r = file_write(q->disk.file, run->place.host + inside, from, run->length);
    pthread_mutex_lock(&q->lock);
    qcow2_release(q, &hold);
    return r < 0 ? r : (int64_t)run->length;
}

static int64_t write_some(struct qcow2 *q, uint64_t offset, struct span *from, uint64_t length)
{
    struct qcow2_run run;
    int r = q->broken ? -EIO : qcow2_map(q, offset, length, &run);
    if (r >= 0 && in_place(&run.place))
        return write_in_place(q, &run, offset, from);
    if (r >= 0)
        r = begin_change(q, offset >> q->cluster_bits, 1);
    if (r >= 0) /* again: the lock was open */
        r = qcow2_map(q, offset, length, &run);
    if (r < 0)
        return r;
    return in_place(&run.place) ? write_in_place(q, &run, offset, from)
                                : write_step(q, &run.place, offset, from, length);
}

int qcow2_write(struct disk *disk, uint64_t offset, struct span *from, uint64_t length)
{
    struct qcow2 *q = qcow2_of(disk);
    int64_t r = 0;
    pthread_mutex_lock(&q->lock);
    while (length && (r = write_some(q, offset, from, length)) >= 0) {
        offset += (uint64_t)r;
        length -= (uint64_t)r;
    }
    pthread_mutex_unlock(&q->lock);
    return r < 0 ? (int)r : 0;
}

/* --- zeros and discard --- */

enum emptying { EMPTY_DISCARD, EMPTY_ZEROS, EMPTY_ZEROS_KEEP };

/* What an entry becomes. 1: zeros must be written there. */
static int emptied(const struct qcow2 *q, uint64_t cluster, const struct qcow2_place *place,
                   enum emptying how, uint64_t *entry)
{
    bool bare = qcow2_nothing_is_zero(q, cluster); /* nothing there is zeros as well */
    bool keep = how == EMPTY_ZEROS_KEEP && place->own;
    if (place->kind == QCOW2_NOTHING && (bare || how == EMPTY_DISCARD))
        return 0;
    if (place->kind == QCOW2_ZEROS || (place->kind == QCOW2_ZEROS_PLACE && keep))
        return 0;
    if (q->header.version >= 3 && (!bare || keep))
        *entry = QCOW2_ZERO | (keep ? place->host | QCOW2_COPIED : 0);
    else if (bare && !keep)
        *entry = 0;
    else /* version 2 has no entry that says zero */
        return how == EMPTY_DISCARD ? 0 : 1;
    return 0;
}

/* Whole clusters that lie in one L2 table. Returns how many were done. */
static int64_t empty_clusters(struct qcow2 *q, uint64_t first, uint64_t count, enum emptying how)
{
    struct table *table;
    int r = begin_change(q, first, count);
    if (r >= 0)
        r = qcow2_l2(q, first, &table);
    if (r < 0)
        return r;
    if (!table && (how == EMPTY_DISCARD || qcow2_nothing_is_zero(q, first)))
        return (int64_t)count;
    r = qcow2_l2_own(q, first, &table);
    for (uint64_t i = 0; r >= 0 && i < count; i++) {
        struct qcow2_place place;
        uint64_t entry = qcow2_l2_entry(q, table, first + i);
        uint64_t old = entry;
        r = qcow2_decode(q, entry, &place);
        if (r >= 0)
            r = emptied(q, first + i, &place, how, &entry);
        if (r > 0)
            return (int64_t)i;
        if (r >= 0 && entry != old)
            r = qcow2_l2_replace(q, table, first + i, entry);
    }
    return r < 0 ? r : (int64_t)count;
}

static int write_zero_bytes(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    struct qcow2_run run;
    pthread_mutex_lock(&q->lock);
    int r = qcow2_map(q, offset, length, &run);
    pthread_mutex_unlock(&q->lock);
    if (r < 0)
        return r;
    if (run.length >= length && reads_as_zeros(q, &run.place, offset >> q->cluster_bits))
        return 0;
    _cleanup_free_ uint8_t *zeros = aligned_alloc(4096, align_up(length, 4096));
    if (!zeros)
        return -ENOMEM;
    memset(zeros, 0, length);
    struct iovec iov = {zeros, length};
    return qcow2_write(&q->disk, offset, &(struct span){&iov, 1, 0}, length);
}

/* Part of a cluster, or a whole one that cannot be marked. */
static int empty_part(struct qcow2 *q, uint64_t offset, uint64_t length, enum emptying how)
{
    return how == EMPTY_DISCARD ? 0 : write_zero_bytes(q, offset, length);
}

static int64_t empty_some(struct qcow2 *q, uint64_t offset, uint64_t length, enum emptying how)
{
    uint64_t inside = offset & (q->cluster_size - 1);
    uint64_t cluster = offset >> q->cluster_bits;
    uint64_t part = min(length, q->cluster_size - inside);
    bool to_end = offset + length == q->disk.size; /* the last cluster need not be whole */
    uint64_t count = (length + (to_end ? q->cluster_size - 1 : 0)) >> q->cluster_bits;
    int64_t done = 0;
    if (!inside && count) {
        count =
            min(count, (UINT64_C(1) << q->l2_bits) - (cluster & ((UINT64_C(1) << q->l2_bits) - 1)));
        pthread_mutex_lock(&q->lock);
        done = empty_clusters(q, cluster, count, how);
        pthread_mutex_unlock(&q->lock);
    }
    if (done > 0)
        return (int64_t)min(length, (uint64_t)done << q->cluster_bits);
    int r = done < 0 ? (int)done : empty_part(q, offset, part, how);
    return r < 0 ? r : (int64_t)part;
}

static int empty(struct qcow2 *q, uint64_t offset, uint64_t length, enum emptying how)
{
    while (length) {
        int64_t r = empty_some(q, offset, length, how);
        if (r < 0)
            return (int)r;
        offset += (uint64_t)r;
        length -= (uint64_t)r;
    }
    return 0;
}

int qcow2_write_zeroes(struct disk *disk, uint64_t offset, uint64_t length, bool may_unmap)
{
    return empty(qcow2_of(disk), offset, length, may_unmap ? EMPTY_ZEROS : EMPTY_ZEROS_KEEP);
}

int qcow2_discard(struct disk *disk, uint64_t offset, uint64_t length)
{
    return empty(qcow2_of(disk), offset, length, EMPTY_DISCARD);
}

/* --- direct --- */

static struct hold *take_hold(struct qcow2 *q)
{
    return q->spare_hold_count ? q->spare_holds[--q->spare_hold_count]
                               : malloc(sizeof(struct hold));
}

/* What of the run a device may transfer itself. */
static uint64_t direct_length(struct qcow2 *q, const struct qcow2_run *run, uint64_t host,
                              bool write)
{
    uint32_t unit = max(file_alignment(q->disk.file), (uint32_t)DISK_SECTOR);
    uint64_t length = run->length;
    if (run->place.kind != QCOW2_DATA || host % unit || (write && (!run->place.own || q->broken)))
        return 0;
    if (write && run_is_metadata(q, run, host & (q->cluster_size - 1)))
        return 0;
    if (!write && host + length > q->file_end) {
        uint64_t end;
        if (file_length(q->disk.file, &end) < 0 || end <= host)
            return 0;
        q->file_end = end;
        length = min(length, end - host);
    }
    return align_down(length, unit);
}

bool qcow2_direct(struct disk *disk, uint64_t offset, uint64_t length, bool write,
                  struct disk_extent *ret_extent)
{
    struct qcow2 *q = qcow2_of(disk);
    struct qcow2_run run;
    struct hold *hold = NULL;
    if (file_is_layer(disk->file))
        return false;
    pthread_mutex_lock(&q->lock);
    if (qcow2_map_cached(q, offset, length, &run)) {
        uint64_t host = run.place.host + (offset & (q->cluster_size - 1));
        uint64_t part = direct_length(q, &run, host, write);
        if (part && (hold = take_hold(q))) {
            qcow2_hold(q, hold);
            *ret_extent = (struct disk_extent){file_fd(disk->file), host, part,
                                               file_alignment(disk->file), hold};
        }
    }
    pthread_mutex_unlock(&q->lock);
    return hold != NULL;
}

void qcow2_direct_end(struct disk *disk, const struct disk_extent *extent)
{
    struct qcow2 *q = qcow2_of(disk);
    struct hold *hold = extent->held;
    pthread_mutex_lock(&q->lock);
    qcow2_release(q, hold);
    if (q->spare_hold_count < ARRAY_LEN(q->spare_holds)) {
        q->spare_holds[q->spare_hold_count++] = hold;
        hold = NULL;
    }
    pthread_mutex_unlock(&q->lock);
    free(hold);
}

/* --- status --- */

int qcow2_status(struct disk *disk, uint64_t offset, uint64_t length,
                 enum disk_extent_kind *ret_kind, uint64_t *ret_length)
{
    struct qcow2 *q = qcow2_of(disk);
    struct qcow2_run run;
    pthread_mutex_lock(&q->lock);
    int r = qcow2_map(q, offset, length, &run);
    pthread_mutex_unlock(&q->lock);
    if (r < 0)
        return r;
    *ret_length = run.length;
    *ret_kind = run.place.kind == QCOW2_ZEROS_PLACE ? DISK_EXTENT_ZERO : DISK_EXTENT_HOLE;
    if (run.place.kind == QCOW2_DATA || run.place.kind == QCOW2_PACKED)
        *ret_kind = DISK_EXTENT_DATA;
    if (run.place.kind != QCOW2_NOTHING || offset >= q->backing_size)
        return 0;
    return disk_status(disk->backing, offset, min(run.length, q->backing_size - offset), ret_kind,
                       ret_length);
}
