#include "disk/span.h"

#include "base/bytes.h"

#include <assert.h>

enum span_way { SPAN_FILL, SPAN_ZERO, SPAN_TAKE };

static void skip_empty(struct span *span)
{
    while (span->count && span->used == span->iov->iov_len) {
        span->iov++;
        span->count--;
        span->used = 0;
    }
}

unsigned span_window(const struct span *span, size_t length, struct iovec *ret_iov, unsigned max,
                     size_t *ret_length)
{
    struct span at = *span;
    unsigned count = 0;
    *ret_length = 0;
    for (skip_empty(&at); at.count && length && count < max; skip_empty(&at)) {
        size_t part = min(length, at.iov->iov_len - at.used);
        ret_iov[count++] = (struct iovec){(uint8_t *)at.iov->iov_base + at.used, part};
        *ret_length += part;
        length -= part;
        at.used += part;
    }
    return count;
}

static void walk(struct span *span, uint8_t *bytes, size_t length, enum span_way way)
{
    while (length) {
        skip_empty(span);
        assert(span->count);
        size_t part = min(length, span->iov->iov_len - span->used);
        uint8_t *there = (uint8_t *)span->iov->iov_base + span->used;
        if (way == SPAN_ZERO)
            memset(there, 0, part);
        else if (bytes)
            memcpy(way == SPAN_FILL ? there : bytes, way == SPAN_FILL ? bytes : there, part);
        span->used += part;
        length -= part;
        if (bytes)
            bytes += part;
    }
}

void span_advance(struct span *span, size_t length)
{
    walk(span, NULL, length, SPAN_TAKE);
}

void span_fill(struct span *span, const void *from, size_t length)
{
    walk(span, (uint8_t *)(uintptr_t)from, length, SPAN_FILL);
}

void span_zero(struct span *span, size_t length)
{
    walk(span, NULL, length, SPAN_ZERO);
}

void span_take(struct span *span, void *to, size_t length)
{
    walk(span, to, length, SPAN_TAKE);
}
