/*
 * vsock.h: virtio socket device (virtio 1.2, 5.10): stream sockets between guest and host.
 *
 * A stream joins a port of the guest to a connected stream socket of ours. The device opens and
 * connects nothing: whoever owns it is asked, and hands connected descriptors in (struct
 * virtio_vsock_host). What its states are says vsock_state.h.
 *
 *     guest --REQUEST port--> device --dial(id, port)--> owner
 *                             device <-virtio_vsock_dialed(id, fd)-- owner
 *     guest <-REQUEST port--  device <-virtio_vsock_call(port, fd)-- owner
 *     guest --RESPONSE----->  device --"OK <host port>\n"--> fd
 *
 * Flow, to the guest: nothing is buffered; bytes stay in the socket until the guest has given
 * credit and buffers. To the host: what the socket does not take waits in a buffer of
 * VSOCK_BUFFER bytes a stream, which is the credit that the guest is given, so that no slow reader
 * stands in the way of another stream. A guest that sends more than its credit loses the stream.
 *
 * Ends: a shutdown of either side's writing passes to the other one, and the other direction goes
 * on. What the guest had sent before its end is delivered, however slow its reader. While the
 * driver is not there, calls are refused: their descriptors are closed.
 *
 * Threads: all functions from any thread, but virtio_vsock_call() and virtio_vsock_dialed() are
 * meant for ready(), on the device's own. The transport frees the device, which closes all
 * descriptors of streams and joins the thread.
 *
 * Errors: -EINVAL for a CID that no guest may have, -ENOMEM, or why there is no thread or epoll.
 */
#pragma once

#include "base/err.h"
#include "mem/mem.h"
#include "virtio/device.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    VSOCK_STREAMS_MAX = 256,
    VSOCK_BUFFER = 128 * 1024,
    VSOCK_CID_HOST = 2,
    VSOCK_CID_GUEST_MIN = 3,
};

struct virtio_vsock;

/* Both may be called before virtio_vsock_new() has returned. */
struct virtio_vsock_host {
    int fd; /* borrowed; -1 = nobody, all the guest asks for is refused */
    /* `fd` is readable: take what is there. No lock held. False where it has come to its end. */
    bool (*ready)(void *opaque, struct virtio_vsock *vsock);
    /* The guest wants to be connected to this port of the host; the answer is
     * virtio_vsock_dialed(). At once and without waiting, the device's lock is held; a negative
     * errno refuses. */
    int (*dial)(void *opaque, uint32_t id, uint32_t port);
    void *opaque;
};

int virtio_vsock_new(struct mem *mem, uint64_t cid, const struct virtio_vsock_host *host,
                     struct virtio_vsock **ret_vsock, struct err *err);

/* For virtio_pci_new(). */
struct virtio_device *virtio_vsock_device(struct virtio_vsock *vsock);

/* A host's program, at the other end of `fd`, wants to be connected to this port of the guest. The
 * device takes the descriptor over. */
void virtio_vsock_call(struct virtio_vsock *vsock, uint32_t guest_port, int fd);

/* The answer to dial(): a connected descriptor, which the device takes over, or -1. */
void virtio_vsock_dialed(struct virtio_vsock *vsock, uint32_t id, int fd);
