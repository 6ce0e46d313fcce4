#include "board/acpi_script.h"

#include "base/bytes.h"

/* QEMU, hw/acpi/bios-linker-loader.c: each entry is a command and its arguments, file names taking
 * 56 bytes. */
enum {
    COMMAND_ALLOCATE = 1,
    COMMAND_ADD_POINTER = 2,
    COMMAND_ADD_CHECKSUM = 3,

    FILE_AT = 4,
    FILE_SIZE = 56,
    AFTER_FILE = FILE_AT + FILE_SIZE,
    AFTER_FILES = AFTER_FILE + FILE_SIZE,

    ALIGNMENT = 64,
    ZONE_HIGH = 1,
};

static uint8_t *entry(uint8_t *script, size_t *used, uint32_t command)
{
    uint8_t *at = script + *used;
    memset(at, 0, ACPI_SCRIPT_ENTRY);
    le32_write(at, command);
    memcpy(at + FILE_AT, ACPI_SCRIPT_FILE, sizeof ACPI_SCRIPT_FILE);
    *used += ACPI_SCRIPT_ENTRY;
    return at;
}

size_t acpi_script(const struct acpi_image *image, uint8_t ret_script[ACPI_SCRIPT_MAX])
{
    size_t used = 0;
    uint8_t *at = entry(ret_script, &used, COMMAND_ALLOCATE);
    le32_write(at + AFTER_FILE, ALIGNMENT);
    at[AFTER_FILE + 4] = ZONE_HIGH;
    for (unsigned i = 0; i < image->link_count; i++) {
        at = entry(ret_script, &used, COMMAND_ADD_POINTER);
        memcpy(at + AFTER_FILE, ACPI_SCRIPT_FILE, sizeof ACPI_SCRIPT_FILE);
        le32_write(at + AFTER_FILES, image->links[i].at);
        at[AFTER_FILES + 4] = (uint8_t)image->links[i].size;
    }
    for (unsigned i = 0; i < image->sum_count; i++) {
        at = entry(ret_script, &used, COMMAND_ADD_CHECKSUM);
        le32_write(at + AFTER_FILE, image->sums[i].at);
        le32_write(at + AFTER_FILE + 4, image->sums[i].start);
        le32_write(at + AFTER_FILE + 8, image->sums[i].size);
    }
    return used;
}
