/* The console device, from both ends: bytes both ways. */
#include "virtio/console_fixture.h"

static void ports_shake_hands_and_talk(void **state)
{
    struct fixture *f = *state;
    char bytes[32] = {0};
    struct driver *d = &f->driver;
    assert_int_equal(driver_read(d, d->device, 4), 25 << 16 | 80);
    assert_int_equal(driver_read(d, d->device + 4, 4), PORTS);
    open_ports(f);
    for (unsigned i = 0; i < PORTS; i++) {
        guest_writes(f, i, "from guest");
        assert_true(host_reads(f, i, bytes, 10));
        assert_memory_equal(bytes, "from guest", 10);
        assert_int_equal(write(f->host[i], "to guest", 8), 8);
        assert_true(guest_reads(f, i, bytes, 8));
        assert_memory_equal(bytes, "to guest", 8);
        assert_true(eventually(f->machine.messages[rx(i) + 1] > 0));
    }
    /* More turns than there are buffers: each look at an empty socket gives its buffer back. */
    for (unsigned i = 0; i < 1000; i++) {
        assert_int_equal(write(f->host[1], &i, sizeof i), sizeof i);
        assert_true(guest_reads(f, 1, bytes, sizeof i));
        assert_memory_equal(bytes, &i, sizeof i);
    }
}

static void early_bytes_wait_for_the_guest(void **state)
{
    struct fixture *f = *state;
    char bytes[16];
    uint32_t length;
    assert_int_equal(write(f->host[1], "early", 5), 5);
    bring_up(f, FEATURES | F_MULTIPORT);
    give(f, CONTROL_RX, 32, 256);
    give(f, rx(1), 4, BUFFER);
    say(f, 0, READY, 1);
    for (unsigned i = 0; i < PORTS; i++)
        expect(f, i, ADD, 1, "", 0);
    say(f, 1, PORT_READY, 1);
    expect(f, 1, NAME, 1, "exec", 4);
    expect(f, 1, OPEN, 1, "", 0);
    /* The driver would drop what comes to a closed port. */
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    assert_false(take(f, rx(1), bytes, &length));
    say(f, 1, OPEN, 1);
    assert_true(guest_reads(f, 1, bytes, 5));
    assert_memory_equal(bytes, "early", 5);
    /* Closed again: the next bytes wait again. */
    say(f, 1, OPEN, 0);
    assert_true(eventually(f->closed[1] == 1));
    assert_int_equal(write(f->host[1], "later", 5), 5);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    assert_false(take(f, rx(1), bytes, &length));
    say(f, 1, OPEN, 1);
    assert_true(guest_reads(f, 1, bytes, 5));
    assert_memory_equal(bytes, "later", 5);
}

static void a_slow_reader_holds_the_guest_back(void **state)
{
    struct fixture *f = *state;
    uint8_t bytes[BUFFER];
    open_ports(f);
    unsigned written = fill_up(f, 2);
    /* What the socket takes and one ring full; nothing is stored in between. */
    assert_true(written >= 128 && written < 128 + 512);
    /* Other ports are not held back. */
    guest_writes(f, 1, "free");
    assert_true(host_reads(f, 1, bytes, 4));
    for (unsigned i = 0; i < written; i++) {
        assert_true(host_reads(f, 2, bytes, BUFFER));
        for (unsigned j = 0; j < BUFFER; j++)
            if (bytes[j] != (uint8_t)(i * 31 + j))
                fail_msg("byte %u of chunk %u", j, i);
    }
    struct driver_ring *ring = &f->driver.rings[tx(2)];
    uint32_t head, length;
    while (ring->free_count < 128)
        assert_true(eventually(driver_ring_take(ring, &head, &length)));
}

/* One turn of the guest for one port: adds some output, takes some input. */
static void bulk_turn(struct bulk *out, struct bulk *in, size_t *to_send, size_t *to_get)
{
    struct fixture *f = out->f;
    uint8_t bytes[BUFFER];
    uint32_t length;
    for (int i = 0; i < 8 && *to_send > 0; i++) {
        uint32_t size = (uint32_t)min((size_t)roll(f) % BUFFER + 1, *to_send);
        uint32_t random = f->random;
        for (uint32_t j = 0; j < size; j++)
            bytes[j] = (uint8_t)bulk_roll(&random);
        if (!put(f, tx(out->port), bytes, size))
            break;
        out->sent_hash = hash(out->sent_hash, bytes, size);
        *to_send -= size;
    }
    driver_kick(&f->driver, tx(out->port));
    bool got = false;
    while (*to_get > 0 && take(f, rx(in->port), bytes, &length)) {
        in->got_hash = hash(in->got_hash, bytes, length);
        *to_get -= min((size_t)length, *to_get);
        got = true;
    }
    if (got)
        give(f, rx(in->port), 128, roll(f) % BUFFER + 1);
}

static void megabytes_arrive_unchanged_both_ways(void **state)
{
    struct fixture *f = *state;
    open_ports(f);
    enum { TOTAL = 6 << 20 };
    struct bulk out[PORTS], in[PORTS];
    pthread_t readers[PORTS], writers[PORTS];
    size_t to_send[PORTS], to_get[PORTS];
    for (unsigned i = 0; i < PORTS; i++) {
        out[i] = (struct bulk){f, i, i, TOTAL, 0, 0};
        in[i] = (struct bulk){f, i, i + 100, TOTAL, 0, 0};
        to_send[i] = to_get[i] = TOTAL;
        assert_int_equal(pthread_create(&readers[i], NULL, bulk_reader, &out[i]), 0);
        assert_int_equal(pthread_create(&writers[i], NULL, bulk_writer, &in[i]), 0);
    }
    time_t deadline = time(NULL) + 60;
    for (bool more = true; more && time(NULL) < deadline;) {
        more = false;
        for (unsigned i = 0; i < PORTS; i++) {
            bulk_turn(&out[i], &in[i], &to_send[i], &to_get[i]);
            more |= to_send[i] > 0 || to_get[i] > 0;
        }
    }
    for (unsigned i = 0; i < PORTS; i++) {
        assert_int_equal(to_send[i], 0);
        assert_int_equal(to_get[i], 0);
        pthread_join(readers[i], NULL);
        pthread_join(writers[i], NULL);
        assert_int_equal(out[i].got_hash, out[i].sent_hash);
        assert_int_equal(in[i].got_hash, in[i].sent_hash);
        assert_int_not_equal(in[i].got_hash, 0);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(ports_shake_hands_and_talk),
        TEST(early_bytes_wait_for_the_guest),
        TEST(a_slow_reader_holds_the_guest_back),
        TEST(megabytes_arrive_unchanged_both_ways),
    };
    return cmocka_run_group_tests_name("console", tests, NULL, NULL);
}
