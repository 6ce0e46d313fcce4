/* The socket device, from both ends: streams that come, talk and go. */
#include "virtio/vsock_fixture.h"

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

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
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
        TEST(megabytes_arrive_unchanged_both_ways),
        TEST(a_reset_closes_all),
        TEST(a_machine_that_was_moved_tells_its_driver),
        TEST(the_owner_goes),
        cmocka_unit_test(a_call_while_it_is_made),
    };
    return cmocka_run_group_tests_name("vsock", tests, NULL, NULL);
}
