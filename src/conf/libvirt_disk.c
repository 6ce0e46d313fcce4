/* <disk>. */
#include "base/bytes.h"
#include "base/own.h"
#include "conf/libvirt_xml.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define URL_EXAMPLE                                                                                \
    "<source protocol='http' name='/PATH'><host name='HOST' port='80'/></source> in a <disk "      \
    "type='network'>"

struct disk_reader {
    struct guest_disk disk;
    const char *type;
    bool cdrom;
    unsigned refused;    /* before it */
    const xmlNode *host; /* of the source */
};

/* A property of guest_disk_set(); what it says against the value is the refusal. */
static void set(struct libvirt *reader, const xmlNode *node, const char *attribute,
                struct guest_disk *disk, const char *name, const char *value)
{
    struct err why = {0};
    if (guest_disk_set(disk, name, value, &why) < 0)
        libvirt_refuse(reader, node, attribute, "%s", why.text);
}

/* ---- driver ---- */

static void read_cache(struct libvirt *reader, const xmlNode *node, struct guest_disk *disk)
{
    const char *cache = libvirt_attribute(node, "cache");
    if (!cache || !strcmp(cache, "default"))
        return;
    if (!strcmp(cache, "writethrough") || !strcmp(cache, "directsync")) {
        disk->cache = *cache == 'w' ? GUEST_DISK_WRITEBACK : GUEST_DISK_NONE;
        libvirt_map(reader, node, "cache",
                    "cache %s: the guest is told of a write cache, and its flushes reach the disk",
                    guest_disk_cache_name(disk->cache));
    } else {
        set(reader, node, "cache", disk, "cache", cache);
    }
}

static void read_error_policy(struct libvirt *reader, const xmlNode *node, struct guest_disk *disk)
{
    const char *policy = libvirt_attribute(node, "error_policy");
    if (!policy || !strcmp(policy, "enospace"))
        return;
    if (!strcmp(policy, "report"))
        disk->on_full = GUEST_DISK_ERROR;
    else
        libvirt_ignore(reader, node, "error_policy",
                       "a guest waits where the host's disk is full (enospace) or gets errors "
                       "(report); of other errors it is told");
}

static void read_driver(struct libvirt *reader, const xmlNode *node, void *object)
{
    struct disk_reader *at = object;
    const char *format = libvirt_attribute(node, "type"), *name = libvirt_attribute(node, "name");
    libvirt_visit(reader, node, "name type cache error_policy", NULL, 0, NULL);
    if (name && strcmp(name, "qemu") != 0)
        libvirt_ignore(reader, node, "name", "the driver is Lodge's");
    if (format)
        set(reader, node, "type", &at->disk, "format", format);
    read_cache(reader, node, &at->disk);
    read_error_policy(reader, node, &at->disk);
}

/* ---- source ---- */

static void read_host(struct libvirt *reader, const xmlNode *node, void *object)
{
    struct disk_reader *at = object;
    const char *transport = libvirt_attribute(node, "transport");
    libvirt_leaf(reader, node, "name port transport");
    if (at->host)
        libvirt_refuse(reader, node, NULL, "a second <host>; a disk is on one");
    if (transport && strcmp(transport, "tcp") != 0)
        libvirt_refuse(reader, node, "transport", "a web server is reached by tcp");
    at->host = node;
}

#define SECRET "secrets are not in definitions; lodge run --disk PATH,key_file=FILE unlocks a disk"

static const struct libvirt_row source_rows[] = {
    {.name = "host", .read = read_host, .many = true},
    {.name = "encryption", .verdict = GUEST_NOTE_REFUSED, .why = SECRET},
    {.name = "auth", .verdict = GUEST_NOTE_REFUSED, .why = "servers that want a password"},
    {.name = "cookies", .verdict = GUEST_NOTE_REFUSED, .why = "servers that want cookies"},
    {.name = "slices", .verdict = GUEST_NOTE_REFUSED, .why = "a disk is a whole file"},
    {.name = "reservations", .verdict = GUEST_NOTE_REFUSED, .why = "there is no SCSI"},
    {.name = "seclabel", .verdict = GUEST_NOTE_IGNORED, .why = "files keep their labels"},
    {.name = "ssl", .verdict = GUEST_NOTE_IGNORED, .why = "certificates are always verified"},
};

