/* The file system device from both ends: a driver in plain memory, and the server's end of the
 * socket. */
#include "virtio/fs.h"

#include "base/bytes.h"
#include "virtio/pci.h"
#include "virtio/test_driver.h"

#include <errno.h>
#include <poll.h>
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
    QUEUES = 2,
    QUEUE_SIZE = 128,
    REQUEST_AT = 16 << 20, /* in guest memory; one megabyte for each request */
    REPLY_AT = 40 << 20,
    STEP = 1 << 19,
    NEEDS_RESET = 64,
    LOOKUP = 1,
    FORGET = 2,
    WRITE = 16,
};

#define FEATURES (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)

struct fixture {
    struct driver_machine machine;
    struct driver driver;
    struct virtio_pci *transport;
    int server;
    unsigned requests;
    uint8_t message[VIRTIO_FS_MESSAGE_MAX];
};

static struct fixture *f;

static void live(void)
{
    assert_true(driver_negotiate(&f->driver, FEATURES));
    driver_msix_on(&f->driver, QUEUES + 1);
    for (unsigned i = 0; i < QUEUES; i++)
        assert_true(driver_queue(&f->driver, i, QUEUE_SIZE, true));
    driver_live(&f->driver);
}

static int set_up(void **state)
{
    struct virtio_device *device;
    int pair[2];
    f = calloc(1, sizeof *f);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    f->server = pair[1];
    const struct virtio_fs_config config = {.tag = "home", .fd = pair[0]};
    driver_machine_init(&f->machine);
    assert_int_equal(virtio_fs_new(f->machine.mem, &config, &device, NULL), 0);
    assert_int_equal(virtio_pci_new(f->machine.host, PCI_SLOT_ANY, device, &f->transport, NULL), 0);
    driver_machine_place(&f->machine);
    driver_init(&f->driver, &f->machine, pci_device_slot(virtio_pci_device(f->transport)));
    live();
    return 0;
}

static int tear_down(void **state)
{
    virtio_pci_free(f->transport);
    driver_machine_fini(&f->machine);
    if (f->server >= 0)
        close(f->server);
    free(f);
    return 0;
}

static uint8_t *memory(uint64_t address, uint64_t size)
{
    return mem_at(f->machine.mem, address, size, true);
}

static uint64_t reply_at(unsigned number)
{
    return REPLY_AT + (uint64_t)number * STEP;
}

/* A request of `size` bytes that says it has `says`, with `room` for its reply. Its number. */
static unsigned ask_saying(unsigned queue, uint32_t opcode, uint64_t unique, uint32_t size,
                           uint32_t says, uint32_t room)
{
    unsigned number = f->requests++;
    uint64_t at = REQUEST_AT + (uint64_t)number * STEP;
    uint8_t *request = memory(at, STEP);
    for (uint32_t i = 0; i < size; i++)
        request[i] = (uint8_t)(i * 7 + number);
    le32_write(request, says);
    le32_write(request + 4, opcode);
    le64_write(request + 8, unique);
    memset(memory(reply_at(number), 4096), 0xee, 4096);
    struct driver_buffer buffers[] = {{at, min(size, 24u), false},
                                      {at + 24, size - min(size, 24u), false},
                                      {reply_at(number), room, true}};
    unsigned first = size > 24 ? 0 : 1;
    if (first)
        buffers[1] = buffers[0];
    assert_true(driver_ring_add(&f->driver.rings[queue], buffers + first, (room ? 3 : 2) - first) >=
                0);
    driver_kick(&f->driver, queue);
    return number;
}

static unsigned ask(unsigned queue, uint32_t opcode, uint64_t unique, uint32_t size, uint32_t room)
{
    return ask_saying(queue, opcode, unique, size, size, room);
}

/* The next request as the server gets it; its length, and its number in ret_unique. */
static uint32_t serve(uint64_t *ret_unique)
{
    assert_int_equal(recv(f->server, f->message, 40, MSG_WAITALL), 40);
    uint32_t size = le32_read(f->message);
    assert_true(size <= sizeof f->message);
    if (size > 40)
        assert_int_equal(recv(f->server, f->message + 40, size - 40, MSG_WAITALL), size - 40);
    *ret_unique = le64_read(f->message + 8);
    return size;
}

