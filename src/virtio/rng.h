/*
 * rng.h: virtio entropy device (virtio 1.2, 5.4).
 *
 * One queue; each chain is filled with bytes of the host's getrandom(), at most RNG_CHAIN_BYTES a
 * chain (the driver learns the length from the used ring). Served by a worker thread of its own.
 *
 * The device is freed by its transport. Errors: -ENOMEM, or why there is no thread.
 */
#pragma once

#include "base/err.h"
#include "mem/mem.h"
#include "virtio/device.h"

enum { RNG_CHAIN_BYTES = 4096 };

int virtio_rng_new(struct mem *mem, struct virtio_device **ret_device, struct err *err);
