#include "base/bytes.h"
#include "place/balance.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { AT_EASE = 0, SO_SO = 50, SUFFERING = 500 };

static void repeat(uint64_t capacity, struct balance_guest *guests, size_t count, int times)
{
    for (int i = 0; i < times; i++)
        balance(capacity, guests, count);
}

static void memory_moves_from_idle_to_suffering(void **state)
{
    struct balance_guest guests[] = {
        {.guarantee = MIB(512), .limit = GIB(4), .used = MIB(800), .target = GIB(4)},
        {.guarantee = MIB(512),
         .limit = GIB(6),
         .used = GIB(4),
         .pressure = SUFFERING,
         .target = GIB(4)},
    };
    /* At once: what suffers does not wait for what is given back little by little. */
    balance(GIB(8), guests, 2);
    assert_int_equal(guests[1].target, GIB(5) + 1);
    assert_int_equal(guests[0].target, GIB(3) - 1);
    repeat(GIB(8), guests, 2, 20);
    assert_int_equal(guests[1].target, GIB(6));
    assert_true(guests[0].target >= MIB(800) && guests[0].target <= GIB(2));
}

static void idle_guests_give_back(void **state)
{
    struct balance_guest guest = {.limit = GIB(4), .used = MIB(100), .target = GIB(4)};
    uint64_t before = guest.target;
    balance(GIB(8), &guest, 1);
    assert_true(guest.target < before && guest.target >= before - before / 8);
    repeat(GIB(8), &guest, 1, 60);
    assert_true(guest.target >= MIB(100) && guest.target <= MIB(130));
    /* But never below what is guaranteed. */
    guest.guarantee = GIB(1);
    repeat(GIB(8), &guest, 1, 60);
    assert_int_equal(guest.target, GIB(1));
}

static void between_the_marks_nothing_moves(void **state)
{
    struct balance_guest guest = {
        .limit = GIB(4), .used = MIB(100), .pressure = SO_SO, .target = GIB(2)};
    balance(GIB(8), &guest, 1);
    assert_int_equal(guest.target, GIB(2));
    /* Nor for a little: an eighth of slack that has become a tenth. */
    guest.pressure = AT_EASE;
    guest.used = GIB(2) - GIB(2) / 9;
    balance(GIB(8), &guest, 1);
    assert_int_equal(guest.target, GIB(2));
}

static void scarcity_is_shared(void **state)
{
    struct balance_guest guests[] = {
        {.limit = 1000, .used = 900, .target = 500},
        {.limit = 1000, .used = 900, .target = 900},
        {.limit = 1000, .used = 100, .target = 500},
        {.guarantee = 300, .limit = 300, .used = 10, .target = 0},
    };
    balance(1000, guests, 4);
    /* 300 are guaranteed; of 700 the small one gets all that it uses, the large ones half each. */
    assert_int_equal(guests[3].target, 300);
    assert_int_equal(guests[2].target, 100);
    assert_int_equal(guests[0].target, 300);
    assert_int_equal(guests[1].target, 300);
    /* One cannot be halved. */
    balance(1001, guests, 4);
    assert_int_equal(guests[0].target + guests[1].target, 601);
}

static void guarantees_outlive_capacity(void **state)
{
    struct balance_guest guests[] = {
        {.guarantee = 600, .limit = 600, .used = 600, .target = 600},
        {.guarantee = 600, .limit = 900, .used = 900, .pressure = SUFFERING, .target = 900},
    };
    balance(1000, guests, 2);
    assert_int_equal(guests[0].target, 600);
    assert_int_equal(guests[1].target, 600);
    balance(0, guests, 2);
    assert_int_equal(guests[0].target, 600);
    balance(0, guests, 0);
}

