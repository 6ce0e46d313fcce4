#include "virtio/bucket.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static const uint64_t second = 1000000000, now = UINT64_C(1000000000000);

static void so_many_at_once_then_one_by_one(void **state)
{
    struct bucket bucket;
    int at_once = 0;
    bucket_init(&bucket, 1000, 5);
    while (bucket_wait(&bucket, now) == 0 && at_once < 100) {
        bucket_spend(&bucket, now, 1);
        at_once++;
    }
    assert_int_equal(at_once, 6); /* the last one owes */
    assert_int_equal(bucket_wait(&bucket, now), second / 1000);
    assert_int_equal(bucket_wait(&bucket, now + second / 1000), 0);
    /* After a rest it is full, and never fuller. */
    for (at_once = 0; bucket_wait(&bucket, now + 100 * second) == 0 && at_once < 100; at_once++)
        bucket_spend(&bucket, now + 100 * second, 1);
    assert_int_equal(at_once, 6);
    bucket_fini(&bucket);
}

static void what_is_larger_than_the_bucket_passes_and_is_owed(void **state)
{
    struct bucket bucket;
    bucket_init(&bucket, 1000, 500);
    assert_int_equal(bucket_wait(&bucket, now), 0);
    bucket_spend(&bucket, now, 1500);
    assert_int_equal(bucket_wait(&bucket, now), second);
    assert_int_equal(bucket_wait(&bucket, now + second / 4), second - second / 4);
    assert_int_equal(bucket_wait(&bucket, now + second), 0);
    bucket_fini(&bucket);
}

static void a_tenth_of_a_second_is_free_where_nobody_says(void **state)
{
    struct bucket bucket;
    bucket_init(&bucket, 1000, 0);
    bucket_spend(&bucket, now, 100);
    assert_int_equal(bucket_wait(&bucket, now), 0);
    bucket_spend(&bucket, now, 1);
    assert_int_equal(bucket_wait(&bucket, now), second / 1000);
    bucket_fini(&bucket);
}

static void no_number_is_too_large(void **state)
{
    struct bucket bucket;
    bucket_init(&bucket, 1, UINT64_MAX);
    for (unsigned i = 0; i < 20; i++)
        bucket_spend(&bucket, now, UINT64_MAX);
    assert_true(bucket_wait(&bucket, now) > second);
    bucket_fini(&bucket);
    bucket_init(&bucket, UINT64_MAX, 1);
    bucket_spend(&bucket, now, UINT64_MAX);
    assert_int_equal(bucket_wait(&bucket, now), second);
    bucket_fini(&bucket);
    bucket_init(&bucket, 0, 0); /* no limit */
    bucket_spend(&bucket, 0, UINT64_MAX);
    assert_int_equal(bucket_wait(&bucket, 0), 0);
    bucket_fini(&bucket);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(so_many_at_once_then_one_by_one),
        cmocka_unit_test(what_is_larger_than_the_bucket_passes_and_is_owed),
        cmocka_unit_test(a_tenth_of_a_second_is_free_where_nobody_says),
        cmocka_unit_test(no_number_is_too_large),
    };
    return cmocka_run_group_tests_name("bucket", tests, NULL, NULL);
}
