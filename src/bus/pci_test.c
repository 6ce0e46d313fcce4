#include "bus/pci.h"

#include "base/bytes.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum {
    ECAM = 0xb0000000,
    MMIO32 = 0xc0000000,
    MSIX_TABLE = 0x800,
    MSIX_PENDING = 0xc00,
};

#define MMIO64 UINT64_C(0x4000000000)

struct board {
    struct bus *bus;
    struct pci_host *host;
    int level[PCI_LINES], edges;
    uint64_t address;
    uint32_t data;
    int messages, resets;
};

struct card {
    struct pci_device *pci;
    uint64_t last_offset, last_value;
    unsigned last_bar;
    uint64_t bar_at[PCI_BARS];
    int resets, config_writes;
};

static void board_line(void *opaque, unsigned number, bool level)
{
    struct board *board = opaque;
    board->level[number] = level;
    board->edges++;
}

static void board_message(void *opaque, uint64_t address, uint32_t data)
{
    struct board *board = opaque;
    board->address = address;
    board->data = data;
    board->messages++;
}

static void board_reset(void *opaque)
{
    ((struct board *)opaque)->resets++;
}

static void board_make(struct board *board)
{
    *board = (struct board){.bus = bus_new()};
    struct pci_host_config config = {
        .bus = board->bus,
        .ecam_base = ECAM,
        .ecam_size = PCI_ECAM_BUS_SIZE,
        .msi = {board_message, board},
        .line_numbers = {16, 17, 18, 19},
        .reset_asked = board_reset,
        .reset_opaque = board,
    };
    for (unsigned i = 0; i < PCI_LINES; i++)
        config.lines[i] = (struct irq_line){board_line, board, i};
    assert_int_equal(pci_host_new(&config, &board->host, NULL), 0);
}

static uint64_t card_read(void *opaque, unsigned bar, uint64_t offset, unsigned size)
{
    return 0x1000 * bar + offset;
}

static void card_write(void *opaque, unsigned bar, uint64_t offset, unsigned size, uint64_t value)
{
    struct card *card = opaque;
    card->last_bar = bar;
    card->last_offset = offset;
    card->last_value = value;
}

static void card_moved(void *opaque, unsigned bar, uint64_t address)
{
    ((struct card *)opaque)->bar_at[bar] = address;
}

static void card_reset(void *opaque)
{
    ((struct card *)opaque)->resets++;
}

static void card_config_written(void *opaque, unsigned offset, unsigned size)
{
    ((struct card *)opaque)->config_writes++;
}

static const struct pci_ops card_ops = {
    .name = "card",
    .bar_read = card_read,
    .bar_write = card_write,
    .bar_moved = card_moved,
    .config_written = card_config_written,
    .reset = card_reset,
};

/* BAR 0: 4 KiB of 64-bit memory with MSI-X; BAR 2: 64 KiB of 32-bit memory; BAR 3: 32 ports. */
static void card_make(struct card *card, struct board *board, int slot)
{
    const struct pci_identity identity = {.vendor = 0x1234,
                                          .device = 0x5678,
                                          .subsystem_vendor = 1,
                                          .subsystem = 2,
                                          .revision = 3,
                                          .class_code = 0x020304,
                                          .pin = 1};
    *card = (struct card){0};
    assert_int_equal(
        pci_device_new(board->host, slot, &identity, &card_ops, card, &card->pci, NULL), 0);
    assert_int_equal(pci_bar_add(card->pci, 0, PCI_BAR_MMIO64, 0x1000, NULL), 0);
    assert_int_equal(pci_bar_add(card->pci, 2, PCI_BAR_MMIO32, 0x10000, NULL), 0);
    assert_int_equal(pci_bar_add(card->pci, 3, PCI_BAR_IO, 32, NULL), 0);
    assert_int_equal(pci_msix_add(card->pci, 0, MSIX_TABLE, MSIX_PENDING, 3, NULL), 0);
}

