/*
 * The I/O thread sleeps in poll() on its eventfd and on the sockets, and makes one pass at a time
 * over all ports under the mutex. A vCPU that notifies a transmit queue makes that port's part of
 * the pass itself when the mutex is free: Linux writes its console 16 bytes at a time and spins
 * until each is taken, so a change of threads for each would be most of the cost.
 */
#include "virtio/console_device.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/record.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    DEVICE_ID = 3,
    DATA_QUEUE_SIZE = 128,
    CONTROL_QUEUE_SIZE = 64,
};

/* Feature bits, 5.3.3. */
enum { FEATURE_SIZE = 1 << 0, FEATURE_MULTIPORT = 1 << 1, FEATURE_EMERGENCY_WRITE = 1 << 2 };

/* struct virtio_console_config, 5.3.4. */
enum {
    CONFIG_COLS = 0,
    CONFIG_ROWS = 2,
    CONFIG_MAX_PORTS = 4,
    CONFIG_EMERGENCY = 8,
    CONFIG_SIZE = 12,
};

static struct virtio_console *of(struct virtio_device *device)
{
    return (struct virtio_console *)device;
}

/* One pass over everything; true where more waits. Under the mutex. */
static bool serve(struct virtio_console *console)
{
    if (!console->live || console->device.held)
        return false;
    bool more = console_control_receive(console);
    for (unsigned i = 0; i < console->port_count; i++) {
        more |= console_port_transmit(console, &console->ports[i]);
        more |= console_port_receive(console, &console->ports[i]);
    }
    console_control_send(console);
    return more;
}

/* True where the owner is to be told that the guest has opened or closed the port. A close waits
 * until what was written before it has left the queue. */
static bool opening_changed(const struct virtio_console *console, const struct console_port *port)
{
    if (port->guest_open == port->announced_open)
        return false;
    const struct queue *queue = &console->device.queues[console_transmit_queue(port)];
    return port->guest_open || !console->live || !(port->transmit_held || queue_pending(queue));
}

static void announce(struct virtio_console *console)
{
    for (unsigned i = 0; i < console->port_count; i++) {
        struct console_port *port = &console->ports[i];
        pthread_mutex_lock(&console->mutex);
        bool changed = opening_changed(console, port);
        bool open = port->guest_open;
        if (changed)
            port->announced_open = open;
        pthread_mutex_unlock(&console->mutex);
        if (changed && console->guest_opened)
            console->guest_opened(console->opaque, i, open);
    }
}

/* Entry i + 1 belongs to port i; -1 is skipped by poll(). Under the mutex. */
static void fill_poll(const struct virtio_console *console, struct pollfd *fds)
{
    fds[0] = (struct pollfd){.fd = console->worker.wake_fd, .events = POLLIN};
    for (unsigned i = 0; i < console->port_count; i++) {
        const struct console_port *port = &console->ports[i];
        int events = (port->wants_input ? POLLIN : 0) | (port->wants_output ? POLLOUT : 0);
        if (console->device.held) /* nobody would take it, and poll() say so for ever */
            events = 0;
        fds[i + 1] = (struct pollfd){.fd = port->hung_up ? -1 : port->fd, .events = (short)events};
    }
}

static void run(void *opaque)
{
    struct virtio_console *console = opaque;
    struct pollfd fds[1 + CONSOLE_PORTS_MAX];
    bool more = false;
    while (!worker_stopping(&console->worker)) {
        pthread_mutex_lock(&console->mutex);
        fill_poll(console, fds);
        pthread_mutex_unlock(&console->mutex);
        if (poll(fds, 1 + console->port_count, more ? 0 : -1) < 0)
            continue; /* EINTR: nothing else can fail here */
        worker_drained(&console->worker);
        pthread_mutex_lock(&console->mutex);
        for (unsigned i = 0; i < console->port_count; i++)
            if (fds[i + 1].revents & (POLLHUP | POLLERR | POLLNVAL))
                console_port_hung_up(&console->ports[i]);
        more = serve(console);
        pthread_mutex_unlock(&console->mutex);
        announce(console);
    }
}

/* Device operations. */

static void console_config_read(struct virtio_device *device, uint32_t offset, void *to,
                                unsigned size)
{
    struct virtio_console *console = of(device);
    uint8_t config[CONFIG_SIZE] = {0};
    pthread_mutex_lock(&console->mutex);
    le16_write(config + CONFIG_COLS, console->cols);
    le16_write(config + CONFIG_ROWS, console->rows);
    pthread_mutex_unlock(&console->mutex);
    le32_write(config + CONFIG_MAX_PORTS, console->port_count);
    memcpy(to, config + offset, size);
}

