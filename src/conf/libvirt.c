/*
 * A definition as libvirt writes it: domain XML (libvirt.org/formatdomain.html), as far as Lodge
 * has what it names. docs/libvirt-xml.md is the table of what is read, ignored and refused.
 *
 * The text is a stranger's: no document type and so no entities but XML's own five, nothing is
 * fetched or opened, and libxml2's limits on depth and lengths stay on. The tree is then walked by
 * tables of rows (libvirt_xml.h), which leave a note on each thing that they do not know.
 */
#include "base/bytes.h"
#include "base/own.h"
#include "conf/guest.h"
#include "conf/libvirt_xml.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

#define MEMORY_EXAMPLE "<memory unit='MiB'>512</memory>"

/* ---- what a guest has one of ---- */

static void read_name(struct libvirt *reader, const xmlNode *node, void *object)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                  "._-";
    _cleanup_free_ char *name = libvirt_text(reader, node);
    libvirt_leaf(reader, node, "");
    if (!name)
        return;
    if (!*name || *name == '.' || *name == '-' || strspn(name, letters) != strlen(name))
        libvirt_refuse(reader, node, NULL,
                       "'%.64s' is no name for a guest; use letters, digits, '.', '_' and '-'",
                       name);
    else
        libvirt_replace(reader, &reader->conf->name, name);
}

/* As libvirt scales: powers of 1024, of 1000 with a B alone behind the letter. 0: no unit. */
static uint64_t unit_bytes(const char *unit)
{
    static const char letters[] = "kmgt";
    if (!unit)
        return 1024;
    if (!strcasecmp(unit, "b") || !strcasecmp(unit, "byte") || !strcasecmp(unit, "bytes"))
        return 1;
    const char *letter = *unit ? strchr(letters, *unit | 0x20) : NULL;
    bool binary = letter && (!unit[1] || !strcasecmp(unit + 1, "iB"));
    if (!letter || (!binary && strcasecmp(unit + 1, "B") != 0))
        return 0;
    uint64_t bytes = 1;
    for (const char *at = letters; at <= letter; at++)
        bytes *= binary ? 1024 : 1000;
    return bytes;
}

static bool read_bytes(struct libvirt *reader, const xmlNode *node, uint64_t *ret_bytes)
{
    const char *unit = libvirt_attribute(node, "unit");
    uint64_t scale = unit_bytes(unit), number;
    _cleanup_free_ char *text = libvirt_text(reader, node);
    if (!text)
        return false;
    if (scale == 0) {
        libvirt_refuse(reader, node, "unit", "'%.64s' is no unit; write " MEMORY_EXAMPLE, unit);
        return false;
    }
    return libvirt_number(reader, node, NULL, text, (UINT64_MAX - 4095) / scale, MEMORY_EXAMPLE,
                          &number) &&
           (*ret_bytes = number * scale, true);
}

static void read_memory(struct libvirt *reader, const xmlNode *node, void *object)
{
    uint64_t bytes;
    struct err why = {0};
    libvirt_leaf(reader, node, "unit");
    if (!read_bytes(reader, node, &bytes))
        return;
    uint64_t whole = (bytes + 4095) & ~UINT64_C(4095);
    if (guest_check_memory(whole, &why) < 0) {
        libvirt_refuse(reader, node, NULL, "%s", why.text);
        return;
    }
    if (whole != bytes)
        libvirt_map(reader, node, NULL, "%llu bytes, whole pages", (unsigned long long)whole);
    reader->conf->memory = whole;
}

/* Behind all others: it is held against the memory. */
static void check_current_memory(struct libvirt *reader, const xmlNode *domain)
{
    const xmlNode *node = libvirt_child(domain, "currentMemory");
    uint64_t bytes;
    if (node && read_bytes(reader, node, &bytes) &&
        ((bytes + 4095) & ~UINT64_C(4095)) != reader->conf->memory)
        libvirt_ignore(reader, node, NULL,
                       "a guest begins with all of its memory; the balloon changes it later");
}

static void read_current_memory(struct libvirt *reader, const xmlNode *node, void *object)
{
    libvirt_leaf(reader, node, "unit");
}

