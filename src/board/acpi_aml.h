/*
 * acpi_aml.h: writes ACPI Machine Language (ACPI 6.5, chapter 20).
 *
 * A `struct aml` is a buffer that terms are appended to. What has a length in front is opened and
 * closed: aml_open_...() leaves room for the length and returns where it is, aml_close() fills it
 * in. Resource templates are appended between aml_open_resources() and aml_close_resources().
 *
 *     size_t device = aml_open_device(&aml, "COM1");
 *     aml_name_eisa(&aml, "_HID", "PNP0501");
 *     aml_close(&aml, device);
 *
 * Names are one segment of four characters. The board is the only author of these terms, so a
 * buffer that is full or a length that does not fit is our own bug: an assertion. Pure.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { AML_SIZE_MAX = 16 << 10 };

struct aml {
    size_t size;
    uint8_t bytes[AML_SIZE_MAX];
};

/* Data objects. Integers take the shortest encoding. */
void aml_integer(struct aml *aml, uint64_t value);
void aml_string(struct aml *aml, const char *text);

/* Name (NAME, value). */
void aml_name(struct aml *aml, const char *name); /* the value follows */
void aml_name_integer(struct aml *aml, const char *name, uint64_t value);
void aml_name_string(struct aml *aml, const char *name, const char *text);
void aml_name_eisa(struct aml *aml, const char *name, const char *id);

size_t aml_open_scope(struct aml *aml, const char *name); /* under the root: \NAME */
size_t aml_open_device(struct aml *aml, const char *name);
size_t aml_open_method(struct aml *aml, const char *name, unsigned arguments);
size_t aml_open_package(struct aml *aml, unsigned elements);
void aml_close(struct aml *aml, size_t open);

/* Notify (\SCOPE.DEVICE, value). */
void aml_notify(struct aml *aml, const char *scope, const char *device, unsigned value);

/* Return (ArgN). */
void aml_return_argument(struct aml *aml, unsigned argument);

/* Resource templates, ACPI 6.5, 6.4. */
struct aml_resources {
    size_t open, length_at;
};
struct aml_resources aml_open_resources(struct aml *aml);
void aml_close_resources(struct aml *aml, struct aml_resources resources);
void aml_io(struct aml *aml, uint16_t start, uint8_t size);
void aml_irq(struct aml *aml, unsigned irq); /* edge, active high, exclusive */
void aml_memory_fixed(struct aml *aml, uint32_t start, uint32_t size);
/* Windows that a bridge passes on; [start, start + size). */
void aml_bus_window(struct aml *aml, uint16_t first, uint16_t count);
void aml_io_window(struct aml *aml, uint16_t start, uint32_t size);
void aml_memory32_window(struct aml *aml, uint32_t start, uint32_t size);
void aml_memory64_window(struct aml *aml, uint64_t start, uint64_t size);
