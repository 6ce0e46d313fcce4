/* What the PCI bridge and its devices save and load: BARs, interrupts, what the guest has set. */
#include "base/bytes.h"
#include "base/record.h"
#include "bus/pci.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

enum {
    ECAM = 0xb0000000,
    MMIO32 = 0xc0000000,
    MSIX_TABLE = 0x800,
    MSIX_PENDING = 0xc00,
    VECTORS = 3,
    SLOT = 5,
};

/* A bridge with one card: BAR 0 is memory with MSI-X, BAR 1 memory, BAR 2 ports. */
struct box {
    struct bus *bus;
    struct pci_host *host;
    struct pci_device *card;
    int level[PCI_LINES], messages;
    uint32_t data;
    uint64_t bar_at[PCI_BARS];
};

static void box_line(void *opaque, unsigned number, bool level)
{
    ((struct box *)opaque)->level[number] = level;
}

static void box_message(void *opaque, uint64_t address, uint32_t data)
{
    struct box *box = opaque;
    box->messages++;
    box->data = data;
}

static uint64_t card_read(void *opaque, unsigned bar, uint64_t offset, unsigned size)
{
    return 0x1000 * bar + offset;
}

static void card_write(void *opaque, unsigned bar, uint64_t offset, unsigned size, uint64_t value)
{
}

static void card_moved(void *opaque, unsigned bar, uint64_t address)
{
    ((struct box *)opaque)->bar_at[bar] = address;
}

static const struct pci_ops card_ops = {
    .name = "card", .bar_read = card_read, .bar_write = card_write, .bar_moved = card_moved};

static struct box *box_new(unsigned slot, uint16_t device, unsigned vectors)
{
    struct box *box = calloc(1, sizeof *box);
    box->bus = bus_new();
    struct pci_host_config config = {.bus = box->bus,
                                     .ecam_base = ECAM,
                                     .ecam_size = PCI_ECAM_BUS_SIZE,
                                     .msi = {box_message, box}};
    for (unsigned i = 0; i < PCI_LINES; i++)
        config.lines[i] = (struct irq_line){box_line, box, i};
    assert_int_equal(pci_host_new(&config, &box->host, NULL), 0);
    const struct pci_identity identity = {
        .vendor = 0x1234, .device = device, .class_code = 0x020304, .pin = 1};
    assert_int_equal(
        pci_device_new(box->host, (int)slot, &identity, &card_ops, box, &box->card, NULL), 0);
    assert_int_equal(pci_bar_add(box->card, 0, PCI_BAR_MMIO32, 0x1000, NULL), 0);
    assert_int_equal(pci_bar_add(box->card, 1, PCI_BAR_MMIO32, 0x10000, NULL), 0);
    assert_int_equal(pci_bar_add(box->card, 2, PCI_BAR_IO, 32, NULL), 0);
    if (vectors)
        assert_int_equal(pci_msix_add(box->card, 0, MSIX_TABLE, MSIX_PENDING, vectors, NULL), 0);
    const struct pci_windows windows = {.mmio32 = {MMIO32, MIB(64)}, .io = {0xc000, 0x1000}};
    assert_int_equal(pci_assign_bars(box->host, &windows, NULL), 0);
    return box;
}

static void box_free(struct box *box)
{
    pci_device_free(box->card);
    pci_host_free(box->host);
    bus_free(box->bus);
    free(box);
}

static uint32_t get(struct box *box, unsigned offset, unsigned size)
{
    return (uint32_t)bus_read(box->bus, BUS_MMIO, ECAM + (SLOT << 15) + offset, size);
}

static void set(struct box *box, unsigned offset, unsigned size, uint32_t value)
{
    bus_write(box->bus, BUS_MMIO, ECAM + (SLOT << 15) + offset, size, value);
}

static void vector_set(struct box *box, unsigned vector, bool masked)
{
    uint64_t entry = pci_bar_address(box->card, 0) + MSIX_TABLE + vector * 16;
    bus_write(box->bus, BUS_MMIO, entry, 8, 0xfee00000);
    bus_write(box->bus, BUS_MMIO, entry + 8, 4, 100 + vector);
    bus_write(box->bus, BUS_MMIO, entry + 12, 4, masked);
}

