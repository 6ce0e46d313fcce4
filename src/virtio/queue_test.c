#include "virtio/queue.h"

#include "base/bytes.h"
#include "virtio/test_driver.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

enum {
    SIZE = 8,
    RING_AT = 0x10000,
    DATA = 0x40000,
    ROM_AT = 0x200000,
    NEXT = 1,
    WRITE = 2,
    INDIRECT = 4
};

struct fixture {
    struct mem *mem;
    struct queue queue;
    struct driver_ring ring;
    struct queue_chain chain;
};

static void place(struct fixture *f, uint16_t size)
{
    driver_ring_init(&f->ring, f->mem, RING_AT, size);
    queue_init(&f->queue, f->mem, QUEUE_SIZE_MAX);
    f->queue.size = size;
    f->queue.descriptors = f->ring.descriptors;
    f->queue.available = f->ring.available;
    f->queue.used = f->ring.used;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->mem = mem_new();
    if (mem_add(f->mem, 0, MIB(1), false, NULL) < 0 ||
        mem_add(f->mem, ROM_AT, 0x1000, true, NULL) < 0)
        return -1;
    place(f, SIZE);
    if (queue_enable(&f->queue) < 0)
        return -1;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    mem_free(f->mem);
    free(f);
    return 0;
}

static void a_chain_goes_and_comes_back(void **state)
{
    struct fixture *f = *state;
    const struct driver_buffer buffers[] = {
        {DATA, 5, false}, {DATA + 100, 3, false}, {DATA + 200, 4, true}, {DATA + 300, 6, true}};
    memcpy(mem_at(f->mem, DATA, 5, true), "hello", 5);
    memcpy(mem_at(f->mem, DATA + 100, 3, true), "abc", 3);
    int head = driver_ring_add(&f->ring, buffers, 4);
    assert_true(queue_pending(&f->queue));
    assert_int_equal(queue_pop(&f->queue, &f->chain), 1);
    assert_int_equal(f->chain.head, head);
    assert_int_equal(f->chain.readable, 2);
    assert_int_equal(f->chain.writable, 2);
    assert_int_equal(f->chain.readable_bytes, 8);
    assert_int_equal(f->chain.writable_bytes, 10);
    char text[10] = {0};
    assert_int_equal(queue_chain_read(&f->chain, 0, text, 10), 8);
    assert_memory_equal(text, "helloabc", 8);
    assert_int_equal(queue_chain_read(&f->chain, 4, text, 3), 3);
    assert_memory_equal(text, "oab", 3);
    assert_int_equal(queue_chain_read(&f->chain, 8, text, 3), 0);
    assert_int_equal(queue_chain_write(&f->chain, 2, "0123456789", 10), 8);
    assert_memory_equal(mem_at(f->mem, DATA + 202, 2, false), "01", 2);
    assert_memory_equal(mem_at(f->mem, DATA + 300, 6, false), "234567", 6);
    struct iovec iov[4];
    assert_int_equal(queue_chain_writable(&f->chain, 5, iov, 4), 1);
    assert_int_equal(iov[0].iov_len, 5);
    assert_ptr_equal(iov[0].iov_base, mem_at(f->mem, DATA + 301, 1, false));

    queue_push(&f->queue, &f->chain, 10);
    uint32_t used, length;
    assert_true(driver_ring_take(&f->ring, &used, &length));
    assert_int_equal(used, head);
    assert_int_equal(length, 10);
    assert_int_equal(queue_pop(&f->queue, &f->chain), 0);
    assert_false(queue_pending(&f->queue));
}

static void indices_wrap(void **state)
{
    struct fixture *f = *state;
    const struct driver_buffer buffer = {DATA, 16, true};
    uint32_t used, length, expect = 0;
    for (unsigned round = 0; round < 70000; round++) {
        unsigned batch = round % SIZE + 1;
        for (unsigned i = 0; i < batch; i++)
            assert_true(driver_ring_add(&f->ring, &buffer, 1) >= 0);
        for (unsigned i = 0; i < batch; i++) {
            assert_int_equal(queue_pop(&f->queue, &f->chain), 1);
            queue_push(&f->queue, &f->chain, expect++ % 17);
        }
        assert_int_equal(queue_pop(&f->queue, &f->chain), 0);
        assert_true(queue_should_notify(&f->queue));
        for (unsigned i = 0; i < batch; i++) {
            assert_true(driver_ring_take(&f->ring, &used, &length));
            assert_int_equal(length, (expect - batch + i) % 17);
        }
        assert_false(driver_ring_take(&f->ring, &used, &length));
    }
    assert_true(expect > 4 * 65536);
}

