/* A guest's memory in files: what is saved comes back, whichever way it was found. */
#include "board/snapshot_memory.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cmocka.h>

enum {
    LOW = 200,  /* pages; no multiple of a chunk, nor of eight with what follows */
    HIGH = 700, /* more than one batch of the pagemap */
    ROM = 3,
    PAGES = LOW + HIGH + ROM,
};

static struct mem *mem_made(void)
{
    struct mem *mem = mem_new();
    assert_int_equal(mem_add(mem, 0, LOW * MEM_PAGE_SIZE, false, NULL), 0);
    assert_int_equal(mem_add(mem, MIB(16), HIGH * MEM_PAGE_SIZE, false, NULL), 0);
    assert_int_equal(mem_add(mem, GIB(4), ROM * MEM_PAGE_SIZE, true, NULL), 0);
    for (unsigned i = 0; i < mem->count; i++) /* a huge page is touched as a whole */
        madvise(mem->regions[i].host, mem->regions[i].size, MADV_NOHUGEPAGE);
    return mem;
}

/* Page `page` of the file, in memory. */
static uint8_t *page_at(const struct mem *mem, unsigned page)
{
    for (unsigned i = 0; i < mem->count; i++) {
        unsigned count = (unsigned)(mem->regions[i].size >> MEM_PAGE_SHIFT);
        if (page < count)
            return mem->regions[i].host + ((uint64_t)page << MEM_PAGE_SHIFT);
        page -= count;
    }
    fail();
    return NULL;
}

static uint32_t noise(uint32_t *state)
{
    *state = *state * 1664525 + 1013904223;
    return *state >> 8;
}

/* Fills the page with what `seed` makes, as the guest or a device would: with a mark while the
 * dirty log runs. */
static void page_fill(struct mem *mem, unsigned page, uint32_t seed)
{
    uint8_t *bytes = page_at(mem, page);
    for (unsigned i = 0; i < MEM_PAGE_SIZE; i += 4) {
        uint32_t word = noise(&seed);
        memcpy(bytes + i, &word, sizeof word);
    }
    for (unsigned i = 0; i < mem->count; i++) {
        const struct mem_region *region = &mem->regions[i];
        if (bytes >= region->host && bytes < region->host + region->size)
            mem_written(mem, region->start + (uint64_t)(bytes - region->host), MEM_PAGE_SIZE);
    }
}

static void page_zero(struct mem *mem, unsigned page)
{
    page_fill(mem, page, 0);
    memset(page_at(mem, page), 0, MEM_PAGE_SIZE);
}

static void marks_clear(struct mem *mem)
{
    for (unsigned i = 0; i < mem->count; i++)
        for (uint64_t page = 0; page < mem->regions[i].size >> MEM_PAGE_SHIFT; page++)
            mem->regions[i].marks[page] &= (uint8_t)~MEM_PAGE_DIRTY;
}

static void check_equal(const struct mem *one, const struct mem *two)
{
    for (unsigned page = 0; page < PAGES; page++)
        if (memcmp(page_at(one, page), page_at(two, page), MEM_PAGE_SIZE) != 0)
            fail_msg("page %u differs", page);
}

struct layer {
    int fd;
    struct page_map map;
};

static void layer_free(struct layer *layer)
{
    close(layer->fd);
    page_map_free(&layer->map);
}

static struct layer save(const struct mem *mem, enum pages_which which, int pagemap)
{
    struct layer layer = {.fd = memfd_create("memory", MFD_CLOEXEC)};
    struct err err = {0};
    assert_true(layer.fd >= 0);
    assert_int_equal(page_map_init(&layer.map, mem, &err), 0);
    assert_int_equal(pages_save(mem, layer.fd, pagemap, which, &layer.map, &err), 0);
    assert_int_equal(lseek(layer.fd, 0, SEEK_END), PAGES * MEM_PAGE_SIZE);
    assert_int_equal(pages_verify(layer.fd, &layer.map, NULL, &err), 0);
    return layer;
}

