#include "definition.h"

#include "base/own.h"
#include "input.h"

#include <stdio.h>
#include <string.h>

#define BYTE_ORDER_MARK "\xef\xbb\xbf"

int definition_read(struct guest_conf *conf, const char *path, struct guest_notes *notes,
                    struct err *err)
{
    _cleanup_free_ char *text = NULL;
    size_t length = 0;
    int r = input_read("definition", path, GUEST_TEXT_MAX, &text, &length, err);
    if (r < 0)
        return r;
    const char *first = text;
    if (!strncmp(first, BYTE_ORDER_MARK, strlen(BYTE_ORDER_MARK)))
        first += strlen(BYTE_ORDER_MARK);
    first += strspn(first, " \t\r\n");
    if (*first == '<')
        return guest_conf_read_libvirt(conf, text, length, path, notes, err);
    if (*first == '{' || *first == '[')
        return guest_conf_read_json(conf, text, length, path, err);
    return guest_conf_read_vmconf(conf, text, length, path, err);
}

void definition_print_notes(const char *path, const struct guest_notes *notes)
{
    for (unsigned i = 0; i < notes->count; i++) {
        const struct guest_note *note = &notes->list[i];
        if (note->line)
            fprintf(stderr, "%s:%u: %s: %s%s %s\n", path, note->line, note->path,
                    guest_verdict_name(note->verdict),
                    note->verdict == GUEST_NOTE_MAPPED ? "" : ":", note->why);
        else
            fprintf(stderr, "%s: %s: %s\n", path, note->path, note->why);
    }
}
