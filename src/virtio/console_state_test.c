/* The console saved with a chain half out, and loaded with other sockets. */
#include "base/bytes.h"
#include "virtio/console.h"
#include "virtio/state_fixture.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum {
    PORTS = 2,
    SLOT = 3,
    F_MULTIPORT = 1 << 1,
    CONTROL_RX = 2,
    CONTROL_TX = 3,
    READY = 0,
    ADD = 1,
    PORT_READY = 3,
    OPEN = 6,
    NAME = 7,
    BUFFER = 4096,
    AREA = 16 << 20,  /* buffers of the queues */
    CHAIN = 32 << 20, /* what is half out */
    CHAIN_BYTES = 4 << 20,
};

#define FEATURES (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | F_MULTIPORT)

struct fixture {
    struct side side; /* first */
    struct virtio_console *console;
    int host[PORTS];
    _Atomic int opened, closed;
};

static void note_opened(void *opaque, unsigned port, bool open)
{
    struct fixture *f = opaque;
    if (port == 1 && open)
        f->opened++;
    else if (port == 1)
        f->closed++;
}

static struct fixture *make(unsigned count)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct virtio_console_port ports[PORTS] = {{NULL, -1}, {"exec", -1}};
    driver_machine_init(&f->side.machine);
    for (unsigned i = 0; i < PORTS; i++) {
        int pair[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        if (i < count)
            ports[i].fd = pair[0];
        else
            close(pair[0]);
        f->host[i] = pair[1];
    }
    const struct virtio_console_config config = {
        .ports = ports, .port_count = count, .guest_opened = note_opened, .opaque = f};
    assert_int_equal(virtio_console_new(f->side.machine.mem, &config, &f->console, NULL), 0);
    assert_int_equal(side_init(&f->side, virtio_console_device(f->console), SLOT), 0);
    assert_int_equal(virtio_begin(virtio_console_device(f->console), NULL), 0);
    return f;
}

static void done(struct fixture *f)
{
    side_fini(&f->side);
    for (unsigned i = 0; i < PORTS; i++)
        close(f->host[i]);
    free(f);
}

static unsigned rx(unsigned port)
{
    return port == 0 ? 0 : 2 + 2 * port;
}

static uint64_t buffer_at(unsigned queue, unsigned index)
{
    return AREA + (queue * 64u + index) * BUFFER;
}

static void give(struct fixture *f, unsigned queue, unsigned count)
{
    struct driver_ring *ring = &f->side.driver.rings[queue];
    for (unsigned i = 0; i < count; i++) {
        assert_true(ring->free_count > 0);
        uint16_t next = ring->free[ring->free_count - 1];
        const struct driver_buffer buffer = {buffer_at(queue, next), BUFFER, true};
        assert_true(driver_ring_add(ring, &buffer, 1) >= 0);
    }
    driver_kick(&f->side.driver, queue);
}

static bool take(struct fixture *f, unsigned queue, void *to, uint32_t *ret_length)
{
    uint32_t head;
    if (!driver_ring_take(&f->side.driver.rings[queue], &head, ret_length))
        return false;
    assert_true(*ret_length <= BUFFER);
    if (*ret_length)
        mem_read(f->side.machine.mem, buffer_at(queue, head), to, *ret_length);
    return true;
}

static void say(struct fixture *f, uint32_t id, uint16_t event, uint16_t value)
{
    struct driver_ring *ring = &f->side.driver.rings[CONTROL_TX];
    uint8_t message[8];
    uint32_t head, length;
    le32_write(message, id);
    le16_write(message + 4, event);
    le16_write(message + 6, value);
    uint16_t next = ring->free[ring->free_count - 1];
    mem_write(f->side.machine.mem, buffer_at(CONTROL_TX, next), message, sizeof message);
    const struct driver_buffer buffer = {buffer_at(CONTROL_TX, next), sizeof message, false};
    assert_true(driver_ring_add(ring, &buffer, 1) >= 0);
    driver_kick(&f->side.driver, CONTROL_TX);
    assert_true(eventually(driver_ring_take(ring, &head, &length)));
}

static void expect(struct fixture *f, uint32_t id, uint16_t event, uint16_t value)
{
    uint8_t bytes[BUFFER];
    uint32_t length;
    assert_true(eventually(take(f, CONTROL_RX, bytes, &length)));
    assert_true(length >= 8);
    assert_int_equal(le32_read(bytes), id);
    assert_int_equal(le16_read(bytes + 4), event);
    assert_int_equal(le16_read(bytes + 6), value);
    give(f, CONTROL_RX, 1);
}

