#include "board/board_vsock.h"

#include "wire/vsock.h"

#include <errno.h>
#include <unistd.h>

enum { MESSAGES = 64 }; /* at once; the rest keeps the link readable */

static int dial(void *opaque, uint32_t id, uint32_t port)
{
    struct board_vsock *vsock = opaque;
    const struct vsock_message message = {.type = VSOCK_DIAL, .id = id, .port = port};
    return vsock_message_send(vsock->link, &message, -1, NULL);
}

static bool ready(void *opaque, struct virtio_vsock *device)
{
    struct board_vsock *vsock = opaque;
    for (int i = 0; i < MESSAGES; i++) {
        struct vsock_message message;
        int fd = -1, r = vsock_message_receive(vsock->link, &message, &fd, NULL);
        if (r == -EAGAIN)
            return true;
        if (r == -EMFILE) /* a call that we have no descriptor for: it is closed already */
            continue;
        if (r < 0)
            return false;
        if (message.type == VSOCK_CALL)
            virtio_vsock_call(device, message.port, fd);
        else if (message.type != VSOCK_DIAL)
            virtio_vsock_dialed(device, message.id, fd);
    }
    return true;
}

int board_vsock_new(struct board_vsock *vsock, struct mem *mem, uint32_t cid, int link,
                    struct err *err)
{
    vsock->link = link;
    return virtio_vsock_new(
        mem, cid,
        &(struct virtio_vsock_host){.fd = link, .ready = ready, .dial = dial, .opaque = vsock},
        &vsock->device, err);
}
