/* The socket device, from both ends: a driver in plain memory, and the sockets' other ends. */
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

static int dial(void *opaque, uint32_t id, uint32_t port)
{
    struct fixture *f = opaque;
    f->dialed[f->dials % DIALS].id = id;
    f->dialed[f->dials % DIALS].port = port;
    f->dials++;
    return f->refuse;
}

static bool ready(void *opaque, struct virtio_vsock *vsock)
{
    struct fixture *f = opaque;
    char byte;
    f->readies++;
    if (f->call_at_once >= 0)
        virtio_vsock_call(vsock, 1024, take_fd(&f->call_at_once));
    return recv(f->owner[0], &byte, 1, MSG_DONTWAIT) != 0;
}

static int setup(void **state)
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

static int teardown(void **state)
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

static void give(struct fixture *f, unsigned queue, unsigned count, uint32_t size)
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

static void bring_up_empty(struct fixture *f)
{
    struct driver *d = &f->driver;
    assert_true(driver_negotiate(d, FEATURES));
    driver_msix_on(d, 4);
    for (unsigned queue = 0; queue < 3; queue++)
        assert_true(driver_queue(d, queue, queue == EVENT ? 16 : RING, true));
    driver_live(d);
}

static void bring_up(struct fixture *f)
{
    bring_up_empty(f);
    give(f, RX, RING, RX_BUFFER);
}

