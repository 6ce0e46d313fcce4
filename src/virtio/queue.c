/*
 * Layout (virtio 1.2, 2.7), all little-endian, N = queue size:
 *   descriptors  N x { address 8, length 4, flags 2, next 2 }
 *   available    flags 2, index 2, N x head 2, used_event 2
 *   used         flags 2, index 2, N x { head 4, length 4 }, available_event 2
 *
 * Ordering. The driver fills a ring entry and then advances its index; we read the index with
 * acquire before the entry, and write our own index with release after the element (2.7.13,
 * 2.7.14). Where each side first writes its own word and then looks at the other's, to decide who
 * rings whom, both need a full fence between the two (2.7.7.2, 2.7.10): otherwise each may miss
 * the other's write and both sleep.
 */
#include "virtio/queue.h"

#include "base/bytes.h"
#include "base/record.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>

enum {
    DESCRIPTOR_SIZE = 16,
    DESCRIPTOR_NEXT = 1,
    DESCRIPTOR_WRITE = 2,
    DESCRIPTOR_INDIRECT = 4,

    RING_INDEX = 2,
    RING_ENTRIES = 4,
    AVAILABLE_ENTRY_SIZE = 2,
    USED_ENTRY_SIZE = 8,
    AVAILABLE_NO_INTERRUPT = 1,
    USED_NO_NOTIFY = 1,
};

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

static uint64_t available_size(const struct queue *queue)
{
    return RING_ENTRIES + AVAILABLE_ENTRY_SIZE * queue->size + 2u;
}

static uint64_t used_size(const struct queue *queue)
{
    return RING_ENTRIES + USED_ENTRY_SIZE * queue->size + 2u;
}

static uint16_t ring_load(const uint8_t *at, int order)
{
    return le16toh(__atomic_load_n((const uint16_t *)(const void *)at, order));
}

/* A 16-bit word of the used ring at `offset`. */
static void used_store(struct queue *queue, uint64_t offset, uint16_t value)
{
    uint16_t *at = (uint16_t *)(void *)(queue->used_ring + offset);
    __atomic_store_n(at, htole16(value), __ATOMIC_RELEASE);
    mem_written(queue->mem, queue->used + offset, 2);
}

void queue_init(struct queue *queue, struct mem *mem, uint16_t size_max)
{
    assert(size_max > 0 && size_max <= QUEUE_SIZE_MAX && !(size_max & (size_max - 1)));
    *queue = (struct queue){.mem = mem, .size_max = size_max, .size = size_max};
}

void queue_reset(struct queue *queue)
{
    queue_init(queue, queue->mem, queue->size_max);
}

int queue_enable(struct queue *queue)
{
    if (queue->size == 0 || queue->size > queue->size_max || queue->size & (queue->size - 1))
        return -EINVAL;
    if (queue->descriptors % 16 || queue->available % 2 || queue->used % 4)
        return -EINVAL;
    queue->descriptor_ring =
        mem_at(queue->mem, queue->descriptors, (uint64_t)queue->size * DESCRIPTOR_SIZE, false);
    queue->available_ring = mem_at(queue->mem, queue->available, available_size(queue), false);
    queue->used_ring = mem_at(queue->mem, queue->used, used_size(queue), true);
    if (!queue->descriptor_ring || !queue->available_ring || !queue->used_ring)
        return -EFAULT;
    queue->ready = true;
    return 0;
}

/* A private copy that the guest cannot change between check and use: the barrier keeps the compiler
 * from reading guest memory a second time. */
static struct descriptor descriptor_read(const uint8_t *table, unsigned index)
{
    uint8_t bytes[DESCRIPTOR_SIZE];
    memcpy(bytes, table + (size_t)index * DESCRIPTOR_SIZE, sizeof bytes);
    atomic_signal_fence(memory_order_seq_cst);
    return (struct descriptor){
        .address = le64_read(bytes),
        .length = le32_read(bytes + 8),
        .flags = le16_read(bytes + 12),
        .next = le16_read(bytes + 14),
    };
}

/* Q3, Q4, Q5. */
static int chain_add(const struct queue *queue, struct queue_chain *chain,
                     const struct descriptor *descriptor)
{
    unsigned slot = chain->readable + chain->writable;
    bool write = descriptor->flags & DESCRIPTOR_WRITE;
    if (slot == QUEUE_CHAIN_MAX || descriptor->length == 0 || (chain->writable && !write))
        return -EPROTO;
    void *host = mem_at(queue->mem, descriptor->address, descriptor->length, write);
    if (!host)
        return -EPROTO;
    chain->buffers[slot] = (struct iovec){.iov_base = host, .iov_len = descriptor->length};
    chain->addresses[slot] = descriptor->address;
    if (write) {
        chain->writable++;
        chain->writable_bytes += descriptor->length;
    } else {
        chain->readable++;
        chain->readable_bytes += descriptor->length;
    }
    return 0;
}