static void unpop_gives_the_same_chain_again(void **state)
{
    struct fixture *f = *state;
    const struct driver_buffer buffer = {DATA, 16, true};
    int head = driver_ring_add(&f->ring, &buffer, 1);
    assert_int_equal(queue_pop(&f->queue, &f->chain), 1);
    queue_unpop(&f->queue);
    assert_true(queue_pending(&f->queue));
    assert_int_equal(queue_pop(&f->queue, &f->chain), 1);
    assert_int_equal(f->chain.head, head);
    assert_int_equal(queue_pop(&f->queue, &f->chain), 0);
}

/* Writes an entry of an indirect table in guest memory. */
static void entry(struct fixture *f, uint64_t table, unsigned index, uint64_t address,
                  uint32_t length, uint16_t flags, uint16_t next)
{
    uint8_t *at = mem_at(f->mem, table + 16 * index, 16, true);
    le64_write(at, address);
    le32_write(at + 8, length);
    le16_write(at + 12, flags);
    le16_write(at + 14, next);
}

static void indirect_tables_are_followed(void **state)
{
    struct fixture *f = *state;
    f->queue.indirect = true;
    uint64_t table = 0x50008; /* any alignment */
    entry(f, table, 0, DATA, 10, NEXT, 2);
    entry(f, table, 2, DATA + 64, 20, NEXT | WRITE, 1);
    entry(f, table, 1, DATA + 128, 30, WRITE, 0);
    driver_ring_descriptor(&f->ring, 3, table, 48, INDIRECT, 0);
    driver_ring_offer(&f->ring, 3);
    assert_int_equal(queue_pop(&f->queue, &f->chain), 1);
    assert_int_equal(f->chain.head, 3);
    assert_int_equal(f->chain.readable, 1);
    assert_int_equal(f->chain.writable, 2);
    assert_int_equal(f->chain.writable_bytes, 50);
    /* A direct descriptor may come first (2.7.5.3.1 lets the last one be indirect). */
    driver_ring_descriptor(&f->ring, 4, DATA, 7, NEXT, 5);
    driver_ring_descriptor(&f->ring, 5, table, 48, INDIRECT, 0);
    driver_ring_offer(&f->ring, 4);
    assert_int_equal(queue_pop(&f->queue, &f->chain), 1);
    assert_int_equal(f->chain.readable_bytes, 17);
}

/* A fresh queue, what `lie` lays down in it, and the verdict. Each lie is one broken rule. */
static void refuses(struct fixture *f, void (*lie)(struct fixture *f))
{
    place(f, SIZE);
    f->queue.indirect = true;
    assert_int_equal(queue_enable(&f->queue), 0);
    lie(f);
    assert_int_equal(queue_pop(&f->queue, &f->chain), -EPROTO);
    assert_true(f->queue.broken);
    assert_int_equal(queue_pop(&f->queue, &f->chain), 0);
    queue_reset(&f->queue);
    assert_false(f->queue.broken);
}

static void lie_index_too_far(struct fixture *f)
{
    driver_ring_descriptor(&f->ring, 0, DATA, 1, 0, 0);
    for (int i = 0; i <= SIZE; i++)
        driver_ring_offer(&f->ring, 0);
}

static void lie_head(struct fixture *f)
{
    driver_ring_offer(&f->ring, SIZE);
}

static void lie_next(struct fixture *f)
{
    driver_ring_descriptor(&f->ring, 0, DATA, 1, NEXT, 0xffff);
    driver_ring_offer(&f->ring, 0);
}

static void lie_loop(struct fixture *f)
{
    driver_ring_descriptor(&f->ring, 0, DATA, 1, NEXT, 1);
    driver_ring_descriptor(&f->ring, 1, DATA, 1, NEXT, 0);
    driver_ring_offer(&f->ring, 0);
}

static void lie_self_loop_write(struct fixture *f)
{
    driver_ring_descriptor(&f->ring, 0, DATA, 1, NEXT | WRITE, 0);
    driver_ring_offer(&f->ring, 0);
}

static void lie_zero_length(struct fixture *f)
{
    driver_ring_descriptor(&f->ring, 0, DATA, 0, 0, 0);
    driver_ring_offer(&f->ring, 0);
}

static void lie_huge_length(struct fixture *f)
{
    driver_ring_descriptor(&f->ring, 0, DATA, UINT32_MAX, 0, 0);
    driver_ring_offer(&f->ring, 0);
}

static void lie_past_memory(struct fixture *f)
{
    driver_ring_descriptor(&f->ring, 0, MIB(1) - 1, 2, 0, 0);
    driver_ring_offer(&f->ring, 0);
}