static void bring_up(struct fixture *f)
{
    struct driver *driver = &f->side.driver;
    assert_true(driver_negotiate(driver, FEATURES));
    driver_msix_on(driver, 2 + 2 * PORTS + 1);
    for (unsigned queue = 0; queue < 2 + 2 * PORTS; queue++)
        assert_true(driver_queue(driver, queue, 64, true));
    driver_live(driver);
    give(f, CONTROL_RX, 32);
    say(f, 0xffffffff, READY, 1);
    expect(f, 0, ADD, 1);
    expect(f, 1, ADD, 1);
    say(f, 1, PORT_READY, 1);
    expect(f, 1, NAME, 1);
    expect(f, 1, OPEN, 1);
    give(f, rx(1), 16);
    say(f, 1, OPEN, 1);
    assert_true(eventually(f->opened == 1));
}

static uint8_t byte_at(size_t at)
{
    return (uint8_t)(at * 31 + at / 251 + at / 65536);
}

/* One chain of megabytes, in pieces that do not end where sockets do; then a short one. */
static void write_much(struct fixture *f)
{
    enum { PIECES = 50 };
    struct driver_buffer buffers[PIECES];
    uint8_t *bytes = mem_at(f->side.machine.mem, CHAIN, CHAIN_BYTES + 5, true);
    for (size_t i = 0; i < CHAIN_BYTES + 5; i++)
        bytes[i] = byte_at(i);
    uint32_t size = CHAIN_BYTES / PIECES + 1, at = 0;
    for (unsigned i = 0; i < PIECES; i++, at += size)
        buffers[i] = (struct driver_buffer){CHAIN + at, min(size, CHAIN_BYTES - at), false};
    struct driver_ring *ring = &f->side.driver.rings[rx(1) + 1];
    assert_true(driver_ring_add(ring, buffers, PIECES) >= 0);
    const struct driver_buffer last = {CHAIN + CHAIN_BYTES, 5, false};
    assert_true(driver_ring_add(ring, &last, 1) >= 0);
    driver_kick(&f->side.driver, rx(1) + 1);
}

/* Reads what is there and compares; how much. */
static size_t read_some(int fd, size_t at)
{
    static uint8_t bytes[65536];
    ssize_t got = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
    for (ssize_t i = 0; i < got; i++)
        if (bytes[i] != byte_at(at + (size_t)i))
            fail_msg("byte %zu", at + (size_t)i);
    return got > 0 ? (size_t)got : 0;
}

static void a_chain_that_is_half_out_goes_on_on_another_socket(void **state)
{
    struct fixture *one = make(PORTS), *two = make(PORTS);
    bring_up(one);
    write_much(one);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); /* until the socket is full */
    struct saved saved = side_save(&one->side);
    size_t there = 0;
    for (size_t got; (got = read_some(one->host[1], there)) > 0;)
        there += got;
    assert_true(there > 0 && there < CHAIN_BYTES);
    /* It is held: nothing follows, though there is room. */
    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    assert_int_equal(read_some(one->host[1], there), 0);

    assert_null(side_load(&two->side, &saved));
    driver_follow(&two->side, &one->side);
    size_t at = there;
    for (int tries = PATIENCE_MS * NAPS_A_MS; at < CHAIN_BYTES + 5 && tries > 0; tries--) {
        size_t got = read_some(two->host[1], at);
        at += got;
        if (!got)
            nap();
    }
    assert_int_equal(at, CHAIN_BYTES + 5);
    struct driver_ring *ring = &two->side.driver.rings[rx(1) + 1];
    uint32_t head, length;
    assert_true(eventually(driver_ring_take(ring, &head, &length)));
    assert_true(eventually(driver_ring_take(ring, &head, &length)));
    assert_int_equal(ring->free_count, 64);
    expect(two, 1, OPEN, 1); /* it hears how its host's end is */
    assert_true(eventually(two->opened == 1));

    /* The one that was saved goes on too. */
    virtio_release(one->side.device);
    for (int tries = PATIENCE_MS * NAPS_A_MS; there < CHAIN_BYTES + 5 && tries > 0; tries--) {
        size_t got = read_some(one->host[1], there);
        there += got;
        if (!got)
            nap();
    }
    assert_int_equal(there, CHAIN_BYTES + 5);
    saved_free(&saved);
    done(one);
    done(two);
}