/* The map as another process reads it. */
static void through_a_record(struct page_map *map, const struct mem *mem)
{
    struct record saved, loaded;
    struct page_map copy;
    struct err err = {0};
    record_save(&saved, 1);
    page_map_state(map, &saved);
    assert_true(record_ended(&saved));
    assert_int_equal(page_map_init(&copy, mem, &err), 0);
    record_load(&loaded, saved.bytes, saved.size, 1);
    page_map_state(&copy, &loaded);
    assert_true(record_ended(&loaded));
    assert_int_equal(page_map_count(&copy), page_map_count(map));
    record_free(&saved);
    page_map_free(map);
    *map = copy;
}

/* The first layer is the oldest here. */
static struct mem *restored(struct layer *layers, unsigned count)
{
    struct mem *mem = mem_made();
    struct err err = {0};
    for (unsigned i = 0; i < count; i++) {
        through_a_record(&layers[i].map, mem);
        assert_int_equal(pages_map(mem, layers[i].fd, &layers[i].map, i == 0, &err), 0);
    }
    return mem;
}

static int pagemap_open(void)
{
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

/* Some pages of each region: alone, in runs, the first and the last. */
static const unsigned written[] = {0,   1,   2,   7,   63,  64,  65,  127,       150,      LOW - 1,
                                   LOW, 299, 300, 301, 302, 777, 800, PAGES - 4, PAGES - 1};

static void fill_some(struct mem *mem)
{
    for (size_t i = 0; i < ARRAY_LEN(written); i++)
        page_fill(mem, written[i], 1 + (uint32_t)i);
}

static void check_present(const struct page_map *map, const unsigned *pages, size_t count)
{
    bool wanted[PAGES] = {0};
    for (size_t i = 0; i < count; i++)
        wanted[pages[i]] = true;
    for (unsigned page = 0; page < PAGES; page++)
        if (page_map_has(map, page) != wanted[page])
            fail_msg("page %u is %s", page, wanted[page] ? "missing" : "too many");
    assert_int_equal(page_map_count(map), count);
}

static void all_pages_but_those_of_zeros(int pagemap)
{
    struct mem *mem = mem_made();
    fill_some(mem);
    page_zero(mem, 5); /* touched, and zero: nothing below can be anything else */
    struct layer layer = save(mem, PAGES_ALL, pagemap);
    check_present(&layer.map, written, ARRAY_LEN(written));
    struct mem *back = restored(&layer, 1);
    check_equal(mem, back);
    mem_free(back);
    mem_free(mem);
    layer_free(&layer);
}

static void all_pages_are_saved_with_a_pagemap(void **state)
{
    (void)state;
    _cleanup_fd_ int pagemap = pagemap_open();
    all_pages_but_those_of_zeros(pagemap);
}

static void all_pages_are_saved_without_a_pagemap(void **state)
{
    (void)state;
    all_pages_but_those_of_zeros(-1);
}

/* That nobody ever touched a page is told from the pagemap, not by touching it. */
static void saving_touches_nothing(void **state)
{
    (void)state;
    unsigned char resident[HIGH];
    _cleanup_fd_ int pagemap = pagemap_open();
    struct mem *mem = mem_made();
    fill_some(mem);
    struct layer layer = save(mem, PAGES_ALL, pagemap);
    unsigned count = 0;
    assert_int_equal(mincore(mem->regions[1].host, mem->regions[1].size, resident), 0);
    for (unsigned i = 0; i < HIGH; i++)
        count += resident[i] & 1;
    assert_int_equal(count, 8); /* as many as `written` names there */
    mem_free(mem);
    layer_free(&layer);
}

static void zeros_are_holes(void **state)
{
    (void)state;
    struct stat about;
    struct mem *mem = mem_made();
    page_fill(mem, 100, 1);
    struct layer layer = save(mem, PAGES_ALL, -1);
    assert_int_equal(fstat(layer.fd, &about), 0);
    assert_int_equal(about.st_blocks * 512, MEM_PAGE_SIZE);
    mem_free(mem);
    layer_free(&layer);
}

static void marked_pages_are_saved_zeros_included(void **state)
{
    (void)state;
    const unsigned changed[] = {1, 5, 64, 250, 300, PAGES - 1};
    _cleanup_fd_ int pagemap = pagemap_open();
    struct mem *mem = mem_made();
    fill_some(mem);
    struct layer layers[2] = {save(mem, PAGES_ALL, pagemap)};
    marks_clear(mem);
    mem->dirty_log = true;
    for (size_t i = 0; i < ARRAY_LEN(changed); i++)
        page_fill(mem, changed[i], 1000 + (uint32_t)i);
    page_zero(mem, 64);  /* was not */
    page_zero(mem, 250); /* was so before */
    layers[1] = save(mem, PAGES_MARKED, pagemap);
    check_present(&layers[1].map, changed, ARRAY_LEN(changed));
    struct mem *back = restored(layers, 2);
    check_equal(mem, back);
    mem_free(back);
    mem_free(mem);
    layer_free(&layers[0]);
    layer_free(&layers[1]);
}

static void private_pages_are_those_that_were_written_to(void **state)
{
    (void)state;
    const unsigned changed[] = {2, 6, 64, 299, 600, PAGES - 1};
    _cleanup_fd_ int pagemap = pagemap_open();
    struct mem *first = mem_made();
    fill_some(first);
    struct layer layers[2] = {save(first, PAGES_ALL, pagemap)};
    mem_free(first);

    struct mem *mem = restored(layers, 1);
    volatile uint8_t sink = 0;
    for (size_t i = 0; i < ARRAY_LEN(written); i++)
        sink ^= *page_at(mem, written[i]); /* read only: still the file's */
    for (size_t i = 0; i < ARRAY_LEN(changed); i++)
        page_fill(mem, changed[i], 2000 + (uint32_t)i);
    page_zero(mem, 64);
    layers[1] = save(mem, PAGES_PRIVATE, pagemap);
    check_present(&layers[1].map, changed, ARRAY_LEN(changed));
    struct mem *back = restored(layers, 2);
    check_equal(mem, back);
    mem_free(back);
    mem_free(mem);
    layer_free(&layers[0]);
    layer_free(&layers[1]);
}

static void private_pages_need_a_pagemap(void **state)
{
    (void)state;
    struct mem *mem = mem_made();
    struct page_map map;
    struct err err = {0};
    _cleanup_fd_ int fd = memfd_create("memory", MFD_CLOEXEC);
    assert_int_equal(page_map_init(&map, mem, &err), 0);
    assert_int_equal(pages_save(mem, fd, -1, PAGES_PRIVATE, &map, &err), -ENOTSUP);
    page_map_free(&map);
    mem_free(mem);
}

/* A whole snapshot of a guest that came from one: what it has not looked at is in it. */
static void mapped_pages_are_part_of_a_whole_snapshot(void **state)
{
    (void)state;
    _cleanup_fd_ int pagemap = pagemap_open();
    struct mem *first = mem_made();
    fill_some(first);
    struct layer below = save(first, PAGES_ALL, pagemap);
    struct mem *mem = restored(&below, 1);
    page_fill(mem, 7, 99);
    page_fill(first, 7, 99);
    struct layer layer = save(mem, PAGES_ALL, pagemap);
    check_present(&layer.map, written, ARRAY_LEN(written));
    mem_free(mem);
    layer_free(&below);
    struct mem *back = restored(&layer, 1);
    check_equal(first, back);
    mem_free(back);
    mem_free(first);
    layer_free(&layer);
}

/* Each layer changes about a tenth, in runs of all lengths, some of it to zeros. */
static void change(struct mem *mem, uint32_t *state)
{
    for (unsigned page = 0; page < PAGES; page++) {
        if (noise(state) % 40 != 0)
            continue;
        unsigned end = page + 1 + noise(state) % 40;
        bool zero = noise(state) % 4 == 0;
        for (; page < end && page < PAGES; page++)
            if (zero)
                page_zero(mem, page);
            else
                page_fill(mem, page, noise(state));
    }
}

static void a_chain_of_three(enum pages_which which, uint32_t seed)
{
    _cleanup_fd_ int pagemap = pagemap_open();
    uint32_t state = seed;
    struct mem *mem = mem_made();
    struct layer layers[4];
    change(mem, &state);
    layers[0] = save(mem, PAGES_ALL, pagemap);
    mem->dirty_log = true;
    for (unsigned i = 1; i < 4; i++) {
        if (which == PAGES_PRIVATE) { /* each stands on a guest that was restored */
            mem_free(mem);
            mem = restored(layers, i);
        }
        marks_clear(mem);
        change(mem, &state);
        layers[i] = save(mem, which, pagemap);
    }
    struct mem *back = restored(layers, 4);
    check_equal(mem, back);
    mem_free(back);
    mem_free(mem);
    for (unsigned i = 0; i < 4; i++)
        layer_free(&layers[i]);
}

static void chains_come_back(void **state)
{
    (void)state;
    for (uint32_t seed = 1; seed <= 20; seed++) {
        a_chain_of_three(PAGES_MARKED, seed);
        a_chain_of_three(PAGES_PRIVATE, seed);
    }
}

enum { STEP = 40 };

static unsigned mappings(void)
{
    _cleanup_file_ FILE *maps = fopen("/proc/self/maps", "re");
    unsigned count = 0;
    assert_non_null(maps);
    for (int c; (c = fgetc(maps)) != EOF;)
        count += c == '\n';
    return count;
}

/* A file that has `count` runs of `length` pages, one every STEP from page `at` on, each with its
 * number. */
static struct layer runs(const struct mem *mem, unsigned at, unsigned count, unsigned length)
{
    struct layer layer = {.fd = memfd_create("memory", MFD_CLOEXEC)};
    struct err err = {0};
    assert_int_equal(page_map_init(&layer.map, mem, &err), 0);
    assert_int_equal(ftruncate(layer.fd, (off_t)(layer.map.pages << MEM_PAGE_SHIFT)), 0);
    for (unsigned run = 0; run < count; run++) {
        uint32_t value = run * 64 + length;
        unsigned first = at + run * STEP;
        for (unsigned page = first; page < first + length; page++)
            layer.map.present[page / 8] |= (uint8_t)(1 << page % 8);
        assert_int_equal(pwrite(layer.fd, &value, sizeof value, (off_t)first * MEM_PAGE_SIZE),
                         sizeof value);
    }
    return layer;
}

/* More runs than a process may have mappings, with those of a chain: 65530 in all. */
static void many_runs_come_back(void **state)
{
    (void)state;
    enum { COUNT = 17000, LATER = 1200 };
    struct mem *mem = mem_new();
    struct err err = {0};
    assert_int_equal(mem_add(mem, 0, (uint64_t)COUNT * STEP * MEM_PAGE_SIZE, false, NULL), 0);
    struct layer first = runs(mem, 0, COUNT, 1);
    unsigned before = mappings();
    assert_int_equal(pages_map(mem, first.fd, &first.map, true, &err), 0);
    unsigned middle = mappings();
    assert_true(middle > before + 16000 && middle < before + 33000);
    layer_free(&first);
    for (unsigned i = 0; i < 2; i++) { /* long runs are mapped, up to a point, short ones never */
        struct layer later = runs(mem, 4, LATER, i ? 15 : 16);
        before = mappings();
        assert_int_equal(pages_map(mem, later.fd, &later.map, false, &err), 0);
        middle = mappings();
        if (i)
            assert_int_equal(middle, before);
        else
            assert_true(middle <= before + 2 * 1000);
        layer_free(&later);
    }
    for (unsigned run = 0; run < COUNT; run++) {
        const uint8_t *page = mem->regions[0].host + (size_t)run * STEP * MEM_PAGE_SIZE;
        assert_int_equal(le32_read(page), run * 64 + 1);
        assert_int_equal(le32_read(page + 4 * MEM_PAGE_SIZE), run < LATER ? run * 64 + 15 : 0);
    }
    mem_free(mem);
}

static void every_flipped_page_is_found(void **state)
{
    (void)state;
    struct mem *mem = mem_made();
    fill_some(mem);
    struct layer layer = save(mem, PAGES_ALL, -1);
    struct err err = {0};
    for (size_t i = 0; i < ARRAY_LEN(written); i++) {
        char where[32];
        off_t at = (off_t)written[i] * MEM_PAGE_SIZE + (off_t)(i * 217 % MEM_PAGE_SIZE);
        uint8_t byte, flipped;
        assert_int_equal(pread(layer.fd, &byte, 1, at), 1);
        flipped = byte ^ (uint8_t)(1 << i % 8);
        assert_int_equal(pwrite(layer.fd, &flipped, 1, at), 1);
        assert_int_equal(pages_verify(layer.fd, &layer.map, NULL, &err), -EBADMSG);
        snprintf(where, sizeof where, "bytes from %u on",
                 written[i] / PAGES_CHUNK * PAGES_CHUNK * MEM_PAGE_SIZE);
        assert_non_null(strstr(err.text, where));
        assert_int_equal(pwrite(layer.fd, &byte, 1, at), 1);
    }
    assert_int_equal(pages_verify(layer.fd, &layer.map, NULL, &err), 0);
    /* A page that the map does not name, but lies among some that it does: it is mapped with them.
     */
    assert_int_equal(pwrite(layer.fd, "x", 1, 120 * MEM_PAGE_SIZE), 1);
    assert_int_equal(pages_verify(layer.fd, &layer.map, NULL, &err), -EBADMSG);
    mem_free(mem);
    layer_free(&layer);
}

static void pages_that_changed_places_are_found(void **state)
{
    (void)state;
    uint8_t one[MEM_PAGE_SIZE], two[MEM_PAGE_SIZE];
    struct mem *mem = mem_made();
    fill_some(mem);
    struct layer layer = save(mem, PAGES_ALL, -1);
    struct err err = {0};
    assert_int_equal(pread(layer.fd, one, sizeof one, 0), sizeof one);
    assert_int_equal(pread(layer.fd, two, sizeof two, MEM_PAGE_SIZE), sizeof two);
    assert_int_equal(pwrite(layer.fd, two, sizeof two, 0), sizeof two);
    assert_int_equal(pwrite(layer.fd, one, sizeof one, MEM_PAGE_SIZE), sizeof one);
    assert_int_equal(pages_verify(layer.fd, &layer.map, NULL, &err), -EBADMSG);
    mem_free(mem);
    layer_free(&layer);
}

static void cut_and_grown_files_are_refused(void **state)
{
    (void)state;
    struct mem *mem = mem_made(), *back = mem_made();
    page_fill(mem, PAGES - 1, 5);
    struct layer layer = save(mem, PAGES_ALL, -1);
    struct err err = {0};
    const off_t whole = (off_t)PAGES * MEM_PAGE_SIZE, sizes[] = {0, 1, whole - 1, whole + 1};
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        assert_int_equal(ftruncate(layer.fd, sizes[i]), 0);
        assert_int_equal(pages_map(back, layer.fd, &layer.map, true, &err), -EBADMSG);
        assert_non_null(strstr(err.text, "cut off"));
        if (sizes[i] < whole)
            assert_int_equal(pages_verify(layer.fd, &layer.map, NULL, &err), -EBADMSG);
    }
    for (unsigned page = 0; page < PAGES; page++)
        assert_int_equal(*page_at(back, page), 0);
    assert_int_equal(pages_map(back, -1, &layer.map, true, &err), -EBADF);
    mem_free(mem);
    mem_free(back);
    layer_free(&layer);
}

