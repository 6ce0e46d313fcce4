#include "virtio/test_driver.h"

#include "base/bytes.h"

#include <assert.h>

enum {
    COMMON_DEVICE_SELECT = 0,
    COMMON_DEVICE_FEATURE = 4,
    COMMON_DRIVER_SELECT = 8,
    COMMON_DRIVER_FEATURE = 12,
    COMMON_CONFIG_VECTOR = 16,
    COMMON_STATUS = 20,
    COMMON_QUEUE_SELECT = 22,
    COMMON_QUEUE_SIZE = 24,
    COMMON_QUEUE_VECTOR = 26,
    COMMON_QUEUE_ENABLE = 28,
    COMMON_QUEUE_NOTIFY_OFF = 30,
    COMMON_QUEUE_DESC = 32,
};

/* The rings. Guest memory is written here as a guest's CPU would: through the pointer. */

static uint8_t *guest(struct mem *mem, uint64_t address, uint64_t size)
{
    uint8_t *host = mem_at_load(mem, address, size);
    assert(host);
    return host;
}

static void store16(struct mem *mem, uint64_t address, uint16_t value)
{
    uint16_t *at = (uint16_t *)(void *)guest(mem, address, 2);
    __atomic_store_n(at, htole16(value), __ATOMIC_SEQ_CST);
}

static uint16_t load16(struct mem *mem, uint64_t address)
{
    const uint16_t *at = (const uint16_t *)(const void *)guest(mem, address, 2);
    return le16toh(__atomic_load_n(at, __ATOMIC_SEQ_CST));
}

static uint64_t page(uint64_t size)
{
    return align_up(size, MEM_PAGE_SIZE);
}

uint64_t driver_ring_bytes(uint16_t size)
{
    return page(16u * size) + page(6 + 2u * size) + page(6 + 8u * size);
}

void driver_ring_init(struct driver_ring *ring, struct mem *mem, uint64_t base, uint16_t size)
{
    *ring = (struct driver_ring){.mem = mem, .size = size, .descriptors = base};
    ring->available = base + page(16u * size);
    ring->used = ring->available + page(6 + 2u * size);
    memset(guest(mem, base, driver_ring_bytes(size)), 0, driver_ring_bytes(size));
    for (uint16_t i = 0; i < size; i++)
        ring->free[ring->free_count++] = (uint16_t)(size - 1 - i);
}

void driver_ring_descriptor(struct driver_ring *ring, unsigned index, uint64_t address,
                            uint32_t length, uint16_t flags, uint16_t next)
{
    uint8_t *at = guest(ring->mem, ring->descriptors + index * 16u, 16);
    le64_write(at, address);
    le32_write(at + 8, length);
    le16_write(at + 12, flags);
    le16_write(at + 14, next);
}

void driver_ring_offer(struct driver_ring *ring, uint16_t head)
{
    unsigned slot = ring->available_index % ring->size;
    store16(ring->mem, ring->available + 4 + 2 * slot, head);
    ring->available_index++;
    store16(ring->mem, ring->available + 2, ring->available_index);
}

int driver_ring_add(struct driver_ring *ring, const struct driver_buffer *buffers, unsigned count)
{
    if (ring->free_count < count)
        return -1;
    uint16_t head = ring->free[ring->free_count - 1];
    for (unsigned i = 0; i < count; i++) {
        uint16_t index = ring->free[--ring->free_count];
        bool last = i + 1 == count;
        uint16_t next = last ? 0 : ring->free[ring->free_count - 1];
        uint16_t flags = (uint16_t)((last ? 0 : 1) | (buffers[i].write ? 2 : 0));
        ring->chain_next[index] = next;
        driver_ring_descriptor(ring, index, buffers[i].address, buffers[i].length, flags, next);
    }
    ring->chain_length[head] = (uint16_t)count;
    driver_ring_offer(ring, head);
    return head;
}

bool driver_ring_take(struct driver_ring *ring, uint32_t *ret_head, uint32_t *ret_length)
{
    if (load16(ring->mem, ring->used + 2) == ring->used_index)
        return false;
    const uint8_t *at = guest(ring->mem, ring->used + 4 + 8u * (ring->used_index % ring->size), 8);
    *ret_head = le32_read(at);
    *ret_length = le32_read(at + 4);
    ring->used_index++;
    uint16_t index = (uint16_t)*ret_head;
    for (unsigned i = 0; i < ring->chain_length[*ret_head]; i++) {
        ring->free[ring->free_count++] = index;
        index = ring->chain_next[index];
    }
    return true;
}