static void read_vcpu(struct libvirt *reader, const xmlNode *node, void *object)
{
    static const char example[] = "<vcpu>2</vcpu>, up to 64";
    const char *current = libvirt_attribute(node, "current");
    const char *placement = libvirt_attribute(node, "placement");
    uint64_t cpus, now;
    _cleanup_free_ char *text = libvirt_text(reader, node);
    libvirt_leaf(reader, node, "placement cpuset current");
    if (libvirt_attribute(node, "cpuset") || (placement && strcmp(placement, "static") != 0))
        libvirt_ignore(reader, node, placement ? "placement" : "cpuset",
                       "vCPUs run where the host's scheduler puts them");
    if (!text || !libvirt_number(reader, node, NULL, text, GUEST_CPUS_MAX, example, &cpus))
        return;
    now = cpus;
    if (current && !libvirt_number(reader, node, "current", current, cpus, example, &now))
        return;
    if (now != cpus)
        libvirt_map(reader, node, "current", "%llu CPUs: none are added while a guest runs",
                    (unsigned long long)now);
    if (now == 0)
        libvirt_refuse(reader, node, NULL, "no CPU; write %s", example);
    else
        reader->conf->cpus = (unsigned)now;
}

/* ---- its processor ---- */

static void read_model(struct libvirt *reader, const xmlNode *node, void *object)
{
    _cleanup_free_ char *model = libvirt_text(reader, node);
    libvirt_leaf(reader, node, "fallback");
    if (model && *model)
        libvirt_map(reader, node, NULL,
                    "cpu portable: the processor is the host's, less what one engine lacks, not "
                    "'%.64s'",
                    model);
}

static const struct libvirt_row cpu_rows[] = {
    {.name = "model", .read = read_model},
    {.name = "topology", .verdict = GUEST_NOTE_IGNORED, .why = "vCPUs are the cores of one socket"},
    {.name = "feature",
     .verdict = GUEST_NOTE_IGNORED,
     .why = "single features are not chosen; cpu is host, portable or auto"},
    {.name = "numa", .verdict = GUEST_NOTE_IGNORED, .why = "a guest is one NUMA node"},
    {.name = "cache", .verdict = GUEST_NOTE_IGNORED, .why = "caches are the host's"},
    {.name = "maxphysaddr", .verdict = GUEST_NOTE_IGNORED, .why = "it is the host's"},
    {.name = "vendor", .verdict = GUEST_NOTE_IGNORED, .why = "it is the host's"},
};

static void read_cpu(struct libvirt *reader, const xmlNode *node, void *object)
{
    const char *mode = libvirt_attribute(node, "mode");
    libvirt_visit(reader, node, "mode match", cpu_rows, ARRAY_LEN(cpu_rows), object);
    if (!mode && !libvirt_child(node, "model"))
        return;
    if (!mode || !strcmp(mode, "custom"))
        reader->conf->cpu = GUEST_CPU_PORTABLE;
    else if (!strcmp(mode, "host-passthrough") || !strcmp(mode, "maximum"))
        reader->conf->cpu = GUEST_CPU_HOST;
    else if (!strcmp(mode, "host-model"))
        reader->conf->cpu = GUEST_CPU_AUTO;
    else
        libvirt_refuse(reader, node, "mode",
                       "'%.64s' is unknown; write <cpu mode='host-passthrough'/>, host-model, "
                       "maximum or custom",
                       mode);
}

/* ---- its life ---- */

static void read_on_poweroff(struct libvirt *reader, const xmlNode *node, void *object)
{
    _cleanup_free_ char *text = libvirt_text(reader, node);
    libvirt_leaf(reader, node, "");
    if (text && strcmp(text, "destroy") != 0)
        libvirt_ignore(reader, node, NULL, "a guest that powers off has ended");
}

static void read_on_crash(struct libvirt *reader, const xmlNode *node, void *object)
{
    _cleanup_free_ char *text = libvirt_text(reader, node);
    libvirt_leaf(reader, node, "");
    if (text && strcmp(text, "destroy") != 0)
        libvirt_ignore(reader, node, NULL, "what follows a panic is the guest's own affair");
}

