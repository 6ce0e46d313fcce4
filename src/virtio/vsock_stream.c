#include "virtio/vsock_device.h"

#include "base/bytes.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* Ports that we take for calls: away from all that people choose. */
enum { CALL_PORT_FIRST = 1 << 30, CALL_PORT_COUNT = 1 << 30 };

struct vsock_stream *vsock_stream_find(struct virtio_vsock *vsock, uint32_t guest_port,
                                       uint32_t host_port)
{
    for (unsigned i = 0; i < vsock->high; i++) {
        struct vsock_stream *stream = &vsock->streams[i];
        if (stream->guest_port == guest_port && stream->host_port == host_port &&
            stream->state != VSOCK_CLOSED && stream->state != VSOCK_DRAINING)
            return stream;
    }
    return NULL;
}

struct vsock_stream *vsock_stream_by_id(struct virtio_vsock *vsock, uint32_t id)
{
    for (unsigned i = 0; i < vsock->high; i++)
        if (vsock->streams[i].id == id && vsock->streams[i].state != VSOCK_CLOSED)
            return &vsock->streams[i];
    return NULL;
}

uint32_t vsock_stream_free_port(struct virtio_vsock *vsock)
{
    for (;;) { /* there are more ports than streams */
        uint32_t port = CALL_PORT_FIRST + vsock->next_port++ % CALL_PORT_COUNT;
        bool taken = false;
        for (unsigned i = 0; i < vsock->high; i++)
            taken |= vsock->streams[i].state != VSOCK_CLOSED && vsock->streams[i].host_port == port;
        if (!taken)
            return port;
    }
}

struct vsock_stream *vsock_stream_new(struct virtio_vsock *vsock, enum vsock_event event,
                                      uint32_t guest_port, uint32_t host_port)
{
    unsigned slot = 0;
    while (slot < VSOCK_STREAMS_MAX && vsock->streams[slot].state != VSOCK_CLOSED)
        slot++;
    if (slot == VSOCK_STREAMS_MAX)
        return NULL;
    vsock->high = max(vsock->high, slot + 1);
    struct vsock_stream *stream = &vsock->streams[slot];
    *stream = (struct vsock_stream){
        .state = VSOCK_CLOSED,
        .id = vsock->next_id++,
        .guest_port = guest_port,
        .host_port = host_port,
        .fd = -1,
    };
    vsock_stream_happens(vsock, stream, event);
    return stream;
}

