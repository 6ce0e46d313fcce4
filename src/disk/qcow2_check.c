/*
 * All references of an image, counted. A cluster's refcount must be the number of references to it:
 * from the header, the L1 table and those of the snapshots (each way through them counts), the
 * refcount table, bitmaps. Then the flags COPIED of the active tables.
 *
 * Mending writes right into the file: refcounts where their blocks can be trusted, and a whole new
 * refcount table behind everything else where they cannot.
 */
#include "disk/qcow2.h"

#include "base/own.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

enum {
    PAGE_BITS = 10, /* counters that are allocated together */
    PAGE_COUNTERS = 1 << PAGE_BITS,
    REPORTS_MAX = 1000,
};

#define CLUSTERS_MAX      (UINT64_C(1) << 33)
#define COUNTER_BYTES_MAX GIB(2)

struct scan {
    struct file *file;
    const char *path;
    struct qcow2_header header;
    const struct disk_checker *checker;
    struct disk_check check;
    unsigned reports;
    uint64_t cluster_size, clusters, file_length;
    uint32_t **pages;
    uint64_t page_count, counter_bytes;
    uint64_t *reftable;
    uint64_t reftable_entries;
    bool rebuild;       /* refcount blocks are missing, or are no blocks */
    uint64_t done, all; /* L1 entries, for the progress */
    struct qcow2 q;     /* only for qcow2_decode() */
};

/* --- findings --- */

