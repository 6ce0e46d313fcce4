#include "virtio/console_device.h"

#include "base/record.h"

#include <errno.h>
#include <sys/socket.h>

bool console_port_host_open(const struct console_port *port)
{
    return port->fd >= 0 && !(port->input_ended && port->output_ended);
}

static void tell_if_closed(struct console_port *port)
{
    if (port->guest_ready && !console_port_host_open(port))
        port->pending |= CONSOLE_SAY_OPEN;
}

static void input_ends(struct console_port *port)
{
    port->input_ended = true;
    port->wants_input = false;
    tell_if_closed(port);
}

static void output_ends(struct console_port *port)
{
    port->output_ended = true;
    port->wants_output = false;
    tell_if_closed(port);
}

void console_port_hung_up(struct console_port *port)
{
    port->hung_up = true;
    /* Bytes left in the socket still go to the guest; where there are none, this is the end. */
    uint8_t byte;
    if (!port->input_ended && recv(port->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0)
        port->input_ended = true;
    output_ends(port);
}

enum sending { SENT, SOCKET_FULL, PASS_FULL };

/* Sends the rest of the held chain, at most *budget bytes, which are taken from it. */
static enum sending send_held(struct virtio_console *console, struct console_port *port,
                              uint64_t *budget)
{
    const struct queue_chain *chain = &port->transmit;
    while (port->transmit_done < chain->readable_bytes && port->fd >= 0 && !port->output_ended) {
        if (*budget == 0)
            return PASS_FULL;
        unsigned count =
            queue_chain_readable(chain, port->transmit_done, console->iov, QUEUE_CHAIN_MAX);
        struct msghdr message = {.msg_iov = console->iov,
                                 .msg_iovlen = queue_iov_cut(console->iov, count, *budget)};
        ssize_t sent = sendmsg(port->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent >= 0) {
            port->transmit_done += (uint64_t)sent;
            *budget -= (uint64_t)sent;
        } else if (errno == EAGAIN) {
            return SOCKET_FULL;
        } else if (errno != EINTR) {
            output_ends(port);
        }
    }
    return SENT;
}

static bool hold_next(struct virtio_console *console, struct console_port *port)
{
    if (!virtio_pop_or_await(&console->device, console_transmit_queue(port), &port->transmit))
        return false;
    port->transmit_held = true;
    port->transmit_done = 0;
    return true;
}

bool console_port_transmit(struct virtio_console *console, struct console_port *port)
{
    unsigned queue = console_transmit_queue(port);
    unsigned moved = 0;
    uint64_t budget = CONSOLE_PASS_BYTES;
    enum sending sending = SENT;
    port->wants_output = false;
    while (moved < CONSOLE_BATCH && (port->transmit_held || hold_next(console, port))) {
        sending = send_held(console, port, &budget);
        if (sending == SOCKET_FULL) {
            port->wants_output = true;
            queue_notifications_stop(&console->device.queues[queue]);
        }
        if (sending != SENT)
            break;
        virtio_push(&console->device, queue, &port->transmit, 0);
        port->transmit_held = false;
        moved++;
    }
    if (moved)
        virtio_notify(&console->device, queue);
    return moved == CONSOLE_BATCH || sending == PASS_FULL;
}

/* One recvmsg() into console->chain, which is popped: it is pushed or given back here. True where
 * bytes have come. */
static bool receive_chain(struct virtio_console *console, struct console_port *port)
{
    struct queue *queue = &console->device.queues[console_receive_queue(port)];
    struct queue_chain *chain = &console->chain;
    if (chain->writable_bytes == 0) { /* legal and useless */
        queue_push(queue, chain, 0);
        return true;
    }
    struct msghdr message = {.msg_iov = console->iov};
    message.msg_iovlen = queue_chain_writable(chain, 0, console->iov, QUEUE_CHAIN_MAX);
    ssize_t got;
    do
        got = recvmsg(port->fd, &message, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    if (got > 0) {
        queue_push(queue, chain, (uint64_t)got);
        return true;
    }
    int number = errno;
    queue_unpop(queue);
    if (got < 0 && number == EAGAIN) {
        port->wants_input = true;
        queue_notifications_stop(queue); /* buffers are not what we lack */
        return false;
    }
    input_ends(port); /* end of file, or an error that means the same */
    return false;
}

bool console_port_receive(struct virtio_console *console, struct console_port *port)
{
    unsigned queue = console_receive_queue(port);
    unsigned moved = 0;
    port->wants_input = false;
    /* A closed port's driver would throw the bytes away: they wait in the socket. */
    while (moved < CONSOLE_BATCH && port->fd >= 0 && port->guest_open && !port->input_ended) {
        if (!virtio_pop_or_await(&console->device, queue, &console->chain) ||
            !receive_chain(console, port))
            break;
        moved++;
    }
    if (moved)
        virtio_notify(&console->device, queue);
    return moved == CONSOLE_BATCH;
}

/* 5.3.4: one character, before or instead of any queue; lost where the socket is full. */
void console_port_emergency(struct console_port *port, uint8_t byte)
{
    if (port->fd >= 0 && !port->output_ended)
        send(port->fd, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void console_port_reset(struct console_port *port)
{
    port->guest_ready = port->guest_open = false;
    port->pending = 0;
    port->wants_input = port->wants_output = false;
    port->transmit_held = false;
}

void console_port_state(struct virtio_console *console, struct console_port *port,
                        struct record *record)
{
    struct queue *queue = &console->device.queues[console_transmit_queue(port)];
    record_bytes(record, port->name, sizeof port->name - 1);
    record_bool(record, &port->guest_ready);
    record_bool(record, &port->guest_open);
    record_u32_below(record, &port->pending, CONSOLE_SAY_END);
    record_bool(record, &port->transmit_held);
    record_u64(record, &port->transmit_done);
    if (!record->loading || record->failed)
        return;
    /* The host's end is another one: the driver hears how that is. */
    if (port->guest_ready)
        port->pending |= CONSOLE_SAY_OPEN;
    if (!port->transmit_held)
        return;
    /* It was popped last, so it is the next one again. */
    port->transmit_held = false;
    queue_unpop(queue);
    if (queue_pop(queue, &port->transmit) != 1 ||
        port->transmit_done > port->transmit.readable_bytes) {
        record_fail(record, "has a console that writes what is not there");
        return;
    }
    port->transmit_held = true;
}