int vsock_stream_attach(struct virtio_vsock *vsock, struct vsock_stream *stream, int fd)
{
    /* Edge-triggered: one system call in a stream's life instead of one for each change of what is
     * awaited. The flags of the stream remember what was said. */
    struct epoll_event event = {
        .events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
        .data.u64 = stream->id,
    };
    if (epoll_ctl(vsock->epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
        int number = errno;
        close(fd);
        return -number;
    }
    stream->fd = fd;
    stream->writable = true; /* until it says otherwise */
    return 0;
}

static void release(struct virtio_vsock *vsock, struct vsock_stream *stream)
{
    if (stream->fd >= 0)
        close(stream->fd); /* which takes it out of epoll: nobody else holds it here */
    free(stream->buffer);
    *stream = (struct vsock_stream){.state = VSOCK_CLOSED, .fd = -1};
    while (vsock->high > 0 && vsock->streams[vsock->high - 1].state == VSOCK_CLOSED)
        vsock->high--;
}

bool vsock_stream_happens(struct virtio_vsock *vsock, struct vsock_stream *stream,
                          enum vsock_event event)
{
    enum vsock_state next = vsock_state_next(stream->state, event);
    if (next == VSOCK_NOWHERE)
        return false;
    stream->state = next;
    if (next == VSOCK_CLOSED)
        release(vsock, stream);
    return true;
}

static void reset_guest(struct virtio_vsock *vsock, const struct vsock_stream *stream)
{
    /* A guest that was not asked yet need not hear that it is over. */
    if (stream->say & VSOCK_SAY_REQUEST || stream->state == VSOCK_DRAINING)
        return;
    vsock_reply_reset(vsock, &(struct vsock_reply){.cid = VSOCK_CID_HOST,
                                                   .guest_port = stream->guest_port,
                                                   .host_port = stream->host_port,
                                                   .type = VSOCK_TYPE_STREAM});
}

void vsock_stream_fail(struct virtio_vsock *vsock, struct vsock_stream *stream)
{
    reset_guest(vsock, stream);
    vsock_stream_happens(vsock, stream, VSOCK_FAILS);
}

static uint32_t buffered(const struct vsock_stream *stream)
{
    return stream->received - stream->forwarded;
}

uint32_t vsock_stream_shutdown_flags(const struct vsock_stream *stream)
{
    return stream->state == VSOCK_CLOSING ? VSOCK_SHUT_BOTH : stream->host_ended;
}

/* After anything that may have brought the stream nearer to its end. */
static void settle(struct virtio_vsock *vsock, struct vsock_stream *stream)
{
    /* A guest that has said all itself awaits no SHUTDOWN but the RST (5.10.6.5). */
    bool all_heard = stream->heard == VSOCK_SHUT_BOTH;
    if (vsock_state_connected(stream->state) && !all_heard &&
        vsock_stream_shutdown_flags(stream) & ~stream->said)
        stream->say |= VSOCK_SAY_SHUTDOWN;
    else
        stream->say &= ~VSOCK_SAY_SHUTDOWN;
    if (buffered(stream) > 0)
        return;
    bool over = stream->heard & VSOCK_SHUT_SEND || stream->state == VSOCK_DRAINING;
    if (over && !stream->shut) {
        shutdown(stream->fd, SHUT_WR);
        stream->shut = true;
    }
    if (stream->state == VSOCK_CLOSING && all_heard) {
        reset_guest(vsock, stream);
        vsock_stream_happens(vsock, stream, VSOCK_FINISHED);
    } else if (stream->state == VSOCK_DRAINING) {
        vsock_stream_happens(vsock, stream, VSOCK_FINISHED);
    }
}

void vsock_stream_guest_leaves(struct virtio_vsock *vsock, struct vsock_stream *stream)
{
    vsock_stream_happens(vsock, stream, VSOCK_GUEST_LEAVES);
    if (stream->state == VSOCK_DRAINING)
        settle(vsock, stream);
}

void vsock_stream_guest_shuts(struct virtio_vsock *vsock, struct vsock_stream *stream,
                              uint32_t flags)
{
    stream->heard |= flags & VSOCK_SHUT_BOTH;
    if (flags & VSOCK_SHUT_RECEIVE) {
        shutdown(stream->fd, SHUT_RD); /* whoever writes there hears of it */
        vsock_stream_happens(vsock, stream, VSOCK_TO_GUEST_ENDS);
    }
    if (flags & VSOCK_SHUT_SEND)
        vsock_stream_happens(vsock, stream, VSOCK_TO_HOST_ENDS);
    settle(vsock, stream);
}

/* What waits or still comes from the guest has nobody to go to. */
static void swallow(struct vsock_stream *stream)
{
    stream->forwarded = stream->received;
    stream->start = 0;
}

void vsock_stream_host_ends(struct virtio_vsock *vsock, struct vsock_stream *stream,
                            enum vsock_event event)
{
    if (event == VSOCK_TO_HOST_ENDS)
        swallow(stream);
    stream->host_ended |= event == VSOCK_TO_HOST_ENDS ? VSOCK_SHUT_RECEIVE : VSOCK_SHUT_SEND;
    vsock_stream_happens(vsock, stream, event);
    settle(vsock, stream);
}

/* --- from the guest to the socket --- */

/* Sends what it can of `iov`. The bytes that went, or a negative errno: -EAGAIN for later. */
static ssize_t send_some(struct vsock_stream *stream, struct iovec *iov, unsigned count)
{
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = count};
    ssize_t n;
    do
        n = sendmsg(stream->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n >= 0)
        return n;
    if (errno == EAGAIN)
        stream->writable = false;
    return -errno;
}

static void tell_room(struct vsock_stream *stream)
{
    if (vsock_state_connected(stream->state) &&
        stream->forwarded - stream->told >= VSOCK_CREDIT_STEP)
        stream->say |= VSOCK_SAY_CREDIT;
}