static void assign(struct board *board)
{
    const struct pci_windows windows = {
        .mmio32 = {MMIO32, MIB(64)}, .mmio64 = {MMIO64, GIB(1)}, .io = {0xc000, 0x1000}};
    assert_int_equal(pci_assign_bars(board->host, &windows, NULL), 0);
}

static uint32_t cf8_read(struct board *board, unsigned slot, unsigned offset, unsigned size)
{
    bus_write(board->bus, BUS_PORT, 0xcf8, 4, 0x80000000 | slot << 11 | (offset & 0xfc));
    return (uint32_t)bus_read(board->bus, BUS_PORT, 0xcfc + (offset & 3), size);
}

static void cf8_write(struct board *board, unsigned slot, unsigned offset, unsigned size,
                      uint32_t value)
{
    bus_write(board->bus, BUS_PORT, 0xcf8, 4, 0x80000000 | slot << 11 | (offset & 0xfc));
    bus_write(board->bus, BUS_PORT, 0xcfc + (offset & 3), size, value);
}

static uint64_t ecam_read(struct board *board, unsigned slot, unsigned offset, unsigned size)
{
    return bus_read(board->bus, BUS_MMIO, ECAM + (slot << 15) + offset, size);
}

static void ecam_write(struct board *board, unsigned slot, unsigned offset, unsigned size,
                       uint64_t value)
{
    bus_write(board->bus, BUS_MMIO, ECAM + (slot << 15) + offset, size, value);
}

static void both_doors_show_the_same_registers(void **state)
{
    (void)state;
    struct board board;
    struct card card;
    board_make(&board);
    card_make(&card, &board, 5);
    assert_int_equal(cf8_read(&board, 5, 0, 4), 0x56781234);
    assert_int_equal(cf8_read(&board, 5, 2, 2), 0x5678);
    assert_int_equal(cf8_read(&board, 5, 0x0b, 1), 0x02);
    assert_int_equal(cf8_read(&board, 5, PCI_INTERRUPT_LINE, 2), 0x0100 | 17);
    for (unsigned offset = 0; offset < 256; offset += 4)
        assert_int_equal(ecam_read(&board, 5, offset, 4), cf8_read(&board, 5, offset, 4));
    assert_int_equal(ecam_read(&board, 5, 0, 8) >> 32, cf8_read(&board, 5, 4, 4));
    /* The bridge answers at slot 0, nobody at other slots, functions, buses and registers. */
    assert_int_equal(ecam_read(&board, 0, 0x0a, 2), 0x0600);
    assert_int_equal(cf8_read(&board, 6, 0, 4), 0xffffffff);
    bus_write(board.bus, BUS_PORT, 0xcf8, 4, 0x80000000 | 5 << 11 | 1 << 8);
    assert_int_equal(bus_read(board.bus, BUS_PORT, 0xcfc, 4), 0xffffffff);
    bus_write(board.bus, BUS_PORT, 0xcf8, 4, 0x80000000 | 1 << 16 | 5 << 11);
    assert_int_equal(bus_read(board.bus, BUS_PORT, 0xcfc, 4), 0xffffffff);
    bus_write(board.bus, BUS_PORT, 0xcf8, 4, 5 << 11);
    assert_int_equal(bus_read(board.bus, BUS_PORT, 0xcfc, 4), 0xffffffff);
    assert_int_equal(ecam_read(&board, 5, 0x100, 4), 0xffffffff);
    assert_int_equal(ecam_read(&board, 5, 0xfe, 4), 0xffffffff);
    /* The probe of Linux: the address register reads back. */
    bus_write(board.bus, BUS_PORT, 0xcf8, 4, 0x80000000);
    assert_int_equal(bus_read(board.bus, BUS_PORT, 0xcf8, 4), 0x80000000);
    pci_device_free(card.pci);
    pci_host_free(board.host);
    bus_free(board.bus);
}

