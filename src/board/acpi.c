#include "board/acpi.h"

#include "base/bytes.h"
#include "base/own.h"
#include "board/acpi_dsdt.h"
#include "chip/watchdog.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    HEADER_SIZE = 36, /* every table but RSDP and FACS begins so, 5.2.6 */
    LENGTH = 4,
    REVISION = 8,
    CHECKSUM = 9,

    RSDP_SIZE = 36,
    RSDP_CHECKSUM = 8, /* of the first 20 bytes */
    RSDP_CHECKSUM_ALL = 32,
    FACS_SIZE = 64,
    FADT_SIZE = 276,
    TABLE_ALIGN = 64,
    TABLES_MAX = 4, /* what the XSDT lists */
};

/* The tables while they are being written; addresses are the guest's. */
struct area {
    struct acpi_image *image;
    uint64_t base;
};

static uint8_t *area_take(struct area *area, size_t size, uint64_t *ret_at)
{
    struct acpi_image *image = area->image;
    size_t at = align_up(image->size, TABLE_ALIGN);
    assert(range_fits(at, size, sizeof image->bytes));
    image->size = at + size;
    *ret_at = area->base + at;
    return image->bytes + at;
}

/* The address of another table, 4 or 8 bytes. */
static void point(struct area *area, uint8_t *field, unsigned size, uint64_t to)
{
    struct acpi_image *image = area->image;
    assert(image->link_count < ACPI_LINKS_MAX);
    image->links[image->link_count++] =
        (struct acpi_link){.at = (uint32_t)(field - image->bytes), .size = size};
    if (size == 8)
        le64_write(field, to);
    else
        le32_write(field, (uint32_t)to);
}

/* Over `size` bytes from `table` on, at `field`; written when all else is. */
static void sum_later(struct area *area, const uint8_t *field, const uint8_t *table, size_t size)
{
    struct acpi_image *image = area->image;
    assert(image->sum_count < ACPI_SUMS_MAX);
    image->sums[image->sum_count++] = (struct acpi_sum){.at = (uint32_t)(field - image->bytes),
                                                        .start = (uint32_t)(table - image->bytes),
                                                        .size = (uint32_t)size};
}

static uint8_t checksum(const uint8_t *bytes, size_t size)
{
    uint8_t sum = 0;
    for (size_t i = 0; i < size; i++)
        sum = (uint8_t)(sum + bytes[i]);
    return (uint8_t)-sum;
}

static uint8_t *table_begin(struct area *area, const char *signature, uint8_t revision, size_t size,
                            uint64_t *ret_at)
{
    uint8_t *table = area_take(area, size, ret_at);
    memcpy(table, signature, 4);
    le32_write(table + LENGTH, (uint32_t)size);
    table[REVISION] = revision;
    memcpy(table + 10, "LODGE ", 6);
    memcpy(table + 16, "LODGEVM ", 8);
    le32_write(table + 24, 1);
    memcpy(table + 28, "LODG", 4);
    le32_write(table + 32, 1);
    sum_later(area, table + CHECKSUM, table, size);
    return table;
}

/* Generic address structure, 5.2.3.2, of a port of `bytes` bytes. */
static void gas_port(uint8_t *at, uint16_t port, unsigned bytes)
{
    at[0] = 1; /* system I/O */
    at[1] = (uint8_t)(bytes * 8);
    at[2] = 0;
    at[3] = bytes == 1 ? 1 : bytes == 2 ? 2 : 3; /* access size */
    le64_write(at + 4, port);
}

static uint64_t dsdt_build(struct area *area, const struct acpi_config *config)
{
    struct aml aml = {.size = 0};
    acpi_dsdt_write(&aml, config);
    uint64_t at;
    uint8_t *table = table_begin(area, "DSDT", 2, HEADER_SIZE + aml.size, &at);
    memcpy(table + HEADER_SIZE, aml.bytes, aml.size);
    return at;
}

static uint64_t facs_build(struct area *area)
{
    uint64_t at;
    uint8_t *table = area_take(area, FACS_SIZE, &at);
    memcpy(table, "FACS", 4);
    le32_write(table + LENGTH, FACS_SIZE);
    table[32] = 2; /* version */
    return at;
}

