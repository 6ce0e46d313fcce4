#include "place/balance.h"

#include "base/bytes.h"

#include <assert.h>

enum {
    SLACK = 8,     /* parts of: what is used */
    GROWTH = 4,    /* the larger of use and target */
    GIVE_BACK = 8, /* the target */
    STILL = 16,    /* the target */
};

static uint64_t add(uint64_t a, uint64_t b)
{
    return __builtin_add_overflow(a, b, &a) ? UINT64_MAX : a;
}

static uint64_t between(uint64_t value, uint64_t low, uint64_t high)
{
    return value < low ? low : value > high ? high : value;
}

static bool suffers(const struct balance_guest *guest)
{
    return guest->pressure >= BALANCE_PRESSURE_HIGH;
}

/* What it uses, as far as it may. */
static uint64_t base(const struct balance_guest *guest)
{
    return between(guest->used, guest->guarantee, guest->limit);
}

/* Step 1. */
static uint64_t wish_of(const struct balance_guest *guest)
{
    uint64_t target = between(guest->target, guest->guarantee, guest->limit);
    uint64_t wish = target;
    if (suffers(guest)) {
        uint64_t least = max(guest->used, target);
        /* At least one more: a quarter of little is nothing. */
        wish = add(least, least / GROWTH + 1);
    } else if (guest->pressure < BALANCE_PRESSURE_LOW) {
        uint64_t ease = add(guest->used, guest->used / SLACK);
        uint64_t change = ease > target ? ease - target : target - ease;
        if (change > target / STILL)
            wish = max(ease, target - target / GIVE_BACK);
    }
    return max(between(wish, guest->guarantee, guest->limit), base(guest));
}

enum row {
    ROW_USED,
    ROW_GROWTH,
    ROW_SLACK,
    ROW_MAX,
};

/* What a guest may still get in a row of step 2, beyond those before. */
static uint64_t wanted(const struct balance_guest *guest, enum row row)
{
    switch (row) {
    case ROW_USED: return base(guest) - guest->guarantee;
    case ROW_GROWTH: return suffers(guest) ? guest->wish - base(guest) : 0;
    case ROW_SLACK: return suffers(guest) ? 0 : guest->wish - base(guest);
    default: assert(false); return 0;
    }
}

/* What all get who want no more than `level`, and those who do get that. */
static uint64_t sum_at(const struct balance_guest *guests, size_t count, enum row row,
                       uint64_t level)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum = add(sum, min(wanted(&guests[i], row), level));
    return sum;
}

/* Deals out one row; what is left after it. */
static uint64_t deal(uint64_t rest, struct balance_guest *guests, size_t count, enum row row)
{
    /* The highest level that `rest` is enough for; 64 steps at most. */
    uint64_t level = 0;
    if (sum_at(guests, count, row, UINT64_MAX) <= rest)
        level = UINT64_MAX;
    else
        for (int bit = 63; bit >= 0; bit--)
            if (sum_at(guests, count, row, level | UINT64_C(1) << bit) <= rest)
                level |= UINT64_C(1) << bit;
    rest -= sum_at(guests, count, row, level);
    for (size_t i = 0; i < count; i++) {
        uint64_t more = wanted(&guests[i], row);
        uint64_t got = min(more, level);
        /* Fewer than there are guests: one for each, from the first on. */
        if (got < more && rest > 0) {
            got++;
            rest--;
        }
        guests[i].target += got;
    }
    return rest;
}

void balance(uint64_t capacity, struct balance_guest *guests, size_t count)
{
    uint64_t guarantees = 0;
    for (size_t i = 0; i < count; i++) {
        assert(guests[i].guarantee <= guests[i].limit);
        guests[i].wish = wish_of(&guests[i]);
        guests[i].target = guests[i].guarantee;
        guarantees = add(guarantees, guests[i].guarantee);
    }
    uint64_t rest = capacity > guarantees ? capacity - guarantees : 0;
    for (unsigned row = 0; row < ROW_MAX; row++)
        rest = deal(rest, guests, count, row);
}

unsigned balance_cpu_weight(uint64_t target, uint64_t capacity)
{
    if (capacity == 0)
        return 1;
    unsigned __int128 weight = ((unsigned __int128)target * 10000 + capacity - 1) / capacity;
    return weight < 1 ? 1 : weight > 10000 ? 10000 : (unsigned)weight;
}

unsigned balance_cpu_shares(unsigned weight)
{
    uint64_t shares = (uint64_t)weight * 1024 / 100;
    return (unsigned)between(shares, 2, 262144);
}

uint64_t balance_cpu_quota(uint64_t limit)
{
    uint64_t quota;
    if (__builtin_mul_overflow(limit, BALANCE_CPU_PERIOD / 1000, &quota))
        quota = UINT64_MAX;
    return max(quota, (uint64_t)1000);
}