static void both_directions_work_afterwards(void **state)
{
    struct fixture *one = make(PORTS), *two = make(PORTS);
    char bytes[BUFFER] = {0};
    uint32_t length;
    bring_up(one);
    struct saved saved = side_save(&one->side);
    assert_int_equal(write(two->host[1], "early", 5), 5); /* before it is loaded */
    assert_null(side_load(&two->side, &saved));
    driver_follow(&two->side, &one->side);
    assert_true(eventually(take(two, rx(1), bytes, &length)));
    assert_int_equal(length, 5);
    assert_memory_equal(bytes, "early", 5);
    struct driver_ring *ring = &two->side.driver.rings[rx(1) + 1];
    const struct driver_buffer buffer = {buffer_at(rx(1) + 1, 0), 6, false};
    mem_write(two->side.machine.mem, buffer.address, "answer", 6);
    assert_true(driver_ring_add(ring, &buffer, 1) >= 0);
    driver_kick(&two->side.driver, rx(1) + 1);
    struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
    setsockopt(two->host[1], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    assert_int_equal(recv(two->host[1], bytes, 6, MSG_WAITALL), 6);
    assert_memory_equal(bytes, "answer", 6);
    saved_free(&saved);
    done(one);
    done(two);
}

/* Nobody is there any more behind the port: the guest hears that. */
static void an_end_that_is_gone_is_told(void **state)
{
    struct fixture *one = make(PORTS), *two = make(PORTS);
    bring_up(one);
    struct saved saved = side_save(&one->side);
    close(two->host[1]);
    two->host[1] = dup(two->host[0]);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); /* the device has seen it */
    assert_null(side_load(&two->side, &saved));
    driver_follow(&two->side, &one->side);
    expect(two, 1, OPEN, 0);
    saved_free(&saved);
    done(one);
    done(two);
}

static void other_ports_are_refused(void **state)
{
    struct fixture *one = make(PORTS), *two = make(1);
    bring_up(one);
    struct saved saved = side_save(&one->side);
    assert_non_null(side_load(&two->side, &saved));
    saved_free(&saved);
    done(one);
    done(two);
}

/* More sent than the chain has, or a chain where there is none. */
static void a_chain_that_cannot_be_is_refused(void **state)
{
    for (unsigned what = 0; what < 3; what++) {
        struct fixture *one = make(PORTS), *two = make(PORTS);
        bring_up(one);
        if (what < 2)
            write_much(one);
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
        struct saved saved = side_save(&one->side);
        /* Of port 1, at the end: name 63, ready, open, pending 4, held, done 8. */
        uint8_t *held = saved.device.bytes + saved.device.size - 9;
        assert_int_equal(held[0], what < 2);
        held[0] = 1;
        le64_write(held + 1, what == 0 ? CHAIN_BYTES : CHAIN_BYTES + 1);
        const char *why = side_load(&two->side, &saved);
        if (what == 0) {
            assert_null(why); /* all of it, but for the last word */
        } else {
            assert_non_null(why);
            assert_non_null(strstr(why, "writes what is not there"));
        }
        saved_free(&saved);
        done(one);
        done(two);
    }
}

static double cpu_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* What nobody takes for now is no reason to look for it again and again. */
static void a_held_console_sleeps(void **state)
{
    struct fixture *f = make(PORTS);
    (void)state;
    bring_up(f);
    virtio_hold(f->side.device);
    assert_int_equal(write(f->host[1], "x", 1), 1);
    double before = cpu_seconds();
    for (unsigned i = 0; i < 2000; i++)
        nap();
    assert_true(cpu_seconds() - before < 0.2);
    virtio_release(f->side.device);
    uint8_t bytes[BUFFER];
    uint32_t length;
    assert_true(eventually(take(f, rx(1), bytes, &length)));
    assert_int_equal(length, 1);
    assert_int_equal(bytes[0], 'x');
    done(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_held_console_sleeps),
        cmocka_unit_test(a_chain_that_is_half_out_goes_on_on_another_socket),
        cmocka_unit_test(both_directions_work_afterwards),
        cmocka_unit_test(an_end_that_is_gone_is_told),
        cmocka_unit_test(other_ports_are_refused),
        cmocka_unit_test(a_chain_that_cannot_be_is_refused),
    };
    return cmocka_run_group_tests_name("console state", tests, NULL, NULL);
}
