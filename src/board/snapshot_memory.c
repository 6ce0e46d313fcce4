#include "board/snapshot_memory.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    CHUNK_BYTES = PAGES_CHUNK * MEM_PAGE_SIZE,
    GAP_MAX = 32, /* pages: zeros in between that are mapped with what is around them */
    RUN_MIN = 16, /* pages: shorter ones of a later file are copied */
    /* Each mapping makes two of one that was there. A chain of 16 stays below the kernel's limit of
     * 65530 a process: what goes beyond is copied. */
    FIRST_MAPPINGS_MAX = 16384,
    LATER_MAPPINGS_MAX = 960,
};

/* proc(5), pagemap. */
#define PAGEMAP_PRESENT (UINT64_C(1) << 63)
#define PAGEMAP_SWAPPED (UINT64_C(1) << 62)
#define PAGEMAP_FILE    (UINT64_C(1) << 61)

static uint64_t chunk_count(const struct page_map *map)
{
    return (map->pages + PAGES_CHUNK - 1) / PAGES_CHUNK;
}

static uint64_t all_pages(const struct mem *mem)
{
    uint64_t pages = 0;
    for (unsigned i = 0; i < mem->count; i++)
        pages += mem->regions[i].size >> MEM_PAGE_SHIFT;
    return pages;
}

int page_map_init(struct page_map *map, const struct mem *mem, struct err *err)
{
    *map = (struct page_map){.pages = all_pages(mem)};
    map->present = calloc(map->pages / 8 + 1, 1);
    map->checks = calloc(chunk_count(map), sizeof *map->checks);
    if (map->present && map->checks)
        return 0;
    page_map_free(map);
    return err_set(err, -ENOMEM, "no memory for the map of a snapshot's pages");
}

void page_map_free(struct page_map *map)
{
    free(map->present);
    free(map->checks);
    *map = (struct page_map){0};
}

bool page_map_has(const struct page_map *map, uint64_t page)
{
    return map->present[page / 8] >> page % 8 & 1;
}

uint64_t page_map_count(const struct page_map *map)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < map->pages / 8 + 1; i++)
        count += (unsigned)__builtin_popcount(map->present[i]);
    return count;
}

void page_map_state(struct page_map *map, struct record *record)
{
    uint64_t pages = map->pages;
    record_u64(record, &pages);
    if (record->loading && pages != map->pages)
        record_fail(record, "is of a machine with another amount of memory");
    if (record->failed)
        return;
    record_bytes(record, map->present, (map->pages + 7) / 8);
    for (uint64_t i = 0; i < chunk_count(map); i++)
        record_u32(record, &map->checks[i]);
    if (map->pages % 8) /* bits of pages that are not there */
        map->present[map->pages / 8] &= (uint8_t)((1u << map->pages % 8) - 1);
}

/* ---- saving ---- */

struct saver {
    const struct mem_region *region;
    uint64_t first; /* number of the region's first page */
    int fd, pagemap;
    enum pages_which which;
    struct page_map *map;
};

static bool is_zero(const uint8_t *page)
{
    uint64_t all = 0;
    for (size_t i = 0; i < MEM_PAGE_SIZE; i += 64) {
        uint64_t words[8];
        memcpy(words, page + i, sizeof words);
        for (size_t j = 0; j < 8; j++)
            all |= words[j];
        if (all)
            return false;
    }
    return true;
}

/* May this page be anything but what the files below it say? */
static bool is_wanted(const struct saver *saver, uint64_t page, uint64_t entry)
{
    uint8_t marks = __atomic_load_n(&saver->region->marks[page], __ATOMIC_RELAXED);
    bool touched = entry & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED);
    switch (saver->which) {
    case PAGES_MARKED: return marks & MEM_PAGE_DIRTY;
    case PAGES_PRIVATE: return touched && !(entry & PAGEMAP_FILE);
    default: return touched || marks & MEM_PAGE_FILE;
    }
}

static int write_run(const struct saver *saver, uint64_t page, uint64_t count)
{
    const uint8_t *from = saver->region->host + (page << MEM_PAGE_SHIFT);
    uint64_t at = (saver->first + page) << MEM_PAGE_SHIFT, left = count << MEM_PAGE_SHIFT;
    while (left > 0) {
        ssize_t put = pwrite(saver->fd, from, left, (off_t)at);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? -errno : -EIO;
        from += put;
        at += (size_t)put;
        left -= (size_t)put;
    }
    return 0;
}