/* What a URL of ours can hold between its slashes. */
static bool is_url_text(const char *text)
{
    bool fine = true;
    for (; *text; text++)
        fine &= (unsigned char)*text > ' ' && *text != 0x7f && *text != '#';
    return fine;
}

static bool is_host_name(const char *text)
{
    size_t length = strlen(text);
    return length > 0 && strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                      "0123456789.-_:") == length;
}

static void read_url(struct libvirt *reader, const xmlNode *node, struct disk_reader *at)
{
    const char *protocol = libvirt_attribute(node, "protocol");
    const char *name = libvirt_attribute(node, "name"), *query = libvirt_attribute(node, "query");
    const char *host = at->host ? libvirt_attribute(at->host, "name") : NULL;
    const char *port = at->host ? libvirt_attribute(at->host, "port") : NULL;
    uint64_t number = 0;
    if (protocol && strcmp(protocol, "http") != 0 && strcmp(protocol, "https") != 0) {
        libvirt_refuse(reader, node, "protocol",
                       "'%.64s': disks of a network are http or https; " URL_EXAMPLE, protocol);
        return;
    }
    if (!protocol || !name || !*name || !host) {
        libvirt_refuse(reader, node, NULL, "write " URL_EXAMPLE);
        return;
    }
    if (!is_host_name(host) || !is_url_text(name) || (query && !is_url_text(query))) {
        libvirt_refuse(reader, node, NULL, "'%.64s' on '%.64s' makes no URL", name, host);
        return;
    }
    if (port && !libvirt_number(reader, at->host, "port", port, 65535, "1 to 65535", &number))
        return;
    if (port && number == 0) {
        libvirt_refuse(reader, at->host, "port", "there is no port 0; write 1 to 65535");
        return;
    }
    char colon[8] = "";
    if (port)
        snprintf(colon, sizeof colon, ":%u", (unsigned)number);
    bool six = strchr(host, ':') != NULL;
    char *url;
    if (asprintf(&url, "%s://%s%s%s%s%s%s%s%s", protocol, six ? "[" : "", host, six ? "]" : "",
                 colon, *name == '/' ? "" : "/", name, query ? "?" : "", query ? query : "") < 0) {
        reader->r = -ENOMEM;
        return;
    }
    free(at->disk.path);
    at->disk.path = url;
    if (!at->disk.read_only)
        libvirt_map(reader, node, NULL, "read-only, as files of web servers are");
    at->disk.read_only = true;
}

static void read_source(struct libvirt *reader, const xmlNode *node, void *object)
{
    struct disk_reader *at = object;
    bool network = libvirt_is(at->type, "network"), block = libvirt_is(at->type, "block");
    const char *known = network ? "protocol name query path" : block ? "dev path" : "file path";
    const char *path = libvirt_attribute(node, block ? "dev" : "file");
    const char *sloppy = libvirt_attribute(node, "path"); /* as such files were once written */
    libvirt_visit(reader, node, known, source_rows, ARRAY_LEN(source_rows), at);
    if (sloppy)
        libvirt_refuse(reader, node, "path", "a source has no path; write %s",
                       network || strstr(sloppy, "://") ? URL_EXAMPLE : "<source file='/PATH'/>");
    else if (network)
        read_url(reader, node, at);
    else if (path && *path)
        libvirt_replace(reader, &at->disk.path, path);
}

/* ---- the rest ---- */