static void say(struct scan *scan, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void say(struct scan *scan, const char *format, ...)
{
    char line[256];
    if (!scan->checker->report || scan->reports > REPORTS_MAX)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    scan->checker->report(scan->checker->opaque, scan->reports++ == REPORTS_MAX
                                                     ? "and more; they are counted only"
                                                     : line);
}

static void progress(struct scan *scan)
{
    if (scan->checker->progress && scan->done <= scan->all)
        scan->checker->progress(scan->checker->opaque, scan->done, scan->all);
}

/* --- counting --- */

static uint64_t counted(const struct scan *scan, uint64_t cluster)
{
    const uint32_t *page = scan->pages[cluster >> PAGE_BITS];
    return page ? page[cluster % PAGE_COUNTERS] : 0;
}

static int count_one(struct scan *scan, uint64_t cluster)
{
    uint32_t **page = &scan->pages[cluster >> PAGE_BITS];
    if (!*page) {
        scan->counter_bytes += PAGE_COUNTERS * sizeof **page;
        if (scan->counter_bytes > COUNTER_BYTES_MAX)
            return -ENOMEM;
        *page = calloc(PAGE_COUNTERS, sizeof **page);
        if (!*page)
            return -ENOMEM;
    }
    if ((*page)[cluster % PAGE_COUNTERS] < UINT32_MAX)
        (*page)[cluster % PAGE_COUNTERS]++;
    return 0;
}

/* A reference to bytes of the file; 1: it points out of it. */
static int count_range(struct scan *scan, uint64_t offset, uint64_t length, const char *what)
{
    if (length == 0)
        return 0;
    if (!range_fits(offset, length, scan->clusters << scan->header.cluster_bits)) {
        scan->check.errors++;
        say(scan, "%s at %#" PRIx64 " lies behind the end of the file", what, offset);
        return 1;
    }
    int r = 0;
    uint64_t last = (offset + length - 1) >> scan->header.cluster_bits;
    for (uint64_t i = offset >> scan->header.cluster_bits; r >= 0 && i <= last; i++)
        r = count_one(scan, i);
    return r;
}

static int count_table(struct scan *scan, uint64_t offset, const char *what)
{
    if (offset % scan->cluster_size || offset == 0) {
        scan->check.errors++;
        say(scan, "%s at %#" PRIx64 " does not begin at a cluster", what, offset);
        return 1;
    }
    return count_range(scan, offset, scan->cluster_size, what);
}

/* --- L1, L2 --- */

static int count_entry(struct scan *scan, uint64_t entry, uint64_t guest)
{
    struct qcow2_place place;
    int r = qcow2_decode(&scan->q, entry, &place);
    if (r < 0) {
        scan->check.errors++;
        say(scan, "guest cluster %" PRIu64 ": entry %#" PRIx64 " is none", guest, entry);
        return 0;
    }
    if (place.kind == QCOW2_PACKED) {
        uint64_t first, count;
        qcow2_packed_clusters(scan->header.cluster_bits, &place, &first, &count);
        return count_range(scan, first << scan->header.cluster_bits,
                           count << scan->header.cluster_bits, "compressed data");
    }
    return place.host ? count_range(scan, place.host, scan->cluster_size, "data") : 0;
}

static int count_l2(struct scan *scan, uint64_t offset, uint64_t index, uint8_t *table)
{
    int r = count_table(scan, offset, "an L2 table");
    if (r != 0)
        return r;
    /* Once for the disk and once for each snapshot: more would be work without end. */
    if (counted(scan, offset >> scan->header.cluster_bits) >
        (uint64_t)scan->header.snapshot_count + 1) {
        scan->check.errors++;
        say(scan, "error: an L2 table at %#" PRIx64 " is used more often than there are disks",
            offset);
        return 1;
    }
    r = file_read_bytes(scan->file, offset, table, scan->cluster_size);
    uint64_t entries = scan->cluster_size / 8;
    for (uint64_t i = 0; r >= 0 && i < entries; i++) {
        uint64_t entry = be64_read(table + i * 8);
        if (entry)
            r = count_entry(scan, entry, index * entries + i);
    }
    return r;
}

static int read_table(struct scan *scan, uint64_t offset, uint64_t bytes, uint8_t **ret_table)
{
    *ret_table = calloc(1, bytes + 8);
    if (!*ret_table)
        return -ENOMEM;
    int r = file_read_bytes(scan->file, offset, *ret_table, bytes);
    if (r < 0)
        free(take_ptr(*ret_table));
    return r;
}

static int count_l1(struct scan *scan, uint64_t offset, uint32_t size)
{
    _cleanup_free_ uint8_t *l1 = NULL;
    _cleanup_free_ uint8_t *table = malloc(scan->cluster_size);
    uint64_t bytes = (uint64_t)size * 8;
    int r = table ? count_range(scan, offset, bytes, "an L1 table") : -ENOMEM;
    if (r != 0)
        return r;
    r = read_table(scan, offset, bytes, &l1);
    for (uint32_t i = 0; r >= 0 && i < size; i++) {
        uint64_t entry = be64_read(l1 + (uint64_t)i * 8);
        scan->done++;
        progress(scan);
        if (entry & QCOW2_OFFSET_MASK)
            r = count_l2(scan, entry & QCOW2_OFFSET_MASK, i, table);
    }
    return r;
}

/* --- snapshots, bitmaps --- */

static int count_snapshot_l1(struct scan *scan, const uint8_t *row)
{
    uint64_t offset = be64_read(row);
    uint32_t size = be32_read(row + 8);
    if (offset % scan->cluster_size || size > QCOW2_L1_BYTES_MAX / 8) {
        scan->check.errors++;
        say(scan, "a snapshot's L1 table at %#" PRIx64 " cannot be one", offset);
        return 0;
    }
    scan->all += size;
    return count_l1(scan, offset, size);
}

static int count_snapshots(struct scan *scan)
{
    uint64_t at = scan->header.snapshots_offset;
    int r = 0;
    for (uint32_t i = 0; r >= 0 && i < scan->header.snapshot_count; i++) {
        uint8_t row[40];
        r = file_read_bytes(scan->file, at, row, sizeof row);
        uint64_t length =
            40 + (uint64_t)be32_read(row + 36) + be16_read(row + 12) + be16_read(row + 14);
        if (r >= 0 && (at + length - scan->header.snapshots_offset > QCOW2_SNAPSHOT_TABLE_MAX ||
                       !range_fits(at, length, scan->file_length))) {
            scan->check.errors++;
            say(scan, "the table of snapshots does not end in the file");
            break;
        }
        if (r >= 0)
            r = count_snapshot_l1(scan, row);
        at += align_up(length, 8);
    }
    at = min(at, scan->clusters << scan->header.cluster_bits);
    return r < 0 ? r
                 : count_range(scan, scan->header.snapshots_offset,
                               at - scan->header.snapshots_offset, "the table of snapshots");
}

static int count_bitmap(struct scan *scan, uint64_t offset, uint32_t size)
{
    _cleanup_free_ uint8_t *table = NULL;
    if (size > QCOW2_L1_BYTES_MAX / 8) {
        scan->check.errors++;
        say(scan, "error: a bitmap's table of %" PRIu32 " entries is too large", size);
        return 0;
    }
    int r = count_range(scan, offset, (uint64_t)size * 8, "a bitmap's table");
    if (r != 0)
        return r;
    r = read_table(scan, offset, (uint64_t)size * 8, &table);
    for (uint32_t i = 0; r >= 0 && i < size; i++) {
        uint64_t data = be64_read(table + (uint64_t)i * 8) & QCOW2_OFFSET_MASK;
        if (data)
            r = count_range(scan, data, scan->cluster_size, "a bitmap");
    }
    return r;
}

static int count_bitmaps(struct scan *scan)
{
    const struct qcow2_header *header = &scan->header;
    _cleanup_free_ uint8_t *rows = NULL;
    /* Without the mark they are no bitmaps any more, and what they used is leaked. */
    if (!header->bitmap_count || !(header->autoclear & QCOW2_BITMAPS))
        return 0;
    int r = count_range(scan, header->bitmaps_offset, header->bitmaps_size, "the bitmaps");
    if (r == 0)
        r = read_table(scan, header->bitmaps_offset, header->bitmaps_size, &rows);
    uint64_t at = 0;
    for (uint32_t i = 0; r >= 0 && rows && i < header->bitmap_count; i++) {
        if (!range_fits(at, 24, header->bitmaps_size))
            break;
        const uint8_t *row = rows + at;
        r = count_bitmap(scan, be64_read(row), be32_read(row + 8));
        at += align_up(24 + (uint64_t)be16_read(row + 18) + be32_read(row + 20), 8);
    }
    return r;
}

/* --- refcounts --- */

static int read_reftable(struct scan *scan)
{
    uint64_t bytes = (uint64_t)scan->header.reftable_clusters << scan->header.cluster_bits;
    int r = file_read_bytes(scan->file, scan->header.reftable_offset, scan->reftable, bytes);
    for (uint64_t i = 0; r >= 0 && i < scan->reftable_entries; i++)
        scan->reftable[i] = be64_read(&scan->reftable[i]) & ~UINT64_C(511);
    return r;
}

/* Each block must be alone where it is. */
static int count_blocks(struct scan *scan)
{
    int r = count_range(scan, scan->header.reftable_offset,
                        (uint64_t)scan->header.reftable_clusters << scan->header.cluster_bits,
                        "the refcount table");
    for (uint64_t i = 0; r >= 0 && i < scan->reftable_entries; i++) {
        uint64_t offset = scan->reftable[i];
        if (!offset)
            continue;
        r = count_table(scan, offset, "a refcount block");
        bool alone = r == 0 && counted(scan, offset >> scan->header.cluster_bits) == 1;
        if (r == 0 && !alone) {
            scan->check.errors++;
            say(scan, "a refcount block at %#" PRIx64 " lies on something else", offset);
        }
        if (!alone) {
            scan->rebuild = true;
            scan->reftable[i] = 0;
        }
    }
    return r;
}

static void compare_one(struct scan *scan, uint64_t cluster, uint64_t refcount, uint64_t references)
{
    if (refcount == references)
        return;
    if (refcount < references)
        scan->check.errors++;
    else
        scan->check.leaks++;
    say(scan, "%s: cluster %" PRIu64 " has refcount %" PRIu64 " and %" PRIu64 " references",
        refcount < references ? "error" : "leak", cluster, refcount, references);
}

static uint64_t block_entries(const struct scan *scan)
{
    return scan->cluster_size * 8 >> scan->header.refcount_order;
}

/* The largest refcount that there is room for. */
static uint64_t refcount_most(const struct scan *scan)
{
    unsigned order = scan->header.refcount_order;
    return order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << order)) - 1;
}

