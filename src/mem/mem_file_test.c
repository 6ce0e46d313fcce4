/* Guest memory that is a file's: mem_map_file(), mem_clear(). */
#include "base/bytes.h"
#include "base/own.h"
#include "mem/mem.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#include <cmocka.h>

enum { PAGES = 8 };

/* Page n of the file is full of n + 1. */
static int file_new(void)
{
    int fd = memfd_create("pages", MFD_CLOEXEC);
    uint8_t page[MEM_PAGE_SIZE];
    assert_true(fd >= 0);
    for (int i = 0; i < PAGES; i++) {
        memset(page, i + 1, sizeof page);
        assert_int_equal(pwrite(fd, page, sizeof page, i * MEM_PAGE_SIZE), sizeof page);
    }
    return fd;
}

/* PAGES of RAM at 1 MiB, as many of ROM at 2 MiB, all of it 0xee. */
static struct mem *mem_filled(void)
{
    struct mem *mem = mem_new();
    assert_int_equal(mem_add(mem, MIB(1), PAGES * MEM_PAGE_SIZE, false, NULL), 0);
    assert_int_equal(mem_add(mem, MIB(2), PAGES * MEM_PAGE_SIZE, true, NULL), 0);
    memset(mem->regions[0].host, 0xee, mem->regions[0].size);
    memset(mem->regions[1].host, 0xee, mem->regions[1].size);
    return mem;
}

static void check_page(const struct mem *mem, uint64_t gpa, uint8_t value)
{
    const uint8_t *page = mem_at(mem, gpa, MEM_PAGE_SIZE, false);
    for (size_t i = 0; i < MEM_PAGE_SIZE; i++)
        assert_int_equal(page[i], value);
}

static void a_files_pages_are_the_guests(void **state)
{
    (void)state;
    _cleanup_fd_ int fd = file_new();
    struct mem *mem = mem_filled();
    const struct mem_region *ram = &mem->regions[0], *rom = &mem->regions[1];
    assert_int_equal(
        mem_map_file(mem, MIB(1) + 2 * MEM_PAGE_SIZE, 3 * MEM_PAGE_SIZE, fd, MEM_PAGE_SIZE), 0);
    for (unsigned i = 0; i < PAGES; i++) {
        bool mapped = i >= 2 && i < 5;
        check_page(mem, MIB(1) + i * MEM_PAGE_SIZE, mapped ? (uint8_t)i : 0xee);
        assert_int_equal(ram->marks[i], mapped ? MEM_PAGE_FILE : 0);
    }
    /* A snapshot holds ROM as well. */
    assert_int_equal(mem_map_file(mem, MIB(2), MEM_PAGE_SIZE, fd, 7 * MEM_PAGE_SIZE), 0);
    check_page(mem, MIB(2), 8);
    assert_int_equal(rom->marks[0], MEM_PAGE_FILE);
    assert_int_equal(rom->marks[1], 0);
    mem_free(mem);
}

static void what_the_guest_writes_stays_out_of_the_file(void **state)
{
    (void)state;
    _cleanup_fd_ int fd = file_new();
    struct mem *mem = mem_filled();
    uint64_t value = UINT64_MAX;
    uint8_t byte;
    assert_int_equal(mem_map_file(mem, MIB(1), 2 * MEM_PAGE_SIZE, fd, 0), 0);
    assert_int_equal(mem_write(mem, MIB(1) + MEM_PAGE_SIZE - 4, &value, sizeof value), 0);
    for (unsigned at = 0; at < 2 * MEM_PAGE_SIZE; at += 4092) {
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        assert_int_equal(byte, at / MEM_PAGE_SIZE + 1);
    }
    assert_int_equal(*(uint8_t *)mem_at(mem, MIB(1) + MEM_PAGE_SIZE, 1, false), 0xff);
    assert_int_equal(*(uint8_t *)mem_at(mem, MIB(1) + MEM_PAGE_SIZE + 4, 1, false), 2);
    mem_free(mem);
}

