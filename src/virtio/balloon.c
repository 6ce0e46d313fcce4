#include "virtio/balloon.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/record.h"
#include "virtio/worker.h"

#include <errno.h>
#include <stdlib.h>

enum {
    DEVICE_ID = 5,
    QUEUE_SIZE = 128,
    BATCH = 8, /* chains served before the mutex is let go of, so that a reset waits briefly */
    LIST_MAX = 4096, /* page numbers of a list, and about so many are served at once */
    PFNS = 256,
    PFN_SIZE = 4,
    STAT_SIZE = 10, /* tag 16 bits, value 64 bits, packed */
    STATS_MAX = 64, /* entries that are looked at */
};

/* 5.5.3 */
#define F_STATS_VQ       (UINT64_C(1) << 1)
#define F_DEFLATE_ON_OOM (UINT64_C(1) << 2)
#define F_PAGE_POISON    (UINT64_C(1) << 4)
#define F_REPORTING      (UINT64_C(1) << 5)

/* 5.5.2. A queue that was not negotiated is not there. The text numbers the others all the same,
 * and Linux counts only those that are there: reporting is 4 or 3, for FREE_PAGE_HINT (whose queue
 * would be 3) is never offered, or 2 where there are no statistics. */
enum { QUEUE_INFLATE, QUEUE_DEFLATE, QUEUE_STATS, QUEUES = 5 };

/* 5.5.4 */
enum { CONFIG_TARGET = 0, CONFIG_ACTUAL = 4, CONFIG_POISON = 12, CONFIG_SIZE = 16 };

struct virtio_balloon {
    struct virtio_device device; /* first: ops get this pointer */
    struct virtio_balloon_config config;
    struct worker worker;
    pthread_mutex_t mutex;
    bool live;         /* between start() and reset() */
    uint64_t pages;    /* guest memory */
    uint64_t inflated; /* pages told by inflate less those by deflate */
    uint64_t reported; /* pages */

    /* Device configuration; the driver reads and writes it with the transport's lock held. */
    _Atomic uint32_t target, actual, poison; /* pages, pages, the pattern */

    bool stats_held, asked; /* the driver's buffer is here; somebody waits for the next */
    uint32_t known;
    uint64_t stats[BALLOON_STATS], stats_at;
    struct queue_chain stats_chain; /* where held */

    struct queue_chain chain;
};

static struct virtio_balloon *of(struct virtio_device *device)
{
    return (struct virtio_balloon *)device;
}

/* --- pages --- */

/* Not qsort(), which asks the system how much memory there is. Lists are short, and mostly in order
 * already, up or down. */
static void sort(uint32_t *pfns, size_t count)
{
    bool falls = count > 0 && pfns[0] > pfns[count - 1];
    for (size_t i = 0; falls && i < count / 2; i++) {
        uint32_t pfn = pfns[i];
        pfns[i] = pfns[count - 1 - i];
        pfns[count - 1 - i] = pfn;
    }
    for (size_t i = 1; i < count; i++) {
        uint32_t pfn = pfns[i];
        size_t at = i;
        for (; at > 0 && pfns[at - 1] > pfn; at--)
            pfns[at] = pfns[at - 1];
        pfns[at] = pfn;
    }
}

/* Neighbours go together: a call into the host's kernel is worth more than sorting a few numbers.
 */
static int discard_pages(struct virtio_balloon *balloon, uint32_t *pfns, size_t count)
{
    struct mem *mem = balloon->device.mem;
    sort(pfns, count);
    for (size_t i = 0, end; i < count; i = end) {
        const struct mem_region *region = mem_find(mem, (uint64_t)pfns[i] << MEM_PAGE_SHIFT);
        if (!region)
            return -EFAULT;
        uint64_t last = (region->start + region->size - 1) >> MEM_PAGE_SHIFT;
        for (end = i + 1; end < count && pfns[end] <= last && pfns[end] - pfns[end - 1] <= 1;)
            end++;
        int r = mem_discard(mem, (uint64_t)pfns[i] << MEM_PAGE_SHIFT,
                            (uint64_t)(pfns[end - 1] - pfns[i] + 1) << MEM_PAGE_SHIFT);
        if (r < 0)
            return r;
    }
    return 0;
}

