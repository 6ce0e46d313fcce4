/*
 * pci_device.h: what pci.c (the host bridge), pci_device.c and pci_msix.c share. Private to them.
 *
 * Locks, from the outside in: host->moving (the claims of all BARs; never taken inside an access),
 * device->lock (registers, MSI-X, pin), host->lines_lock (who pulls which interrupt line).
 */
#pragma once

#include "bus/pci.h"

#include <pthread.h>
#include <stdatomic.h>

enum { PCI_CONFIG_SIZE = 256 };

struct pci_bar {
    struct pci_device *device;
    unsigned index;
    enum pci_bar_kind kind;
    uint64_t size;
    _Atomic uint64_t address; /* where it is claimed, 0 = nowhere; changed under host->moving */
};

struct pci_msix {
    unsigned vectors; /* 0 = the device has none */
    unsigned bar;
    unsigned capability; /* offset in configuration space */
    uint32_t table_at, pending_at;
    uint8_t *table;   /* 16 bytes a vector, as the guest sees them */
    uint8_t *pending; /* whole 64-bit words */
    void (*changed)(void *opaque, unsigned vector, const struct pci_msix_vector *now);
    void *changed_opaque;
};

struct pci_device {
    struct pci_host *host;
    unsigned slot;
    const struct pci_ops *ops;
    void *opaque;

    pthread_mutex_t lock;
    uint8_t config[PCI_CONFIG_SIZE];
    uint8_t writable[PCI_CONFIG_SIZE]; /* bits that the guest may write */
    uint8_t initial[PCI_CONFIG_SIZE];  /* after reset */
    unsigned config_used;              /* where the next capability goes */
    unsigned last_link;                /* offset of the pointer that the next capability hangs on */
    bool pin_level;
    _Atomic bool bus_master;
    _Atomic bool msix_enabled;

    struct pci_bar bars[PCI_BARS];
    struct pci_msix msix;
};

struct pci_host {
    struct pci_host_config config;
    struct pci_device *devices[PCI_SLOTS]; /* fixed while vCPUs run */
    bool ports_claimed;
    _Atomic uint64_t ecam_base, ecam_size; /* as claimed, size 0 = not; changed under `moving` */

    _Atomic uint32_t address; /* the register at port 0xcf8 */
    _Atomic uint8_t reset_control;

    pthread_mutex_t moving;
    _Atomic bool stale; /* some BAR or COMMAND register may differ from the claims */

    pthread_mutex_t lines_lock;
    uint32_t pulling[PCI_LINES]; /* bit per slot */
};

/* pci_device.c. The guest's accesses: [offset, offset + size) lies inside PCI_CONFIG_SIZE. */
uint32_t pci_device_config_read(struct pci_device *device, unsigned offset, unsigned size);
void pci_device_config_write(struct pci_device *device, unsigned offset, unsigned size,
                             uint32_t value);
/* Where the registers say that the BAR is: 0 = not decoded. */
uint64_t pci_device_bar_wanted(struct pci_device *device, const struct pci_bar *bar);
/* And whether that is decoded or not. */
uint64_t pci_device_bar_register(struct pci_device *device, const struct pci_bar *bar);
void pci_device_reset(struct pci_device *device);
void pci_device_state(struct pci_device *device, struct record *record);
/* Brings the interrupt line to what level, COMMAND and MSI-X say. Under device->lock. */
void pci_device_update_pin(struct pci_device *device);

/* pci.c. Makes the claims follow the registers; no lock held, outside any access. */
void pci_host_move(struct pci_host *host);

/* pci_msix.c, all under device->lock. */
bool pci_msix_holds(const struct pci_msix *msix, unsigned bar, uint64_t offset);
uint64_t pci_msix_read(struct pci_device *device, uint64_t offset, unsigned size);
void pci_msix_write(struct pci_device *device, uint64_t offset, unsigned size, uint64_t value);
void pci_msix_control_written(struct pci_device *device);
void pci_msix_reset(struct pci_device *device);
void pci_msix_state(struct pci_device *device, struct record *record);
