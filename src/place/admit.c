#include "place/admit.h"

#include "base/bytes.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>

static const char *const mode_names[ADMIT_MODE_MAX] = {
    [ADMIT_FIXED] = "fixed", [ADMIT_DYNAMIC] = "dynamic", [ADMIT_MIXED] = "mixed"};

const char *admit_mode_name(enum admit_mode mode)
{
    return (unsigned)mode < ADMIT_MODE_MAX ? mode_names[mode] : NULL;
}

int admit_mode_parse(const char *name, enum admit_mode *ret_mode, struct err *err)
{
    for (unsigned i = 0; i < ADMIT_MODE_MAX; i++)
        if (!strcmp(name, mode_names[i])) {
            *ret_mode = i;
            return 0;
        }
    return err_set(err, -EINVAL, "allocation '%.80s': it is fixed, dynamic or mixed", name);
}

int admit_share_resolve(enum admit_mode mode, const struct admit_share *share, const char *what,
                        struct admit_share *ret_share, struct err *err)
{
    struct admit_share full = *share;
    if ((unsigned)mode >= ADMIT_MODE_MAX)
        return err_set(err, -EINVAL, "%s: there is no such allocation", what);
    if (full.request == 0)
        return err_set(err, -EINVAL, "%s: a guest asks for more than nothing", what);
    if (full.limit == 0)
        full.limit = full.request;
    if (mode == ADMIT_FIXED) {
        if (full.guarantee == 0)
            full.guarantee = full.request;
        if (full.guarantee != full.request || full.limit != full.request)
            return err_set(
                err, -EINVAL,
                "%s: a fixed guest's request, guarantee and limit are one number: say mixed "
                "for others",
                what);
    }
    if (mode == ADMIT_DYNAMIC && full.guarantee != 0)
        return err_set(err, -EINVAL, "%s: a dynamic guest has no guarantee: say mixed for one",
                       what);
    if (mode == ADMIT_MIXED && full.guarantee == 0)
        return err_set(err, -EINVAL, "%s: a mixed guest needs a guarantee: say dynamic for none",
                       what);
    if (full.guarantee > full.request || full.request > full.limit)
        return err_set(err, -EINVAL, "%s: guarantee <= request <= limit does not hold", what);
    *ret_share = full;
    return 0;
}

/* How amounts of one resource are written. */
struct unit {
    const char *suffix; /* with its blank */
    uint64_t size;
};

static const struct unit cpu_unit = {"", 1000};
static const struct unit byte_units[] = {
    {" TiB", GIB(1) << 10}, {" GiB", GIB(1)}, {" MiB", MIB(1)}, {" KiB", KIB(1)}};

enum { AMOUNT_SIZE = 40 };

/* Tenths, cut. */
static uint64_t tenths(uint64_t amount, const struct unit *unit)
{
    return (uint64_t)((unsigned __int128)amount * 10 / unit->size);
}

static void write_amount(char text[AMOUNT_SIZE], uint64_t amount, const struct unit *unit)
{
    if (!unit)
        snprintf(text, AMOUNT_SIZE, "%llu", (unsigned long long)amount);
    else
        snprintf(text, AMOUNT_SIZE, "%llu.%llu%s", (unsigned long long)(tenths(amount, unit) / 10),
                 (unsigned long long)(tenths(amount, unit) % 10), unit->suffix);
}

/* capacity x ratio; it is cut, and stays below what an uint64_t holds. */
static uint64_t stretched(uint64_t capacity, uint32_t ratio)
{
    unsigned __int128 most = (unsigned __int128)capacity * ratio / ADMIT_RATIO_ONE;
    return most > UINT64_MAX ? UINT64_MAX : (uint64_t)most;
}

struct sum {
    const char *name; /* "memory", "pool 'fast'" */
    const char *asked, *promised;
    uint64_t wish, before, capacity;
    uint32_t ratio;
    bool cpus;
};

/* The largest unit in which the numbers show that they do not fit; NULL where only all digits do.
 */
static const struct unit *telling_unit(const struct sum *sum)
{
    const struct unit *units = sum->cpus ? &cpu_unit : byte_units;
    size_t count = sum->cpus ? 1 : ARRAY_LEN(byte_units);
    uint64_t most = stretched(sum->capacity, sum->ratio);
    for (size_t i = 0; i < count; i++) {
        unsigned __int128 shown =
            (unsigned __int128)tenths(sum->wish, &units[i]) + tenths(sum->before, &units[i]);
        if (max(sum->wish, sum->before) >= units[i].size && shown > tenths(most, &units[i]))
            return &units[i];
    }
    return NULL;
}

static int check_sum(const struct sum *sum, struct err *err)
{
    uint64_t total;
    if (!__builtin_add_overflow(sum->before, sum->wish, &total) &&
        total <= stretched(sum->capacity, sum->ratio))
        return 0;
    char wish[AMOUNT_SIZE], before[AMOUNT_SIZE], capacity[AMOUNT_SIZE];
    const struct unit *unit = telling_unit(sum);
    write_amount(wish, sum->wish, unit);
    write_amount(before, sum->before, unit);
    write_amount(capacity, sum->capacity, unit);
    char ratio[AMOUNT_SIZE];
    bool tenth = sum->ratio % 100 == 0;
    snprintf(ratio, sizeof ratio, tenth ? "%u.%01u" : "%u.%03u", sum->ratio / ADMIT_RATIO_ONE,
             tenth ? sum->ratio % ADMIT_RATIO_ONE / 100 : sum->ratio % ADMIT_RATIO_ONE);
    return err_set(err, -ENOSPC, "%s%s: %s %s + %s %s > %s x %s", sum->name,
                   unit        ? ""
                   : sum->cpus ? " (thousandths)"
                               : " (bytes)",
                   wish, sum->asked, before, sum->promised, capacity, ratio);
}