static void read_target(struct libvirt *reader, const xmlNode *node, void *object)
{
    const char *name = libvirt_attribute(node, "dev"), *bus = libvirt_attribute(node, "bus");
    char ours[] = "vda";
    ours[2] = (char)('a' + reader->conf->disk_count);
    libvirt_visit(reader, node, "dev bus", NULL, 0, NULL);
    if (bus && strcmp(bus, "virtio") != 0)
        libvirt_map(reader, node, "bus",
                    "virtio, instead of %.32s: the guest needs that driver and calls it /dev/%s",
                    bus, ours);
    else if (name && strcmp(name, ours) != 0)
        libvirt_map(reader, node, "dev", "%s: that is what the guest calls it", ours);
}

static void read_readonly(struct libvirt *reader, const xmlNode *node, void *object)
{
    libvirt_leaf(reader, node, "");
}

static void read_serial(struct libvirt *reader, const xmlNode *node, void *object)
{
    struct disk_reader *at = object;
    _cleanup_free_ char *serial = libvirt_text(reader, node);
    libvirt_leaf(reader, node, "");
    if (serial && *serial)
        set(reader, node, NULL, &at->disk, "serial", serial);
}

static void read_limit(struct libvirt *reader, const xmlNode *node, struct disk_reader *at,
                       const char *name)
{
    _cleanup_free_ char *text = libvirt_text(reader, node);
    libvirt_leaf(reader, node, "");
    if (text && strspn(text, "0123456789") != strlen(text))
        libvirt_refuse(reader, node, NULL, "'%.64s' is no number", text);
    else if (text && *text && strspn(text, "0") != strlen(text)) /* 0: none */
        set(reader, node, NULL, &at->disk, name, text);
}

static void read_iops(struct libvirt *reader, const xmlNode *node, void *object)
{
    read_limit(reader, node, object, "iops");
}

static void read_bps(struct libvirt *reader, const xmlNode *node, void *object)
{
    read_limit(reader, node, object, "bps");
}

static void read_iops_max(struct libvirt *reader, const xmlNode *node, void *object)
{
    read_limit(reader, node, object, "iops_burst");
}

static void read_bps_max(struct libvirt *reader, const xmlNode *node, void *object)
{
    read_limit(reader, node, object, "bps_burst");
}

#define ONE_LIMIT "one limit holds for reading and writing; write it as total_..."

static const struct libvirt_row iotune_rows[] = {
    {.name = "total_iops_sec", .read = read_iops},
    {.name = "total_bytes_sec", .read = read_bps},
    {.name = "total_iops_sec_max", .read = read_iops_max},
    {.name = "total_bytes_sec_max", .read = read_bps_max},
    {.name = "read_iops_sec", .verdict = GUEST_NOTE_IGNORED, .why = ONE_LIMIT},
    {.name = "write_iops_sec", .verdict = GUEST_NOTE_IGNORED, .why = ONE_LIMIT},
    {.name = "read_bytes_sec", .verdict = GUEST_NOTE_IGNORED, .why = ONE_LIMIT},
    {.name = "write_bytes_sec", .verdict = GUEST_NOTE_IGNORED, .why = ONE_LIMIT},
};

static void read_iotune(struct libvirt *reader, const xmlNode *node, void *object)
{
    libvirt_visit(reader, node, "", iotune_rows, ARRAY_LEN(iotune_rows), object);
}

