// needs: base mem bus disk nic virtio
/*
 * A split virtqueue whose rings, addresses, sizes and features are the input's, and which changes
 * under the device's hands. What must hold: no access outside guest memory (the sanitizers see it),
 * every loop ends, chains that queue_pop() hands out obey the rules Q3 to Q5 of queue.h.
 */
#include "input.h"
#include "virtio/queue.h"

#include "base/bytes.h"

#include <assert.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MEMORY = 64 * 1024, ROM = 4096, HEADER = 16, STEPS = 512 };

static void check(const struct mem *mem, const struct queue_chain *chain)
{
    uint64_t readable = 0, writable = 0;
    assert(chain->readable + chain->writable >= 1);
    assert(chain->readable + chain->writable <= QUEUE_CHAIN_MAX);
    for (unsigned i = 0; i < chain->readable + chain->writable; i++) {
        bool write = i >= chain->readable;
        uint64_t length = chain->buffers[i].iov_len;
        assert(length > 0);
        assert(mem_at(mem, chain->addresses[i], length, write) == chain->buffers[i].iov_base);
        *(write ? &writable : &readable) += length;
    }
    assert(readable == chain->readable_bytes && writable == chain->writable_bytes);
}

/* A driver that writes its memory while the device is at work. */
static void scribble(struct mem *mem, struct input *input)
{
    input_scribble(input, mem, input_next(input, 2));
}

static void serve(struct queue *queue, struct queue_chain *chain, struct input *input)
{
    uint8_t bytes[256];
    int r = queue_pop(queue, chain);
    assert(r == 1 || r == 0 || (r < 0 && queue->broken));
    if (r != 1)
        return;
    check(queue->mem, chain);
    uint8_t how = (uint8_t)input_next(input, 1);
    if (how & 1)
        scribble(queue->mem, input);
    size_t have = queue_chain_read(chain, input_next(input, 1), bytes, sizeof bytes);
    assert(have <= sizeof bytes && have <= chain->readable_bytes);
    size_t written = queue_chain_write(chain, 0, bytes, have);
    assert(written <= chain->writable_bytes);
    struct iovec iov[4];
    assert(queue_chain_writable(chain, input_next(input, 2), iov, 4) <= 4);
    if (how & 2)
        queue_unpop(queue);
    else
        queue_push(queue, chain, written);
}

static void play(struct queue *queue, struct queue_chain *chain, struct input *input)
{
    for (int step = 0; step < STEPS && input->left > 0; step++) {
        switch (input_next(input, 1) % 6) {
        case 0: scribble(queue->mem, input); break;
        case 1: queue_should_notify(queue); break;
        case 2: queue_notifications_stop(queue); break;
        case 3: queue_notifications_start(queue); break;
        default: serve(queue, chain, input); break;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < HEADER)
        return 0;
    struct input input = {data, size};
    struct mem *mem = mem_new();
    struct queue_chain *chain = malloc(sizeof *chain);
    mem_add(mem, 0, MEMORY, false, NULL);
    mem_add(mem, MEMORY + 4096, ROM, true, NULL);
    mem->dirty_log = true;
    struct queue queue;
    queue_init(&queue, mem, (uint16_t)(1 << input_next(&input, 1) % 11));
    uint8_t flags = (uint8_t)input_next(&input, 1);
    queue.size =
        flags & 4 ? (uint16_t)input_next(&input, 2) : (uint16_t)(1 << input_next(&input, 1) % 8);
    queue.indirect = flags & 1;
    queue.event_index = flags & 2;
    queue.descriptors = flags & 8 ? input_next(&input, 2) * UINT64_C(0x10) : 0x1000;
    queue.available = flags & 16 ? input_next(&input, 2) * UINT64_C(2) : 0x2000;
    queue.used = flags & 32 ? input_next(&input, 2) * UINT64_C(4) : 0x3000;
    /* Half of what is left lies in memory from the rings on; the rest is the play. */
    size_t image = input.left / 2;
    for (size_t i = 0; i < image; i++) {
        uint8_t byte = (uint8_t)input_next(&input, 1);
        static const uint16_t places[] = {0x1000, 0x2000, 0x4000};
        mem_write(mem, places[i % 3] + i / 3, &byte, 1);
    }
    if (queue_enable(&queue) == 0)
        play(&queue, chain, &input);
    queue_reset(&queue);
    free(chain);
    mem_free(mem);
    return 0;
}
