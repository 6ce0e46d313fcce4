/*
 * acpi.h: the tables that tell a guest what the machine has (ACPI 6.5).
 *
 *   RSDP -> XSDT -> FADT -> DSDT, FACS     power: S5, fixed power button, reset register, PM timer
 *                -> MADT                   local APICs, I/O APIC, how ISA interrupts reach it
 *                -> MCFG                   PCI configuration space in memory (ECAM)
 *                -> WDAT                   the watchdog, where there is one
 *
 * All of them lie from ACPI_AREA_START on, in the BIOS area below 1 MiB, where a guest without any
 * boot protocol's help finds the RSDP by its signature (5.2.5.1). There is no HPET and no processor
 * object; the DSDT names the PCI root bridge, COM1, the RTC, the panic port, what ECAM takes, and
 * the VM generation ID: 16 bytes at ACPI_GENERATION, in a page of their own as its specification
 * wants ("Virtual Machine Generation ID", Microsoft, 2018). Whoever changes them raises general-
 * purpose event ACPI_GENERATION_EVENT, which the DSDT makes a Notify of.
 *
 * acpi_build() is pure but for the memory it writes. Errors: -ENOMEM where the guest has no memory
 * there.
 */
#pragma once

#include "base/err.h"
#include "mem/mem.h"

#include <stdint.h>

enum {
    ACPI_AREA_START = 0xe0000,
    ACPI_AREA_SIZE = 0x20000,
    ACPI_PCI_LINES = 4,
    ACPI_GENERATION_SIZE = 16,
    ACPI_GENERATION = ACPI_AREA_START + ACPI_AREA_SIZE - 4096,
    ACPI_GENERATION_EVENT = 0,

    ACPI_IMAGE_MAX = 24 << 10,
    ACPI_LINKS_MAX = 12,
    ACPI_SUMS_MAX = 10,
};

struct acpi_config {
    unsigned cpus; /* APIC IDs 0..cpus-1, < 255 */

    uint16_t pm1_event, pm1_control, pm_timer; /* ports: 4, 2 and 4 bytes */
    uint8_t sci;                               /* GSI, level, active high */
    uint16_t gpe0;                             /* port: 2 bytes of status, 2 of enable */
    uint8_t s5_type;                           /* SLP_TYP of soft-off */
    uint16_t reset_port;                       /* a byte write of reset_value resets the machine */
    uint8_t reset_value;
    uint16_t panic_port; /* 1 byte: pvpanic */
    uint8_t rtc_century; /* CMOS register; 0 = none */
    uint16_t watchdog;   /* ports, as chip/watchdog.h has them; 0 = none */
    uint8_t generation[ACPI_GENERATION_SIZE];

    uint32_t ioapic, local_apic;      /* MMIO addresses */
    uint64_t ecam, ecam_size;         /* below 4 GiB; 1 MiB a bus */
    uint32_t window32, window32_size; /* where PCI BARs may lie */
    uint64_t window64, window64_size; /* size 0 = none */
    uint8_t pci_gsi[ACPI_PCI_LINES];  /* pin P of slot S is line (S + P) % 4 */
};

/* `ret_rsdp` is the guest-physical address of the root pointer. */
int acpi_build(struct mem *mem, const struct acpi_config *config, uint64_t *ret_rsdp,
               struct err *err);

/* The tables by themselves, the RSDP first, for who places them: written for address `base`,
 * without their checksums. `links` are the addresses in them, `sums` the checksums that are to be
 * filled in once those are right. */
struct acpi_link {
    uint32_t at;
    unsigned size; /* 4 or 8 bytes */
};
struct acpi_sum {
    uint32_t at, start, size; /* the byte, and what it is a sum of */
};
struct acpi_image {
    size_t size;
    unsigned link_count, sum_count;
    struct acpi_link links[ACPI_LINKS_MAX];
    struct acpi_sum sums[ACPI_SUMS_MAX];
    uint8_t bytes[ACPI_IMAGE_MAX];
};
void acpi_image(const struct acpi_config *config, uint64_t base, struct acpi_image *ret_image);
