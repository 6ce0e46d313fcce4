/*
 * guest_notes.h: what became of the parts of a definition that another program's format has and
 * Lodge has not, one line each: nothing is dropped without a word.
 *
 * The list owns its strings; guest_notes_free() accepts a zeroed one. Any thread, one at a time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

enum guest_verdict {
    GUEST_NOTE_MAPPED,  /* taken as something near it, which `why` names */
    GUEST_NOTE_IGNORED, /* the guest runs without it */
    GUEST_NOTE_REFUSED, /* the guest would miss it: an error */
    GUEST_NOTE_MAX
};

enum {
    GUEST_NOTES_MAX = 1000, /* more than that is no definition, and refused */
    GUEST_NOTE_PATH_SIZE = 160,
};

struct guest_note {
    enum guest_verdict verdict;
    unsigned line;                   /* 0 = of the whole */
    char path[GUEST_NOTE_PATH_SIZE]; /* "/domain/devices/disk/driver/@io" */
    char *why;                       /* a phrase */
};

struct guest_notes {
    struct guest_note *list;
    unsigned count, refused;
    /* The definition named neither kernel nor firmware, and got the latter: a caller who has a
     * kernel may take it back. */
    bool firmware_assumed;
};

/* -E2BIG where there are GUEST_NOTES_MAX, -ENOMEM. */
int guest_notes_add(struct guest_notes *notes, enum guest_verdict verdict, unsigned line,
                    const char *path, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
void guest_notes_free(struct guest_notes *notes);

const char *guest_verdict_name(enum guest_verdict verdict); /* "read as", "ignored", "refused" */
