/*
 * vsock_fixture.h: for tests of the socket device from both ends: a driver in plain memory, and the
 * sockets' other ends.
 */
#pragma once

#include "virtio/vsock.h"

#include "base/bytes.h"
#include "base/own.h"
#include "base/record.h"
#include "virtio/pci.h"
#include "virtio/test_driver.h"
#include "virtio/vsock_packet.h"
#include "virtio/vsock_state.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum {
    SLOT = 3,
    CID = 42,
    RX = 0,
    TX = 1,
    EVENT = 2,
    RING = 64,
    RX_BUFFER = 4096 + VSOCK_HEADER_SIZE,
    RX_AREA = 16 << 20,
    RX_STEP = 8192,
    TX_AREA = 32 << 20,
    TX_STEP = 256 << 10,
    EVENT_AREA = 24 << 20,
    GUEST_BUFFER = 256 << 10,
    PORT_G = 7001, /* the guest's */
    PORT_H = 52,   /* the host's */
    DIALS = 512,
};

#define FEATURES (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)

struct fixture {
    struct driver_machine machine;
    struct driver driver;
    struct virtio_vsock *vsock;
    struct virtio_pci *transport;
    int owner[2]; /* [0] is the device's */
    _Atomic unsigned dials;
    struct {
        uint32_t id, port;
    } dialed[DIALS];
    _Atomic unsigned readies;
    int call_at_once;            /* -1, or a descriptor for ready() */
    int refuse;                  /* what dial() answers */
    uint32_t buf_alloc, fwd_cnt; /* what the guest's packets say */
};

static inline int dial(void *opaque, uint32_t id, uint32_t port)
{
    struct fixture *f = opaque;
    f->dialed[f->dials % DIALS].id = id;
    f->dialed[f->dials % DIALS].port = port;
    f->dials++;
    return f->refuse;
}

static inline bool ready(void *opaque, struct virtio_vsock *vsock)
{
    struct fixture *f = opaque;
    char byte;
    f->readies++;
    if (f->call_at_once >= 0)
        virtio_vsock_call(vsock, 1024, take_fd(&f->call_at_once));
    return recv(f->owner[0], &byte, 1, MSG_DONTWAIT) != 0;
}

static inline int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->buf_alloc = GUEST_BUFFER;
    f->call_at_once = -1;
    driver_machine_init(&f->machine);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, f->owner) < 0)
        return -1;
    const struct virtio_vsock_host host = {
        .fd = f->owner[0], .ready = ready, .dial = dial, .opaque = f};
    if (virtio_vsock_new(f->machine.mem, CID, &host, &f->vsock, NULL) < 0 ||
        virtio_pci_new(f->machine.host, SLOT, virtio_vsock_device(f->vsock), &f->transport, NULL) <
            0)
        return -1;
    driver_machine_place(&f->machine);
    driver_init(&f->driver, &f->machine, SLOT);
    *state = f;
    return 0;
}

static inline int teardown(void **state)
{
    struct fixture *f = *state;
    virtio_pci_free(f->transport);
    close(f->owner[0]);
    if (f->owner[1] >= 0)
        close(f->owner[1]);
    driver_machine_fini(&f->machine);
    free(f);
    return 0;
}

/* --- the guest's hands --- */

static inline void give(struct fixture *f, unsigned queue, unsigned count, uint32_t size)
{
    struct driver_ring *ring = &f->driver.rings[queue];
    for (unsigned i = 0; i < count && ring->free_count > 0; i++) {
        uint16_t next = ring->free[ring->free_count - 1];
        uint64_t at = (queue == RX ? RX_AREA : EVENT_AREA) + next * (uint64_t)RX_STEP;
        const struct driver_buffer buffer = {at, size, true};
        assert_true(driver_ring_add(ring, &buffer, 1) >= 0);
    }
    driver_kick(&f->driver, queue);
}