static void read_only_registers_stay(void **state)
{
    (void)state;
    struct board board;
    struct card card;
    board_make(&board);
    card_make(&card, &board, 1);
    uint8_t before[256];
    for (unsigned i = 0; i < 256; i += 4)
        le32_write(before + i, cf8_read(&board, 1, i, 4));
    unsigned msix = before[PCI_CAPABILITIES];
    for (unsigned i = 0; i < 256; i += 4) {
        if (i == PCI_COMMAND || (i >= PCI_BAR0 && i < PCI_BAR0 + 24) || i == 0x0c ||
            i == PCI_INTERRUPT_LINE || i == msix)
            continue;
        ecam_write(&board, 1, i, 4, 0xffffffff);
        assert_int_equal(cf8_read(&board, 1, i, 4), le32_read(before + i));
    }
    ecam_write(&board, 1, msix, 4, 0xffffffff);
    assert_int_equal(cf8_read(&board, 1, msix, 4), 0xc0000000 | le32_read(before + msix));
    cf8_write(&board, 1, PCI_COMMAND, 4, 0xffffffff);
    assert_int_equal(cf8_read(&board, 1, PCI_COMMAND, 2), 0x0407);
    assert_true(card.config_writes > 0);
    pci_device_free(card.pci);
    pci_host_free(board.host);
    bus_free(board.bus);
}