static void verifying_can_be_stopped(void **state)
{
    (void)state;
    struct mem *mem = mem_made();
    _Atomic bool stop = true;
    fill_some(mem);
    struct layer layer = save(mem, PAGES_ALL, -1);
    struct err err = {0};
    assert_int_equal(pages_verify(layer.fd, &layer.map, &stop, &err), -ECANCELED);
    stop = false;
    assert_int_equal(pages_verify(layer.fd, &layer.map, &stop, &err), 0);
    mem_free(mem);
    layer_free(&layer);
}

/* Of another machine, cut off, with bits behind the last page. */
static void maps_from_outside_are_bounded(void **state)
{
    (void)state;
    struct mem *mem = mem_made();
    struct page_map map, other;
    struct record saved, loaded;
    struct err err = {0};
    assert_int_equal(page_map_init(&map, mem, &err), 0);
    assert_int_equal(map.pages, PAGES);
    record_save(&saved, 1);
    page_map_state(&map, &saved);
    assert_int_equal(saved.size, 8 + (PAGES + 7) / 8 + 4 * ((PAGES + 63) / 64));
    for (size_t size = 0; size < saved.size; size += 1 + size / 8) {
        uint8_t *cut = malloc(size + 1);
        memcpy(cut, saved.bytes, size);
        record_load(&loaded, cut, size, 1);
        page_map_state(&map, &loaded);
        assert_false(record_ended(&loaded));
        free(cut);
    }
    memset(saved.bytes + 8, 0xff, (PAGES + 7) / 8);
    record_load(&loaded, saved.bytes, saved.size, 1);
    page_map_state(&map, &loaded);
    assert_true(record_ended(&loaded));
    assert_int_equal(page_map_count(&map), PAGES);

    assert_int_equal(mem_add(mem, GIB(5), MEM_PAGE_SIZE, false, NULL), 0);
    assert_int_equal(page_map_init(&other, mem, &err), 0);
    record_load(&loaded, saved.bytes, saved.size, 1);
    page_map_state(&other, &loaded);
    assert_false(record_ended(&loaded));
    assert_non_null(strstr(loaded.why, "another amount of memory"));
    assert_int_equal(page_map_count(&other), 0);
    record_free(&saved);
    page_map_free(&map);
    page_map_free(&other);
    mem_free(mem);
}