static void read_on_reboot(struct libvirt *reader, const xmlNode *node, void *object)
{
    _cleanup_free_ char *text = libvirt_text(reader, node);
    libvirt_leaf(reader, node, "");
    if (!text)
        return;
    if (!strcmp(text, "restart"))
        reader->conf->on_reset = GUEST_ON_RESET_REBOOT;
    else if (!strcmp(text, "destroy"))
        reader->conf->on_reset = GUEST_ON_RESET_EXIT;
    else
        libvirt_ignore(reader, node, NULL,
                       "a guest that resets its machine is restarted or ends (destroy), not "
                       "'%.64s'",
                       text);
}

static const struct libvirt_row clock_rows[] = {
    {.name = "timer",
     .verdict = GUEST_NOTE_IGNORED,
     .why = "a machine has the timers that docs/devices.md lists"},
};

static void read_clock(struct libvirt *reader, const xmlNode *node, void *object)
{
    const char *offset = libvirt_attribute(node, "offset");
    libvirt_visit(reader, node, "offset", clock_rows, ARRAY_LEN(clock_rows), object);
    if (offset && strcmp(offset, "utc") != 0)
        libvirt_ignore(reader, node, "offset", "the guest's clock is UTC");
}

static const struct libvirt_row features_rows[] = {
    {.name = "acpi", .read = libvirt_always},
    {.name = "apic", .read = libvirt_always},
    {.name = "pae", .read = libvirt_always},
};

static void read_features(struct libvirt *reader, const xmlNode *node, void *object)
{
    libvirt_visit(reader, node, "", features_rows, ARRAY_LEN(features_rows), object);
}

static void read_devices(struct libvirt *reader, const xmlNode *node, void *object)
{
    libvirt_visit(reader, node, "", libvirt_devices, libvirt_devices_count, object);
}

/* ---- the whole ---- */

#define TUNING "limits of the host's are not set by a definition"
#define WORDS  "words for people and other programs"

static const struct libvirt_row domain_rows[] = {
    {.name = "name", .read = read_name},
    {.name = "memory", .read = read_memory},
    {.name = "currentMemory", .read = read_current_memory},
    {.name = "vcpu", .read = read_vcpu},
    {.name = "cpu", .read = read_cpu},
    {.name = "os", .read = libvirt_os},
    {.name = "on_poweroff", .read = read_on_poweroff},
    {.name = "on_reboot", .read = read_on_reboot},
    {.name = "on_crash", .read = read_on_crash},
    {.name = "clock", .read = read_clock},
    {.name = "features", .read = read_features},
    {.name = "devices", .read = read_devices},
    {.name = "uuid", .verdict = GUEST_NOTE_IGNORED, .why = "a guest is known by its name"},
    {.name = "genid", .verdict = GUEST_NOTE_IGNORED, .why = "Lodge makes one for each start"},
    {.name = "title", .verdict = GUEST_NOTE_IGNORED, .why = WORDS},
    {.name = "description", .verdict = GUEST_NOTE_IGNORED, .why = WORDS},
    {.name = "metadata", .verdict = GUEST_NOTE_IGNORED, .why = WORDS},
    {.name = "maxMemory", .verdict = GUEST_NOTE_IGNORED, .why = "no memory is plugged in later"},
    {.name = "memoryBacking",
     .verdict = GUEST_NOTE_IGNORED,
     .why = "guest memory is the host's ordinary one, with huge pages where it has them"},
    {.name = "cputune", .verdict = GUEST_NOTE_IGNORED, .why = TUNING},
    {.name = "memtune", .verdict = GUEST_NOTE_IGNORED, .why = TUNING},
    {.name = "blkiotune", .verdict = GUEST_NOTE_IGNORED, .why = TUNING ", <iotune> of a disk is"},
    {.name = "numatune", .verdict = GUEST_NOTE_IGNORED, .why = TUNING},
    {.name = "resource", .verdict = GUEST_NOTE_IGNORED, .why = TUNING},
    {.name = "iothreads", .verdict = GUEST_NOTE_IGNORED, .why = "disks have threads of their own"},
    {.name = "iothreadids",
     .verdict = GUEST_NOTE_IGNORED,
     .why = "disks have threads of their own"},
    {.name = "sysinfo", .verdict = GUEST_NOTE_IGNORED, .why = "there are no SMBIOS tables"},
    {.name = "pm", .verdict = GUEST_NOTE_IGNORED, .why = "a guest does not sleep"},
    {.name = "seclabel",
     .verdict = GUEST_NOTE_IGNORED,
     .why = "the VMM's confinement is Lodge's own"},
    {.name = "launchSecurity",
     .verdict = GUEST_NOTE_REFUSED,
     .why = "guest memory is not encrypted here"},
    {.name = "bootloader", .verdict = GUEST_NOTE_REFUSED, .why = "that is Xen's"},
    {.name = "bootloader_args", .verdict = GUEST_NOTE_REFUSED, .why = "that is Xen's"},
};

