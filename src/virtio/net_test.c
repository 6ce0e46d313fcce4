/* The network device, from both ends: a driver in plain memory, and a nic in the test's hands. */
#include "virtio/net.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "virtio/bucket.h"
#include "virtio/pci.h"
#include "virtio/test_driver.h"
#include "virtio/test_nic.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

enum {
    SLOT = 3,
    RING = 64,
    HEADER = 12,
    BUFFER = 128 * 1024, /* one for each descriptor of each queue */
    AREA = 8 << 20,      /* in guest memory, from here on */
    RX = 0,
    TX = 1,
    CONTROL_MQ = 4, /* with MQ, else 2 */
    CONTROL = 2,
};

#define F_CSUM       (UINT64_C(1) << 0)
#define F_GUEST_CSUM (UINT64_C(1) << 1)
#define F_MTU        (UINT64_C(1) << 3)
#define F_MAC        (UINT64_C(1) << 5)
#define F_GUEST_TSO4 (UINT64_C(1) << 7)
#define F_HOST_TSO4  (UINT64_C(1) << 11)
#define F_HOST_TSO6  (UINT64_C(1) << 12)
#define F_MERGE      (UINT64_C(1) << 15)
#define F_STATUS     (UINT64_C(1) << 16)
#define F_CTRL       (UINT64_C(1) << 17)
#define F_CTRL_RX    (UINT64_C(1) << 18)
#define F_ANNOUNCE   (UINT64_C(1) << 21)
#define F_MQ         (UINT64_C(1) << 22)
#define F_CTRL_MAC   (UINT64_C(1) << 23)

#define BASE                                                                                       \
    (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | F_MAC | F_STATUS |         \
     F_CTRL | F_CTRL_RX | F_CTRL_MAC | F_ANNOUNCE)
#define OFFLOADS (F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_HOST_TSO4)

static const uint8_t own_mac[6] = {0x52, 0x54, 0, 1, 2, 3};

struct fixture {
    struct driver_machine machine;
    struct driver driver;
    struct virtio_net *net;
    struct virtio_pci *transport;
    struct test_nic *nic;
};

static struct fixture *make(const struct virtio_net_config *wanted)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct virtio_net_config config = *wanted;
    f->nic = test_nic_new();
    config.nic = &f->nic->nic;
    memcpy(config.mac, own_mac, sizeof own_mac);
    driver_machine_init(&f->machine);
    assert_int_equal(virtio_net_new(f->machine.mem, &config, &f->net, NULL), 0);
    assert_int_equal(
        virtio_pci_new(f->machine.host, SLOT, virtio_net_device(f->net), &f->transport, NULL), 0);
    driver_machine_place(&f->machine);
    driver_init(&f->driver, &f->machine, SLOT);
    return f;
}

static int setup(void **state)
{
    *state = make(&(struct virtio_net_config){.mtu = 9000});
    return 0;
}

static int setup_strict(void **state)
{
    *state = make(&(struct virtio_net_config){.anti_spoof = true});
    return 0;
}

static int setup_slow(void **state)
{
    *state = make(&(struct virtio_net_config){.rate_in = 1 << 20, .rate_out = 1 << 20});
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    virtio_pci_free(f->transport);
    driver_machine_fini(&f->machine);
    free(f);
    return 0;
}

static void bring_up(struct fixture *f, uint64_t features)
{
    struct driver *d = &f->driver;
    unsigned queues = features & F_MQ ? 5 : 3;
    assert_true(driver_negotiate(d, features));
    driver_msix_on(d, queues + 1);
    for (unsigned queue = 0; queue < queues; queue++)
        assert_true(driver_queue(d, queue, RING, true));
    driver_live(d);
}

static uint64_t buffer_at(unsigned queue, unsigned index)
{
    return AREA + (uint64_t)(queue * RING + index) * BUFFER;
}

static struct virtio_net_stats stats(struct fixture *f)
{
    struct virtio_net_stats stats;
    virtio_net_stats(f->net, &stats);
    return stats;
}

