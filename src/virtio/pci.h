/*
 * pci.h: the modern virtio transport over PCI (virtio 1.2, 4.1).
 *
 * One memory BAR (0, 64 bits, VIRTIO_PCI_BAR_SIZE) holds, each on pages of its own: the common
 * configuration, ISR status, device configuration, the notification area (4 bytes a queue) and the
 * MSI-X table and pending bits. The PCI configuration access capability reaches the same bytes.
 * MSI-X has one vector for configuration changes and one a queue; without MSI-X, INTA and ISR.
 *
 * virtio_pci_new() takes over the device: virtio_pci_free() frees it, with all vCPUs stopped. On
 * failure the device remains the caller's.
 *
 * Threads: as bus.h and device.h say. Errors: those of bus/pci.h.
 *
 *     struct virtio_device *rng;
 *     struct virtio_pci *transport;
 *     r = virtio_rng_new(mem, &rng, err);
 *     r = virtio_pci_new(host, PCI_SLOT_ANY, rng, &transport, err);
 */
#pragma once

#include "base/err.h"
#include "bus/pci.h"
#include "virtio/device.h"

#include <stdint.h>

enum {
    VIRTIO_PCI_BAR = 0,
    VIRTIO_PCI_BAR_SIZE = 0x8000,
    VIRTIO_PCI_COMMON = 0x0000,
    VIRTIO_PCI_ISR = 0x1000,
    VIRTIO_PCI_DEVICE = 0x2000,
    VIRTIO_PCI_NOTIFY = 0x3000,
    VIRTIO_PCI_MSIX_TABLE = 0x4000,
    VIRTIO_PCI_MSIX_PENDING = 0x5000,
    VIRTIO_PCI_AREA_SIZE = 0x1000, /* of each of the above */
    VIRTIO_PCI_NOTIFY_STRIDE = 4, /* notify_off_multiplier; queue_notify_off is the queue's index */
};

struct virtio_pci;
struct record;

int virtio_pci_new(struct pci_host *host, int slot, struct virtio_device *device,
                   struct virtio_pci **ret_transport, struct err *err);
void virtio_pci_free(struct virtio_pci *transport);

struct pci_device *virtio_pci_device(struct virtio_pci *transport);

/* The guest-physical address whose write notifies `queue` (2 bytes), 0 while the BAR is unmapped:
 * where a board binds the device's notify_fd(). */
uint64_t virtio_pci_notify_address(struct virtio_pci *transport, unsigned queue);

/* Tells when those addresses change (`base` is that of queue 0, or 0), now first. On the vCPU's
 * thread, with the move lock of the host bridge held. */
void virtio_pci_observe_notify(struct virtio_pci *transport,
                               void (*moved)(void *opaque, uint64_t base), void *opaque);

/* Saves or loads (base/record.h) the transport's registers and the device, which is held. */
void virtio_pci_state(struct virtio_pci *transport, struct record *record);