static void read_type(struct libvirt *reader, const xmlNode *domain)
{
    const char *type = libvirt_attribute(domain, "type");
    if (libvirt_is(type, "kvm")) {
        reader->conf->engine = GUEST_ENGINE_AUTO;
        libvirt_map(reader, domain, "type",
                    "engine auto: KVM where this machine has it, else the software engine");
    } else if (libvirt_is(type, "qemu")) {
        reader->conf->engine = GUEST_ENGINE_SOFT;
        libvirt_map(reader, domain, "type", "engine soft: Lodge's software engine");
    } else if (type) {
        libvirt_refuse(reader, domain, "type",
                       "'%.64s' is another hypervisor's; write <domain type='kvm'>, or qemu for "
                       "the software engine",
                       type);
    } else {
        libvirt_refuse(reader, domain, NULL, "no type; write <domain type='kvm'>");
    }
}

/* What it begins with, now that all has been seen. */
static void settle_start(struct libvirt *reader, const xmlNode *domain)
{
    struct guest_conf *conf = reader->conf;
    if (conf->kernel && reader->firmware) {
        libvirt_ignore(reader, reader->firmware, NULL,
                       "<kernel> is booted directly, without firmware");
        free(take_ptr(conf->firmware));
        free(take_ptr(conf->nvram));
    }
    if (conf->kernel || conf->firmware)
        return;
    if (conf->initrd || (conf->append && *conf->append)) {
        libvirt_refuse(reader, domain, NULL, "<initrd> or <cmdline> without a <kernel>");
        return;
    }
    libvirt_map(reader, domain, NULL,
                "firmware uefi, as neither <kernel> nor firmware is named: libvirt would begin "
                "with a BIOS, and a disk that boots by BIOS alone does not boot here");
    libvirt_replace(reader, &conf->firmware, GUEST_FIRMWARE_UEFI);
    reader->notes->firmware_assumed = true;
}

static int read_domain(struct libvirt *reader, const xmlNode *domain, const char *origin,
                       struct err *err)
{
    struct guest_notes *notes = reader->notes;
    struct text_place place = {(unsigned)max(sym_xmlGetLineNo(domain), 1), 1};
    if (strcmp((const char *)domain->name, "domain") != 0)
        return guest_text_error(err, origin, place,
                                "<%.64s> is no guest; libvirt's definitions begin with <domain>",
                                (const char *)domain->name);
    /* What libvirt does unless it is told. */
    reader->conf->on_reset = GUEST_ON_RESET_REBOOT;
    read_type(reader, domain);
    libvirt_visit(reader, domain, "type", domain_rows, ARRAY_LEN(domain_rows), NULL);
    check_current_memory(reader, domain);
    settle_start(reader, domain);
    if (reader->r == -E2BIG)
        return err_set(err, -EINVAL, "%s: more than %d parts of it are unknown here", origin,
                       GUEST_NOTES_MAX);
    if (reader->r < 0)
        return err_set(err, reader->r, "%s: no memory", origin);
    for (unsigned i = 0; i < notes->count; i++)
        if (notes->list[i].verdict == GUEST_NOTE_REFUSED)
            return err_set(err, -EINVAL, "%s:%u: %s: %s%s", origin, notes->list[i].line,
                           notes->list[i].path, notes->list[i].why,
                           notes->refused > 1 ? " (and more is refused)" : "");
    return 0;
}

/* ---- the text ---- */

enum { TAG_VALUES_MAX = 1000, NAMESPACES_MAX = 64 };

