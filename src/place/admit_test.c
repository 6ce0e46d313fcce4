#include "base/bytes.h"
#include "place/admit.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const struct admit_pool pools[] = {{"default", GIB(100)}, {"fast", GIB(10)}};

static struct admit_capacity host(void)
{
    return (struct admit_capacity){.cpu = 4000,
                                   .memory = GIB(8),
                                   .pools = pools,
                                   .pool_count = ARRAY_LEN(pools),
                                   .cpu_ratio = 2000,
                                   .memory_ratio = ADMIT_RATIO_ONE,
                                   .disk_ratio = ADMIT_RATIO_ONE};
}

static struct admit_guest fixed(uint64_t cpu, uint64_t memory)
{
    return (struct admit_guest){.mode = ADMIT_FIXED, .cpu = {cpu, 0, 0}, .memory = {memory, 0, 0}};
}

static void refuse(const struct admit_capacity *capacity, const struct admit_guest *others,
                   size_t count, const struct admit_guest *guest, int code, const char *text)
{
    struct err err = {0};
    assert_int_equal(admit(capacity, others, count, guest, &err), code);
    assert_string_equal(err.text, text);
}

static void the_message_has_the_sum(void **state)
{
    struct admit_capacity capacity = host();
    struct admit_guest others[] = {fixed(1000, GIB(1)), fixed(1000, GIB(2))};
    struct admit_guest guest = fixed(1000, GIB(5));
    assert_int_equal(admit(&capacity, others, 2, &guest, NULL), 0);
    guest.memory.request = GIB(6);
    refuse(&capacity, others, 2, &guest, -ENOSPC,
           "memory: 6.0 GiB asked for + 3.0 GiB promised > 8.0 GiB x 1.0");
    /* In GiB it would look as if it fitted. */
    guest.memory.request = GIB(5) + 1;
    refuse(&capacity, others, 2, &guest, -ENOSPC,
           "memory (bytes): 5368709121 asked for + 3221225472 promised > 8589934592 x 1.0");
    guest.memory.request = GIB(5) + MIB(3);
    refuse(&capacity, others, 2, &guest, -ENOSPC,
           "memory: 5123.0 MiB asked for + 3072.0 MiB promised > 8192.0 MiB x 1.0");
    guest =
        (struct admit_guest){.mode = ADMIT_DYNAMIC, .cpu = {6500, 0, 0}, .memory = {GIB(1), 0, 0}};
    refuse(&capacity, others, 2, &guest, -ENOSPC, "CPUs: 6.5 asked for + 2.0 promised > 4.0 x 2.0");
    guest.cpu.request = 6001;
    refuse(&capacity, others, 2, &guest, -ENOSPC,
           "CPUs (thousandths): 6001 asked for + 2000 promised > 4000 x 2.0");
    capacity.cpu_ratio = 1255;
    refuse(&capacity, others, 2, &guest, -ENOSPC,
           "CPUs: 6.0 asked for + 2.0 promised > 4.0 x 1.255");
}

static void what_does_not_exist_is_not_guaranteed(void **state)
{
    struct admit_capacity capacity = host();
    struct admit_guest others[] = {fixed(3000, GIB(1))};
    struct admit_guest guest = fixed(1500, GIB(1));
    refuse(&capacity, others, 1, &guest, -ENOSPC,
           "CPUs: 1.5 to be guaranteed + 3.0 guaranteed > 4.0 x 1.0");
    /* The same request fits where less of it is guaranteed. */
    guest.mode = ADMIT_MIXED;
    guest.cpu.guarantee = 1000;
    guest.memory.guarantee = GIB(1);
    assert_int_equal(admit(&capacity, others, 1, &guest, NULL), 0);
    guest.mode = ADMIT_DYNAMIC;
    guest.cpu.guarantee = guest.memory.guarantee = 0;
    assert_int_equal(admit(&capacity, others, 1, &guest, NULL), 0);
    /* A ratio below 1 keeps room from guarantees, too. */
    capacity.cpu_ratio = 500;
    guest = fixed(2001, GIB(1));
    refuse(&capacity, NULL, 0, &guest, -ENOSPC,
           "CPUs (thousandths): 2001 asked for + 0 promised > 4000 x 0.5");
}

