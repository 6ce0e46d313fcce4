/*
 * One message is on its way to the server at any time, in `request`; replies are put together in
 * `reply`. Both ways the socket is used without waiting: the I/O thread sleeps in poll() on it and
 * on its eventfd. A vCPU that notifies sends what it has brought itself where the mutex is free,
 * which saves a change of threads; the replies are always the I/O thread's.
 */
#include "virtio/fs.h"

#include "base/bytes.h"
#include "virtio/worker.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    DEVICE_ID = 26,
    QUEUE_HIPRIO = 0,
    QUEUES = 2,       /* and one for requests */
    QUEUE_SIZE = 128, /* a request of 256 KiB has some 70 buffers */
    SLOTS = 64,
    BATCH = 16, /* requests sent before the mutex is let go of */

    CONFIG_QUEUES = VIRTIO_FS_TAG_MAX,
    CONFIG_SIZE = VIRTIO_FS_TAG_MAX + 4,
};

/* struct fuse_in_header: length 4, opcode 4, unique 8, ...; fuse_out_header: length 4, error 4,
 * unique 8. */
enum { IN_HEADER = 40, OUT_HEADER = 16, AT_OPCODE = 4, AT_ERROR = 4, AT_UNIQUE = 8 };
enum { FORGET = 2, INTERRUPT = 36, BATCH_FORGET = 42 };

/* A request that the server has, or is getting. */
struct slot {
    bool busy;
    bool orphan; /* the driver that asked is gone: nobody takes the reply */
    unsigned queue;
    uint64_t unique; /* the guest's number */
    struct queue_chain chain;
};

struct virtio_fs {
    struct virtio_device device; /* first: ops get this pointer */
    struct worker worker;
    pthread_mutex_t mutex;
    uint8_t config[CONFIG_SIZE];
    int socket;
    bool live;
    bool gone; /* the server */

    struct slot *slots[SLOTS]; /* made when first used: most guests need few */
    size_t request_size, request_sent;
    size_t reply_size; /* of what has come */
    uint8_t request[VIRTIO_FS_MESSAGE_MAX], reply[VIRTIO_FS_MESSAGE_MAX];
};

static struct virtio_fs *of(struct virtio_device *device)
{
    return (struct virtio_fs *)device;
}

/* The first that is free, or NULL. */
static struct slot *slot_find(struct virtio_fs *fs, unsigned *ret_index)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        if (!fs->slots[i])
            fs->slots[i] = calloc(1, sizeof *fs->slots[i]);
        if (!fs->slots[i])
            return NULL;
        *ret_index = i;
        if (!fs->slots[i]->busy)
            return fs->slots[i];
    }
    return NULL;
}

/* The guest gets a reply of `size` bytes, with its own number in it. */
static void answer(struct virtio_fs *fs, struct slot *slot, uint8_t *reply, uint32_t size)
{
    slot->busy = false;
    if (slot->orphan)
        return;
    if (size > slot->chain.writable_bytes) {
        virtio_fail(&fs->device);
        return;
    }
    le64_write(reply + AT_UNIQUE, slot->unique);
    queue_chain_write(&slot->chain, 0, reply, size);
    virtio_push(&fs->device, slot->queue, &slot->chain, size);
}

static void answer_error(struct virtio_fs *fs, struct slot *slot)
{
    uint8_t reply[OUT_HEADER];
    le32_write(reply, sizeof reply);
    le32_write(reply + AT_ERROR, (uint32_t)-EIO);
    answer(fs, slot, reply, sizeof reply);
}

static void notify(struct virtio_fs *fs)
{
    for (unsigned queue = 0; queue < QUEUES; queue++)
        virtio_notify(&fs->device, queue);
}

static void server_is_gone(struct virtio_fs *fs)
{
    fs->gone = true;
    fs->request_size = fs->request_sent = fs->reply_size = 0;
    for (unsigned i = 0; i < SLOTS; i++)
        if (fs->slots[i] && fs->slots[i]->busy)
            answer_error(fs, fs->slots[i]);
    notify(fs);
}

/* To the server. */

/* True when nothing is left of the last request. */
static bool request_flush(struct virtio_fs *fs)
{
    while (fs->request_sent < fs->request_size) {
        ssize_t n = send(fs->socket, fs->request + fs->request_sent,
                         fs->request_size - fs->request_sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n >= 0)
            fs->request_sent += (size_t)n;
        else if (errno == EAGAIN)
            return false;
        else if (errno != EINTR)
            server_is_gone(fs);
    }
    fs->request_size = fs->request_sent = 0;
    return true;
}

