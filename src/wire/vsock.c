#include "wire/vsock.h"

#include "base/bytes.h"
#include "base/own.h"

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

/* Room for one descriptor, aligned as the kernel wants it. */
union control {
    struct cmsghdr header;
    uint8_t bytes[CMSG_SPACE(sizeof(int))];
};

int vsock_message_send(int link, const struct vsock_message *message, int fd, struct err *err)
{
    uint8_t bytes[VSOCK_MESSAGE_SIZE];
    union control control = {0};
    struct iovec iov = {bytes, sizeof bytes};
    struct msghdr packet = {.msg_iov = &iov, .msg_iovlen = 1};
    vsock_message_encode(message, bytes);
    if (fd >= 0) {
        packet.msg_control = &control;
        packet.msg_controllen = sizeof control;
        struct cmsghdr *header = CMSG_FIRSTHDR(&packet);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    ssize_t n;
    do
        n = sendmsg(link, &packet, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? err_errno(err, errno, "vsock message") : 0;
}

/* The packet's descriptor, or -1; there cannot be two, for there was room for one. */
static int descriptor(struct msghdr *packet)
{
    int fd = -1;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(packet); header;
         header = CMSG_NXTHDR(packet, header))
        if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
            header->cmsg_len == CMSG_LEN(sizeof fd))
            memcpy(&fd, CMSG_DATA(header), sizeof fd);
    return fd;
}

int vsock_message_receive(int link, struct vsock_message *ret_message, int *ret_fd, struct err *err)
{
    uint8_t bytes[VSOCK_MESSAGE_SIZE + 1]; /* one more shows what is too long */
    union control control;
    struct iovec iov = {bytes, sizeof bytes};
    struct msghdr packet = {.msg_iov = &iov,
                            .msg_iovlen = 1,
                            .msg_control = &control,
                            .msg_controllen = sizeof control};
    struct vsock_message message;
    ssize_t n;
    do
        n = recvmsg(link, &packet, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return err_errno(err, errno, "vsock message");
    _cleanup_fd_ int fd = descriptor(&packet);
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