static void pools_are_summed(void **state)
{
    struct admit_capacity capacity = host();
    const struct admit_disk there[] = {{"fast", GIB(6)}, {"default", GIB(99)}, {"gone", GIB(1)}};
    const struct admit_disk two[] = {{"fast", GIB(2)}, {"fast", GIB(3)}};
    const struct admit_disk unknown[] = {{"slow", 1}};
    struct admit_guest others[] = {fixed(100, GIB(1))};
    struct admit_guest guest = fixed(100, GIB(1));
    others[0].disks = there;
    others[0].disk_count = ARRAY_LEN(there);
    guest.disks = two;
    guest.disk_count = 1;
    assert_int_equal(admit(&capacity, others, 1, &guest, NULL), 0);
    guest.disk_count = 2;
    refuse(&capacity, others, 1, &guest, -ENOSPC,
           "pool 'fast': 5.0 GiB asked for + 6.0 GiB promised > 10.0 GiB x 1.0");
    capacity.disk_ratio = 1100;
    assert_int_equal(admit(&capacity, others, 1, &guest, NULL), 0);
    guest.disks = unknown;
    guest.disk_count = 1;
    refuse(&capacity, others, 1, &guest, -ENOENT, "there is no pool 'slow'");
}

static void modes_are_checked(void **state)
{
    static const struct {
        enum admit_mode mode;
        struct admit_share share, full;
        const char *why; /* NULL: right */
    } rows[] = {
        {ADMIT_FIXED, {5, 0, 0}, {5, 5, 5}, NULL},
        {ADMIT_FIXED, {5, 5, 5}, {5, 5, 5}, NULL},
        {ADMIT_FIXED, {5, 4, 0}, {0}, "one number"},
        {ADMIT_FIXED, {5, 0, 6}, {0}, "one number"},
        {ADMIT_DYNAMIC, {5, 0, 0}, {5, 0, 5}, NULL},
        {ADMIT_DYNAMIC, {5, 0, 9}, {5, 0, 9}, NULL},
        {ADMIT_DYNAMIC, {5, 1, 9}, {0}, "say mixed"},
        {ADMIT_DYNAMIC, {5, 0, 4}, {0}, "does not hold"},
        {ADMIT_MIXED, {5, 2, 9}, {5, 2, 9}, NULL},
        {ADMIT_MIXED, {5, 0, 9}, {0}, "needs a guarantee"},
        {ADMIT_MIXED, {5, 6, 9}, {0}, "does not hold"},
        {ADMIT_MIXED, {0, 0, 9}, {0}, "more than nothing"},
        {ADMIT_MODE_MAX, {5, 5, 5}, {0}, "no such allocation"},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct admit_share full;
        struct err err = {0};
        int r = admit_share_resolve(rows[i].mode, &rows[i].share, "memory", &full, &err);
        assert_int_equal(r, rows[i].why ? -EINVAL : 0);
        if (rows[i].why)
            assert_non_null(strstr(err.text, rows[i].why));
        else
            assert_memory_equal(&full, &rows[i].full, sizeof full);
    }
    for (unsigned i = 0; i < ADMIT_MODE_MAX; i++) {
        enum admit_mode mode;
        assert_int_equal(admit_mode_parse(admit_mode_name(i), &mode, NULL), 0);
        assert_int_equal(mode, i);
    }
    enum admit_mode mode;
    assert_int_equal(admit_mode_parse("static", &mode, NULL), -EINVAL);
}

