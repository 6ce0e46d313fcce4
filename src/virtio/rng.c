#include "virtio/rng.h"

#include "base/bytes.h"
#include "virtio/worker.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

enum {
    DEVICE_ID = 4,
    QUEUE = 0,
    QUEUE_SIZE = 64,
    BATCH = 32, /* chains served before the mutex is let go of, so that a reset waits briefly */
};

struct rng {
    struct virtio_device device; /* first: ops get this pointer */
    struct worker worker;
    pthread_mutex_t mutex;
    bool live; /* between start() and reset() */
    struct queue_chain chain;
};

/* Fills the start of the chain with at most RNG_CHAIN_BYTES. A host whose getrandom() fails at
 * run time does not exist since Linux 5.6; the chain then goes back empty and the driver asks
 * again. */
static uint64_t fill(const struct queue_chain *chain)
{
    uint8_t bytes[RNG_CHAIN_BYTES];
    size_t want = min(chain->writable_bytes, (uint64_t)sizeof bytes);
    size_t have = 0;
    while (have < want) {
        ssize_t got = getrandom(bytes + have, want - have, 0);
        if (got < 0 && errno != EINTR)
            break;
        have += got > 0 ? (size_t)got : 0;
    }
    return queue_chain_write(chain, 0, bytes, have);
}

/* True where more may wait. */
static bool serve_batch(void *opaque)
{
    struct rng *rng = opaque;
    int served = 0;
    while (rng->live && served < BATCH && virtio_pop(&rng->device, QUEUE, &rng->chain)) {
        virtio_push(&rng->device, QUEUE, &rng->chain, fill(&rng->chain));
        served++;
    }
    if (served)
        virtio_notify(&rng->device, QUEUE);
    return served == BATCH;
}

static void run(void *opaque)
{
    struct rng *rng = opaque;
    worker_serve(&rng->worker, &rng->mutex, serve_batch, rng);
}

static struct rng *of(struct virtio_device *device)
{
    return (struct rng *)device;
}

static void set_live(struct rng *rng, bool live)
{
    pthread_mutex_lock(&rng->mutex);
    rng->live = live;
    pthread_mutex_unlock(&rng->mutex);
}

static void rng_start(struct virtio_device *device)
{
    set_live(of(device), true);
    worker_wake(&of(device)->worker);
}

static void rng_reset(struct virtio_device *device)
{
    set_live(of(device), false);
}

static void rng_queue_notified(struct virtio_device *device, unsigned queue)
{
    worker_wake(&of(device)->worker);
}

static int rng_notify_fd(struct virtio_device *device, unsigned queue)
{
    return of(device)->worker.wake_fd;
}

static int rng_begin(struct virtio_device *device, struct err *err)
{
    return worker_begin(&of(device)->worker, err);
}

static void rng_settle(struct virtio_device *device)
{
    /* Chains are served whole under the mutex. */
    pthread_mutex_lock(&of(device)->mutex);
    pthread_mutex_unlock(&of(device)->mutex);
}

static void rng_free(struct virtio_device *device)
{
    struct rng *rng = of(device);
    worker_stop(&rng->worker);
    pthread_mutex_destroy(&rng->mutex);
    virtio_device_fini(device);
    free(rng);
}

static const struct virtio_device_ops rng_ops = {
    .name = "virtio-rng",
    .id = DEVICE_ID,
    .class_code = 0xff0000, /* no class fits */
    .begin = rng_begin,
    .start = rng_start,
    .reset = rng_reset,
    .queue_notified = rng_queue_notified,
    .notify_fd = rng_notify_fd,
    .settle = rng_settle,
    .state_version = 1,
    .free = rng_free,
};

int virtio_rng_new(struct mem *mem, struct virtio_device **ret_device, struct err *err)
{
    static const uint16_t sizes[] = {QUEUE_SIZE};
    struct rng *rng = calloc(1, sizeof *rng);
    if (!rng)
        return err_set(err, -ENOMEM, "no memory for virtio-rng");
    pthread_mutex_init(&rng->mutex, NULL);
    int r = virtio_device_init(&rng->device, &rng_ops, mem, 0, sizes, 1, err);
    if (r >= 0)
        r = worker_init(&rng->worker, "virtio-rng", run, rng, err);
    if (r < 0) {
        rng_free(&rng->device);
        return r;
    }
    *ret_device = &rng->device;
    return 0;
}
