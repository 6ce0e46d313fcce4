/* How many requests and bytes a second the block device lets through. */
#include "virtio/blk_limit.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void the_bucket_counts(void **state)
{
    (void)state;
    struct blk_limit limit;
    blk_limit_init(&limit, 1000, 5, 0, 0);
    uint64_t now = UINT64_C(1000000000000);
    int at_once = 0;
    while (blk_limit_wait_at(&limit, now) == 0 && at_once < 100) {
        blk_limit_take_at(&limit, now, 1 << 30);
        at_once++;
    }
    assert_int_equal(at_once, 6);
    assert_int_equal(blk_limit_wait_at(&limit, now), 1000000);
    assert_int_equal(blk_limit_wait_at(&limit, now + 1000000), 0);
    blk_limit_fini(&limit);
    /* One that takes more than there is makes the next wait. */
    blk_limit_init(&limit, 0, 0, 1000, 1000);
    blk_limit_take_at(&limit, now, 10000);
    assert_int_equal(blk_limit_wait_at(&limit, now), UINT64_C(9000000000));
    blk_limit_take_at(&limit, now, UINT64_MAX);
    assert_true(blk_limit_wait_at(&limit, now) > 0);
    blk_limit_fini(&limit);
    blk_limit_init(&limit, 0, 0, 0, 0);
    blk_limit_take_at(&limit, now, UINT64_MAX);
    assert_int_equal(blk_limit_wait_at(&limit, now), 0);
    blk_limit_fini(&limit);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_bucket_counts),
    };
    return cmocka_run_group_tests_name("blk_limit", tests, NULL, NULL);
}
