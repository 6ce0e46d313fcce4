/*
 * span.h: a place in somebody's scattered bytes, and copying from there.
 *
 * A `struct span` walks over an array of iovecs that it does not own. Whoever transfers bytes
 * advances it. The caller knows that as many bytes are left as it asks for; less is our own bug.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct span {
    const struct iovec *iov; /* the first one with bytes left */
    unsigned count;
    size_t used; /* of the first */
};

/* The next bytes as at most `max` iovecs, at most `length` bytes; returns how many iovecs. Does not
 * advance. */
unsigned span_window(const struct span *span, size_t length, struct iovec *ret_iov, unsigned max,
                     size_t *ret_length);
void span_advance(struct span *span, size_t length);

/* These advance. */
void span_fill(struct span *span, const void *from, size_t length); /* bytes into the span */
void span_zero(struct span *span, size_t length);
void span_take(struct span *span, void *to, size_t length); /* bytes out of the span */
