// needs: base mem bus disk nic virtio
/*
 * A whole virtio-console behind its PCI transport, with a driver that begins well and then does
 * what the input says: registers, rings, configuration space, window of the BAR, resets, and a host
 * that writes, reads and closes the other ends meanwhile.
 */
#include "base/bytes.h"
#include "input.h"
#include "virtio/console.h"
#include "virtio/pci.h"
#include "virtio/test_driver.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { PORTS = 3, SLOT = 1, STEPS = 256, DATA = 8 << 20, RINGS = 1 << 20, F_MULTIPORT = 1 << 1 };

#define FEATURES (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | F_MULTIPORT)

struct table {
    struct driver_machine machine;
    struct driver driver;
    struct virtio_console *console;
    struct virtio_pci *transport;
    int host[PORTS];
    struct input input;
};

static uint64_t next(struct table *t, unsigned bytes)
{
    return input_next(&t->input, bytes);
}

static void table_init(struct table *t)
{
    struct virtio_console_port ports[PORTS] = {{NULL, -1}, {"a", -1}, {"b", -1}};
    driver_machine_init(&t->machine);
    for (int i = 0; i < PORTS; i++) {
        int pair[2];
        int r = socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair);
        assert(r == 0);
        (void)r;
        ports[i].fd = pair[0];
        t->host[i] = pair[1];
    }
    const struct virtio_console_config config = {.ports = ports, .port_count = PORTS};
    int r = virtio_console_new(t->machine.mem, &config, &t->console, NULL);
    if (r >= 0)
        r = virtio_pci_new(t->machine.host, SLOT, virtio_console_device(t->console), &t->transport,
                           NULL);
    if (r >= 0)
        r = virtio_begin(virtio_console_device(t->console), NULL);
    assert(r >= 0);
    (void)r;
    driver_machine_place(&t->machine);
    driver_init(&t->driver, &t->machine, SLOT);
}

static void table_fini(struct table *t)
{
    virtio_pci_free(t->transport);
    for (int i = 0; i < PORTS; i++)
        if (t->host[i] >= 0)
            close(t->host[i]);
    driver_machine_fini(&t->machine);
}

static void bring_up(struct table *t)
{
    driver_negotiate(&t->driver, FEATURES);
    driver_msix_on(&t->driver, 9);
    for (unsigned queue = 0; queue < 2 + 2 * PORTS; queue++)
        driver_queue(&t->driver, queue, 16, true);
    driver_live(&t->driver);
}

/* A chain that is in order, with what the input puts into it. */
static void add_chain(struct table *t)
{
    unsigned queue = (unsigned)next(t, 1) % (2 + 2 * PORTS);
    unsigned count = (unsigned)next(t, 1) % 3 + 1;
    struct driver_buffer buffers[3];
    uint8_t bytes[8];
    for (unsigned i = 0; i < count; i++) {
        uint64_t address = DATA + queue * 65536u + i * 4096u;
        buffers[i] = (struct driver_buffer){address, (uint32_t)next(t, 1) + 1, queue % 2 == 0};
        le64_write(bytes, next(t, 8));
        mem_write(t->machine.mem, address, bytes, 8);
    }
    driver_ring_add(&t->driver.rings[queue], buffers, count);
    driver_kick(&t->driver, queue);
}

static void scribble(struct table *t)
{
    uint64_t address = RINGS + next(t, 3) % 0x40000;
    input_scribble(&t->input, t->machine.mem, address);
}

static void host_moves(struct table *t)
{
    unsigned port = (unsigned)next(t, 1) % PORTS;
    uint8_t bytes[512] = {0};
    uint8_t what = (uint8_t)next(t, 1);
    if (t->host[port] < 0)
        return;
    if (what % 8 == 7) {
        close(t->host[port]);
        t->host[port] = -1;
    } else if (what % 8 == 6) {
        shutdown(t->host[port], SHUT_WR);
    } else if (what & 1) {
        ssize_t r = recv(t->host[port], bytes, sizeof bytes, MSG_DONTWAIT);
        (void)r;
    } else {
        ssize_t r = send(t->host[port], bytes, what * 2u, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)r;
    }
}

static void step(struct table *t)
{
    uint64_t bar = t->driver.common & ~UINT64_C(0xfff);
    unsigned width = 1u << next(t, 1) % 4;
    switch (next(t, 1) % 12) {
    case 0: driver_write(&t->driver, bar + next(t, 2) % 0x8000, width, next(t, width)); break;
    case 1: driver_read(&t->driver, bar + next(t, 2) % 0x8000, width); break;
    case 2: driver_write(&t->driver, bar + next(t, 1) % 64, width, next(t, width)); break;
    case 3:
        driver_config_set(&t->driver, (unsigned)next(t, 1), width > 4 ? 4 : width,
                          (uint32_t)next(t, 4));
        break;
    case 4: driver_config(&t->driver, (unsigned)next(t, 1), width > 4 ? 4 : width); break;
    case 5: scribble(t); break;
    case 6: host_moves(t); break;
    case 7: virtio_console_resize(t->console, 0, (uint16_t)next(t, 2), 25); break;
    case 8:
        if (next(t, 1) % 4 == 0)
            bring_up(t);
        break;
    case 9: driver_kick(&t->driver, (unsigned)next(t, 1)); break;
    default: add_chain(t); break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct table *t = calloc(1, sizeof *t);
    t->input = (struct input){data, size};
    table_init(t);
    bring_up(t);
    for (int i = 0; i < STEPS && t->input.left > 0; i++)
        step(t);
    virtio_console_drain(t->console, 0);
    table_fini(t);
    free(t);
    return 0;
}
