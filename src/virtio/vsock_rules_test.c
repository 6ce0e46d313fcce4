/* The socket device's rules: states and events, credit, and what is done about who breaks them. */
#include "virtio/vsock_fixture.h"

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

/* --- credit --- */

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
        TEST(more_than_the_credit_ends_the_stream),
        TEST(the_guest_gets_no_more_than_it_takes),
        TEST(senseless_credit_is_none),
        TEST(every_operation_in_every_stage),
        TEST(strangers_are_reset_or_ignored),
        TEST(malformed_packets_fail_the_device),
        TEST(a_flood_without_buffers_is_held_back),
        TEST(a_full_table_refuses),
        cmocka_unit_test(wrong_cids_are_refused),
    };
    return cmocka_run_group_tests_name("vsock_rules", tests, NULL, NULL);
}