/* Copies the slot's request and checks the copy. */
static bool request_read(struct virtio_fs *fs, const struct queue_chain *chain, uint32_t *ret_size)
{
    if (chain->readable_bytes < IN_HEADER || chain->readable_bytes > VIRTIO_FS_MESSAGE_MAX)
        return false;
    queue_chain_read(chain, 0, fs->request, (size_t)chain->readable_bytes);
    *ret_size = le32_read(fs->request);
    return *ret_size >= IN_HEADER && *ret_size <= chain->readable_bytes;
}

static void accept_request(struct virtio_fs *fs, struct slot *slot, unsigned index)
{
    uint32_t size = 0;
    bool good = request_read(fs, &slot->chain, &size);
    uint32_t opcode = good ? le32_read(fs->request + AT_OPCODE) : 0;
    bool no_reply = opcode == FORGET || opcode == BATCH_FORGET || opcode == INTERRUPT;
    if (!good || (!no_reply && slot->chain.writable_bytes < OUT_HEADER)) {
        virtio_fail(&fs->device);
        return;
    }
    slot->unique = le64_read(fs->request + AT_UNIQUE);
    slot->orphan = false;
    slot->busy = !no_reply;
    if (no_reply)
        virtio_push(&fs->device, slot->queue, &slot->chain, 0);
    if (fs->gone) {
        if (slot->busy)
            answer_error(fs, slot);
        return;
    }
    le64_write(fs->request + AT_UNIQUE, index);
    fs->request_size = size;
}

static bool pop(struct virtio_fs *fs, struct slot *slot)
{
    for (slot->queue = QUEUE_HIPRIO; slot->queue < QUEUES; slot->queue++)
        if (virtio_pop(&fs->device, slot->queue, &slot->chain))
            return true;
    return false;
}

/* Sends what waits, as far as the socket and the slots go. True where more may wait that could go.
 */
static bool transmit(struct virtio_fs *fs)
{
    int done = 0;
    for (; done < BATCH && request_flush(fs) && fs->live; done++) {
        unsigned index;
        struct slot *slot = slot_find(fs, &index);
        if (!slot || !pop(fs, slot))
            break;
        accept_request(fs, slot, index);
    }
    if (done > 0)
        notify(fs);
    return done == BATCH;
}

/* From the server. */

/* Takes the reply at the start of `reply`; false where it is none. */
static bool reply_take(struct virtio_fs *fs, uint8_t *reply, uint32_t size)
{
    uint64_t index = le64_read(reply + AT_UNIQUE);
    if (index >= SLOTS || !fs->slots[index] || !fs->slots[index]->busy)
        return false;
    answer(fs, fs->slots[index], reply, size);
    return true;
}

/* All whole replies; false where what has come is none. */
static bool replies_take(struct virtio_fs *fs)
{
    size_t at = 0;
    while (fs->reply_size - at >= OUT_HEADER) {
        uint32_t size = le32_read(fs->reply + at);
        if (size < OUT_HEADER || size > VIRTIO_FS_MESSAGE_MAX)
            return false;
        if (size > fs->reply_size - at)
            break;
        if (!reply_take(fs, fs->reply + at, size))
            return false;
        at += size;
    }
    fs->reply_size -= at;
    memmove(fs->reply, fs->reply + at, fs->reply_size);
    return true;
}

static void receive(struct virtio_fs *fs)
{
    for (int i = 0; i < BATCH && !fs->gone; i++) {
        ssize_t n = recv(fs->socket, fs->reply + fs->reply_size, sizeof fs->reply - fs->reply_size,
                         MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n > 0)
            fs->reply_size += (size_t)n;
        if (n <= 0 || !replies_take(fs))
            server_is_gone(fs);
    }
    notify(fs);
}

static void run(void *opaque)
{
    struct virtio_fs *fs = opaque;
    bool more = false;
    while (!worker_stopping(&fs->worker)) {
        pthread_mutex_lock(&fs->mutex);
        struct pollfd fds[] = {
            {.fd = fs->worker.wake_fd, .events = POLLIN},
            {.fd = fs->gone ? -1 : fs->socket,
             .events = (short)(POLLIN | (fs->request_size ? POLLOUT : 0))},
        };
        pthread_mutex_unlock(&fs->mutex);
        if (poll(fds, ARRAY_LEN(fds), more ? 0 : -1) < 0)
            continue; /* EINTR: nothing else can fail here */
        worker_drained(&fs->worker);
        pthread_mutex_lock(&fs->mutex);
        if (fds[1].revents)
            receive(fs);
        more = transmit(fs);
        pthread_mutex_unlock(&fs->mutex);
    }
}

