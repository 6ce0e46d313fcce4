#include "mem/mem.h"

#include "base/bytes.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_only_what_is_inside_one_region),
        cmocka_unit_test(refuses_overlap_and_odd_sizes),
        cmocka_unit_test(read_only_memory_is_not_written),
        cmocka_unit_test(writes_are_logged_and_observed),
        cmocka_unit_test(file_pages_are_noted_whole),
    };
    return cmocka_run_group_tests_name("mem", tests, NULL, NULL);
}