static int inflate(struct virtio_balloon *balloon, const struct queue_chain *chain, uint64_t count)
{
    uint32_t pfns[PFNS];
    int r = 0;
    mem_keep_small(balloon->device.mem, true);
    for (uint64_t done = 0; r >= 0 && done < count; done += PFNS) {
        size_t some = min(count - done, (uint64_t)PFNS);
        queue_chain_read(chain, done * PFN_SIZE, pfns, some * PFN_SIZE);
        for (size_t i = 0; i < some; i++)
            pfns[i] = le32_read((const uint8_t *)&pfns[i]);
        r = discard_pages(balloon, pfns, some);
    }
    balloon->inflated = min(balloon->inflated + count, balloon->pages);
    return r;
}

static void deflate(struct virtio_balloon *balloon, uint64_t count)
{
    balloon->inflated -= min(balloon->inflated, count);
    if (balloon->inflated == 0)
        mem_keep_small(balloon->device.mem, false);
}

/* A chain of page numbers, to the balloon or back. */
static bool serve_pages(struct virtio_balloon *balloon, unsigned queue)
{
    const struct queue_chain *chain = &balloon->chain;
    uint64_t count = chain->readable_bytes / PFN_SIZE;
    int r = chain->readable_bytes % PFN_SIZE || count > LIST_MAX ? -EPROTO : 0;
    if (r >= 0 && queue == QUEUE_INFLATE)
        r = inflate(balloon, chain, count);
    else if (r >= 0)
        deflate(balloon, count);
    if (r >= 0)
        virtio_push(&balloon->device, queue, chain, 0);
    return r >= 0;
}

/* The guest counts on a reported page being as it left it, or filled with its poison, which is zero
 * here: a page that would be a file's again when it is given back stays. */
static int discard_reported(struct virtio_balloon *balloon, uint64_t gpa, uint64_t size)
{
    struct mem *mem = balloon->device.mem;
    const struct mem_region *region = mem_find(mem, gpa);
    if (!region || !mem_at(mem, gpa, size, true))
        return -EFAULT;
    if (mem_holds_file(region, gpa - region->start, size))
        return 0;
    int r = mem_discard(mem, gpa, size);
    if (r >= 0)
        balloon->reported += size >> MEM_PAGE_SHIFT;
    return r;
}

/* The chain's buffers are themselves the free blocks. Each page once is all that there is to
 * report, which bounds the work. */
static bool serve_report(struct virtio_balloon *balloon, unsigned queue)
{
    const struct queue_chain *chain = &balloon->chain;
    uint64_t bytes = chain->readable_bytes + chain->writable_bytes;
    if (bytes >> MEM_PAGE_SHIFT > balloon->pages)
        return false;
    bool wanted = !(balloon->device.features & F_PAGE_POISON) || balloon->poison == 0;
    for (unsigned i = chain->readable; wanted && i < chain->readable + chain->writable; i++) {
        if (discard_reported(balloon, chain->addresses[i], chain->buffers[i].iov_len) < 0)
            return false;
    }
    virtio_push(&balloon->device, queue, chain, 0);
    return true;
}

/* --- statistics (5.5.6.3): the driver leaves a buffer with us, filled; giving it back asks for the
 * next one --- */

static void stats_read(struct virtio_balloon *balloon)
{
    uint8_t bytes[STAT_SIZE * STATS_MAX];
    size_t size = queue_chain_read(&balloon->stats_chain, 0, bytes, sizeof bytes);
    balloon->known = 0;
    for (size_t at = 0; at + STAT_SIZE <= size; at += STAT_SIZE) {
        unsigned tag = le16_read(bytes + at);
        if (tag >= BALLOON_STATS)
            continue;
        balloon->stats[tag] = le64_read(bytes + at + 2);
        balloon->known |= UINT32_C(1) << tag;
    }
    balloon->stats_at = clock_ns();
    if (balloon->asked && balloon->config.heard)
        balloon->config.heard(balloon->config.opaque);
    balloon->asked = false;
}

static void stats_take(struct virtio_balloon *balloon)
{
    if (balloon->stats_held ||
        virtio_pop(&balloon->device, QUEUE_STATS, &balloon->stats_chain) <= 0)
        return;
    balloon->stats_held = true;
    stats_read(balloon);
}

/* --- queues --- */

static bool has_stats(const struct virtio_balloon *balloon)
{
    return balloon->device.features & F_STATS_VQ;
}

