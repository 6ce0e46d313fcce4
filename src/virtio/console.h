/*
 * console.h: virtio console device (virtio 1.2, 5.3), multiport.
 *
 * A port joins a stream in the guest to a connected stream socket of ours. Port 0 is the console
 * (Linux: /dev/hvc0); the others have names (/dev/virtio-ports/NAME).
 *
 * Flow: nothing is buffered here. What the guest writes stays in its queue until the socket takes
 * it, so a slow reader holds the guest back. What the host writes stays in the socket until the
 * guest has opened the port and given buffers, so nothing written early is lost. Without the
 * MULTIPORT feature the driver has port 0 only, and it counts as open from DRIVER_OK on.
 *
 * Ends: when the other end of the socket is closed, the guest is given what was in it and then
 * PORT_OPEN 0; what it writes to that port after is swallowed. A half-closed socket (shutdown of
 * writing) ends the input and leaves the output open; the guest does not see it. When the guest
 * opens or closes a port, the owner's `guest_opened` is called, on the device's I/O thread with no
 * lock held; a close is told after the bytes before it have gone into the socket. A driver's reset
 * closes all ports.
 *
 * Window size: virtio_console_resize() sends RESIZE to a console port and keeps port 0's size in
 * the configuration (F_SIZE). The message carries rows before columns: that is what Linux has read
 * since 2010, though 5.3.6.2 draws them the other way round.
 *
 * Threads: all functions from any thread. The transport frees the device, which closes the sockets
 * and joins the I/O thread; drain before, and call nothing after.
 *
 * Errors: -EINVAL for a port count or name out of bounds or a descriptor that is no stream socket,
 * -ENOMEM, or why there is no thread. On failure the descriptors remain the caller's.
 */
#pragma once

#include "base/err.h"
#include "mem/mem.h"
#include "virtio/device.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    CONSOLE_PORTS_MAX = 16,
    CONSOLE_NAME_MAX = 63,
};

struct virtio_console;

struct virtio_console_port {
    const char *name; /* NULL for port 0 and nobody else; copied */
    int fd;           /* connected stream socket; -1 on port 0 = no console */
};

struct virtio_console_config {
    const struct virtio_console_port *ports; /* [0] is the console */
    unsigned port_count;                     /* 1..CONSOLE_PORTS_MAX */
    uint16_t cols, rows;                     /* of the console; 0 = not known */
    void (*guest_opened)(void *opaque, unsigned port, bool open); /* may be NULL */
    void *opaque;
};

int virtio_console_new(struct mem *mem, const struct virtio_console_config *config,
                       struct virtio_console **ret_console, struct err *err);

/* For virtio_pci_new(). */
struct virtio_device *virtio_console_device(struct virtio_console *console);

/* Tells the guest the size of the terminal behind `port`. Only port 0 has one; for all others
 * nothing happens. */
void virtio_console_resize(struct virtio_console *console, unsigned port, uint16_t cols,
                           uint16_t rows);

/* With all vCPUs stopped: moves what the guest has written and not yet seen off into the sockets.
 * 0 when all is out, -ETIMEDOUT when a reader did not take it within `timeout_ms`. */
int virtio_console_drain(struct virtio_console *console, int timeout_ms);
