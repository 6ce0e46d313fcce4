/*
 * console_fixture.h: for tests of the console device from both ends: a driver in plain memory, and
 * the sockets' other ends.
 */
#pragma once

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

static inline uint32_t roll(struct fixture *f)
{
    f->random = f->random * 1664525 + 1013904223;
    return f->random >> 8;
}

static inline void note_opened(void *opaque, unsigned port, bool open)
{
    struct fixture *f = opaque;
    if (open)
        f->opened[port]++;
    else
        f->closed[port]++;
}

static inline int setup(void **state)
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
                       NULL) < 0 ||
        virtio_begin(virtio_console_device(f->console), NULL) < 0)
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
    for (int i = 0; i < PORTS; i++)
        if (f->host[i] >= 0)
            close(f->host[i]);
    driver_machine_fini(&f->machine);
    free(f);
    return 0;
}

static inline unsigned rx(unsigned port)
{
    return port == 0 ? 0 : 2 + 2 * port;
}

static inline unsigned tx(unsigned port)
{
    return rx(port) + 1;
}

/* Each queue has a part of guest memory, cut into buffers by descriptor. */
static inline uint64_t buffer_at(unsigned queue, unsigned index)
{
    return AREA + (queue * 128u + index % 128) * BUFFER;
}

static inline void bring_up(struct fixture *f, uint64_t features)
{
    struct driver *d = &f->driver;
    assert_true(driver_negotiate(d, features));
    driver_msix_on(d, 2 + 2 * PORTS + 1);
    for (unsigned queue = 0; queue < (features & F_MULTIPORT ? 2 + 2 * PORTS : 2); queue++)
        assert_true(driver_queue(d, queue, queue / 2 == 1 ? 64 : 128, true));
    driver_live(d);
}

/* Gives the device `count` buffers to fill. */
static inline void give(struct fixture *f, unsigned queue, unsigned count, uint32_t size)
{
    struct driver_ring *ring = &f->driver.rings[queue];
    for (unsigned i = 0; i < count && ring->free_count > 0; i++) {
        uint16_t next = ring->free[ring->free_count - 1];
        const struct driver_buffer buffer = {buffer_at(queue, next), size, true};
        assert_true(driver_ring_add(ring, &buffer, 1) >= 0);
    }
    driver_kick(&f->driver, queue);
}

static inline bool take(struct fixture *f, unsigned queue, void *to, uint32_t *ret_length)
{
    uint32_t head;
    if (!driver_ring_take(&f->driver.rings[queue], &head, ret_length))
        return false;
    if (*ret_length)
        assert_int_equal(mem_read(f->machine.mem, buffer_at(queue, head), to, *ret_length), 0);
    return true;
}

/* Makes one chain of `size` bytes available; false while the ring is full. */
static inline bool put(struct fixture *f, unsigned queue, const void *bytes, uint32_t size)
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

static inline void say(struct fixture *f, uint32_t id, uint16_t event, uint16_t value)
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

static inline bool hear(struct fixture *f, struct heard *heard)
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

static inline void expect(struct fixture *f, uint32_t id, uint16_t event, uint16_t value,
                          const void *rest, uint32_t rest_length)
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

static inline void open_ports(struct fixture *f)
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
static inline bool guest_reads(struct fixture *f, unsigned port, void *to, uint32_t size)
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

static inline bool host_reads(struct fixture *f, unsigned port, void *to, size_t size)
{
    struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
    setsockopt(f->host[port], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return recv(f->host[port], to, size, MSG_WAITALL) == (ssize_t)size;
}

static inline void guest_writes(struct fixture *f, unsigned port, const char *text)
{
    assert_true(eventually(put(f, tx(port), text, (uint32_t)strlen(text))));
    driver_kick(&f->driver, tx(port));
}

/* --- much of it --- */

/* Writes chunks until nothing has moved for a while; returns how many. */
static inline unsigned fill_up(struct fixture *f, unsigned port)
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

struct bulk {
    struct fixture *f;
    unsigned port;
    uint32_t random;
    size_t total;
    uint64_t sent_hash, got_hash;
};

static inline uint64_t hash(uint64_t before, const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        before = (before ^ bytes[i]) * UINT64_C(0x100000001b3);
    return before;
}

static inline uint32_t bulk_roll(uint32_t *random)
{
    *random = *random * 1664525 + 1013904223;
    return *random >> 8;
}

static inline void *bulk_writer(void *opaque)
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

static inline void *bulk_reader(void *opaque)
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
