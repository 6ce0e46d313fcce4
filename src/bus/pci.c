#include "bus/pci_device.h"

#include "base/bytes.h"
#include "base/record.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

enum {
    PORT_BASE = 0xcf8, /* 4 bytes of address, 4 bytes of data; 0xcf9 is the reset control */
    PORT_COUNT = 8,
    PORT_RESET = 1,
    PORT_DATA = 4,
    RESET_CPU = 1 << 2, /* the reset happens when this bit goes from 0 to 1 */
    RESET_KIND = 1 << 1,
    RESET_FULL = 1 << 3,

    Q35_PCIEXBAR = 0x60, /* 8 bytes of the bridge's registers */
};

#define ADDRESS_ENABLE UINT32_C(0x80000000)

/* The device that answers for this bus, slot and function, or NULL. */
static struct pci_device *device_at(struct pci_host *host, unsigned bus, unsigned slot,
                                    unsigned function)
{
    return bus == 0 && function == 0 ? host->devices[slot % PCI_SLOTS] : NULL;
}

static struct pci_device *device_at_address(struct pci_host *host, uint32_t address)
{
    if (!(address & ADDRESS_ENABLE))
        return NULL;
    return device_at(host, address >> 16 & 0xff, address >> 11 & 31, address >> 8 & 7);
}

static uint64_t port_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pci_host *host = opaque;
    uint32_t address = host->address;
    if (offset == 0 && size == 4)
        return address;
    if (offset == PORT_RESET && size == 1)
        return host->reset_control;
    struct pci_device *device = device_at_address(host, address);
    if (offset < PORT_DATA || !device)
        return UINT64_MAX;
    unsigned in_register = (unsigned)offset - PORT_DATA;
    return pci_device_config_read(device, (address & 0xfc) + in_register, size);
}

static void port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_host *host = opaque;
    if (offset == 0 && size == 4) {
        host->address = (uint32_t)value & (ADDRESS_ENABLE | 0x00fffffc);
        return;
    }
    if (offset == PORT_RESET && size == 1) {
        uint8_t kept = (uint8_t)(value & (RESET_CPU | RESET_KIND | RESET_FULL));
        uint8_t before = atomic_exchange(&host->reset_control, kept);
        if ((kept & RESET_CPU) && !(before & RESET_CPU) && host->config.reset_asked)
            host->config.reset_asked(host->config.reset_opaque);
        return;
    }
    uint32_t address = host->address;
    struct pci_device *device = device_at_address(host, address);
    if (offset >= PORT_DATA && device)
        pci_device_config_write(device, (address & 0xfc) + (unsigned)offset - PORT_DATA, size,
                                (uint32_t)value);
}

/* ECAM: bus, slot, function and register are bits of the offset. Our devices are conventional and
 * have no extended space: past 256 bytes nobody answers. */
static struct pci_device *ecam_find(struct pci_host *host, uint64_t offset, unsigned size)
{
    if (!range_fits(offset & 0xfff, size, PCI_CONFIG_SIZE))
        return NULL;
    return device_at(host, (unsigned)(offset >> 20), offset >> 15 & 31, offset >> 12 & 7);
}

static uint64_t ecam_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pci_device *device = ecam_find(opaque, offset, size);
    if (!device)
        return UINT64_MAX;
    unsigned at = offset & 0xff;
    if (size < 8)
        return pci_device_config_read(device, at, size);
    return pci_device_config_read(device, at, 4) |
           (uint64_t)pci_device_config_read(device, at + 4, 4) << 32;
}

static void ecam_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_device *device = ecam_find(opaque, offset, size);
    if (!device)
        return;
    unsigned at = offset & 0xff;
    pci_device_config_write(device, at, min(size, 4u), (uint32_t)value);
    if (size == 8)
        pci_device_config_write(device, at + 4, 4, (uint32_t)(value >> 32));
}

static void access_ended(void *opaque)
{
    pci_host_move(opaque);
}

static const struct bus_ops port_ops = {
    .name = "pci", .read = port_read, .write = port_write, .written = access_ended};
static const struct bus_ops ecam_ops = {
    .name = "pci-ecam", .read = ecam_read, .write = ecam_write, .written = access_ended};

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct pci_bar *bar = opaque;
    struct pci_device *device = bar->device;
    if (!pci_msix_holds(&device->msix, bar->index, offset))
        return device->ops->bar_read(device->opaque, bar->index, offset, size);
    pthread_mutex_lock(&device->lock);
    uint64_t value = pci_msix_read(device, offset, size);
    pthread_mutex_unlock(&device->lock);
    return value;
}