static void bars_are_sized_and_moved(void **state)
{
    (void)state;
    struct board board;
    struct card card;
    board_make(&board);
    card_make(&card, &board, 2);
    assign(&board);
    assert_int_equal(cf8_read(&board, 2, PCI_COMMAND, 2) & 3, 3);
    assert_int_equal(cf8_read(&board, 2, PCI_BAR0, 4), (uint32_t)MMIO64 | 4);
    assert_int_equal(cf8_read(&board, 2, PCI_BAR0 + 4, 4), MMIO64 >> 32);
    assert_int_equal(cf8_read(&board, 2, PCI_BAR0 + 8, 4), MMIO32);
    assert_int_equal(cf8_read(&board, 2, PCI_BAR0 + 12, 4), 0xc001);
    assert_int_equal(bus_read(board.bus, BUS_MMIO, MMIO64 + 0x24, 4), 0x24);
    assert_int_equal(bus_read(board.bus, BUS_MMIO, MMIO32 + 0x24, 4), 0x2024);
    assert_int_equal(bus_read(board.bus, BUS_PORT, 0xc004, 2), 0x3004);
    assert_int_equal(card.bar_at[0], MMIO64);
    assert_int_equal(pci_bar_address(card.pci, 2), MMIO32);

    cf8_write(&board, 2, PCI_COMMAND, 2, 0);
    assert_int_equal(bus_read(board.bus, BUS_MMIO, MMIO32, 4), 0xffffffff);
    assert_int_equal(bus_read(board.bus, BUS_PORT, 0xc004, 2), 0xffff);
    assert_int_equal(card.bar_at[0], 0);
    for (unsigned bar = 0; bar < 6; bar++)
        cf8_write(&board, 2, PCI_BAR0 + 4 * bar, 4, 0xffffffff);
    assert_int_equal(cf8_read(&board, 2, PCI_BAR0, 4), 0xfffff004);
    assert_int_equal(cf8_read(&board, 2, PCI_BAR0 + 4, 4), 0xffffffff);
    assert_int_equal(cf8_read(&board, 2, PCI_BAR0 + 8, 4), 0xffff0000);
    assert_int_equal(cf8_read(&board, 2, PCI_BAR0 + 12, 4), 0xffffffe1);
    assert_int_equal(cf8_read(&board, 2, PCI_BAR0 + 16, 4), 0);
    assert_int_equal(cf8_read(&board, 2, PCI_ROM_BASE, 4), 0);

    cf8_write(&board, 2, PCI_BAR0 + 8, 4, 0xd0000000);
    cf8_write(&board, 2, PCI_BAR0 + 12, 4, 0xd000);
    assert_int_equal(bus_read(board.bus, BUS_MMIO, 0xd0000000, 4), 0xffffffff);
    cf8_write(&board, 2, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    assert_int_equal(bus_read(board.bus, BUS_MMIO, 0xd0000004, 4), 0x2004);
    assert_int_equal(bus_read(board.bus, BUS_PORT, 0xd000, 2), 0xffff);
    ecam_write(&board, 2, PCI_BAR0 + 8, 4, 0xd8000000); /* moves while it is on */
    assert_int_equal(bus_read(board.bus, BUS_MMIO, 0xd0000004, 4), 0xffffffff);
    assert_int_equal(bus_read(board.bus, BUS_MMIO, 0xd8000004, 4), 0x2004);
    bus_write(board.bus, BUS_MMIO, 0xd800fffe, 2, 77);
    assert_int_equal(card.last_bar, 2);
    assert_int_equal(card.last_offset, 0xfffe);
    assert_int_equal(card.last_value, 77);
    pci_device_free(card.pci);
    assert_int_equal(bus_read(board.bus, BUS_MMIO, 0xd8000004, 4), 0xffffffff);
    pci_host_free(board.host);
    bus_free(board.bus);
}

static void a_bar_over_another_claim_answers_nowhere(void **state)
{
    (void)state;
    struct board board;
    struct card a, b;
    board_make(&board);
    card_make(&a, &board, 1);
    card_make(&b, &board, 2);
    assign(&board);
    uint64_t home = pci_bar_address(b.pci, 2);
    ecam_write(&board, 2, PCI_BAR0 + 8, 4, ECAM);
    assert_int_equal(pci_bar_address(b.pci, 2), 0);
    assert_int_equal(ecam_read(&board, 1, 0, 4), 0x56781234);
    /* Over a's BAR: a keeps it; when a goes away, b arrives. */
    uint64_t place = pci_bar_address(a.pci, 2);
    ecam_write(&board, 2, PCI_BAR0 + 8, 4, place);
    assert_int_equal(pci_bar_address(b.pci, 2), 0);
    bus_write(board.bus, BUS_MMIO, place, 4, 1);
    assert_int_equal(a.last_bar, 2);
    ecam_write(&board, 1, PCI_BAR0 + 8, 4, home);
    assert_int_equal(pci_bar_address(a.pci, 2), home);
    assert_int_equal(pci_bar_address(b.pci, 2), place);
    pci_device_free(a.pci);
    pci_device_free(b.pci);
    pci_host_free(board.host);
    bus_free(board.bus);
}

struct race {
    struct board *board;
    unsigned slot;
    uint32_t place;
    int misses;
};

/* Moves its BAR to and fro; after each write the BAR must be where it was put. */
static void *race_main(void *opaque)
{
    struct race *race = opaque;
    for (int i = 0; i < 3000; i++) {
        uint32_t place = race->place + (i % 2) * 0x10000;
        ecam_write(race->board, race->slot, PCI_BAR0 + 8, 4, place);
        if (bus_read(race->board->bus, BUS_MMIO, place + 8, 4) != 0x2008)
            race->misses++;
    }
    return NULL;
}

static void a_bar_has_moved_when_the_write_ends(void **state)
{
    (void)state;
    struct board board;
    struct card cards[3];
    struct race races[3];
    pthread_t threads[3];
    board_make(&board);
    for (int i = 0; i < 3; i++)
        card_make(&cards[i], &board, i + 1);
    assign(&board);
    for (unsigned i = 0; i < 3; i++) {
        races[i] = (struct race){&board, i + 1, 0xd0000000 + i * 0x100000, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, race_main, &races[i]), 0);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(races[i].misses, 0);
        pci_device_free(cards[i].pci);
    }
    pci_host_free(board.host);
    bus_free(board.bus);
}

