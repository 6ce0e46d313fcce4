/*
 * A queue's thread: pops requests, starts runs, works off writes and calls, reaps, and sleeps in
 * poll() on its two descriptors, one for the driver's notifications and one for the ring's
 * completions.
 *
 * Invariants, whenever the mutex is free:
 *   1  in_flight = requests in runs + in calls + the one that a call is made for
 *   2  parts_in_flight <= BLK_RING_ENTRIES, so no completion is ever lost
 *   3  with `live` false nothing is popped, and in_flight only falls
 *   4  with `full` true there is a call, and nothing is popped
 */
#include "virtio/blk_device.h"

#include "base/bytes.h"
#include "base/clock.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <time.h>

enum {
    INLINE_REQUESTS = 8,
    INLINE_BYTES = 64 * 1024, /* of one request; more takes longer than waking a thread */
    RETRY_NS = 1000000,
    SPACE_NS = 1000000000,
    CALLS_NS = 100000, /* calls that are answered by one interrupt take no longer together */
};

/* Lists. */

void blk_list_add(struct blk_list *list, struct blk_request *request)
{
    request->next = NULL;
    if (list->first)
        list->last->next = request;
    else
        list->first = request;
    list->last = request;
}

static void list_add_first(struct blk_list *list, struct blk_request *request)
{
    request->next = list->first;
    if (!list->first)
        list->last = request;
    list->first = request;
}

static struct blk_request *list_take(struct blk_list *list)
{
    struct blk_request *request = list->first;
    if (request)
        list->first = request->next;
    return request;
}

/* Answers. */

static uint8_t status_of(int r)
{
    enum { STATUS_OK = 0, STATUS_IOERR = 1, STATUS_UNSUPP = 2 };
    return r >= 0 ? STATUS_OK : r == -EOPNOTSUPP ? STATUS_UNSUPP : STATUS_IOERR;
}

/* What was not written of the writable bytes is the driver's own, so that all of them may count. */
void blk_answer(struct blk_queue *queue, struct blk_request *request, int r)
{
    const struct queue_chain *chain = &request->chain;
    const struct iovec *last = &chain->buffers[chain->readable + chain->writable - 1];
    ((uint8_t *)last->iov_base)[last->iov_len - 1] = status_of(r);
    uint64_t written = chain->writable_bytes;
    if (written > BLK_REQUEST_BYTES_MAX + 1) { /* refused: marking it all would take for ever */
        mem_written(queue->blk->device.mem,
                    chain->addresses[chain->readable + chain->writable - 1] + last->iov_len - 1, 1);
        written = 0;
    }
    virtio_push(&queue->blk->device, queue->index, chain, written);
    request->next = queue->free_requests;
    queue->free_requests = request;
    if (--queue->in_flight == 0)
        pthread_cond_broadcast(&queue->idle);
}

/* A host's error; one that the driver has made is not worth telling. */
static void report(struct blk_queue *queue, bool write, int r)
{
    struct virtio_blk *blk = queue->blk;
    if (r < 0 && blk->on_error)
        blk->on_error(blk->opaque, write, -r);
}

/* Full disks. */

static bool waits_for_space(const struct blk_queue *queue, const struct blk_request *request, int r)
{
    return (r == -ENOSPC || r == -EDQUOT) && request->type != BLK_T_IN && queue->live &&
           queue->blk->on_full;
}

static void full_begin(struct blk_queue *queue, struct blk_request *request, int r)
{
    struct virtio_blk *blk = queue->blk;
    list_add_first(&queue->calls, request);
    queue->retry_at = queue->retry_asked ? 0 : clock_ns() + SPACE_NS;
    blk->full_number = -r;
    if (!queue->full)
        blk->full_queues++;
    queue->full = true;
    pthread_cond_broadcast(&queue->idle);
    blk->on_full(blk->full_opaque);
}

/* Not before all that came behind found space, too: else the guest would go on for a moment. */
static void full_end(struct blk_queue *queue)
{
    if (!queue->full || queue->calls.first)
        return;
    queue->full = false;
    queue->blk->full_queues--;
    queue->blk->on_full(queue->blk->full_opaque);
}