static void compare_block(struct scan *scan, uint64_t index, uint8_t *block, bool mend,
                          bool *ret_changed)
{
    unsigned order = scan->header.refcount_order;
    uint64_t most = refcount_most(scan);
    for (uint64_t i = 0; i < block_entries(scan); i++) {
        uint64_t cluster = index * block_entries(scan) + i;
        uint64_t references = cluster < scan->clusters ? counted(scan, cluster) : 0;
        uint64_t refcount = refcount_entry(block, order, i);
        if (refcount == references)
            continue;
        if (!mend || references > most) {
            compare_one(scan, cluster, refcount, references);
            continue;
        }
        refcount_entry_set(block, order, i, references);
        scan->check.repaired++;
        *ret_changed = true;
    }
}

static bool any_counted(const struct scan *scan, uint64_t index)
{
    uint64_t end = min((index + 1) * block_entries(scan), scan->clusters);
    for (uint64_t i = index * block_entries(scan); i < end; i++)
        if (!scan->pages[i >> PAGE_BITS])
            i |= PAGE_COUNTERS - 1;
        else if (counted(scan, i))
            return true;
    return false;
}

static int compare_refcounts(struct scan *scan, bool mend)
{
    _cleanup_free_ uint8_t *block = malloc(scan->cluster_size);
    uint64_t blocks = max((scan->clusters + block_entries(scan) - 1) / block_entries(scan),
                          scan->reftable_entries);
    int r = block ? 0 : -ENOMEM;
    for (uint64_t i = 0; r >= 0 && i < blocks; i++) {
        uint64_t offset = i < scan->reftable_entries ? scan->reftable[i] : 0;
        bool changed = false;
        if (!offset && !any_counted(scan, i))
            continue;
        if (offset)
            r = file_read_bytes(scan->file, offset, block, scan->cluster_size);
        else
            memset(block, 0, scan->cluster_size);
        scan->rebuild |= !offset;
        if (r >= 0)
            compare_block(scan, i, block, mend && offset, &changed);
        if (r >= 0 && changed)
            r = file_write_bytes(scan->file, offset, block, scan->cluster_size);
    }
    return r;
}

