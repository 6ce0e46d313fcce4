/* The console device, from both ends: a driver in plain memory, and the sockets' other ends. */
#include "virtio/console.h"

#include "base/bytes.h"
#include "virtio/pci.h"
#include "virtio/test_driver.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum {
    PORTS = 4,
    SLOT = 3,
    F_SIZE = 1 << 0,
    F_MULTIPORT = 1 << 1,
    CONTROL_RX = 2,
    CONTROL_TX = 3,
    READY = 0,
    ADD = 1,
    PORT_READY = 3,
    CONSOLE = 4,
    RESIZE = 5,
    OPEN = 6,
    NAME = 7,
    BUFFER = 4096,
    AREA = 16 << 20, /* guest memory from here on: one buffer per descriptor of each queue */
};

#define FEATURES (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | F_SIZE)

struct fixture {
    struct driver_machine machine;
    struct driver driver;
    struct virtio_console *console;
    struct virtio_pci *transport;
    int host[PORTS]; /* our ends of the sockets */
    _Atomic int opened[PORTS], closed[PORTS];
    uint32_t random;
};

/* Waits for `condition`, looking again and again. */
static uint32_t roll(struct fixture *f)
{
    f->random = f->random * 1664525 + 1013904223;
    return f->random >> 8;
}

static void note_opened(void *opaque, unsigned port, bool open)
{
    struct fixture *f = opaque;
    if (open)
        f->opened[port]++;
    else
        f->closed[port]++;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct virtio_console_port ports[PORTS] = {{NULL, -1}, {"exec", -1}, {"log", -1}, {"x", -1}};
    f->random = 7;
    driver_machine_init(&f->machine);
    for (int i = 0; i < PORTS; i++) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
            return -1;
        ports[i].fd = pair[0];
        f->host[i] = pair[1];
    }
    const struct virtio_console_config config = {
        .ports = ports,
        .port_count = PORTS,
        .cols = 80,
        .rows = 25,
        .guest_opened = note_opened,
        .opaque = f,
    };
    if (virtio_console_new(f->machine.mem, &config, &f->console, NULL) < 0 ||
        virtio_pci_new(f->machine.host, SLOT, virtio_console_device(f->console), &f->transport,
                       NULL) < 0)
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
    for (int i = 0; i < PORTS; i++)
        if (f->host[i] >= 0)
            close(f->host[i]);
    driver_machine_fini(&f->machine);
    free(f);
    return 0;
}

static unsigned rx(unsigned port)
{
    return port == 0 ? 0 : 2 + 2 * port;
}

static unsigned tx(unsigned port)
{
    return rx(port) + 1;
}

/* Each queue has a part of guest memory, cut into buffers by descriptor. */
static uint64_t buffer_at(unsigned queue, unsigned index)
{
    return AREA + (queue * 128u + index % 128) * BUFFER;
}

static void bring_up(struct fixture *f, uint64_t features)
{
    struct driver *d = &f->driver;
    assert_true(driver_negotiate(d, features));
    driver_msix_on(d, 2 + 2 * PORTS + 1);
    for (unsigned queue = 0; queue < (features & F_MULTIPORT ? 2 + 2 * PORTS : 2); queue++)
        assert_true(driver_queue(d, queue, queue / 2 == 1 ? 64 : 128, true));
    driver_live(d);
}

/* Gives the device `count` buffers to fill. */
static void give(struct fixture *f, unsigned queue, unsigned count, uint32_t size)
{
    struct driver_ring *ring = &f->driver.rings[queue];
    for (unsigned i = 0; i < count && ring->free_count > 0; i++) {
        uint16_t next = ring->free[ring->free_count - 1];
        const struct driver_buffer buffer = {buffer_at(queue, next), size, true};
        assert_true(driver_ring_add(ring, &buffer, 1) >= 0);
    }
    driver_kick(&f->driver, queue);
}

static bool take(struct fixture *f, unsigned queue, void *to, uint32_t *ret_length)
{
    uint32_t head;
    if (!driver_ring_take(&f->driver.rings[queue], &head, ret_length))
        return false;
    if (*ret_length)
        assert_int_equal(mem_read(f->machine.mem, buffer_at(queue, head), to, *ret_length), 0);
    return true;
}

/* Makes one chain of `size` bytes available; false while the ring is full. */
static bool put(struct fixture *f, unsigned queue, const void *bytes, uint32_t size)
{
    struct driver_ring *ring = &f->driver.rings[queue];
    uint32_t head, length;
    while (driver_ring_take(ring, &head, &length))
        ;
    if (ring->free_count == 0)
        return false;
    uint16_t next = ring->free[ring->free_count - 1];
    assert_true(size <= BUFFER);
    assert_int_equal(mem_write(f->machine.mem, buffer_at(queue, next), bytes, size), 0);
    const struct driver_buffer buffer = {buffer_at(queue, next), size, false};
    return driver_ring_add(ring, &buffer, 1) >= 0;
}

static void say(struct fixture *f, uint32_t id, uint16_t event, uint16_t value)
{
    uint8_t message[8];
    le32_write(message, id);
    le16_write(message + 4, event);
    le16_write(message + 6, value);
    assert_true(eventually(put(f, CONTROL_TX, message, 8)));
    driver_kick(&f->driver, CONTROL_TX);
}

struct heard {
    uint32_t id;
    uint16_t event, value;
    uint8_t rest[128];
    uint32_t rest_length;
};

