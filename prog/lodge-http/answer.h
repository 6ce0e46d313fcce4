/*
 * answer.h: the header fields of an answer that count for a range (RFC 9110, 8.8 and 14.4).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ANSWER_TEXT_MAX = 256 };

struct answer {
    bool ranged;                /* a Content-Range that makes sense was there */
    uint64_t first, last, size; /* first <= last < size */
    bool encoded;               /* the bytes are not those of the file */
    char etag[ANSWER_TEXT_MAX], modified[ANSWER_TEXT_MAX]; /* "": none, or too long a one */
};

/* One line, as it came. A status line begins a new answer: that of a redirect was another. */
void answer_line(struct answer *answer, const char *line, size_t length);

/* Do both speak of one version of one file? */
bool answer_same(const struct answer *one, const struct answer *other);
