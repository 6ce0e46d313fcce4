/*
 * snapshot_memory.h: a guest's memory in files.
 *
 * A file holds pages: page n of all regions, one region after the other by its address, lies at
 * n * 4096; the rest is a hole. Which pages it holds, and what they add up to, is a `struct
 * page_map`, kept in the snapshot's state. The first file of a chain holds every page that is not
 * zero; each further one what has changed since, zeros included, where the page is a hole as well.
 *
 * Reading a chain back copies nothing: pages are mapped, private, the oldest file first, so the
 * guest runs before any of them is read, and guests of one snapshot share what none of them writes
 * to. (Short runs of a later file are copied: a mapping each would be more than the kernel likes.)
 *
 * Errors: -errno with a phrase; -EBADMSG for a file that is not what the map says.
 */
#pragma once

#include "base/err.h"
#include "base/record.h"
#include "mem/mem.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    PAGES_CHUNK = 64, /* pages that share a checksum */
};

struct page_map {
    uint64_t pages;   /* of all regions */
    uint8_t *present; /* a bit a page, the lowest first */
    uint32_t *checks; /* of each chunk: crc32c of the pages that are present, in their order */
};

/* The pages of `mem`, none present. -ENOMEM. */
int page_map_init(struct page_map *map, const struct mem *mem, struct err *err);
void page_map_free(struct page_map *map);
bool page_map_has(const struct page_map *map, uint64_t page);
uint64_t page_map_count(const struct page_map *map); /* pages present */
/* Saves or loads; the number of pages must be that of the map. */
void page_map_state(struct page_map *map, struct record *record);

enum pages_which {
    PAGES_ALL,     /* that are not zero */
    PAGES_MARKED,  /* that have MEM_PAGE_DIRTY */
    PAGES_PRIVATE, /* that are no file's page any more: written to since they were mapped */
};

/* Writes pages of the memory to the file, which is empty, with the guest's vCPUs stopped. `pagemap`
 * is /proc/self/pagemap: it says which pages were ever touched; -1: all are looked at, and
 * PAGES_PRIVATE is -ENOTSUP. */
int pages_save(const struct mem *mem, int fd, int pagemap, enum pages_which which,
               struct page_map *map, struct err *err);

/* Maps what the map says is present, over what is there. `first`: the file's gaps are zeros. */
int pages_map(struct mem *mem, int fd, const struct page_map *map, bool first, struct err *err);

/* Reads the file and compares: 0, or -EBADMSG; -ECANCELED when `stop` is set meanwhile. */
int pages_verify(int fd, const struct page_map *map, const _Atomic bool *stop, struct err *err);
