#include "wire/vsock.h"

#include "base/bytes.h"
#include "base/own.h"
#include "base/packet.h"

#include <errno.h>
#include <sys/socket.h>

enum { AT_TYPE = 0, AT_ID = 4, AT_PORT = 8, AT_ZERO = 12 };

/* What a message of this type has. */
static const struct {
    bool id, port, fd;
} has[VSOCK_MESSAGE_MAX] = {
    [VSOCK_CALL] = {.port = true, .fd = true},
    [VSOCK_DIAL] = {.id = true, .port = true},
    [VSOCK_DIALED] = {.id = true, .fd = true},
    [VSOCK_REFUSED] = {.id = true},
};

void vsock_message_encode(const struct vsock_message *message,
                          uint8_t ret_bytes[VSOCK_MESSAGE_SIZE])
{
    le32_write(ret_bytes + AT_TYPE, message->type);
    le32_write(ret_bytes + AT_ID, message->id);
    le32_write(ret_bytes + AT_PORT, message->port);
    le32_write(ret_bytes + AT_ZERO, 0);
}

int vsock_message_decode(const uint8_t *bytes, size_t size, struct vsock_message *ret_message,
                         struct err *err)
{
    if (size != VSOCK_MESSAGE_SIZE)
        return err_set(err, -EBADMSG, "a vsock message of %zu bytes", size);
    uint32_t type = le32_read(bytes + AT_TYPE);
    uint32_t id = le32_read(bytes + AT_ID), port = le32_read(bytes + AT_PORT);
    if (type < VSOCK_CALL || type >= VSOCK_MESSAGE_MAX)
        return err_set(err, -EBADMSG, "a vsock message of unknown type %u", type);
    if ((id && !has[type].id) || (port && !has[type].port) || le32_read(bytes + AT_ZERO))
        return err_set(err, -EBADMSG, "a vsock message with more than its type has");
    *ret_message =
        (struct vsock_message){.type = (enum vsock_message_type)type, .id = id, .port = port};
    return 0;
}

int vsock_message_send(int link, const struct vsock_message *message, int fd, struct err *err)
{
    uint8_t bytes[VSOCK_MESSAGE_SIZE];
    vsock_message_encode(message, bytes);
    int r = packet_send(link, bytes, sizeof bytes, &fd, fd >= 0, MSG_DONTWAIT);
    return r < 0 ? err_errno(err, -r, "vsock message") : 0;
}

int vsock_message_receive(int link, struct vsock_message *ret_message, int *ret_fd, struct err *err)
{
    uint8_t bytes[VSOCK_MESSAGE_SIZE];
    _cleanup_fd_ int fd = -1;
    struct vsock_message message;
    ssize_t n = packet_receive(link, bytes, sizeof bytes, &fd, 1, MSG_DONTWAIT);
    if (n == -EMSGSIZE)
        return err_set(err, -EBADMSG, "a vsock message that is too long");
    if (n < 0)
        return err_errno(err, (int)-n, "vsock message");
    if (n == 0)
        return err_set(err, -EPIPE, "the other end of the vsock link is closed");
    int r = vsock_message_decode(bytes, (size_t)n, &message, err);
    if (r < 0)
        return r;
    if (fd >= 0 && !has[message.type].fd)
        return err_set(err, -EBADMSG, "a vsock message with a descriptor that it should not have");
    if (fd < 0 && message.type == VSOCK_CALL)
        return err_set(err, -EMFILE, "a vsock call came without its descriptor");
    if (fd < 0 && message.type == VSOCK_DIALED)
        message.type = VSOCK_REFUSED;
    *ret_message = message;
    *ret_fd = take_fd(&fd);
    return 0;
}