static inline void bring_up_empty(struct fixture *f)
{
    struct driver *d = &f->driver;
    assert_true(driver_negotiate(d, FEATURES));
    driver_msix_on(d, 4);
    for (unsigned queue = 0; queue < 3; queue++)
        assert_true(driver_queue(d, queue, queue == EVENT ? 16 : RING, true));
    driver_live(d);
}

static inline void bring_up(struct fixture *f)
{
    bring_up_empty(f);
    give(f, RX, RING, RX_BUFFER);
}

static inline bool put(struct fixture *f, const struct vsock_packet *packet, const void *payload,
                       uint32_t size)
{
    struct driver_ring *ring = &f->driver.rings[TX];
    uint8_t header[VSOCK_HEADER_SIZE];
    uint32_t head, length;
    while (driver_ring_take(ring, &head, &length))
        ;
    if (ring->free_count == 0)
        return false;
    uint64_t at = TX_AREA + ring->free[ring->free_count - 1] * (uint64_t)TX_STEP;
    vsock_packet_encode(packet, header);
    mem_write(f->machine.mem, at, header, sizeof header);
    if (size)
        mem_write(f->machine.mem, at + sizeof header, payload, size);
    const struct driver_buffer buffer = {at, (uint32_t)sizeof header + size, false};
    return driver_ring_add(ring, &buffer, 1) >= 0;
}

static inline struct vsock_packet packet_of(struct fixture *f, uint32_t guest_port,
                                            uint32_t host_port, enum vsock_op op)
{
    return (struct vsock_packet){
        .src_cid = CID,
        .dst_cid = VSOCK_CID_HOST,
        .src_port = guest_port,
        .dst_port = host_port,
        .type = VSOCK_TYPE_STREAM,
        .op = (uint16_t)op,
        .buf_alloc = f->buf_alloc,
        .fwd_cnt = f->fwd_cnt,
    };
}

static inline void send_packet(struct fixture *f, const struct vsock_packet *packet,
                               const void *payload)
{
    assert_true(eventually(put(f, packet, payload, packet->length)));
    driver_kick(&f->driver, TX);
}

static inline void say(struct fixture *f, uint32_t guest_port, uint32_t host_port, enum vsock_op op)
{
    struct vsock_packet packet = packet_of(f, guest_port, host_port, op);
    send_packet(f, &packet, NULL);
}

static inline void say_shutdown(struct fixture *f, uint32_t guest_port, uint32_t host_port,
                                uint32_t flags)
{
    struct vsock_packet packet = packet_of(f, guest_port, host_port, VSOCK_OP_SHUTDOWN);
    packet.flags = flags;
    send_packet(f, &packet, NULL);
}

static inline void say_bytes(struct fixture *f, uint32_t guest_port, uint32_t host_port,
                             const void *bytes, uint32_t size)
{
    struct vsock_packet packet = packet_of(f, guest_port, host_port, VSOCK_OP_RW);
    packet.length = size;
    send_packet(f, &packet, bytes);
}

static inline bool take(struct fixture *f, struct vsock_packet *ret_packet, void *ret_payload)
{
    uint32_t head, length;
    uint8_t header[VSOCK_HEADER_SIZE];
    if (!driver_ring_take(&f->driver.rings[RX], &head, &length))
        return false;
    uint64_t at = RX_AREA + head * (uint64_t)RX_STEP;
    assert_true(length >= sizeof header);
    mem_read(f->machine.mem, at, header, sizeof header);
    vsock_packet_decode(header, ret_packet);
    assert_int_equal(length, sizeof header + ret_packet->length);
    if (ret_packet->length)
        mem_read(f->machine.mem, at + sizeof header, ret_payload, ret_packet->length);
    give(f, RX, 1, RX_BUFFER);
    return true;
}

static inline struct vsock_packet hear_any(struct fixture *f, void *ret_payload)
{
    struct vsock_packet packet = {0};
    assert_true(eventually(take(f, &packet, ret_payload)));
    assert_int_equal(packet.dst_cid, CID);
    return packet;
}

