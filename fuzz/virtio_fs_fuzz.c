// needs: base mem bus disk nic virtio
/*
 * A whole virtio-fs behind its PCI transport, with a driver that begins well and then does what the
 * input says, and a server at the other end of the stream that answers, lies, or leaves.
 */
#include "base/bytes.h"
#include "input.h"
#include "virtio/fs.h"
#include "virtio/pci.h"
#include "virtio/test_driver.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SLOT = 1, QUEUES = 2, STEPS = 128, DATA = 8 << 20, RINGS = 1 << 20 };

#define FEATURES (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)

struct table {
    struct driver_machine machine;
    struct driver driver;
    struct virtio_pci *transport;
    int server;
    struct input input;
};

static uint64_t next(struct table *t, unsigned bytes)
{
    return input_next(&t->input, bytes);
}

static void table_init(struct table *t)
{
    struct virtio_device *device;
    int pair[2];
    int r = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);
    assert(r == 0);
    t->server = pair[1];
    driver_machine_init(&t->machine);
    const struct virtio_fs_config config = {.tag = "fuzz", .fd = pair[0]};
    r = virtio_fs_new(t->machine.mem, &config, &device, NULL);
    if (r >= 0)
        r = virtio_pci_new(t->machine.host, SLOT, device, &t->transport, NULL);
    assert(r >= 0);
    (void)r;
    driver_machine_place(&t->machine);
    driver_init(&t->driver, &t->machine, SLOT);
}

static void bring_up(struct table *t)
{
    driver_negotiate(&t->driver, FEATURES);
    driver_msix_on(&t->driver, QUEUES + 1);
    for (unsigned queue = 0; queue < QUEUES; queue++)
        driver_queue(&t->driver, queue, 16, true);
    driver_live(&t->driver);
}

/* A request as drivers make them, but for what the input changes of it. */
static void add_request(struct table *t)
{
    static const uint8_t opcodes[] = {1, 2, 3, 15, 16, 26, 36, 42};
    unsigned queue = (unsigned)next(t, 1) % QUEUES, how = (unsigned)next(t, 1);
    uint64_t at = DATA + queue * 0x100000u;
    uint32_t size = 40 + (uint32_t)next(t, how & 1 ? 2 : 1), cut = 1 + (uint32_t)next(t, 1) % 39;
    uint8_t header[16];
    le32_write(header, how & 2 ? (uint32_t)next(t, 4) : size);
    le32_write(header + 4, opcodes[next(t, 1) % sizeof opcodes]);
    le64_write(header + 8, next(t, 1));
    mem_write(t->machine.mem, at, header, sizeof header);
    struct driver_buffer buffers[] = {
        {at, cut, false},
        {at + cut, size - cut, how & 4 && how & 8},
        {at + 0x80000, 1 + (uint32_t)next(t, how & 16 ? 1 : 2), true}};
    driver_ring_add(&t->driver.rings[queue], buffers, how & 32 ? 2 : 3);
    driver_kick(&t->driver, queue);
}

static void server_moves(struct table *t)
{
    uint8_t bytes[4096] = {0}, what = (uint8_t)next(t, 1);
    if (t->server < 0)
        return;
    ssize_t got = recv(t->server, bytes, sizeof bytes, MSG_DONTWAIT);
    if (what % 32 == 0) {
        close(t->server);
        t->server = -1;
        return;
    }
    /* Mostly a reply to the first of what was read, so that the stream goes on. */
    uint32_t size = 16 + (uint32_t)next(t, 1);
    le64_write(bytes + 8, what % 16 == 1 || got < 16 ? next(t, 1) : le64_read(bytes + 8));
    le32_write(bytes, what % 16 == 2 ? (uint32_t)next(t, 4) : size);
    ssize_t sent = send(t->server, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)sent;
}

static void scribble(struct table *t)
{
    uint64_t address = RINGS + next(t, 3) % 0x40000;
    input_scribble(&t->input, t->machine.mem, address);
}

static void step(struct table *t)
{
    uint32_t head, length;
    switch (next(t, 1) % 8) {
    case 0:
    case 1: add_request(t); break;
    case 2:
    case 3: server_moves(t); break;
    case 4: scribble(t); break;
    case 5:
        for (unsigned queue = 0; queue < QUEUES; queue++)
            while (driver_ring_take(&t->driver.rings[queue], &head, &length))
                ;
        break;
    case 6:
        driver_write(&t->driver, t->driver.common + next(t, 1) % 64, 1u << next(t, 1) % 3,
                     next(t, 4));
        break;
    default:
        driver_read(&t->driver, t->driver.device + next(t, 1) % 64, 1u << next(t, 1) % 4);
        if (next(t, 1) % 8 == 0)
            bring_up(t);
        break;
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
    virtio_pci_free(t->transport);
    if (t->server >= 0)
        close(t->server);
    driver_machine_fini(&t->machine);
    free(t);
    return 0;
}