static void reply(uint64_t unique, uint32_t size)
{
    static uint8_t bytes[VIRTIO_FS_MESSAGE_MAX];
    memset(bytes, 0x5a, sizeof bytes);
    le32_write(bytes, size);
    le32_write(bytes + 4, 0);
    le64_write(bytes + 8, unique);
    for (uint32_t done = 0; done < size;) {
        ssize_t n = send(f->server, bytes + done, size - done, MSG_NOSIGNAL);
        assert_true(n > 0);
        done += (uint32_t)n;
    }
}

static bool wait_take(unsigned queue, uint32_t *ret_length)
{
    uint32_t head;
    return eventually(driver_ring_take(&f->driver.rings[queue], &head, ret_length));
}

static bool wait_failed(void)
{
    return eventually(driver_status(&f->driver) & NEEDS_RESET);
}

static void the_guest_sees_its_tag(void **state)
{
    char tag[37] = "";
    for (unsigned i = 0; i < 36; i++)
        tag[i] = (char)driver_read(&f->driver, f->driver.device + i, 1);
    assert_string_equal(tag, "home");
    assert_int_equal(driver_read(&f->driver, f->driver.device + 36, 4), 1);
}

static void a_request_goes_and_its_reply_comes(void **state)
{
    uint64_t unique;
    uint32_t length;
    unsigned number = ask(1, LOOKUP, 0x123456789, 77, 200);
    assert_int_equal(serve(&unique), 77);
    for (uint32_t i = 16; i < 77; i++)
        assert_int_equal(f->message[i], (uint8_t)(i * 7 + number));
    assert_int_equal(le32_read(f->message + 4), LOOKUP);
    reply(unique, 100);
    assert_true(wait_take(1, &length));
    assert_int_equal(length, 100);
    const uint8_t *bytes = memory(reply_at(number), 4096);
    assert_int_equal(le32_read(bytes), 100);
    assert_int_equal(le64_read(bytes + 8), 0x123456789);
    assert_int_equal(bytes[16], 0x5a);
    assert_int_equal(bytes[99], 0x5a);
    assert_int_equal(bytes[100], 0xee);
}

static void replies_come_in_any_order_to_who_asked(void **state)
{
    uint64_t numbers[3], uniques[3] = {7, 7, 9}; /* a guest may use one twice */
    uint32_t length;
    unsigned asked[3];
    for (int i = 0; i < 3; i++)
        asked[i] = ask(1, LOOKUP, uniques[i], 50, 300);
    for (int i = 0; i < 3; i++)
        serve(&numbers[i]);
    assert_int_not_equal(numbers[0], numbers[1]);
    for (int i = 2; i >= 0; i--) {
        reply(numbers[i], 100 + (uint32_t)i);
        assert_true(wait_take(1, &length));
        assert_int_equal(length, 100 + i);
        const uint8_t *bytes = memory(reply_at(asked[i]), 4096);
        assert_int_equal(le32_read(bytes), 100 + i);
        assert_int_equal(le64_read(bytes + 8), uniques[i]);
    }
}

static void large_ones_pass_whole(void **state)
{
    uint64_t unique;
    uint32_t length;
    unsigned number = ask(1, WRITE, 5, VIRTIO_FS_MESSAGE_MAX, VIRTIO_FS_MESSAGE_MAX);
    assert_int_equal(serve(&unique), VIRTIO_FS_MESSAGE_MAX);
    for (uint32_t i = 16; i < VIRTIO_FS_MESSAGE_MAX; i++)
        if (f->message[i] != (uint8_t)(i * 7 + number))
            fail_msg("byte %u", i);
    reply(unique, VIRTIO_FS_MESSAGE_MAX);
    assert_true(wait_take(1, &length));
    assert_int_equal(length, VIRTIO_FS_MESSAGE_MAX);
    assert_int_equal(memory(reply_at(number), STEP)[VIRTIO_FS_MESSAGE_MAX - 1], 0x5a);
}