/* Follows NEXT from `index` through a table of `entries`. The number of steps is bounded by
 * chain_add(), which accepts QUEUE_CHAIN_MAX buffers. Where an INDIRECT entry comes, it is returned
 * in ret_indirect and must be the last (Q6). */
static int walk(const struct queue *queue, struct queue_chain *chain, const uint8_t *table,
                unsigned entries, unsigned index, struct descriptor *ret_indirect)
{
    for (;;) {
        if (index >= entries) /* Q2 */
            return -EPROTO;
        struct descriptor descriptor = descriptor_read(table, index);
        if (descriptor.flags & DESCRIPTOR_INDIRECT) {
            if (!ret_indirect || !queue->indirect || descriptor.flags & DESCRIPTOR_NEXT)
                return -EPROTO;
            *ret_indirect = descriptor;
            return 0;
        }
        int r = chain_add(queue, chain, &descriptor);
        if (r < 0)
            return r;
        if (!(descriptor.flags & DESCRIPTOR_NEXT))
            return 0;
        index = descriptor.next;
    }
}

static int chain_fill(const struct queue *queue, struct queue_chain *chain)
{
    struct descriptor indirect = {0};
    int r = walk(queue, chain, queue->descriptor_ring, queue->size, chain->head, &indirect);
    if (r < 0 || !(indirect.flags & DESCRIPTOR_INDIRECT))
        return r;
    if (indirect.length == 0 || indirect.length % DESCRIPTOR_SIZE)
        return -EPROTO;
    const uint8_t *table = mem_at(queue->mem, indirect.address, indirect.length, false);
    if (!table)
        return -EPROTO;
    return walk(queue, chain, table, indirect.length / DESCRIPTOR_SIZE, 0, NULL);
}

static uint64_t available_event_at(const struct queue *queue)
{
    return RING_ENTRIES + (uint64_t)USED_ENTRY_SIZE * queue->size;
}

/* With EVENT_IDX the driver notifies when it passes this index: the next one that we await. */
static void await_next(struct queue *queue)
{
    used_store(queue, available_event_at(queue), queue->next_available);
    atomic_thread_fence(memory_order_seq_cst);
}

bool queue_pending(const struct queue *queue)
{
    return queue->ready && !queue->broken &&
           ring_load(queue->available_ring + RING_INDEX, __ATOMIC_ACQUIRE) != queue->next_available;
}

int queue_pop(struct queue *queue, struct queue_chain *ret_chain)
{
    if (!queue->ready || queue->broken)
        return 0;
    uint16_t index = ring_load(queue->available_ring + RING_INDEX, __ATOMIC_ACQUIRE);
    uint16_t waiting = (uint16_t)(index - queue->next_available);
    if (waiting == 0)
        return 0;
    unsigned slot = queue->next_available & (queue->size - 1u);
    const uint8_t *entry = queue->available_ring + RING_ENTRIES + slot * AVAILABLE_ENTRY_SIZE;
    ret_chain->head = ring_load(entry, __ATOMIC_RELAXED);
    ret_chain->readable = ret_chain->writable = 0;
    ret_chain->readable_bytes = ret_chain->writable_bytes = 0;
    if (waiting > queue->size /* Q1 */ || chain_fill(queue, ret_chain) < 0) {
        queue->broken = true;
        return -EPROTO;
    }
    queue->next_available++;
    if (queue->event_index && !queue->notifications_off)
        await_next(queue);
    return 1;
}

void queue_unpop(struct queue *queue)
{
    queue->next_available--;
}

void queue_chain_touched(struct queue *queue, const struct queue_chain *chain, uint64_t written)
{
    for (unsigned i = chain->readable; written > 0 && i < chain->readable + chain->writable; i++) {
        uint64_t part = min(written, (uint64_t)chain->buffers[i].iov_len);
        mem_written(queue->mem, chain->addresses[i], part);
        written -= part;
    }
}

void queue_fill(struct queue *queue, const struct queue_chain *chain, uint64_t written)
{
    assert(queue->ready && written <= chain->writable_bytes);
    queue_chain_touched(queue, chain, written);
    unsigned slot = queue->next_used & (queue->size - 1u);
    uint64_t offset = RING_ENTRIES + (uint64_t)slot * USED_ENTRY_SIZE;
    le32_write(queue->used_ring + offset, chain->head);
    le32_write(queue->used_ring + offset + 4, (uint32_t)min(written, (uint64_t)UINT32_MAX));
    mem_written(queue->mem, queue->used + offset, USED_ENTRY_SIZE);
    queue->next_used++;
}

void queue_publish(struct queue *queue)
{
    used_store(queue, RING_INDEX, queue->next_used);
}

void queue_unfill(struct queue *queue, unsigned count)
{
    queue->next_used = (uint16_t)(queue->next_used - count);
}

void queue_push(struct queue *queue, const struct queue_chain *chain, uint64_t written)
{
    queue_fill(queue, chain, written);
    queue_publish(queue);
}