/* What cannot be counted is more than there is. */
static uint64_t add(uint64_t a, uint64_t b)
{
    return __builtin_add_overflow(a, b, &a) ? UINT64_MAX : a;
}

static int admit_resource(const char *name, bool cpus, uint64_t capacity, uint32_t ratio,
                          const struct admit_share *share, uint64_t requests, uint64_t guarantees,
                          struct err *err)
{
    int r = check_sum(&(struct sum){.name = name,
                                    .asked = "asked for",
                                    .promised = "promised",
                                    .wish = share->request,
                                    .before = requests,
                                    .capacity = capacity,
                                    .ratio = ratio,
                                    .cpus = cpus},
                      err);
    /* Who wants no guarantee is not refused for those of others. */
    if (r < 0 || share->guarantee == 0)
        return r;
    return check_sum(&(struct sum){.name = name,
                                   .asked = "to be guaranteed",
                                   .promised = "guaranteed",
                                   .wish = share->guarantee,
                                   .before = guarantees,
                                   .capacity = capacity,
                                   .ratio = min(ratio, (uint32_t)ADMIT_RATIO_ONE),
                                   .cpus = cpus},
                     err);
}

static uint64_t in_pool(const struct admit_guest *guest, const char *pool)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < guest->disk_count; i++)
        if (!strcmp(guest->disks[i].pool, pool))
            sum = add(sum, guest->disks[i].size);
    return sum;
}

static int admit_disks(const struct admit_capacity *capacity, const struct admit_guest *others,
                       size_t count, const struct admit_guest *guest, struct err *err)
{
    for (size_t i = 0; i < guest->disk_count; i++) {
        bool known = false;
        for (size_t j = 0; j < capacity->pool_count; j++)
            known |= !strcmp(capacity->pools[j].name, guest->disks[i].pool);
        if (!known)
            return err_set(err, -ENOENT, "there is no pool '%.80s'", guest->disks[i].pool);
    }
    for (size_t j = 0; j < capacity->pool_count; j++) {
        const struct admit_pool *pool = &capacity->pools[j];
        uint64_t before = 0, wish = in_pool(guest, pool->name);
        char name[100];
        if (wish == 0)
            continue;
        for (size_t i = 0; i < count; i++)
            before = add(before, in_pool(&others[i], pool->name));
        snprintf(name, sizeof name, "pool '%.80s'", pool->name);
        int r = check_sum(&(struct sum){.name = name,
                                        .asked = "asked for",
                                        .promised = "promised",
                                        .wish = wish,
                                        .before = before,
                                        .capacity = pool->size,
                                        .ratio = capacity->disk_ratio},
                          err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int check_ratio(uint32_t ratio, const char *what, struct err *err)
{
    return ratio < 1 || ratio > ADMIT_RATIO_MAX
               ? err_set(err, -EINVAL, "the overcommit ratio of %s is from 0.001 to %d", what,
                         ADMIT_RATIO_MAX / ADMIT_RATIO_ONE)
               : 0;
}

int admit(const struct admit_capacity *capacity, const struct admit_guest *others, size_t count,
          const struct admit_guest *guest, struct err *err)
{
    struct admit_share cpu, memory, cpus = {0}, memories = {0};
    int r = check_ratio(capacity->cpu_ratio, "CPUs", err);
    if (r >= 0)
        r = check_ratio(capacity->memory_ratio, "memory", err);
    if (r >= 0)
        r = check_ratio(capacity->disk_ratio, "disks", err);
    if (r >= 0)
        r = admit_share_resolve(guest->mode, &guest->cpu, "CPUs", &cpu, err);
    if (r >= 0)
        r = admit_share_resolve(guest->mode, &guest->memory, "memory", &memory, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < count; i++) {
        /* A fixed guest's guarantee may be unsaid. */
        bool fixed = others[i].mode == ADMIT_FIXED;
        cpus.request = add(cpus.request, others[i].cpu.request);
        cpus.guarantee =
            add(cpus.guarantee, fixed ? others[i].cpu.request : others[i].cpu.guarantee);
        memories.request = add(memories.request, others[i].memory.request);
        memories.guarantee =
            add(memories.guarantee, fixed ? others[i].memory.request : others[i].memory.guarantee);
    }
    r = admit_resource("CPUs", true, capacity->cpu, capacity->cpu_ratio, &cpu, cpus.request,
                       cpus.guarantee, err);
    if (r >= 0)
        r = admit_resource("memory", false, capacity->memory, capacity->memory_ratio, &memory,
                           memories.request, memories.guarantee, err);
    return r < 0 ? r : admit_disks(capacity, others, count, guest, err);
}