static bool hear(struct fixture *f, struct heard *heard)
{
    uint8_t bytes[BUFFER];
    uint32_t length;
    if (!eventually(take(f, CONTROL_RX, bytes, &length)))
        return false;
    assert_true(length >= 8 && length <= 128);
    *heard = (struct heard){.id = le32_read(bytes),
                            .event = le16_read(bytes + 4),
                            .value = le16_read(bytes + 6),
                            .rest_length = length - 8};
    memcpy(heard->rest, bytes + 8, length - 8);
    give(f, CONTROL_RX, 1, 256);
    return true;
}

static void expect(struct fixture *f, uint32_t id, uint16_t event, uint16_t value, const void *rest,
                   uint32_t rest_length)
{
    struct heard heard;
    assert_true(hear(f, &heard));
    assert_int_equal(heard.id, id);
    assert_int_equal(heard.event, event);
    assert_int_equal(heard.value, value);
    assert_int_equal(heard.rest_length, rest_length);
    assert_memory_equal(heard.rest, rest, rest_length);
}

static const char *const names[PORTS] = {NULL, "exec", "log", "x"};

static void open_ports(struct fixture *f)
{
    bring_up(f, FEATURES | F_MULTIPORT);
    give(f, CONTROL_RX, 32, 256);
    say(f, 0xffffffff, READY, 1);
    for (unsigned i = 0; i < PORTS; i++)
        expect(f, i, ADD, 1, "", 0);
    for (unsigned i = 0; i < PORTS; i++) {
        say(f, i, PORT_READY, 1);
        if (i == 0) {
            expect(f, 0, CONSOLE, 1, "", 0);
            expect(f, 0, RESIZE, 1, "\x19\0\x50\0", 4); /* 25 rows, 80 columns */
        } else
            expect(f, i, NAME, 1, names[i], (uint32_t)strlen(names[i]));
        expect(f, i, OPEN, 1, "", 0);
    }
    for (unsigned i = 0; i < PORTS; i++) {
        give(f, rx(i), 128, BUFFER);
        say(f, i, OPEN, 1);
    }
    for (unsigned i = 0; i < PORTS; i++)
        assert_true(eventually(f->opened[i] > f->closed[i]));
}

/* What the guest gets from `port`, `size` bytes of it. */
static bool guest_reads(struct fixture *f, unsigned port, void *to, uint32_t size)
{
    uint32_t have = 0;
    while (have < size) {
        uint8_t bytes[BUFFER];
        uint32_t length;
        if (!eventually(take(f, rx(port), bytes, &length)) || length > size - have)
            return false;
        memcpy((uint8_t *)to + have, bytes, length);
        have += length;
        give(f, rx(port), 1, BUFFER);
    }
    return true;
}

static bool host_reads(struct fixture *f, unsigned port, void *to, size_t size)
{
    struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
    setsockopt(f->host[port], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return recv(f->host[port], to, size, MSG_WAITALL) == (ssize_t)size;
}

static void guest_writes(struct fixture *f, unsigned port, const char *text)
{
    assert_true(eventually(put(f, tx(port), text, (uint32_t)strlen(text))));
    driver_kick(&f->driver, tx(port));
}

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

/* Writes chunks until nothing has moved for a while; returns how many. */
static unsigned fill_up(struct fixture *f, unsigned port)
{
    uint8_t bytes[BUFFER];
    unsigned written = 0;
    for (unsigned refused = 0; refused < 100;) {
        for (unsigned i = 0; i < BUFFER; i++)
            bytes[i] = (uint8_t)(written * 31 + i);
        if (put(f, tx(port), bytes, BUFFER)) {
            written++;
            refused = 0;
            driver_kick(&f->driver, tx(port));
        } else {
            refused++;
            nap();
        }
    }
    return written;
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

struct bulk {
    struct fixture *f;
    unsigned port;
    uint32_t random;
    size_t total;
    uint64_t sent_hash, got_hash;
};

static uint64_t hash(uint64_t before, const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        before = (before ^ bytes[i]) * UINT64_C(0x100000001b3);
    return before;
}

static uint32_t bulk_roll(uint32_t *random)
{
    *random = *random * 1664525 + 1013904223;
    return *random >> 8;
}

static void *bulk_writer(void *opaque)
{
    struct bulk *bulk = opaque;
    uint8_t bytes[20000];
    for (size_t left = bulk->total; left > 0;) {
        size_t size = min((size_t)bulk_roll(&bulk->random) % sizeof bytes + 1, left);
        for (size_t i = 0; i < size; i++)
            bytes[i] = (uint8_t)bulk_roll(&bulk->random);
        ssize_t sent = write(bulk->f->host[bulk->port], bytes, size);
        if (sent <= 0)
            break;
        bulk->sent_hash = hash(bulk->sent_hash, bytes, (size_t)sent);
        left -= (size_t)sent;
    }
    return NULL;
}

static void *bulk_reader(void *opaque)
{
    struct bulk *bulk = opaque;
    uint32_t random = 99;
    uint8_t bytes[30000];
    for (size_t left = bulk->total; left > 0;) {
        size_t size = bulk_roll(&random) % sizeof bytes + 1;
        ssize_t got = read(bulk->f->host[bulk->port], bytes, min(size, left));
        if (got <= 0)
            break;
        bulk->got_hash = hash(bulk->got_hash, bytes, (size_t)got);
        left -= (size_t)got;
    }
    return NULL;
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
        TEST(ports_shake_hands_and_talk),
        TEST(early_bytes_wait_for_the_guest),
        TEST(a_slow_reader_holds_the_guest_back),
        TEST(megabytes_arrive_unchanged_both_ways),
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
    return cmocka_run_group_tests_name("console", tests, NULL, NULL);
}