static void bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    const struct pci_bar *bar = opaque;
    struct pci_device *device = bar->device;
    if (!pci_msix_holds(&device->msix, bar->index, offset)) {
        device->ops->bar_write(device->opaque, bar->index, offset, size, value);
        return;
    }
    pthread_mutex_lock(&device->lock);
    pci_msix_write(device, offset, size, value);
    pthread_mutex_unlock(&device->lock);
}

static const struct bus_ops bar_ops = {.name = "pci-bar", .read = bar_read, .write = bar_write};

static enum bus_space bar_space(const struct pci_bar *bar)
{
    return bar->kind == PCI_BAR_IO ? BUS_PORT : BUS_MMIO;
}

/* PCIEXBAR (Intel 3 Series chipset, 5.1.16): a window of 256, 128 or 64 MiB, aligned to its size.
 */
static uint64_t ecam_wanted(struct pci_host *host, uint64_t *ret_size)
{
    if (!host->config.q35) {
        *ret_size = host->config.ecam_base ? host->config.ecam_size : 0;
        return host->config.ecam_base;
    }
    uint32_t low = pci_config_get(host->devices[0], Q35_PCIEXBAR, 4);
    uint32_t high = pci_config_get(host->devices[0], Q35_PCIEXBAR + 4, 4);
    unsigned length = low >> 1 & 3;
    *ret_size = low & 1 && length < 3 ? MIB(256) >> length : 0;
    return align_down((uint64_t)high << 32 | (low & 0xfc000000), MIB(256) >> length);
}

static void ecam_release(struct pci_host *host)
{
    uint64_t size, base = ecam_wanted(host, &size);
    if (host->ecam_size == 0 || (base == host->ecam_base && size == host->ecam_size))
        return;
    bus_release(host->config.bus, BUS_MMIO, host->ecam_base);
    host->ecam_size = 0;
}

/* Over somebody else's claim it answers nowhere, as a BAR. */
static int ecam_claim(struct pci_host *host, struct err *err)
{
    uint64_t size, base = ecam_wanted(host, &size);
    if (size == 0 || host->ecam_size)
        return 0;
    int r = bus_claim(host->config.bus, BUS_MMIO, base, size, &ecam_ops, host, err);
    if (r < 0)
        return r;
    host->ecam_base = base;
    host->ecam_size = size;
    return 0;
}

/* First everything that moves away, then everything that arrives: BARs may swap places. */
static void move_locked(struct pci_host *host)
{
    ecam_release(host);
    for (unsigned i = 0; i < PCI_SLOTS * PCI_BARS; i++) {
        struct pci_device *device = host->devices[i / PCI_BARS];
        struct pci_bar *bar = device ? &device->bars[i % PCI_BARS] : NULL;
        if (!bar || !bar->address || bar->address == pci_device_bar_wanted(device, bar))
            continue;
        bus_release(host->config.bus, bar_space(bar), bar->address);
        bar->address = 0;
        if (device->ops->bar_moved)
            device->ops->bar_moved(device->opaque, bar->index, 0);
    }
    for (unsigned i = 0; i < PCI_SLOTS * PCI_BARS; i++) {
        struct pci_device *device = host->devices[i / PCI_BARS];
        struct pci_bar *bar = device ? &device->bars[i % PCI_BARS] : NULL;
        if (!bar || !bar->kind || bar->address)
            continue;
        uint64_t wanted = pci_device_bar_wanted(device, bar);
        if (!wanted ||
            bus_claim(host->config.bus, bar_space(bar), wanted, bar->size, &bar_ops, bar, NULL) < 0)
            continue; /* over somebody else's claim: it answers nowhere, as pci.h says */
        bar->address = wanted;
        if (device->ops->bar_moved)
            device->ops->bar_moved(device->opaque, bar->index, wanted);
    }
    ecam_claim(host, NULL);
}

/* A vCPU that finds nothing stale has still waited for the lock, so a move that another vCPU began
 * on its behalf is over when its instruction ends. */
