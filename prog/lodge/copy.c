#include "copy.h"

#include "bar.h"
#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { COPY_BYTES = 2 << 20 };

/* Whatever is not zero, in pieces that a new cluster or page begins with. */
static int copy_part(struct disk *to, uint64_t offset, const uint8_t *bytes, size_t length)
{
    enum { PIECE = 64 << 10 };
    int r = 0;
    for (size_t at = 0; r >= 0 && at < length;) {
        size_t end = at;
        while (end < length && !bytes_are_zero(bytes + end, min((size_t)PIECE, length - end)))
            end += min((size_t)PIECE, length - end);
        if (end > at)
            r = disk_write(to, offset + at, bytes + at, end - at);
        at = end + (end < length ? min((size_t)PIECE, length - end) : 0);
    }
    return r;
}

static int copy_next(struct disk *from, struct disk *to, uint64_t offset, uint8_t *buffer,
                     uint64_t *ret_length)
{
    enum disk_extent_kind kind;
    int r = disk_status(from, offset, disk_size(from) - offset, &kind, ret_length);
    if (r < 0 || kind != DISK_EXTENT_DATA)
        return r;
    *ret_length = min(*ret_length, COPY_BYTES - offset % COPY_BYTES);
    r = disk_read(from, offset, buffer, *ret_length);
    return r < 0 ? r : copy_part(to, offset, buffer, *ret_length);
}

static int copy(struct disk *from, struct disk *to, const volatile sig_atomic_t *stop,
                struct err *err)
{
    _cleanup_free_ uint8_t *buffer = aligned_alloc(4096, COPY_BYTES);
    struct bar bar = {.what = "copying"};
    uint64_t length = 0;
    int r = buffer ? 0 : -ENOMEM;
    for (uint64_t at = 0; r >= 0 && at < disk_size(from); at += length) {
        bar_draw(&bar, at, disk_size(from));
        r = *stop ? -EINTR : copy_next(from, to, at, buffer, &length);
    }
    if (r >= 0)
        r = disk_flush(to);
    bar_clear(&bar);
    return r < 0 ? err_errno(err, -r, "cannot copy") : 0;
}

int copy_disk(struct disk *from, const char *path, const struct disk_create *create,
              const volatile sig_atomic_t *stop, struct err *err)
{
    struct disk_options options = {.format = create->format, .key = create->key};
    struct disk *to;
    int r = disk_create(path, create, err);
    if (r < 0)
        return r;
    r = disk_open(path, &options, &to, err);
    if (r >= 0) {
        r = copy(from, to, stop, err);
        int closed = disk_close(to);
        if (r >= 0 && closed < 0)
            r = err_errno(err, -closed, "disk '%s'", path);
    }
    return r;
}