/* Taking requests in. */

/* The next free request, still on its list; NULL when all are in flight. The list grows by those
 * that were never used only when it is empty, so that their memory stays untouched. */
static struct blk_request *peek_free(struct blk_queue *queue)
{
    if (!queue->free_requests && queue->requests_used < BLK_REQUESTS)
        queue->free_requests = &queue->requests[queue->requests_used++];
    return queue->free_requests;
}

/* Pops the next request that there is something to do for; what is over at once is answered. */
static struct blk_request *pop(struct blk_queue *queue)
{
    struct virtio_device *device = &queue->blk->device;
    for (unsigned i = 0; i < BLK_QUEUE_SIZE; i++) {
        struct blk_request *request = peek_free(queue);
        if (!queue->live || queue->full || !request ||
            !virtio_pop(device, queue->index, &request->chain))
            return NULL;
        if (request->chain.writable == 0) { /* no place for a status: it cannot be answered */
            virtio_fail(device);
            return NULL;
        }
        queue->free_requests = request->next;
        queue->in_flight++;
        int r = blk_request_read(queue->blk, request);
        blk_limit_spend(queue->blk, request->length);
        if (r > 0)
            return request;
        blk_answer(queue, request, r);
        if (blk_limit_wait(queue->blk) > 0)
            return NULL;
    }
    return NULL;
}

static bool room(const struct blk_queue *queue)
{
    return queue->parts_in_flight + BLK_EXTENTS_MAX <= BLK_RING_ENTRIES;
}

/* Starts what waits, as far as there is room and the limit lets it; how long that makes us wait is
 * in ret_wait. True where anything was started. */
static bool admit(struct blk_queue *queue, uint64_t *ret_wait)
{
    struct blk_request *run = NULL, *request;
    bool any = false;
    while ((*ret_wait = blk_limit_wait(queue->blk)) == 0 && room(queue) && (request = pop(queue))) {
        any = true;
        if (run && blk_request_is_transfer(request) && blk_run_takes(run, request)) {
            blk_run_add(run, request);
            continue;
        }
        if (run)
            blk_run_start(queue, run);
        run = NULL;
        if (blk_request_is_transfer(request)) {
            run = request;
            blk_run_begin(run);
        } else {
            blk_list_add(&queue->calls, request);
        }
    }
    if (run)
        blk_run_start(queue, run);
    return any;
}

/* Makes the next call, without the mutex. A reset forgets those that were not begun. */
static bool do_call(struct blk_queue *queue)
{
    if (queue->full && queue->live && clock_ns() < queue->retry_at)
        return false;
    struct blk_request *request = list_take(&queue->calls);
    int r = -ECANCELED;
    if (!request)
        return false;
    if (queue->live) {
        uint32_t type = request->type;
        queue->retry_asked = false;
        pthread_mutex_unlock(&queue->mutex);
        r = blk_request_call(queue->blk, request);
        pthread_mutex_lock(&queue->mutex);
        if (waits_for_space(queue, request, r)) {
            full_begin(queue, request, r);
            return false;
        }
        if (r != -EINVAL && r != -EOPNOTSUPP)
            report(queue, type != BLK_T_IN, r);
    }
    blk_answer(queue, request, r);
    full_end(queue);
    return true;
}

/* Short ones one after the other, so that the driver is not interrupted for each. */
static bool do_some(struct blk_queue *queue, bool (*next)(struct blk_queue *queue))
{
    if (!next(queue))
        return false;
    uint64_t begin = clock_ns();
    while (clock_ns() - begin < CALLS_NS && next(queue))
        ;
    return true;
}