/* A chain with these bytes, in parts of at most `part`. */
static void put(struct fixture *f, unsigned queue, const void *bytes, size_t size, size_t part)
{
    struct driver_ring *ring = &f->driver.rings[queue];
    struct driver_buffer buffers[RING];
    uint32_t head, length;
    unsigned count = 0;
    while (driver_ring_take(ring, &head, &length))
        ;
    assert_true(eventually(({
        while (driver_ring_take(ring, &head, &length))
            ;
        ring->free_count >= (size + part - 1) / part;
    })));
    uint64_t at = buffer_at(queue, ring->free[ring->free_count - 1]);
    assert_int_equal(mem_write(f->machine.mem, at, bytes, size), 0);
    for (size_t done = 0; done < size; done += part)
        buffers[count++] =
            (struct driver_buffer){at + done, (uint32_t)min(part, size - done), false};
    assert_true(driver_ring_add(ring, buffers, count) >= 0);
    driver_kick(&f->driver, queue);
}

static void give(struct fixture *f, unsigned queue, unsigned count, uint32_t size)
{
    struct driver_ring *ring = &f->driver.rings[queue];
    for (unsigned i = 0; i < count; i++) {
        const struct driver_buffer buffer = {buffer_at(queue, ring->free[ring->free_count - 1]),
                                             size, true};
        assert_true(driver_ring_add(ring, &buffer, 1) >= 0);
    }
    driver_kick(&f->driver, queue);
}

/* One filled buffer; false while there is none. */
static bool take(struct fixture *f, unsigned queue, void *to, uint32_t *ret_length)
{
    uint32_t head;
    if (!driver_ring_take(&f->driver.rings[queue], &head, ret_length))
        return false;
    if (*ret_length)
        assert_int_equal(mem_read(f->machine.mem, buffer_at(queue, head), to, *ret_length), 0);
    return true;
}

static void fill_frame(uint8_t *frame, size_t length, uint8_t seed)
{
    for (size_t i = 0; i < length; i++)
        frame[i] = (uint8_t)(seed + i * 13);
    memcpy(frame, "\x52\x54\0\x09\x09\x09", 6);
    memcpy(frame + 6, own_mac, 6);
}

/* Sends a frame behind a header, in parts. */
static void send(struct fixture *f, const uint8_t *header, const uint8_t *frame, size_t length,
                 size_t part)
{
    uint8_t *bytes = malloc(HEADER + length);
    memcpy(bytes, header, HEADER);
    memcpy(bytes + HEADER, frame, length);
    put(f, TX, bytes, HEADER + length, part);
    free(bytes);
}

static void expect_sent(struct fixture *f, unsigned queue, const uint8_t *frame, size_t length)
{
    struct test_frame got;
    assert_true(eventually(test_nic_take(f->nic, queue, &got)));
    assert_int_equal(got.length, length);
    assert_memory_equal(got.bytes, frame, length);
    free(got.bytes);
}

static void the_configuration_says_what_there_is(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->driver;
    uint64_t offered = driver_offered(d);
    assert_int_equal(offered & (BASE | OFFLOADS | F_MTU | F_MQ | F_MERGE | F_HOST_TSO6),
                     BASE | OFFLOADS | F_MTU | F_MQ | F_MERGE | F_HOST_TSO6);
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(driver_read(d, d->device + i, 1), own_mac[i]);
    assert_int_equal(driver_read(d, d->device + 6, 2), 1);
    assert_int_equal(driver_read(d, d->device + 8, 2), TEST_NIC_QUEUES);
    assert_int_equal(driver_read(d, d->device + 10, 2), 9000);
}

static void frames_leave_in_order(void **state)
{
    struct fixture *f = *state;
    static uint8_t frame[9014];
    uint8_t header[HEADER] = {0};
    bring_up(f, BASE);
    for (unsigned i = 0; i < 500; i++) {
        size_t length = 14 + i * 18;
        fill_frame(frame, length, (uint8_t)i);
        send(f, header, frame, length, i % 3 == 0 ? 20000 : 300 + i);
        expect_sent(f, 0, frame, length);
    }
    assert_true(eventually(f->machine.messages[TX + 1] > 0));
    assert_int_equal(stats(f).out_frames, 500);
    assert_int_equal(stats(f).out_dropped, 0);
}