static void knobs(void **state)
{
    assert_int_equal(balance_cpu_weight(4000, 4000), 10000);
    assert_int_equal(balance_cpu_weight(1000, 4000), 2500);
    assert_int_equal(balance_cpu_weight(0, 4000), 1);
    assert_int_equal(balance_cpu_weight(1, 128000), 1);
    assert_int_equal(balance_cpu_weight(UINT64_MAX, 1), 10000);
    assert_int_equal(balance_cpu_weight(1, 0), 1);
    assert_int_equal(balance_cpu_shares(100), 1024);
    assert_int_equal(balance_cpu_shares(1), 10);
    assert_int_equal(balance_cpu_shares(0), 2);
    assert_int_equal(balance_cpu_shares(10000), 102400);
    assert_int_equal(balance_cpu_quota(1500), 150000);
    assert_int_equal(balance_cpu_quota(1), 1000);
    assert_true(balance_cpu_quota(UINT64_MAX) == UINT64_MAX);
}

static uint64_t next(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

enum { GUESTS = 12 };

static size_t make_host(uint64_t *seed, uint64_t *ret_capacity, struct balance_guest *guests)
{
    /* From a handful of units to nearly all that a number holds. */
    uint64_t scale = UINT64_C(1) << (4 + next(seed) % 60);
    size_t count = 1 + next(seed) % GUESTS;
    uint64_t left = *ret_capacity = scale - 1;
    for (size_t i = 0; i < count; i++) {
        uint64_t guarantee = next(seed) % 3 ? next(seed) % (left / 2 + 1) : 0;
        uint64_t limit = guarantee + next(seed) % (scale - guarantee);
        static const uint32_t pressures[] = {0, 19, 20, 99, 100, 1000};
        left -= guarantee;
        guests[i] =
            (struct balance_guest){.guarantee = guarantee,
                                   .limit = next(seed) % 5 ? limit : guarantee,
                                   .used = next(seed) % 10 ? next(seed) % scale : next(seed),
                                   .pressure = pressures[next(seed) % ARRAY_LEN(pressures)],
                                   .target = next(seed) % 10 ? next(seed) % scale : next(seed)};
    }
    return count;
}

static void check_invariants(uint64_t capacity, const struct balance_guest *guests, size_t count)
{
    unsigned __int128 sum = 0;
    bool cut = false, slack = false;
    for (size_t i = 0; i < count; i++) {
        const struct balance_guest *guest = &guests[i];
        assert_true(guest->target >= guest->guarantee && guest->target <= guest->limit);
        sum += guest->target;
        if (guest->pressure >= BALANCE_PRESSURE_HIGH)
            cut |= guest->target < guest->wish;
        else
            slack |= guest->target > max(guest->guarantee, guest->used);
    }
    assert_true(sum <= capacity);
    assert_false(cut && slack);
}

static void random_hosts_settle(void **state)
{
    enum { HOSTS = 600, ROUNDS = 400, STILL_ROUNDS = 5 };
    uint64_t seed = 0xba1a9ce;
    unsigned moved = 0;
    for (int host = 0; host < HOSTS; host++) {
        struct balance_guest guests[GUESTS], again[GUESTS], before[GUESTS];
        uint64_t capacity;
        size_t count = make_host(&seed, &capacity, guests);
        memcpy(again, guests, sizeof guests);
        for (int round = 0; round < ROUNDS; round++) {
            memcpy(before, guests, sizeof guests);
            balance(capacity, guests, count);
            check_invariants(capacity, guests, count);
            bool same = true;
            for (size_t i = 0; i < count; i++)
                same &= guests[i].target == before[i].target;
            moved += !same;
            if (round >= ROUNDS - STILL_ROUNDS)
                assert_true(same);
            if (same)
                round = max(round, ROUNDS - STILL_ROUNDS - 1);
        }
        balance(capacity, again, count);
        balance(capacity, again, count);
        repeat(capacity, again, count, ROUNDS);
        for (size_t i = 0; i < count; i++)
            assert_true(again[i].target == guests[i].target);
    }
    assert_true(moved > HOSTS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_moves_from_idle_to_suffering),
        cmocka_unit_test(idle_guests_give_back),
        cmocka_unit_test(between_the_marks_nothing_moves),
        cmocka_unit_test(scarcity_is_shared),
        cmocka_unit_test(guarantees_outlive_capacity),
        cmocka_unit_test(knobs),
        cmocka_unit_test(random_hosts_settle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
