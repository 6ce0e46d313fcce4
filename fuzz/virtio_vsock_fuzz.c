// needs: base mem bus disk virtio
/*
 * A whole virtio-vsock behind its PCI transport, with a driver that begins well and then does what
 * the input says: packets that are nearly in order, registers, rings, resets; an owner that calls,
 * dials late, twice or never; and programs of the host that write, read and close meanwhile.
 */
#include "base/bytes.h"
#include "base/record.h"
#include "input.h"
#include "virtio/pci.h"
#include "virtio/test_driver.h"
#include "virtio/vsock.h"
#include "virtio/vsock_packet.h"

#include <assert.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    SLOT = 1,
    CID = 3,
    STEPS = 512,
    PROGRAMS = 12,
    RING = 16,
    RINGS = 1 << 20,
    RX_DATA = 8 << 20,
    TX_DATA = 16 << 20,
    SPACE = 256 << 10, /* of one buffer */
    PATIENCE = 200,
};

#define FEATURES (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)

struct table {
    struct driver_machine machine;
    struct driver driver;
    struct virtio_vsock *vsock;
    struct virtio_pci *transport;
    int programs[PROGRAMS]; /* the host's, at the other ends; -1 = none */
    _Atomic uint32_t last_id;
    struct input input;
};

static uint64_t next(struct table *t, unsigned bytes)
{
    return input_next(&t->input, bytes);
}

static int dial(void *opaque, uint32_t id, uint32_t port)
{
    struct table *t = opaque;
    t->last_id = id;
    return port == 3 ? -1 : 0;
}

static bool ready(void *opaque, struct virtio_vsock *vsock)
{
    return false;
}

static void table_init(struct table *t)
{
    driver_machine_init(&t->machine);
    for (unsigned i = 0; i < PROGRAMS; i++)
        t->programs[i] = -1;
    int null[2];
    int r = pipe(null);
    assert(r == 0);
    const struct virtio_vsock_host host = {
        .fd = null[0], .ready = ready, .dial = dial, .opaque = t};
    r = virtio_vsock_new(t->machine.mem, CID, &host, &t->vsock, NULL);
    if (r >= 0)
        r = virtio_pci_new(t->machine.host, SLOT, virtio_vsock_device(t->vsock), &t->transport,
                           NULL);
    assert(r >= 0);
    (void)r;
    close(null[1]); /* the owner's end, at once */
    driver_machine_place(&t->machine);
    driver_init(&t->driver, &t->machine, SLOT);
    t->programs[0] = null[0]; /* closed with the others */
}

static void table_fini(struct table *t)
{
    virtio_pci_free(t->transport);
    for (unsigned i = 0; i < PROGRAMS; i++)
        if (t->programs[i] >= 0)
            close(t->programs[i]);
    driver_machine_fini(&t->machine);
}

/* Lets the device work: until it has taken what was offered, or does not want to. */
static void settle(struct table *t)
{
    uint8_t used[2], available[2];
    const struct driver_ring *ring = &t->driver.rings[1];
    for (int i = 0; i < PATIENCE; i++) {
        if (mem_read(t->machine.mem, ring->used + 2, used, 2) < 0 ||
            mem_read(t->machine.mem, ring->available + 2, available, 2) < 0 ||
            !memcmp(used, available, 2))
            return;
        sched_yield();
    }
}

/* Takes back what was used, as far as it makes sense: the input may have written over it. */
static void reap(struct table *t, struct driver_ring *ring)
{
    uint8_t index[2], entry[8];
    uint32_t head, length;
    for (int i = 0; i < RING; i++) {
        mem_read(t->machine.mem, ring->used + 2, index, sizeof index);
        mem_read(t->machine.mem, ring->used + 4 + 8 * (ring->used_index % RING), entry,
                 sizeof entry);
        head = le32_read(entry);
        if (le16_read(index) == ring->used_index || head >= RING ||
            ring->free_count + ring->chain_length[head] > RING)
            return;
        driver_ring_take(ring, &head, &length);
    }
}

static void give_buffers(struct table *t, unsigned queue, unsigned count, uint32_t size)
{
    struct driver_ring *ring = &t->driver.rings[queue];
    reap(t, ring);
    for (unsigned i = 0; i < count && ring->free_count > 0; i++) {
        const struct driver_buffer buffer = {RX_DATA + ring->free[ring->free_count - 1] * 8192u,
                                             size, true};
        driver_ring_add(ring, &buffer, 1);
    }
    driver_kick(&t->driver, queue);
}

static void bring_up(struct table *t)
{
    driver_negotiate(&t->driver, FEATURES);
    driver_msix_on(&t->driver, 4);
    for (unsigned queue = 0; queue < 3; queue++)
        driver_queue(&t->driver, queue, RING, true);
    driver_live(&t->driver);
    give_buffers(t, 0, RING, 4096);
}

