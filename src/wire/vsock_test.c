#include "wire/vsock.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

static void messages_are_little_endian(void **state)
{
    static const uint8_t expected[VSOCK_MESSAGE_SIZE] = {2, 0, 0, 0, 4, 3, 2, 1, 8, 7, 6, 5};
    uint8_t bytes[VSOCK_MESSAGE_SIZE];
    vsock_message_encode(&(struct vsock_message){VSOCK_DIAL, 0x01020304, 0x05060708}, bytes);
    assert_memory_equal(bytes, expected, sizeof bytes);
}

static void what_breaks_the_rules_is_refused(void **state)
{
    static const struct {
        size_t at;
        uint8_t byte;
    } damage[] = {{0, 0}, {0, 5}, {1, 1}, {0, VSOCK_CALL}, {0, VSOCK_REFUSED}, {12, 1}, {15, 1}};
    uint8_t bytes[VSOCK_MESSAGE_SIZE + 1] = {0};
    struct vsock_message message;
    const struct vsock_message good = {VSOCK_DIAL, 7, 8};
    for (size_t i = 0; i < ARRAY_LEN(damage); i++) {
        struct err err = {0};
        vsock_message_encode(&good, bytes);
        bytes[damage[i].at] = damage[i].byte;
        assert_int_equal(vsock_message_decode(bytes, VSOCK_MESSAGE_SIZE, &message, &err), -EBADMSG);
        assert_true(err.text[0]);
    }
    vsock_message_encode(&good, bytes);
    assert_int_equal(vsock_message_decode(bytes, VSOCK_MESSAGE_SIZE, &message, NULL), 0);
    assert_int_equal(message.port, 8);
    assert_int_equal(vsock_message_decode(bytes, VSOCK_MESSAGE_SIZE - 1, &message, NULL), -EBADMSG);
    assert_int_equal(vsock_message_decode(bytes, VSOCK_MESSAGE_SIZE + 1, &message, NULL), -EBADMSG);
}

static void descriptors_go_along(void **state)
{
    int link[2], pipe_ends[2], fd;
    struct vsock_message message;
    char byte = 0;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, link), 0);
    assert_int_equal(pipe(pipe_ends), 0);
    assert_int_equal(vsock_message_receive(link[1], &message, &fd, NULL), -EAGAIN);

    const struct vsock_message call = {VSOCK_CALL, 0, 1024};
    assert_int_equal(vsock_message_send(link[0], &call, pipe_ends[1], NULL), 0);
    assert_int_equal(vsock_message_receive(link[1], &message, &fd, NULL), 0);
    assert_int_equal(message.type, VSOCK_CALL);
    assert_int_equal(message.port, 1024);
    assert_true(fd >= 0 && fcntl(fd, F_GETFD) & FD_CLOEXEC);
    assert_int_equal(write(fd, "x", 1), 1);
    assert_int_equal(read(pipe_ends[0], &byte, 1), 1);
    close(fd);

    /* One too many, and one too few. */
    const struct vsock_message dial = {VSOCK_DIAL, 3, 1024}, dialed = {VSOCK_DIALED, 3, 0};
    vsock_message_send(link[0], &dial, pipe_ends[1], NULL);
    close(pipe_ends[1]);
    assert_int_equal(vsock_message_receive(link[1], &message, &fd, NULL), -EBADMSG);
    assert_int_equal(read(pipe_ends[0], &byte, 1), 0); /* it was closed */
    vsock_message_send(link[0], &dialed, -1, NULL);
    assert_int_equal(vsock_message_receive(link[1], &message, &fd, NULL), 0);
    assert_int_equal(message.type, VSOCK_REFUSED);
    assert_int_equal(message.id, 3);
    assert_int_equal(fd, -1);
    vsock_message_send(link[0], &call, -1, NULL);
    assert_int_equal(vsock_message_receive(link[1], &message, &fd, NULL), -EMFILE);

    assert_int_equal(send(link[0], "seventeen bytes..", 17, 0), 17);
    assert_int_equal(vsock_message_receive(link[1], &message, &fd, NULL), -EBADMSG);
    close(link[0]);
    assert_int_equal(vsock_message_receive(link[1], &message, &fd, NULL), -EPIPE);
    assert_int_equal(vsock_message_send(link[1], &dial, -1, NULL), -EPIPE);
    close(link[1]);
    close(pipe_ends[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_are_little_endian),
        cmocka_unit_test(what_breaks_the_rules_is_refused),
        cmocka_unit_test(descriptors_go_along),
    };
    return cmocka_run_group_tests_name("vsock link", tests, NULL, NULL);
}
