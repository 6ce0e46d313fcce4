#include "conf/libvirt_xml.h"

#include "base/own.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_SHOWN = 40, DEPTH_SHOWN = 8 };

/* Names are as long as their writer likes. */
static void put_name(FILE *out, const xmlNode *node)
{
    if (node->ns && node->ns->prefix)
        fprintf(out, "/%.*s:%.*s", NAME_SHOWN, (const char *)node->ns->prefix, NAME_SHOWN,
                (const char *)node->name);
    else
        fprintf(out, "/%.*s", NAME_SHOWN, (const char *)node->name);
}

static char *path_of(const xmlNode *node, const char *attribute)
{
    const xmlNode *up[DEPTH_SHOWN];
    unsigned depth = 0;
    char *path = NULL;
    size_t size;
    for (; node && node->type == XML_ELEMENT_NODE && depth < DEPTH_SHOWN; node = node->parent)
        up[depth++] = node;
    FILE *out = open_memstream(&path, &size);
    if (!out)
        return NULL;
    while (depth > 0)
        put_name(out, up[--depth]);
    if (attribute)
        fprintf(out, "/@%.*s", NAME_SHOWN, attribute);
    if (fclose(out) == 0)
        return path;
    free(path);
    return NULL;
}

static void note(struct libvirt *reader, enum guest_verdict verdict, const xmlNode *node,
                 const char *attribute, const char *format, va_list arguments)
{
    char why[ERR_TEXT_MAX];
    _cleanup_free_ char *path = path_of(node, attribute);
    if (reader->r < 0)
        return;
    vsnprintf(why, sizeof why, format, arguments);
    for (char *at = why; *at; at++) /* one note, one line */
        if ((unsigned char)*at < ' ' || *at == 0x7f)
            *at = ' ';
    long line = sym_xmlGetLineNo(node);
    reader->r = path ? guest_notes_add(reader->notes, verdict, line > 0 ? (unsigned)line : 0, path,
                                       "%s", why)
                     : -ENOMEM;
}

void libvirt_note(struct libvirt *reader, enum guest_verdict verdict, const xmlNode *node,
                  const char *attribute, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    note(reader, verdict, node, attribute, format, arguments);
    va_end(arguments);
}

void libvirt_refuse(struct libvirt *reader, const xmlNode *node, const char *attribute,
                    const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    note(reader, GUEST_NOTE_REFUSED, node, attribute, format, arguments);
    va_end(arguments);
}

void libvirt_ignore(struct libvirt *reader, const xmlNode *node, const char *attribute,
                    const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    note(reader, GUEST_NOTE_IGNORED, node, attribute, format, arguments);
    va_end(arguments);
}

void libvirt_map(struct libvirt *reader, const xmlNode *node, const char *attribute,
                 const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    note(reader, GUEST_NOTE_MAPPED, node, attribute, format, arguments);
    va_end(arguments);
}

/* A prefix is of another vocabulary than libvirt's own. */
static bool is_named(const xmlNode *node, const char *name)
{
    return node->type == XML_ELEMENT_NODE && !(node->ns && node->ns->prefix) &&
           !strcmp((const char *)node->name, name);
}

bool libvirt_is(const char *value, const char *text)
{
    return value && !strcmp(value, text);
}

/* The tree has no entities and no CDATA sections, so that a value is one text. */
static const char *value_of(const xmlAttr *attribute)
{
    const xmlNode *text = attribute->children;
    return text && text->type == XML_TEXT_NODE && text->content ? (const char *)text->content : "";
}

const char *libvirt_attribute(const xmlNode *node, const char *name)
{
    for (const xmlAttr *at = node->properties; at; at = at->next)
        if (!at->ns && !strcmp((const char *)at->name, name))
            return value_of(at);
    return NULL;
}

const xmlNode *libvirt_child(const xmlNode *node, const char *name)
{
    for (const xmlNode *at = node->children; at; at = at->next)
        if (is_named(at, name))
            return at;
    return NULL;
}

