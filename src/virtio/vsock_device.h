/*
 * vsock_device.h: what vsock.c (life, I/O thread), vsock_stream.c (one stream and its descriptor),
 * vsock_transmit.c (the guest's packets) and vsock_receive.c (packets for the guest) share. Private
 * to them.
 *
 * Everything is under vsock->mutex. Nothing a driver does makes anything grow without a bound:
 *   streams   VSOCK_STREAMS_MAX, each with a buffer of at most VSOCK_BUFFER
 *   packets   what a stream has still to say is a set of bits; only resets for streams that are
 *             gone are a list, and while it holds VSOCK_REPLIES_STOP of them no packet is taken
 *             from the guest (5.10.6.1 allows that) and no call from the host
 */
#pragma once

#include "virtio/vsock.h"
#include "virtio/vsock_packet.h"
#include "virtio/vsock_state.h"
#include "virtio/worker.h"

#include <pthread.h>

enum {
    VSOCK_QUEUE_RX = 0, /* device to driver */
    VSOCK_QUEUE_TX = 1,
    VSOCK_QUEUE_EVENT = 2,
    VSOCK_QUEUES = 3,
    VSOCK_BATCH = 64,                     /* chains of one queue in one pass */
    VSOCK_PASS_BYTES = 1 << 20,           /* about so many bytes from the guest in one pass */
    VSOCK_CREDIT_STEP = VSOCK_BUFFER / 2, /* the guest is told of so much new room */
    VSOCK_REPLIES_STOP = 64,
    /* Each stream may still end in a reset after the list has come to STOP. */
    VSOCK_REPLIES_MAX = VSOCK_REPLIES_STOP + VSOCK_STREAMS_MAX + 1,
};

/* Sent in this order, all before the first byte. */
enum vsock_say {
    VSOCK_SAY_REQUEST = 1 << 0,
    VSOCK_SAY_RESPONSE = 1 << 1,
    VSOCK_SAY_CREDIT = 1 << 2,
    VSOCK_SAY_CREDIT_ASK = 1 << 3,
    VSOCK_SAY_SHUTDOWN = 1 << 4,
};

struct vsock_stream {
    enum vsock_state state;
    uint32_t id; /* never used before; tells late answers and events of earlier streams apart */
    uint32_t guest_port, host_port;
    int fd; /* -1 while DIALING */

    /* As epoll said, until the socket says EAGAIN. */
    bool readable, writable;
    bool peer_ended; /* the other end of the socket writes no more; bytes may be left in it */
    bool shut;       /* its reader was told that nothing more comes */

    unsigned say;         /* enum vsock_say */
    uint32_t host_ended;  /* SHUTDOWN flags that are the host's doing */
    uint32_t said, heard; /* SHUTDOWN flags that the guest was told, and that it told us */

    /* Credit, 5.10.6.3; all counts wrap. To the guest: */
    uint32_t guest_buffer, guest_forwarded, sent;
    bool credit_asked;
    /* From the guest; received - forwarded bytes are in `buffer`. */
    uint32_t received, forwarded, told;
    uint8_t *buffer; /* a ring of VSOCK_BUFFER, once it was needed */
    uint32_t start;
};

/* A reset for a stream that we do not have. */
struct vsock_reply {
    uint64_t cid; /* which the guest took for us */
    uint32_t guest_port, host_port;
    uint16_t type;
};

struct virtio_vsock {
    struct virtio_device device; /* first: ops get this pointer */
    struct worker worker;
    uint64_t cid;
    struct virtio_vsock_host host;
    int epoll;

    pthread_mutex_t mutex;
    bool live;
    bool forgotten; /* TRANSPORT_RESET is still to be told */
    uint32_t next_id, next_port;
    unsigned high;   /* streams at and above it are closed */
    unsigned cursor; /* who is served first */
    struct vsock_stream streams[VSOCK_STREAMS_MAX];
    unsigned reply_first, reply_count;
    struct vsock_reply replies[VSOCK_REPLIES_MAX];
    struct queue_chain chain; /* scratch, does not outlive a call */
    struct iovec iov[QUEUE_CHAIN_MAX];
};

/* vsock_stream.c */

/* The stream that the guest knows by this pair of ports, or NULL. */
struct vsock_stream *vsock_stream_find(struct virtio_vsock *vsock, uint32_t guest_port,
                                       uint32_t host_port);
struct vsock_stream *vsock_stream_by_id(struct virtio_vsock *vsock, uint32_t id);
/* A new one, DIALING or CALLING by `event`; NULL where there is no room. */
struct vsock_stream *vsock_stream_new(struct virtio_vsock *vsock, enum vsock_event event,
                                      uint32_t guest_port, uint32_t host_port);
/* A port of the host's that no stream has: for calls. */
uint32_t vsock_stream_free_port(struct virtio_vsock *vsock);
/* Takes the descriptor over, and closes it where that fails. */
int vsock_stream_attach(struct virtio_vsock *vsock, struct vsock_stream *stream, int fd);
/* False, and nothing changes, where the diagram has no such arrow. At CLOSED all is released. */
bool vsock_stream_happens(struct virtio_vsock *vsock, struct vsock_stream *stream,
                          enum vsock_event event);
/* Ends it at once; the guest is sent a reset. */
void vsock_stream_fail(struct virtio_vsock *vsock, struct vsock_stream *stream);
/* The guest said RST, or SHUTDOWN. */
void vsock_stream_guest_leaves(struct virtio_vsock *vsock, struct vsock_stream *stream);
void vsock_stream_guest_shuts(struct virtio_vsock *vsock, struct vsock_stream *stream,
                              uint32_t flags);
/* The host's end writes (TO_GUEST_ENDS) or reads (TO_HOST_ENDS) no more. */
void vsock_stream_host_ends(struct virtio_vsock *vsock, struct vsock_stream *stream,
                            enum vsock_event event);
/* `length` bytes behind the header in vsock->chain. */
void vsock_stream_take(struct virtio_vsock *vsock, struct vsock_stream *stream, uint32_t length);
/* Writes what the socket takes now. */
void vsock_stream_flush(struct virtio_vsock *vsock, struct vsock_stream *stream);
/* What epoll has said of its descriptor. */
void vsock_stream_polled(struct virtio_vsock *vsock, struct vsock_stream *stream, uint32_t events);
/* Which SHUTDOWN the guest is to be sent. */
uint32_t vsock_stream_shutdown_flags(const struct vsock_stream *stream);

/* vsock_transmit.c: true where more may be there. */
bool vsock_transmit(struct virtio_vsock *vsock);

/* vsock_receive.c */
void vsock_reply_reset(struct virtio_vsock *vsock, const struct vsock_reply *reply);
bool vsock_receive(struct virtio_vsock *vsock);
void vsock_tell_forgotten(struct virtio_vsock *vsock);