static void huge_numbers_do_not_fit(void **state)
{
    struct admit_capacity capacity = host();
    struct admit_guest others[] = {fixed(1000, GIB(1)), fixed(1000, UINT64_MAX),
                                   fixed(1000, UINT64_MAX)};
    struct admit_guest guest = fixed(1000, UINT64_MAX);
    assert_int_equal(admit(&capacity, others, 1, &guest, NULL), -ENOSPC);
    guest.memory.request = 1;
    assert_int_equal(admit(&capacity, others, 3, &guest, NULL), -ENOSPC);
    /* A capacity that the ratio carries over the top is merely large. */
    capacity.memory = UINT64_MAX - 1;
    capacity.memory_ratio = ADMIT_RATIO_MAX;
    guest.memory.request = GIB(1);
    assert_int_equal(admit(&capacity, others, 1, &guest, NULL), 0);
    assert_int_equal(admit(&capacity, others, 2, &guest, NULL), -ENOSPC);
    capacity.cpu_ratio = 0;
    assert_int_equal(admit(&capacity, NULL, 0, &guest, NULL), -EINVAL);
    capacity.cpu_ratio = ADMIT_RATIO_MAX + 1;
    assert_int_equal(admit(&capacity, NULL, 0, &guest, NULL), -EINVAL);
}

static uint64_t next(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static struct admit_share random_share(uint64_t *seed, enum admit_mode mode, uint64_t most)
{
    struct admit_share share = {.request = 1 + next(seed) % most};
    if (mode == ADMIT_MIXED)
        share.guarantee = 1 + next(seed) % share.request;
    if (mode != ADMIT_FIXED && next(seed) % 2)
        share.limit = share.request + next(seed) % most;
    return share;
}

static uint64_t guaranteed(enum admit_mode mode, const struct admit_share *share)
{
    return mode == ADMIT_FIXED ? share->request : share->guarantee;
}

/* Guests come until many were refused: what is admitted keeps both sums, and what was refused would
 * not have. */
static void random_hosts_keep_their_word(void **state)
{
    enum { ROUNDS = 300, TRIES = 40 };
    uint64_t seed = 0x10d6e;
    unsigned admitted = 0, refused = 0;
    for (int round = 0; round < ROUNDS; round++) {
        struct admit_capacity capacity = {.cpu = 1 + next(&seed) % 64000,
                                          .memory = 1 + next(&seed) % GIB(64),
                                          .cpu_ratio = 1 + (uint32_t)(next(&seed) % 4000),
                                          .memory_ratio = 1 + (uint32_t)(next(&seed) % 2000),
                                          .disk_ratio = ADMIT_RATIO_ONE};
        struct admit_guest guests[TRIES];
        size_t count = 0;
        for (int i = 0; i < TRIES; i++) {
            enum admit_mode mode = next(&seed) % ADMIT_MODE_MAX;
            struct admit_guest guest = {.mode = mode,
                                        .cpu = random_share(&seed, mode, capacity.cpu / 4 + 1),
                                        .memory =
                                            random_share(&seed, mode, capacity.memory / 4 + 1)};
            guests[count] = guest;
            unsigned __int128 cpu = 0, memory = 0, sure_cpu = 0, sure_memory = 0;
            for (size_t j = 0; j <= count; j++) {
                cpu += guests[j].cpu.request;
                memory += guests[j].memory.request;
                sure_cpu += guaranteed(guests[j].mode, &guests[j].cpu);
                sure_memory += guaranteed(guests[j].mode, &guests[j].memory);
            }
            bool fits = cpu * 1000 <= (unsigned __int128)capacity.cpu * capacity.cpu_ratio &&
                        memory * 1000 <= (unsigned __int128)capacity.memory * capacity.memory_ratio;
            bool sure = sure_cpu <= capacity.cpu && sure_memory <= capacity.memory;
            if (mode == ADMIT_DYNAMIC)
                assert_true(sure); /* as it was before */
            int r = admit(&capacity, guests, count, &guest, NULL);
            assert_int_equal(r, fits && sure ? 0 : -ENOSPC);
            admitted += r == 0;
            refused += r < 0;
            count += r == 0;
        }
    }
    assert_true(admitted > 1000 && refused > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_message_has_the_sum),
        cmocka_unit_test(what_does_not_exist_is_not_guaranteed),
        cmocka_unit_test(pools_are_summed),
        cmocka_unit_test(modes_are_checked),
        cmocka_unit_test(huge_numbers_do_not_fit),
        cmocka_unit_test(random_hosts_keep_their_word),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