char *libvirt_text(struct libvirt *reader, const xmlNode *node)
{
    static const char blanks[] = " \t\r\n";
    char *whole = NULL;
    size_t size;
    FILE *out = open_memstream(&whole, &size);
    for (const xmlNode *at = node->children; out && at; at = at->next)
        if (at->type == XML_TEXT_NODE && at->content)
            fputs((const char *)at->content, out);
    if (!out || fclose(out) != 0) {
        free(whole);
        reader->r = -ENOMEM;
        return NULL;
    }
    size_t before = strspn(whole, blanks), length = strlen(whole + before);
    memmove(whole, whole + before, length + 1);
    while (length > 0 && strchr(blanks, whole[length - 1]))
        whole[--length] = '\0';
    return whole;
}

void libvirt_replace(struct libvirt *reader, char **field, const char *value)
{
    char *copy = strdup(value);
    if (!copy) {
        reader->r = -ENOMEM;
        return;
    }
    free(*field);
    *field = copy;
}

bool libvirt_number(struct libvirt *reader, const xmlNode *node, const char *attribute,
                    const char *text, uint64_t most, const char *example, uint64_t *ret_number)
{
    size_t length = strlen(text);
    uint64_t number = 0;
    bool fine = length > 0 && strspn(text, "0123456789") == length;
    for (size_t i = 0; fine && i < length; i++)
        fine = !__builtin_mul_overflow(number, UINT64_C(10), &number) &&
               !__builtin_add_overflow(number, (uint64_t)(text[i] - '0'), &number);
    if (fine && number <= most) {
        *ret_number = number;
        return true;
    }
    libvirt_refuse(reader, node, attribute, "'%.64s' is no number here; write %s", text, example);
    return false;
}

static bool is_among(const char *name, const char *words)
{
    size_t length = strlen(name);
    for (const char *at = words; (at = strstr(at, name)); at += length)
        if ((at == words || at[-1] == ' ') && (at[length] == ' ' || !at[length]))
            return length > 0;
    return false;
}

static void check_attributes(struct libvirt *reader, const xmlNode *node, const char *known)
{
    for (const xmlAttr *at = node->properties; at; at = at->next)
        if (at->ns || !is_among((const char *)at->name, known))
            libvirt_ignore(reader, node, (const char *)at->name, "Lodge has no such setting");
}

static bool is_blank(const xmlNode *text)
{
    const char *content = text->content ? (const char *)text->content : "";
    return content[strspn(content, " \t\r\n")] == '\0';
}

static void visit_child(struct libvirt *reader, const xmlNode *child,
                        const struct libvirt_row *rows, size_t count, uint64_t *seen, void *object)
{
    size_t i = 0;
    while (i < count && !is_named(child, rows[i].name))
        i++;
    if (i == count && rows == reader->domain_rows) {
        visit_child(reader, child, libvirt_devices, libvirt_devices_count, &reader->seen_devices,
                    object);
    } else if (i == count) {
        libvirt_ignore(reader, child, NULL, "Lodge has nothing of that name");
    } else if (!rows[i].read) {
        libvirt_note(reader, rows[i].verdict, child, NULL, "%s", rows[i].why);
    } else if (!rows[i].many && (*seen & UINT64_C(1) << i)) {
        libvirt_refuse(reader, child, NULL, "a second <%s>; there can be one", rows[i].name);
    } else {
        *seen |= UINT64_C(1) << i;
        rows[i].read(reader, child, object);
    }
}

void libvirt_visit(struct libvirt *reader, const xmlNode *node, const char *attributes,
                   const struct libvirt_row *rows, size_t count, void *object)
{
    uint64_t own = 0, *seen = rows == libvirt_devices ? &reader->seen_devices : &own;
    assert(count <= 64);
    check_attributes(reader, node, attributes);
    for (const xmlNode *child = node->children; child && reader->r >= 0; child = child->next)
        if (child->type == XML_ELEMENT_NODE)
            visit_child(reader, child, rows, count, seen, object);
        else if (child->type == XML_TEXT_NODE && !is_blank(child))
            libvirt_ignore(reader, node, NULL, "text where elements belong: '%.40s'",
                           (const char *)child->content);
}

void libvirt_leaf(struct libvirt *reader, const xmlNode *node, const char *attributes)
{
    check_attributes(reader, node, attributes);
    for (const xmlNode *child = node->children; child && reader->r >= 0; child = child->next)
        if (child->type == XML_ELEMENT_NODE)
            libvirt_ignore(reader, child, NULL, "Lodge has nothing of that name");
}

void libvirt_always(struct libvirt *reader, const xmlNode *node, void *object)
{
    libvirt_visit(reader, node, "", NULL, 0, object);
}
