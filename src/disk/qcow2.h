/*
 * qcow2.h: the parts of the qcow2 format and how they keep an image whole. Nobody outside src/disk
 * includes this. The format: docs/interop/qcow2 of QEMU ("the specification" below).
 *
 * Layers, lower first:
 *
 *   qcow2_header    what the first cluster says, checked
 *   qcow2_table     L2 tables and refcount blocks in memory, a bounded number, with what is dirty
 *   qcow2_refcount  who uses which cluster of the file: taking clusters and giving them back
 *   qcow2_commit    writes what is dirty, in the order that keeps the image whole
 *   qcow2_map       from the guest's clusters to the file's, and changing that
 *   qcow2_io        the calls of disk.h
 *   qcow2_check     all references counted, compared and mended
 *
 * One mutex guards everything in memory. It is held while tables are read, never while data is
 * transferred and never while a commit writes or waits for the host's disk. (The refcount table's
 * growing and preallocation hold it and write; both are rare.)
 *
 * Invariants, whatever is killed when (each names what breaks otherwise):
 *
 *   1. A cluster's refcount is on the disk before anything on the disk points to it
 *      (or a later allocation takes it again).
 *   2. Data is on the disk before the L2 entry that points to it (or stale bytes appear in what
 *      was flushed long ago: the rest of the cluster).
 *   3. An L2 table is on the disk before the L1 entry, a refcount block before its entry of the
 *      refcount table (or garbage is taken for a table).
 *   4. A cluster that nothing needs any more keeps its refcount, and is neither taken again nor
 *      punched, until what pointed to it has been overwritten on the disk, and until every transfer
 *      that began before has ended (or a late write hits somebody else's data).
 *
 * So a change goes: take clusters in memory; write data; change the L2 entry in memory; put the old
 * cluster on the list `freed`. A commit takes everything that is dirty at one instant and writes,
 * with a flush wherever "|" stands:
 *
 *     refcount blocks | refcount table | L2 tables | L1 table |   then `freed` becomes `ready`
 *
 * and what is `ready` gets its refcount lowered as soon as old transfers are over (qcow2_reap()).
 */
#pragma once

#include "base/bytes.h"
#include "disk/private.h"

#include <pthread.h>
#include <sys/queue.h>

enum {
    QCOW2_CLUSTER_BITS_MIN = 9,
    QCOW2_CLUSTER_BITS_MAX = 21,
    QCOW2_L1_BYTES_MAX = 32 << 20, /* QEMU's limits too: larger ones are nobody's images */
    QCOW2_REFTABLE_BYTES_MAX = 8 << 20,
    QCOW2_SNAPSHOTS_MAX = 65536,
    QCOW2_SNAPSHOT_TABLE_MAX = 64 << 20,
    QCOW2_BITMAPS_MAX = 65535,
    QCOW2_CACHE_BYTES = 8 << 20,
    QCOW2_CACHE_TABLES_MIN = 8,
    QCOW2_RUN_MAX = 1024,   /* clusters that one step of a write takes */
    QCOW2_FREED_MAX = 4096, /* runs that wait; more make a commit */
    QCOW2_GRANULES = 64,    /* a table's dirty parts, one bit each */
};

#define QCOW2_COPIED      (UINT64_C(1) << 63)
#define QCOW2_COMPRESSED  (UINT64_C(1) << 62)
#define QCOW2_ZERO        UINT64_C(1)
#define QCOW2_OFFSET_MASK UINT64_C(0x00fffffffffffe00)

/* Where header fields lie that are written one by one. */
enum {
    QCOW2_AT_SIZE = 24,
    QCOW2_AT_L1_SIZE = 36,  /* and the table's offset behind it */
    QCOW2_AT_REFTABLE = 48, /* offset, then clusters */
    QCOW2_AT_INCOMPATIBLE = 72,
    QCOW2_AT_AUTOCLEAR = 88,
};

