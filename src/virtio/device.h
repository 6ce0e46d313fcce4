/*
 * device.h: what every virtio device has in common, between its queues and its transport.
 *
 * A device (rng.c, console.c) embeds a `struct virtio_device` and is a row of `struct
 * virtio_device_ops`. A transport (pci.h) drives the status register, feature negotiation and the
 * queues' set-up, and carries interrupts. Neither knows the other's insides.
 *
 *                  ACKNOWLEDGE, DRIVER, FEATURES_OK            DRIVER_OK
 *      reset  ---------------------------------->  negotiated ----------->  live
 *        ^                                             |                     | virtio_fail()
 *        +------------- driver writes status 0 --------+------- needs reset <+
 *
 * Threads and locks, from the outside in:
 *   transport's lock   status, features and queue set-up; held during start() and reset()
 *   device's own mutex the queues' contents while live; taken by the device in start(), reset(),
 *                      queue_notified() and in its I/O thread
 *   interrupts         pci.h, leaf locks
 * So a device may call virtio_notify() and virtio_fail() with its mutex held, and must not wait for
 * anything but its own mutex in start(), reset() and queue_notified(): they run on a vCPU's thread.
 * In reset() it may wait, too, for transfers that the host has begun.
 *
 * A device touches its queues only between start() and reset(). After reset() has returned it
 * holds no chain and no pointer into guest memory; an I/O thread that is in the middle of a
 * transfer is waited for or told to forget.
 *
 * queue_notified() comes from a vCPU: be quick (bounded by one queue's worth of small work) or wake
 * a worker. A device whose I/O thread sleeps on an eventfd returns it from notify_fd(), and a board
 * may bind it so that the vCPU does not even stop.
 */
#pragma once

#include "base/err.h"
#include "mem/mem.h"
#include "virtio/queue.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    VIRTIO_QUEUES_MAX = 64,
    VIRTIO_NO_VECTOR = 0xffff,
};

/* Device status, 2.1. */
enum virtio_status {
    VIRTIO_STATUS_ACKNOWLEDGE = 1,
    VIRTIO_STATUS_DRIVER = 2,
    VIRTIO_STATUS_DRIVER_OK = 4,
    VIRTIO_STATUS_FEATURES_OK = 8,
    VIRTIO_STATUS_NEEDS_RESET = 64,
    VIRTIO_STATUS_FAILED = 128,
};

/* Feature bits that belong to queues and transport, 6. All devices offer these three. */
#define VIRTIO_F_INDIRECT_DESC (UINT64_C(1) << 28)
#define VIRTIO_F_EVENT_IDX     (UINT64_C(1) << 29)
#define VIRTIO_F_VERSION_1     (UINT64_C(1) << 32)

struct virtio_device;
struct record;

struct virtio_device_ops {
    const char *name;
    uint16_t id;         /* virtio 1.2, 5 */
    uint32_t class_code; /* PCI class, 24 bits */
    uint32_t config_size;
    /* Device configuration; [offset, offset + size) lies inside config_size, size is 1, 2, 4 or 8.
     * write may be NULL: then nothing is writable. Any vCPU's thread, transport's lock held. */
    void (*config_read)(struct virtio_device *device, uint32_t offset, void *to, unsigned size);
    void (*config_write)(struct virtio_device *device, uint32_t offset, const void *from,
                         unsigned size);
    /* Starts its threads, once, when the vCPUs run already: what they ask for meanwhile waits.
     * NULL: a device without, or whose threads have been there since it was made. */
    int (*begin)(struct virtio_device *device, struct err *err);
    void (*start)(struct virtio_device *device); /* the driver said DRIVER_OK */
    void (*reset)(struct virtio_device *device);
    void (*queue_notified)(struct virtio_device *device, unsigned queue);
    /* An eventfd that does the same as queue_notified(), or -1. May be NULL. */
    int (*notify_fd)(struct virtio_device *device, unsigned queue);
    /* Returns when no chain is popped that has not been pushed, and nothing of the device touches
     * guest memory; nothing more is popped meanwhile. May wait for the host. NULL: a device that
     * cannot be saved. */
    void (*settle)(struct virtio_device *device);
    /* Saves or loads what is the device's own (base/record.h), held; NULL: there is nothing.
     * Loading comes after start(), if the driver was that far. */
    void (*state)(struct virtio_device *device, struct record *record);
    unsigned state_version;
    void (*free)(struct virtio_device *device); /* everything; joins its threads */
};

/* What a transport does for a device; both calls from any thread. */
struct virtio_transport_ops {
    void (*interrupt_queue)(void *opaque, unsigned queue);
    void (*interrupt_config)(void *opaque);
};

struct virtio_device {
    const struct virtio_device_ops *ops;
    struct mem *mem;   /* borrowed */
    uint64_t offered;  /* feature bits */
    uint64_t features; /* negotiated; fixed while live */
    unsigned queue_count;
    struct queue *queues;

    const struct virtio_transport_ops *transport;
    void *transport_opaque;
    _Atomic uint8_t status;
    _Atomic uint8_t config_generation;
    _Atomic bool dma_allowed; /* the transport's bus lets us reach memory */
    _Atomic bool held;        /* virtio_hold() */
};

/* For devices: fills the common part. `features` are the device's own bits. */
int virtio_device_init(struct virtio_device *device, const struct virtio_device_ops *ops,
                       struct mem *mem, uint64_t features, const uint16_t *queue_sizes,
                       unsigned queue_count, struct err *err);
void virtio_device_fini(struct virtio_device *device);

/* As queue_pop(), for a live device: 1 or 0. A driver's fault calls virtio_fail() and is 0. */
int virtio_pop(struct virtio_device *device, unsigned queue, struct queue_chain *ret_chain);
/* The same; with none left the driver has been asked to notify. */
int virtio_pop_or_await(struct virtio_device *device, unsigned queue,
                        struct queue_chain *ret_chain);
void virtio_push(struct virtio_device *device, unsigned queue, const struct queue_chain *chain,
                 uint64_t written);

/* Interrupts the driver if it wants to hear of what was pushed. */
void virtio_notify(struct virtio_device *device, unsigned queue);

/* The device-specific configuration has changed (2.5). */
void virtio_config_changed(struct virtio_device *device);

/* The driver broke the protocol: DEVICE_NEEDS_RESET and a configuration interrupt (2.1.2). No
 * chain is popped any more until the driver has reset the device. */
void virtio_fail(struct virtio_device *device);

/* True while chains may be popped: the device is live, held by nobody and let into memory. */
bool virtio_may_pop(const struct virtio_device *device);

/* The machine runs: see `begin` above. -errno with a phrase. */
int virtio_begin(struct virtio_device *device, struct err *err);

/* While the machine's state is saved or loaded, with its vCPUs stopped: virtio_hold() returns when
 * the device stands still with nothing under way, virtio_release() lets it go on. */
void virtio_hold(struct virtio_device *device);
void virtio_release(struct virtio_device *device);
/* Saves or loads all but what the transport keeps. While it is held. */
void virtio_state(struct virtio_device *device, struct record *record);

/* For transports. */
void virtio_attach(struct virtio_device *device, const struct virtio_transport_ops *ops,
                   void *opaque);
/* The driver's write to the status register: does the transitions of the picture above. */
void virtio_set_status(struct virtio_device *device, uint8_t status);
/* The driver's choice; kept until FEATURES_OK is asked for, which may refuse it. */
void virtio_set_features(struct virtio_device *device, uint64_t features);
void virtio_reset(struct virtio_device *device);
void virtio_queue_notified(struct virtio_device *device, unsigned queue);
