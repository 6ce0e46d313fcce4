/* The guest's packets: each is checked, found its stream, and acted upon. */
#include "virtio/vsock_device.h"

#include "base/bytes.h"

#include <stdio.h>
#include <sys/socket.h>

static void reset(struct virtio_vsock *vsock, const struct vsock_packet *packet)
{
    if (packet->op == VSOCK_OP_RST)
        return;
    vsock_reply_reset(vsock, &(struct vsock_reply){.cid = packet->dst_cid,
                                                   .guest_port = packet->src_port,
                                                   .host_port = packet->dst_port,
                                                   .type = packet->type});
}

static void requested(struct virtio_vsock *vsock, const struct vsock_packet *packet)
{
    struct vsock_stream *stream =
        vsock_stream_new(vsock, VSOCK_REQUESTED, packet->src_port, packet->dst_port);
    if (!stream) {
        reset(vsock, packet);
        return;
    }
    stream->guest_buffer = packet->buf_alloc;
    stream->guest_forwarded = packet->fwd_cnt;
    if (vsock->host.fd < 0 ||
        vsock->host.dial(vsock->host.opaque, stream->id, stream->host_port) < 0)
        vsock_stream_fail(vsock, stream);
}

/* The caller hears that it is through, and by which port of the host's. */
static void accepted(struct virtio_vsock *vsock, struct vsock_stream *stream)
{
    char line[32];
    if (!vsock_stream_happens(vsock, stream, VSOCK_GUEST_ACCEPTS)) {
        vsock_stream_fail(vsock, stream);
        return;
    }
    int length = snprintf(line, sizeof line, "OK %u\n", stream->host_port);
    if (send(stream->fd, line, (size_t)length, MSG_DONTWAIT | MSG_NOSIGNAL) != length)
        vsock_stream_fail(vsock, stream);
}

/* A packet of a stream that is there. RW, SHUTDOWN and the like before it is open break a rule. */
static void act(struct virtio_vsock *vsock, struct vsock_stream *stream,
                const struct vsock_packet *packet)
{
    bool connected = vsock_state_connected(stream->state);
    stream->guest_buffer = packet->buf_alloc;
    stream->guest_forwarded = packet->fwd_cnt;
    if (packet->op == VSOCK_OP_RST)
        vsock_stream_guest_leaves(vsock, stream);
    else if (packet->op == VSOCK_OP_RESPONSE)
        accepted(vsock, stream);
    else if (packet->op == VSOCK_OP_RW && connected)
        vsock_stream_take(vsock, stream, packet->length);
    else if (packet->op == VSOCK_OP_SHUTDOWN && connected)
        vsock_stream_guest_shuts(vsock, stream, packet->flags);
    else if (packet->op == VSOCK_OP_CREDIT_REQUEST && connected)
        stream->say |= VSOCK_SAY_CREDIT;
    else if (packet->op != VSOCK_OP_CREDIT_UPDATE || !connected)
        vsock_stream_fail(vsock, stream);
}

/* False where the driver broke the queue's own rules. */
static bool handle(struct virtio_vsock *vsock)
{
    uint8_t bytes[VSOCK_HEADER_SIZE];
    struct vsock_packet packet;
    if (queue_chain_read(&vsock->chain, 0, bytes, sizeof bytes) < sizeof bytes)
        return false;
    vsock_packet_decode(bytes, &packet);
    if (packet.length > vsock->chain.readable_bytes - VSOCK_HEADER_SIZE)
        return false;
    if (packet.src_cid != vsock->cid) /* nobody to answer to */
        return true;
    if (packet.dst_cid != VSOCK_CID_HOST || packet.type != VSOCK_TYPE_STREAM) {
        reset(vsock, &packet);
        return true;
    }
    struct vsock_stream *stream = vsock_stream_find(vsock, packet.src_port, packet.dst_port);
    if (stream)
        act(vsock, stream, &packet);
    else if (packet.op == VSOCK_OP_REQUEST)
        requested(vsock, &packet);
    else
        reset(vsock, &packet);
    return true;
}

bool vsock_transmit(struct virtio_vsock *vsock)
{
    struct virtio_device *device = &vsock->device;
    unsigned moved = 0;
    uint64_t bytes = 0;
    while (moved < VSOCK_BATCH && bytes < VSOCK_PASS_BYTES &&
           vsock->reply_count < VSOCK_REPLIES_STOP &&
           virtio_pop_or_await(&vsock->device, VSOCK_QUEUE_TX, &vsock->chain)) {
        if (!handle(vsock)) {
            virtio_fail(device);
            return false;
        }
        bytes += min(vsock->chain.readable_bytes, (uint64_t)VSOCK_BUFFER);
        virtio_push(device, VSOCK_QUEUE_TX, &vsock->chain, 0);
        moved++;
    }
    if (moved)
        virtio_notify(device, VSOCK_QUEUE_TX);
    return moved == VSOCK_BATCH || bytes >= VSOCK_PASS_BYTES;
}
