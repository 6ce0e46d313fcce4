#include "mem/mem.h"

#include "base/bytes.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#include <cmocka.h>

static struct mem *two_regions(void)
{
    struct mem *mem = mem_new();
    assert_int_equal(mem_add(mem, GIB(4), MIB(1), false, NULL), 0);
    assert_int_equal(mem_add(mem, 0, MIB(2), false, NULL), 0);
    return mem;
}

static void finds_only_what_is_inside_one_region(void **state)
{
    (void)state;
    struct mem *mem = two_regions();
    assert_non_null(mem_at(mem, 0, MIB(2), true));
    assert_null(mem_at(mem, 0, MIB(2) + 1, true));
    assert_null(mem_at(mem, MIB(2), 1, false));
    assert_non_null(mem_at(mem, GIB(4) + MIB(1) - 1, 1, true));
    assert_null(mem_at(mem, GIB(4) + MIB(1) - 1, 2, true));
    assert_null(mem_at(mem, UINT64_MAX, 2, false));
    assert_null(mem_at(mem, 16, UINT64_MAX, false));
    assert_null(mem_at(mem, UINT64_MAX - 3, UINT64_MAX, false));
    assert_int_equal(mem_size(mem), MIB(3));
    mem_free(mem);
}

static void huge_pages_of_the_host_are_the_guests(void **state)
{
    (void)state;
    static const struct {
        uint64_t start, size;
    } places[] = {{0, MIB(2)}, {MIB(4) + 0xc0000, MIB(8) - 0xc0000}, {GIB(4) + 0x1000, MIB(3)}};
    struct mem *mem = mem_new();
    struct err err = {0};
    for (unsigned i = 0; i < ARRAY_LEN(places); i++) {
        assert_int_equal(mem_add(mem, places[i].start, places[i].size, false, &err), 0);
        uint8_t *host = mem_at(mem, places[i].start, places[i].size, true);
        assert_non_null(host);
        assert_int_equal((uintptr_t)host % MIB(2), places[i].start % MIB(2));
        host[0] = host[places[i].size - 1] = 1; /* all of it is there */
    }
    mem_free(mem);
}

static void refuses_overlap_and_odd_sizes(void **state)
{
    (void)state;
    struct mem *mem = two_regions();
    struct err err = {0};
    assert_int_equal(mem_add(mem, MIB(1), MIB(8), false, &err), -EEXIST);
    assert_int_equal(mem_add(mem, GIB(4) - MIB(1), MIB(2), false, &err), -EEXIST);
    assert_int_equal(mem_add(mem, GIB(8), 100, false, &err), -EINVAL);
    assert_int_equal(mem_add(mem, GIB(8), 0, false, &err), -EINVAL);
    assert_int_equal(mem_add(mem, UINT64_MAX - 4095, 8192, false, &err), -EINVAL);
    mem_free(mem);
}