static void pins_share_lines(void **state)
{
    (void)state;
    struct board board;
    struct card a, b;
    board_make(&board);
    card_make(&a, &board, 1);
    card_make(&b, &board, 5); /* the same line as slot 1 */
    pci_intx_set(a.pci, true);
    assert_int_equal(board.level[1], 1);
    pci_intx_set(b.pci, true);
    pci_intx_set(a.pci, false);
    assert_int_equal(board.level[1], 1);
    assert_int_equal(cf8_read(&board, 5, PCI_STATUS, 2) & 8, 8);
    assert_int_equal(cf8_read(&board, 1, PCI_STATUS, 2) & 8, 0);
    cf8_write(&board, 5, PCI_COMMAND, 2, PCI_COMMAND_INTX_OFF);
    assert_int_equal(board.level[1], 0);
    cf8_write(&board, 5, PCI_COMMAND, 2, 0);
    assert_int_equal(board.level[1], 1);
    assert_int_equal(board.edges, 3);
    pci_device_free(b.pci);
    assert_int_equal(board.level[1], 0);
    pci_device_free(a.pci);
    pci_host_free(board.host);
    bus_free(board.bus);
}

static void msix_write(struct board *board, uint32_t offset, uint32_t value)
{
    bus_write(board->bus, BUS_MMIO, MMIO64 + offset, 4, value);
}

static void vector_set(struct board *board, unsigned vector, uint64_t address, uint32_t data,
                       bool masked)
{
    uint32_t entry = MSIX_TABLE + vector * 16;
    msix_write(board, entry, (uint32_t)address);
    msix_write(board, entry + 4, (uint32_t)(address >> 32));
    msix_write(board, entry + 8, data);
    msix_write(board, entry + 12, masked);
}

static uint64_t pending(struct board *board)
{
    return bus_read(board->bus, BUS_MMIO, MMIO64 + MSIX_PENDING, 8);
}