static void what_has_no_reply_comes_back_at_once(void **state)
{
    uint64_t unique;
    uint32_t length;
    ask(0, FORGET, 1, 48, 0);
    assert_true(wait_take(0, &length));
    assert_int_equal(length, 0);
    ask(0, FORGET, 1, 48, 100); /* with room for one, too */
    assert_true(wait_take(0, &length));
    assert_int_equal(length, 0);
    assert_int_equal(serve(&unique), 48);
    assert_int_equal(serve(&unique), 48);
}

/* The device waits for 64 replies at a time, those that nobody wants any more included. */
static void more_than_can_wait_waits_in_the_queue(void **state)
{
    uint64_t numbers[64], unique;
    uint32_t length;
    for (int round = 0; round < 2; round++) {
        for (unsigned i = 0; i < 40; i++) {
            f->requests = i % 16;
            ask(1, LOOKUP, i, 100, 300);
        }
        for (unsigned i = 0; i < 40 && round == 0; i++)
            serve(&numbers[i]);
        if (round == 0) {
            driver_set_status(&f->driver, 0);
            live();
        }
    }
    for (unsigned i = 40; i < 64; i++)
        serve(&numbers[i]);
    struct pollfd more = {.fd = f->server, .events = POLLIN};
    assert_int_equal(poll(&more, 1, 100), 0);
    for (unsigned i = 0; i < 64; i++)
        reply(numbers[i], 16);
    for (unsigned i = 24; i < 40; i++) {
        serve(&unique);
        reply(unique, 16);
    }
    for (unsigned i = 0; i < 40; i++)
        assert_true(wait_take(1, &length));
}

static void liars_fail_the_device(void **state)
{
    static const struct {
        uint32_t size, says, room;
    } lies[] = {
        {39, 39, 100},                       /* no header */
        {8, 8, 100},                         /* not even a number */
        {50, 51, 100},                       /* longer than it is */
        {50, 39, 100},                       /* shorter than a header */
        {50, UINT32_MAX, 100},               /* longer than anything */
        {50, 0, 100},          {50, 50, 15}, /* no room for a reply */
        {50, 50, 0},           {VIRTIO_FS_MESSAGE_MAX + 1, VIRTIO_FS_MESSAGE_MAX, 100},
    };
    uint64_t unique;
    uint32_t length;
    for (size_t i = 0; i < ARRAY_LEN(lies); i++) {
        ask_saying(1, LOOKUP, 1, lies[i].size, lies[i].says, lies[i].room);
        assert_true(wait_failed());
        live();
        f->requests = 0;
        ask(1, LOOKUP, 1, 50, 100);
        assert_int_equal(serve(&unique), 50); /* nothing of the lie came before it */
        reply(unique, 20);
        assert_true(wait_take(1, &length));
        assert_int_equal(length, 20);
    }
    /* Too little room for this reply, as it turns out. */
    ask(1, LOOKUP, 1, 50, 100);
    serve(&unique);
    reply(unique, 101);
    assert_true(wait_failed());
}

static void a_reset_forgets_what_is_under_way(void **state)
{
    uint64_t before, after;
    uint32_t length;
    unsigned number = ask(1, LOOKUP, 1, 50, 100);
    serve(&before);
    driver_set_status(&f->driver, 0);
    live();
    unsigned later = ask(1, LOOKUP, 1, 50, 100);
    serve(&after);
    assert_int_not_equal(before, after);
    reply(before, 60);
    reply(after, 70);
    assert_true(wait_take(1, &length));
    assert_int_equal(length, 70);
    assert_int_equal(*memory(reply_at(number), 1), 0xee);
    assert_int_equal(le32_read(memory(reply_at(later), 4)), 70);
}

static void expect_eio(unsigned number)
{
    uint32_t length;
    assert_true(wait_take(1, &length));
    assert_int_equal(length, 16);
    const uint8_t *bytes = memory(reply_at(number), 16);
    assert_int_equal(le32_read(bytes), 16);
    assert_int_equal((int32_t)le32_read(bytes + 4), -EIO);
    assert_int_equal(le64_read(bytes + 8), 77);
}

