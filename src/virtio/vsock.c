/*
 * The I/O thread sleeps in epoll on its eventfd, on the descriptor to its owner, and on the sockets
 * of all streams. It then makes passes under the mutex until nothing more can be moved: packets
 * from the guest, what waits for sockets, packets for the guest. A pass is bounded, so that a vCPU
 * that resets the device waits for one pass at most.
 */
#include "virtio/vsock_device.h"

#include "base/bytes.h"
#include "base/record.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
    DEVICE_ID = 19,
    DATA_QUEUE_SIZE = 256,
    EVENT_QUEUE_SIZE = 16,
    CONFIG_SIZE = 8,
    EVENTS = 64, /* of epoll, taken at once */
};

#define FEATURE_STREAM UINT64_C(1) /* 5.10.3 */

/* What epoll says with an event: a stream's id, which has 32 bits, or one of these. */
#define DATA_WAKE UINT64_MAX
#define DATA_HOST (UINT64_MAX - 1)

static struct virtio_vsock *of(struct virtio_device *device)
{
    return (struct virtio_vsock *)device;
}

static bool watch(struct virtio_vsock *vsock, int fd, uint64_t data)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = data};
    return epoll_ctl(vsock->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

/* One pass over everything; true where more waits. Under the mutex. */
static bool serve(struct virtio_vsock *vsock)
{
    /* While it is held the rings are being saved: nothing may be written there. */
    if (!vsock->live || vsock->device.held)
        return false;
    bool more = vsock_transmit(vsock);
    for (unsigned i = 0; i < vsock->high; i++)
        if (vsock->streams[i].fd >= 0)
            vsock_stream_flush(vsock, &vsock->streams[i]);
    vsock_tell_forgotten(vsock);
    bool stopped = vsock->reply_count >= VSOCK_REPLIES_STOP;
    more |= vsock_receive(vsock);
    return more || (stopped && vsock->reply_count < VSOCK_REPLIES_STOP);
}

static void polled(struct virtio_vsock *vsock, const struct epoll_event *event)
{
    if (event->data.u64 == DATA_WAKE) {
        worker_drained(&vsock->worker);
        return;
    }
    if (event->data.u64 == DATA_HOST) {
        if (!vsock->host.ready(vsock->host.opaque, vsock))
            epoll_ctl(vsock->epoll, EPOLL_CTL_DEL, vsock->host.fd, NULL);
        return;
    }
    pthread_mutex_lock(&vsock->mutex);
    struct vsock_stream *stream = vsock_stream_by_id(vsock, (uint32_t)event->data.u64);
    if (stream)
        vsock_stream_polled(vsock, stream, event->events);
    pthread_mutex_unlock(&vsock->mutex);
}

static void run(void *opaque)
{
    struct virtio_vsock *vsock = opaque;
    struct epoll_event events[EVENTS];
    bool more = false;
    while (!worker_stopping(&vsock->worker)) {
        int count = epoll_wait(vsock->epoll, events, EVENTS, more ? 0 : -1);
        for (int i = 0; i < count; i++)
            polled(vsock, &events[i]);
        pthread_mutex_lock(&vsock->mutex);
        more = serve(vsock);
        pthread_mutex_unlock(&vsock->mutex);
    }
}

/* Under the mutex. */
static void close_all(struct virtio_vsock *vsock)
{
    for (unsigned i = 0; i < VSOCK_STREAMS_MAX; i++)
        if (vsock->streams[i].state != VSOCK_CLOSED)
            vsock_stream_happens(vsock, &vsock->streams[i], VSOCK_FAILS);
    vsock->reply_count = 0;
}

/* Device operations. */

static void vsock_config_read(struct virtio_device *device, uint32_t offset, void *to,
                              unsigned size)
{
    uint8_t config[CONFIG_SIZE];
    le64_write(config, of(device)->cid);
    memcpy(to, config + offset, size);
}

static void vsock_start(struct virtio_device *device)
{
    struct virtio_vsock *vsock = of(device);
    pthread_mutex_lock(&vsock->mutex);
    vsock->live = true;
    pthread_mutex_unlock(&vsock->mutex);
    worker_wake(&vsock->worker);
}

static void vsock_reset(struct virtio_device *device)
{
    struct virtio_vsock *vsock = of(device);
    pthread_mutex_lock(&vsock->mutex);
    vsock->live = vsock->forgotten = false;
    close_all(vsock);
    pthread_mutex_unlock(&vsock->mutex);
}

static void vsock_queue_notified(struct virtio_device *device, unsigned queue)
{
    worker_wake(&of(device)->worker);
}

static int vsock_notify_fd(struct virtio_device *device, unsigned queue)
{
    return of(device)->worker.wake_fd;
}

static void vsock_settle(struct virtio_device *device)
{
    /* A pass is over when the mutex is free, and holds no chain. */
    pthread_mutex_lock(&of(device)->mutex);
    pthread_mutex_unlock(&of(device)->mutex);
}

/* Connections stay behind: their other ends are sockets of the first guest's host. The driver hears
 * that the transport was reset (5.10.6.7), ends what it had, and asks for its CID anew. */
static void vsock_state(struct virtio_device *device, struct record *record)
{
    struct virtio_vsock *vsock = of(device);
    pthread_mutex_lock(&vsock->mutex);
    if (record->loading)
        vsock->forgotten = vsock->live;
    pthread_mutex_unlock(&vsock->mutex);
}

static void vsock_free(struct virtio_device *device)
{
    struct virtio_vsock *vsock = of(device);
    worker_stop(&vsock->worker);
    close_all(vsock);
    if (vsock->epoll >= 0)
        close(vsock->epoll);
    pthread_mutex_destroy(&vsock->mutex);
    virtio_device_fini(device);
    free(vsock);
}

static const struct virtio_device_ops vsock_ops = {
    .name = "virtio-vsock",
    .id = DEVICE_ID,
    .class_code = 0x028000, /* network controller, other */
    .config_size = CONFIG_SIZE,
    .config_read = vsock_config_read,
    .start = vsock_start,
    .reset = vsock_reset,
    .queue_notified = vsock_queue_notified,
    .notify_fd = vsock_notify_fd,
    .settle = vsock_settle,
    .state = vsock_state,
    .state_version = 1,
    .free = vsock_free,
};

/* Making one. */

static int begin(struct virtio_vsock *vsock, struct err *err)
{
    if (vsock->epoll < 0)
        return err_errno(err, errno, "epoll of virtio-vsock");
    int r = worker_start(&vsock->worker, "virtio-vsock", run, vsock, err);
    if (r < 0)
        return r;
    if (!watch(vsock, vsock->worker.wake_fd, DATA_WAKE) ||
        (vsock->host.fd >= 0 && !watch(vsock, vsock->host.fd, DATA_HOST)))
        return err_errno(err, errno, "epoll of virtio-vsock");
    return 0;
}

int virtio_vsock_new(struct mem *mem, uint64_t cid, const struct virtio_vsock_host *host,
                     struct virtio_vsock **ret_vsock, struct err *err)
{
    static const uint16_t sizes[VSOCK_QUEUES] = {DATA_QUEUE_SIZE, DATA_QUEUE_SIZE,
                                                 EVENT_QUEUE_SIZE};
    /* 5.10.4: the upper 32 bits are zero; all ones is any CID. */
    if (cid < VSOCK_CID_GUEST_MIN || cid >= UINT32_MAX)
        return err_set(err, -EINVAL, "a guest's CID is 3 to 4294967294");
    struct virtio_vsock *vsock = calloc(1, sizeof *vsock);
    if (!vsock)
        return err_set(err, -ENOMEM, "no memory for virtio-vsock");
    int r = virtio_device_init(&vsock->device, &vsock_ops, mem, FEATURE_STREAM, sizes, VSOCK_QUEUES,
                               err);
    if (r < 0) {
        free(vsock);
        return r;
    }
    pthread_mutex_init(&vsock->mutex, NULL);
    vsock->cid = cid;
    vsock->host = *host;
    for (unsigned i = 0; i < VSOCK_STREAMS_MAX; i++)
        vsock->streams[i] = (struct vsock_stream){.state = VSOCK_CLOSED, .fd = -1};
    vsock->epoll = epoll_create1(EPOLL_CLOEXEC);
    r = begin(vsock, err);
    if (r < 0) {
        vsock_free(&vsock->device);
        return r;
    }
    *ret_vsock = vsock;
    return 0;
}

struct virtio_device *virtio_vsock_device(struct virtio_vsock *vsock)
{
    return &vsock->device;
}

/* What the owner says. */

void virtio_vsock_call(struct virtio_vsock *vsock, uint32_t guest_port, int fd)
{
    pthread_mutex_lock(&vsock->mutex);
    struct vsock_stream *stream = NULL;
    if (vsock->live && vsock->reply_count < VSOCK_REPLIES_STOP)
        stream = vsock_stream_new(vsock, VSOCK_CALLED, guest_port, vsock_stream_free_port(vsock));
    if (!stream) {
        close(fd);
    } else {
        stream->say = VSOCK_SAY_REQUEST;
        if (vsock_stream_attach(vsock, stream, fd) < 0)
            vsock_stream_fail(vsock, stream);
    }
    pthread_mutex_unlock(&vsock->mutex);
    worker_wake(&vsock->worker);
}

void virtio_vsock_dialed(struct virtio_vsock *vsock, uint32_t id, int fd)
{
    pthread_mutex_lock(&vsock->mutex);
    struct vsock_stream *stream = vsock_stream_by_id(vsock, id);
    if (!stream || stream->state != VSOCK_DIALING) { /* the guest has given up meanwhile */
        if (fd >= 0)
            close(fd);
    } else if (fd < 0 || vsock_stream_attach(vsock, stream, fd) < 0) {
        vsock_stream_fail(vsock, stream);
    } else {
        stream->say = VSOCK_SAY_RESPONSE;
        vsock_stream_happens(vsock, stream, VSOCK_HOST_ACCEPTS);
    }
    pthread_mutex_unlock(&vsock->mutex);
    worker_wake(&vsock->worker);
}
