/*
 * libvirt_xml.h: how the reader of domain XML (libvirt.c) walks the tree, so that no element and no
 * attribute is passed over without a note.
 *
 * An element is visited with the list of the attributes and the rows of the children that are known
 * below it; all others are noted as ignored. A row has a function that reads the child, or the
 * verdict on it.
 */
#pragma once

#include "conf/guest_notes.h"
#include "conf/libxml2.h"
#include "conf/private.h"

/* Of <alias> and <address>, wherever they stand. */
#define LIBVIRT_ADDRESS "Lodge gives out names and addresses itself"

struct libvirt {
    struct guest_conf *conf;
    struct guest_notes *notes;
    const xmlNode *firmware;               /* what asked for it; NULL: nothing did */
    const struct libvirt_row *domain_rows; /* devices may stand among them, too */
    uint64_t seen_devices;
    unsigned serials;
    int r; /* of the notes: -E2BIG, -ENOMEM */
};

struct libvirt_row {
    const char *name;
    void (*read)(struct libvirt *reader, const xmlNode *node, void *object);
    enum guest_verdict verdict; /* where there is none to read it */
    const char *why;
    bool many; /* may stand more than once */
};

void libvirt_visit(struct libvirt *reader, const xmlNode *node, const char *attributes,
                   const struct libvirt_row *rows, size_t count, void *object);
/* An element that has nothing below it but its text. */
void libvirt_leaf(struct libvirt *reader, const xmlNode *node, const char *attributes);
/* One that is there in any case, as a row's function. */
void libvirt_always(struct libvirt *reader, const xmlNode *node, void *object);

/* NULL where it is not there. It lives as long as the tree. */
const char *libvirt_attribute(const xmlNode *node, const char *name);
const xmlNode *libvirt_child(const xmlNode *node, const char *name);
/* Without the blanks around it; malloc'd. NULL: no memory, noted. */
char *libvirt_text(struct libvirt *reader, const xmlNode *node);
bool libvirt_is(const char *value, const char *text); /* false where `value` is NULL */

/* `attribute` NULL: of the element itself. */
void libvirt_note(struct libvirt *reader, enum guest_verdict verdict, const xmlNode *node,
                  const char *attribute, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
void libvirt_refuse(struct libvirt *reader, const xmlNode *node, const char *attribute,
                    const char *format, ...) __attribute__((format(printf, 4, 5)));
void libvirt_ignore(struct libvirt *reader, const xmlNode *node, const char *attribute,
                    const char *format, ...) __attribute__((format(printf, 4, 5)));
void libvirt_map(struct libvirt *reader, const xmlNode *node, const char *attribute,
                 const char *format, ...) __attribute__((format(printf, 4, 5)));

/* A copy of `value` instead of what the field held. */
void libvirt_replace(struct libvirt *reader, char **field, const char *value);
/* Decimal digits, not more than `most`; else refused, with `example`. */
bool libvirt_number(struct libvirt *reader, const xmlNode *node, const char *attribute,
                    const char *text, uint64_t most, const char *example, uint64_t *ret_number);

/* libvirt_disk.c, libvirt_nic.c, libvirt_devices.c, libvirt_os.c: rows of their elements. */
void libvirt_disk(struct libvirt *reader, const xmlNode *node, void *object);
void libvirt_nic(struct libvirt *reader, const xmlNode *node, void *object);
void libvirt_os(struct libvirt *reader, const xmlNode *node, void *object);
extern const struct libvirt_row libvirt_devices[];
extern const size_t libvirt_devices_count;