/* --- flags --- */

static bool flag_wrong(struct scan *scan, uint64_t entry, uint64_t host, const char *what)
{
    bool one = host >> scan->header.cluster_bits < scan->clusters &&
               counted(scan, host >> scan->header.cluster_bits) == 1;
    if (one == !!(entry & QCOW2_COPIED))
        return false;
    if (!scan->checker->repair) {
        scan->check.errors++;
        say(scan, "error: %s at %#" PRIx64 " is %smarked as used once", what, host,
            one ? "not " : "");
    } else {
        scan->check.repaired++;
    }
    return scan->checker->repair;
}

static int flags_of_l2(struct scan *scan, uint64_t offset, uint8_t *table)
{
    bool changed = false;
    int r = file_read_bytes(scan->file, offset, table, scan->cluster_size);
    for (uint64_t i = 0; r >= 0 && i < scan->cluster_size / 8; i++) {
        struct qcow2_place place;
        uint64_t entry = be64_read(table + i * 8);
        if (!entry || qcow2_decode(&scan->q, entry, &place) < 0 || place.kind == QCOW2_PACKED ||
            !place.host || !flag_wrong(scan, entry, place.host, "data"))
            continue;
        be64_write(table + i * 8, entry ^ QCOW2_COPIED);
        changed = true;
    }
    return r >= 0 && changed ? file_write_bytes(scan->file, offset, table, scan->cluster_size) : r;
}

static int compare_flags(struct scan *scan)
{
    _cleanup_free_ uint8_t *l1 = NULL;
    _cleanup_free_ uint8_t *table = malloc(scan->cluster_size);
    uint64_t bytes = (uint64_t)scan->header.l1_size * 8;
    bool changed = false;
    int r = table ? read_table(scan, scan->header.l1_offset, bytes, &l1) : -ENOMEM;
    for (uint32_t i = 0; r >= 0 && i < scan->header.l1_size; i++) {
        uint64_t entry = be64_read(l1 + (uint64_t)i * 8);
        uint64_t offset = entry & QCOW2_OFFSET_MASK;
        if (!offset || offset % scan->cluster_size || offset >= scan->file_length)
            continue;
        if (flag_wrong(scan, entry, offset, "an L2 table")) {
            be64_write(l1 + (uint64_t)i * 8, entry ^ QCOW2_COPIED);
            changed = true;
        }
        r = flags_of_l2(scan, offset, table);
    }
    return r >= 0 && changed ? file_write_bytes(scan->file, scan->header.l1_offset, l1, bytes) : r;
}