static const struct libvirt_row disk_rows[] = {
    {.name = "driver", .read = read_driver},
    {.name = "source", .read = read_source},
    {.name = "target", .read = read_target},
    {.name = "readonly", .read = read_readonly},
    {.name = "serial", .read = read_serial},
    {.name = "iotune", .read = read_iotune},
    {.name = "alias", .verdict = GUEST_NOTE_IGNORED, .why = LIBVIRT_ADDRESS},
    {.name = "address", .verdict = GUEST_NOTE_IGNORED, .why = LIBVIRT_ADDRESS},
    {.name = "boot",
     .verdict = GUEST_NOTE_IGNORED,
     .why = "the firmware tries disks in the order in which they stand"},
    {.name = "backingStore",
     .verdict = GUEST_NOTE_IGNORED,
     .why = "the image itself says what it stands on"},
    {.name = "shareable",
     .verdict = GUEST_NOTE_IGNORED,
     .why = "a disk that is written to belongs to one guest, one that is read to many"},
    {.name = "transient",
     .verdict = GUEST_NOTE_REFUSED,
     .why = "what a guest writes stays; make an overlay: lodge disk create --backing"},
    {.name = "encryption", .verdict = GUEST_NOTE_REFUSED, .why = SECRET},
    {.name = "auth", .verdict = GUEST_NOTE_REFUSED, .why = "servers that want a password"},
    {.name = "mirror", .verdict = GUEST_NOTE_REFUSED, .why = "a disk is in one place"},
    {.name = "read", .verdict = GUEST_NOTE_REFUSED, .why = "write <readonly/>"},
};

/* Disks of their own kinds, before anything in them is looked at. */
static bool check_kind(struct libvirt *reader, const xmlNode *node, struct disk_reader *at)
{
    const char *device = libvirt_attribute(node, "device");
    at->cdrom = libvirt_is(device, "cdrom");
    if (libvirt_is(at->type, "volume")) {
        libvirt_refuse(reader, node, "type",
                       "there are no storage pools; write <disk type='file'> with the volume's "
                       "file");
        return false;
    }
    if (at->type && strcmp(at->type, "file") != 0 && strcmp(at->type, "block") != 0 &&
        strcmp(at->type, "network") != 0) {
        libvirt_refuse(reader, node, "type",
                       "'%.64s' is no kind of disk here; there are file, block and network",
                       at->type);
        return false;
    }
    if (device && !at->cdrom && strcmp(device, "disk") != 0) {
        libvirt_refuse(reader, node, "device",
                       "'%.64s' is no device here; there are disk and cdrom", device);
        return false;
    }
    if (reader->conf->disk_count == GUEST_DISKS_MAX) {
        libvirt_refuse(reader, node, NULL, "a guest has at most %d disks", GUEST_DISKS_MAX);
        return false;
    }
    return true;
}

static void take(struct libvirt *reader, const xmlNode *node, struct disk_reader *at)
{
    struct err why = {0};
    if (!at->disk.path && at->cdrom && !libvirt_child(node, "source"))
        libvirt_ignore(reader, node, NULL, "a drive without a disc");
    else if (!at->disk.path && reader->notes->refused == at->refused)
        libvirt_refuse(reader, node, NULL, "no source; write <source file='/PATH'/>");
    else if (at->disk.path && guest_disk_check(&at->disk, &why) < 0)
        libvirt_refuse(reader, node, NULL, "%s", why.text);
    else if (at->disk.path) {
        reader->conf->disks[reader->conf->disk_count++] = at->disk;
        at->disk = (struct guest_disk){0};
    }
    guest_disk_free(&at->disk);
}

void libvirt_disk(struct libvirt *reader, const xmlNode *node, void *object)
{
    /* libvirt guesses no formats: without one a disk is raw. */
    struct disk_reader at = {.type = libvirt_attribute(node, "type"),
                             .refused = reader->notes->refused,
                             .disk.format = GUEST_DISK_RAW};
    const char *model = libvirt_attribute(node, "model");
    if (!check_kind(reader, node, &at))
        return;
    at.disk.read_only = at.cdrom || libvirt_child(node, "readonly");
    if (model && strncmp(model, "virtio", 6) != 0)
        libvirt_map(reader, node, "model", "virtio, instead of %.32s", model);
    libvirt_visit(reader, node, "type device model", disk_rows, ARRAY_LEN(disk_rows), &at);
    take(reader, node, &at);
}