/* True where more may wait. */
static bool serve_queue(struct virtio_balloon *balloon, unsigned queue)
{
    uint64_t numbers = 0;
    int served = 0;
    while (served < BATCH && numbers < LIST_MAX &&
           virtio_pop(&balloon->device, queue, &balloon->chain) > 0) {
        bool fine = queue <= QUEUE_DEFLATE                   ? serve_pages(balloon, queue)
                    : balloon->device.features & F_REPORTING ? serve_report(balloon, queue)
                                                             : false;
        numbers += queue <= QUEUE_DEFLATE ? balloon->chain.readable_bytes / PFN_SIZE : 0;
        if (!fine) {
            virtio_fail(&balloon->device);
            return false;
        }
        served++;
    }
    if (served)
        virtio_notify(&balloon->device, queue);
    return served == BATCH || numbers >= LIST_MAX;
}

static bool serve(void *opaque)
{
    struct virtio_balloon *balloon = opaque;
    bool more = false;
    for (unsigned queue = 0; balloon->live && queue < QUEUES; queue++) {
        if (queue == QUEUE_STATS && has_stats(balloon))
            stats_take(balloon);
        else
            more |= serve_queue(balloon, queue);
    }
    return more;
}

static void run(void *opaque)
{
    struct virtio_balloon *balloon = opaque;
    worker_serve(&balloon->worker, &balloon->mutex, serve, balloon);
}

static void balloon_start(struct virtio_device *device)
{
    struct virtio_balloon *balloon = of(device);
    pthread_mutex_lock(&balloon->mutex);
    balloon->live = true;
    pthread_mutex_unlock(&balloon->mutex);
    worker_wake(&balloon->worker);
}

/* The driver has what it gave us again. */
static void balloon_reset(struct virtio_device *device)
{
    struct virtio_balloon *balloon = of(device);
    pthread_mutex_lock(&balloon->mutex);
    balloon->live = balloon->stats_held = balloon->asked = false;
    balloon->actual = balloon->poison = 0;
    balloon->known = 0;
    balloon->stats_at = balloon->reported = 0;
    balloon->inflated = 0;
    mem_keep_small(device->mem, false);
    pthread_mutex_unlock(&balloon->mutex);
}

static void balloon_queue_notified(struct virtio_device *device, unsigned queue)
{
    worker_wake(&of(device)->worker);
}

static int balloon_notify_fd(struct virtio_device *device, unsigned queue)
{
    return of(device)->worker.wake_fd;
}

static void balloon_config_read(struct virtio_device *device, uint32_t offset, void *to,
                                unsigned size)
{
    const struct virtio_balloon *balloon = of(device);
    uint8_t image[CONFIG_SIZE] = {0};
    le32_write(image + CONFIG_TARGET, balloon->target);
    le32_write(image + CONFIG_ACTUAL, balloon->actual);
    le32_write(image + CONFIG_POISON, balloon->poison);
    memcpy(to, image + offset, size);
}

/* A field is written whole or not at all. */
static void balloon_config_write(struct virtio_device *device, uint32_t offset, const void *from,
                                 unsigned size)
{
    struct virtio_balloon *balloon = of(device);
    if (size != 4)
        return;
    if (offset == CONFIG_ACTUAL)
        balloon->actual = le32_read(from);
    else if (offset == CONFIG_POISON)
        balloon->poison = le32_read(from);
}

static int balloon_begin(struct virtio_device *device, struct err *err)
{
    return worker_begin(&of(device)->worker, err);
}

static void balloon_settle(struct virtio_device *device)
{
    /* Chains are served whole under the mutex; a buffer of statistics that is held is state. */
    pthread_mutex_lock(&of(device)->mutex);
    pthread_mutex_unlock(&of(device)->mutex);
}

static void field_state(struct record *record, _Atomic uint32_t *field)
{
    uint32_t value = *field;
    record_u32(record, &value);
    *field = value;
}

