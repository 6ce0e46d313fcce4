#include "disk/crypt.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 64 * 1024, BLOCK = 4096 };

struct layer {
    struct file *below;
    struct cipher *cipher;
    struct crypt crypt;
    /* Whole sectors are written by many at once; part of one is read, changed and written back by
     * nobody else. */
    pthread_rwlock_t sectors;
};

static void layer_free(void *opaque)
{
    struct layer *layer = opaque;
    file_free(layer->below);
    cipher_free(layer->cipher);
    pthread_rwlock_destroy(&layer->sectors);
    explicit_bzero(&layer->crypt, sizeof layer->crypt);
    free(layer);
}

static int layer_length(void *opaque, uint64_t *ret_length)
{
    struct layer *layer = opaque;
    uint64_t length, offset = layer->crypt.offset;
    int r = file_length(layer->below, &length);
    if (r < 0)
        return r;
    length = align_down(length > offset ? length - offset : 0, layer->crypt.sector_size);
    *ret_length = layer->crypt.size ? min(length, layer->crypt.size) : length;
    return 0;
}

/* Runs of sectors that are not holes; holes are zeros as they are. */
static int decrypt(struct layer *layer, uint64_t offset, uint8_t *bytes, size_t length)
{
    size_t sector = layer->crypt.sector_size;
    int r = 0;
    for (size_t at = 0; r >= 0 && at < length;) {
        size_t end = at;
        while (end < length && !bytes_are_zero(bytes + end, sector))
            end += sector;
        if (end > at)
            r = cipher_run(layer->cipher, false, layer->crypt.tweak + (offset + at) / CRYPT_UNIT,
                           layer->crypt.sector_size, bytes + at, end - at);
        at = end + sector;
    }
    return r;
}

static int read_sectors(struct layer *layer, uint64_t offset, uint8_t *bytes, size_t length)
{
    int r = file_read_bytes(layer->below, layer->crypt.offset + offset, bytes, length);
    return r < 0 ? r : decrypt(layer, offset, bytes, length);
}

static int write_sectors(struct layer *layer, uint64_t offset, uint8_t *bytes, size_t length)
{
    int r = cipher_run(layer->cipher, true, layer->crypt.tweak + offset / CRYPT_UNIT,
                       layer->crypt.sector_size, bytes, length);
    return r < 0 ? r : file_write_bytes(layer->below, layer->crypt.offset + offset, bytes, length);
}

/* At most a chunk, within one. */
static size_t part_of(uint64_t offset, uint64_t length)
{
    return (size_t)min(length, CHUNK - offset % CHUNK);
}

static int check_end(struct layer *layer, uint64_t offset, uint64_t length)
{
    uint64_t size = layer->crypt.size ? layer->crypt.size : INT64_MAX - layer->crypt.offset;
    return range_fits(offset, length, size) ? 0 : -EIO;
}

static int layer_read(void *opaque, uint64_t offset, struct span *to, uint64_t length)
{
    struct layer *layer = opaque;
    size_t sector = layer->crypt.sector_size;
    _cleanup_free_ uint8_t *buffer = aligned_alloc(BLOCK, CHUNK);
    uint64_t end;
    int r = buffer ? layer_length(layer, &end) : -ENOMEM;
    uint64_t inside = r >= 0 && offset < end ? min(length, end - offset) : 0;
    for (uint64_t left = inside; r >= 0 && left;) {
        size_t part = part_of(offset, left);
        uint64_t begin = align_down(offset, sector);
        r = read_sectors(layer, begin, buffer, align_up(offset + part, sector) - begin);
        if (r >= 0)
            span_fill(to, buffer + (offset - begin), part);
        offset += part;
        left -= part;
    }
    if (r >= 0 && length > inside)
        span_zero(to, length - inside);
    return r;
}

static int write_part(struct layer *layer, uint64_t offset, struct span *from, size_t part,
                      uint8_t *buffer)
{
    size_t sector = layer->crypt.sector_size;
    uint64_t begin = align_down(offset, sector), end = align_up(offset + part, sector);
    bool partial = begin != offset || end != offset + part;
    int r = 0;
    if (partial)
        pthread_rwlock_wrlock(&layer->sectors);
    else
        pthread_rwlock_rdlock(&layer->sectors);
    if (begin != offset)
        r = read_sectors(layer, begin, buffer, sector);
    if (r >= 0 && end != offset + part && (begin == offset || end - begin > sector))
        r = read_sectors(layer, end - sector, buffer + (end - sector - begin), sector);
    if (r >= 0) {
        span_take(from, buffer + (offset - begin), part);
        r = write_sectors(layer, begin, buffer, end - begin);
    }
    pthread_rwlock_unlock(&layer->sectors);
    return r;
}

static int layer_write(void *opaque, uint64_t offset, struct span *from, uint64_t length)
{
    struct layer *layer = opaque;
    _cleanup_free_ uint8_t *buffer = aligned_alloc(BLOCK, CHUNK);
    int r = buffer ? check_end(layer, offset, length) : -ENOMEM;
    while (r >= 0 && length) {
        size_t part = part_of(offset, length);
        r = write_part(layer, offset, from, part, buffer);
        offset += part;
        length -= part;
    }
    return r;
}

