// needs: base mem bus disk nic virtio
/*
 * A whole virtio-net behind its PCI transport, with a driver that begins well and then does what
 * the input says: headers, chains, control commands, registers, rings, resets, while frames of the
 * input's come from the host. The first byte chooses the host's end: one in the test's hands, which
 * takes and gives all offloads, or passt's stream over a socket pair.
 */
#include "base/bytes.h"
#include "input.h"
#include "nic/passt.h"
#include "virtio/net.h"
#include "virtio/pci.h"
#include "virtio/test_driver.h"
#include "virtio/test_nic.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SLOT = 1, STEPS = 256, DATA = 8 << 20, RINGS = 1 << 20, RING = 16, QUEUES = 5 };

#define F_EVERYTHING UINT64_C(0xf7bfab)

struct table {
    struct driver_machine machine;
    struct driver driver;
    struct virtio_net *net;
    struct virtio_pci *transport;
    struct test_nic *nic; /* or NULL, and */
    int host;
    struct input input;
};

static uint64_t next(struct table *t, unsigned bytes)
{
    return input_next(&t->input, bytes);
}

static struct nic *make_nic(struct table *t, bool passt)
{
    struct nic *nic = NULL;
    int pair[2], r = 0;
    if (passt) {
        r = socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair);
        if (r == 0)
            r = nic_passt_new(pair[0], &nic, NULL);
        t->host = pair[1];
    } else {
        t->nic = test_nic_new();
        t->nic->forget = true;
        nic = &t->nic->nic;
        t->host = -1;
    }
    assert(r == 0);
    return nic;
}

static void table_init(struct table *t)
{
    unsigned how = (unsigned)next(t, 1);
    driver_machine_init(&t->machine);
    const struct virtio_net_config config = {.nic = make_nic(t, how & 1),
                                             .mac = {2, 0, 0, 0, 0, 1},
                                             .anti_spoof = how & 2,
                                             .mtu = how & 4 ? 1500 : 0,
                                             .rate_in = how & 8 ? 1 << 16 : 0,
                                             .rate_out = how & 16 ? 1 << 16 : 0};
    int r = virtio_net_new(t->machine.mem, &config, &t->net, NULL);
    if (r >= 0)
        r = virtio_pci_new(t->machine.host, SLOT, virtio_net_device(t->net), &t->transport, NULL);
    assert(r >= 0);
    (void)r;
    driver_machine_place(&t->machine);
    driver_init(&t->driver, &t->machine, SLOT);
}

static void table_fini(struct table *t)
{
    virtio_pci_free(t->transport);
    if (t->host >= 0)
        close(t->host);
    driver_machine_fini(&t->machine);
}

static void bring_up(struct table *t)
{
    uint64_t mask = next(t, 1) & 1 ? next(t, 3) : F_EVERYTHING;
    uint64_t offered = driver_offered(&t->driver);
    driver_negotiate(&t->driver, offered & (mask | VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX |
                                            VIRTIO_F_INDIRECT_DESC));
    driver_msix_on(&t->driver, QUEUES + 1);
    for (unsigned queue = 0; queue < (t->nic ? QUEUES : 3); queue++)
        driver_queue(&t->driver, queue, RING, true);
    driver_live(&t->driver);
}

/* A chain that is in order, with what the input puts into it. */
static void add_chain(struct table *t)
{
    unsigned queue = (unsigned)next(t, 1) % QUEUES;
    unsigned count = (unsigned)next(t, 1) % 3 + 1;
    struct driver_buffer buffers[3];
    uint8_t bytes[24];
    if (!t->nic && queue > 2)
        return;
    for (unsigned i = 0; i < count; i++) {
        uint64_t address = DATA + queue * MIB(1) + i * KIB(256);
        bool write = queue == 0 || queue == 2 ? next(t, 1) & 1 : false;
        buffers[i] = (struct driver_buffer){address, (uint32_t)next(t, 2) + 1, write};
        for (unsigned j = 0; j < sizeof bytes; j++)
            bytes[j] = (uint8_t)next(t, 1);
        mem_write(t->machine.mem, address, bytes, sizeof bytes);
    }
    driver_ring_add(&t->driver.rings[queue], buffers, count);
    driver_kick(&t->driver, queue);
}