enum { QCOW2_DIRTY = 1, QCOW2_CORRUPT = 2, QCOW2_COMPRESSION_TYPE = 8 }; /* incompatible */
enum { QCOW2_BITMAPS = 1 };                                              /* autoclear */

/* ---- qcow2_header ---- */

struct qcow2_header {
    unsigned version, cluster_bits, refcount_order;
    uint64_t size;
    uint32_t l1_size;
    uint64_t l1_offset;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t snapshot_count;
    uint64_t snapshots_offset;
    uint64_t incompatible, autoclear;
    bool zstd;
    char *backing;                   /* NULL: none */
    enum disk_format backing_format; /* DISK_FORMAT_PROBE: not said */
    uint32_t bitmap_count;           /* 0: no such extension */
    uint64_t bitmaps_size, bitmaps_offset;
};

/* Refuses what we do not know, by its name. Every offset and size in it was checked. */
int qcow2_header_read(struct file *file, const char *path, struct qcow2_header *ret_header,
                      struct err *err);
void qcow2_header_free(struct qcow2_header *header);

/* ---- qcow2_table ---- */

struct table {
    uint64_t offset; /* in the file */
    uint8_t *bytes;  /* one cluster */
    uint64_t dirty;  /* granules */
    bool writing;    /* a commit has a copy that is not on the disk yet: must not be read again */
    TAILQ_ENTRY(table) by_use; /* longest unused first */
    LIST_ENTRY(table) by_offset;
};

enum { TABLE_BUCKETS = 256 };

struct table_cache {
    struct file *file;
    unsigned cluster_bits, limit, count, dirty;
    TAILQ_HEAD(, table) tables;
    LIST_HEAD(, table) buckets[TABLE_BUCKETS];
};

void tables_init(struct table_cache *cache, struct file *file, unsigned cluster_bits);
void tables_free(struct table_cache *cache);
/* The table at `offset`, read if need be. It is good until the next call that reads another one.
 * More than the limit are kept only while the others are dirty. */
int tables_get(struct table_cache *cache, uint64_t offset, struct table **ret_table);
bool tables_has(struct table_cache *cache, uint64_t offset);
/* One that is new in the file: zeros, all of it dirty. */
int tables_make(struct table_cache *cache, uint64_t offset, struct table **ret_table);
/* It is no table any more. */
void tables_drop(struct table_cache *cache, uint64_t offset);
void table_dirty(struct table_cache *cache, struct table *table, size_t offset, size_t length);

/* ---- the image ---- */

/* Clusters that wait for their refcount to be lowered. */
struct freed {
    uint64_t cluster, count; /* indices in the file */
    uint64_t sequence;
    TAILQ_ENTRY(freed) next;
};
TAILQ_HEAD(freed_list, freed);

/* A transfer that is under way. `sequence` is that of the last freed run before it began. */
struct hold {
    uint64_t sequence;
    TAILQ_ENTRY(hold) next; /* the oldest first */
};

/* Guest clusters that somebody is giving places to. */
struct allocation {
    uint64_t first, count;
    LIST_ENTRY(allocation) next;
};

/* Clusters with tables in them: what the guest's data must never be written over. */
struct cluster_set {
    uint64_t *slots; /* cluster index + 1; 0: free */
    size_t size, count;
};

/* The compressed cluster that was read last: who reads on wants the rest of it. Nothing here writes
 * compressed clusters, so where one lies nothing else is ever called one. */
struct qcow2_inflated {
    pthread_mutex_t lock;
    uint64_t host;  /* where it lies in the file */
    uint8_t *bytes; /* NULL: none yet */
};

struct qcow2 {
    struct disk disk;
    struct qcow2_header header;
    unsigned cluster_bits, l2_bits,
        block_bits; /* log2 of: bytes; entries of an L2 table, a refcount block */
    uint64_t cluster_size;
    uint64_t backing_size;