/* Does all that can be done now; returns for how long to sleep at most, in ns. */
static uint64_t serve(struct blk_queue *queue)
{
    struct virtio_device *device = &queue->blk->device;
    struct queue *ring = &device->queues[queue->index];
    uint64_t wait = 0;
    bool more = true;
    pthread_mutex_lock(&queue->mutex);
    if (queue->ring)
        blk_ring_await(queue->ring, false);
    while (more && !worker_stopping(&queue->worker)) {
        /* While it is held the rings are being saved: nothing may be written there. */
        if (queue->live && !device->held)
            queue_notifications_stop(ring);
        more = admit(queue, &wait);
        blk_submit(queue);
        more |= blk_reap(queue);
        more |= do_some(queue, blk_write_next);
        more |= do_some(queue, do_call);
        if (queue->live) {
            virtio_notify(device, queue->index);
            /* While a limit holds us back, time wakes us, not the driver. */
            if (!more && wait == 0 && !device->held && !queue->full && peek_free(queue) &&
                room(queue))
                more = queue_notifications_start(ring) && virtio_may_pop(device);
        }
        more = more || blk_await(queue);
    }
    if (queue->full) {
        uint64_t now = clock_ns();
        wait = queue->retry_at > now ? queue->retry_at - now : 1;
    }
    if (queue->unsubmitted)
        wait = RETRY_NS;
    pthread_mutex_unlock(&queue->mutex);
    return wait;
}

/* `wait` of 0: until something happens. */
static void sleep_for(struct blk_queue *queue, uint64_t wait)
{
    struct pollfd fds[] = {
        {.fd = queue->worker.wake_fd, .events = POLLIN},
        {.fd = queue->ring ? blk_ring_fd(queue->ring) : -1, .events = POLLIN},
    };
    struct timespec timeout = {(time_t)(wait / 1000000000), (long)(wait % 1000000000)};
    if (ppoll(fds, ARRAY_LEN(fds), wait ? &timeout : NULL, NULL) < 0)
        return; /* EINTR: nothing else can fail here */
    if (fds[0].revents)
        worker_drained(&queue->worker);
    if (fds[1].revents)
        blk_ring_drained(queue->ring);
}

static void run(void *opaque)
{
    struct blk_queue *queue = opaque;
    while (!worker_stopping(&queue->worker))
        sleep_for(queue, serve(queue));
    /* The kernel still holds guest memory and iovecs of ours. */
    pthread_mutex_lock(&queue->mutex);
    queue->live = false;
    for (blk_reap(queue); queue->parts_in_flight > 0; blk_reap(queue)) {
        blk_submit(queue);
        if (blk_write_next(queue))
            continue;
        pthread_mutex_unlock(&queue->mutex);
        sleep_for(queue, RETRY_NS);
        pthread_mutex_lock(&queue->mutex);
    }
    while (do_call(queue))
        ;
    pthread_mutex_unlock(&queue->mutex);
}

/* On a vCPU's thread: what takes no longer than waking another thread would. */

/* True where the host's page cache has (or takes) all of it at once. Parts that are done are done
 * again by whoever gets it next. */
static bool transfer_now(struct blk_queue *queue, struct blk_request *request)
{
    bool write = request->type == BLK_T_OUT;
    struct disk *disk = queue->blk->disk;
    struct disk_extent extent;
    if (request->length > INLINE_BYTES ||
        (write && (queue->blk->writes_wait || blk_write_through(queue->blk))) ||
        !disk_direct(disk, request->offset, request->length, write, &extent))
        return false;
    ssize_t done = -1;
    /* Without the cache it would wait for the host's disk, whatever the flag says. */
    if (extent.length == request->length && extent.alignment == 1)
        done = write ? pwritev2(extent.fd, request->iov, (int)request->iov_count,
                                (off_t)extent.file_offset, RWF_NOWAIT)
                     : preadv2(extent.fd, request->iov, (int)request->iov_count,
                               (off_t)extent.file_offset, RWF_NOWAIT);
    if (write && done < 0 && errno == EOPNOTSUPP)
        queue->blk->writes_wait = true;
    disk_direct_end(disk, &extent);
    return done == (ssize_t)request->length;
}

/* Popped and read already: it goes the usual way, on the queue's thread. */
static void hand_over(struct blk_queue *queue, struct blk_request *request)
{
    if (blk_request_is_transfer(request)) {
        blk_run_begin(request);
        blk_run_start(queue, request);
    } else {
        blk_list_add(&queue->calls, request);
    }
}

