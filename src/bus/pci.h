/*
 * pci.h: a PCI host bridge with one bus, and what every PCI device has in common.
 *
 * The guest reaches configuration space through ports 0xcf8/0xcfc (PCI 3.0, 3.2.2.3.2) and through
 * ECAM (PCI Express 5.0, 7.2.2), a window of 1 MiB a bus of which only bus 0 has devices. A device
 * has a type-0 header, up to six BARs, capabilities, one interrupt pin and, if it asks, MSI-X. What
 * lies behind its BARs it serves through `struct pci_ops`.
 *
 * Who owns what: pci_host_free() frees the host bridge only; each device is freed by its owner with
 * pci_device_free(), before the host. Both want all vCPUs stopped. `ops` and `opaque` belong to
 * the owner of the device.
 *
 * BARs: the claims on the bus follow the registers and the COMMAND register's enable bits. They
 * move once the configuration write has let go of the bus, on the writing vCPU's thread and before
 * its instruction ends, one move at a time; whoever moves last moves to what the registers say
 * then. A BAR that the guest puts over somebody else's claim stays unmapped.
 *
 * Threads: set a device up (pci_bar_add() and so on) before the first vCPU runs. pci_msix_fire(),
 * pci_intx_set() and the questions may come from any thread, with the device's own mutex held;
 * they take only locks of this file and then call the interrupt controller. Calls into a device:
 * bar_read/bar_write as in bus.h; config_read/config_written on the vCPU's thread with no lock of
 * this file held; msix observers with the device's PCI lock held, so they must not call back here.
 *
 * Errors: -EINVAL for set-up that breaks a rule of the header, -EEXIST for a taken slot, -ENOSPC
 * where capabilities or windows are full, -ENOMEM.
 *
 *     struct pci_host *host;
 *     r = pci_host_new(&config, &host, err);
 *     ... make the devices ...
 *     r = pci_assign_bars(host, &windows, err);   // what firmware would do; again after a reset
 */
#pragma once

#include "base/err.h"
#include "bus/bus.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PCI_SLOTS = 32,
    PCI_BARS = 6,
    PCI_LINES = 4,
    PCI_SLOT_ANY = -1, /* the first free one from 1 on */
    PCI_MSIX_VECTORS_MAX = 2048,
    PCI_ECAM_BUS_SIZE = 1 << 20,
};

/* Registers of the type-0 header that owners ask about. */
enum pci_register {
    PCI_VENDOR_ID = 0x00,
    PCI_DEVICE_ID = 0x02,
    PCI_COMMAND = 0x04,
    PCI_STATUS = 0x06,
    PCI_REVISION = 0x08,
    PCI_CLASS = 0x09,
    PCI_HEADER_TYPE = 0x0e,
    PCI_BAR0 = 0x10,
    PCI_SUBSYSTEM_VENDOR_ID = 0x2c,
    PCI_SUBSYSTEM_ID = 0x2e,
    PCI_ROM_BASE = 0x30,
    PCI_CAPABILITIES = 0x34,
    PCI_INTERRUPT_LINE = 0x3c,
    PCI_INTERRUPT_PIN = 0x3d,
};

enum pci_command {
    PCI_COMMAND_IO = 1 << 0,
    PCI_COMMAND_MEMORY = 1 << 1,
    PCI_COMMAND_MASTER = 1 << 2,
    PCI_COMMAND_INTX_OFF = 1 << 10,
};

enum { PCI_CAPABILITY_VENDOR = 0x09, PCI_CAPABILITY_MSIX = 0x11 };

struct pci_host;
struct pci_device;

struct pci_host_config {
    struct bus *bus;    /* borrowed */
    uint64_t ecam_base; /* 0 = no ECAM; else aligned to its size */
    uint64_t ecam_size; /* 1 MiB a bus: 1 MiB .. 256 MiB */
    /* The bridge shows itself as an Intel Q35's, for firmware that knows no other; then ECAM is
     * where its PCIEXBAR register puts it, after a reset nowhere, and the two above are 0. */
    bool q35;
    struct msi_target msi;            /* where MSI-X messages go */
    struct irq_line lines[PCI_LINES]; /* INTx: pin P (A = 0) of slot S drives line (S + P) % 4 */
    uint8_t line_numbers[PCI_LINES];  /* what the INTERRUPT_LINE registers say: the lines' GSIs */
    /* Port 0xcf9, the reset control register, is inside 0xcf8..0xcff. Called when the guest asks
     * for a reset through it, on the vCPU's thread inside its access: only take a note. May be
     * NULL. */
    void (*reset_asked)(void *opaque);
    void *reset_opaque;
};

int pci_host_new(const struct pci_host_config *config, struct pci_host **ret_host, struct err *err);
void pci_host_free(struct pci_host *host);

/* All devices as after power-on: BARs, COMMAND, MSI-X, lines low; calls each device's reset(). The
 * board then assigns the BARs again. All vCPUs stopped. */
void pci_host_reset(struct pci_host *host);

/* Where ECAM is now; false while it is nowhere. This and the next may be asked inside an access: a
 * guest that moves things meanwhile has itself to thank for the answer. */
