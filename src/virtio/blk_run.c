/*
 * Runs: adjacent transfers as one, cut into parts where their extents meet. A part is in the ring,
 * or among the writes that the queue's thread makes itself.
 */
#include "virtio/blk_device.h"

#include "base/bytes.h"
#include "base/clock.h"

#include <errno.h>

enum {
    SLOW_NS = 10000000,       /* no copy into the page cache takes that long */
    SLOW_FOR_NS = 1000000000, /* and this is how long we believe that the next ones would, too */
};

bool blk_run_takes(const struct blk_request *run, const struct blk_request *request)
{
    return run->type == request->type && run->offset + run->run_length == request->offset &&
           run->run_length + request->length <= BLK_RUN_BYTES_MAX &&
           run->iov_count + request->iov_count <= QUEUE_CHAIN_MAX;
}

void blk_run_add(struct blk_request *run, struct blk_request *request)
{
    memcpy(run->iov + run->iov_count, request->iov, request->iov_count * sizeof *run->iov);
    run->iov_count += request->iov_count;
    run->iov_bits |= request->iov_bits;
    run->run_length += request->length;
    request->next = NULL;
    run->last->next = request;
    run->last = request;
}

void blk_run_begin(struct blk_request *request)
{
    request->next = NULL;
    request->last = request;
    request->run_length = request->length;
    request->parts = 0;
    request->failed = false;
}

/* The first request's iovecs are the run's; it gets its own back. */
static void run_to_calls(struct blk_queue *queue, struct blk_request *run)
{
    run->iov_count = queue_iov_cut(run->iov, run->iov_count, run->length);
    for (struct blk_request *request = run, *next; request; request = next) {
        next = request->next;
        blk_list_add(&queue->calls, request);
    }
}

static void run_done(struct blk_queue *queue, struct blk_request *run)
{
    bool flush = run->type == BLK_T_OUT && blk_write_through(queue->blk);
    if (run->failed) { /* the calls find out which request it was, and why */
        run_to_calls(queue, run);
        return;
    }
    for (struct blk_request *request = run, *next; request; request = next) {
        next = request->next;
        if (flush) {
            request->type = BLK_T_FLUSH;
            blk_list_add(&queue->calls, request);
        } else {
            blk_answer(queue, request, 0);
        }
    }
}

/* Where all of the run lies, or 0 where the calls have to do it. */
static unsigned find_extents(struct blk_queue *queue, struct blk_request *run,
                             struct disk_extent extents[BLK_EXTENTS_MAX])
{
    struct disk *disk = queue->blk->disk;
    uint64_t done = 0;
    unsigned count = 0;
    bool fits = true;
    while (fits && done < run->run_length) {
        fits =
            count < BLK_EXTENTS_MAX && disk_direct(disk, run->offset + done, run->run_length - done,
                                                   run->type == BLK_T_OUT, &extents[count]);
        if (!fits)
            break;
        fits = run->iov_bits % extents[count].alignment == 0;
        done += extents[count++].length;
    }
    if (fits)
        return count;
    while (count > 0)
        disk_direct_end(disk, &extents[--count]);
    return 0;
}

/* The number of iovecs from `iov` on that make `length` bytes; the last is cut in two if it must.
 */
static unsigned cut(struct iovec *iov, unsigned *count, uint64_t length)
{
    unsigned used = 0;
    while (length >= iov[used].iov_len) {
        length -= iov[used++].iov_len;
        if (length == 0)
            return used;
    }
    memmove(iov + used + 1, iov + used, (*count - used) * sizeof *iov);
    (*count)++;
    iov[used].iov_len = length;
    iov[used + 1].iov_base = (uint8_t *)iov[used + 1].iov_base + length;
    iov[used + 1].iov_len -= length;
    return used + 1;
}