static void note(const struct saver *saver, uint64_t page)
{
    uint64_t number = saver->first + page;
    uint32_t *check = &saver->map->checks[number / PAGES_CHUNK];
    saver->map->present[number / 8] |= (uint8_t)(1u << number % 8);
    *check = crc32c(*check, saver->region->host + (page << MEM_PAGE_SHIFT), MEM_PAGE_SIZE);
}

/* A page of zeros is a hole, and is only worth a note where something else lies below it. */
static int save_pages(const struct saver *saver, uint64_t page, uint64_t count,
                      const uint64_t *entries)
{
    uint64_t run = 0; /* pages before this one that are still to be written */
    int r = 0;
    for (uint64_t i = 0; r >= 0 && i <= count; i++) {
        bool wanted = i < count && is_wanted(saver, page + i, entries[i]);
        bool zero = wanted && is_zero(saver->region->host + ((page + i) << MEM_PAGE_SHIFT));
        if (wanted && (!zero || saver->which != PAGES_ALL))
            note(saver, page + i);
        if (wanted && !zero) {
            run++;
            continue;
        }
        if (run > 0)
            r = write_run(saver, page + i - run, run);
        run = 0;
    }
    return r;
}

static int read_entries(const struct saver *saver, uint64_t page, uint64_t count, uint64_t *entries)
{
    if (saver->pagemap < 0 || saver->which == PAGES_MARKED) {
        memset(entries, 0xff, count * sizeof *entries);
        return 0;
    }
    uint64_t address = (uintptr_t)saver->region->host + (page << MEM_PAGE_SHIFT);
    ssize_t got = pread(saver->pagemap, entries, count * sizeof *entries,
                        (off_t)((address >> MEM_PAGE_SHIFT) * sizeof *entries));
    if (got < 0)
        return -errno;
    return got == (ssize_t)(count * sizeof *entries) ? 0 : -EIO;
}

static int save_region(const struct saver *saver)
{
    enum { BATCH = 512 };
    uint64_t entries[BATCH], pages = saver->region->size >> MEM_PAGE_SHIFT;
    int r = 0;
    for (uint64_t page = 0; r >= 0 && page < pages; page += BATCH) {
        uint64_t count = min(pages - page, (uint64_t)BATCH);
        r = read_entries(saver, page, count, entries);
        if (r >= 0)
            r = save_pages(saver, page, count, entries);
    }
    return r;
}

int pages_save(const struct mem *mem, int fd, int pagemap, enum pages_which which,
               struct page_map *map, struct err *err)
{
    struct saver saver = {.fd = fd, .pagemap = pagemap, .which = which, .map = map};
    if (which == PAGES_PRIVATE && pagemap < 0)
        return err_set(err, -ENOTSUP, "which pages have changed cannot be told without pagemap");
    int r = ftruncate(fd, (off_t)(map->pages << MEM_PAGE_SHIFT)) < 0 ? -errno : 0;
    for (unsigned i = 0; r >= 0 && i < mem->count; i++) {
        saver.region = &mem->regions[i];
        r = save_region(&saver);
        saver.first += saver.region->size >> MEM_PAGE_SHIFT;
    }
    return r < 0 ? err_errno(err, -r, "cannot write the guest's memory") : 0;
}

/* ---- mapping ---- */

struct mapper {
    struct mem *mem;
    const struct mem_region *region;
    uint64_t first;
    int fd;
    bool bottom;
    unsigned mappings;
};