static void offloads_come_through(void **state)
{
    struct fixture *f = *state;
    static uint8_t frame[60000];
    const uint8_t header[HEADER] = {1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 9, 9};
    struct test_frame got;
    bring_up(f, BASE | OFFLOADS);
    assert_int_equal(f->nic->accepted, NIC_F_CSUM | NIC_F_TSO4);
    fill_frame(frame, sizeof frame, 1);
    send(f, header, frame, sizeof frame, 4096);
    assert_true(eventually(test_nic_take(f->nic, 0, &got)));
    const struct nic_offload expected = {NIC_CSUM_NEEDED, NIC_GSO_TCP4, 54, 1448, 34, 16};
    assert_memory_equal(&got.offload, &expected, sizeof expected);
    assert_memory_equal(got.bytes, frame, sizeof frame);
    free(got.bytes);
}

/* Whatever a driver writes into a header: the frame is dropped, the device goes on. */
static void frames_that_make_no_sense_are_dropped(void **state)
{
    struct fixture *f = *state;
    static uint8_t frame[70000];
    static const struct {
        uint8_t header[HEADER];
        size_t length;
    } bad[] = {
        {{1, 0, 0, 0, 0, 0, 0, 0, 99, 0}, 100},            /* the sum's place ends outside */
        {{1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, 100}, /* far outside */
        {{1, 0, 0, 0, 0, 0, 100, 0, 0, 0}, 100},           /* just outside */
        {{1, 1, 54, 0, 0, 0, 34, 0, 16, 0}, 3000},         /* segments of nothing */
        {{0, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0}, 3000},      /* segments without a sum */
        {{1, 4, 54, 0, 0xa8, 5, 34, 0, 16, 0}, 3000},      /* TSO6 was not negotiated */
        {{1, 0x81, 54, 0, 0xa8, 5, 34, 0, 16, 0}, 3000},   /* nor ECN */
        {{1, 3, 54, 0, 0xa8, 5, 34, 0, 16, 0}, 3000},      /* UFO never is */
        {{1, 0x7f, 54, 0, 0xa8, 5, 34, 0, 16, 0}, 3000},   /* and this is nothing */
        {{1, 1, 0xff, 0xff, 0xa8, 5, 34, 0, 16, 0}, 3000}, /* headers longer than the frame */
        {{0}, 13},                                         /* less than Ethernet's own */
        {{0}, 0},
        {{0}, NIC_FRAME_MAX + 1},
    };
    const uint8_t good[HEADER] = {1, 0, 0, 0, 0, 0, 34, 0, 16, 0};
    bring_up(f, BASE | OFFLOADS);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        fill_frame(frame, sizeof frame, (uint8_t)i);
        send(f, bad[i].header, frame, bad[i].length, 30000);
        assert_true(eventually(stats(f).out_dropped == i + 1));
    }
    put(f, TX, frame, 5, 5); /* not even a header */
    assert_true(eventually(stats(f).out_dropped == ARRAY_LEN(bad) + 1));
    send(f, good, frame, 100, 100);
    expect_sent(f, 0, frame, 100);
    assert_int_equal(driver_status(&f->driver) & VIRTIO_STATUS_NEEDS_RESET, 0);
}

static void what_was_not_negotiated_is_refused(void **state)
{
    struct fixture *f = *state;
    uint8_t frame[200];
    const uint8_t header[HEADER] = {1, 0, 0, 0, 0, 0, 34, 0, 16, 0};
    fill_frame(frame, sizeof frame, 1);
    bring_up(f, BASE | F_HOST_TSO4); /* without the sum that it needs */
    send(f, header, frame, sizeof frame, 500);
    assert_true(eventually(stats(f).out_dropped == 1));
    assert_int_equal(f->nic->accepted, 0);
}

static void rules_of_the_queues_are_enforced(void **state)
{
    struct fixture *f = *state;
    struct driver_ring *ring = &f->driver.rings[TX];
    bring_up(f, BASE);
    driver_ring_descriptor(ring, 0, AREA, 100, 1, 1); /* a loop */
    driver_ring_descriptor(ring, 1, AREA, 100, 1, 0);
    driver_ring_offer(ring, 0);
    driver_kick(&f->driver, TX);
    assert_true(eventually(driver_status(&f->driver) & VIRTIO_STATUS_NEEDS_RESET));

    /* A receive buffer that holds no header. */
    uint8_t frame[60];
    fill_frame(frame, sizeof frame, 1);
    bring_up(f, BASE | F_MERGE);
    give(f, RX, 1, 11);
    test_nic_give(f->nic, 0, NULL, frame, sizeof frame);
    assert_true(eventually(driver_status(&f->driver) & VIRTIO_STATUS_NEEDS_RESET));
    bring_up(f, BASE);
    assert_int_equal(driver_status(&f->driver) & VIRTIO_STATUS_NEEDS_RESET, 0);
}