static inline struct vsock_packet hear(struct fixture *f, uint32_t guest_port, uint32_t host_port,
                                       enum vsock_op op)
{
    uint8_t bytes[RX_BUFFER];
    struct vsock_packet packet = hear_any(f, bytes);
    assert_int_equal(packet.op, op);
    assert_int_equal(packet.src_cid, VSOCK_CID_HOST);
    assert_int_equal(packet.dst_port, guest_port);
    assert_int_equal(packet.src_port, host_port);
    assert_int_equal(packet.type, VSOCK_TYPE_STREAM);
    return packet;
}

static inline void hear_shutdown(struct fixture *f, uint32_t guest_port, uint32_t host_port,
                                 uint32_t flags)
{
    assert_int_equal(hear(f, guest_port, host_port, VSOCK_OP_SHUTDOWN).flags, flags);
}

static inline void hear_bytes(struct fixture *f, const char *text)
{
    uint8_t bytes[RX_BUFFER];
    struct vsock_packet packet = hear_any(f, bytes);
    assert_int_equal(packet.op, VSOCK_OP_RW);
    assert_int_equal(packet.length, strlen(text));
    assert_memory_equal(bytes, text, packet.length);
    f->fwd_cnt += packet.length;
}

/* All that was said before has been acted upon: a packet to nowhere is answered by a reset. */
static inline void turn(struct fixture *f)
{
    struct vsock_packet packet;
    say(f, 1, 1, VSOCK_OP_CREDIT_UPDATE);
    do
        packet = hear_any(f, NULL);
    while (packet.op == VSOCK_OP_CREDIT_UPDATE);
    assert_int_equal(packet.op, VSOCK_OP_RST);
    assert_int_equal(packet.dst_port, 1);
}

/* --- the host's hands --- */

static inline bool host_reads(int fd, void *to, size_t size)
{
    struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return recv(fd, to, size, MSG_WAITALL) == (ssize_t)size;
}

static inline bool host_reads_end(int fd)
{
    char byte;
    struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ssize_t n = recv(fd, &byte, 1, 0);
    return n == 0 || (n < 0 && errno == ECONNRESET);
}

static inline void make_pair(int pair[2])
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
}

/* The guest has connected to PORT_H; our end. */
static inline int guest_connects_from(struct fixture *f, uint32_t guest_port)
{
    int pair[2];
    unsigned before = f->dials;
    say(f, guest_port, PORT_H, VSOCK_OP_REQUEST);
    assert_true(eventually(f->dials == before + 1));
    assert_int_equal(f->dialed[before % DIALS].port, PORT_H);
    make_pair(pair);
    virtio_vsock_dialed(f->vsock, f->dialed[before % DIALS].id, pair[0]);
    struct vsock_packet packet = hear(f, guest_port, PORT_H, VSOCK_OP_RESPONSE);
    assert_int_equal(packet.buf_alloc, VSOCK_BUFFER);
    assert_int_equal(packet.fwd_cnt, 0);
    return pair[1];
}

static inline int guest_connects(struct fixture *f)
{
    return guest_connects_from(f, PORT_G);
}

/* A host's program calls port 1024; its end, and the port that it got. */
static inline int host_calls(struct fixture *f, uint32_t *ret_port)
{
    int pair[2];
    make_pair(pair);
    virtio_vsock_call(f->vsock, 1024, pair[0]);
    struct vsock_packet packet = hear_any(f, NULL);
    assert_int_equal(packet.op, VSOCK_OP_REQUEST);
    assert_int_equal(packet.dst_port, 1024);
    assert_true(packet.src_port >= 1 << 30);
    assert_int_equal(packet.buf_alloc, VSOCK_BUFFER);
    *ret_port = packet.src_port;
    return pair[1];
}

static inline int host_is_connected(struct fixture *f, uint32_t *ret_port)
{
    char wanted[32], line[32] = "";
    int fd = host_calls(f, ret_port);
    say(f, 1024, *ret_port, VSOCK_OP_RESPONSE);
    int length = snprintf(wanted, sizeof wanted, "OK %u\n", *ret_port);
    assert_true(host_reads(fd, line, (size_t)length));
    assert_string_equal(line, wanted);
    return fd;
}
