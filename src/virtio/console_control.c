#include "virtio/console_device.h"

#include "base/bytes.h"

#include <assert.h>

/* struct virtio_console_control, 5.3.6.2: id 4, event 2, value 2. */
enum { CONTROL_SIZE = 8, CONTROL_EVENT = 4, CONTROL_VALUE = 6 };

enum control_event {
    DEVICE_READY = 0, /* driver to device */
    PORT_ADD = 1,
    PORT_READY = 3, /* driver to device */
    CONSOLE_PORT = 4,
    RESIZE = 5,
    PORT_OPEN = 6, /* both ways */
    PORT_NAME = 7,
};

static void handle(struct virtio_console *console, const uint8_t *message)
{
    uint32_t id = le32_read(message);
    uint16_t event = le16_read(message + CONTROL_EVENT);
    uint16_t value = le16_read(message + CONTROL_VALUE);
    if (event == DEVICE_READY) {
        for (unsigned i = 0; value == 1 && i < console->port_count; i++)
            if (console->ports[i].fd >= 0)
                console->ports[i].pending |= CONSOLE_SAY_ADD;
        return;
    }
    if (id >= console->port_count || console->ports[id].fd < 0)
        return;
    struct console_port *port = &console->ports[id];
    if (event == PORT_OPEN)
        port->guest_open = value != 0;
    if (event != PORT_READY)
        return;
    port->guest_ready = value == 1;
    if (!port->guest_ready)
        return;
    if (port->name[0])
        port->pending |= CONSOLE_SAY_NAME;
    else
        port->pending |= CONSOLE_SAY_CONSOLE;
    if (port->index == 0 && console->cols && console->rows)
        port->pending |= CONSOLE_SAY_RESIZE;
    if (console_port_host_open(port))
        port->pending |= CONSOLE_SAY_OPEN;
}

bool console_control_receive(struct virtio_console *console)
{
    struct virtio_device *device = &console->device;
    unsigned handled = 0;
    while (console->multiport && handled < CONSOLE_BATCH &&
           virtio_pop(device, CONSOLE_CONTROL_TX, &console->chain)) {
        uint8_t message[CONTROL_SIZE];
        bool whole =
            queue_chain_read(&console->chain, 0, message, sizeof message) == sizeof message;
        virtio_push(device, CONSOLE_CONTROL_TX, &console->chain, 0);
        if (whole)
            handle(console, message);
        handled++;
    }
    if (handled)
        virtio_notify(device, CONSOLE_CONTROL_TX);
    return handled == CONSOLE_BATCH;
}

/* The message for one bit of `pending`; returns its length. */
static size_t compose(const struct virtio_console *console, const struct console_port *port,
                      unsigned what, uint8_t message[CONTROL_SIZE + CONSOLE_NAME_MAX + 1])
{
    enum control_event event = PORT_ADD;
    uint16_t value = 1;
    size_t size = CONTROL_SIZE;
    switch (what) {
    case CONSOLE_SAY_ADD: event = PORT_ADD; break;
    case CONSOLE_SAY_CONSOLE: event = CONSOLE_PORT; break;
    case CONSOLE_SAY_OPEN:
        event = PORT_OPEN;
        value = console_port_host_open(port);
        break;
    case CONSOLE_SAY_RESIZE:
        event = RESIZE;
        le16_write(message + size, console->rows); /* rows first: see console.h */
        le16_write(message + size + 2, console->cols);
        size += 4;
        break;
    case CONSOLE_SAY_NAME:
        event = PORT_NAME;
        memcpy(message + size, port->name, strlen(port->name)); /* not ended by 0 (5.3.6.2) */
        size += strlen(port->name);
        break;
    default: assert(!"no such message");
    }
    le32_write(message, port->index);
    le16_write(message + CONTROL_EVENT, (uint16_t)event);
    le16_write(message + CONTROL_VALUE, value);
    return size;
}

/* False where the driver has given no buffer. */
static bool say(struct virtio_console *console, struct console_port *port, unsigned what)
{
    struct virtio_device *device = &console->device;
    if (!virtio_pop(device, CONSOLE_CONTROL_RX, &console->chain))
        return false;
    uint8_t message[CONTROL_SIZE + CONSOLE_NAME_MAX + 1];
    size_t size = compose(console, port, what, message);
    size_t written = queue_chain_write(&console->chain, 0, message, size);
    virtio_push(device, CONSOLE_CONTROL_RX, &console->chain, written);
    port->pending &= ~what;
    return true;
}

void console_control_send(struct virtio_console *console)
{
    bool room = console->multiport;
    bool said = false;
    for (unsigned i = 0; room && i < console->port_count; i++) {
        struct console_port *port = &console->ports[i];
        for (unsigned what = 1; room && what < CONSOLE_SAY_END; what <<= 1)
            if (port->pending & what) {
                room = say(console, port, what);
                said |= room;
            }
    }
    if (said)
        virtio_notify(&console->device, CONSOLE_CONTROL_RX);
}