static void msix_masks_and_remembers(void **state)
{
    (void)state;
    struct board board;
    struct card card;
    board_make(&board);
    card_make(&card, &board, 1);
    assign(&board);
    unsigned control = cf8_read(&board, 1, PCI_CAPABILITIES, 1) + 2;
    assert_int_equal(cf8_read(&board, 1, control - 2, 4), 0x00020011);
    assert_int_equal(cf8_read(&board, 1, control + 2, 4), MSIX_TABLE);
    assert_int_equal(cf8_read(&board, 1, control + 6, 4), MSIX_PENDING);
    assert_int_equal(bus_read(board.bus, BUS_MMIO, MMIO64 + MSIX_TABLE + 12, 4), 1);

    pci_msix_fire(card.pci, 0); /* off: no trace */
    assert_int_equal(pending(&board), 0);
    cf8_write(&board, 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    cf8_write(&board, 1, control, 2, 0x8000);
    assert_true(pci_msix_enabled(card.pci));
    pci_msix_fire(card.pci, 1); /* masked since reset */
    assert_int_equal(board.messages, 0);
    assert_int_equal(pending(&board), 2);
    vector_set(&board, 1, UINT64_C(0x1fee01000), 0x42, false);
    assert_int_equal(board.messages, 1);
    assert_int_equal(board.address, UINT64_C(0x1fee01000));
    assert_int_equal(board.data, 0x42);
    assert_int_equal(pending(&board), 0);
    pci_msix_fire(card.pci, 1);
    assert_int_equal(board.messages, 2);

    cf8_write(&board, 1, control, 2, 0xc000); /* function mask */
    pci_msix_fire(card.pci, 1);
    pci_msix_fire(card.pci, 1);
    assert_int_equal(board.messages, 2);
    assert_int_equal(pending(&board), 2);
    bus_write(board.bus, BUS_MMIO, MMIO64 + MSIX_PENDING, 8, UINT64_MAX);
    assert_int_equal(pending(&board), 2);
    cf8_write(&board, 1, control, 2, 0x8000);
    assert_int_equal(board.messages, 3); /* two became one */
    pci_msix_fire(card.pci, 3);          /* no such vector */
    cf8_write(&board, 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    pci_msix_fire(card.pci, 1); /* no bus master, no message */
    assert_int_equal(board.messages, 3);

    /* The pin rests while MSI-X is on. */
    pci_intx_set(card.pci, true);
    assert_int_equal(board.level[1], 0);
    cf8_write(&board, 1, control, 2, 0);
    assert_int_equal(board.level[1], 1);
    /* The owner saw nothing of the table. */
    assert_int_equal(card.last_value, 0);
    pci_device_free(card.pci);
    pci_host_free(board.host);
    bus_free(board.bus);
}

struct watch {
    struct pci_msix_vector vectors[3];
    int calls;
};

static void watch_changed(void *opaque, unsigned vector, const struct pci_msix_vector *now)
{
    struct watch *watch = opaque;
    watch->vectors[vector] = *now;
    watch->calls++;
}

static void msix_changes_are_told(void **state)
{
    (void)state;
    struct board board;
    struct card card;
    struct watch watch = {0};
    board_make(&board);
    card_make(&card, &board, 1);
    assign(&board);
    unsigned control = cf8_read(&board, 1, PCI_CAPABILITIES, 1) + 2;
    pci_msix_observe(card.pci, watch_changed, &watch);
    assert_int_equal(watch.calls, 3);
    vector_set(&board, 2, 0xfee00000, 7, false);
    assert_int_equal(watch.vectors[2].address, 0xfee00000);
    assert_int_equal(watch.vectors[2].data, 7);
    assert_false(watch.vectors[2].open);
    cf8_write(&board, 1, control, 2, 0x8000);
    assert_true(watch.vectors[2].open);
    assert_false(watch.vectors[1].open);
    msix_write(&board, MSIX_TABLE + 2 * 16 + 12, 1);
    assert_false(watch.vectors[2].open);
    int calls = watch.calls;
    pci_msix_observe(card.pci, NULL, NULL);
    cf8_write(&board, 1, control, 2, 0);
    assert_int_equal(watch.calls, calls);
    pci_device_free(card.pci);
    pci_host_free(board.host);
    bus_free(board.bus);
}

static void reset_brings_back_the_first_day(void **state)
{
    (void)state;
    struct board board;
    struct card card;
    board_make(&board);
    card_make(&card, &board, 1);
    uint32_t before[64];
    for (unsigned i = 0; i < 64; i++)
        before[i] = cf8_read(&board, 1, i * 4, 4);
    assign(&board);
    cf8_write(&board, 1, PCI_COMMAND, 2, 7);
    vector_set(&board, 0, 0xfee00000, 7, false);
    cf8_write(&board, 1, before[13] + 2, 2, 0x8000);
    pci_intx_set(card.pci, true);
    pci_host_reset(board.host);
    assert_int_equal(card.resets, 1);
    for (unsigned i = 0; i < 64; i++)
        assert_int_equal(cf8_read(&board, 1, i * 4, 4), before[i]);
    assert_int_equal(pci_bar_address(card.pci, 0), 0);
    assert_false(pci_bus_master(card.pci));
    assert_int_equal(board.level[1], 0);
    assign(&board);
    assert_int_equal(bus_read(board.bus, BUS_MMIO, MMIO64 + MSIX_TABLE, 8), 0);
    assert_int_equal(bus_read(board.bus, BUS_MMIO, MMIO64 + MSIX_TABLE + 12, 4), 1);
    /* 0xcf9: on the edge of bit 2. */
    bus_write(board.bus, BUS_PORT, 0xcf9, 1, 2);
    assert_int_equal(board.resets, 0);
    bus_write(board.bus, BUS_PORT, 0xcf9, 1, 6);
    bus_write(board.bus, BUS_PORT, 0xcf9, 1, 6);
    assert_int_equal(board.resets, 1);
    pci_device_free(card.pci);
    pci_host_free(board.host);
    bus_free(board.bus);
}

static void wrong_setups_are_refused(void **state)
{
    (void)state;
    struct board board;
    struct card card;
    struct err err = {0};
    board_make(&board);
    card_make(&card, &board, 1);
    const struct pci_identity identity = {.vendor = 1};
    struct pci_device *other = NULL;
    assert_int_equal(pci_device_new(board.host, 1, &identity, &card_ops, NULL, &other, &err),
                     -EEXIST);
    assert_int_equal(pci_device_new(board.host, 32, &identity, &card_ops, NULL, &other, NULL),
                     -EINVAL);
    assert_int_equal(pci_bar_add(card.pci, 1, PCI_BAR_MMIO32, 4096, NULL), -EINVAL);
    assert_int_equal(pci_bar_add(card.pci, 4, PCI_BAR_MMIO32, 4097, NULL), -EINVAL);
    assert_int_equal(pci_bar_add(card.pci, 5, PCI_BAR_MMIO64, 4096, NULL), -EINVAL);
    assert_int_equal(pci_bar_add(card.pci, 6, PCI_BAR_MMIO32, 4096, NULL), -EINVAL);
    assert_int_equal(pci_bar_add(card.pci, 4, PCI_BAR_IO, 512, NULL), -EINVAL);
    uint8_t body[200] = {0};
    assert_int_equal(pci_capability_add(card.pci, 9, body, NULL, 200, &err), -ENOSPC);
    const struct pci_windows windows = {.mmio32 = {MMIO32, 0x10000}, .io = {0xc000, 0x1000}};
    assert_int_equal(pci_assign_bars(board.host, &windows, &err), -ENOSPC);
    assert_non_null(strstr(err.text, "card"));
    struct pci_host_config config = {
        .bus = board.bus, .ecam_base = 0xe0000000, .ecam_size = MIB(1)};
    struct pci_host *second = NULL;
    assert_int_equal(pci_host_new(&config, &second, &err), -EEXIST);
    pci_device_free(card.pci);
    pci_host_free(board.host);
    bus_free(board.bus);
}

enum { Q35_ECAM_LOW = 0x60, Q35_ECAM_HIGH = 0x64 };

static uint32_t port_config(struct board *board, unsigned slot, unsigned at)
{
    bus_write(board->bus, BUS_PORT, 0xcf8, 4, 0x80000000 | slot << 11 | at);
    return (uint32_t)bus_read(board->bus, BUS_PORT, 0xcfc, 4);
}

static void port_config_set(struct board *board, unsigned slot, unsigned at, uint32_t value)
{
    bus_write(board->bus, BUS_PORT, 0xcf8, 4, 0x80000000 | slot << 11 | at);
    bus_write(board->bus, BUS_PORT, 0xcfc, 4, value);
}

/* As firmware does it: the window is where PCIEXBAR says, and nowhere before. */
static void firmware_places_the_configuration_space_of_a_q35(void **state)
{
    (void)state;
    struct board board = {.bus = bus_new()};
    struct card card;
    uint64_t base = 0, size = 0;
    const struct pci_host_config config = {.bus = board.bus, .q35 = true};
    assert_int_equal(pci_host_new(&config, &board.host, NULL), 0);
    card_make(&card, &board, 3);
    assert_int_equal(port_config(&board, 0, 0), 0x29c08086);
    assert_false(pci_host_ecam(board.host, &base, &size));
    port_config_set(&board, 0, Q35_ECAM_HIGH, 0);
    port_config_set(&board, 0, Q35_ECAM_LOW, 0xb0000001);
    assert_true(pci_host_ecam(board.host, &base, &size));
    assert_int_equal(base, 0xb0000000);
    assert_int_equal(size, MIB(256));
    assert_int_equal(bus_read(board.bus, BUS_MMIO, 0xb0000000 + (3 << 15), 4), 0x56781234);
    /* Elsewhere, smaller: through the window itself, which moves under the access. */
    bus_write(board.bus, BUS_MMIO, 0xb0000000 + Q35_ECAM_LOW, 4, 0xe4000005);
    assert_true(pci_host_ecam(board.host, &base, &size));
    assert_int_equal(base, 0xe4000000);
    assert_int_equal(size, MIB(64));
    assert_int_equal(bus_read(board.bus, BUS_MMIO, 0xb0000000, 4), UINT32_MAX);
    assert_int_equal(bus_read(board.bus, BUS_MMIO, 0xe4000000, 4), 0x29c08086);
    port_config_set(&board, 0, Q35_ECAM_LOW, 0xe4000007); /* a size that is none */
    assert_false(pci_host_ecam(board.host, &base, &size));
    port_config_set(&board, 0, Q35_ECAM_LOW, 0xe4000001);
    pci_host_reset(board.host);
    assert_false(pci_host_ecam(board.host, &base, &size));
    pci_device_free(card.pci);
    pci_host_free(board.host);
    bus_free(board.bus);
}

static void bars_are_told_before_they_answer(void **state)
{
    (void)state;
    struct board board;
    struct card card;
    uint64_t low = UINT64_MAX, end = 0;
    board_make(&board);
    card_make(&card, &board, 3);
    pci_host_bars(board.host, GIB(4), UINT64_C(1) << 46, &low, &end);
    assert_int_equal(end, 0);
    port_config_set(&board, 3, 0x14, 0x8);
    assert_int_equal(pci_bar_address(card.pci, 0), 0);
    pci_host_bars(board.host, GIB(4), UINT64_C(1) << 46, &low, &end);
    assert_int_equal(low, UINT64_C(0x800000000));
    assert_int_equal(end, UINT64_C(0x800001000));
    pci_device_free(card.pci);
    pci_host_free(board.host);
    bus_free(board.bus);
}

static void devices_have_registers_of_their_own(void **state)
{
    (void)state;
    struct board board;
    struct pci_device *bridge;
    const struct pci_identity isa = {.vendor = 1, .class_code = 0x060100};
    board_make(&board);
    struct card card = {0};
    assert_int_equal(pci_device_new(board.host, 31, &isa, &card_ops, &card, &bridge, NULL), 0);
    assert_int_equal(pci_register_add(bridge, 0x40, 4, 0x601, 0xff00, NULL), 0);
    assert_int_equal(pci_register_add(bridge, 0x3c, 1, 0, 0, NULL), -EINVAL);
    assert_int_equal(pci_register_add(bridge, 0xfe, 4, 0, 0, NULL), -EINVAL);
    assert_int_equal(pci_register_add(bridge, 0x48, 3, 0, 0, NULL), -EINVAL);
    port_config_set(&board, 31, 0x40, UINT32_MAX);
    assert_int_equal(port_config(&board, 31, 0x40), 0xff01);
    pci_host_reset(board.host);
    assert_int_equal(port_config(&board, 31, 0x40), 0x601);
    /* It decodes ports and memory, though it has no BARs. */
    port_config_set(&board, 31, 4, 7);
    assert_int_equal(port_config(&board, 31, 4) & 7, 7);
    pci_device_free(bridge);
    pci_host_free(board.host);
    bus_free(board.bus);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_doors_show_the_same_registers),
        cmocka_unit_test(read_only_registers_stay),
        cmocka_unit_test(bars_are_sized_and_moved),
        cmocka_unit_test(a_bar_over_another_claim_answers_nowhere),
        cmocka_unit_test(a_bar_has_moved_when_the_write_ends),
        cmocka_unit_test(pins_share_lines),
        cmocka_unit_test(msix_masks_and_remembers),
        cmocka_unit_test(msix_changes_are_told),
        cmocka_unit_test(reset_brings_back_the_first_day),
        cmocka_unit_test(wrong_setups_are_refused),
        cmocka_unit_test(firmware_places_the_configuration_space_of_a_q35),
        cmocka_unit_test(bars_are_told_before_they_answer),
        cmocka_unit_test(devices_have_registers_of_their_own),
    };
    return cmocka_run_group_tests_name("pci", tests, NULL, NULL);
}