void pci_host_move(struct pci_host *host)
{
    pthread_mutex_lock(&host->moving);
    if (atomic_exchange(&host->stale, false))
        move_locked(host);
    pthread_mutex_unlock(&host->moving);
}

static uint64_t bridge_read(void *opaque, unsigned bar, uint64_t offset, unsigned size)
{
    return UINT64_MAX;
}

static void bridge_write(void *opaque, unsigned bar, uint64_t offset, unsigned size, uint64_t value)
{
}

/* The generic PCI Express host bridge, which guests bind no driver to. */
static const struct pci_identity bridge_identity = {
    .vendor = 0x1b36,
    .device = 0x0008,
    .subsystem_vendor = 0x1af4,
    .subsystem = 0x1100,
    .class_code = 0x060000,
};
static const struct pci_identity q35_identity = {
    .vendor = 0x8086,
    .device = 0x29c0,
    .revision = 2,
    .subsystem_vendor = 0x1af4,
    .subsystem = 0x1100,
    .class_code = 0x060000,
};

static void bridge_config_written(void *opaque, unsigned offset, unsigned size)
{
    struct pci_host *host = opaque;
    if (host->config.q35 && offset < Q35_PCIEXBAR + 8 && offset + size > Q35_PCIEXBAR)
        host->stale = true;
}

static const struct pci_ops bridge_ops = {.name = "host-bridge",
                                          .bar_read = bridge_read,
                                          .bar_write = bridge_write,
                                          .config_written = bridge_config_written};

static int bridge_new(struct pci_host *host, struct err *err)
{
    struct pci_device *bridge;
    bool q35 = host->config.q35;
    int r = pci_device_new(host, 0, q35 ? &q35_identity : &bridge_identity, &bridge_ops, host,
                           &bridge, err);
    if (r >= 0 && q35)
        r = pci_register_add(bridge, Q35_PCIEXBAR, 4, 0, 0xfc000007, err);
    if (r >= 0 && q35)
        r = pci_register_add(bridge, Q35_PCIEXBAR + 4, 4, 0, 0xf, err);
    return r;
}

static int claim_windows(struct pci_host *host, struct err *err)
{
    const struct pci_host_config *config = &host->config;
    int r = bus_claim(config->bus, BUS_PORT, PORT_BASE, PORT_COUNT, &port_ops, host, err);
    if (r < 0)
        return r;
    host->ports_claimed = true;
    if (config->q35 || !config->ecam_base)
        return 0;
    uint64_t size = config->ecam_size;
    if (size < PCI_ECAM_BUS_SIZE || size > MIB(256) || size & (size - 1) ||
        config->ecam_base & (size - 1))
        return err_set(err, -EINVAL, "ECAM window of %" PRIu64 " bytes at 0x%" PRIx64, size,
                       config->ecam_base);
    return ecam_claim(host, err);
}

int pci_host_new(const struct pci_host_config *config, struct pci_host **ret_host, struct err *err)
{
    struct pci_host *host = calloc(1, sizeof *host);
    if (!host)
        return err_set(err, -ENOMEM, "no memory for the PCI host bridge");
    host->config = *config;
    pthread_mutex_init(&host->moving, NULL);
    pthread_mutex_init(&host->lines_lock, NULL);
    int r = bridge_new(host, err);
    if (r >= 0)
        r = claim_windows(host, err);
    if (r < 0) {
        pci_host_free(host);
        return err_prefix(err, r, "PCI host bridge");
    }
    *ret_host = host;
    return 0;
}

void pci_host_free(struct pci_host *host)
{
    if (!host)
        return;
    if (host->ports_claimed)
        bus_release(host->config.bus, BUS_PORT, PORT_BASE);
    if (host->ecam_size)
        bus_release(host->config.bus, BUS_MMIO, host->ecam_base);
    pci_device_free(host->devices[0]);
    pthread_mutex_destroy(&host->moving);
    pthread_mutex_destroy(&host->lines_lock);
    free(host);
}

void pci_host_reset(struct pci_host *host)
{
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++)
        if (host->devices[slot])
            pci_device_reset(host->devices[slot]);
    host->address = 0;
    host->reset_control = 0;
    host->stale = true;
    pci_host_move(host);
}