static void without_a_server_there_are_errors(void **state)
{
    uint64_t unique;
    uint32_t length;
    unsigned number = ask(1, LOOKUP, 77, 50, 100);
    serve(&unique);
    close(f->server);
    f->server = -1;
    expect_eio(number);
    expect_eio(ask(1, LOOKUP, 77, 50, 100));
    ask(0, FORGET, 1, 48, 0);
    assert_true(wait_take(0, &length));
    driver_set_status(&f->driver, 0);
    live();
    expect_eio(ask(1, LOOKUP, 77, 50, 100));
}

static void a_server_that_makes_no_sense_is_none(void **state)
{
    static const struct {
        uint32_t size;
        uint64_t unique;
    } wrong[] = {{15, 0}, {0, 0},   {UINT32_MAX, 0}, {VIRTIO_FS_MESSAGE_MAX + 1, 0},
                 {16, 1}, {16, 63}, {16, 64},        {16, UINT64_MAX}};
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        uint8_t bytes[16] = {0};
        uint64_t unique;
        if (i > 0)
            set_up(state);
        unsigned number = ask(1, LOOKUP, 77, 50, 100);
        serve(&unique);
        le32_write(bytes, wrong[i].size);
        le64_write(bytes + 8, wrong[i].unique);
        assert_int_equal(send(f->server, bytes, sizeof bytes, MSG_NOSIGNAL), 16);
        expect_eio(number);
        if (i + 1 < ARRAY_LEN(wrong))
            tear_down(state);
    }
}

static void a_server_that_does_not_read_holds_nobody_up(void **state)
{
    uint64_t unique;
    uint32_t length;
    for (unsigned i = 0; i < 8; i++) /* more than the socket takes */
        ask(1, WRITE, i, VIRTIO_FS_MESSAGE_MAX, 100);
    driver_set_status(&f->driver, 0); /* must not wait */
    live();
    f->requests = 0;
    ask(1, LOOKUP, 1, 60, 100);
    /* Whole messages only, whatever was going when the reset came. */
    for (int i = 0; i < 9; i++) {
        uint32_t size = serve(&unique);
        if (size == 60)
            break;
        assert_int_equal(size, VIRTIO_FS_MESSAGE_MAX);
        reply(unique, 16);
    }
    assert_int_equal(le32_read(f->message + 4), LOOKUP);
    reply(unique, 30);
    assert_true(wait_take(1, &length));
    assert_int_equal(length, 30);
}

static void what_can_be_no_share_is_refused(void **state)
{
    struct virtio_device *device;
    char tag[38];
    int pair[2];
    memset(tag, 'x', sizeof tag);
    tag[37] = '\0';
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    struct virtio_fs_config config = {.tag = tag, .fd = pair[0]};
    assert_int_equal(virtio_fs_new(f->machine.mem, &config, &device, NULL), -EINVAL);
    config.tag = "";
    assert_int_equal(virtio_fs_new(f->machine.mem, &config, &device, NULL), -EINVAL);
    config = (struct virtio_fs_config){.tag = "x", .fd = -1};
    assert_int_equal(virtio_fs_new(f->machine.mem, &config, &device, NULL), -EBADF);
    close(pair[0]);
    close(pair[1]);
}

#define with_device(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        with_device(the_guest_sees_its_tag),
        with_device(a_request_goes_and_its_reply_comes),
        with_device(replies_come_in_any_order_to_who_asked),
        with_device(large_ones_pass_whole),
        with_device(what_has_no_reply_comes_back_at_once),
        with_device(more_than_can_wait_waits_in_the_queue),
        with_device(liars_fail_the_device),
        with_device(a_reset_forgets_what_is_under_way),
        with_device(without_a_server_there_are_errors),
        with_device(a_server_that_makes_no_sense_is_none),
        with_device(a_server_that_does_not_read_holds_nobody_up),
        with_device(what_can_be_no_share_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