void driver_ring_used_event(struct driver_ring *ring, uint16_t index)
{
    store16(ring->mem, ring->available + 4 + 2u * ring->size, index);
}

uint16_t driver_ring_available_event(struct driver_ring *ring)
{
    return load16(ring->mem, ring->used + 4 + 8u * ring->size);
}

uint16_t driver_ring_used_flags(struct driver_ring *ring)
{
    return load16(ring->mem, ring->used);
}

void driver_ring_available_flags(struct driver_ring *ring, uint16_t flags)
{
    store16(ring->mem, ring->available, flags);
}

/* The machine. */

static void count_message(void *opaque, uint64_t address, uint32_t data)
{
    struct driver_machine *machine = opaque;
    if (data < DRIVER_MESSAGES)
        machine->messages[data]++;
}

static void set_line(void *opaque, unsigned number, bool level)
{
    struct driver_machine *machine = opaque;
    machine->line[number] = level;
}

void driver_machine_init(struct driver_machine *machine)
{
    *machine = (struct driver_machine){.mem = mem_new(), .bus = bus_new()};
    int r = mem_add(machine->mem, 0, DRIVER_MEMORY, false, NULL);
    struct pci_host_config config = {
        .bus = machine->bus,
        .ecam_base = DRIVER_ECAM,
        .ecam_size = PCI_ECAM_BUS_SIZE,
        .msi = {count_message, machine},
    };
    for (unsigned i = 0; i < PCI_LINES; i++)
        config.lines[i] = (struct irq_line){set_line, machine, i};
    if (r >= 0)
        r = pci_host_new(&config, &machine->host, NULL);
    assert(r >= 0);
}

void driver_machine_place(struct driver_machine *machine)
{
    const struct pci_windows windows = {.mmio32 = {0xc0000000, MIB(64)}};
    int r = pci_assign_bars(machine->host, &windows, NULL);
    assert(r >= 0);
    (void)r;
}

void driver_machine_fini(struct driver_machine *machine)
{
    pci_host_free(machine->host);
    bus_free(machine->bus);
    mem_free(machine->mem);
}

/* One device. */

uint64_t driver_read(struct driver *driver, uint64_t address, unsigned size)
{
    return bus_read(driver->machine->bus, BUS_MMIO, address, size);
}

void driver_write(struct driver *driver, uint64_t address, unsigned size, uint64_t value)
{
    bus_write(driver->machine->bus, BUS_MMIO, address, size, value);
}

uint32_t driver_config(struct driver *driver, unsigned offset, unsigned size)
{
    return (uint32_t)driver_read(driver, DRIVER_ECAM + (driver->slot << 15) + offset, size);
}

void driver_config_set(struct driver *driver, unsigned offset, unsigned size, uint32_t value)
{
    driver_write(driver, DRIVER_ECAM + (driver->slot << 15) + offset, size, value);
}

static uint64_t bar_base(struct driver *driver, unsigned bar)
{
    uint64_t low = driver_config(driver, PCI_BAR0 + 4 * bar, 4);
    uint64_t high = low & 4 ? driver_config(driver, PCI_BAR0 + 4 * bar + 4, 4) : 0;
    return high << 32 | (low & ~UINT64_C(15));
}

static void vendor_capability(struct driver *driver, unsigned at)
{
    uint64_t address =
        bar_base(driver, driver_config(driver, at + 4, 1)) + driver_config(driver, at + 8, 4);
    switch (driver_config(driver, at + 3, 1)) {
    case 1: driver->common = address; break;
    case 2:
        driver->notify = address;
        driver->notify_stride = driver_config(driver, at + 16, 4);
        break;
    case 3: driver->isr = address; break;
    case 4: driver->device = address; break;
    case 5: driver->access = at; break;
    default: break;
    }
}