static void what_is_no_whole_page_of_one_region_is_refused(void **state)
{
    (void)state;
    _cleanup_fd_ int fd = file_new();
    struct mem *mem = mem_filled();
    const uint64_t page = MEM_PAGE_SIZE, all = PAGES * page;
    const struct {
        uint64_t gpa, size, offset;
    } wrong[] = {
        {MIB(1) + 1, page, 0},
        {MIB(1), page - 1, 0},
        {MIB(1), page, 1},
        {MIB(1), 0, 0},
        {MIB(1), all + page, 0},
        {MIB(1) - page, page, 0},
        {MIB(1) + all - page, 2 * page, 0},
        {0, page, 0},
        {UINT64_MAX - page + 1, page, 0},
        {MIB(1), UINT64_MAX - page + 1, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
        assert_int_equal(mem_map_file(mem, wrong[i].gpa, wrong[i].size, fd, wrong[i].offset),
                         -EFAULT);
    assert_int_equal(mem_map_file(mem, MIB(1), page, -1, 0), -EBADF);
    for (unsigned i = 0; i < PAGES; i++) {
        check_page(mem, MIB(1) + i * page, 0xee);
        assert_int_equal(mem->regions[0].marks[i], 0);
    }
    mem_free(mem);
}

struct seen {
    uint64_t gpa, size;
    int calls;
};

static void see(void *opaque, uint64_t gpa, uint64_t size)
{
    struct seen *seen = opaque;
    *seen = (struct seen){gpa, size, seen->calls + 1};
}

/* After a reset nothing of the file is left, nor does it come back. */
static void cleared_memory_is_zero_and_no_files(void **state)
{
    (void)state;
    _cleanup_fd_ int fd = file_new();
    struct mem *mem = mem_filled();
    struct mem_region *ram = &mem->regions[0];
    struct seen seen = {0};
    mem_observe_code(mem, see, &seen);
    assert_int_equal(mem_map_file(mem, MIB(1), 4 * MEM_PAGE_SIZE, fd, 0), 0);
    ram->host[0] = 0x77; /* one page of the file is private by now */
    ram->marks[6] |= MEM_PAGE_CODE;
    mem->dirty_log = true;
    assert_int_equal(mem_clear(mem), 0);
    for (unsigned i = 0; i < PAGES; i++) {
        check_page(mem, MIB(1) + i * MEM_PAGE_SIZE, 0);
        check_page(mem, MIB(2) + i * MEM_PAGE_SIZE, 0);
        assert_int_equal(ram->marks[i] & MEM_PAGE_FILE, 0);
        assert_int_equal(ram->marks[i] & MEM_PAGE_DIRTY, MEM_PAGE_DIRTY);
    }
    assert_int_equal(seen.calls, 1);
    assert_int_equal(seen.gpa, ram->start);
    assert_int_equal(seen.size, ram->size);
    /* It can be written to, and what is written to stays. */
    uint8_t byte = 0x55;
    assert_int_equal(mem_write(mem, MIB(1) + 5, &byte, 1), 0);
    assert_int_equal(ram->host[5], 0x55);
    assert_int_equal(pread(fd, &byte, 1, 5), 1);
    assert_int_equal(byte, 1);
    mem_free(mem);
}

static void memory_is_given_back_when_it_is_cleared(void **state)
{
    (void)state;
    struct mem *mem = mem_filled();
    unsigned char resident[PAGES] = {0};
    const struct mem_region *ram = &mem->regions[0];
    assert_int_equal(mincore(ram->host, ram->size, resident), 0);
    assert_int_equal(resident[3] & 1, 1);
    assert_int_equal(mem_clear(mem), 0);
    assert_int_equal(mincore(ram->host, ram->size, resident), 0);
    for (unsigned i = 0; i < PAGES; i++)
        assert_int_equal(resident[i] & 1, 0);
    mem_free(mem);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_files_pages_are_the_guests),
        cmocka_unit_test(what_the_guest_writes_stays_out_of_the_file),
        cmocka_unit_test(what_is_no_whole_page_of_one_region_is_refused),
        cmocka_unit_test(cleared_memory_is_zero_and_no_files),
        cmocka_unit_test(memory_is_given_back_when_it_is_cleared),
    };
    return cmocka_run_group_tests_name("mem file", tests, NULL, NULL);
}