/* --- new refcounts --- */

struct rebuilt {
    uint64_t first; /* cluster */
    uint64_t blocks, table;
};

/* Behind the end of the file: first the blocks, then the table. */
static int lay_out_rebuilt(struct scan *scan, struct rebuilt *rebuilt)
{
    uint64_t entries = block_entries(scan);
    rebuilt->first = scan->clusters;
    rebuilt->blocks = rebuilt->table = 0;
    for (;;) {
        uint64_t all = rebuilt->first + rebuilt->blocks + rebuilt->table;
        uint64_t blocks = (all + entries - 1) / entries;
        uint64_t table = (blocks * 8 + scan->cluster_size - 1) >> scan->header.cluster_bits;
        if (table << scan->header.cluster_bits > QCOW2_REFTABLE_BYTES_MAX)
            return -EFBIG;
        if (blocks == rebuilt->blocks && table == rebuilt->table)
            return 0;
        rebuilt->blocks = blocks;
        rebuilt->table = table;
    }
}

static uint64_t rebuilt_count(const struct scan *scan, const struct rebuilt *rebuilt,
                              uint64_t cluster)
{
    if (cluster < scan->clusters)
        return counted(scan, cluster);
    return cluster < rebuilt->first + rebuilt->blocks + rebuilt->table;
}

/* One that does not fit is too small, and stays an error: nothing may be written to that disk. */
static void set_rebuilt(struct scan *scan, uint8_t *block, uint64_t entry, uint64_t references)
{
    uint64_t most = refcount_most(scan);
    scan->check.errors += references > most;
    refcount_entry_set(block, scan->header.refcount_order, entry, min(references, most));
}

static int write_rebuilt(struct scan *scan, const struct rebuilt *rebuilt)
{
    _cleanup_free_ uint8_t *block = malloc(scan->cluster_size);
    size_t table_bytes = rebuilt->table << scan->header.cluster_bits;
    _cleanup_free_ uint8_t *table = calloc(1, table_bytes);
    int r = block && table ? 0 : -ENOMEM;
    for (uint64_t i = 0; r >= 0 && i < rebuilt->blocks; i++) {
        uint64_t offset = (rebuilt->first + i) << scan->header.cluster_bits;
        memset(block, 0, scan->cluster_size);
        for (uint64_t j = 0; j < block_entries(scan); j++)
            set_rebuilt(scan, block, j, rebuilt_count(scan, rebuilt, i * block_entries(scan) + j));
        be64_write(table + i * 8, offset);
        r = file_write_bytes(scan->file, offset, block, scan->cluster_size);
    }
    uint64_t offset = (rebuilt->first + rebuilt->blocks) << scan->header.cluster_bits;
    if (r >= 0)
        r = file_write_bytes(scan->file, offset, table, table_bytes);
    if (r >= 0)
        r = file_flush(scan->file);
    uint8_t field[12];
    be64_write(field, offset);
    be32_write(field + 8, (uint32_t)rebuilt->table);
    return r < 0 ? r : file_write_bytes(scan->file, QCOW2_AT_REFTABLE, field, sizeof field);
}

/* --- the whole --- */

static void forget_counts(struct scan *scan)
{
    for (uint64_t i = 0; scan->pages && i < scan->page_count; i++)
        free(take_ptr(scan->pages[i]));
    scan->counter_bytes = 0;
}

static int count_all(struct scan *scan, bool with_blocks)
{
    forget_counts(scan);
    scan->done = 0;
    scan->all = scan->header.l1_size;
    int r = count_range(scan, 0, scan->cluster_size, "the header");
    if (r >= 0)
        r = count_l1(scan, scan->header.l1_offset, scan->header.l1_size);
    if (r >= 0 && scan->header.snapshot_count)
        r = count_snapshots(scan);
    if (r >= 0)
        r = count_bitmaps(scan);
    return r >= 0 && with_blocks ? count_blocks(scan) : r;
}