static void balloon_state(struct virtio_device *device, struct record *record)
{
    struct virtio_balloon *balloon = of(device);
    struct queue *queue = &device->queues[QUEUE_STATS];
    pthread_mutex_lock(&balloon->mutex);
    field_state(record, &balloon->target);
    field_state(record, &balloon->actual);
    field_state(record, &balloon->poison);
    record_u64(record, &balloon->inflated);
    record_u64(record, &balloon->reported);
    record_bool(record, &balloon->stats_held);
    if (record->loading) {
        balloon->inflated = min(balloon->inflated, balloon->pages);
        mem_keep_small(device->mem, balloon->inflated > 0);
    }
    if (record->loading && balloon->stats_held) {
        /* It was popped last, so it is the next one again. */
        queue_unpop(queue);
        if (record->failed || queue_pop(queue, &balloon->stats_chain) != 1) {
            balloon->stats_held = false;
            record_fail(record, "has statistics that are not there");
        }
    }
    pthread_mutex_unlock(&balloon->mutex);
}

static void balloon_free(struct virtio_device *device)
{
    struct virtio_balloon *balloon = of(device);
    worker_stop(&balloon->worker);
    pthread_mutex_destroy(&balloon->mutex);
    virtio_device_fini(device);
    free(balloon);
}

static const struct virtio_device_ops balloon_ops = {
    .name = "virtio-balloon",
    .id = DEVICE_ID,
    .class_code = 0xff0000, /* no class fits */
    .config_size = CONFIG_SIZE,
    .config_read = balloon_config_read,
    .config_write = balloon_config_write,
    .begin = balloon_begin,
    .start = balloon_start,
    .reset = balloon_reset,
    .queue_notified = balloon_queue_notified,
    .notify_fd = balloon_notify_fd,
    .settle = balloon_settle,
    .state = balloon_state,
    .state_version = 1,
    .free = balloon_free,
};

int virtio_balloon_new(struct mem *mem, const struct virtio_balloon_config *config,
                       struct virtio_balloon **ret_balloon, struct err *err)
{
    static const uint16_t sizes[QUEUES] = {QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE,
                                           QUEUE_SIZE};
    struct virtio_balloon *balloon = calloc(1, sizeof *balloon);
    if (!balloon)
        return err_set(err, -ENOMEM, "no memory for virtio-balloon");
    balloon->config = *config;
    balloon->pages = mem_size(mem) >> MEM_PAGE_SHIFT;
    pthread_mutex_init(&balloon->mutex, NULL);
    int r = virtio_device_init(&balloon->device, &balloon_ops, mem,
                               F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_POISON | F_REPORTING, sizes,
                               QUEUES, err);
    if (r >= 0)
        r = worker_init(&balloon->worker, "virtio-balloon", run, balloon, err);
    if (r < 0) {
        balloon_free(&balloon->device);
        return r;
    }
    *ret_balloon = balloon;
    return 0;
}

struct virtio_device *virtio_balloon_device(struct virtio_balloon *balloon)
{
    return &balloon->device;
}

void virtio_balloon_target(struct virtio_balloon *balloon, uint64_t bytes)
{
    uint64_t pages = min(bytes >> MEM_PAGE_SHIFT, balloon->pages);
    balloon->target = (uint32_t)min(pages, (uint64_t)UINT32_MAX);
    virtio_config_changed(&balloon->device);
}

bool virtio_balloon_ask(struct virtio_balloon *balloon)
{
    pthread_mutex_lock(&balloon->mutex);
    bool answers = balloon->live && has_stats(balloon);
    if (answers && balloon->stats_held && !balloon->device.held) {
        balloon->stats_held = false;
        virtio_push(&balloon->device, QUEUE_STATS, &balloon->stats_chain, 0);
        virtio_notify(&balloon->device, QUEUE_STATS);
    }
    balloon->asked |= answers;
    pthread_mutex_unlock(&balloon->mutex);
    return answers;
}

void virtio_balloon_info(struct virtio_balloon *balloon, struct virtio_balloon_info *ret_info)
{
    pthread_mutex_lock(&balloon->mutex);
    *ret_info = (struct virtio_balloon_info){
        .driver = balloon->live,
        .has_stats = balloon->live && has_stats(balloon),
        .target = (uint64_t)balloon->target << MEM_PAGE_SHIFT,
        .actual = min((uint64_t)balloon->actual, balloon->pages) << MEM_PAGE_SHIFT,
        .reported = balloon->reported << MEM_PAGE_SHIFT,
        .known = balloon->known,
        .stats_at = balloon->stats_at,
    };
    memcpy(ret_info->stats, balloon->stats, sizeof balloon->stats);
    pthread_mutex_unlock(&balloon->mutex);
}
