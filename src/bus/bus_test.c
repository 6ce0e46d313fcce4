#include "bus/bus.h"

#include "base/bytes.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

struct scratch {
    uint64_t offset, value;
    unsigned size;
    int writes, written;
};

static uint64_t scratch_read(void *opaque, uint64_t offset, unsigned size)
{
    struct scratch *scratch = opaque;
    scratch->offset = offset;
    scratch->size = size;
    return UINT64_C(0x1122334455667788);
}

static void scratch_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct scratch *scratch = opaque;
    *scratch = (struct scratch){offset, value, size, scratch->writes + 1, scratch->written};
}

static const struct bus_ops scratch_ops = {
    .name = "scratch", .read = scratch_read, .write = scratch_write};

static void an_access_finds_its_claim(void **state)
{
    (void)state;
    struct bus *bus = bus_new();
    struct scratch low = {0}, high = {0};
    assert_int_equal(bus_claim(bus, BUS_MMIO, 0x2000, 0x10, &scratch_ops, &high, NULL), 0);
    assert_int_equal(bus_claim(bus, BUS_MMIO, 0x1000, 0x10, &scratch_ops, &low, NULL), 0);
    assert_int_equal(bus_read(bus, BUS_MMIO, 0x1008, 8), UINT64_C(0x1122334455667788));
    assert_int_equal(low.offset, 8);
    assert_int_equal(low.size, 8);
    assert_int_equal(bus_read(bus, BUS_MMIO, 0x200f, 1), 0x88);
    assert_int_equal(high.offset, 15);
    bus_write(bus, BUS_MMIO, 0x2004, 2, 0xabcd1234);
    assert_int_equal(high.value, 0x1234);
    assert_int_equal(high.writes, 1);
    /* The two spaces are apart. */
    assert_int_equal(bus_read(bus, BUS_PORT, 0x1008, 4), 0xffffffff);
    bus_free(bus);
}

static void nobody_at_home_reads_as_ones(void **state)
{
    (void)state;
    struct bus *bus = bus_new();
    struct scratch a = {0}, b = {0};
    assert_int_equal(bus_claim(bus, BUS_PORT, 0x60, 1, &scratch_ops, &a, NULL), 0);
    assert_int_equal(bus_claim(bus, BUS_PORT, 0x61, 1, &scratch_ops, &b, NULL), 0);
    assert_int_equal(bus_read(bus, BUS_PORT, 0x5f, 1), 0xff);
    assert_int_equal(bus_read(bus, BUS_PORT, 0x62, 2), 0xffff);
    assert_int_equal(bus_read(bus, BUS_MMIO, UINT64_MAX, 8), UINT64_MAX);
    /* An access over the border of two claims belongs to neither. */
    assert_int_equal(bus_read(bus, BUS_PORT, 0x60, 2), 0xffff);
    bus_write(bus, BUS_PORT, 0x60, 2, 0);
    bus_write(bus, BUS_PORT, 0x5f, 2, 0);
    assert_int_equal(a.writes + b.writes, 0);
    bus_free(bus);
}

static void claims_do_not_overlap(void **state)
{
    (void)state;
    struct bus *bus = bus_new();
    struct scratch scratch = {0};
    struct err err = {0};
    assert_int_equal(bus_claim(bus, BUS_MMIO, 100, 50, &scratch_ops, &scratch, NULL), 0);
    assert_int_equal(bus_claim(bus, BUS_MMIO, 149, 1, &scratch_ops, &scratch, &err), -EEXIST);
    assert_non_null(strstr(err.text, "scratch"));
    assert_int_equal(bus_claim(bus, BUS_MMIO, 99, 2, &scratch_ops, &scratch, NULL), -EEXIST);
    assert_int_equal(bus_claim(bus, BUS_MMIO, 0, 1000, &scratch_ops, &scratch, NULL), -EEXIST);
    assert_int_equal(bus_claim(bus, BUS_MMIO, 150, 1, &scratch_ops, &scratch, NULL), 0);
    assert_int_equal(bus_claim(bus, BUS_MMIO, 5, 0, &scratch_ops, &scratch, NULL), -EINVAL);
    assert_int_equal(bus_claim(bus, BUS_PORT, 0xffff, 2, &scratch_ops, &scratch, NULL), -EINVAL);
    assert_int_equal(bus_claim(bus, BUS_PORT, 0x10000, 1, &scratch_ops, &scratch, NULL), -EINVAL);
    /* The last byte of the space can be claimed. */
    assert_int_equal(bus_claim(bus, BUS_MMIO, UINT64_MAX, 1, &scratch_ops, &scratch, NULL), 0);
    assert_int_equal(bus_read(bus, BUS_MMIO, UINT64_MAX, 1), 0x88);
    bus_release(bus, BUS_MMIO, 100);
    assert_int_equal(bus_read(bus, BUS_MMIO, 100, 1), 0xff);
    assert_int_equal(bus_claim(bus, BUS_MMIO, 99, 2, &scratch_ops, &scratch, NULL), 0);
    bus_free(bus);
}