static void lie_wrapping(struct fixture *f)
{
    driver_ring_descriptor(&f->ring, 0, UINT64_MAX, 2, 0, 0);
    driver_ring_offer(&f->ring, 0);
}

static void lie_write_to_rom(struct fixture *f)
{
    driver_ring_descriptor(&f->ring, 0, ROM_AT, 16, WRITE, 0);
    driver_ring_offer(&f->ring, 0);
}

static void lie_read_after_write(struct fixture *f)
{
    driver_ring_descriptor(&f->ring, 0, DATA, 1, NEXT | WRITE, 1);
    driver_ring_descriptor(&f->ring, 1, DATA, 1, 0, 0);
    driver_ring_offer(&f->ring, 0);
}

static void lie_indirect_odd(struct fixture *f)
{
    driver_ring_descriptor(&f->ring, 0, DATA, 17, INDIRECT, 0);
    driver_ring_offer(&f->ring, 0);
}

static void lie_indirect_empty(struct fixture *f)
{
    driver_ring_descriptor(&f->ring, 0, DATA, 0, INDIRECT, 0);
    driver_ring_offer(&f->ring, 0);
}

static void lie_indirect_outside(struct fixture *f)
{
    driver_ring_descriptor(&f->ring, 0, MIB(1) - 16, 32, INDIRECT, 0);
    driver_ring_offer(&f->ring, 0);
}

static void lie_indirect_with_next(struct fixture *f)
{
    entry(f, DATA, 0, DATA + 64, 1, 0, 0);
    driver_ring_descriptor(&f->ring, 0, DATA, 16, INDIRECT | NEXT, 1);
    driver_ring_offer(&f->ring, 0);
}

static void lie_indirect_nested(struct fixture *f)
{
    entry(f, DATA, 0, DATA, 16, INDIRECT, 0);
    driver_ring_descriptor(&f->ring, 0, DATA, 16, INDIRECT, 0);
    driver_ring_offer(&f->ring, 0);
}

static void lie_indirect_loop(struct fixture *f)
{
    entry(f, DATA, 0, DATA + 64, 1, NEXT, 0);
    driver_ring_descriptor(&f->ring, 0, DATA, 16, INDIRECT, 0);
    driver_ring_offer(&f->ring, 0);
}

static void lie_indirect_next_outside(struct fixture *f)
{
    entry(f, DATA, 0, DATA + 64, 1, NEXT, 1);
    entry(f, DATA, 1, DATA + 64, 1, 0, 0);
    driver_ring_descriptor(&f->ring, 0, DATA, 16, INDIRECT, 0);
    driver_ring_offer(&f->ring, 0);
}

static void lie_indirect_not_negotiated(struct fixture *f)
{
    f->queue.indirect = false;
    entry(f, DATA, 0, DATA + 64, 1, 0, 0);
    driver_ring_descriptor(&f->ring, 0, DATA, 16, INDIRECT, 0);
    driver_ring_offer(&f->ring, 0);
}

static void lie_indirect_too_long(struct fixture *f)
{
    for (unsigned i = 0; i <= QUEUE_CHAIN_MAX; i++)
        entry(f, DATA, i, DATA, 1, NEXT, (uint16_t)(i + 1));
    driver_ring_descriptor(&f->ring, 0, DATA, (QUEUE_CHAIN_MAX + 1) * 16, INDIRECT, 0);
    driver_ring_offer(&f->ring, 0);
}

static void lies_are_refused(void **state)
{
    struct fixture *f = *state;
    void (*const lies[])(struct fixture *) = {
        lie_index_too_far,
        lie_head,
        lie_next,
        lie_loop,
        lie_self_loop_write,
        lie_zero_length,
        lie_huge_length,
        lie_past_memory,
        lie_wrapping,
        lie_write_to_rom,
        lie_read_after_write,
        lie_indirect_odd,
        lie_indirect_empty,
        lie_indirect_outside,
        lie_indirect_with_next,
        lie_indirect_nested,
        lie_indirect_loop,
        lie_indirect_next_outside,
        lie_indirect_not_negotiated,
        lie_indirect_too_long,
    };
    for (size_t i = 0; i < ARRAY_LEN(lies); i++)
        refuses(f, lies[i]);
}

