/* <os>: what a guest begins with. */
#include "base/bytes.h"
#include "base/own.h"
#include "conf/libvirt_xml.h"

#include <string.h>

static void read_type(struct libvirt *reader, const xmlNode *node, void *object)
{
    const char *arch = libvirt_attribute(node, "arch");
    _cleanup_free_ char *type = libvirt_text(reader, node);
    libvirt_leaf(reader, node, "arch machine");
    if (libvirt_attribute(node, "machine"))
        libvirt_ignore(reader, node, "machine", "the machine is Lodge's own: docs/devices.md");
    if (type && strcmp(type, "hvm") != 0)
        libvirt_refuse(reader, node, NULL, "'%.64s' is no virtual machine; write <type>hvm</type>",
                       type);
    if (arch && !strcmp(arch, "i686"))
        libvirt_map(reader, node, "arch", "x86_64, which runs 32-bit guests as well");
    else if (arch && strcmp(arch, "x86_64") != 0)
        libvirt_refuse(reader, node, "arch", "'%.64s' is another architecture than x86_64", arch);
}

static void read_path(struct libvirt *reader, const xmlNode *node, char **field)
{
    _cleanup_free_ char *text = libvirt_text(reader, node);
    libvirt_leaf(reader, node, "");
    if (text && *text)
        libvirt_replace(reader, field, text);
}

static void read_kernel(struct libvirt *reader, const xmlNode *node, void *object)
{
    read_path(reader, node, &reader->conf->kernel);
}

static void read_initrd(struct libvirt *reader, const xmlNode *node, void *object)
{
    read_path(reader, node, &reader->conf->initrd);
}

static void read_cmdline(struct libvirt *reader, const xmlNode *node, void *object)
{
    read_path(reader, node, &reader->conf->append);
}

static void check_firmware_file(struct libvirt *reader, const xmlNode *node)
{
    const char *format = libvirt_attribute(node, "format");
    if (format && strcmp(format, "raw") != 0)
        libvirt_refuse(reader, node, "format", "a firmware's files are raw");
}

static void read_loader(struct libvirt *reader, const xmlNode *node, void *object)
{
    const char *stateless = libvirt_attribute(node, "stateless");
    _cleanup_free_ char *path = libvirt_text(reader, node);
    libvirt_leaf(reader, node, "readonly type secure stateless format");
    check_firmware_file(reader, node);
    if (libvirt_is(libvirt_attribute(node, "secure"), "yes"))
        libvirt_refuse(reader, node, "secure", "the firmware is without secure boot");
    if (libvirt_is(stateless, "yes"))
        libvirt_ignore(reader, node, "stateless", "the firmware has a store of variables");
    if (libvirt_is(libvirt_attribute(node, "readonly"), "no"))
        libvirt_ignore(reader, node, "readonly", "a guest cannot change its firmware");
    if (!path || !*path)
        return;
    reader->firmware = node;
    libvirt_replace(reader, &reader->conf->firmware, path);
}

static void read_nvram_source(struct libvirt *reader, const xmlNode *node, void *object)
{
    const char *path = libvirt_attribute(node, "file");
    libvirt_leaf(reader, node, "file");
    if (path && *path)
        libvirt_replace(reader, &reader->conf->nvram, path);
    else
        libvirt_refuse(reader, node, NULL, "no file; write <source file='/PATH'/>");
}

static const struct libvirt_row nvram_rows[] = {
    {.name = "source", .read = read_nvram_source},
};

static void read_nvram(struct libvirt *reader, const xmlNode *node, void *object)
{
    const char *type = libvirt_attribute(node, "type");
    check_firmware_file(reader, node);
    if (type && strcmp(type, "file") != 0)
        libvirt_refuse(reader, node, "type", "the store is a file");
    else if (libvirt_child(node, "source"))
        libvirt_visit(reader, node, "type format", nvram_rows, ARRAY_LEN(nvram_rows), object);
    else {
        read_path(reader, node, &reader->conf->nvram);
        if (libvirt_attribute(node, "template"))
            libvirt_ignore(reader, node, "template", "a new store is a copy of OVMF's");
    }
}

static void read_boot(struct libvirt *reader, const xmlNode *node, void *object)
{
    const char *device = libvirt_attribute(node, "dev");
    libvirt_leaf(reader, node, "dev");
    libvirt_ignore(reader, node, "dev",
                   libvirt_is(device, "network")
                       ? "nothing boots from networks"
                       : "the firmware tries disks in the order in which they stand");
}

static void read_feature(struct libvirt *reader, const xmlNode *node, void *object)
{
    const char *name = libvirt_attribute(node, "name");
    libvirt_leaf(reader, node, "enabled name");
    if (!libvirt_is(libvirt_attribute(node, "enabled"), "yes"))
        return;
    if (libvirt_is(name, "secure-boot"))
        libvirt_refuse(reader, node, NULL, "the firmware is without secure boot");
    else
        libvirt_ignore(reader, node, NULL, "the firmware is as it is");
}

static const struct libvirt_row firmware_rows[] = {
    {.name = "feature", .read = read_feature, .many = true},
};

static void read_firmware(struct libvirt *reader, const xmlNode *node, void *object)
{
    libvirt_visit(reader, node, "", firmware_rows, ARRAY_LEN(firmware_rows), object);
}

#define TABLES "ACPI tables are Lodge's own, and there are no SMBIOS tables"

static const struct libvirt_row os_rows[] = {
    {.name = "type", .read = read_type},
    {.name = "kernel", .read = read_kernel},
    {.name = "initrd", .read = read_initrd},
    {.name = "cmdline", .read = read_cmdline},
    {.name = "loader", .read = read_loader},
    {.name = "nvram", .read = read_nvram},
    {.name = "boot", .read = read_boot, .many = true},
    {.name = "firmware", .read = read_firmware},
    {.name = "bootmenu", .verdict = GUEST_NOTE_IGNORED, .why = "the firmware is as it is"},
    {.name = "bios", .verdict = GUEST_NOTE_IGNORED, .why = "the firmware is as it is"},
    {.name = "smbios", .verdict = GUEST_NOTE_IGNORED, .why = TABLES},
    {.name = "acpi", .verdict = GUEST_NOTE_IGNORED, .why = TABLES},
    {.name = "dtb", .verdict = GUEST_NOTE_REFUSED, .why = "x86 has no device trees"},
    {.name = "init", .verdict = GUEST_NOTE_REFUSED, .why = "that is a container's"},
};

void libvirt_os(struct libvirt *reader, const xmlNode *node, void *object)
{
    const char *firmware = libvirt_attribute(node, "firmware");
    libvirt_visit(reader, node, "firmware", os_rows, ARRAY_LEN(os_rows), object);
    if (!firmware)
        return;
    if (strcmp(firmware, "efi") != 0)
        libvirt_refuse(reader, node, "firmware",
                       "there is no %.64s here; write <os firmware='efi'>, and a disk that boots "
                       "by UEFI",
                       !strcmp(firmware, "bios") ? "BIOS" : firmware);
    else if (!reader->firmware) {
        reader->firmware = node;
        libvirt_replace(reader, &reader->conf->firmware, GUEST_FIRMWARE_UEFI);
    }
}