/* True where the queue's thread has something to do. */
static bool serve_now(struct blk_queue *queue)
{
    struct virtio_device *device = &queue->blk->device;
    bool wake = false;
    for (unsigned i = 0; !wake && i < INLINE_REQUESTS; i++) {
        struct blk_request *request = pop(queue);
        if (!request)
            break;
        wake = !blk_request_is_transfer(request) || !transfer_now(queue, request);
        if (wake)
            hand_over(queue, request);
        else
            blk_answer(queue, request, 0);
    }
    virtio_notify(device, queue->index);
    /* The thread may have gone to sleep while the device was held, deaf to the driver. */
    return wake || queue_pending(&device->queues[queue->index]) ||
           device->queues[queue->index].notifications_off;
}

void blk_queue_notified(struct blk_queue *queue)
{
    bool wake = true;
    if (pthread_mutex_trylock(&queue->mutex) == 0) {
        if (queue->live && queue->in_flight == 0 && blk_limit_wait(queue->blk) == 0)
            wake = serve_now(queue);
        pthread_mutex_unlock(&queue->mutex);
    }
    if (wake)
        worker_wake(&queue->worker);
}

/* Life. */

void blk_queue_start(struct blk_queue *queue)
{
    pthread_mutex_lock(&queue->mutex);
    queue->live = !worker_stopping(&queue->worker);
    pthread_mutex_unlock(&queue->mutex);
    worker_wake(&queue->worker);
}

void blk_queue_reset(struct blk_queue *queue)
{
    pthread_mutex_lock(&queue->mutex);
    queue->live = false;
    if (queue->in_flight > 0)
        worker_wake(&queue->worker);
    while (queue->in_flight > 0)
        pthread_cond_wait(&queue->idle, &queue->mutex);
    pthread_mutex_unlock(&queue->mutex);
}

void blk_queue_settle(struct blk_queue *queue)
{
    pthread_mutex_lock(&queue->mutex);
    if (queue->in_flight > 0)
        worker_wake(&queue->worker);
    while (queue->in_flight > 0 && !queue->full)
        pthread_cond_wait(&queue->idle, &queue->mutex);
    pthread_mutex_unlock(&queue->mutex);
}

bool blk_queue_settled(struct blk_queue *queue)
{
    pthread_mutex_lock(&queue->mutex);
    bool settled = queue->in_flight == 0;
    pthread_mutex_unlock(&queue->mutex);
    return settled;
}

void blk_queue_retry(struct blk_queue *queue)
{
    pthread_mutex_lock(&queue->mutex);
    queue->retry_at = 0;
    queue->retry_asked = true; /* it may be in the middle of a call */
    pthread_mutex_unlock(&queue->mutex);
    worker_wake(&queue->worker);
}

int blk_queue_init(struct blk_queue *queue, struct virtio_blk *blk, unsigned index,
                   struct blk_ring *ring, struct err *err)
{
    queue->blk = blk;
    queue->index = index;
    queue->ring = ring;
    queue->worker.wake_fd = -1;
    queue->writes_end = &queue->writes;
    pthread_mutex_init(&queue->mutex, NULL);
    pthread_cond_init(&queue->idle, NULL);
    queue->requests = calloc(BLK_REQUESTS, sizeof *queue->requests);
    if (!queue->requests)
        return err_set(err, -ENOMEM, "no memory for the requests of virtio-blk");
    for (unsigned i = BLK_RING_ENTRIES; i-- > 0;) {
        queue->parts[i].next = queue->free_parts;
        queue->free_parts = &queue->parts[i];
    }
    return worker_start(&queue->worker, "virtio-blk", run, queue, err);
}

void blk_queue_stop(struct blk_queue *queue)
{
    worker_stop(&queue->worker);
}

void blk_queue_fini(struct blk_queue *queue)
{
    free(queue->requests);
    pthread_mutex_destroy(&queue->mutex);
    pthread_cond_destroy(&queue->idle);
}