static void spoofed_frames_stay_here(void **state)
{
    struct fixture *f = *state;
    uint8_t frame[64], header[HEADER] = {0};
    assert_int_equal(driver_offered(&f->driver) & F_CTRL_MAC, 0);
    bring_up(f, BASE & ~F_CTRL_MAC);
    fill_frame(frame, sizeof frame, 1);
    frame[11] ^= 1;
    send(f, header, frame, sizeof frame, 15); /* the header in pieces, too */
    assert_true(eventually(stats(f).out_dropped == 1));
    frame[11] ^= 1;
    send(f, header, frame, sizeof frame, 15);
    expect_sent(f, 0, frame, sizeof frame);
}

static void frames_arrive(void **state)
{
    struct fixture *f = *state;
    static uint8_t frame[1514], got[BUFFER];
    uint32_t length;
    bring_up(f, BASE | OFFLOADS);
    give(f, RX, 32, 1600);
    for (unsigned i = 0; i < 200; i++) {
        const struct nic_offload offload = {.flags = NIC_CSUM_VALID};
        size_t size = 14 + i * 7;
        fill_frame(frame, size, (uint8_t)i);
        test_nic_give(f->nic, 0, i % 2 ? &offload : NULL, frame, size);
        assert_true(eventually(take(f, RX, got, &length)));
        assert_int_equal(length, HEADER + size);
        assert_memory_equal(got, i % 2 ? "\2\0\0\0\0\0\0\0\0\0\1\0" : "\0\0\0\0\0\0\0\0\0\0\1\0",
                            12);
        assert_memory_equal(got + HEADER, frame, size);
        give(f, RX, 1, 1600);
    }
    assert_true(eventually(f->machine.messages[RX + 1] > 0));
    assert_int_equal(stats(f).in_frames, 200);
}

static void a_guest_that_wants_no_flags_gets_none(void **state)
{
    struct fixture *f = *state;
    uint8_t frame[60], got[BUFFER];
    uint32_t length;
    const struct nic_offload valid = {.flags = NIC_CSUM_VALID};
    const struct nic_offload needed = {NIC_CSUM_NEEDED, 0, 0, 0, 34, 16};
    bring_up(f, BASE);
    give(f, RX, 4, 2000);
    fill_frame(frame, sizeof frame, 1);
    test_nic_give(f->nic, 0, &needed, frame, sizeof frame); /* nobody asked for it: dropped */
    test_nic_give(f->nic, 0, &valid, frame, sizeof frame);
    assert_true(eventually(take(f, RX, got, &length)));
    assert_int_equal(got[0], 0);
    assert_int_equal(stats(f).in_dropped, 1);
}

static void a_frame_without_a_place_is_dropped(void **state)
{
    struct fixture *f = *state;
    static uint8_t frame[1514], got[BUFFER];
    uint32_t length;
    bring_up(f, BASE);
    give(f, RX, 1, 1000);
    fill_frame(frame, sizeof frame, 1);
    test_nic_give(f->nic, 0, NULL, frame, 989);
    test_nic_give(f->nic, 0, NULL, frame, 988);
    assert_true(eventually(take(f, RX, got, &length)));
    assert_int_equal(length, 1000);
    assert_int_equal(stats(f).in_dropped, 1);
}

static void large_frames_are_spread_over_buffers(void **state)
{
    struct fixture *f = *state;
    static uint8_t frame[20000], got[BUFFER], whole[BUFFER];
    uint32_t length;
    bring_up(f, BASE | F_MERGE);
    atomic_store(&f->machine.mem->dirty_log, true);
    give(f, RX, 5, 1536);
    fill_frame(frame, sizeof frame, 7);
    test_nic_give(f->nic, 0, NULL, frame, sizeof frame);
    for (unsigned i = 0; i < 100; i++)
        nap();
    assert_false(take(f, RX, got, &length)); /* too few: nothing is seen of it */
    give(f, RX, 12, 1536);
    size_t done = 0;
    unsigned parts = 0;
    while (done < HEADER + sizeof frame) {
        assert_true(eventually(take(f, RX, got, &length)));
        memcpy(whole + done, got, length);
        done += length;
        parts++;
    }
    assert_int_equal(parts, 14);
    assert_int_equal(le16_read(whole + 10), parts);
    assert_int_equal(done, HEADER + sizeof frame);
    assert_memory_equal(whole + HEADER, frame, sizeof frame);
    const struct mem_region *region = mem_find(f->machine.mem, AREA);
    uint64_t page = (buffer_at(RX, 0) - region->start) >> MEM_PAGE_SHIFT;
    assert_true(region->marks[page] & MEM_PAGE_DIRTY);
}

