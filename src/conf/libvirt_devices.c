/* <devices>, but for disks and network cards. */
#include "base/bytes.h"
#include "base/own.h"
#include "conf/libvirt_xml.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- serial ports ---- */

#define STANDARD "the serial port is on standard input and output of lodge"

static void read_target(struct libvirt *reader, const xmlNode *node, void *object)
{
    static const struct libvirt_row rows[] = {
        {.name = "model", .verdict = GUEST_NOTE_IGNORED, .why = "the serial port is a 16550A"},
    };
    libvirt_visit(reader, node, "type port", rows, ARRAY_LEN(rows), NULL);
}

static const struct libvirt_row serial_rows[] = {
    {.name = "target", .read = read_target},
    {.name = "source", .verdict = GUEST_NOTE_IGNORED, .why = STANDARD},
    {.name = "protocol", .verdict = GUEST_NOTE_IGNORED, .why = STANDARD},
    {.name = "log", .verdict = GUEST_NOTE_IGNORED, .why = STANDARD},
    {.name = "alias", .verdict = GUEST_NOTE_IGNORED, .why = LIBVIRT_ADDRESS},
    {.name = "address", .verdict = GUEST_NOTE_IGNORED, .why = LIBVIRT_ADDRESS},
};

static void read_serial(struct libvirt *reader, const xmlNode *node, void *object)
{
    const char *type = libvirt_attribute(node, "type");
    if (reader->serials++ > 0) {
        libvirt_ignore(reader, node, NULL, "a second serial port; there is one");
        return;
    }
    if (type && strcmp(type, "pty") != 0 && strcmp(type, "stdio") != 0)
        libvirt_map(reader, node, "type", STANDARD);
    libvirt_visit(reader, node, "type", serial_rows, ARRAY_LEN(serial_rows), NULL);
}

static void read_console(struct libvirt *reader, const xmlNode *node, void *object)
{
    const xmlNode *target = libvirt_child(node, "target");
    const char *kind = target ? libvirt_attribute(target, "type") : NULL;
    if (kind && strcmp(kind, "serial") != 0)
        libvirt_ignore(reader, node, NULL, "the console is the serial port");
    else
        libvirt_visit(reader, node, "type", serial_rows, ARRAY_LEN(serial_rows), NULL);
}

/* ---- small ones ---- */

static void read_balloon(struct libvirt *reader, const xmlNode *node, void *object)
{
    static const struct libvirt_row rows[] = {
        {.name = "stats", .verdict = GUEST_NOTE_IGNORED, .why = "figures come as they are asked"},
        {.name = "alias", .verdict = GUEST_NOTE_IGNORED, .why = LIBVIRT_ADDRESS},
        {.name = "address", .verdict = GUEST_NOTE_IGNORED, .why = LIBVIRT_ADDRESS},
    };
    const char *model = libvirt_attribute(node, "model");
    libvirt_visit(reader, node, "model", rows, ARRAY_LEN(rows), NULL);
    reader->conf->balloon = !libvirt_is(model, "none");
    if (model && strncmp(model, "virtio", 6) != 0 && strcmp(model, "none") != 0)
        libvirt_map(reader, node, "model", "virtio, instead of %.32s", model);
}

static void read_watchdog(struct libvirt *reader, const xmlNode *node, void *object)
{
    static const struct libvirt_row rows[] = {
        {.name = "alias", .verdict = GUEST_NOTE_IGNORED, .why = LIBVIRT_ADDRESS},
        {.name = "address", .verdict = GUEST_NOTE_IGNORED, .why = LIBVIRT_ADDRESS},
    };
    const char *model = libvirt_attribute(node, "model");
    const char *action = libvirt_attribute(node, "action");
    enum guest_watchdog *watchdog = &reader->conf->watchdog;
    libvirt_visit(reader, node, "model action", rows, ARRAY_LEN(rows), NULL);
    libvirt_map(reader, node, "model", "an ACPI watchdog (Linux: wdat_wdt), instead of %.32s",
                model ? model : "another");
    if (!action || !strcmp(action, "reset"))
        *watchdog = GUEST_WATCHDOG_RESET;
    else if (!strcmp(action, "poweroff"))
        *watchdog = GUEST_WATCHDOG_POWER_OFF;
    else if (!strcmp(action, "none"))
        *watchdog = GUEST_WATCHDOG_EVENT;
    else if (!strcmp(action, "shutdown")) {
        *watchdog = GUEST_WATCHDOG_POWER_OFF;
        libvirt_map(reader, node, "action", "poweroff: a guest that hangs hears no request");
    } else {
        libvirt_refuse(reader, node, "action",
                       "'%.64s' cannot be done; there are reset, poweroff, shutdown and none",
                       action);
    }
}

