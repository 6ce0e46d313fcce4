/*
 * test_nic.h: the host's end of a network that a test holds in its hands. Not part of any program.
 *
 * Frames that the device sends are kept until test_nic_take(); test_nic_give() puts one where the
 * device will find it. Any thread.
 */
#pragma once

#include "nic/nic.h"

#include <pthread.h>

enum { TEST_NIC_QUEUES = 2, TEST_NIC_FRAMES = 512 };

struct test_frame {
    struct nic_offload offload;
    size_t length;
    uint8_t *bytes;
};

struct test_frames {
    struct test_frame frames[TEST_NIC_FRAMES];
    unsigned first, count;
};

struct test_nic {
    struct nic nic;
    pthread_mutex_t mutex;
    int fds[TEST_NIC_QUEUES];
    struct test_frames in[TEST_NIC_QUEUES], out[TEST_NIC_QUEUES];
    struct test_frame handed[TEST_NIC_QUEUES];
    bool off[TEST_NIC_QUEUES];
    bool full, ended;  /* as seen by the device */
    bool forget;       /* frames that are sent are not kept */
    unsigned accepted; /* of nic_accept() */
};

struct test_nic *test_nic_new(void);
void test_nic_give(struct test_nic *nic, unsigned queue, const struct nic_offload *offload,
                   const void *bytes, size_t length);
/* False where nothing was sent; the bytes are the caller's to free. */
bool test_nic_take(struct test_nic *nic, unsigned queue, struct test_frame *ret_frame);
void test_nic_set(struct test_nic *nic, bool full, bool ended);