/* More than a whole ring of tiny buffers can hold. */
static void a_frame_that_can_never_fit_does_not_block(void **state)
{
    struct fixture *f = *state;
    static uint8_t frame[20000], got[BUFFER];
    uint32_t length;
    bring_up(f, BASE | F_MERGE);
    give(f, RX, RING, 100);
    fill_frame(frame, sizeof frame, 7);
    test_nic_give(f->nic, 0, NULL, frame, sizeof frame);
    test_nic_give(f->nic, 0, NULL, frame, 60);
    assert_true(eventually(take(f, RX, got, &length)));
    assert_int_equal(length, 72);
    assert_int_equal(le16_read(got + 10), 1);
    assert_int_equal(stats(f).in_dropped, 1);
}

/* One command; its answer, or 0xff where there was none. */
static uint8_t command(struct fixture *f, unsigned queue, const void *bytes, uint32_t size)
{
    struct driver_ring *ring = &f->driver.rings[queue];
    uint64_t at = buffer_at(queue, 0), ack_at = at + 65536;
    uint8_t ack = 0xff;
    uint32_t head, length;
    const struct driver_buffer buffers[] = {{at, size, false}, {ack_at, 1, true}};
    assert_int_equal(mem_write(f->machine.mem, at, bytes, size), 0);
    assert_int_equal(mem_write(f->machine.mem, ack_at, &ack, 1), 0);
    assert_true(driver_ring_add(ring, buffers, 2) >= 0);
    driver_kick(&f->driver, queue);
    assert_true(driver_ring_take(ring, &head, &length)); /* before the kick has returned */
    assert_int_equal(mem_read(f->machine.mem, ack_at, &ack, 1), 0);
    return ack;
}

static bool arrives(struct fixture *f, const char *to)
{
    uint8_t frame[60], got[BUFFER];
    uint32_t length;
    /* A frame behind it that always passes says that the first one was judged. */
    fill_frame(frame, sizeof frame, 1);
    memcpy(frame, to, 6);
    test_nic_give(f->nic, 0, NULL, frame, 50);
    memcpy(frame, "\x52\x54\0\1\2\3", 6);
    test_nic_give(f->nic, 0, NULL, frame, 60);
    give(f, RX, 2, 200);
    assert_true(eventually(take(f, RX, got, &length)));
    bool came = length == HEADER + 50;
    if (came)
        assert_true(eventually(take(f, RX, got, &length)));
    return came;
}

static void the_guest_chooses_what_it_hears(void **state)
{
    struct fixture *f = *state;
    const char *const other = "\x52\x54\0\x77\1\1", *group = "\x33\x33\0\0\0\1",
                      *all = "\xff\xff\xff\xff\xff\xff";
    bring_up(f, BASE | F_MERGE | (UINT64_C(1) << 20));
    assert_true(arrives(f, other));                        /* at first: everything */
    assert_int_equal(command(f, CONTROL, "\0\0\0", 3), 0); /* promiscuous off */
    assert_false(arrives(f, other));
    assert_false(arrives(f, group));
    assert_true(arrives(f, all));
    assert_int_equal(command(f, CONTROL, "\0\5\1", 3), 0); /* no broadcast */
    assert_false(arrives(f, all));
    assert_int_equal(command(f, CONTROL, "\0\1\1", 3), 0); /* all multicast */
    assert_true(arrives(f, group));
    assert_int_equal(command(f, CONTROL, "\0\1\0", 3), 0);
    /* Tables: one unicast, one multicast. */
    assert_int_equal(
        command(f, CONTROL, "\1\0\1\0\0\0\x52\x54\0\x77\1\1\1\0\0\0\x33\x33\0\0\0\1", 22), 0);
    assert_true(arrives(f, other));
    assert_true(arrives(f, group));
    assert_false(arrives(f, "\x33\x33\0\0\0\2"));
    /* More than we keep: as if all were in it. */
    static uint8_t many[2 + 4 + 4 + 6 * 100] = {1, 0, 0, 0, 0, 0, 100};
    assert_int_equal(command(f, CONTROL, many, sizeof many), 0);
    assert_true(arrives(f, "\x33\x33\0\0\0\2"));
    assert_false(arrives(f, other));
}