static void read_cid(struct libvirt *reader, const xmlNode *node, void *object)
{
    const char *address = libvirt_attribute(node, "address");
    struct err why = {0};
    libvirt_visit(reader, node, "auto address", NULL, 0, NULL);
    if (address && !libvirt_is(libvirt_attribute(node, "auto"), "yes") &&
        guest_vsock_set_cid(&reader->conf->vsock, address, &why) < 0)
        libvirt_refuse(reader, node, "address", "%s", why.text);
}

/* The name may stand behind the devices; so it is looked up. */
static void read_vsock(struct libvirt *reader, const xmlNode *node, void *object)
{
    static const struct libvirt_row rows[] = {
        {.name = "cid", .read = read_cid},
        {.name = "alias", .verdict = GUEST_NOTE_IGNORED, .why = LIBVIRT_ADDRESS},
        {.name = "address", .verdict = GUEST_NOTE_IGNORED, .why = LIBVIRT_ADDRESS},
    };
    struct err why = {0};
    libvirt_visit(reader, node, "model", rows, ARRAY_LEN(rows), NULL);
    const xmlNode *domain = node->parent;
    while (domain->parent && domain->parent->type == XML_ELEMENT_NODE)
        domain = domain->parent;
    const xmlNode *named = libvirt_child(domain, "name");
    _cleanup_free_ char *name = named ? libvirt_text(reader, named) : strdup("guest"), *path = NULL;
    if (!name || asprintf(&path, "%s.vsock", name) < 0) {
        reader->r = -ENOMEM;
        return;
    }
    if (guest_vsock_set_path(&reader->conf->vsock, path, &why) < 0)
        libvirt_refuse(reader, node, NULL, "%s", why.text);
    else
        libvirt_map(reader, node, NULL,
                    "vsock %.64s: Unix sockets in this folder, not AF_VSOCK (docs/vsock.md)", path);
}

/* ---- shared folders ---- */

static void set_share(struct libvirt *reader, const xmlNode *node, struct guest_share *share,
                      const char *name)
{
    const char *value = libvirt_attribute(node, "dir");
    struct err why = {0};
    libvirt_visit(reader, node, "dir", NULL, 0, NULL);
    if (guest_share_set(share, name, value ? value : "", &why) < 0)
        libvirt_refuse(reader, node, "dir", "%s", why.text);
}

static void read_share_source(struct libvirt *reader, const xmlNode *node, void *object)
{
    set_share(reader, node, object, "path");
}

static void read_share_target(struct libvirt *reader, const xmlNode *node, void *object)
{
    set_share(reader, node, object, "tag");
}

static void read_share_driver(struct libvirt *reader, const xmlNode *node, void *object)
{
    const char *type = libvirt_attribute(node, "type");
    libvirt_visit(reader, node, "type", NULL, 0, NULL);
    if (type && strcmp(type, "virtiofs") != 0)
        libvirt_map(reader, node, "type", "virtiofs: mount -t virtiofs, not 9p");
}

static void read_share_readonly(struct libvirt *reader, const xmlNode *node, void *object)
{
    ((struct guest_share *)object)->read_only = true;
    libvirt_leaf(reader, node, "");
}

static const struct libvirt_row share_rows[] = {
    {.name = "source", .read = read_share_source},
    {.name = "target", .read = read_share_target},
    {.name = "driver", .read = read_share_driver},
    {.name = "readonly", .read = read_share_readonly},
    {.name = "binary", .verdict = GUEST_NOTE_IGNORED, .why = "lodge-share serves folders"},
    {.name = "alias", .verdict = GUEST_NOTE_IGNORED, .why = LIBVIRT_ADDRESS},
    {.name = "address", .verdict = GUEST_NOTE_IGNORED, .why = LIBVIRT_ADDRESS},
};