void driver_init(struct driver *driver, struct driver_machine *machine, unsigned slot)
{
    *driver = (struct driver){.machine = machine, .slot = slot, .next_base = MIB(1)};
    driver_config_set(driver, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    unsigned at = driver_config(driver, PCI_CAPABILITIES, 1);
    for (unsigned hops = 0; at && hops < 48; hops++) {
        unsigned id = driver_config(driver, at, 1);
        if (id == PCI_CAPABILITY_VENDOR)
            vendor_capability(driver, at);
        if (id == PCI_CAPABILITY_MSIX) {
            uint32_t table = driver_config(driver, at + 4, 4);
            driver->msix = at;
            driver->msix_table = bar_base(driver, table & 7) + (table & ~7u);
        }
        at = driver_config(driver, at + 1, 1);
    }
}

uint8_t driver_status(struct driver *driver)
{
    return (uint8_t)driver_read(driver, driver->common + COMMON_STATUS, 1);
}

void driver_set_status(struct driver *driver, uint8_t status)
{
    driver_write(driver, driver->common + COMMON_STATUS, 1, status);
}

uint64_t driver_offered(struct driver *driver)
{
    uint64_t features = 0;
    for (unsigned half = 0; half < 2; half++) {
        driver_write(driver, driver->common + COMMON_DEVICE_SELECT, 4, half);
        features |= driver_read(driver, driver->common + COMMON_DEVICE_FEATURE, 4) << 32 * half;
    }
    return features;
}

bool driver_negotiate(struct driver *driver, uint64_t features)
{
    driver_set_status(driver, 0);
    driver->next_base = MIB(1);
    driver_set_status(driver, VIRTIO_STATUS_ACKNOWLEDGE);
    driver_set_status(driver, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
    for (unsigned half = 0; half < 2; half++) {
        driver_write(driver, driver->common + COMMON_DRIVER_SELECT, 4, half);
        driver_write(driver, driver->common + COMMON_DRIVER_FEATURE, 4,
                     (uint32_t)(features >> 32 * half));
    }
    driver_set_status(driver, driver_status(driver) | VIRTIO_STATUS_FEATURES_OK);
    return driver_status(driver) & VIRTIO_STATUS_FEATURES_OK;
}

void driver_msix_on(struct driver *driver, unsigned vectors)
{
    for (unsigned vector = 0; vector < vectors; vector++) {
        uint64_t entry = driver->msix_table + vector * 16u;
        driver_write(driver, entry, 8, 0xfee00000);
        driver_write(driver, entry + 8, 4, vector);
        driver_write(driver, entry + 12, 4, 0);
    }
    driver_config_set(driver, driver->msix + 2, 2, 0x8000);
    driver_write(driver, driver->common + COMMON_CONFIG_VECTOR, 2, 0);
}

bool driver_queue(struct driver *driver, unsigned queue, uint16_t size, bool msix)
{
    struct driver_ring *ring = &driver->rings[queue];
    uint64_t common = driver->common;
    driver_ring_init(ring, driver->machine->mem, driver->next_base, size);
    driver->next_base += driver_ring_bytes(size);
    driver_write(driver, common + COMMON_QUEUE_SELECT, 2, queue);
    driver_write(driver, common + COMMON_QUEUE_SIZE, 2, size);
    if (msix)
        driver_write(driver, common + COMMON_QUEUE_VECTOR, 2, queue + 1);
    const uint64_t places[] = {ring->descriptors, ring->available, ring->used};
    for (unsigned i = 0; i < 6; i++)
        driver_write(driver, common + COMMON_QUEUE_DESC + 4 * i, 4,
                     (uint32_t)(places[i / 2] >> 32 * (i % 2)));
    driver_write(driver, common + COMMON_QUEUE_ENABLE, 2, 1);
    return driver_read(driver, common + COMMON_QUEUE_ENABLE, 2) == 1;
}

void driver_live(struct driver *driver)
{
    driver_set_status(driver, driver_status(driver) | VIRTIO_STATUS_DRIVER_OK);
}

void driver_kick(struct driver *driver, unsigned queue)
{
    driver_write(driver, driver->common + COMMON_QUEUE_SELECT, 2, queue);
    uint64_t offset = driver_read(driver, driver->common + COMMON_QUEUE_NOTIFY_OFF, 2);
    driver_write(driver, driver->notify + offset * driver->notify_stride, 2, queue);
}
