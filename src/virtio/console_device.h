/*
 * console_device.h: what console.c (life, I/O thread), console_port.c (bytes) and
 * console_control.c (the control queues) share. Private to them.
 *
 * Everything is under console->mutex but for what console.c says. A port's states:
 *
 *   guest:  unknown -> added -> ready (PORT_READY) -> open (PORT_OPEN 1) <-> closed
 *   host:   input_ended (end of file read) and output_ended (what the guest writes is swallowed)
 *           come in either order; both = closed, and the guest is told PORT_OPEN 0
 *
 * What the control queue still has to say is a set of bits a port, not a list of messages, so no
 * driver can make it grow.
 */
#pragma once

#include "virtio/console.h"
#include "virtio/worker.h"

#include <pthread.h>

enum {
    CONSOLE_CONTROL_RX = 2, /* device to driver */
    CONSOLE_CONTROL_TX = 3,
    CONSOLE_BATCH = 64, /* chains of one queue in one pass */
    /* Bytes of one queue in one pass. Descriptors may name the same memory again and again, so a
     * chain of a small guest can be a terabyte; a vCPU or a reset would wait for all of it. */
    CONSOLE_PASS_BYTES = 1 << 20,
};

/* Sent in this order. */
enum console_pending {
    CONSOLE_SAY_ADD = 1 << 0,
    CONSOLE_SAY_CONSOLE = 1 << 1,
    CONSOLE_SAY_RESIZE = 1 << 2,
    CONSOLE_SAY_NAME = 1 << 3,
    CONSOLE_SAY_OPEN = 1 << 4,
    CONSOLE_SAY_END = 1 << 5,
};

struct console_port {
    unsigned index;
    char name[CONSOLE_NAME_MAX + 1];
    int fd; /* -1 = there is no such port */

    bool guest_ready, guest_open;
    bool announced_open; /* what the owner was told last */
    unsigned pending;    /* enum console_pending */

    bool input_ended, output_ended;
    bool hung_up;      /* poll() has said that the other end is closed; it would say so for ever */
    bool wants_input;  /* buffers wait for the socket to have bytes */
    bool wants_output; /* a chain waits for the socket to have room */

    bool transmit_held; /* `transmit` is popped and not yet pushed */
    uint64_t transmit_done;
    struct queue_chain transmit;
};

struct virtio_console {
    struct virtio_device device; /* first: ops get this pointer */
    struct worker worker;
    void (*guest_opened)(void *opaque, unsigned port, bool open);
    void *opaque;

    pthread_mutex_t mutex;
    bool live, multiport;
    uint16_t cols, rows;
    unsigned port_count;
    struct console_port *ports;
    struct queue_chain chain; /* scratch for chains that do not outlive a call */
    struct iovec iov[QUEUE_CHAIN_MAX];
};

static inline unsigned console_receive_queue(const struct console_port *port)
{
    return port->index == 0 ? 0 : 2 + 2 * port->index;
}

static inline unsigned console_transmit_queue(const struct console_port *port)
{
    return console_receive_queue(port) + 1;
}

/* console_port.c. Each moves at most CONSOLE_BATCH chains and returns true where more may go. */
bool console_port_transmit(struct virtio_console *console, struct console_port *port);
bool console_port_receive(struct virtio_console *console, struct console_port *port);
void console_port_hung_up(struct console_port *port);
bool console_port_host_open(const struct console_port *port);
void console_port_emergency(struct console_port *port, uint8_t byte);
void console_port_reset(struct console_port *port);
struct record;
void console_port_state(struct virtio_console *console, struct console_port *port,
                        struct record *record);

/* console_control.c. */
bool console_control_receive(struct virtio_console *console);
void console_control_send(struct virtio_console *console);