static void the_mac_can_be_changed(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->driver;
    bring_up(f, BASE | F_MERGE);
    assert_int_equal(command(f, CONTROL, "\0\0\0", 3), 0);
    assert_int_equal(command(f, CONTROL, "\1\1\x52\x54\0\1\2\3", 8), 0);
    assert_false(arrives(f, "\x02\0\0\0\0\x09"));
    /* arrives() wants to be heard at the old address, so both are in the end. */
    assert_int_equal(command(f, CONTROL, "\1\0\1\0\0\0\x52\x54\0\1\2\3\0\0\0\0", 16), 0);
    assert_int_equal(command(f, CONTROL, "\1\1\x02\0\0\0\0\x09", 8), 0);
    assert_int_equal(driver_read(d, d->device + 5, 1), 9);
    assert_true(arrives(f, "\x02\0\0\0\0\x09"));
    bring_up(f, BASE); /* a reset brings the old one back */
    assert_int_equal(driver_read(d, d->device + 5, 1), 3);
}

static void bad_commands_are_errors(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *bytes;
        uint32_t size;
    } bad[] = {
        {"\0", 1},
        {"\0\0", 2},
        {"\0\0\2", 3},
        {"\0\x09\1", 3},
        {"\x63\0\0", 3},
        {"\1\0\1\0\0\0", 6},
        {"\1\0\xff\xff\xff\xff\0\0\0\0", 10},
        {"\1\0\0\0\0\0\1\0\0\0", 10},
        {"\1\1\1\1\1", 5},
        {"\1\7\0", 3},
        {"\4\0\1\0", 4},
        {"\3\1", 2},
        {"\2\0\0\0", 4},
    };
    bring_up(f, BASE);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_int_equal(command(f, CONTROL, bad[i].bytes, bad[i].size), 1);
    assert_int_equal(command(f, CONTROL, "\0\0\1", 3), 0);
    /* Nowhere to put the answer. */
    const struct driver_buffer buffer = {buffer_at(CONTROL, 0), 3, false};
    driver_ring_add(&f->driver.rings[CONTROL], &buffer, 1);
    driver_kick(&f->driver, CONTROL);
    assert_true(driver_status(&f->driver) & VIRTIO_STATUS_NEEDS_RESET);
}

static void several_pairs_work_side_by_side(void **state)
{
    struct fixture *f = *state;
    uint8_t frame[60], bytes[72] = {0}, got[BUFFER];
    uint32_t length;
    fill_frame(frame, sizeof frame, 1);
    memcpy(bytes + HEADER, frame, sizeof frame);
    bring_up(f, BASE | F_MQ);
    assert_true(f->nic->off[1]);
    give(f, 2, 1, 200);
    test_nic_give(f->nic, 1, NULL, frame, sizeof frame);
    assert_int_equal(command(f, CONTROL_MQ, "\4\0\0\0", 4), 1);
    assert_int_equal(command(f, CONTROL_MQ, "\4\0\3\0", 4), 1);
    assert_false(take(f, 2, got, &length)); /* not yet in use */
    assert_int_equal(command(f, CONTROL_MQ, "\4\0\2\0", 4), 0);
    assert_false(f->nic->off[1]);
    assert_true(eventually(take(f, 2, got, &length)));
    assert_memory_equal(got + HEADER, frame, sizeof frame);
    put(f, 3, bytes, sizeof bytes, 100);
    expect_sent(f, 1, frame, sizeof frame);
    assert_int_equal(command(f, CONTROL_MQ, "\4\0\1\0", 4), 0);
    assert_true(f->nic->off[1]);
}