/* 5.2.9; offsets from table 5.9. */
static uint64_t fadt_build(struct area *area, const struct acpi_config *config, uint64_t dsdt,
                           uint64_t facs)
{
    enum {
        BOOT_LEGACY_DEVICES = 1 << 0, /* COM1; bit 1, a keyboard controller, stays clear */
        BOOT_NO_VGA = 1 << 2,
        BOOT_NO_ASPM = 1 << 4,
        FLAG_WBINVD = 1 << 0,
        FLAG_C1 = 1 << 2,
        FLAG_NO_SLEEP_BUTTON = 1 << 5, /* bit 4 clear: the power button is a fixed one */
        FLAG_TIMER_32 = 1 << 8,
        FLAG_RESET_REGISTER = 1 << 10,
    };
    uint64_t at;
    uint8_t *table = table_begin(area, "FACP", 6, FADT_SIZE, &at);
    point(area, table + 36, 4, facs);
    point(area, table + 40, 4, dsdt);
    le16_write(table + 46, config->sci);
    /* SMI_CMD stays 0: the machine is always in ACPI mode. */
    le32_write(table + 56, config->pm1_event);
    le32_write(table + 64, config->pm1_control);
    le32_write(table + 76, config->pm_timer);
    table[88] = 4;
    table[89] = 2;
    table[91] = 4;
    le32_write(table + 80, config->gpe0);
    table[92] = 4;               /* GPE0: 16 events */
    le16_write(table + 96, 101); /* C2 and C3 are not there: latencies past the limits */
    le16_write(table + 98, 1001);
    table[108] = config->rtc_century;
    le16_write(table + 109, BOOT_LEGACY_DEVICES | BOOT_NO_VGA | BOOT_NO_ASPM);
    le32_write(table + 112,
               FLAG_WBINVD | FLAG_C1 | FLAG_NO_SLEEP_BUTTON | FLAG_TIMER_32 | FLAG_RESET_REGISTER);
    gas_port(table + 116, config->reset_port, 1);
    table[128] = config->reset_value;
    table[131] = 5; /* minor version: 6.5 */
    point(area, table + 140, 8, dsdt);
    gas_port(table + 148, config->pm1_event, 4);
    gas_port(table + 172, config->pm1_control, 2);
    gas_port(table + 208, config->pm_timer, 4);
    gas_port(table + 220, config->gpe0, 4);
    memcpy(table + 268, "LODGE\0\0\0", 8);
    return at;
}

/* 5.2.12. Overrides: the PIT's IRQ 0 comes in at GSI 2 as on every PC; the SCI is level-triggered.
 */
static uint64_t madt_build(struct area *area, const struct acpi_config *config)
{
    enum { LOCAL_APIC = 8, IO_APIC = 12, OVERRIDE = 10, NMI = 6, ISA_TIMER_GSI = 2 };
    enum { HIGH_LEVEL = 1 | 3 << 2 };
    size_t size =
        HEADER_SIZE + 8 + LOCAL_APIC * (size_t)config->cpus + IO_APIC + 2 * OVERRIDE + NMI;
    uint64_t at;
    uint8_t *table = table_begin(area, "APIC", 5, size, &at);
    le32_write(table + 36, config->local_apic);
    le32_write(table + 40, 1); /* PCAT_COMPAT: there are two 8259s as well */

    uint8_t *entry = table + 44;
    for (unsigned i = 0; i < config->cpus; i++, entry += LOCAL_APIC) {
        entry[0] = 0;
        entry[1] = LOCAL_APIC;
        entry[2] = entry[3] = (uint8_t)i; /* processor UID, APIC ID */
        le32_write(entry + 4, 1);         /* enabled */
    }
    entry[0] = 1;
    entry[1] = IO_APIC;
    entry[2] = 0; /* its ID; GSIs start at 0 */
    le32_write(entry + 4, config->ioapic);
    entry += IO_APIC;

    const struct {
        uint8_t irq, gsi, flags;
    } overrides[] = {{0, ISA_TIMER_GSI, 0}, {config->sci, config->sci, HIGH_LEVEL}};
    for (size_t i = 0; i < ARRAY_LEN(overrides); i++, entry += OVERRIDE) {
        entry[0] = 2;
        entry[1] = OVERRIDE;
        entry[3] = overrides[i].irq;
        le32_write(entry + 4, overrides[i].gsi);
        le16_write(entry + 8, overrides[i].flags);
    }
    entry[0] = 4; /* NMI comes in at LINT1 of every processor */
    entry[1] = NMI;
    entry[2] = 0xff;
    entry[5] = 1;
    return at;
}

/* PCI Firmware 3.3, 4.1.2. */
static uint64_t mcfg_build(struct area *area, const struct acpi_config *config)
{
    uint64_t at;
    uint8_t *table = table_begin(area, "MCFG", 1, HEADER_SIZE + 8 + 16, &at);
    le64_write(table + 44, config->ecam);
    table[55] = (uint8_t)((config->ecam_size >> 20) - 1); /* last bus */
    return at;
}

/* "Hardware Watchdog Timers Design Specification", Microsoft, 2006. What to do is a list of
 * accesses to registers; here each action is one. */