void pci_host_state(struct pci_host *host, struct record *record)
{
    uint32_t address = host->address;
    uint8_t reset_control = host->reset_control;
    record_u32(record, &address);
    record_u8(record, &reset_control);
    host->address = address & (ADDRESS_ENABLE | 0x00fffffc);
    host->reset_control = reset_control;
    for (unsigned slot = 0; slot < PCI_SLOTS && !record->failed; slot++) {
        record_same(record, host->devices[slot] != NULL, "has other devices");
        if (host->devices[slot] && !record->failed)
            pci_device_state(host->devices[slot], record);
    }
    if (record->loading) {
        host->stale = true;
        pci_host_move(host);
    }
}

bool pci_host_ecam(struct pci_host *host, uint64_t *ret_base, uint64_t *ret_size)
{
    *ret_base = host->ecam_base;
    *ret_size = host->ecam_size;
    return *ret_size > 0;
}

void pci_host_bars(struct pci_host *host, uint64_t from, uint64_t to, uint64_t *ret_base,
                   uint64_t *ret_end)
{
    for (unsigned i = 0; i < PCI_SLOTS * PCI_BARS; i++) {
        struct pci_device *device = host->devices[i / PCI_BARS];
        const struct pci_bar *bar = device ? &device->bars[i % PCI_BARS] : NULL;
        if (!bar || bar->kind == PCI_BAR_NONE || bar->kind == PCI_BAR_IO)
            continue;
        uint64_t address = pci_device_bar_register(device, bar);
        if (address < from || !range_fits(address - from, bar->size, to - from))
            continue;
        *ret_base = min(*ret_base, address);
        *ret_end = max(*ret_end, address + bar->size);
    }
}

static bool place(struct pci_window *window, uint64_t size, uint64_t *ret_address)
{
    uint64_t start = align_up(window->base, size);
    if (start < window->base || !range_fits(start - window->base, size, window->size))
        return false;
    window->size -= start - window->base + size;
    window->base = start + size;
    *ret_address = start;
    return true;
}

static bool place_bar(struct pci_windows *windows, const struct pci_bar *bar, uint64_t *ret_address)
{
    if (bar->kind == PCI_BAR_IO)
        return place(&windows->io, bar->size, ret_address);
    if (bar->kind == PCI_BAR_MMIO64 && place(&windows->mmio64, bar->size, ret_address))
        return true;
    return place(&windows->mmio32, bar->size, ret_address);
}

static void set_bar(struct pci_device *device, const struct pci_bar *bar, uint64_t address)
{
    unsigned offset = PCI_BAR0 + 4 * bar->index;
    pci_device_config_write(device, offset, 4, (uint32_t)address);
    if (bar->kind == PCI_BAR_MMIO64)
        pci_device_config_write(device, offset + 4, 4, (uint32_t)(address >> 32));
}

static int larger_first(const void *a, const void *b)
{
    const struct pci_bar *left = *(struct pci_bar *const *)a;
    const struct pci_bar *right = *(struct pci_bar *const *)b;
    if (left->size != right->size)
        return left->size > right->size ? -1 : 1;
    return left->device->slot > right->device->slot ? 1 : -1;
}

int pci_assign_bars(struct pci_host *host, const struct pci_windows *windows, struct err *err)
{
    struct pci_bar *bars[PCI_SLOTS * PCI_BARS];
    size_t count = 0;
    for (unsigned i = 0; i < PCI_SLOTS * PCI_BARS; i++) {
        struct pci_device *device = host->devices[i / PCI_BARS];
        if (device && device->bars[i % PCI_BARS].kind)
            bars[count++] = &device->bars[i % PCI_BARS];
    }
    qsort(bars, count, sizeof bars[0], larger_first);
    struct pci_windows left = *windows;
    for (size_t i = 0; i < count; i++) {
        struct pci_device *device = bars[i]->device;
        uint64_t address;
        if (!place_bar(&left, bars[i], &address))
            return err_set(err, -ENOSPC, "no room for BAR %u of '%s' (%" PRIu64 " bytes)",
                           bars[i]->index, device->ops->name, bars[i]->size);
        set_bar(device, bars[i], address);
        uint32_t command = pci_config_get(device, PCI_COMMAND, 2);
        /* Each device's mask keeps the enable of a space that it has no BAR in at 0. */
        pci_device_config_write(device, PCI_COMMAND, 2,
                                command | PCI_COMMAND_IO | PCI_COMMAND_MEMORY);
    }
    host->stale = true;
    pci_host_move(host);
    return 0;
}