static void read_only_memory_is_not_written(void **state)
{
    (void)state;
    struct mem *mem = mem_new();
    assert_int_equal(mem_add(mem, 0, 4096, true, NULL), 0);
    uint32_t value = 7;
    assert_int_equal(mem_write(mem, 0, &value, sizeof value), -EFAULT);
    assert_null(mem_at(mem, 0, 4, true));
    memcpy(mem_at_load(mem, 0, 4), &value, sizeof value);
    uint32_t back = 0;
    assert_int_equal(mem_read(mem, 0, &back, sizeof back), 0);
    assert_int_equal(back, 7);
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

static void writes_are_logged_and_observed(void **state)
{
    (void)state;
    struct mem *mem = two_regions();
    struct seen seen = {0};
    mem_observe_code(mem, see, &seen);
    struct mem_region *region = &mem->regions[0];
    char bytes[5000] = {1};
    assert_int_equal(mem_write(mem, 4090, bytes, sizeof bytes), 0);
    assert_int_equal(region->marks[0] | region->marks[1] | region->marks[2], 0);
    assert_int_equal(seen.calls, 0);
    mem->dirty_log = true;
    region->marks[2] |= MEM_PAGE_CODE;
    assert_int_equal(mem_write(mem, 4090, bytes, sizeof bytes), 0);
    assert_int_equal(region->marks[0], MEM_PAGE_DIRTY);
    assert_int_equal(region->marks[1], MEM_PAGE_DIRTY);
    assert_int_equal(region->marks[2], MEM_PAGE_DIRTY | MEM_PAGE_CODE);
    assert_int_equal(region->marks[3], 0);
    assert_int_equal(seen.calls, 1);
    assert_int_equal(seen.gpa, 4090);
    assert_int_equal(seen.size, 5000);
    mem_free(mem);
}

static void file_pages_are_noted_whole(void **state)
{
    (void)state;
    struct mem *mem = two_regions();
    struct mem_region *region = &mem->regions[0];
    mem_note_file(mem, 4090, 10); /* the end of one page and the start of the next */
    assert_int_equal(region->marks[0], MEM_PAGE_FILE);
    assert_int_equal(region->marks[1], MEM_PAGE_FILE);
    assert_int_equal(region->marks[2], 0);
    mem_note_file(mem, UINT64_C(1) << 60, 10); /* nothing there: nothing noted */
    mem_free(mem);
}

static bool resident(const struct mem *mem, uint64_t gpa)
{
    unsigned char page;
    assert_int_equal(mincore(mem_at(mem, gpa, MEM_PAGE_SIZE, false), MEM_PAGE_SIZE, &page), 0);
    return page & 1;
}

static void what_is_discarded_is_the_hosts_again(void **state)
{
    (void)state;
    enum { PAGES = 16 };
    struct mem *mem = two_regions();
    struct seen discarded = {0}, code = {0};
    mem_observe_discard(mem, see, &discarded);
    mem_observe_code(mem, see, &code);
    mem_keep_small(mem, true);
    uint8_t *bytes = mem_at(mem, 0, PAGES * MEM_PAGE_SIZE, true);
    memset(bytes, 0xaa, PAGES * MEM_PAGE_SIZE);
    mem->dirty_log = true;
    mem->regions[0].marks[5] |= MEM_PAGE_CODE;

    /* From the middle of page 3 to the middle of page 8: only 4 to 7 are whole. */
    assert_int_equal(mem_discard(mem, 3 * MEM_PAGE_SIZE + 1, 5 * MEM_PAGE_SIZE), 0);
    for (unsigned i = 0; i < PAGES; i++) {
        bool gone = i >= 4 && i < 8;
        assert_int_equal(resident(mem, i * MEM_PAGE_SIZE), !gone);
        assert_int_equal(mem->regions[0].marks[i] & MEM_PAGE_DIRTY, gone ? MEM_PAGE_DIRTY : 0);
    }
    for (unsigned i = 0; i < PAGES; i++)
        assert_int_equal(bytes[i * MEM_PAGE_SIZE + 17], i >= 4 && i < 8 ? 0 : 0xaa);
    assert_int_equal(discarded.calls, 1);
    assert_int_equal(discarded.gpa, 4 * MEM_PAGE_SIZE);
    assert_int_equal(discarded.size, 4 * MEM_PAGE_SIZE);
    assert_int_equal(code.calls, 1);

    assert_int_equal(mem_discard(mem, 100, MEM_PAGE_SIZE), 0); /* no page is whole */
    assert_int_equal(bytes[200], 0xaa);
    assert_int_equal(mem_discard(mem, MIB(2) - MEM_PAGE_SIZE, 2 * MEM_PAGE_SIZE), -EFAULT);
    assert_int_equal(mem_discard(mem, UINT64_MAX - 8191, 8192), -EFAULT);
    assert_int_equal(discarded.calls, 1);
    assert_int_equal(bytes[MIB(2) - 1], 0);
    mem_free(mem);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_only_what_is_inside_one_region),
        cmocka_unit_test(huge_pages_of_the_host_are_the_guests),
        cmocka_unit_test(refuses_overlap_and_odd_sizes),
        cmocka_unit_test(read_only_memory_is_not_written),
        cmocka_unit_test(writes_are_logged_and_observed),
        cmocka_unit_test(file_pages_are_noted_whole),
        cmocka_unit_test(what_is_discarded_is_the_hosts_again),
    };
    return cmocka_run_group_tests_name("mem", tests, NULL, NULL);
}