/* Puts the chain's bytes [offset, offset + length) behind what is buffered; there is room. */
static int keep(struct virtio_vsock *vsock, struct vsock_stream *stream, uint64_t offset,
                uint32_t length)
{
    if (!stream->buffer)
        stream->buffer = malloc(VSOCK_BUFFER);
    if (!stream->buffer)
        return -ENOMEM;
    uint32_t end = (stream->start + buffered(stream)) % VSOCK_BUFFER;
    uint32_t first = min(length, (uint32_t)VSOCK_BUFFER - end);
    queue_chain_read(&vsock->chain, offset, stream->buffer + end, first);
    queue_chain_read(&vsock->chain, offset + first, stream->buffer, length - first);
    stream->received += length;
    return 0;
}

void vsock_stream_take(struct virtio_vsock *vsock, struct vsock_stream *stream, uint32_t length)
{
    uint64_t offset = VSOCK_HEADER_SIZE;
    if (stream->heard & VSOCK_SHUT_SEND || length > VSOCK_BUFFER - buffered(stream)) {
        vsock_stream_fail(vsock, stream);
        return;
    }
    /* The guest cannot have known yet that nobody reads. */
    if (!vsock_state_to_host(stream->state)) {
        stream->received += length;
        swallow(stream);
        tell_room(stream);
        return;
    }
    while (length > 0 && buffered(stream) == 0 && stream->writable) {
        unsigned count = queue_chain_readable(&vsock->chain, offset, vsock->iov, QUEUE_CHAIN_MAX);
        ssize_t n = send_some(stream, vsock->iov, queue_iov_cut(vsock->iov, count, length));
        if (n == -EAGAIN)
            break;
        if (n < 0) {
            stream->received += length;
            vsock_stream_host_ends(vsock, stream, VSOCK_TO_HOST_ENDS);
            return;
        }
        stream->received += (uint32_t)n;
        stream->forwarded += (uint32_t)n;
        offset += (uint64_t)n;
        length -= (uint32_t)n;
    }
    if (length > 0 && keep(vsock, stream, offset, length) < 0)
        vsock_stream_fail(vsock, stream);
    else
        tell_room(stream);
}

void vsock_stream_flush(struct virtio_vsock *vsock, struct vsock_stream *stream)
{
    while (stream->writable && buffered(stream) > 0) {
        uint32_t waiting = buffered(stream);
        uint32_t first = min(waiting, (uint32_t)VSOCK_BUFFER - stream->start);
        struct iovec iov[2] = {{stream->buffer + stream->start, first},
                               {stream->buffer, waiting - first}};
        ssize_t n = send_some(stream, iov, waiting > first ? 2 : 1);
        if (n == -EAGAIN)
            break;
        if (n < 0) {
            vsock_stream_host_ends(vsock, stream, VSOCK_TO_HOST_ENDS);
            return;
        }
        stream->forwarded += (uint32_t)n;
        stream->start = (stream->start + (uint32_t)n) % VSOCK_BUFFER;
    }
    tell_room(stream);
    settle(vsock, stream);
}

void vsock_stream_polled(struct virtio_vsock *vsock, struct vsock_stream *stream, uint32_t events)
{
    bool gone = events & (EPOLLHUP | EPOLLERR);
    if (events & EPOLLOUT)
        stream->writable = true;
    if (events & (EPOLLIN | EPOLLRDHUP) || gone)
        stream->readable = true;
    if (events & EPOLLRDHUP || gone)
        stream->peer_ended = true;
    if (!gone)
        return;
    if (stream->state == VSOCK_CALLING) {
        vsock_stream_fail(vsock, stream);
        return;
    }
    /* With nothing left to read both ends come at once, and the guest is told so in one packet. */
    uint8_t byte;
    bool empty = recv(stream->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0;
    if (empty && vsock_state_to_guest(stream->state))
        vsock_stream_host_ends(vsock, stream, VSOCK_TO_GUEST_ENDS);
    if (stream->state != VSOCK_TO_GUEST && stream->state != VSOCK_CLOSED)
        vsock_stream_host_ends(vsock, stream, VSOCK_TO_HOST_ENDS);
}