/*
 * Writes into the host's page cache are better done by the queue's thread than in the ring: most
 * file systems have none that do not wait, so the kernel hands each to a thread of its own, where
 * they wait for each other at the file's lock. But where the host has too many dirty pages, it
 * makes writers wait, and reads of this queue shall not wait with them: then it is the ring again.
 */
static bool for_thread(const struct blk_queue *queue, const struct blk_request *run,
                       const struct disk_extent *extents, unsigned count)
{
    bool fits = run->type == BLK_T_OUT && clock_ns() >= queue->slow_until;
    for (unsigned i = 0; fits && i < count; i++)
        fits = extents[i].alignment == 1;
    return fits;
}

static void part_start(struct blk_queue *queue, struct blk_part *part, bool by_thread)
{
    if (by_thread) {
        part->next = NULL;
        *queue->writes_end = part;
        queue->writes_end = &part->next;
        return;
    }
    /* There is room: the ring has an entry for each part (invariant 2). */
    blk_ring_add(queue->ring, part->run->type == BLK_T_OUT, part->extent.fd,
                 part->extent.file_offset, part->iov, part->iov_count, part);
    queue->unsubmitted = true;
}

void blk_run_start(struct blk_queue *queue, struct blk_request *run)
{
    struct disk_extent extents[BLK_EXTENTS_MAX];
    unsigned count = queue->ring ? find_extents(queue, run, extents) : 0;
    if (count == 0) {
        run_to_calls(queue, run);
        return;
    }
    bool by_thread = for_thread(queue, run, extents, count);
    struct iovec *iov = run->iov;
    unsigned left = run->iov_count;
    for (unsigned i = 0; i < count; i++) {
        unsigned used = i + 1 < count ? cut(iov, &left, extents[i].length) : left;
        struct blk_part *part = queue->free_parts;
        queue->free_parts = part->next;
        *part = (struct blk_part){.run = run, .extent = extents[i], .iov = iov, .iov_count = used};
        run->parts++;
        queue->parts_in_flight++;
        part_start(queue, part, by_thread);
        iov += used;
        left -= used;
    }
    run->iov_count = (unsigned)(iov - run->iov);
}

static void part_done(struct blk_queue *queue, struct blk_part *part, ssize_t result)
{
    struct blk_request *run = part->run;
    disk_direct_end(queue->blk->disk, &part->extent);
    if (result < 0 || (uint64_t)result != part->extent.length)
        run->failed = true;
    part->next = queue->free_parts;
    queue->free_parts = part;
    queue->parts_in_flight--;
    if (--run->parts == 0)
        run_done(queue, run);
}

/* True where something was there. */
bool blk_reap(struct blk_queue *queue)
{
    void *tag;
    int result;
    bool any = false;
    while (queue->ring && blk_ring_reap(queue->ring, &tag, &result)) {
        part_done(queue, tag, result);
        any = true;
    }
    return any;
}

/* Makes the next of the writes, without the mutex. */
bool blk_write_next(struct blk_queue *queue)
{
    struct blk_part *part = queue->writes;
    if (!part)
        return false;
    queue->writes = part->next;
    if (!queue->writes)
        queue->writes_end = &queue->writes;
    pthread_mutex_unlock(&queue->mutex);
    uint64_t begin = clock_ns();
    ssize_t result =
        pwritev(part->extent.fd, part->iov, (int)part->iov_count, (off_t)part->extent.file_offset);
    uint64_t end = clock_ns();
    pthread_mutex_lock(&queue->mutex);
    if (end - begin > SLOW_NS)
        queue->slow_until = end + SLOW_FOR_NS;
    part_done(queue, part, result);
    return true;
}

/* Completions wake us from here on; true where some came before. */
bool blk_await(struct blk_queue *queue)
{
    if (!queue->ring || queue->parts_in_flight == 0)
        return false;
    blk_ring_await(queue->ring, true);
    return blk_reap(queue);
}

void blk_submit(struct blk_queue *queue)
{
    if (queue->unsubmitted)
        queue->unsubmitted = !blk_ring_submit(queue->ring);
}
