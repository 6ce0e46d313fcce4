/*
 * The list is read at every port and MMIO access and changed a few dozen times in a guest's life.
 * So its lock is one-sided: a reader adds itself to one of BUS_SHARDS counters, picked by its
 * thread and on a cache line of its own, and looks whether somebody writes; a writer says so and
 * waits until all counters are 0. Both sides write first and look after, in one total order, so at
 * least one of them sees the other. A reader that came second steps back and waits for the writer.
 */
#include "bus/bus.h"

#include "base/bytes.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

enum {
    BUS_SHARDS = 16, /* a power of two */
    BUS_CLAIMS_MAX = 1024,
};

struct claim {
    uint64_t start;
    uint64_t last; /* inclusive, so that a claim may end with the space */
    const struct bus_ops *ops;
    void *opaque;
};

struct claims {
    struct claim *sorted; /* by start, disjoint */
    size_t count, room;
};

struct shard {
    _Atomic unsigned readers;
} __attribute__((aligned(64)));

struct bus {
    struct shard shards[BUS_SHARDS];
    struct claims spaces[2]; /* by enum bus_space */
    pthread_mutex_t writers; /* one at a time; held while `writing` */
    _Atomic bool writing;
};

struct bus *bus_new(void)
{
    struct bus *bus = aligned_alloc(_Alignof(struct shard), sizeof(struct bus));
    if (!bus)
        return NULL;
    memset(bus, 0, sizeof *bus);
    pthread_mutex_init(&bus->writers, NULL);
    return bus;
}

void bus_free(struct bus *bus)
{
    if (!bus)
        return;
    pthread_mutex_destroy(&bus->writers);
    free(bus->spaces[BUS_PORT].sorted);
    free(bus->spaces[BUS_MMIO].sorted);
    free(bus);
}

static void write_lock(struct bus *bus)
{
    pthread_mutex_lock(&bus->writers);
    bus->writing = true;
    for (unsigned i = 0; i < BUS_SHARDS; i++)
        while (bus->shards[i].readers)
            sched_yield();
}

static void write_unlock(struct bus *bus)
{
    bus->writing = false;
    pthread_mutex_unlock(&bus->writers);
}

/* Returns what read_unlock() wants. */
static struct shard *read_lock(struct bus *bus)
{
    /* Thread handles are addresses far apart; the product spreads their middle bits. */
    uint64_t spread = (uint64_t)pthread_self() * UINT64_C(0x9e3779b97f4a7c15);
    struct shard *shard = &bus->shards[spread >> 60 & (BUS_SHARDS - 1)];
    atomic_fetch_add(&shard->readers, 1);
    if (unlikely(bus->writing)) {
        atomic_fetch_sub(&shard->readers, 1);
        pthread_mutex_lock(&bus->writers);
        atomic_fetch_add(&shard->readers, 1); /* nobody writes while we hold the mutex */
        pthread_mutex_unlock(&bus->writers);
    }
    return shard;
}

static void read_unlock(struct shard *shard)
{
    atomic_fetch_sub_explicit(&shard->readers, 1, memory_order_release);
}

/* The index of the first claim that starts past `address`; the one before it may hold it. */
static size_t upper_bound(const struct claims *claims, uint64_t address)
{
    size_t low = 0, high = claims->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (claims->sorted[middle].start <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int insert(struct claims *claims, const struct claim *claim, struct err *err)
{
    size_t slot = upper_bound(claims, claim->start);
    const struct claim *below = slot > 0 ? &claims->sorted[slot - 1] : NULL;
    const struct claim *above = slot < claims->count ? &claims->sorted[slot] : NULL;
    const struct claim *other = below && below->last >= claim->start   ? below
                                : above && above->start <= claim->last ? above
                                                                       : NULL;
    if (other)
        return err_set(err, -EEXIST, "'%s' at 0x%" PRIx64 " overlaps '%s' at 0x%" PRIx64,
                       claim->ops->name, claim->start, other->ops->name, other->start);
    if (claims->count == claims->room) {
        if (claims->room >= BUS_CLAIMS_MAX)
            return err_set(err, -ENOMEM, "more than %d claims on the bus", BUS_CLAIMS_MAX);
        size_t room = claims->room ? claims->room * 2 : 32;
        struct claim *grown = reallocarray(claims->sorted, room, sizeof *grown);
        if (!grown)
            return err_set(err, -ENOMEM, "no memory for a claim on the bus");
        claims->sorted = grown;
        claims->room = room;
    }
    memmove(&claims->sorted[slot + 1], &claims->sorted[slot],
            (claims->count - slot) * sizeof *claims->sorted);
    claims->sorted[slot] = *claim;
    claims->count++;
    return 0;
}

int bus_claim(struct bus *bus, enum bus_space space, uint64_t start, uint64_t size,
              const struct bus_ops *ops, void *opaque, struct err *err)
{
    uint64_t space_last = space == BUS_PORT ? UINT16_MAX : UINT64_MAX;
    if (size == 0 || start > space_last || size - 1 > space_last - start)
        return err_set(err, -EINVAL, "'%s' cannot claim %" PRIu64 " bytes at 0x%" PRIx64, ops->name,
                       size, start);
    const struct claim claim = {
        .start = start, .last = start + size - 1, .ops = ops, .opaque = opaque};
    write_lock(bus);
    int r = insert(&bus->spaces[space], &claim, err);
    write_unlock(bus);
    return r;
}

void bus_release(struct bus *bus, enum bus_space space, uint64_t start)
{
    struct claims *claims = &bus->spaces[space];
    write_lock(bus);
    size_t above = upper_bound(claims, start);
    bool held = above > 0 && claims->sorted[above - 1].start == start;
    assert(held && "release of what was not claimed");
    if (held) {
        memmove(&claims->sorted[above - 1], &claims->sorted[above],
                (claims->count - above) * sizeof *claims->sorted);
        claims->count--;
    }
    write_unlock(bus);
}

/* The claim that wholly holds the access, or NULL. */
static const struct claim *find(const struct claims *claims, uint64_t address, unsigned size)
{
    size_t above = upper_bound(claims, address);
    if (above == 0)
        return NULL;
    const struct claim *claim = &claims->sorted[above - 1];
    return address <= claim->last && size - 1 <= claim->last - address ? claim : NULL;
}

static uint64_t all_ones(unsigned size)
{
    return UINT64_MAX >> (64 - 8 * size);
}

static bool size_is_legal(unsigned size)
{
    return size == 1 || size == 2 || size == 4 || size == 8;
}

uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t address, unsigned size)
{
    assert(size_is_legal(size));
    uint64_t value = UINT64_MAX;
    struct shard *shard = read_lock(bus);
    const struct claim *claim = find(&bus->spaces[space], address, size);
    if (claim && claim->ops->read)
        value = claim->ops->read(claim->opaque, address - claim->start, size);
    read_unlock(shard);
    return value & all_ones(size);
}

void bus_write(struct bus *bus, enum bus_space space, uint64_t address, unsigned size,
               uint64_t value)
{
    assert(size_is_legal(size));
    void (*written)(void *opaque) = NULL;
    void *opaque = NULL;
    struct shard *shard = read_lock(bus);
    const struct claim *claim = find(&bus->spaces[space], address, size);
    if (claim && claim->ops->write) {
        claim->ops->write(claim->opaque, address - claim->start, size, value & all_ones(size));
        written = claim->ops->written;
        opaque = claim->opaque;
    }
    read_unlock(shard);
    if (written)
        written(opaque);
}
