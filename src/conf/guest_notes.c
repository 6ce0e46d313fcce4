#include "conf/guest_notes.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static const char *const verdict_names[GUEST_NOTE_MAX] = {
    [GUEST_NOTE_MAPPED] = "read as",
    [GUEST_NOTE_IGNORED] = "ignored",
    [GUEST_NOTE_REFUSED] = "refused",
};

const char *guest_verdict_name(enum guest_verdict verdict)
{
    return verdict_names[verdict];
}

int guest_notes_add(struct guest_notes *notes, enum guest_verdict verdict, unsigned line,
                    const char *path, const char *format, ...)
{
    if (notes->count == GUEST_NOTES_MAX)
        return -E2BIG;
    /* Doubled at each power of two. */
    if ((notes->count & (notes->count - 1)) == 0) {
        size_t room = notes->count ? 2 * (size_t)notes->count : 1;
        struct guest_note *more = realloc(notes->list, room * sizeof *more);
        if (!more)
            return -ENOMEM;
        notes->list = more;
    }
    struct guest_note *note = &notes->list[notes->count];
    *note = (struct guest_note){.verdict = verdict, .line = line};
    snprintf(note->path, sizeof note->path, "%s", path);
    va_list arguments;
    va_start(arguments, format);
    int r = vasprintf(&note->why, format, arguments);
    va_end(arguments);
    if (r < 0)
        return -ENOMEM;
    notes->count++;
    notes->refused += verdict == GUEST_NOTE_REFUSED;
    return 0;
}

void guest_notes_free(struct guest_notes *notes)
{
    for (unsigned i = 0; i < notes->count; i++)
        free(notes->list[i].why);
    free(notes->list);
    *notes = (struct guest_notes){0};
}