static void add_receive_buffer(struct table *t)
{
    const struct driver_buffer buffer = {DATA + MIB(6), (uint32_t)next(t, 2) + 1, true};
    driver_ring_add(&t->driver.rings[0], &buffer, 1);
    driver_kick(&t->driver, 0);
}

static void add_command(struct table *t)
{
    unsigned queue = next(t, 1) & 1 && t->nic ? 4 : 2;
    uint64_t at = DATA + MIB(7);
    uint8_t bytes[64];
    uint32_t size = (uint32_t)next(t, 1) % sizeof bytes + 1;
    for (unsigned i = 0; i < size; i++)
        bytes[i] = (uint8_t)next(t, 1);
    mem_write(t->machine.mem, at, bytes, size);
    const struct driver_buffer buffers[] = {{at, size, false}, {at + 4096, 1, true}};
    driver_ring_add(&t->driver.rings[queue], buffers, 2);
    driver_kick(&t->driver, queue);
}

static void scribble(struct table *t)
{
    uint64_t address = RINGS + next(t, 3) % 0x20000;
    input_scribble(&t->input, t->machine.mem, address);
}

static void host_sends(struct table *t)
{
    static const uint8_t zeros[NIC_FRAME_MAX];
    uint8_t bytes[64];
    unsigned length = (unsigned)next(t, 1) % sizeof bytes;
    for (unsigned i = 0; i < length; i++)
        bytes[i] = (uint8_t)next(t, 1);
    if (t->host >= 0) {
        ssize_t r = send(t->host, bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (next(t, 1) % 4 == 0)
            r = send(t->host, zeros, next(t, 2), MSG_DONTWAIT | MSG_NOSIGNAL);
        if (next(t, 1) % 4 == 0)
            r = recv(t->host, bytes, sizeof bytes, MSG_DONTWAIT);
        (void)r;
    } else {
        const struct nic_offload offload = {(uint8_t)next(t, 1),  (uint8_t)next(t, 1),
                                            (uint16_t)next(t, 2), (uint16_t)next(t, 2),
                                            (uint16_t)next(t, 2), (uint16_t)next(t, 2)};
        size_t whole = NIC_ETHERNET_SIZE + next(t, 2) % (NIC_FRAME_MAX - NIC_ETHERNET_SIZE);
        test_nic_give(t->nic, (unsigned)next(t, 1) % 2, &offload, zeros, whole);
        test_nic_set(t->nic, next(t, 1) % 8 == 1, next(t, 1) % 64 == 1);
    }
}

static void step(struct table *t)
{
    uint64_t bar = t->driver.common & ~UINT64_C(0xfff);
    unsigned width = 1u << next(t, 1) % 4;
    switch (next(t, 1) % 14) {
    case 0: driver_write(&t->driver, bar + next(t, 2) % 0x8000, width, next(t, width)); break;
    case 1: driver_read(&t->driver, bar + next(t, 2) % 0x8000, width); break;
    case 2: driver_write(&t->driver, bar + next(t, 1) % 64, width, next(t, width)); break;
    case 3: virtio_net_set_link(t->net, next(t, 1) & 1); break;
    case 4: virtio_net_announce(t->net); break;
    case 5: scribble(t); break;
    case 6:
    case 7: host_sends(t); break;
    case 8: add_command(t); break;
    case 9:
        if (next(t, 1) % 4 == 0)
            bring_up(t);
        break;
    case 10: driver_kick(&t->driver, (unsigned)next(t, 1)); break;
    case 11: add_receive_buffer(t); break;
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
    struct virtio_net_stats stats;
    virtio_net_stats(t->net, &stats);
    table_fini(t);
    free(t);
    return 0;
}