/* Device operations. */

static void fs_config_read(struct virtio_device *device, uint32_t offset, void *to, unsigned size)
{
    memcpy(to, of(device)->config + offset, size);
}

static void fs_start(struct virtio_device *device)
{
    struct virtio_fs *fs = of(device);
    pthread_mutex_lock(&fs->mutex);
    fs->live = true;
    pthread_mutex_unlock(&fs->mutex);
    worker_wake(&fs->worker);
}

static void fs_reset(struct virtio_device *device)
{
    struct virtio_fs *fs = of(device);
    pthread_mutex_lock(&fs->mutex);
    fs->live = false;
    for (unsigned i = 0; i < SLOTS; i++)
        if (fs->slots[i])
            fs->slots[i]->orphan = true;
    pthread_mutex_unlock(&fs->mutex);
}

static void fs_queue_notified(struct virtio_device *device, unsigned queue)
{
    struct virtio_fs *fs = of(device);
    bool wake = true;
    if (pthread_mutex_trylock(&fs->mutex) == 0) {
        wake = transmit(fs) || fs->request_size > 0;
        pthread_mutex_unlock(&fs->mutex);
    }
    if (wake)
        worker_wake(&fs->worker);
}

static int fs_notify_fd(struct virtio_device *device, unsigned queue)
{
    return of(device)->worker.wake_fd;
}

static void fs_free(struct virtio_device *device)
{
    struct virtio_fs *fs = of(device);
    worker_stop(&fs->worker);
    for (unsigned i = 0; i < SLOTS; i++)
        free(fs->slots[i]);
    if (fs->socket >= 0)
        close(fs->socket);
    pthread_mutex_destroy(&fs->mutex);
    virtio_device_fini(device);
    free(fs);
}

static const struct virtio_device_ops fs_ops = {
    .name = "virtio-fs",
    .id = DEVICE_ID,
    .class_code = 0x018000, /* mass storage, other */
    .config_size = CONFIG_SIZE,
    .config_read = fs_config_read,
    .start = fs_start,
    .reset = fs_reset,
    .queue_notified = fs_queue_notified,
    .notify_fd = fs_notify_fd,
    .free = fs_free,
};

static int check(const struct virtio_fs_config *config, struct err *err)
{
    int type = 0;
    socklen_t length = sizeof type;
    if (!*config->tag || strlen(config->tag) > VIRTIO_FS_TAG_MAX)
        return err_set(err, -EINVAL, "a share's tag has 1 to %d bytes", VIRTIO_FS_TAG_MAX);
    if (getsockopt(config->fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0)
        return err_errno(err, errno, "share '%s', descriptor %d", config->tag, config->fd);
    if (type != SOCK_STREAM)
        return err_set(err, -EINVAL, "share '%s' wants a stream socket", config->tag);
    return 0;
}

int virtio_fs_new(struct mem *mem, const struct virtio_fs_config *config,
                  struct virtio_device **ret_device, struct err *err)
{
    static const uint16_t sizes[QUEUES] = {QUEUE_SIZE, QUEUE_SIZE};
    int r = check(config, err);
    if (r < 0)
        return r;
    struct virtio_fs *fs = calloc(1, sizeof *fs);
    if (!fs)
        return err_set(err, -ENOMEM, "no memory for virtio-fs");
    pthread_mutex_init(&fs->mutex, NULL);
    fs->socket = -1; /* the caller's until all is well */
    memcpy(fs->config, config->tag, strlen(config->tag));
    le32_write(fs->config + CONFIG_QUEUES, QUEUES - 1);
    r = virtio_device_init(&fs->device, &fs_ops, mem, 0, sizes, QUEUES, err);
    if (r >= 0) {
        fs->socket = config->fd;
        r = worker_start(&fs->worker, "virtio-fs", run, fs, err);
    }
    if (r < 0) {
        fs->socket = -1;
        fs_free(&fs->device);
        return r;
    }
    *ret_device = &fs->device;
    return 0;
}