static void the_cable_can_be_pulled(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->driver;
    uint8_t frame[60], header[HEADER] = {0}, got[BUFFER];
    uint32_t length;
    bring_up(f, BASE);
    give(f, RX, 2, 200);
    fill_frame(frame, sizeof frame, 1);
    int before = f->machine.messages[0];
    assert_true(stats(f).up);
    virtio_net_set_link(f->net, false);
    assert_false(stats(f).up);
    assert_int_equal(driver_read(d, d->device + 6, 2), 0);
    assert_true(f->machine.messages[0] > before);
    send(f, header, frame, sizeof frame, 100);
    assert_true(eventually(stats(f).out_dropped == 1));
    test_nic_give(f->nic, 0, NULL, frame, sizeof frame);
    virtio_net_set_link(f->net, false); /* once more is nothing new */
    assert_true(eventually(f->nic->in[0].count == 0));
    virtio_net_set_link(f->net, true);
    assert_int_equal(driver_read(d, d->device + 6, 2), 3); /* and it is to announce itself */
    assert_int_equal(command(f, CONTROL, "\3\0", 2), 0);
    test_nic_give(f->nic, 0, NULL, frame, 50);
    assert_true(eventually(take(f, RX, got, &length)));
    assert_int_equal(length, HEADER + 50);
    /* The other end goes away: no link, and none to be had. */
    test_nic_set(f->nic, false, true);
    assert_true(eventually(driver_read(d, d->device + 6, 2) == 0));
    virtio_net_set_link(f->net, true);
    assert_int_equal(driver_read(d, d->device + 6, 2), 0);
}

static void announcements_are_acknowledged(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->driver;
    bring_up(f, BASE);
    virtio_net_announce(f->net);
    assert_int_equal(driver_read(d, d->device + 6, 2), 3);
    assert_int_equal(f->machine.messages[0], 1);
    assert_int_equal(command(f, CONTROL, "\3\0", 2), 0);
    assert_int_equal(driver_read(d, d->device + 6, 2), 1);
    /* A cable that is put in may lead elsewhere. */
    virtio_net_set_link(f->net, false);
    assert_int_equal(driver_read(d, d->device + 6, 2), 0);
    virtio_net_set_link(f->net, true);
    assert_int_equal(driver_read(d, d->device + 6, 2), 3);
}

static void a_slow_host_holds_the_guest_back(void **state)
{
    struct fixture *f = *state;
    uint8_t frame[60], header[HEADER] = {0};
    bring_up(f, BASE);
    test_nic_set(f->nic, true, false);
    for (uint8_t i = 0; i < 20; i++) {
        fill_frame(frame, sizeof frame, i);
        send(f, header, frame, sizeof frame, 100);
    }
    for (unsigned i = 0; i < 20; i++)
        nap();
    assert_int_equal(stats(f).out_frames, 0);
    test_nic_set(f->nic, false, false);
    for (uint8_t i = 0; i < 20; i++) {
        fill_frame(frame, sizeof frame, i);
        expect_sent(f, 0, frame, sizeof frame);
    }
    assert_int_equal(stats(f).out_dropped, 0);
}

enum { SMALL = 700 };

static void stain(struct fixture *f)
{
    for (unsigned i = 0; i < RING; i++)
        memset(mem_at(f->machine.mem, buffer_at(RX, i), SMALL, true), 0x77, SMALL);
}

static bool is_stained(struct fixture *f)
{
    uint8_t clean[SMALL];
    bool stained = true;
    memset(clean, 0x77, sizeof clean);
    for (unsigned i = 0; i < RING; i++)
        stained &= !memcmp(mem_at(f->machine.mem, buffer_at(RX, i), SMALL, false), clean, SMALL);
    return stained;
}

