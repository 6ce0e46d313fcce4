/* Packets for the guest: resets first, then each stream in turn says one thing at a time. */
#include "virtio/vsock_device.h"

#include "base/bytes.h"

#include <assert.h>
#include <errno.h>
#include <sys/socket.h>

enum { EVENT_SIZE = 4, EVENT_TRANSPORT_RESET = 0 }; /* struct virtio_vsock_event, 5.10.6.7 */

enum spoken { NOTHING, SPOKEN, NO_BUFFER };

/* A buffer for a packet of the guest's with `least` bytes behind the header. */
static bool pop_buffer(struct virtio_vsock *vsock, uint64_t least)
{
    if (!virtio_pop_or_await(&vsock->device, VSOCK_QUEUE_RX, &vsock->chain))
        return false;
    if (vsock->chain.writable_bytes >= VSOCK_HEADER_SIZE + least)
        return true;
    virtio_fail(&vsock->device); /* what could it be good for? */
    return false;
}

static void push(struct virtio_vsock *vsock, const struct vsock_packet *packet)
{
    uint8_t bytes[VSOCK_HEADER_SIZE];
    vsock_packet_encode(packet, bytes);
    queue_chain_write(&vsock->chain, 0, bytes, sizeof bytes);
    virtio_push(&vsock->device, VSOCK_QUEUE_RX, &vsock->chain, sizeof bytes + packet->length);
}

/* --- resets --- */

void vsock_reply_reset(struct virtio_vsock *vsock, const struct vsock_reply *reply)
{
    assert(vsock->reply_count < VSOCK_REPLIES_MAX);
    unsigned slot = (vsock->reply_first + vsock->reply_count++) % VSOCK_REPLIES_MAX;
    vsock->replies[slot] = *reply;
}

static enum spoken reply(struct virtio_vsock *vsock)
{
    const struct vsock_reply *next = &vsock->replies[vsock->reply_first];
    if (vsock->reply_count == 0)
        return NOTHING;
    if (!pop_buffer(vsock, 0))
        return NO_BUFFER;
    push(vsock, &(struct vsock_packet){.src_cid = next->cid,
                                       .dst_cid = vsock->cid,
                                       .src_port = next->host_port,
                                       .dst_port = next->guest_port,
                                       .type = next->type,
                                       .op = VSOCK_OP_RST});
    vsock->reply_first = (vsock->reply_first + 1) % VSOCK_REPLIES_MAX;
    vsock->reply_count--;
    return SPOKEN;
}

/* --- streams --- */

static void push_of(struct virtio_vsock *vsock, struct vsock_stream *stream, enum vsock_op op,
                    uint32_t length)
{
    push(vsock, &(struct vsock_packet){
                    .src_cid = VSOCK_CID_HOST,
                    .dst_cid = vsock->cid,
                    .src_port = stream->host_port,
                    .dst_port = stream->guest_port,
                    .length = length,
                    .type = VSOCK_TYPE_STREAM,
                    .op = (uint16_t)op,
                    .flags = op == VSOCK_OP_SHUTDOWN ? vsock_stream_shutdown_flags(stream) : 0,
                    .buf_alloc = VSOCK_BUFFER,
                    .fwd_cnt = stream->forwarded,
                });
    stream->told = stream->forwarded;
    stream->say &= ~VSOCK_SAY_CREDIT; /* every packet says it */
}

static enum spoken say(struct virtio_vsock *vsock, struct vsock_stream *stream)
{
    static const enum vsock_op ops[] = {VSOCK_OP_REQUEST, VSOCK_OP_RESPONSE, VSOCK_OP_CREDIT_UPDATE,
                                        VSOCK_OP_CREDIT_REQUEST, VSOCK_OP_SHUTDOWN};
    if (!stream->say)
        return NOTHING;
    if (!pop_buffer(vsock, 0))
        return NO_BUFFER;
    unsigned bit = (unsigned)__builtin_ctz(stream->say);
    push_of(vsock, stream, ops[bit], 0);
    stream->say &= ~(1u << bit);
    if (ops[bit] == VSOCK_OP_SHUTDOWN)
        stream->said |= vsock_stream_shutdown_flags(stream);
    return SPOKEN;
}

/* How many bytes the guest takes now. What it says may be anything; a count that makes no sense
 * (more forwarded than was sent) is no credit. */
static uint32_t credit(const struct vsock_stream *stream)
{
    uint32_t on_the_way = stream->sent - stream->guest_forwarded;
    return on_the_way < stream->guest_buffer ? stream->guest_buffer - on_the_way : 0;
}