    pthread_mutex_t lock;
    pthread_cond_t changed; /* allocations ended, a commit ended */

    uint64_t *l1, *reftable; /* in the machine's byte order */
    uint32_t l1_size;
    uint64_t reftable_entries;
    uint64_t *l1_dirty, *reftable_dirty; /* a bit for each sector of 64 entries */
    bool l1_changed, reftable_changed;
    struct table_cache l2, blocks;
    struct cluster_set tables;

    uint64_t file_end;  /* the file is at least this long */
    uint64_t free_from; /* no free cluster below this index */
    uint64_t used_end;  /* no cluster in use from this index on, as far as we know */
    uint64_t pristine;  /* file offset from which on everything is a hole */

    LIST_HEAD(, allocation) allocations;
    TAILQ_HEAD(, hold) holds;
    struct hold *spare_holds[64];
    unsigned spare_hold_count;
    uint64_t sequence;
    struct freed_list freed, ready;
    size_t freed_count;
    struct qcow2_inflated inflated;
    bool committing;
    bool places_unsure; /* a table was to move, and that failed: the header on the disk may say
                           either place */
    bool broken;        /* the image contradicts itself: no more writes */
};

static inline struct qcow2 *qcow2_of(struct disk *disk)
{
    return (struct qcow2 *)disk;
}

int cluster_set_add(struct cluster_set *set, uint64_t cluster); /* -EEXIST, -ENOMEM */
void cluster_set_remove(struct cluster_set *set, uint64_t cluster);
bool cluster_set_has(const struct cluster_set *set, uint64_t cluster);

/* ---- qcow2_refcount: with the lock held ---- */

uint64_t refcount_entry(const uint8_t *block, unsigned order, uint64_t index);
void refcount_entry_set(uint8_t *block, unsigned order, uint64_t index, uint64_t value);

/* Takes up to `want` clusters that lie side by side. */
int qcow2_take(struct qcow2 *q, uint64_t want, uint64_t *ret_offset, uint64_t *ret_got);
/* Gives back at once what nothing on the disk or in flight ever pointed to. */
void qcow2_untake(struct qcow2 *q, uint64_t offset, uint64_t count);
/* Gives back what something pointed to: invariant 4. */
int qcow2_free_later(struct qcow2 *q, uint64_t cluster, uint64_t count);
/* Exactly so many, side by side. */
int qcow2_take_row(struct qcow2 *q, uint64_t count, uint64_t *ret_offset);
/* Room in the refcount table for so many more. Waits for commits: call it before looking. */
int qcow2_make_room(struct qcow2 *q, uint64_t clusters);
/* Lowers the refcounts of what is ready. Only a commit calls it. */
void qcow2_reap(struct qcow2 *q);
/* True where the guest's data must not go: header, tables. */
bool qcow2_is_metadata(const struct qcow2 *q, uint64_t offset);
/* The image contradicts itself: no more writes, now and in times to come. Returns -EIO. */
int qcow2_broken(struct qcow2 *q);

/* ---- qcow2_commit: with the lock held, which they let go of meanwhile ---- */

/* `sync`: all that was written before is on the disk after. */
int qcow2_commit(struct qcow2 *q, bool sync);
/* The header on the disk says where the L1 and the refcount table are from now on, as `moved` has
 * it, once all that was written before is there. After a failure they are where they were. Keeps
 * the lock. */
int qcow2_move_tables(struct qcow2 *q, const struct qcow2_header *moved);
/* Before a change: commits when much is dirty, makes room. */
int qcow2_prepare(struct qcow2 *q);

void qcow2_hold(struct qcow2 *q, struct hold *hold);
void qcow2_release(struct qcow2 *q, struct hold *hold);

/* ---- qcow2_map: with the lock held ---- */

