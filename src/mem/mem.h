/*
 * mem.h: guest-physical memory.
 *
 * A `struct mem` is a short sorted list of regions, each one a host mapping of a stretch of guest-
 * physical address space. Everything else of that space is ports, MMIO or nothing. All addresses
 * are bytes; regions begin and end on 4 KiB pages.
 *
 * Who owns what: mem_add() makes the host mapping and mem_free() unmaps it. Regions are added
 * before the first vCPU runs and never move after, so look-ups need no lock and any thread may
 * call.
 *
 * Bounds: mem_at(), mem_read() and mem_write() are the only doors from a guest-given address to
 * host memory; they refuse ranges that leave a region, wrap round, or write to read-only memory.
 * Bytes behind the pointer may change at any time under our hands (the guest runs): copy before
 * you check, and read each field once.
 *
 * Page marks: one byte a page, set and cleared atomically. MEM_PAGE_DIRTY serves the dirty log;
 * MEM_PAGE_CODE says that a software engine holds decoded code of that page, and makes mem_write()
 * and mem_written() call the code observer. Devices that write through a pointer from mem_at() call
 * mem_written() after.
 *
 * Errors: -EFAULT for a range that is not guest memory, -ENOMEM, -EEXIST for an overlap.
 */
#pragma once

#include "base/err.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MEM_PAGE_SHIFT = 12,
    MEM_PAGE_SIZE = 1 << MEM_PAGE_SHIFT,
    MEM_REGIONS_MAX = 16,
};

enum mem_page_mark {
    MEM_PAGE_DIRTY = 1 << 0,
    MEM_PAGE_CODE = 1 << 1,
    MEM_PAGE_FILE = 1 << 2, /* may be a file's page: not to be written to without need */
};

struct mem_region {
    uint64_t start; /* guest-physical, page aligned */
    uint64_t size;  /* bytes, whole pages */
    uint8_t *host;  /* where `start` is in this process */
    uint8_t *marks; /* one byte a page, enum mem_page_mark */
    bool read_only; /* the guest's writes are MMIO, for who wants them; mem_write() refuses */
    bool huge;      /* offered to huge pages, where keep_small allows it */
};

struct mem {
    struct mem_region regions[MEM_REGIONS_MAX]; /* sorted by start, disjoint */
    unsigned count;
    _Atomic bool dirty_log; /* writers set MEM_PAGE_DIRTY while this is true */
    void (*code_written)(void *opaque, uint64_t gpa, uint64_t size);
    void *code_opaque;
    void (*discarded)(void *opaque, uint64_t gpa, uint64_t size);
    void *discard_opaque;
    pthread_mutex_t advice; /* `huge` and `keep_small` change together with what the host knows */
    bool keep_small;
};

struct mem *mem_new(void);
void mem_free(struct mem *mem);

/* Adds `size` bytes of zeroed memory at `start`: private, anonymous, not reserved in swap, excluded
 * from core dumps, offered to huge pages, and placed so that those can be the guest's, too. */
int mem_add(struct mem *mem, uint64_t start, uint64_t size, bool read_only, struct err *err);

/* The region that holds `gpa`, or NULL. */
const struct mem_region *mem_find(const struct mem *mem, uint64_t gpa);

/* Host address of [gpa, gpa + size), or NULL where that is not wholly inside one region. `write`
 * asks for a place that may be written. */
void *mem_at(const struct mem *mem, uint64_t gpa, uint64_t size, bool write);

int mem_read(const struct mem *mem, uint64_t gpa, void *to, uint64_t size);
int mem_write(struct mem *mem, uint64_t gpa, const void *from, uint64_t size);

/* Says that [gpa, gpa + size) was written through a pointer: marks pages dirty, tells the code
 * observer. */
void mem_written(struct mem *mem, uint64_t gpa, uint64_t size);

/* Says that [gpa, gpa + size) may be pages of a file, private, of which a copy is made when one is
 * written to. */
void mem_note_file(struct mem *mem, uint64_t gpa, uint64_t size);
/* Is any page of [offset, offset + size) of the region one of those? */
bool mem_holds_file(const struct mem_region *region, uint64_t offset, uint64_t size);

/* Makes [gpa, gpa + size), whole pages of one region, private pages of the file from `offset` on,
 * and notes them. The file must be as long, and stay so. -errno. */
int mem_map_file(struct mem *mem, uint64_t gpa, uint64_t size, int fd, uint64_t offset);

/* All memory is zero again and given back to the host, and no page is a file's. With the guest's
 * vCPUs stopped. -errno where the host has no mappings left. */
int mem_clear(struct mem *mem);

/* As mem_at() for writing, whatever the region says: for loaders that fill ROM. */
void *mem_at_load(const struct mem *mem, uint64_t gpa, uint64_t size);

/* The one observer of writes to pages marked MEM_PAGE_CODE. Called on the writer's thread, after
 * the bytes have changed. */
void mem_observe_code(struct mem *mem, void (*written)(void *opaque, uint64_t gpa, uint64_t size),
                      void *opaque);

/* Gives the whole pages of [gpa, gpa + size) back to the host. They stay the guest's and read as
 * zeroes until they are written to; those of mem_note_file() read as the file again. Pages that the
 * range covers in part are left alone, and all where the host refuses (locked memory). -EFAULT
 * where the range may not be written. Any thread, vCPUs may run. */
int mem_discard(struct mem *mem, uint64_t gpa, uint64_t size);
/* The one observer of mem_discard(), called after it on its thread. */
void mem_observe_discard(struct mem *mem,
                         void (*discarded)(void *opaque, uint64_t gpa, uint64_t size),
                         void *opaque);

/* Huge pages for the region of that index, or none. An engine that knows better than mem_add() when
 * they pay calls it; any thread. */
void mem_offer_huge(struct mem *mem, unsigned index, bool huge);
/* While `small`, no region gets huge pages, whatever was offered: one byte that the guest touches
 * would bring back 2 MiB of single pages that were discarded. Any thread. */
void mem_keep_small(struct mem *mem, bool small);

/* Total bytes of all regions that are not read-only. */
uint64_t mem_size(const struct mem *mem);