static bool put(struct fixture *f, const struct vsock_packet *packet, const void *payload,
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

static struct vsock_packet packet_of(struct fixture *f, uint32_t guest_port, uint32_t host_port,
                                     enum vsock_op op)
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

static void send_packet(struct fixture *f, const struct vsock_packet *packet, const void *payload)
{
    assert_true(eventually(put(f, packet, payload, packet->length)));
    driver_kick(&f->driver, TX);
}

static void say(struct fixture *f, uint32_t guest_port, uint32_t host_port, enum vsock_op op)
{
    struct vsock_packet packet = packet_of(f, guest_port, host_port, op);
    send_packet(f, &packet, NULL);
}

static void say_shutdown(struct fixture *f, uint32_t guest_port, uint32_t host_port, uint32_t flags)
{
    struct vsock_packet packet = packet_of(f, guest_port, host_port, VSOCK_OP_SHUTDOWN);
    packet.flags = flags;
    send_packet(f, &packet, NULL);
}

static void say_bytes(struct fixture *f, uint32_t guest_port, uint32_t host_port, const void *bytes,
                      uint32_t size)
{
    struct vsock_packet packet = packet_of(f, guest_port, host_port, VSOCK_OP_RW);
    packet.length = size;
    send_packet(f, &packet, bytes);
}

static bool take(struct fixture *f, struct vsock_packet *ret_packet, void *ret_payload)
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

static struct vsock_packet hear_any(struct fixture *f, void *ret_payload)
{
    struct vsock_packet packet = {0};
    assert_true(eventually(take(f, &packet, ret_payload)));
    assert_int_equal(packet.dst_cid, CID);
    return packet;
}

static struct vsock_packet hear(struct fixture *f, uint32_t guest_port, uint32_t host_port,
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

static void hear_shutdown(struct fixture *f, uint32_t guest_port, uint32_t host_port,
                          uint32_t flags)
{
    assert_int_equal(hear(f, guest_port, host_port, VSOCK_OP_SHUTDOWN).flags, flags);
}

static void hear_bytes(struct fixture *f, const char *text)
{
    uint8_t bytes[RX_BUFFER];
    struct vsock_packet packet = hear_any(f, bytes);
    assert_int_equal(packet.op, VSOCK_OP_RW);
    assert_int_equal(packet.length, strlen(text));
    assert_memory_equal(bytes, text, packet.length);
    f->fwd_cnt += packet.length;
}

/* All that was said before has been acted upon: a packet to nowhere is answered by a reset. */
static void turn(struct fixture *f)
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

static bool host_reads(int fd, void *to, size_t size)
{
    struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return recv(fd, to, size, MSG_WAITALL) == (ssize_t)size;
}

static bool host_reads_end(int fd)
{
    char byte;
    struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ssize_t n = recv(fd, &byte, 1, 0);
    return n == 0 || (n < 0 && errno == ECONNRESET);
}

static void make_pair(int pair[2])
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
}

/* The guest has connected to PORT_H; our end. */
static int guest_connects_from(struct fixture *f, uint32_t guest_port)
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

static int guest_connects(struct fixture *f)
{
    return guest_connects_from(f, PORT_G);
}

/* A host's program calls port 1024; its end, and the port that it got. */
static int host_calls(struct fixture *f, uint32_t *ret_port)
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

static int host_is_connected(struct fixture *f, uint32_t *ret_port)
{
    char wanted[32], line[32] = "";
    int fd = host_calls(f, ret_port);
    say(f, 1024, *ret_port, VSOCK_OP_RESPONSE);
    int length = snprintf(wanted, sizeof wanted, "OK %u\n", *ret_port);
    assert_true(host_reads(fd, line, (size_t)length));
    assert_string_equal(line, wanted);
    return fd;
}

/* --- the diagram --- */

static void every_pair_of_state_and_event(void **state)
{
    static const char *const drawn[VSOCK_STATE_MAX] = {
        /* REQUESTED CALLED HOST_ACCEPTS GUEST_ACCEPTS TO_GUEST_ENDS TO_HOST_ENDS GUEST_LEAVES
         * FINISHED FAILS; letters are the states below */
        [VSOCK_NOWHERE] = "---------",  [VSOCK_CLOSED] = "DC-------",
        [VSOCK_DIALING] = "--O---0-0",  [VSOCK_CALLING] = "---O--0-0",
        [VSOCK_OPEN] = "----HGR-0",     [VSOCK_TO_HOST] = "----HXR-0",
        [VSOCK_TO_GUEST] = "----XGR-0", [VSOCK_CLOSING] = "----XXR00",
        [VSOCK_DRAINING] = "-------00",
    };
    static const char letters[VSOCK_STATE_MAX] = {
        [VSOCK_NOWHERE] = '-',  [VSOCK_CLOSED] = '0',  [VSOCK_DIALING] = 'D',
        [VSOCK_CALLING] = 'C',  [VSOCK_OPEN] = 'O',    [VSOCK_TO_HOST] = 'H',
        [VSOCK_TO_GUEST] = 'G', [VSOCK_CLOSING] = 'X', [VSOCK_DRAINING] = 'R',
    };
    for (enum vsock_state from = 0; from < VSOCK_STATE_MAX; from++)
        for (enum vsock_event event = 0; event < VSOCK_EVENT_MAX; event++) {
            char next = letters[vsock_state_next(from, event)];
            if (next != drawn[from][event])
                fail_msg("state %d, event %d: %c, not %c", from, event, next, drawn[from][event]);
        }
}

static void the_header_is_little_endian(void **state)
{
    static const uint8_t expected[VSOCK_HEADER_SIZE] = {
        1, 2, 3, 4, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 5, 6, 0,   0,   7, 8,
        0, 0, 9, 1, 0, 0, 1, 0, 5, 0, 3, 0, 0, 0, 0, 0, 4, 0, 255, 255, 0, 0};
    const struct vsock_packet packet = {0x04030201, 2, 0x605, 0x807,   0x109,
                                        1,          5, 3,     0x40000, 0xffff};
    uint8_t bytes[VSOCK_HEADER_SIZE];
    struct vsock_packet back;
    vsock_packet_encode(&packet, bytes);
    assert_memory_equal(bytes, expected, sizeof bytes);
    vsock_packet_decode(bytes, &back);
    uint8_t again[VSOCK_HEADER_SIZE];
    vsock_packet_encode(&back, again);
    assert_memory_equal(again, expected, sizeof again);
}

/* --- opening --- */

static void the_driver_finds_its_cid(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->driver;
    assert_int_equal(driver_read(d, d->device, 8), CID);
    assert_int_equal(driver_config(d, 0, 4), 0x10531af4); /* device 19 */
    assert_true(driver_offered(d) & 1);
    driver_write(d, d->device, 4, 99); /* read only */
    assert_int_equal(driver_read(d, d->device, 4), CID);
}

static void a_guest_connects_and_they_talk(void **state)
{
    struct fixture *f = *state;
    char bytes[32] = "";
    bring_up(f);
    int fd = guest_connects(f);
    for (int i = 0; i < 300; i++) { /* more turns than there are buffers */
        say_bytes(f, PORT_G, PORT_H, "from guest", 10);
        assert_true(host_reads(fd, bytes, 10));
        assert_memory_equal(bytes, "from guest", 10);
        assert_int_equal(write(fd, "to guest", 8), 8);
        hear_bytes(f, "to guest");
    }
    assert_true(eventually(f->machine.messages[RX + 1] > 0));
    close(fd);
    hear_shutdown(f, PORT_G, PORT_H, 3);
}

static void a_refused_guest_is_reset(void **state)
{
    struct fixture *f = *state;
    bring_up(f);
    say(f, PORT_G, PORT_H, VSOCK_OP_REQUEST);
    assert_true(eventually(f->dials == 1));
    virtio_vsock_dialed(f->vsock, f->dialed[0].id, -1);
    hear(f, PORT_G, PORT_H, VSOCK_OP_RST);
    f->refuse = -EAGAIN;
    say(f, PORT_G, PORT_H, VSOCK_OP_REQUEST);
    hear(f, PORT_G, PORT_H, VSOCK_OP_RST);
}

static void a_guest_that_gave_up_leaves_nothing_behind(void **state)
{
    struct fixture *f = *state;
    int pair[2];
    bring_up(f);
    say(f, PORT_G, PORT_H, VSOCK_OP_REQUEST);
    assert_true(eventually(f->dials == 1));
    say(f, PORT_G, PORT_H, VSOCK_OP_RST);
    turn(f);
    make_pair(pair);
    virtio_vsock_dialed(f->vsock, f->dialed[0].id, pair[0]);
    assert_true(host_reads_end(pair[1]));
    close(pair[1]);
    close(guest_connects(f)); /* the same ports again */
}

static void a_host_calls_and_they_talk(void **state)
{
    struct fixture *f = *state;
    uint32_t port, other;
    char bytes[16];
    bring_up(f);
    int fd = host_is_connected(f, &port), second = host_is_connected(f, &other);
    assert_int_not_equal(port, other);
    assert_int_equal(write(fd, "hello", 5), 5);
    hear_bytes(f, "hello");
    say_bytes(f, 1024, port, "world", 5);
    assert_true(host_reads(fd, bytes, 5));
    say_bytes(f, 1024, other, "other", 5);
    assert_true(host_reads(second, bytes, 5));
    assert_memory_equal(bytes, "other", 5);
    close(fd);
    close(second);
}

static void what_a_caller_sends_early_waits(void **state)
{
    struct fixture *f = *state;
    uint32_t port;
    bring_up(f);
    int fd = host_calls(f, &port);
    assert_int_equal(write(fd, "early", 5), 5);
    turn(f);
    say(f, 1024, port, VSOCK_OP_RESPONSE);
    hear_bytes(f, "early");
    close(fd);
}

static void calls_are_refused(void **state)
{
    struct fixture *f = *state;
    int pair[2];
    uint32_t port;
    make_pair(pair); /* before the driver is there */
    virtio_vsock_call(f->vsock, 1024, pair[0]);
    assert_true(host_reads_end(pair[1]));
    close(pair[1]);
    bring_up(f);
    int fd = host_calls(f, &port); /* by a guest that does not listen */
    say(f, 1024, port, VSOCK_OP_RST);
    assert_true(host_reads_end(fd));
    close(fd);
    fd = host_calls(f, &port); /* by the caller, who goes away */
    close(fd);
    hear(f, 1024, port, VSOCK_OP_RST);
    say(f, 1024, port, VSOCK_OP_RESPONSE);
    hear(f, 1024, port, VSOCK_OP_RST);
}

/* --- ends --- */

static void a_host_ends_its_half(void **state)
{
    struct fixture *f = *state;
    char bytes[8];
    bring_up(f);
    int fd = guest_connects(f);
    assert_int_equal(write(fd, "last", 4), 4);
    shutdown(fd, SHUT_WR);
    hear_bytes(f, "last");
    hear_shutdown(f, PORT_G, PORT_H, VSOCK_SHUT_SEND);
    say_bytes(f, PORT_G, PORT_H, "answer", 6);
    assert_true(host_reads(fd, bytes, 6));
    say_shutdown(f, PORT_G, PORT_H, VSOCK_SHUT_SEND);
    assert_true(host_reads_end(fd));
    hear_shutdown(f, PORT_G, PORT_H, VSOCK_SHUT_BOTH);
    say_shutdown(f, PORT_G, PORT_H, VSOCK_SHUT_BOTH);
    hear(f, PORT_G, PORT_H, VSOCK_OP_RST);
    close(fd);
}

static void a_guest_ends_its_half(void **state)
{
    struct fixture *f = *state;
    char bytes[8];
    bring_up(f);
    int fd = guest_connects(f);
    say_bytes(f, PORT_G, PORT_H, "last", 4);
    say_shutdown(f, PORT_G, PORT_H, VSOCK_SHUT_SEND);
    assert_true(host_reads(fd, bytes, 4));
    assert_true(host_reads_end(fd));
    assert_int_equal(write(fd, "answer", 6), 6);
    hear_bytes(f, "answer");
    /* After its end nothing more may come. */
    say_bytes(f, PORT_G, PORT_H, "more", 4);
    hear(f, PORT_G, PORT_H, VSOCK_OP_RST);
    close(fd);
}

static void a_guest_closes(void **state)
{
    struct fixture *f = *state;
    char bytes[8];
    bring_up(f);
    int fd = guest_connects(f);
    say_bytes(f, PORT_G, PORT_H, "last", 4);
    say_shutdown(f, PORT_G, PORT_H, VSOCK_SHUT_BOTH);
    hear(f, PORT_G, PORT_H, VSOCK_OP_RST);
    assert_true(host_reads(fd, bytes, 4));
    assert_true(host_reads_end(fd));
    assert_true(send(fd, "x", 1, MSG_NOSIGNAL) < 0);
    close(fd);
}

static void a_guest_that_receives_no_more(void **state)
{
    struct fixture *f = *state;
    char bytes[8];
    bring_up(f);
    int fd = guest_connects(f);
    say_shutdown(f, PORT_G, PORT_H, VSOCK_SHUT_RECEIVE);
    turn(f);
    assert_true(send(fd, "x", 1, MSG_NOSIGNAL) < 0);
    say_bytes(f, PORT_G, PORT_H, "still", 5);
    assert_true(host_reads(fd, bytes, 5));
    close(fd);
    hear_shutdown(f, PORT_G, PORT_H, VSOCK_SHUT_BOTH);
}

static void a_host_closes(void **state)
{
    struct fixture *f = *state;
    bring_up(f);
    int fd = guest_connects(f);
    assert_int_equal(write(fd, "last", 4), 4);
    close(fd);
    /* That nobody reads is told before the last bytes or behind them. */
    uint8_t bytes[RX_BUFFER];
    uint32_t flags = 0, got = 0;
    while (flags != VSOCK_SHUT_BOTH) {
        struct vsock_packet packet = hear_any(f, bytes);
        assert_true(packet.op == VSOCK_OP_RW || packet.op == VSOCK_OP_SHUTDOWN);
        got += packet.length;
        flags |= packet.op == VSOCK_OP_SHUTDOWN ? packet.flags : 0;
    }
    assert_int_equal(got, 4);
    /* The guest may not know yet: this is swallowed, and no rule is broken. */
    say_bytes(f, PORT_G, PORT_H, "into nowhere", 12);
    turn(f);
    say(f, PORT_G, PORT_H, VSOCK_OP_RST);
    turn(f);
    say(f, PORT_G, PORT_H, VSOCK_OP_CREDIT_UPDATE); /* it is gone */
    hear(f, PORT_G, PORT_H, VSOCK_OP_RST);
}

static void last_bytes_reach_a_slow_reader(void **state)
{
    struct fixture *f = *state;
    static uint8_t sent[VSOCK_BUFFER], got[2 * VSOCK_BUFFER];
    int small = 4096;
    bring_up(f);
    for (int kind = 0; kind < 2; kind++) {
        int fd = guest_connects(f);
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
        for (size_t i = 0; i < sizeof sent; i++)
            sent[i] = (uint8_t)(i * 7 + i / 251 + (size_t)kind);
        say_bytes(f, PORT_G, PORT_H, sent, sizeof sent);
        turn(f);
        /* More than the socket holds, so that something waits in the device. */
        uint32_t told = 0;
        say(f, PORT_G, PORT_H, VSOCK_OP_CREDIT_REQUEST);
        while (told == 0)
            told = hear(f, PORT_G, PORT_H, VSOCK_OP_CREDIT_UPDATE).fwd_cnt;
        say_bytes(f, PORT_G, PORT_H, sent, told);
        if (kind == 0) {
            say_shutdown(f, PORT_G, PORT_H, VSOCK_SHUT_BOTH);
        } else {
            say(f, PORT_G, PORT_H, VSOCK_OP_RST);
            say(f, PORT_G, PORT_H, VSOCK_OP_REQUEST); /* the ports are free again */
            assert_true(eventually(f->dials == 3));
            virtio_vsock_dialed(f->vsock, f->dialed[2].id, -1);
        }
        assert_true(host_reads(fd, got, sizeof sent + told));
        assert_memory_equal(got, sent, sizeof sent);
        assert_memory_equal(got + sizeof sent, sent, told);
        assert_true(host_reads_end(fd));
        close(fd);
        struct vsock_packet packet;
        do
            packet = hear_any(f, NULL);
        while (packet.op == VSOCK_OP_CREDIT_UPDATE);
        assert_int_equal(packet.op, VSOCK_OP_RST);
    }
}

/* --- credit --- */

static void a_slow_reader_stops_nobody_else(void **state)
{
    struct fixture *f = *state;
    static uint8_t bytes[VSOCK_BUFFER];
    char word[8];
    bring_up(f);
    int slow = guest_connects(f), other = guest_connects_from(f, PORT_G + 1);
    uint32_t sent = 0, room = VSOCK_BUFFER;
    /* All the credit there is: until no more comes. */
    while (room > 0) {
        uint32_t step = min(room, (uint32_t)60000);
        say_bytes(f, PORT_G, PORT_H, bytes, step);
        sent += step;
        say(f, PORT_G, PORT_H, VSOCK_OP_CREDIT_REQUEST);
        uint32_t forwarded = hear(f, PORT_G, PORT_H, VSOCK_OP_CREDIT_UPDATE).fwd_cnt;
        room = VSOCK_BUFFER - (sent - forwarded);
    }
    say_bytes(f, PORT_G + 1, PORT_H, "through", 7);
    assert_true(host_reads(other, word, 7));
    turn(f);
    /* Once it is read there is news without a question. */
    for (uint32_t left = sent; left > 0; left -= min(left, (uint32_t)VSOCK_BUFFER))
        assert_true(host_reads(slow, bytes, min(left, (uint32_t)VSOCK_BUFFER)));
    uint32_t forwarded = 0;
    while (sent - forwarded > VSOCK_BUFFER / 2)
        forwarded = hear(f, PORT_G, PORT_H, VSOCK_OP_CREDIT_UPDATE).fwd_cnt;
    close(other);
    hear_shutdown(f, PORT_G + 1, PORT_H, 3);
    close(slow);
}

static void more_than_the_credit_ends_the_stream(void **state)
{
    struct fixture *f = *state;
    static uint8_t bytes[2 * VSOCK_BUFFER];
    bring_up(f);
    int fd = guest_connects(f);
    say_bytes(f, PORT_G, PORT_H, bytes, VSOCK_BUFFER + 1);
    hear(f, PORT_G, PORT_H, VSOCK_OP_RST);
    assert_true(host_reads_end(fd));
    close(fd);
}

static void the_guest_gets_no_more_than_it_takes(void **state)
{
    struct fixture *f = *state;
    uint8_t bytes[RX_BUFFER], text[5000];
    bring_up(f);
    f->buf_alloc = 1000;
    int fd = guest_connects(f);
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (uint8_t)(i % 253);
    assert_int_equal(write(fd, text, sizeof text), sizeof text);
    uint32_t got = 0;
    bool asked = false;
    while (got < sizeof text) {
        struct vsock_packet packet = hear_any(f, bytes);
        if (packet.op == VSOCK_OP_CREDIT_REQUEST) {
            asked = true;
            f->fwd_cnt = got;
            say(f, PORT_G, PORT_H, VSOCK_OP_CREDIT_UPDATE);
            continue;
        }
        assert_int_equal(packet.op, VSOCK_OP_RW);
        assert_memory_equal(bytes, text + got, packet.length);
        got += packet.length;
        assert_true(got - f->fwd_cnt <= 1000);
    }
    assert_true(asked);
    /* An end is told even where no byte could be. */
    shutdown(fd, SHUT_WR);
    hear_shutdown(f, PORT_G, PORT_H, VSOCK_SHUT_SEND);
    close(fd);
}

static void senseless_credit_is_none(void **state)
{
    struct fixture *f = *state;
    bring_up(f);
    f->fwd_cnt = 0x80000000; /* of what was never sent */
    int fd = guest_connects(f);
    assert_int_equal(write(fd, "x", 1), 1);
    hear(f, PORT_G, PORT_H, VSOCK_OP_CREDIT_REQUEST);
    turn(f);
    f->fwd_cnt = 0;
    say(f, PORT_G, PORT_H, VSOCK_OP_CREDIT_UPDATE);
    hear_bytes(f, "x");
    close(fd);
}

struct copy {
    int fd;
    uint64_t bytes;
    bool good;
};

static uint8_t pattern(uint64_t at)
{
    return (uint8_t)(at * 31 + (at >> 9));
}

/* Writes megabytes in odd pieces while it reads as many. */
static void *host_writes(void *opaque)
{
    struct copy *copy = opaque;
    uint8_t piece[3001];
    for (uint64_t done = 0; done < copy->bytes;) {
        size_t size = min(sizeof piece, (size_t)(copy->bytes - done));
        for (size_t i = 0; i < size; i++)
            piece[i] = pattern(done + i);
        if (write(copy->fd, piece, size) != (ssize_t)size)
            return NULL;
        done += size;
    }
    return NULL;
}

static void *host_checks(void *opaque)
{
    struct copy *copy = opaque;
    uint8_t piece[4999];
    for (uint64_t done = 0; done < copy->bytes;) {
        ssize_t n = read(copy->fd, piece, sizeof piece);
        if (n <= 0)
            return NULL;
        for (ssize_t i = 0; i < n; i++)
            if (piece[i] != pattern(done + (uint64_t)i))
                return NULL;
        done += (uint64_t)n;
    }
    copy->good = true;
    return NULL;
}

static void megabytes_arrive_unchanged_both_ways(void **state)
{
    enum { BYTES = 8 << 20, PIECE = 20011 };
    struct fixture *f = *state;
    static uint8_t bytes[PIECE];
    bring_up(f);
    struct copy copy = {.fd = guest_connects(f), .bytes = BYTES};
    pthread_t writer, reader;
    pthread_create(&writer, NULL, host_writes, &copy);
    pthread_create(&reader, NULL, host_checks, &copy);
    uint64_t sent = 0, got = 0;
    uint32_t forwarded = 0;
    while (sent < BYTES || got < BYTES) {
        struct vsock_packet packet;
        uint32_t room = VSOCK_BUFFER - ((uint32_t)sent - forwarded);
        uint32_t size = min(min((uint32_t)PIECE, room), (uint32_t)(BYTES - sent));
        f->fwd_cnt = (uint32_t)got;
        if (size > 0) {
            for (uint32_t i = 0; i < size; i++)
                bytes[i] = pattern(sent + i);
            packet = packet_of(f, PORT_G, PORT_H, VSOCK_OP_RW);
            packet.length = size;
            if (put(f, &packet, bytes, size)) {
                sent += size;
                driver_kick(&f->driver, TX);
            }
        }
        while (take(f, &packet, bytes)) {
            forwarded = packet.fwd_cnt;
            for (uint32_t i = 0; i < packet.length; i++)
                assert_int_equal(bytes[i], pattern(got + i));
            got += packet.length;
            if (packet.op == VSOCK_OP_CREDIT_REQUEST) {
                f->fwd_cnt = (uint32_t)got;
                say(f, PORT_G, PORT_H, VSOCK_OP_CREDIT_UPDATE);
            }
        }
    }
    pthread_join(writer, NULL);
    pthread_join(reader, NULL);
    assert_true(copy.good);
    close(copy.fd);
}

/* --- rules that are broken --- */

enum stage { S_NONE, S_DIALING, S_CALLING, S_OPEN, S_HOST_ENDED, S_GUEST_ENDED, S_MAX };

/* Brings a stream to that stage; the guest's and the host's port, and our end. */
static int reach(struct fixture *f, enum stage stage, uint32_t *ret_guest, uint32_t *ret_host)
{
    static uint32_t fresh = 10000;
    *ret_guest = fresh++;
    *ret_host = PORT_H;
    if (stage == S_NONE)
        return -1;
    if (stage == S_CALLING) {
        *ret_guest = 1024;
        return host_calls(f, ret_host);
    }
    if (stage == S_DIALING) {
        say(f, *ret_guest, PORT_H, VSOCK_OP_REQUEST);
        return -1;
    }
    int fd = guest_connects_from(f, *ret_guest);
    if (stage == S_HOST_ENDED) {
        shutdown(fd, SHUT_WR);
        hear_shutdown(f, *ret_guest, PORT_H, VSOCK_SHUT_SEND);
    }
    if (stage == S_GUEST_ENDED)
        say_shutdown(f, *ret_guest, PORT_H, VSOCK_SHUT_SEND);
    return fd;
}

/* Every operation in every stage: what is out of place is answered by a reset and nothing else, and
 * what is not leaves the stream as it was. */
static void every_operation_in_every_stage(void **state)
{
    struct fixture *f = *state;
    bring_up(f);
    for (enum stage stage = 0; stage < S_MAX; stage++)
        for (unsigned op = 0; op <= 9; op++) {
            uint32_t guest, host;
            int fd = reach(f, stage, &guest, &host);
            bool open = stage >= S_OPEN;
            bool quiet = op == VSOCK_OP_RST || (open && op == VSOCK_OP_CREDIT_UPDATE) ||
                         (open && op == VSOCK_OP_RW && stage != S_GUEST_ENDED) ||
                         (stage == S_CALLING && op == VSOCK_OP_RESPONSE) ||
                         (stage == S_NONE && op == VSOCK_OP_REQUEST) ||
                         (open && op == VSOCK_OP_SHUTDOWN); /* of nothing */
            if (op == VSOCK_OP_RW)
                say_bytes(f, guest, host, "x", 1);
            else
                say(f, guest, host, (enum vsock_op)op);
            if (open && op == VSOCK_OP_CREDIT_REQUEST)
                hear(f, guest, host, VSOCK_OP_CREDIT_UPDATE);
            else if (!quiet)
                hear(f, guest, host, VSOCK_OP_RST);
            turn(f);
            if (fd >= 0)
                close(fd);
            /* A clean table for the next one. */
            driver_set_status(&f->driver, 0);
            bring_up(f);
        }
}

static void strangers_are_reset_or_ignored(void **state)
{
    struct fixture *f = *state;
    bring_up(f);
    struct vsock_packet packet = packet_of(f, PORT_G, PORT_H, VSOCK_OP_REQUEST);
    packet.src_cid = CID + 1; /* not the guest: ignored */
    send_packet(f, &packet, NULL);
    turn(f);
    packet.src_cid = CID;
    packet.dst_cid = 77; /* not us */
    send_packet(f, &packet, NULL);
    struct vsock_packet answer = hear_any(f, NULL);
    assert_int_equal(answer.op, VSOCK_OP_RST);
    assert_int_equal(answer.src_cid, 77);
    packet.dst_cid = VSOCK_CID_HOST;
    packet.type = 2; /* seqpacket was not offered */
    send_packet(f, &packet, NULL);
    answer = hear_any(f, NULL);
    assert_int_equal(answer.op, VSOCK_OP_RST);
    assert_int_equal(answer.type, 2);
    assert_int_equal(f->dials, 0);
}

static void malformed_packets_fail_the_device(void **state)
{
    struct fixture *f = *state;
    for (int kind = 0; kind < 3; kind++) {
        bring_up_empty(f);
        struct vsock_packet packet = packet_of(f, PORT_G, PORT_H, VSOCK_OP_RW);
        if (kind == 0) { /* shorter than it says */
            packet.length = 100;
            assert_true(put(f, &packet, "x", 1));
        } else if (kind == 1) { /* shorter than a header */
            const struct driver_buffer buffer = {TX_AREA, VSOCK_HEADER_SIZE - 1, false};
            driver_ring_add(&f->driver.rings[TX], &buffer, 1);
        } else { /* a buffer that no header fits */
            give(f, RX, 1, VSOCK_HEADER_SIZE - 1);
            assert_true(put(f, &packet, NULL, 0));
        }
        driver_kick(&f->driver, TX);
        assert_true(eventually(driver_status(&f->driver) & VIRTIO_STATUS_NEEDS_RESET));
        assert_true(eventually(f->machine.messages[0] > kind));
    }
    bring_up(f);
    close(guest_connects(f));
}

static void a_flood_without_buffers_is_held_back(void **state)
{
    enum { FLOOD = 1000 };
    struct fixture *f = *state;
    bring_up_empty(f);
    unsigned put_in = 0, quiet = 0;
    while (quiet < 200) { /* nothing moves for 40 ms */
        struct vsock_packet packet = packet_of(f, 20000 + put_in, 9, VSOCK_OP_RW);
        if (put(f, &packet, NULL, 0)) {
            put_in++;
            quiet = 0;
            driver_kick(&f->driver, TX);
        } else {
            quiet++;
            nap();
        }
        assert_true(put_in < FLOOD);
    }
    assert_true(put_in < 3 * RING);
    /* With buffers it goes on where it stood, and each is answered, in their order. */
    give(f, RX, RING, RX_BUFFER);
    for (unsigned i = 0; i < put_in; i++)
        hear(f, 20000 + i, 9, VSOCK_OP_RST);
    turn(f);
}

static void a_full_table_refuses(void **state)
{
    struct fixture *f = *state;
    int pair[2], fds[VSOCK_STREAMS_MAX];
    bring_up(f);
    for (unsigned i = 0; i < VSOCK_STREAMS_MAX; i++)
        fds[i] = guest_connects_from(f, 100 + i);
    say(f, 99, PORT_H, VSOCK_OP_REQUEST);
    hear(f, 99, PORT_H, VSOCK_OP_RST);
    make_pair(pair);
    virtio_vsock_call(f->vsock, 1024, pair[0]);
    assert_true(host_reads_end(pair[1]));
    close(pair[1]);
    /* All at once, each by its own bytes. */
    for (unsigned i = 0; i < VSOCK_STREAMS_MAX; i++)
        assert_int_equal(write(fds[i], &i, sizeof i), sizeof i);
    uint8_t seen[VSOCK_STREAMS_MAX] = {0}, bytes[RX_BUFFER];
    for (unsigned i = 0; i < VSOCK_STREAMS_MAX; i++) {
        struct vsock_packet packet = hear_any(f, bytes);
        assert_int_equal(packet.op, VSOCK_OP_RW);
        assert_int_equal(le32_read(bytes), packet.dst_port - 100);
        seen[packet.dst_port - 100]++;
    }
    for (unsigned i = 0; i < VSOCK_STREAMS_MAX; i++)
        assert_int_equal(seen[i], 1);
    say(f, 100, PORT_H, VSOCK_OP_RST); /* one goes, one comes */
    turn(f);
    close(fds[0]);
    fds[0] = guest_connects_from(f, 99);
    for (unsigned i = 0; i < VSOCK_STREAMS_MAX; i++)
        close(fds[i]);
}

/* --- the machine's life --- */

static void a_reset_closes_all(void **state)
{
    struct fixture *f = *state;
    uint32_t port;
    bring_up(f);
    int fds[3] = {guest_connects(f), host_is_connected(f, &port), host_calls(f, &port)};
    say(f, PORT_G + 5, PORT_H, VSOCK_OP_REQUEST);
    assert_true(eventually(f->dials == 2));
    driver_set_status(&f->driver, 0);
    for (int i = 0; i < 3; i++) {
        assert_true(host_reads_end(fds[i]));
        close(fds[i]);
    }
    int pair[2];
    make_pair(pair); /* too late */
    virtio_vsock_dialed(f->vsock, f->dialed[1].id, pair[0]);
    assert_true(host_reads_end(pair[1]));
    close(pair[1]);
    bring_up(f);
    turn(f);
    close(guest_connects(f));
}

static void a_machine_that_was_moved_tells_its_driver(void **state)
{
    struct fixture *f = *state;
    struct virtio_device *device = virtio_vsock_device(f->vsock);
    struct record record;
    uint8_t event[4] = {1, 1, 1, 1};
    uint32_t head, length;
    bring_up(f);
    record_load(&record, NULL, 0, 1);
    device->ops->state(device, &record); /* the event waits for a buffer */
    assert_true(record_ended(&record));
    give(f, EVENT, 1, sizeof event);
    assert_true(eventually(driver_ring_take(&f->driver.rings[EVENT], &head, &length)));
    assert_int_equal(length, sizeof event);
    mem_read(f->machine.mem, EVENT_AREA + head * (uint64_t)RX_STEP, event, sizeof event);
    assert_int_equal(le32_read(event), 0);
    assert_true(eventually(f->machine.messages[EVENT + 1] > 0));
    turn(f);
}

static void the_owner_goes(void **state)
{
    struct fixture *f = *state;
    bring_up(f);
    int fd = guest_connects(f);
    assert_int_equal(write(f->owner[1], "x", 1), 1);
    assert_true(eventually(f->readies == 1));
    close(f->owner[1]);
    f->owner[1] = -1;
    assert_true(eventually(f->readies == 2));
    say_bytes(f, PORT_G, PORT_H, "x", 1); /* what is there goes on */
    char byte;
    assert_true(host_reads(fd, &byte, 1));
    turn(f);
    assert_int_equal(f->readies, 2); /* it is not asked again and again */
    close(fd);
}

/* The owner may speak before the device is all made. */
static void a_call_while_it_is_made(void **state)
{
    for (int i = 0; i < 200; i++) {
        struct fixture f = {.buf_alloc = GUEST_BUFFER};
        struct virtio_vsock *vsock;
        int pair[2];
        make_pair(pair);
        f.call_at_once = pair[0];
        make_pair(f.owner);
        assert_int_equal(write(f.owner[1], "x", 1), 1);
        struct mem *mem = mem_new();
        const struct virtio_vsock_host host = {
            .fd = f.owner[0], .ready = ready, .dial = dial, .opaque = &f};
        assert_int_equal(virtio_vsock_new(mem, CID, &host, &vsock, NULL), 0);
        assert_true(host_reads_end(pair[1]));
        struct virtio_device *device = virtio_vsock_device(vsock);
        device->ops->free(device);
        mem_free(mem);
        close(pair[1]);
        close(f.owner[0]);
        close(f.owner[1]);
    }
}

static void wrong_cids_are_refused(void **state)
{
    static const uint64_t wrong[] = {0, 1, 2, UINT32_MAX, UINT64_C(1) << 32};
    struct mem *mem = mem_new();
    struct virtio_vsock *vsock;
    const struct virtio_vsock_host nobody = {.fd = -1};
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        struct err err = {0};
        assert_int_equal(virtio_vsock_new(mem, wrong[i], &nobody, &vsock, &err), -EINVAL);
        assert_true(strlen(err.text) > 0);
    }
    mem_free(mem);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pair_of_state_and_event),
        cmocka_unit_test(the_header_is_little_endian),
        TEST(the_driver_finds_its_cid),
        TEST(a_guest_connects_and_they_talk),
        TEST(a_refused_guest_is_reset),
        TEST(a_guest_that_gave_up_leaves_nothing_behind),
        TEST(a_host_calls_and_they_talk),
        TEST(what_a_caller_sends_early_waits),
        TEST(calls_are_refused),
        TEST(a_host_ends_its_half),
        TEST(a_guest_ends_its_half),
        TEST(a_guest_closes),
        TEST(a_guest_that_receives_no_more),
        TEST(a_host_closes),
        TEST(last_bytes_reach_a_slow_reader),
        TEST(a_slow_reader_stops_nobody_else),
        TEST(more_than_the_credit_ends_the_stream),
        TEST(the_guest_gets_no_more_than_it_takes),
        TEST(senseless_credit_is_none),
        TEST(megabytes_arrive_unchanged_both_ways),
        TEST(every_operation_in_every_stage),
        TEST(strangers_are_reset_or_ignored),
        TEST(malformed_packets_fail_the_device),
        TEST(a_flood_without_buffers_is_held_back),
        TEST(a_full_table_refuses),
        TEST(a_reset_closes_all),
        TEST(a_machine_that_was_moved_tells_its_driver),
        TEST(the_owner_goes),
        cmocka_unit_test(a_call_while_it_is_made),
        cmocka_unit_test(wrong_cids_are_refused),
    };
    return cmocka_run_group_tests_name("vsock", tests, NULL, NULL);
}
