/* The console device, from both ends: ports that close, drivers that are old, strange or gone. */
#include "virtio/console_fixture.h"

static void a_close_is_told_after_the_bytes_before_it(void **state)
{
    struct fixture *f = *state;
    open_ports(f);
    /* The reader sleeps: fill socket and ring, then close. */
    uint8_t bytes[BUFFER];
    unsigned written = fill_up(f, 1);
    say(f, 1, OPEN, 0);
    nanosleep(&(struct timespec){.tv_nsec = 30000000}, NULL);
    assert_int_equal(f->closed[1], 0);
    for (unsigned i = 0; i < written; i++)
        assert_true(host_reads(f, 1, bytes, BUFFER));
    assert_true(eventually(f->closed[1] == 1));
    assert_int_equal(recv(f->host[1], bytes, 1, MSG_DONTWAIT), -1);
}

static void the_host_closes_a_port(void **state)
{
    struct fixture *f = *state;
    open_ports(f);
    char bytes[8];
    assert_int_equal(write(f->host[3], "bye", 3), 3);
    close(f->host[3]);
    f->host[3] = -1;
    assert_true(guest_reads(f, 3, bytes, 3));
    assert_memory_equal(bytes, "bye", 3);
    expect(f, 3, OPEN, 0, "", 0);
    /* What the guest writes now goes nowhere and does not stop it. */
    for (int i = 0; i < 300; i++)
        guest_writes(f, 3, "into the void");
    /* Half a close: no input any more, output goes on. */
    assert_int_equal(write(f->host[2], "half", 4), 4);
    assert_int_equal(shutdown(f->host[2], SHUT_WR), 0);
    assert_true(guest_reads(f, 2, bytes, 4));
    guest_writes(f, 2, "still");
    assert_true(host_reads(f, 2, bytes, 5));
    assert_memory_equal(bytes, "still", 5);
    close(f->host[2]);
    f->host[2] = -1;
    expect(f, 2, OPEN, 0, "", 0); /* and only now */
}

static void a_port_closed_before_the_driver_came_is_not_open(void **state)
{
    struct fixture *f = *state;
    close(f->host[1]);
    f->host[1] = -1;
    bring_up(f, FEATURES | F_MULTIPORT);
    give(f, CONTROL_RX, 32, 256);
    say(f, 0, READY, 1);
    for (unsigned i = 0; i < PORTS; i++)
        expect(f, i, ADD, 1, "", 0);
    say(f, 1, PORT_READY, 1);
    expect(f, 1, NAME, 1, "exec", 4);
    say(f, 2, PORT_READY, 1);
    struct heard heard;
    assert_true(hear(f, &heard));
    while (heard.id == 1) { /* a close that came late is legal, an open is not */
        assert_int_equal(heard.event, OPEN);
        assert_int_equal(heard.value, 0);
        assert_true(hear(f, &heard));
    }
    assert_int_equal(heard.event, NAME);
}

static void the_window_changes(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->driver;
    open_ports(f);
    int before = f->machine.messages[0];
    virtio_console_resize(f->console, 0, 132, 50);
    expect(f, 0, RESIZE, 1, "\x32\0\x84\0", 4);
    assert_int_equal(driver_read(d, d->device, 4), 50 << 16 | 132);
    assert_int_equal(f->machine.messages[0], before + 1);
    virtio_console_resize(f->console, 1, 1, 1); /* no console, nothing to tell */
    virtio_console_resize(f->console, 0, 133, 50);
    expect(f, 0, RESIZE, 1, "\x32\0\x85\0", 4);
}

static void emergency_characters_need_no_driver(void **state)
{
    struct fixture *f = *state;
    char bytes[2];
    driver_write(&f->driver, f->driver.device + 8, 4, '!');
    driver_write(&f->driver, f->driver.device + 8, 4, '?');
    assert_true(host_reads(f, 0, bytes, 2));
    assert_memory_equal(bytes, "!?", 2);
}