/* Whatever was on its way: after the reset nothing moves any more, and then all is as at first. */
static void a_reset_in_the_middle_is_clean(void **state)
{
    struct fixture *f = *state;
    static uint8_t frame[1000], got[BUFFER];
    uint8_t header[HEADER] = {0};
    uint32_t length;
    fill_frame(frame, sizeof frame, 1);
    f->nic->forget = true;
    for (unsigned round = 0; round < 50; round++) {
        bring_up(f, BASE | (round % 2 ? F_MERGE : 0));
        give(f, RX, 10, SMALL);
        for (unsigned i = 0; i < 10; i++) {
            test_nic_give(f->nic, 0, NULL, frame, 600);
            send(f, header, frame, sizeof frame, 400);
        }
        driver_set_status(&f->driver, 0);
        assert_int_equal(driver_status(&f->driver), 0);
        uint64_t sent = stats(f).out_frames, received = stats(f).in_frames;
        stain(f);
        test_nic_give(f->nic, 0, NULL, frame, 600);
        if (round % 4 == 0)
            nap();
        assert_true(is_stained(f));
        assert_int_equal(stats(f).out_frames, sent);
        assert_int_equal(stats(f).in_frames, received);
    }
    assert_int_equal(stats(f).in_dropped, 0);
    assert_int_equal(stats(f).out_dropped, 0);
    bring_up(f, BASE);
    give(f, RX, 1, SMALL);
    assert_true(eventually(take(f, RX, got, &length)));
    assert_int_equal(length, HEADER + 600);
    assert_memory_equal(got + HEADER, frame, 600);
    f->nic->forget = false;
    send(f, header, frame, sizeof frame, 400);
    expect_sent(f, 0, frame, sizeof frame);
}

static void rates_are_kept(void **state)
{
    struct fixture *f = *state; /* 1 MiB a second each way, a tenth of it at once */
    static uint8_t frame[32768], got[BUFFER];
    uint8_t header[HEADER] = {0};
    uint32_t length;
    bring_up(f, BASE);
    give(f, RX, 12, 40000);
    fill_frame(frame, sizeof frame, 1);
    uint64_t start = clock_ns();
    for (unsigned i = 0; i < 12; i++) {
        test_nic_give(f->nic, 0, NULL, frame, sizeof frame);
        send(f, header, frame, sizeof frame, 40000);
    }
    for (unsigned i = 0; i < 12; i++) {
        expect_sent(f, 0, frame, sizeof frame);
        assert_true(eventually(take(f, RX, got, &length)));
    }
    /* 384 KiB, of which 102 are free, and the last frame may owe. */
    assert_true(clock_ns() - start > UINT64_C(200) * 1000000);
    assert_int_equal(stats(f).in_frames, 12);
}

static void odd_configurations_are_refused(void **state)
{
    struct driver_machine machine;
    struct virtio_net *net;
    struct err err = {0};
    struct test_nic *nic = test_nic_new();
    driver_machine_init(&machine);
    struct virtio_net_config config = {.nic = &nic->nic, .mac = {1, 2, 3, 4, 5, 6}};
    assert_int_equal(virtio_net_new(machine.mem, &config, &net, &err), -EINVAL);
    config = (struct virtio_net_config){.nic = &nic->nic, .mac = {2, 2, 3, 4, 5, 6}, .mtu = 67};
    assert_int_equal(virtio_net_new(machine.mem, &config, &net, &err), -EINVAL);
    config = (struct virtio_net_config){.nic = &nic->nic};
    assert_int_equal(virtio_net_new(machine.mem, &config, &net, &err), -EINVAL);
    nic_free(&nic->nic);
    driver_machine_fini(&machine);
}

#define with(test, setup_function) cmocka_unit_test_setup_teardown(test, setup_function, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        with(the_configuration_says_what_there_is, setup),
        with(frames_leave_in_order, setup),
        with(offloads_come_through, setup),
        with(frames_that_make_no_sense_are_dropped, setup),
        with(what_was_not_negotiated_is_refused, setup),
        with(rules_of_the_queues_are_enforced, setup),
        with(spoofed_frames_stay_here, setup_strict),
        with(frames_arrive, setup),
        with(a_guest_that_wants_no_flags_gets_none, setup),
        with(a_frame_without_a_place_is_dropped, setup),
        with(large_frames_are_spread_over_buffers, setup),
        with(a_frame_that_can_never_fit_does_not_block, setup),
        with(the_guest_chooses_what_it_hears, setup),
        with(the_mac_can_be_changed, setup),
        with(bad_commands_are_errors, setup),
        with(several_pairs_work_side_by_side, setup),
        with(the_cable_can_be_pulled, setup),
        with(announcements_are_acknowledged, setup),
        with(a_slow_host_holds_the_guest_back, setup),
        with(a_reset_in_the_middle_is_clean, setup),
        with(rates_are_kept, setup_slow),
        cmocka_unit_test(odd_configurations_are_refused),
    };
    return cmocka_run_group_tests_name("virtio-net", tests, NULL, NULL);
}