static void read_filesystem(struct libvirt *reader, const xmlNode *node, void *object)
{
    struct guest_share share = {.fd = -1};
    struct err why = {0};
    unsigned refused = reader->notes->refused;
    const char *type = libvirt_attribute(node, "type");
    const char *access = libvirt_attribute(node, "accessmode");
    if (type && strcmp(type, "mount") != 0) {
        libvirt_refuse(reader, node, "type",
                       "'%.64s' is no folder; write <filesystem type='mount'>", type);
        return;
    }
    libvirt_visit(reader, node, "type accessmode", share_rows, ARRAY_LEN(share_rows), &share);
    if (access && strcmp(access, "passthrough") != 0)
        libvirt_map(reader, node, "accessmode",
                    "files belong to whom docs/shares.md says, not '%.32s'", access);
    if (!libvirt_child(node, "driver"))
        libvirt_map(reader, node, NULL, "virtiofs: mount -t virtiofs, not 9p");
    if (reader->notes->refused > refused)
        guest_share_free(&share);
    else if (guest_conf_take_share(reader->conf, &share, &why) < 0)
        libvirt_refuse(reader, node, NULL, "%s", why.text);
}

/* ---- the table ---- */

#define NO_SCREEN "there is no screen yet; the console is the serial port"
#define NO_INPUT  "there is no screen yet, and so no keyboard or mouse"
#define MISSED    "the guest would miss it"

const struct libvirt_row libvirt_devices[] = {
    {.name = "disk", .read = libvirt_disk, .many = true},
    {.name = "interface", .read = libvirt_nic, .many = true},
    {.name = "filesystem", .read = read_filesystem, .many = true},
    {.name = "serial", .read = read_serial, .many = true},
    {.name = "console", .read = read_console, .many = true},
    {.name = "memballoon", .read = read_balloon},
    {.name = "watchdog", .read = read_watchdog},
    {.name = "vsock", .read = read_vsock},
    {.name = "rng",
     .verdict = GUEST_NOTE_MAPPED,
     .why = "virtio-rng, which every guest has, fed by the host's own generator"},
    {.name = "panic", .verdict = GUEST_NOTE_MAPPED, .why = "pvpanic, which every guest has"},
    {.name = "emulator", .verdict = GUEST_NOTE_IGNORED, .why = "the machine is Lodge's own"},
    {.name = "controller", .verdict = GUEST_NOTE_IGNORED, .why = "each device is on PCI by itself"},
    {.name = "channel",
     .verdict = GUEST_NOTE_IGNORED,
     .why = "agents are reached by lodge's own channel and by vsock"},
    {.name = "parallel", .verdict = GUEST_NOTE_IGNORED, .why = "there is no parallel port"},
    {.name = "graphics", .verdict = GUEST_NOTE_IGNORED, .why = NO_SCREEN},
    {.name = "video", .verdict = GUEST_NOTE_IGNORED, .why = NO_SCREEN},
    {.name = "input", .verdict = GUEST_NOTE_IGNORED, .why = NO_INPUT},
    {.name = "sound", .verdict = GUEST_NOTE_IGNORED, .why = "there is no sound"},
    {.name = "audio", .verdict = GUEST_NOTE_IGNORED, .why = "there is no sound"},
    {.name = "hub", .verdict = GUEST_NOTE_IGNORED, .why = "there is no USB"},
    {.name = "redirdev", .verdict = GUEST_NOTE_IGNORED, .why = "there is no USB"},
    {.name = "redirfilter", .verdict = GUEST_NOTE_IGNORED, .why = "there is no USB"},
    {.name = "crypto", .verdict = GUEST_NOTE_IGNORED, .why = "the processor does that"},
    {.name = "iommu", .verdict = GUEST_NOTE_IGNORED, .why = "no device of the host's is passed on"},
    {.name = "hostdev",
     .verdict = GUEST_NOTE_REFUSED,
     .why = "no device of the host's is passed on; " MISSED},
    {.name = "tpm", .verdict = GUEST_NOTE_REFUSED, .why = "there is no TPM; " MISSED},
    {.name = "smartcard", .verdict = GUEST_NOTE_REFUSED, .why = "there are none; " MISSED},
    {.name = "shmem", .verdict = GUEST_NOTE_REFUSED, .why = "memory is not shared; " MISSED},
    {.name = "memory",
     .verdict = GUEST_NOTE_REFUSED,
     .why = "no memory is plugged in; put all of it into the domain's <memory>"},
    {.name = "lease", .verdict = GUEST_NOTE_REFUSED, .why = "there is no lock manager"},
};
const size_t libvirt_devices_count = ARRAY_LEN(libvirt_devices);
