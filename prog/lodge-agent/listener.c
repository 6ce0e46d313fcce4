#include "listener.h"

#include "base/own.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

enum { BACKLOG = 16, STRANGERS = 16 };

int listener_open(unsigned port)
{
    struct sockaddr_vm address = {
        .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
    /* Asking the kernel for a family that it does not know makes it look for a module. */
    if (access("/dev/vsock", F_OK) < 0)
        return -ENODEV;
    _cleanup_fd_ int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(fd, BACKLOG) < 0)
        return -errno;
    return take_fd(&fd);
}

int listener_accept(int listener)
{
    for (int i = 0; i < STRANGERS; i++) {
        struct sockaddr_vm peer = {0};
        socklen_t length = sizeof peer;
        int fd = accept4(listener, (struct sockaddr *)&peer, &length, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0)
            return -errno;
        if (peer.svm_family == AF_VSOCK && peer.svm_cid == VMADDR_CID_HOST)
            return fd;
        close(fd);
    }
    return -EAGAIN;
}
