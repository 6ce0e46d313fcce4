/*
 * offload.h: a frame's offloads as the twelve bytes before it: struct virtio_net_hdr_mrg_rxbuf
 * (virtio 1.2, 5.1.6), in a guest's queues and on a tap alike. Pure.
 */
#pragma once

#include "nic/nic.h"

enum {
    OFFLOAD_BYTES = 12,
    OFFLOAD_BUFFERS = 10, /* where the number of buffers is, which is the queue's affair: 0 */
};

void offload_write(const struct nic_offload *offload, uint8_t ret_bytes[OFFLOAD_BYTES]);
/* Flags that we do not know are left out. */
struct nic_offload offload_read(const uint8_t bytes[OFFLOAD_BYTES]);
