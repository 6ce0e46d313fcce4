#include "virtio/test_nic.h"

#include "base/bytes.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

static struct test_nic *of(struct nic *nic)
{
    return (struct test_nic *)nic;
}

static bool frames_put(struct test_frames *frames, struct test_frame frame)
{
    if (frames->count == TEST_NIC_FRAMES)
        return false;
    frames->frames[(frames->first + frames->count++) % TEST_NIC_FRAMES] = frame;
    return true;
}

static bool frames_get(struct test_frames *frames, struct test_frame *ret_frame)
{
    if (frames->count == 0)
        return false;
    *ret_frame = frames->frames[frames->first];
    frames->first = (frames->first + 1) % TEST_NIC_FRAMES;
    frames->count--;
    return true;
}

static int test_fd(struct nic *nic, unsigned queue)
{
    return of(nic)->fds[queue];
}

static int test_send(struct nic *nic, unsigned queue, const struct nic_offload *offload,
                     const struct iovec *iov, unsigned count, size_t length)
{
    struct test_nic *test = of(nic);
    struct test_frame frame = {*offload, length, malloc(length)};
    size_t done = 0;
    for (unsigned i = 0; i < count; i++) {
        assert(iov[i].iov_len <= length - done);
        memcpy(frame.bytes + done, iov[i].iov_base, iov[i].iov_len);
        done += iov[i].iov_len;
    }
    assert(done == length);
    pthread_mutex_lock(&test->mutex);
    int r = test->full ? -EAGAIN : 0;
    if (r < 0 || test->forget || !frames_put(&test->out[queue], frame))
        free(frame.bytes);
    pthread_mutex_unlock(&test->mutex);
    return r;
}

static int test_receive(struct nic *nic, unsigned queue, struct nic_frame *ret_frame)
{
    struct test_nic *test = of(nic);
    struct test_frame *handed = &test->handed[queue];
    eventfd_t count;
    pthread_mutex_lock(&test->mutex);
    free(handed->bytes);
    handed->bytes = NULL;
    int r = frames_get(&test->in[queue], handed) ? 1 : test->ended ? -EPIPE : 0;
    if (r == 0)
        eventfd_read(test->fds[queue], &count);
    pthread_mutex_unlock(&test->mutex);
    if (r == 1)
        *ret_frame = (struct nic_frame){handed->bytes, handed->length, handed->offload};
    return r;
}

static void test_accept(struct nic *nic, unsigned features)
{
    of(nic)->accepted = features;
}

static int test_enable(struct nic *nic, unsigned queue, bool on)
{
    of(nic)->off[queue] = !on;
    return 0;
}

static void frames_free(struct test_frames *frames)
{
    struct test_frame frame;
    while (frames_get(frames, &frame))
        free(frame.bytes);
}

static void test_free(struct nic *nic)
{
    struct test_nic *test = of(nic);
    for (unsigned i = 0; i < TEST_NIC_QUEUES; i++) {
        frames_free(&test->in[i]);
        frames_free(&test->out[i]);
        free(test->handed[i].bytes);
        close(test->fds[i]);
    }
    pthread_mutex_destroy(&test->mutex);
    free(test);
}

static const struct nic_ops test_ops = {
    .name = "test",
    .fd = test_fd,
    .send = test_send,
    .receive = test_receive,
    .accept = test_accept,
    .enable = test_enable,
    .free = test_free,
};

struct test_nic *test_nic_new(void)
{
    const unsigned all = NIC_F_CSUM | NIC_F_TSO4 | NIC_F_TSO6 | NIC_F_ECN;
    struct test_nic *test = calloc(1, sizeof *test);
    assert(test);
    test->nic =
        (struct nic){.ops = &test_ops, .queues = TEST_NIC_QUEUES, .takes = all, .gives = all};
    for (unsigned i = 0; i < TEST_NIC_QUEUES; i++)
        test->fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&test->mutex, NULL);
    return test;
}

void test_nic_give(struct test_nic *nic, unsigned queue, const struct nic_offload *offload,
                   const void *bytes, size_t length)
{
    struct test_frame frame = {.length = length, .bytes = malloc(length)};
    memcpy(frame.bytes, bytes, length);
    if (offload)
        frame.offload = *offload;
    pthread_mutex_lock(&nic->mutex);
    if (!frames_put(&nic->in[queue], frame))
        free(frame.bytes);
    eventfd_write(nic->fds[queue], 1);
    pthread_mutex_unlock(&nic->mutex);
}

bool test_nic_take(struct test_nic *nic, unsigned queue, struct test_frame *ret_frame)
{
    pthread_mutex_lock(&nic->mutex);
    bool got = frames_get(&nic->out[queue], ret_frame);
    pthread_mutex_unlock(&nic->mutex);
    return got;
}

void test_nic_set(struct test_nic *nic, bool full, bool ended)
{
    pthread_mutex_lock(&nic->mutex);
    nic->full = full;
    nic->ended = ended;
    for (unsigned i = 0; i < TEST_NIC_QUEUES; i++)
        eventfd_write(nic->fds[i], 1);
    pthread_mutex_unlock(&nic->mutex);
}