static void the_longest_chain_is_served(void **state)
{
    struct fixture *f = *state;
    f->queue.indirect = true;
    for (unsigned i = 0; i < QUEUE_CHAIN_MAX; i++)
        entry(f, DATA, i, 0x80000 + i, 1, i + 1 < QUEUE_CHAIN_MAX ? NEXT : 0, (uint16_t)(i + 1));
    driver_ring_descriptor(&f->ring, 0, DATA, QUEUE_CHAIN_MAX * 16, INDIRECT, 0);
    driver_ring_offer(&f->ring, 0);
    assert_int_equal(queue_pop(&f->queue, &f->chain), 1);
    assert_int_equal(f->chain.readable_bytes, QUEUE_CHAIN_MAX);
}

static void bad_rings_are_not_enabled(void **state)
{
    struct fixture *f = *state;
    const struct {
        uint16_t size;
        uint64_t descriptors, available, used;
        int expect;
    } cases[] = {
        {8, RING_AT, RING_AT + 0x1000, RING_AT + 0x2000, 0},
        {0, RING_AT, RING_AT + 0x1000, RING_AT + 0x2000, -EINVAL},
        {6, RING_AT, RING_AT + 0x1000, RING_AT + 0x2000, -EINVAL},
        {2048, RING_AT, RING_AT + 0x1000, RING_AT + 0x2000, -EINVAL},
        {8, RING_AT + 8, RING_AT + 0x1000, RING_AT + 0x2000, -EINVAL},
        {8, RING_AT, RING_AT + 0x1001, RING_AT + 0x2000, -EINVAL},
        {8, RING_AT, RING_AT + 0x1000, RING_AT + 0x2002, -EINVAL},
        {8, MIB(1) - 112, RING_AT + 0x1000, RING_AT + 0x2000, -EFAULT},
        {8, RING_AT, MIB(1) - 20, RING_AT + 0x2000, -EFAULT},
        {8, RING_AT, RING_AT + 0x1000, MIB(1) - 68, -EFAULT},
        {8, RING_AT, RING_AT + 0x1000, ROM_AT, -EFAULT},
        {8, RING_AT, ROM_AT, RING_AT + 0x2000, 0}, /* we only read it */
        {8, UINT64_MAX - 15, RING_AT + 0x1000, RING_AT + 0x2000, -EFAULT},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        queue_reset(&f->queue);
        f->queue.size = cases[i].size;
        f->queue.descriptors = cases[i].descriptors;
        f->queue.available = cases[i].available;
        f->queue.used = cases[i].used;
        assert_int_equal(queue_enable(&f->queue), cases[i].expect);
        assert_int_equal(f->queue.ready, cases[i].expect == 0);
        if (cases[i].expect < 0)
            assert_int_equal(queue_pop(&f->queue, &f->chain), 0);
    }
}

static void push_one(struct fixture *f)
{
    const struct driver_buffer buffer = {DATA, 16, true};
    uint32_t used, length;
    assert_true(driver_ring_add(&f->ring, &buffer, 1) >= 0);
    assert_int_equal(queue_pop(&f->queue, &f->chain), 1);
    queue_push(&f->queue, &f->chain, 1);
    assert_true(driver_ring_take(&f->ring, &used, &length));
}

static void flags_suppress(void **state)
{
    struct fixture *f = *state;
    assert_false(queue_should_notify(&f->queue)); /* nothing was pushed */
    push_one(f);
    assert_true(queue_should_notify(&f->queue));
    assert_false(queue_should_notify(&f->queue));
    driver_ring_available_flags(&f->ring, 1);
    push_one(f);
    assert_false(queue_should_notify(&f->queue));
    queue_notifications_stop(&f->queue);
    assert_int_equal(driver_ring_used_flags(&f->ring), 1);
    assert_false(queue_notifications_start(&f->queue));
    assert_int_equal(driver_ring_used_flags(&f->ring), 0);
    queue_notifications_stop(&f->queue);
    driver_ring_descriptor(&f->ring, 0, DATA, 1, 0, 0);
    driver_ring_offer(&f->ring, 0);
    assert_true(queue_notifications_start(&f->queue));
}

static void event_index_suppresses(void **state)
{
    struct fixture *f = *state;
    f->queue.event_index = true;
    driver_ring_available_flags(&f->ring, 1); /* to be ignored (2.7.7.1) */
    /* Over the wrap of the index: interrupt at every third element only. */
    uint16_t next = 2;
    driver_ring_used_event(&f->ring, next);
    for (unsigned i = 0; i < 70000; i++) {
        push_one(f);
        bool expect = (uint16_t)i == next;
        assert_int_equal(queue_should_notify(&f->queue), expect);
        if (expect) {
            next = (uint16_t)(next + 3);
            driver_ring_used_event(&f->ring, next);
        }
        /* And we await exactly the next chain. */
        assert_int_equal(driver_ring_available_event(&f->ring), f->ring.available_index);
    }
    /* One event inside a batch is enough. */
    driver_ring_used_event(&f->ring, (uint16_t)(f->queue.next_used + 1));
    for (int i = 0; i < 4; i++)
        push_one(f);
    assert_true(queue_should_notify(&f->queue));
    for (int i = 0; i < 4; i++)
        push_one(f);
    assert_false(queue_should_notify(&f->queue));

    uint16_t before = driver_ring_available_event(&f->ring);
    queue_notifications_stop(&f->queue);
    push_one(f);
    assert_int_equal(driver_ring_available_event(&f->ring), before);
    assert_int_equal(driver_ring_used_flags(&f->ring), 0);
    assert_false(queue_notifications_start(&f->queue));
    assert_int_equal(driver_ring_available_event(&f->ring), f->ring.available_index);
}

