#include "packet.h"

#include "own.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Room for the descriptors, aligned as the kernel wants it. */
union control {
    struct cmsghdr header;
    char space[CMSG_SPACE(PACKET_FDS_MAX * sizeof(int))];
};

int packet_send(int socket, const void *bytes, size_t length, const int *fds, unsigned count,
                int flags)
{
    union control control = {0};
    struct iovec iov = {(void *)bytes, length};
    struct msghdr packet = {.msg_iov = &iov, .msg_iovlen = 1};
    assert(count <= PACKET_FDS_MAX);
    if (count) {
        packet.msg_control = &control;
        packet.msg_controllen = CMSG_SPACE(count * sizeof *fds);
        struct cmsghdr *part = CMSG_FIRSTHDR(&packet);
        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN(count * sizeof *fds);
        memcpy(CMSG_DATA(part), fds, count * sizeof *fds);
    }
    ssize_t n;
    do
        n = sendmsg(socket, &packet, flags | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

/* The kernel hands over what it can: every descriptor is ours to close, wanted or not. */
static void take(struct msghdr *packet, int *fds, unsigned max)
{
    unsigned count = 0;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(packet); part; part = CMSG_NXTHDR(packet, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        size_t here = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < here; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
            if (count < max)
                fds[count++] = fd;
            else
                close(fd);
        }
    }
}

ssize_t packet_receive(int socket, void *bytes, size_t size, int *ret_fds, unsigned max, int flags)
{
    union control control;
    struct iovec iov = {bytes, size};
    struct msghdr packet = {.msg_iov = &iov,
                            .msg_iovlen = 1,
                            .msg_control = &control,
                            .msg_controllen = sizeof control};
    ssize_t n;
    for (unsigned i = 0; i < max; i++)
        ret_fds[i] = -1;
    do
        n = recvmsg(socket, &packet, flags | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    take(&packet, ret_fds, max);
    if (!(packet.msg_flags & MSG_TRUNC))
        return n;
    for (unsigned i = 0; i < max; i++)
        if (ret_fds[i] >= 0)
            close(take_fd(&ret_fds[i]));
    return -EMSGSIZE;
}
