/*
 * A device that is held leaves guest memory alone, whatever happens on either side of it: that is
 * when memory is saved. What has come meanwhile is served once it is released.
 */
#include "base/bytes.h"
#include "virtio/net.h"
#include "virtio/state_fixture.h"
#include "virtio/test_nic.h"
#include "virtio/vsock.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

enum {
    SLOT = 3,
    RING = 16,
    QUEUES_MAX = 5,
    BUFFERS = 16 << 20,
    BUFFER = 4096,
    ROUNDS = 20,
    FRAME = 60,
    NET_HEADER = 12,
};

#define USUAL (VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC)

static struct side *side_new(void)
{
    struct side *side = calloc(1, sizeof *side);
    driver_machine_init(&side->machine);
    return side;
}

static void bring_up(struct side *side, uint64_t features, unsigned queues)
{
    struct driver *driver = &side->driver;
    assert_true(driver_negotiate(driver, features & driver_offered(driver)));
    driver_msix_on(driver, queues + 1);
    for (unsigned queue = 0; queue < queues; queue++)
        assert_true(driver_queue(driver, queue, RING, true));
    driver_live(driver);
}

static uint64_t next_buffer(struct side *side, unsigned queue)
{
    const struct driver_ring *ring = &side->driver.rings[queue];
    return BUFFERS + (uint64_t)(queue * RING + ring->free[ring->free_count - 1]) * BUFFER;
}

static void offer(struct side *side, unsigned queue, bool write, uint32_t size)
{
    const struct driver_buffer buffer = {next_buffer(side, queue), size, write};
    assert_true(driver_ring_add(&side->driver.rings[queue], &buffer, 1) >= 0);
}

/* The rings are the test's own to write to, by pointers that leave no mark: each mark is the
 * device's. */
static void check_untouched(struct side *side)
{
    const struct mem_region *region = &side->machine.mem->regions[0];
    for (uint64_t page = 0; page < region->size >> MEM_PAGE_SHIFT; page++)
        if (region->marks[page] & MEM_PAGE_DIRTY)
            fail_msg("page %#llx was written to", (unsigned long long)page << MEM_PAGE_SHIFT);
}

static void hold(struct side *side)
{
    for (unsigned i = 0; i < 20; i++) /* what it has to say for a start is said */
        nap();
    virtio_hold(side->device);
    side->machine.mem->dirty_log = true;
}

static bool comes_back(struct side *side, unsigned queue)
{
    uint32_t head, length;
    return eventually(driver_ring_take(&side->driver.rings[queue], &head, &length));
}

/* ---- network card: frames come in, and are sent ---- */

static void a_network(uint64_t features)
{
    static const uint8_t mac[6] = {0x52, 0x54, 0, 1, 2, 3};
    uint8_t frame[FRAME] = {0x52, 0x54, 0, 1, 2, 3, 0x52, 0x54, 0, 9, 9, 9, 8, 0};
    struct test_nic *nic = test_nic_new();
    struct virtio_net_config config = {.nic = &nic->nic, .mtu = 1500};
    struct virtio_net *net;
    struct side *side = side_new();
    memcpy(config.mac, mac, sizeof mac);
    assert_int_equal(virtio_net_new(side->machine.mem, &config, &net, NULL), 0);
    assert_int_equal(side_init(side, virtio_net_device(net), SLOT), 0);
    bring_up(side, features, 2);
    for (unsigned i = 0; i < 8; i++)
        offer(side, 0, true, 2048);
    driver_kick(&side->driver, 0);
    test_nic_give(nic, 0, &(struct nic_offload){0}, frame, sizeof frame);
    assert_true(comes_back(side, 0));
    hold(side);
    for (unsigned round = 0; round < ROUNDS; round++) {
        test_nic_give(nic, 0, &(struct nic_offload){0}, frame, sizeof frame);
        if (round < 8) {
            offer(side, 1, false, NET_HEADER + FRAME);
            driver_kick(&side->driver, 1);
        }
        driver_kick(&side->driver, 0);
        nap();
        check_untouched(side);
    }
    virtio_release(side->device);
    for (unsigned i = 0; i < 7; i++)
        assert_true(comes_back(side, 0));
    for (unsigned i = 0; i < 8; i++)
        assert_true(comes_back(side, 1));
    side_fini(side);
    free(side);
}

static void a_network_card_that_is_held_writes_nothing(void **state)
{
    (void)state;
    a_network(USUAL | VIRTIO_F_EVENT_IDX);
    a_network(USUAL);
}

/* ---- sockets ---- */

static bool ready(void *opaque, struct virtio_vsock *vsock)
{
    return true;
}

static int dial(void *opaque, uint32_t id, uint32_t port)
{
    return -ECONNREFUSED;
}

static void sockets(uint64_t features)
{
    struct side *side = side_new();
    struct virtio_vsock *vsock;
    int owner[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, owner), 0);
    const struct virtio_vsock_host host = {.fd = owner[0], .ready = ready, .dial = dial};
    assert_int_equal(virtio_vsock_new(side->machine.mem, 3, &host, &vsock, NULL), 0);
    assert_int_equal(side_init(side, virtio_vsock_device(vsock), SLOT), 0);
    bring_up(side, features, 3);
    for (unsigned i = 0; i < 8; i++)
        offer(side, 0, true, 2048);
    driver_kick(&side->driver, 0);
    hold(side);
    for (unsigned round = 0; round < ROUNDS; round++) {
        if (round < 8) { /* packets to nobody: each is answered with a reset */
            uint8_t *packet = mem_at(side->machine.mem, next_buffer(side, 1), 44, true);
            memset(packet, 0, 44);
            le64_write(packet, 3);
            le64_write(packet + 8, 2);
            le32_write(packet + 16, 1000 + round);
            le32_write(packet + 20, 99);
            le16_write(packet + 28, 1); /* a stream */
            le16_write(packet + 30, 5); /* RW */
            offer(side, 1, false, 44);
        }
        driver_kick(&side->driver, 0);
        driver_kick(&side->driver, 1);
        nap();
        check_untouched(side);
    }
    virtio_release(side->device);
    for (unsigned i = 0; i < 8; i++)
        assert_true(comes_back(side, 1));
    for (unsigned i = 0; i < 8; i++)
        assert_true(comes_back(side, 0));
    side_fini(side);
    free(side);
    close(owner[0]);
    close(owner[1]);
}

static void sockets_that_are_held_write_nothing(void **state)
{
    (void)state;
    sockets(USUAL | VIRTIO_F_EVENT_IDX);
    sockets(USUAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_network_card_that_is_held_writes_nothing),
        cmocka_unit_test(sockets_that_are_held_write_nothing),
    };
    return cmocka_run_group_tests_name("held", tests, NULL, NULL);
}