/* A packet whose fields are mostly what they should be. */
static void add_packet(struct table *t)
{
    struct driver_ring *ring = &t->driver.rings[1];
    uint8_t how = (uint8_t)next(t, 1), header[VSOCK_HEADER_SIZE];
    uint32_t length = how & 1 ? (uint32_t)next(t, 3) % SPACE : (uint32_t)next(t, 1);
    struct vsock_packet packet = {
        .src_cid = how % 64 == 2 ? next(t, 8) : CID,
        .dst_cid = how % 64 == 4 ? next(t, 8) : VSOCK_CID_HOST,
        .src_port = (uint32_t)next(t, 1) % 4,
        .dst_port = how & 8 ? (1u << 30) + (uint32_t)next(t, 1) % 8 : (uint32_t)next(t, 1) % 4,
        .length = length,
        .type = how % 64 == 6 ? (uint16_t)next(t, 2) : VSOCK_TYPE_STREAM,
        .op = (uint16_t)(next(t, 1) % 9),
        .flags = (uint32_t)next(t, 1),
        .buf_alloc = how & 16 ? (uint32_t)next(t, 4) : 65536,
        .fwd_cnt = how & 32 ? (uint32_t)next(t, 4) : 0,
    };
    reap(t, ring);
    if (ring->free_count < 2)
        return;
    uint64_t at = TX_DATA + ring->free[ring->free_count - 1] * (uint64_t)SPACE;
    vsock_packet_encode(&packet, header);
    mem_write(t->machine.mem, at, header, sizeof header);
    const struct driver_buffer buffers[2] = {
        {at, VSOCK_HEADER_SIZE, false},
        {TX_DATA, how % 32 == 12 ? 1 : packet.length, false},
    };
    driver_ring_add(ring, buffers, packet.length ? 2 : 1);
    driver_kick(&t->driver, 1);
    settle(t);
}

static int other_end(struct table *t, unsigned place)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) < 0)
        return -1;
    if (t->programs[place] >= 0)
        close(t->programs[place]);
    t->programs[place] = pair[1];
    return pair[0];
}

static void owner_moves(struct table *t)
{
    uint8_t what = (uint8_t)next(t, 1);
    unsigned place = 1 + what / 4 % (PROGRAMS - 1);
    if (what % 4 == 0) {
        virtio_vsock_dialed(t->vsock, t->last_id, -1);
    } else {
        int fd = other_end(t, place);
        if (fd >= 0 && what % 4 == 1)
            virtio_vsock_call(t->vsock, (uint32_t)next(t, 1) % 4, fd);
        else
            virtio_vsock_dialed(t->vsock, t->last_id - (what % 4 == 3), fd);
    }
    sched_yield();
}

static void program_moves(struct table *t)
{
    static uint8_t bytes[65536];
    uint8_t what = (uint8_t)next(t, 1);
    unsigned place = 1 + what / 8 % (PROGRAMS - 1);
    int fd = t->programs[place];
    if (fd < 0)
        return;
    ssize_t r = 0;
    switch (what % 8) {
    case 0:
        t->programs[place] = -1;
        close(fd);
        break;
    case 1: shutdown(fd, SHUT_WR); break;
    case 2: shutdown(fd, SHUT_RD); break;
    case 3:
    case 4: r = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT); break;
    default: r = send(fd, bytes, next(t, 2), MSG_DONTWAIT | MSG_NOSIGNAL); break;
    }
    (void)r;
    sched_yield();
}

static void scribble(struct table *t)
{
    uint64_t address = RINGS + next(t, 3) % 0x4000;
    input_scribble(&t->input, t->machine.mem, address);
}

/* As if it had been saved and loaded: the driver is to hear that its peers are gone. */
static void move(struct table *t)
{
    struct record record;
    struct virtio_device *device = virtio_vsock_device(t->vsock);
    record_load(&record, NULL, 0, 1);
    device->ops->state(device, &record);
}

static void step(struct table *t)
{
    uint64_t bar = t->driver.common & ~UINT64_C(0xfff);
    unsigned width = 1u << next(t, 1) % 4;
    switch (next(t, 1) % 20) {
    case 0: driver_write(&t->driver, bar + next(t, 2) % 0x8000, width, next(t, width)); break;
    case 1: driver_read(&t->driver, bar + next(t, 2) % 0x8000, width); break;
    case 2: scribble(t); break;
    case 3:
        if (next(t, 1) % 4 == 0)
            bring_up(t);
        break;
    case 4: move(t); break;
    case 5: give_buffers(t, 2, 1, (uint32_t)next(t, 1) + 1); break;
    case 6: give_buffers(t, 0, 4, (uint32_t)next(t, 2) % 4096 + 1); break;
    case 7: give_buffers(t, 0, RING, 4096); break;
    case 8:
    case 9: owner_moves(t); break;
    case 10:
    case 11:
    case 12: program_moves(t); break;
    default: add_packet(t); break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct table *t = calloc(1, sizeof *t);
    t->input = (struct input){data, size};
    table_init(t);
    bring_up(t);
    for (int i = 0; i < STEPS && t->input.left > 0; i++)
        step(t);
    table_fini(t);
    free(t);
    return 0;
}