static void a_file_that_takes_nothing_is_an_error(void **state)
{
    (void)state;
    struct mem *mem = mem_made();
    struct page_map map;
    struct err err = {0};
    _cleanup_fd_ int fd = memfd_create("memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(fd, (off_t)PAGES * MEM_PAGE_SIZE), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
    page_fill(mem, 3, 1);
    assert_int_equal(page_map_init(&map, mem, &err), 0);
    assert_int_equal(pages_save(mem, fd, -1, PAGES_ALL, &map, &err), -EPERM);
    page_map_free(&map);
    mem_free(mem);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_pages_are_saved_with_a_pagemap),
        cmocka_unit_test(all_pages_are_saved_without_a_pagemap),
        cmocka_unit_test(saving_touches_nothing),
        cmocka_unit_test(zeros_are_holes),
        cmocka_unit_test(marked_pages_are_saved_zeros_included),
        cmocka_unit_test(private_pages_are_those_that_were_written_to),
        cmocka_unit_test(private_pages_need_a_pagemap),
        cmocka_unit_test(mapped_pages_are_part_of_a_whole_snapshot),
        cmocka_unit_test(chains_come_back),
        cmocka_unit_test(many_runs_come_back),
        cmocka_unit_test(every_flipped_page_is_found),
        cmocka_unit_test(pages_that_changed_places_are_found),
        cmocka_unit_test(cut_and_grown_files_are_refused),
        cmocka_unit_test(verifying_can_be_stopped),
        cmocka_unit_test(maps_from_outside_are_bounded),
        cmocka_unit_test(a_file_that_takes_nothing_is_an_error),
    };
    return cmocka_run_group_tests_name("snapshot memory", tests, NULL, NULL);
}