static void writes_are_marked(void **state)
{
    struct fixture *f = *state;
    f->mem->dirty_log = true;
    const struct driver_buffer buffers[] = {
        {0x60000, 10, false}, {0x70ff0, 32, true}, {0x90000, 4096, true}};
    assert_true(driver_ring_add(&f->ring, buffers, 3) >= 0);
    assert_int_equal(queue_pop(&f->queue, &f->chain), 1);
    queue_push(&f->queue, &f->chain, 33);
    const uint8_t *marks = f->mem->regions[0].marks;
    assert_int_equal(marks[0x60], 0);
    assert_int_equal(marks[0x70], MEM_PAGE_DIRTY);
    assert_int_equal(marks[0x71], MEM_PAGE_DIRTY);
    assert_int_equal(marks[0x90], MEM_PAGE_DIRTY);
    assert_int_equal(marks[f->ring.used >> 12], MEM_PAGE_DIRTY);
    assert_int_equal(marks[f->ring.available >> 12], 0);
}

enum { PINGS = 200000 };

/* The device's side on a thread of its own: sleeps (here: spins) only when it has asked to be
 * notified, and looks again only when the driver would have notified. */
struct partner {
    struct fixture *f;
    _Atomic int kicks, interrupts;
};

static void *partner_main(void *opaque)
{
    struct partner *partner = opaque;
    struct queue *queue = &partner->f->queue;
    int kicks_seen = 0;
    for (int served = 0; served < PINGS;) {
        queue_notifications_stop(queue);
        while (queue_pop(queue, &partner->f->chain) == 1) {
            queue_push(queue, &partner->f->chain, 0);
            served++;
        }
        if (queue_should_notify(queue))
            partner->interrupts++;
        if (served < PINGS && !queue_notifications_start(queue)) {
            while (partner->kicks == kicks_seen)
                sched_yield();
            kicks_seen = partner->kicks;
        }
    }
    return NULL;
}

/* The driver's side obeys the same rules; if either lost a wake-up, this would hang. */
static void no_wakeup_is_lost(void **state)
{
    struct fixture *f = *state;
    f->queue.event_index = true;
    struct partner partner = {.f = f};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, partner_main, &partner), 0);
    const struct driver_buffer buffer = {DATA, 4, false};
    int added = 0, taken = 0, interrupts_seen = 0;
    while (taken < PINGS) {
        uint16_t before = f->ring.available_index;
        while (added < PINGS && driver_ring_add(&f->ring, &buffer, 1) >= 0)
            added++;
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        uint16_t event = driver_ring_available_event(&f->ring);
        uint16_t now = f->ring.available_index;
        if ((uint16_t)(now - event - 1) < (uint16_t)(now - before))
            partner.kicks++;
        uint32_t head, length;
        while (driver_ring_take(&f->ring, &head, &length))
            taken++;
        if (taken == PINGS || f->ring.free_count > 0)
            continue;
        driver_ring_used_event(&f->ring, f->ring.used_index);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (driver_ring_take(&f->ring, &head, &length)) {
            taken++;
            continue;
        }
        while (partner.interrupts == interrupts_seen)
            sched_yield();
        interrupts_seen = partner.interrupts;
    }
    pthread_join(thread, NULL);
    assert_int_equal(taken, PINGS);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_chain_goes_and_comes_back),
        TEST(indices_wrap),
        TEST(unpop_gives_the_same_chain_again),
        TEST(indirect_tables_are_followed),
        TEST(lies_are_refused),
        TEST(the_longest_chain_is_served),
        TEST(bad_rings_are_not_enabled),
        TEST(flags_suppress),
        TEST(event_index_suppresses),
        TEST(writes_are_marked),
        TEST(no_wakeup_is_lost),
    };
    return cmocka_run_group_tests_name("queue", tests, NULL, NULL);
}