bool pci_host_ecam(struct pci_host *host, uint64_t *ret_base, uint64_t *ret_size);

/* Widens `ret_base`, `ret_end` to all memory BARs that lie from `from` up to `to`, decoded or not.
 */
void pci_host_bars(struct pci_host *host, uint64_t from, uint64_t to, uint64_t *ret_base,
                   uint64_t *ret_end);

/* Saves or loads (base/record.h) the registers of bridge and devices, MSI-X and pins; the devices
 * must be the same. What lies behind the BARs is their owners'. All vCPUs stopped. */
struct record;
void pci_host_state(struct pci_host *host, struct record *record);

/* Address windows that BARs are placed in; a size of 0 is no window. 64-bit BARs that do not fit
 * mmio64 go to mmio32. */
struct pci_window {
    uint64_t base, size;
};
struct pci_windows {
    struct pci_window mmio32, mmio64, io;
};

/* Places all BARs, largest first, and sets the COMMAND register's memory and I/O enables. -ENOSPC
 * names the device that did not fit. */
int pci_assign_bars(struct pci_host *host, const struct pci_windows *windows, struct err *err);

/* A device: bytes of its header that never change. */
struct pci_identity {
    uint16_t vendor, device, subsystem_vendor, subsystem;
    uint8_t revision;
    uint32_t class_code; /* 24 bits: base class, subclass, interface */
    uint8_t pin;         /* 0 = none, 1..4 = INTA..INTD */
};

struct pci_ops {
    const char *name;
    uint64_t (*bar_read)(void *opaque, unsigned bar, uint64_t offset, unsigned size);
    void (*bar_write)(void *opaque, unsigned bar, uint64_t offset, unsigned size, uint64_t value);
    /* The rest may be NULL. Returns true and the value where this read is not plain memory. */
    bool (*config_read)(void *opaque, unsigned offset, unsigned size, uint32_t *ret_value);
    /* After a write that touched [offset, offset + size) of configuration space was stored. */
    void (*config_written)(void *opaque, unsigned offset, unsigned size);
    /* BAR `bar` now answers at `address`, or nowhere (0). */
    void (*bar_moved)(void *opaque, unsigned bar, uint64_t address);
    void (*reset)(void *opaque);
};

/* `slot` 1..31 or PCI_SLOT_ANY; 0 is the host bridge. */
int pci_device_new(struct pci_host *host, int slot, const struct pci_identity *identity,
                   const struct pci_ops *ops, void *opaque, struct pci_device **ret_device,
                   struct err *err);
void pci_device_free(struct pci_device *device);

unsigned pci_device_slot(const struct pci_device *device);

/* BAR `index` of `size` bytes, a power of two (ports: 4..256, memory: 16 bytes..). PCI_BAR_MMIO64
 * takes `index` and `index + 1`. */
enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_IO, PCI_BAR_MMIO32, PCI_BAR_MMIO64 };
int pci_bar_add(struct pci_device *device, unsigned index, enum pci_bar_kind kind, uint64_t size,
                struct err *err);

/* A register of the device's own behind the header, 0x40..: `size` bytes, 1, 2 or 4, with a value
 * after reset and the bits of it that the guest may write. Apart from all capabilities. */
int pci_register_add(struct pci_device *device, unsigned offset, unsigned size, uint32_t value,
                     uint32_t writable, struct err *err);

/* Where the BAR answers now, 0 when it does not. */
uint64_t pci_bar_address(struct pci_device *device, unsigned index);

/* Appends a capability of `size` bytes (with the two of its id and link, which are filled in here).
 * `body` and `writable` (a mask of the bits that the guest may write) are `size` long; `writable`
 * may be NULL. Returns its offset. */
int pci_capability_add(struct pci_device *device, uint8_t id, const void *body,
                       const void *writable, unsigned size, struct err *err);

/* A register as the guest would read it, without asking config_read(). */
uint32_t pci_config_get(struct pci_device *device, unsigned offset, unsigned size);

/* True while the guest lets the device reach memory (COMMAND bit 2). */
bool pci_bus_master(const struct pci_device *device);

/* MSI-X (PCI 3.0, 6.8.2): the table and the pending bits lie in memory BAR `bar` at these offsets
 * (multiples of 8, apart from each other); the owner never sees accesses to them. */
int pci_msix_add(struct pci_device *device, unsigned bar, uint32_t table, uint32_t pending,
                 unsigned vectors, struct err *err);
bool pci_msix_enabled(const struct pci_device *device);

/* Sends vector's message, or remembers it while it is masked. Nothing while MSI-X is off or the
 * device is no bus master. */
void pci_msix_fire(struct pci_device *device, unsigned vector);

/* One vector as the guest has set it; `open` = enabled and masked nowhere. */
struct pci_msix_vector {
    uint64_t address;
    uint32_t data;
    bool open;
};

/* Calls `changed` now for each vector, and later for each that the guest changes: for a board that
 * binds irqfds. NULL ends it. */
void pci_msix_observe(struct pci_device *device,
                      void (*changed)(void *opaque, unsigned vector,
                                      const struct pci_msix_vector *now),
                      void *opaque);

/* Level of the device's interrupt pin. */
void pci_intx_set(struct pci_device *device, bool level);