static void drain_moves_the_last_words(void **state)
{
    struct fixture *f = *state;
    char bytes[BUFFER] = {0};
    open_ports(f);
    /* Available, but the guest stopped before it could notify. */
    for (unsigned i = 0; i < PORTS; i++)
        assert_true(put(f, tx(i), "last words", 10));
    assert_int_equal(virtio_console_drain(f->console, 1000), 0);
    for (unsigned i = 0; i < PORTS; i++) {
        assert_int_equal(recv(f->host[i], bytes, 10, MSG_DONTWAIT), 10);
        assert_memory_equal(bytes, "last words", 10);
    }
    /* A reader that does not read. */
    unsigned written = fill_up(f, 1);
    assert_int_equal(virtio_console_drain(f->console, 30), -ETIMEDOUT);
    struct bulk reader = {.f = f, .port = 1, .total = (size_t)written * BUFFER};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, bulk_reader, &reader), 0);
    assert_int_equal(virtio_console_drain(f->console, PATIENCE_MS), 0);
    pthread_join(thread, NULL);
    /* And one that goes away. */
    close(f->host[1]);
    f->host[1] = -1;
    for (int i = 0; i < 100; i++)
        assert_true(eventually(put(f, tx(1), bytes, BUFFER)));
    assert_int_equal(virtio_console_drain(f->console, PATIENCE_MS), 0);
}

struct swallower {
    int fd;
    _Atomic bool stop;
};

static void *swallow(void *opaque)
{
    struct swallower *swallower = opaque;
    static uint8_t bytes[1 << 18];
    while (!swallower->stop)
        if (recv(swallower->fd, bytes, sizeof bytes, MSG_DONTWAIT) <= 0)
            sched_yield();
    return NULL;
}

/* Descriptors may all name the same memory: one chain is then more than any reader takes soon, and
 * nobody may have to wait for its end. */
static void an_endless_chain_holds_nobody_up(void **state)
{
    enum { DESCRIPTORS = 1024, EACH = 32 << 20, TABLE = 48 << 20, INDIRECT = 4, NEXT = 1 };
    struct fixture *f = *state;
    open_ports(f);
    struct driver_ring *ring = &f->driver.rings[tx(1)];
    for (unsigned i = 0; i < DESCRIPTORS; i++) {
        uint8_t entry[16] = {0};
        le32_write(entry + 8, EACH);
        le16_write(entry + 12, i + 1 < DESCRIPTORS ? NEXT : 0);
        le16_write(entry + 14, (uint16_t)(i + 1));
        assert_int_equal(mem_write(f->machine.mem, TABLE + i * 16, entry, 16), 0);
    }
    struct swallower swallower = {.fd = f->host[1]};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, swallow, &swallower), 0);
    driver_ring_descriptor(ring, 0, TABLE, DESCRIPTORS * 16, INDIRECT, 0);
    driver_ring_offer(ring, 0);
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    driver_kick(&f->driver, tx(1));
    assert_int_equal(virtio_console_drain(f->console, 50), -ETIMEDOUT);
    driver_set_status(&f->driver, 0);
    clock_gettime(CLOCK_MONOTONIC, &after);
    assert_in_range(after.tv_sec - before.tv_sec, 0, 2);
    swallower.stop = true;
    pthread_join(thread, NULL);
}

static void a_driver_without_multiport_has_port_0(void **state)
{
    struct fixture *f = *state;
    char bytes[16];
    assert_int_equal(write(f->host[0], "typed", 5), 5);
    bring_up(f, VIRTIO_F_VERSION_1);
    give(f, 0, 4, 64);
    assert_true(guest_reads(f, 0, bytes, 5));
    assert_memory_equal(bytes, "typed", 5);
    guest_writes(f, 0, "shown");
    assert_true(host_reads(f, 0, bytes, 5));
    assert_true(eventually(f->opened[0] == 1));
    assert_int_equal(f->opened[1], 0);
    driver_set_status(&f->driver, 0);
    assert_true(eventually(f->closed[0] == 1));
}