static void console_config_write(struct virtio_device *device, uint32_t offset, const void *from,
                                 unsigned size)
{
    struct virtio_console *console = of(device);
    if (offset != CONFIG_EMERGENCY)
        return;
    pthread_mutex_lock(&console->mutex);
    console_port_emergency(&console->ports[0], *(const uint8_t *)from);
    pthread_mutex_unlock(&console->mutex);
}

static void console_start(struct virtio_device *device)
{
    struct virtio_console *console = of(device);
    pthread_mutex_lock(&console->mutex);
    console->live = true;
    console->multiport = device->features & FEATURE_MULTIPORT;
    if (!console->multiport && console->ports[0].fd >= 0)
        console->ports[0].guest_ready = console->ports[0].guest_open = true;
    pthread_mutex_unlock(&console->mutex);
    worker_wake(&console->worker);
}

static void console_reset(struct virtio_device *device)
{
    struct virtio_console *console = of(device);
    pthread_mutex_lock(&console->mutex);
    console->live = console->multiport = false;
    for (unsigned i = 0; i < console->port_count; i++)
        console_port_reset(&console->ports[i]);
    pthread_mutex_unlock(&console->mutex);
    worker_wake(&console->worker);
}

/* The port that transmits through this queue, or NULL. */
static struct console_port *transmitter(struct virtio_console *console, unsigned queue)
{
    unsigned index = queue == 1 ? 0 : queue >= 5 && queue % 2 ? queue / 2 - 1 : UINT32_MAX;
    return index < console->port_count ? &console->ports[index] : NULL;
}

static void console_queue_notified(struct virtio_device *device, unsigned queue)
{
    struct virtio_console *console = of(device);
    struct console_port *port = transmitter(console, queue);
    bool wake = true;
    if (port && pthread_mutex_trylock(&console->mutex) == 0) {
        if (console->live && !device->held)
            wake = console_port_transmit(console, port) || port->wants_output || port->pending ||
                   opening_changed(console, port);
        pthread_mutex_unlock(&console->mutex);
    }
    if (wake)
        worker_wake(&console->worker);
}

static int console_notify_fd(struct virtio_device *device, unsigned queue)
{
    return of(device)->worker.wake_fd;
}

static int console_begin(struct virtio_device *device, struct err *err)
{
    return worker_begin(&of(device)->worker, err);
}

static void console_settle(struct virtio_device *device)
{
    /* A pass is over when the mutex is free. What is held then waits for the host's socket, and is
     * part of the state. */
    pthread_mutex_lock(&of(device)->mutex);
    pthread_mutex_unlock(&of(device)->mutex);
}

static void console_state(struct virtio_device *device, struct record *record)
{
    struct virtio_console *console = of(device);
    pthread_mutex_lock(&console->mutex);
    record_same(record, console->port_count, "has another number of console ports");
    for (unsigned i = 0; i < console->port_count && !record->failed; i++)
        console_port_state(console, &console->ports[i], record);
    pthread_mutex_unlock(&console->mutex);
}

static void console_free(struct virtio_device *device)
{
    struct virtio_console *console = of(device);
    worker_stop(&console->worker);
    for (unsigned i = 0; i < console->port_count; i++)
        if (console->ports[i].fd >= 0)
            close(console->ports[i].fd);
    free(console->ports);
    pthread_mutex_destroy(&console->mutex);
    virtio_device_fini(device);
    free(console);
}

static const struct virtio_device_ops console_ops = {
    .name = "virtio-console",
    .id = DEVICE_ID,
    .class_code = 0x078000, /* communication controller, other */
    .config_size = CONFIG_SIZE,
    .config_read = console_config_read,
    .config_write = console_config_write,
    .begin = console_begin,
    .start = console_start,
    .reset = console_reset,
    .queue_notified = console_queue_notified,
    .notify_fd = console_notify_fd,
    .settle = console_settle,
    .state = console_state,
    .state_version = 1,
    .free = console_free,
};

/* Making one. */