static int read_whole(int fd, uint8_t *to, uint64_t size, uint64_t at)
{
    while (size > 0) {
        ssize_t got = pread(fd, to, size, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -EBADMSG;
        to += got;
        at += (size_t)got;
        size -= (size_t)got;
    }
    return 0;
}

static int map_run(struct mapper *mapper, uint64_t page, uint64_t count)
{
    uint64_t at = (mapper->first + page) << MEM_PAGE_SHIFT, size = count << MEM_PAGE_SHIFT;
    unsigned limit = mapper->bottom ? FIRST_MAPPINGS_MAX : LATER_MAPPINGS_MAX;
    bool copied = (!mapper->bottom && count < RUN_MIN) || mapper->mappings >= limit;
    if (copied)
        return read_whole(mapper->fd, mapper->region->host + (page << MEM_PAGE_SHIFT), size, at);
    mapper->mappings++;
    return mem_map_file(mapper->mem, mapper->region->start + (page << MEM_PAGE_SHIFT), size,
                        mapper->fd, at);
}

static int map_region(struct mapper *mapper, const struct page_map *map)
{
    uint64_t pages = mapper->region->size >> MEM_PAGE_SHIFT, gap_max = mapper->bottom ? GAP_MAX : 0;
    uint64_t begin = 0, end = 0; /* of the run so far */
    int r = 0;
    for (uint64_t page = 0; r >= 0 && page < pages; page++) {
        /* Eight at a time: most of most guests is not there. */
        if ((mapper->first + page) % 8 == 0 && page + 8 <= pages &&
            map->present[(mapper->first + page) / 8] == 0) {
            page += 7;
            continue;
        }
        if (!page_map_has(map, mapper->first + page))
            continue;
        if (end > begin && page - end > gap_max) {
            r = map_run(mapper, begin, end - begin);
            begin = end;
        }
        if (end == begin)
            begin = page;
        end = page + 1;
    }
    return r >= 0 && end > begin ? map_run(mapper, begin, end - begin) : r;
}

int pages_map(struct mem *mem, int fd, const struct page_map *map, bool first, struct err *err)
{
    struct mapper mapper = {.mem = mem, .fd = fd, .bottom = first};
    struct stat about;
    if (fstat(fd, &about) < 0)
        return err_errno(err, errno, "the snapshot's memory");
    uint64_t size = map->pages << MEM_PAGE_SHIFT;
    if ((uint64_t)about.st_size != size)
        return err_set(err, -EBADMSG,
                       "the snapshot's memory is cut off: %" PRIu64 " of %" PRIu64
                       " bytes are there",
                       (uint64_t)about.st_size, size);
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < mem->count; i++) {
        mapper.region = &mem->regions[i];
        r = map_region(&mapper, map);
        mapper.first += mapper.region->size >> MEM_PAGE_SHIFT;
    }
    return r < 0 ? err_errno(err, -r, "cannot map the snapshot's memory") : 0;
}

/* ---- verifying ---- */

static int verify_chunk(int fd, const struct page_map *map, uint64_t chunk, uint8_t *buffer)
{
    uint64_t first = chunk * PAGES_CHUNK, end = min(first + PAGES_CHUNK, map->pages);
    uint32_t check = 0;
    bool any = false;
    for (uint64_t page = first; page < end; page++)
        any |= page_map_has(map, page);
    if (!any)
        return 0;
    int r = read_whole(fd, buffer, (end - first) << MEM_PAGE_SHIFT, first << MEM_PAGE_SHIFT);
    for (uint64_t page = first; r >= 0 && page < end; page++) {
        const uint8_t *bytes = buffer + ((page - first) << MEM_PAGE_SHIFT);
        if (page_map_has(map, page))
            check = crc32c(check, bytes, MEM_PAGE_SIZE);
        else if (!is_zero(bytes)) /* a gap within what is mapped */
            return -EBADMSG;
    }
    return r >= 0 && check != map->checks[chunk] ? -EBADMSG : r;
}

int pages_verify(int fd, const struct page_map *map, const _Atomic bool *stop, struct err *err)
{
    _cleanup_free_ uint8_t *buffer = malloc(CHUNK_BYTES);
    if (!buffer)
        return err_set(err, -ENOMEM, "no memory to verify a snapshot");
    for (uint64_t chunk = 0; chunk < chunk_count(map); chunk++) {
        if (stop && *stop)
            return -ECANCELED;
        int r = verify_chunk(fd, map, chunk, buffer);
        if (r == -EBADMSG)
            return err_set(err, r,
                           "the snapshot's memory is damaged: bytes from %" PRIu64
                           " on do not match their checksum",
                           chunk * CHUNK_BYTES);
        if (r < 0)
            return err_errno(err, -r, "the snapshot's memory");
    }
    return 0;
}