static struct record save(struct box *box)
{
    struct record record;
    record_save(&record, 1);
    pci_host_state(box->host, &record);
    assert_true(record_ended(&record));
    return record;
}

static const char *load(struct box *box, const struct record *saved)
{
    struct record record;
    record_load(&record, saved->bytes, saved->size, 1);
    pci_host_state(box->host, &record);
    return record_ended(&record) ? NULL : record.why ? record.why : "";
}

static void check_same_config(struct box *one, struct box *two)
{
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++)
        for (unsigned offset = 0; offset < 256; offset += 4)
            assert_int_equal(bus_read(one->bus, BUS_MMIO, ECAM + (slot << 15) + offset, 4),
                             bus_read(two->bus, BUS_MMIO, ECAM + (slot << 15) + offset, 4));
}

/* The guest has put its BARs elsewhere, one of them nowhere. */
static void bars_are_where_the_guest_put_them(void **state)
{
    struct box *one = box_new(SLOT, 7, VECTORS), *two = box_new(SLOT, 7, VECTORS);
    uint32_t home = (uint32_t)pci_bar_address(two->card, 1);
    set(one, PCI_BAR0 + 4, 4, 0xd0000000);
    set(one, PCI_BAR0, 4, ECAM);
    set(one, PCI_INTERRUPT_LINE, 1, 11);
    bus_write(one->bus, BUS_PORT, 0xcf8, 4, 0x80002804);
    struct record record = save(one);
    assert_null(load(two, &record));
    check_same_config(one, two);
    assert_int_equal(pci_bar_address(two->card, 1), 0xd0000000);
    assert_int_equal(two->bar_at[1], 0xd0000000);
    assert_int_equal(bus_read(two->bus, BUS_MMIO, 0xd0000010, 4), 0x1010);
    assert_int_equal(bus_read(two->bus, BUS_MMIO, home + 0x10, 4), 0xffffffff);
    assert_int_equal(pci_bar_address(two->card, 0), 0); /* over somebody else's claim */
    assert_int_equal(bus_read(two->bus, BUS_PORT, 0xcf8, 4), 0x80002804);
    record_free(&record);
    box_free(one);
    box_free(two);
}

static void decoding_that_is_off_is_off(void **state)
{
    struct box *one = box_new(SLOT, 7, VECTORS), *two = box_new(SLOT, 7, VECTORS);
    set(one, PCI_COMMAND, 2, PCI_COMMAND_MASTER);
    struct record record = save(one);
    assert_false(pci_bus_master(two->card));
    assert_null(load(two, &record));
    assert_true(pci_bus_master(two->card));
    for (unsigned bar = 0; bar < 3; bar++)
        assert_int_equal(pci_bar_address(two->card, bar), 0);
    check_same_config(one, two);
    record_free(&record);
    box_free(one);
    box_free(two);
}

static void a_pin_that_is_up_stays_up(void **state)
{
    struct box *one = box_new(SLOT, 7, VECTORS), *two = box_new(SLOT, 7, VECTORS);
    pci_intx_set(one->card, true);
    assert_int_equal(one->level[SLOT % 4], 1);
    struct record record = save(one);
    assert_null(load(two, &record));
    assert_int_equal(two->level[SLOT % 4], 1);
    pci_intx_set(two->card, false);
    assert_int_equal(two->level[SLOT % 4], 0);
    record_free(&record);
    /* Masked by the COMMAND register it is up inside only. */
    set(one, PCI_COMMAND, 2, PCI_COMMAND_INTX_OFF);
    record = save(one);
    assert_null(load(two, &record));
    assert_int_equal(two->level[SLOT % 4], 0);
    set(two, PCI_COMMAND, 2, 0);
    assert_int_equal(two->level[SLOT % 4], 1);
    record_free(&record);
    box_free(one);
    box_free(two);
}