static int rebuild(struct scan *scan)
{
    struct rebuilt rebuilt;
    uint64_t repaired = scan->check.repaired;
    const struct disk_checker *checker = scan->checker;
    struct disk_checker silent = {.repair = true};
    scan->checker = &silent; /* said already; what is found again is what is left */
    scan->check = (struct disk_check){0};
    int r = count_all(scan, false);
    scan->checker = checker;
    if (r >= 0)
        r = lay_out_rebuilt(scan, &rebuilt);
    if (r >= 0)
        r = write_rebuilt(scan, &rebuilt);
    scan->check.repaired = repaired + 1;
    return r;
}

static int clear_marks(struct scan *scan)
{
    uint8_t field[8];
    uint64_t marks = scan->check.errors ? 0 : QCOW2_DIRTY | QCOW2_CORRUPT;
    if (!(scan->header.incompatible & marks))
        return file_flush(scan->file);
    int r = file_flush(scan->file);
    be64_write(field, scan->header.incompatible & ~marks);
    if (r >= 0)
        r = file_write_bytes(scan->file, QCOW2_AT_INCOMPATIBLE, field, sizeof field);
    return r < 0 ? r : file_flush(scan->file);
}

static int run(struct scan *scan)
{
    bool mend = scan->checker->repair;
    int r = read_reftable(scan);
    if (r >= 0)
        r = count_all(scan, true);
    if (r >= 0)
        r = compare_refcounts(scan, mend && !scan->rebuild);
    if (r >= 0 && mend && scan->rebuild)
        r = rebuild(scan);
    if (r >= 0 && mend)
        r = file_flush(scan->file);
    if (r >= 0)
        r = compare_flags(scan);
    return r >= 0 && mend ? clear_marks(scan) : r;
}

static int start(struct scan *scan, struct err *err)
{
    int r = qcow2_header_read(scan->file, scan->path, &scan->header, err);
    if (r < 0)
        return r;
    r = file_length(scan->file, &scan->file_length);
    if (r < 0)
        return err_errno(err, -r, "disk '%s'", scan->path);
    scan->cluster_size = UINT64_C(1) << scan->header.cluster_bits;
    scan->clusters = (scan->file_length + scan->cluster_size - 1) >> scan->header.cluster_bits;
    if (scan->clusters > CLUSTERS_MAX)
        return err_set(err, -EFBIG, "disk '%s' has too many clusters to be checked", scan->path);
    scan->page_count = (scan->clusters >> PAGE_BITS) + 1;
    scan->pages = calloc(scan->page_count, sizeof *scan->pages);
    scan->reftable_entries =
        ((uint64_t)scan->header.reftable_clusters << scan->header.cluster_bits) / 8;
    scan->reftable = calloc(scan->reftable_entries, 8);
    scan->q.disk.file = scan->file;
    scan->q.header = scan->header;
    scan->q.cluster_bits = scan->header.cluster_bits;
    scan->q.cluster_size = scan->cluster_size;
    scan->q.file_end = scan->file_length;
    return scan->pages && scan->reftable
               ? 0
               : err_set(err, -ENOMEM, "disk '%s': no memory", scan->path);
}

int qcow2_scan(struct file *file, const char *path, const struct disk_checker *checker,
               struct disk_check *ret_check, struct err *err)
{
    struct scan scan = {.file = file, .path = path, .checker = checker};
    int r = start(&scan, err);
    if (r >= 0 && (r = run(&scan)) < 0)
        err_errno(err, -r, "disk '%s' cannot be checked", path);
    if (r >= 0)
        *ret_check = scan.check;
    forget_counts(&scan);
    free(scan.pages);
    free(scan.reftable);
    qcow2_header_free(&scan.header);
    return r < 0 ? r : 0;
}

/* What is left after mending is what a second look finds. */
int qcow2_check(const struct disk_opening *opening, struct file *file,
                const struct disk_checker *checker, struct disk_check *ret_check, struct err *err)
{
    struct disk_check first, second;
    int r = qcow2_scan(file, opening->path, checker, &first, err);
    if (r < 0 || !checker->repair) {
        if (r >= 0)
            *ret_check = first;
        return r;
    }
    struct disk_checker looker = {.report = checker->report, .opaque = checker->opaque};
    r = qcow2_scan(file, opening->path, &looker, &second, err);
    if (r >= 0) {
        second.repaired = first.repaired;
        *ret_check = second;
    }
    return r;
}