static int check_port(const struct virtio_console_port *port, unsigned index, struct err *err)
{
    const char *label = index ? port->name : "console";
    if (index > 0 && (!port->name || !port->name[0] || strlen(port->name) > CONSOLE_NAME_MAX))
        return err_set(err, -EINVAL, "virtio port %u wants a name of 1 to %d bytes", index,
                       CONSOLE_NAME_MAX);
    if (index == 0 && port->name)
        return err_set(err, -EINVAL, "virtio port 0 is the console and has no name, not '%s'",
                       port->name);
    if (index == 0 && port->fd < 0)
        return 0;
    int type = 0;
    socklen_t length = sizeof type;
    if (getsockopt(port->fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0)
        return err_errno(err, errno, "virtio port '%s', descriptor %d", label, port->fd);
    if (type != SOCK_STREAM)
        return err_set(err, -EINVAL, "virtio port '%s' wants a stream socket", label);
    return 0;
}

static int make_queues(struct virtio_console *console, struct mem *mem, struct err *err)
{
    uint16_t sizes[2 + 2 * CONSOLE_PORTS_MAX];
    unsigned count = 2 + 2 * console->port_count;
    for (unsigned i = 0; i < count; i++)
        sizes[i] = i == CONSOLE_CONTROL_RX || i == CONSOLE_CONTROL_TX ? CONTROL_QUEUE_SIZE
                                                                      : DATA_QUEUE_SIZE;
    uint64_t features = FEATURE_SIZE | FEATURE_MULTIPORT | FEATURE_EMERGENCY_WRITE;
    return virtio_device_init(&console->device, &console_ops, mem, features, sizes, count, err);
}

static void give_back(struct virtio_console *console)
{
    for (unsigned i = 0; console->ports && i < console->port_count; i++)
        console->ports[i].fd = -1;
    if (!console->ports)
        console->port_count = 0;
    console_free(&console->device);
}

int virtio_console_new(struct mem *mem, const struct virtio_console_config *config,
                       struct virtio_console **ret_console, struct err *err)
{
    if (config->port_count < 1 || config->port_count > CONSOLE_PORTS_MAX)
        return err_set(err, -EINVAL, "a console device has 1 to %d ports, not %u",
                       CONSOLE_PORTS_MAX, config->port_count);
    for (unsigned i = 0; i < config->port_count; i++) {
        int r = check_port(&config->ports[i], i, err);
        if (r < 0)
            return r;
    }
    struct virtio_console *console = calloc(1, sizeof *console);
    if (!console)
        return err_set(err, -ENOMEM, "no memory for virtio-console");
    pthread_mutex_init(&console->mutex, NULL);
    console->guest_opened = config->guest_opened;
    console->opaque = config->opaque;
    console->cols = config->cols;
    console->rows = config->rows;
    console->port_count = config->port_count;
    console->ports = calloc(config->port_count, sizeof *console->ports);
    int r = console->ports ? make_queues(console, mem, err)
                           : err_set(err, -ENOMEM, "no memory for virtio-console");
    for (unsigned i = 0; r >= 0 && i < config->port_count; i++) {
        struct console_port *port = &console->ports[i];
        port->index = i;
        port->fd = config->ports[i].fd;
        if (config->ports[i].name)
            strcpy(port->name, config->ports[i].name); /* check_port() measured it */
    }
    if (r >= 0)
        r = worker_init(&console->worker, "virtio-console", run, console, err);
    if (r < 0) {
        give_back(console);
        return r;
    }
    *ret_console = console;
    return 0;
}

struct virtio_device *virtio_console_device(struct virtio_console *console)
{
    return &console->device;
}

void virtio_console_resize(struct virtio_console *console, unsigned port, uint16_t cols,
                           uint16_t rows)
{
    if (port != 0)
        return;
    pthread_mutex_lock(&console->mutex);
    console->cols = cols;
    console->rows = rows;
    if (console->ports[0].guest_ready && console->multiport)
        console->ports[0].pending |= CONSOLE_SAY_RESIZE;
    pthread_mutex_unlock(&console->mutex);
    virtio_config_changed(&console->device);
    worker_wake(&console->worker);
}

/* One pass of all ports; returns how many have more to say, in `fds`. */
static unsigned drain_once(struct virtio_console *console, struct pollfd *fds)
{
    unsigned waiting = 0;
    pthread_mutex_lock(&console->mutex);
    bool serves = console->live && !console->device.held;
    for (unsigned i = 0; serves && i < console->port_count; i++) {
        struct console_port *port = &console->ports[i];
        bool more = console_port_transmit(console, port);
        if (more || port->transmit_held)
            fds[waiting++] = (struct pollfd){.fd = port->fd, .events = POLLOUT};
    }
    pthread_mutex_unlock(&console->mutex);
    return waiting;
}

int virtio_console_drain(struct virtio_console *console, int timeout_ms)
{
    struct pollfd fds[CONSOLE_PORTS_MAX];
    int64_t deadline = clock_ms() + timeout_ms;
    for (;;) {
        unsigned waiting = drain_once(console, fds);
        if (waiting == 0)
            return 0;
        int64_t left = deadline - clock_ms();
        if (left <= 0)
            return -ETIMEDOUT;
        poll(fds, waiting, (int)left);
    }
}