static void messages_are_as_the_guest_has_set_them(void **state)
{
    struct box *one = box_new(SLOT, 7, VECTORS), *two = box_new(SLOT, 7, VECTORS);
    unsigned msix = get(one, PCI_CAPABILITIES, 1);
    set(one, PCI_COMMAND, 2, PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY);
    set(one, msix + 2, 2, 0x8000);
    for (unsigned vector = 0; vector < VECTORS; vector++)
        vector_set(one, vector, vector == 1);
    pci_msix_fire(one->card, 1); /* waits */
    assert_int_equal(one->messages, 0);
    struct record record = save(one);
    assert_null(load(two, &record));
    assert_true(pci_msix_enabled(two->card));
    check_same_config(one, two);
    assert_int_equal(two->messages, 0);
    pci_msix_fire(two->card, 2);
    assert_int_equal(two->messages, 1);
    assert_int_equal(two->data, 102);
    vector_set(two, 1, false);
    assert_int_equal(two->messages, 2);
    assert_int_equal(two->data, 101);
    record_free(&record);
    box_free(one);
    box_free(two);
}

/* A file cannot make a device another one: what the guest could not write stays. */
static void read_only_registers_are_the_devices(void **state)
{
    struct box *box = box_new(SLOT, 7, VECTORS);
    struct record record = save(box);
    uint8_t before[256];
    for (unsigned i = 0; i < 256; i += 4)
        le32_write(before + i, get(box, i, 4));
    /* Every slot: a word that says whether somebody is there; the bridge is in slot 0. */
    size_t at = 5 + 4 + 4 + 256 + 1 + 4 + 4 * (SLOT - 1) + 4;
    assert_int_equal(le32_read(record.bytes + at), 7 << 16 | 0x1234);
    assert_memory_equal(record.bytes + at + 4, before, 256);
    memset(record.bytes + at + 4, 0xff, 256);
    assert_null(load(box, &record));
    assert_int_equal(get(box, 0, 4), 7 << 16 | 0x1234);
    assert_int_equal(get(box, PCI_CLASS, 2), 0x0304);
    assert_int_equal(get(box, PCI_BAR0 + 4, 4), 0xffff0000);
    assert_int_equal(get(box, PCI_BAR0 + 12, 4), 0);
    assert_int_equal(get(box, PCI_CAPABILITIES, 1), before[PCI_CAPABILITIES]);
    assert_int_equal(get(box, PCI_COMMAND, 2), 0x0407);
    record_free(&record);
    box_free(box);
}

static void other_devices_are_refused(void **state)
{
    struct box *box = box_new(SLOT, 7, VECTORS);
    struct record record = save(box);
    struct box *others[] = {box_new(SLOT + 1, 7, VECTORS), box_new(SLOT, 8, VECTORS),
                            box_new(SLOT, 7, VECTORS + 1), box_new(SLOT, 7, 0)};
    const char *const why[] = {"has other devices", "has another device there",
                               "has another number of vectors", "has another number of vectors"};
    for (size_t i = 0; i < ARRAY_LEN(others); i++) {
        const char *told = load(others[i], &record);
        assert_non_null(told);
        assert_string_equal(told, why[i]);
        box_free(others[i]);
    }
    record_free(&record);
    box_free(box);
}

static void what_is_cut_off_is_refused(void **state)
{
    struct box *box = box_new(SLOT, 7, VECTORS);
    struct record record = save(box), cut = record;
    for (cut.size = 0; cut.size < record.size; cut.size++) {
        cut.bytes = malloc(cut.size + 1);
        memcpy(cut.bytes, record.bytes, cut.size);
        assert_non_null(load(box, &cut));
        free(cut.bytes);
    }
    assert_null(load(box, &record));
    record_free(&record);
    box_free(box);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bars_are_where_the_guest_put_them),
        cmocka_unit_test(decoding_that_is_off_is_off),
        cmocka_unit_test(a_pin_that_is_up_stays_up),
        cmocka_unit_test(messages_are_as_the_guest_has_set_them),
        cmocka_unit_test(read_only_registers_are_the_devices),
        cmocka_unit_test(other_devices_are_refused),
        cmocka_unit_test(what_is_cut_off_is_refused),
    };
    return cmocka_run_group_tests_name("pci state", tests, NULL, NULL);
}