static void hundreds_of_claims_stay_sorted(void **state)
{
    (void)state;
    struct bus *bus = bus_new();
    struct scratch scratch[300] = {0};
    for (unsigned i = 0; i < 300; i++) {
        unsigned slot = i * 7 % 300;
        assert_int_equal(bus_claim(bus, BUS_MMIO, slot * 16, 8, &scratch_ops, &scratch[slot], NULL),
                         0);
    }
    for (unsigned i = 0; i < 300; i += 3)
        bus_release(bus, BUS_MMIO, i * 16);
    for (unsigned i = 0; i < 300; i++) {
        bus_write(bus, BUS_MMIO, i * 16 + 4, 4, i);
        assert_int_equal(scratch[i].writes, i % 3 ? 1 : 0);
        if (i % 3)
            assert_int_equal(scratch[i].value, i);
        bus_write(bus, BUS_MMIO, i * 16 + 8, 4, i);
        assert_int_equal(scratch[i].writes, i % 3 ? 1 : 0);
    }
    bus_free(bus);
}

struct mover {
    struct bus *bus;
    struct scratch target;
    uint64_t at, wanted;
    int moves;
};

static void mover_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct mover *mover = opaque;
    mover->wanted = value;
}

static void mover_written(void *opaque)
{
    struct mover *mover = opaque;
    bus_release(mover->bus, BUS_MMIO, mover->at);
    assert_int_equal(
        bus_claim(mover->bus, BUS_MMIO, mover->wanted, 8, &scratch_ops, &mover->target, NULL), 0);
    mover->at = mover->wanted;
    mover->moves++;
}

static void a_device_moves_claims_once_its_access_is_over(void **state)
{
    (void)state;
    static const struct bus_ops ops = {
        .name = "mover", .write = mover_write, .written = mover_written};
    struct mover mover = {.bus = bus_new(), .at = 0x1000};
    assert_int_equal(bus_claim(mover.bus, BUS_PORT, 0x80, 4, &ops, &mover, NULL), 0);
    assert_int_equal(bus_claim(mover.bus, BUS_MMIO, 0x1000, 8, &scratch_ops, &mover.target, NULL),
                     0);
    bus_write(mover.bus, BUS_PORT, 0x80, 4, 0x5000);
    assert_int_equal(mover.moves, 1);
    assert_int_equal(bus_read(mover.bus, BUS_MMIO, 0x1000, 4), 0xffffffff);
    assert_int_equal(bus_read(mover.bus, BUS_MMIO, 0x5000, 4), 0x55667788);
    bus_free(mover.bus);
}

struct crowd {
    struct bus *bus;
    _Atomic bool stop;
    _Atomic int inside; /* accesses under way in the claim that comes and goes */
    _Atomic bool claimed;
    _Atomic int strays; /* accesses that ran while it was released */
    _Atomic uint64_t hits;
};

static uint64_t crowd_read(void *opaque, uint64_t offset, unsigned size)
{
    struct crowd *crowd = opaque;
    crowd->inside++;
    crowd->hits++;
    if (!crowd->claimed)
        crowd->strays++;
    crowd->inside--;
    return 1;
}

static const struct bus_ops crowd_ops = {.name = "crowd", .read = crowd_read};

static void *crowd_main(void *opaque)
{
    struct crowd *crowd = opaque;
    while (!crowd->stop) {
        uint64_t value = bus_read(crowd->bus, BUS_MMIO, 0x1000, 4);
        if (value != 1 && value != 0xffffffff)
            crowd->strays++;
    }
    return NULL;
}

static void nobody_is_inside_after_release(void **state)
{
    (void)state;
    struct crowd crowd = {.bus = bus_new()};
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, crowd_main, &crowd), 0);
    /* Until the readers have met the claim often enough, however late they were started. */
    for (int i = 0; i < 2000 || crowd.hits < 100; i++) {
        crowd.claimed = true;
        assert_int_equal(bus_claim(crowd.bus, BUS_MMIO, 0x1000, 8, &crowd_ops, &crowd, NULL), 0);
        if (i % 16 == 0)
            sched_yield();
        bus_release(crowd.bus, BUS_MMIO, 0x1000);
        assert_int_equal(crowd.inside, 0);
        crowd.claimed = false;
    }
    crowd.stop = true;
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(crowd.strays, 0);
    bus_free(crowd.bus);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_access_finds_its_claim),
        cmocka_unit_test(nobody_at_home_reads_as_ones),
        cmocka_unit_test(claims_do_not_overlap),
        cmocka_unit_test(hundreds_of_claims_stay_sorted),
        cmocka_unit_test(a_device_moves_claims_once_its_access_is_over),
        cmocka_unit_test(nobody_is_inside_after_release),
    };
    return cmocka_run_group_tests_name("bus", tests, NULL, NULL);
}
