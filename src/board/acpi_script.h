/*
 * acpi_script.h: tells firmware what to do with the tables of acpi_image(): QEMU's "table-loader"
 * script, which OVMF and SeaBIOS execute. It allocates the file ACPI_SCRIPT_FILE, adds where it
 * then lies to all links, and fills in the checksums. Pure.
 */
#pragma once

#include "board/acpi.h"

#include <stddef.h>
#include <stdint.h>

#define ACPI_SCRIPT_FILE "etc/acpi/tables"

enum {
    ACPI_SCRIPT_ENTRY = 128,
    ACPI_SCRIPT_MAX = (1 + ACPI_LINKS_MAX + ACPI_SUMS_MAX) * ACPI_SCRIPT_ENTRY,
};

/* How many bytes it has. */
size_t acpi_script(const struct acpi_image *image, uint8_t ret_script[ACPI_SCRIPT_MAX]);