/* Without credit nothing can be read, but an end can be noticed. */
static void look_for_end(struct virtio_vsock *vsock, struct vsock_stream *stream)
{
    uint8_t byte;
    if (stream->credit_asked && !stream->peer_ended)
        return;
    ssize_t n = recv(stream->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        vsock_stream_host_ends(vsock, stream, VSOCK_TO_GUEST_ENDS);
    else if (n < 0 && errno == EAGAIN)
        stream->readable = false;
    if (n <= 0 || stream->credit_asked)
        return;
    stream->credit_asked = true;
    stream->say |= VSOCK_SAY_CREDIT_ASK;
}

/* From the socket into a buffer of the guest's. */
static enum spoken give(struct virtio_vsock *vsock, struct vsock_stream *stream)
{
    if (!stream->readable || !vsock_state_to_guest(stream->state))
        return NOTHING;
    uint32_t room = credit(stream);
    if (room == 0) {
        look_for_end(vsock, stream);
        return say(vsock, stream);
    }
    stream->credit_asked = false;
    if (!pop_buffer(vsock, 1))
        return NO_BUFFER;
    unsigned count =
        queue_chain_writable(&vsock->chain, VSOCK_HEADER_SIZE, vsock->iov, QUEUE_CHAIN_MAX);
    struct msghdr message = {.msg_iov = vsock->iov,
                             .msg_iovlen = queue_iov_cut(vsock->iov, count, room)};
    ssize_t n;
    do
        n = recvmsg(stream->fd, &message, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n > 0) {
        stream->sent += (uint32_t)n;
        push_of(vsock, stream, VSOCK_OP_RW, (uint32_t)n);
        return SPOKEN;
    }
    bool later = n < 0 && errno == EAGAIN;
    queue_unpop(&vsock->device.queues[VSOCK_QUEUE_RX]);
    if (later)
        stream->readable = false;
    else
        vsock_stream_host_ends(vsock, stream, VSOCK_TO_GUEST_ENDS);
    return say(vsock, stream);
}

static enum spoken speak(struct virtio_vsock *vsock, struct vsock_stream *stream)
{
    if (stream->state == VSOCK_CLOSED || stream->state == VSOCK_DRAINING)
        return NOTHING;
    return stream->say ? say(vsock, stream) : give(vsock, stream);
}

/* Each stream once, beginning where the last round ended. */
static enum spoken round_of_streams(struct virtio_vsock *vsock, unsigned *moved)
{
    enum spoken any = NOTHING;
    unsigned high = vsock->high;
    for (unsigned i = 0; i < high && *moved < VSOCK_BATCH; i++) {
        unsigned slot = vsock->cursor % high;
        enum spoken spoken = speak(vsock, &vsock->streams[slot]);
        if (spoken == NO_BUFFER)
            return NO_BUFFER;
        vsock->cursor = slot + 1;
        if (spoken == SPOKEN) {
            any = SPOKEN;
            (*moved)++;
        }
    }
    return any;
}

bool vsock_receive(struct virtio_vsock *vsock)
{
    unsigned moved = 0;
    enum spoken spoken = SPOKEN;
    while (spoken == SPOKEN && moved < VSOCK_BATCH) {
        spoken = reply(vsock);
        if (spoken == SPOKEN)
            moved++;
        else if (spoken == NOTHING)
            spoken = round_of_streams(vsock, &moved);
    }
    if (spoken == NOTHING) /* buffers are not what we lack */
        queue_notifications_stop(&vsock->device.queues[VSOCK_QUEUE_RX]);
    if (moved)
        virtio_notify(&vsock->device, VSOCK_QUEUE_RX);
    return moved >= VSOCK_BATCH;
}

/* --- events --- */

void vsock_tell_forgotten(struct virtio_vsock *vsock)
{
    uint8_t event[EVENT_SIZE];
    if (!vsock->forgotten || !virtio_pop_or_await(&vsock->device, VSOCK_QUEUE_EVENT, &vsock->chain))
        return;
    le32_write(event, EVENT_TRANSPORT_RESET);
    if (queue_chain_write(&vsock->chain, 0, event, sizeof event) < sizeof event) {
        virtio_fail(&vsock->device);
        return;
    }
    virtio_push(&vsock->device, VSOCK_QUEUE_EVENT, &vsock->chain, sizeof event);
    virtio_notify(&vsock->device, VSOCK_QUEUE_EVENT);
    vsock->forgotten = false;
}