enum qcow2_kind {
    QCOW2_NOTHING,     /* the backing shows, or zeros */
    QCOW2_ZEROS,       /* no cluster */
    QCOW2_ZEROS_PLACE, /* zeros, and a cluster for later */
    QCOW2_DATA,
    QCOW2_PACKED, /* compressed */
};

struct qcow2_place {
    enum qcow2_kind kind;
    bool own;      /* DATA, ZEROS_PLACE: nobody else uses the cluster */
    uint64_t host; /* offset in the file */
    uint64_t packed_length;
};

/* What an entry says. -EIO where it cannot be. */
int qcow2_decode(struct qcow2 *q, uint64_t entry, struct qcow2_place *ret_place);

struct qcow2_run {
    struct qcow2_place place; /* of the first cluster */
    uint64_t length;          /* bytes that go on like that */
};

/* What lies at `offset`: as far as it is of one kind and, in the file, side by side. */
int qcow2_map(struct qcow2 *q, uint64_t offset, uint64_t length, struct qcow2_run *ret_run);

/* The same, but false where a table would have to be read first. */
bool qcow2_map_cached(struct qcow2 *q, uint64_t offset, uint64_t length, struct qcow2_run *ret_run);

/* The L2 table of a guest cluster; NULL where there is none. */
int qcow2_l2(struct qcow2 *q, uint64_t cluster, struct table **ret_table);
/* The same to be changed: made, or copied where a snapshot has it too. */
int qcow2_l2_own(struct qcow2 *q, uint64_t cluster, struct table **ret_table);
uint64_t qcow2_l2_entry(const struct qcow2 *q, const struct table *table, uint64_t cluster);
/* Replaces an entry and gives back what the old one used, if the new one does not. */
int qcow2_l2_replace(struct qcow2 *q, struct table *table, uint64_t cluster, uint64_t entry);
void qcow2_l1_set(struct qcow2 *q, uint64_t index, uint64_t entry);
void qcow2_reftable_set(struct qcow2 *q, uint64_t index, uint64_t entry);

/* True where the guest sees zeros in a cluster that has no place. */
static inline bool qcow2_nothing_is_zero(const struct qcow2 *q, uint64_t cluster)
{
    return cluster << q->cluster_bits >= q->backing_size;
}

/* Clusters of the file that a compressed cluster lies in. */
void qcow2_packed_clusters(unsigned cluster_bits, const struct qcow2_place *place,
                           uint64_t *ret_first, uint64_t *ret_count);

/* ---- the rest ---- */

int qcow2_inflate(bool zstd, const uint8_t *from, size_t from_length, uint8_t *to,
                  size_t to_length);

int qcow2_read(struct disk *disk, uint64_t offset, struct span *to, uint64_t length);
int qcow2_write(struct disk *disk, uint64_t offset, struct span *from, uint64_t length);
int qcow2_write_zeroes(struct disk *disk, uint64_t offset, uint64_t length, bool may_unmap);
int qcow2_discard(struct disk *disk, uint64_t offset, uint64_t length);
bool qcow2_direct(struct disk *disk, uint64_t offset, uint64_t length, bool write,
                  struct disk_extent *ret_extent);
void qcow2_direct_end(struct disk *disk, const struct disk_extent *extent);
int qcow2_status(struct disk *disk, uint64_t offset, uint64_t length,
                 enum disk_extent_kind *ret_kind, uint64_t *ret_length);
int qcow2_resize(struct disk *disk, uint64_t size, struct err *err);
int qcow2_preallocate(struct qcow2 *q, struct err *err);

/* Opens `file` as an image alone, without its backing. */
int qcow2_open_image(struct file *file, const char *path, bool write, struct qcow2 **ret_q,
                     struct err *err);
int qcow2_close_image(struct qcow2 *q);

/* All references counted; refcounts and flags mended in the file. Nobody has the image open. */
int qcow2_scan(struct file *file, const char *path, const struct disk_checker *checker,
               struct disk_check *ret_check, struct err *err);