static uint64_t wdat_build(struct area *area, const struct acpi_config *config)
{
    enum { TIMER = 32, ENTRY = 24, ENABLED = 1, NO_PCI = 0xff };
    enum { READ_VALUE, READ_COUNT, WRITE_VALUE, WRITE_COUNT };
    static const struct {
        uint8_t action, instruction, at, value;
    } entries[] = {
        {1, WRITE_VALUE, WATCHDOG_COUNT, 1},    /* reset, the word for a ping */
        {4, READ_COUNT, WATCHDOG_COUNT, 0},     /* query the count */
        {5, READ_COUNT, WATCHDOG_PERIOD, 0},    /* query the period */
        {6, WRITE_COUNT, WATCHDOG_PERIOD, 0},   /* set the period */
        {8, READ_VALUE, WATCHDOG_RUNNING, 1},   /* does it run? */
        {9, WRITE_VALUE, WATCHDOG_RUNNING, 1},  /* run */
        {10, READ_VALUE, WATCHDOG_RUNNING, 0},  /* does it stand? */
        {11, WRITE_VALUE, WATCHDOG_RUNNING, 0}, /* stop */
        {32, READ_VALUE, WATCHDOG_EXPIRED, 1},  /* was it the reason of this boot? */
        {33, WRITE_VALUE, WATCHDOG_EXPIRED, 1}, /* forget that */
    };
    uint64_t at;
    uint8_t *table =
        table_begin(area, "WDAT", 1, HEADER_SIZE + TIMER + ENTRY * ARRAY_LEN(entries), &at);
    le32_write(table + 36, TIMER);
    le16_write(table + 40, NO_PCI);
    table[42] = table[43] = table[44] = NO_PCI;
    le32_write(table + 48, WATCHDOG_TICK_MS);
    le32_write(table + 52, WATCHDOG_PERIOD_MAX);
    le32_write(table + 56, WATCHDOG_PERIOD_MIN);
    table[60] = ENABLED;
    le32_write(table + 64, ARRAY_LEN(entries));
    uint8_t *entry = table + HEADER_SIZE + TIMER;
    for (size_t i = 0; i < ARRAY_LEN(entries); i++, entry += ENTRY) {
        entry[0] = entries[i].action;
        entry[1] = entries[i].instruction;
        gas_port(entry + 4, (uint16_t)(config->watchdog + entries[i].at), 4);
        le32_write(entry + 16, entries[i].value);
        le32_write(entry + 20, UINT32_MAX);
    }
    return at;
}

static uint64_t xsdt_build(struct area *area, const uint64_t *tables, size_t count)
{
    uint64_t at;
    uint8_t *table = table_begin(area, "XSDT", 1, HEADER_SIZE + 8 * count, &at);
    for (size_t i = 0; i < count; i++)
        point(area, table + HEADER_SIZE + 8 * i, 8, tables[i]);
    return at;
}

/* 5.2.5.3 */
static void rsdp_fill(struct area *area, uint8_t *rsdp, uint64_t xsdt)
{
    memcpy(rsdp, "RSD PTR ", 8);
    memcpy(rsdp + 9, "LODGE ", 6);
    rsdp[15] = 2; /* revision: there is an XSDT, and no RSDT */
    le32_write(rsdp + 20, RSDP_SIZE);
    point(area, rsdp + 24, 8, xsdt);
    sum_later(area, rsdp + RSDP_CHECKSUM, rsdp, 20);
    sum_later(area, rsdp + RSDP_CHECKSUM_ALL, rsdp, RSDP_SIZE);
}

void acpi_image(const struct acpi_config *config, uint64_t base, struct acpi_image *ret_image)
{
    assert(config->cpus > 0 && config->cpus < 255);
    memset(ret_image, 0, sizeof *ret_image);
    struct area area = {.image = ret_image, .base = base};
    uint64_t at;
    uint8_t *rsdp = area_take(&area, RSDP_SIZE, &at);
    uint64_t dsdt = dsdt_build(&area, config);
    uint64_t facs = facs_build(&area);
    const uint64_t tables[TABLES_MAX] = {
        fadt_build(&area, config, dsdt, facs),
        madt_build(&area, config),
        mcfg_build(&area, config),
        config->watchdog ? wdat_build(&area, config) : 0,
    };
    rsdp_fill(&area, rsdp,
              xsdt_build(&area, tables, config->watchdog ? TABLES_MAX : TABLES_MAX - 1));
}

int acpi_build(struct mem *mem, const struct acpi_config *config, uint64_t *ret_rsdp,
               struct err *err)
{
    uint8_t *area = mem_at_load(mem, ACPI_AREA_START, ACPI_AREA_SIZE);
    _cleanup_free_ struct acpi_image *image = malloc(sizeof *image);
    if (!area || !image)
        return err_set(err, -ENOMEM, "the guest has no memory for ACPI tables");
    acpi_image(config, ACPI_AREA_START, image);
    for (unsigned i = 0; i < image->sum_count; i++) {
        const struct acpi_sum *sum = &image->sums[i];
        image->bytes[sum->at] = checksum(image->bytes + sum->start, sum->size);
    }
    memset(area, 0, ACPI_AREA_SIZE);
    memcpy(area, image->bytes, image->size);
    memcpy(area + (ACPI_GENERATION - ACPI_AREA_START), config->generation, ACPI_GENERATION_SIZE);
    mem_written(mem, ACPI_AREA_START, ACPI_AREA_SIZE);
    *ret_rsdp = ACPI_AREA_START;
    return 0;
}