static int layer_zero(void *opaque, uint64_t offset, uint64_t length)
{
    static const uint8_t zeros[CHUNK];
    int r = 0;
    while (r >= 0 && length) {
        size_t part = part_of(offset, length);
        const struct iovec iov = {(void *)(uintptr_t)zeros, part};
        r = layer_write(opaque, offset, &(struct span){&iov, 1, 0}, part);
        offset += part;
        length -= part;
    }
    return r;
}

/* Whole sectors become holes; the rest stays. */
static int layer_discard(void *opaque, uint64_t offset, uint64_t length)
{
    struct layer *layer = opaque;
    uint64_t begin = align_up(offset, layer->crypt.sector_size);
    uint64_t end = align_down(offset + length, layer->crypt.sector_size);
    int r = check_end(layer, offset, length);
    if (r < 0 || begin >= end)
        return r;
    pthread_rwlock_rdlock(&layer->sectors);
    r = file_discard(layer->below, layer->crypt.offset + begin, end - begin);
    pthread_rwlock_unlock(&layer->sectors);
    return r;
}

/* A hole of a file is one of the plaintext where it covers whole sectors. */
static int layer_status(void *opaque, uint64_t offset, uint64_t length, bool *ret_hole,
                        uint64_t *ret_length)
{
    struct layer *layer = opaque;
    uint64_t begin = align_down(offset, layer->crypt.sector_size);
    uint64_t end = align_up(offset + length, layer->crypt.sector_size), part;
    bool hole;
    int r = file_status(layer->below, layer->crypt.offset + begin, end - begin, &hole, &part);
    if (r < 0)
        return r;
    uint64_t until = hole ? align_down(begin + part, layer->crypt.sector_size)
                          : align_up(begin + part, layer->crypt.sector_size);
    *ret_hole = hole && until > offset;
    if (until <= offset)
        until = begin + layer->crypt.sector_size;
    *ret_length = min(length, until - offset);
    return 0;
}

/* Zeros where there are holes. */
static int layer_reserve(void *opaque, uint64_t offset, uint64_t length)
{
    int r = 0;
    uint64_t part;
    for (bool hole; r >= 0 && length; offset += part, length -= part) {
        r = layer_status(opaque, offset, length, &hole, &part);
        if (r >= 0 && hole)
            r = layer_zero(opaque, offset, part);
    }
    return r;
}

static int layer_truncate(void *opaque, uint64_t length)
{
    struct layer *layer = opaque;
    uint64_t sector = layer->crypt.sector_size, old;
    if (layer->crypt.size)
        return -ENOTSUP;
    if (length > INT64_MAX - layer->crypt.offset - sector)
        return -EFBIG;
    int r = layer_length(layer, &old);
    if (r >= 0)
        r = file_truncate(layer->below, layer->crypt.offset + align_up(length, sector));
    /* What is left of the last sector is to read as zeros if the file becomes longer again. */
    uint64_t rest = min(align_up(length, sector), old);
    return r >= 0 && length < rest ? layer_zero(layer, length, rest - length) : r;
}

static int layer_flush(void *opaque)
{
    struct layer *layer = opaque;
    return file_flush(layer->below);
}

static const struct file_layer crypt_layer = {
    .free = layer_free,
    .length = layer_length,
    .read = layer_read,
    .write = layer_write,
    .zero = layer_zero,
    .discard = layer_discard,
    .reserve = layer_reserve,
    .truncate = layer_truncate,
    .flush = layer_flush,
    .status = layer_status,
};

static bool sane(const struct crypt *crypt)
{
    return crypt->sector_size >= CRYPT_UNIT && crypt->sector_size <= CRYPT_SECTOR_MAX &&
           !(crypt->sector_size & (crypt->sector_size - 1)) && crypt->offset % CRYPT_UNIT == 0 &&
           crypt->size % crypt->sector_size == 0 &&
           range_fits(crypt->offset, crypt->size, INT64_MAX);
}

int crypt_open(struct file *below, const struct crypt *crypt, struct file **ret_file,
               struct err *err)
{
    if (!sane(crypt))
        return err_set(err, -EINVAL, "the encrypted part lies where it cannot");
    struct layer *layer = calloc(1, sizeof *layer);
    int r = layer ? cipher_new(crypt->key, crypt->key_size, &layer->cipher) : -ENOMEM;
    if (r >= 0) {
        layer->crypt = *crypt;
        r = file_new_layer(&crypt_layer, layer, below, ret_file);
    }
    if (r >= 0) {
        pthread_rwlock_init(&layer->sectors, NULL);
        layer->below = below;
        return 0;
    }
    if (layer)
        cipher_free(layer->cipher);
    if (layer)
        explicit_bzero(&layer->crypt, sizeof layer->crypt);
    free(layer);
    return err_set(err, r, "%s", r == -EINVAL ? "its key is none for AES-XTS" : "no memory");
}

const struct crypt *crypt_of(const struct file *file)
{
    const struct layer *layer = file_opaque(file, &crypt_layer);
    return layer ? &layer->crypt : NULL;
}