static void resets_under_load_lose_no_input(void **state)
{
    struct fixture *f = *state;
    struct bulk in = {.f = f, .port = 1, .random = 5, .total = 8 << 20};
    pthread_t writer;
    assert_int_equal(pthread_create(&writer, NULL, bulk_writer, &in), 0);
    size_t got = 0;
    uint8_t bytes[BUFFER];
    uint32_t length;
    for (int round = 0; got < in.total; round++) {
        open_ports(f);
        for (int i = 0; i < 3000 && got < in.total; i++) {
            guest_writes(f, 2, "noise");
            if (recv(f->host[2], bytes, sizeof bytes, MSG_DONTWAIT) < 0)
                assert_int_equal(errno, EAGAIN);
            while (got < in.total && take(f, rx(1), bytes, &length)) {
                in.got_hash = hash(in.got_hash, bytes, length);
                got += length;
            }
            give(f, rx(1), 128, BUFFER);
        }
        /* After the reset nothing is written to the old rings. What is used by then was read
         * from the socket and counts. */
        driver_set_status(&f->driver, 0);
        while (got < in.total && take(f, rx(1), bytes, &length)) {
            in.got_hash = hash(in.got_hash, bytes, length);
            got += length;
        }
        assert_true(round < 1000);
    }
    pthread_join(writer, NULL);
    assert_int_equal(got, in.total);
    assert_int_equal(in.got_hash, in.sent_hash);
}

static void strange_control_messages_do_no_harm(void **state)
{
    struct fixture *f = *state;
    char bytes[8];
    open_ports(f);
    for (unsigned event = 0; event < 20; event++)
        if (event != READY) /* that one is answered */
            say(f, PORTS + event, (uint16_t)event, 1);
    say(f, 0xffffffff, OPEN, 0);
    say(f, 0xffffffff, PORT_READY, 1);
    say(f, 1, 9999, 1);
    assert_true(eventually(put(f, CONTROL_TX, "short", 5)));
    driver_kick(&f->driver, CONTROL_TX);
    /* Thousands of requests are one answer each while the driver gives no buffers. */
    uint32_t head, length;
    while (driver_ring_take(&f->driver.rings[CONTROL_RX], &head, &length))
        ;
    for (int i = 0; i < 3000; i++)
        say(f, 1, PORT_READY, 1);
    guest_writes(f, 1, "fine");
    assert_true(host_reads(f, 1, bytes, 4));
    assert_int_equal(driver_status(&f->driver), 15);
}

static void wrong_ports_are_refused(void **state)
{
    (void)state;
    struct mem *mem = mem_new();
    struct err err = {0};
    int pair[2], dgram[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, dgram), 0);
    int file = open("/dev/null", O_RDWR);
    const struct virtio_console_port bad[][2] = {
        {{"named", pair[0]}, {"x", pair[1]}}, {{NULL, pair[0]}, {NULL, pair[1]}},
        {{NULL, pair[0]}, {"", pair[1]}},     {{NULL, pair[0]}, {"x", dgram[0]}},
        {{NULL, pair[0]}, {"x", file}},       {{NULL, pair[0]}, {"x", -1}},
    };
    struct virtio_console *console = NULL;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        const struct virtio_console_config config = {.ports = bad[i], .port_count = 2};
        err.text[0] = 0;
        assert_true(virtio_console_new(mem, &config, &console, &err) < 0);
        assert_true(strlen(err.text) > 0);
    }
    const struct virtio_console_config none = {.ports = bad[0], .port_count = 0};
    const struct virtio_console_config many = {.ports = bad[0], .port_count = 17};
    assert_int_equal(virtio_console_new(mem, &none, &console, NULL), -EINVAL);
    assert_int_equal(virtio_console_new(mem, &many, &console, NULL), -EINVAL);
    /* They are still the caller's. */
    assert_int_equal(write(pair[0], "x", 1), 1);
    close(pair[0]);
    close(pair[1]);
    close(dgram[0]);
    close(dgram[1]);
    close(file);
    mem_free(mem);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_close_is_told_after_the_bytes_before_it),
        TEST(the_host_closes_a_port),
        TEST(a_port_closed_before_the_driver_came_is_not_open),
        TEST(the_window_changes),
        TEST(emergency_characters_need_no_driver),
        TEST(drain_moves_the_last_words),
        TEST(an_endless_chain_holds_nobody_up),
        TEST(a_driver_without_multiport_has_port_0),
        TEST(resets_under_load_lose_no_input),
        TEST(strange_control_messages_do_no_harm),
        cmocka_unit_test(wrong_ports_are_refused),
    };
    return cmocka_run_group_tests_name("console_life", tests, NULL, NULL);
}
