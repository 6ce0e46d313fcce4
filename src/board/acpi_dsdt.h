/* acpi_dsdt.h: the machine's devices in AML, for the DSDT's body. Pure. */
#pragma once

#include "board/acpi.h"
#include "board/acpi_aml.h"

void acpi_dsdt_write(struct aml *aml, const struct acpi_config *config);