bool queue_should_notify(struct queue *queue)
{
    if (!queue->ready)
        return false;
    uint16_t before = queue->signalled;
    uint16_t pushed = (uint16_t)(queue->next_used - before);
    if (pushed == 0)
        return false;
    queue->signalled = queue->next_used;
    atomic_thread_fence(memory_order_seq_cst);
    if (!queue->event_index)
        return !(ring_load(queue->available_ring, __ATOMIC_RELAXED) & AVAILABLE_NO_INTERRUPT);
    /* 2.7.7.2: notify where used_event lies among the elements pushed since. */
    const uint8_t *at =
        queue->available_ring + RING_ENTRIES + (size_t)AVAILABLE_ENTRY_SIZE * queue->size;
    uint16_t event = ring_load(at, __ATOMIC_RELAXED);
    return (uint16_t)(queue->next_used - event - 1) < pushed;
}

void queue_notifications_stop(struct queue *queue)
{
    if (!queue->ready || queue->notifications_off)
        return;
    queue->notifications_off = true;
    /* With EVENT_IDX it is enough to leave available_event behind (2.7.10.1). */
    if (!queue->event_index)
        used_store(queue, 0, USED_NO_NOTIFY);
}

bool queue_notifications_start(struct queue *queue)
{
    if (!queue->ready)
        return false;
    if (queue->notifications_off) {
        queue->notifications_off = false;
        if (!queue->event_index)
            used_store(queue, 0, 0);
    }
    if (queue->event_index)
        await_next(queue);
    else
        atomic_thread_fence(memory_order_seq_cst);
    return queue_pending(queue);
}

void queue_state(struct queue *queue, struct record *record)
{
    record_u16(record, &queue->size);
    record_u64(record, &queue->descriptors);
    record_u64(record, &queue->available);
    record_u64(record, &queue->used);
    record_bool(record, &queue->indirect);
    record_bool(record, &queue->event_index);
    record_bool(record, &queue->ready);
    record_bool(record, &queue->broken);
    record_u16(record, &queue->next_available);
    record_u16(record, &queue->next_used);
    record_u16(record, &queue->signalled);
    record_bool(record, &queue->notifications_off);
    if (!record->loading || !queue->ready)
        return;
    queue->ready = false;
    if (record->failed || queue_enable(queue) < 0)
        record_fail(record, "has a queue that lies nowhere");
}

/* The part of buffers[first .. first + count) after `offset` bytes, as at most `room` iovecs. */
static unsigned slice(const struct queue_chain *chain, unsigned first, unsigned count,
                      uint64_t offset, struct iovec *ret_iov, unsigned room)
{
    unsigned used = 0;
    for (unsigned i = first; i < first + count && used < room; i++) {
        struct iovec part = chain->buffers[i];
        if (offset >= part.iov_len) {
            offset -= part.iov_len;
            continue;
        }
        part.iov_base = (uint8_t *)part.iov_base + offset;
        part.iov_len -= offset;
        offset = 0;
        ret_iov[used++] = part;
    }
    return used;
}

unsigned queue_chain_readable(const struct queue_chain *chain, uint64_t offset,
                              struct iovec *ret_iov, unsigned room)
{
    return slice(chain, 0, chain->readable, offset, ret_iov, room);
}

unsigned queue_chain_writable(const struct queue_chain *chain, uint64_t offset,
                              struct iovec *ret_iov, unsigned room)
{
    return slice(chain, chain->readable, chain->writable, offset, ret_iov, room);
}

unsigned queue_iov_cut(struct iovec *iov, unsigned count, uint64_t room)
{
    for (unsigned i = 0; i < count; i++) {
        if (iov[i].iov_len >= room) {
            iov[i].iov_len = room;
            return i + 1;
        }
        room -= iov[i].iov_len;
    }
    return count;
}

/* One walk along the buffers, for they may be as many as bytes. */
size_t queue_chain_read(const struct queue_chain *chain, uint64_t offset, void *to, size_t size)
{
    size_t done = 0;
    for (unsigned i = 0; i < chain->readable && done < size; i++) {
        const struct iovec *part = &chain->buffers[i];
        if (offset >= part->iov_len) {
            offset -= part->iov_len;
            continue;
        }
        size_t step = min(part->iov_len - (size_t)offset, size - done);
        memcpy((uint8_t *)to + done, (const uint8_t *)part->iov_base + offset, step);
        done += step;
        offset = 0;
    }
    return done;
}

size_t queue_chain_write(const struct queue_chain *chain, uint64_t offset, const void *from,
                         size_t size)
{
    const struct iovec *buffers = chain->buffers + chain->readable;
    size_t done = 0;
    for (unsigned i = 0; i < chain->writable && done < size; i++) {
        if (offset >= buffers[i].iov_len) {
            offset -= buffers[i].iov_len;
            continue;
        }
        size_t step = min(buffers[i].iov_len - (size_t)offset, size - done);
        memcpy((uint8_t *)buffers[i].iov_base + offset, (const uint8_t *)from + done, step);
        done += step;
        offset = 0;
    }
    return done;
}
