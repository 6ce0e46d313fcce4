/*
 * board_vsock.h: the machine's socket device, joined to the link over which its owner opens and
 * connects what the device may not (wire/vsock.h).
 *
 * The link is borrowed. The struct lives as long as the device, whose thread reads the link.
 */
#pragma once

#include "base/err.h"
#include "mem/mem.h"
#include "virtio/vsock.h"

struct board_vsock {
    struct virtio_vsock *device;
    int link;
};

int board_vsock_new(struct board_vsock *vsock, struct mem *mem, uint32_t cid, int link,
                    struct err *err);