/* libxml2 holds each attribute of a tag against all others, and each prefix against all namespaces:
 * a mebibyte of them takes a minute. */
static int check_crowds(const char *text, size_t length, const char *origin, struct err *err)
{
    static const char namespace[] = "xmlns";
    struct text_place place = {1, 1};
    unsigned values = 0, namespaces = 0;
    for (size_t i = 0; i < length; i++) {
        values = text[i] == '<' ? 0 : values + (text[i] == '=');
        namespaces += text[i] == 'x' && length - i >= sizeof namespace - 1 &&
                      !memcmp(text + i, namespace, sizeof namespace - 1);
        if (values > TAG_VALUES_MAX || namespaces > NAMESPACES_MAX)
            return guest_text_error(err, origin, place, "too many %s for a definition",
                                    values > TAG_VALUES_MAX ? "attributes" : "namespaces");
        place.column++;
        if (text[i] == '\n')
            place = (struct text_place){place.line + 1, 1};
    }
    return 0;
}

/* <!DOCTYPE ...>: nothing of it is looked at. */
static void refuse_document_type(void *context, const xmlChar *name, const xmlChar *external,
                                 const xmlChar *system)
{
    xmlParserCtxt *parser = context;
    parser->_private = parser;
    sym_xmlStopParser(parser);
}

static void own_parser(xmlParserCtxt **parser)
{
    if (*parser)
        sym_xmlFreeParserCtxt(*parser);
}

static void own_document(xmlDoc **document)
{
    if (*document)
        sym_xmlFreeDoc(*document);
}

static int parse(const char *text, size_t length, const char *origin, xmlDoc **ret_document,
                 struct err *err)
{
    _cleanup_(own_parser)
    xmlParserCtxt *parser = sym_xmlNewParserCtxt();
    if (!parser)
        return err_set(err, -ENOMEM, "%s: no memory", origin);
    /* No nodes for these, so that a text is one piece. */
    parser->sax->comment = NULL;
    parser->sax->processingInstruction = NULL;
    parser->sax->internalSubset = refuse_document_type;
    /* The encoding is said here, so that the text cannot ask for converters. */
    xmlDoc *document =
        sym_xmlCtxtReadMemory(parser, text, (int)length, NULL, "UTF-8",
                              XML_PARSE_NONET | XML_PARSE_NOCDATA | XML_PARSE_NOERROR |
                                  XML_PARSE_NOWARNING | XML_PARSE_BIG_LINES);
    if (parser->_private) {
        if (document)
            sym_xmlFreeDoc(document);
        return err_set(err, -EINVAL, "%s: <!DOCTYPE> is not accepted; leave it out", origin);
    }
    if (document && document->children) {
        *ret_document = document;
        return 0;
    }
    if (document)
        sym_xmlFreeDoc(document);
    const xmlError *fault = sym_xmlCtxtGetLastError(parser);
    const char *message = fault && fault->message ? fault->message : "this is no XML";
    struct text_place place = {(unsigned)max(fault ? fault->line : 1, 1),
                               (unsigned)max(fault ? fault->int2 : 1, 1)};
    return guest_text_error(err, origin, place, "%.*s", (int)min(strcspn(message, "\n"), 300ul),
                            message);
}

int guest_conf_read_libvirt(struct guest_conf *conf, const char *text, size_t length,
                            const char *origin, struct guest_notes *notes, struct err *err)
{
    _cleanup_(own_document)
    xmlDoc *document = NULL;
    int r = guest_text_check(text, length, origin, err);
    if (r >= 0)
        r = check_crowds(text, length, origin, err);
    if (r >= 0)
        r = xml_load(err);
    if (r >= 0)
        r = parse(text, length, origin, &document, err);
    if (r < 0)
        return r;
    struct guest_conf copy;
    if (guest_conf_copy(&copy, conf) < 0)
        return err_set(err, -ENOMEM, "%s: no memory", origin);
    struct libvirt reader = {.conf = &copy, .notes = notes, .domain_rows = domain_rows};
    r = read_domain(&reader, document->children, origin, err);
    if (r < 0) {
        guest_conf_free(&copy);
        return r;
    }
    guest_conf_free(conf);
    *conf = copy;
    return 0;
}
