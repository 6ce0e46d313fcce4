#include "board/load_unpack.h"

#include "base/bytes.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <lz4.h>
#include <lzma.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

/* The kernel's xz settings use dictionaries of up to 128 MiB. */
enum { XZ_MEMORY_MAX = 192 << 20 };

/* Each unpacker fills `to` and returns how many bytes came out, or -1 for a damaged stream. A
 * stream that goes on past `room` is damaged too. */
typedef int64_t unpacker(const uint8_t *from, size_t size, uint8_t *to, size_t room);

static int64_t unpack_gzip(const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
    if (size > UINT_MAX || room > UINT_MAX)
        return -1;
    z_stream stream = {
        .next_in = (Bytef *)from, .avail_in = (uInt)size, .next_out = to, .avail_out = (uInt)room};
    if (inflateInit2(&stream, 15 + 16) != Z_OK)
        return -1;
    int r = inflate(&stream, Z_FINISH);
    int64_t out = r == Z_STREAM_END ? (int64_t)stream.total_out : -1;
    inflateEnd(&stream);
    return out;
}

static int64_t unpack_lzma(const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
    lzma_stream stream = LZMA_STREAM_INIT;
    if (lzma_auto_decoder(&stream, XZ_MEMORY_MAX, 0) != LZMA_OK)
        return -1;
    stream.next_in = from;
    stream.avail_in = size;
    stream.next_out = to;
    stream.avail_out = room;
    lzma_ret r = lzma_code(&stream, LZMA_FINISH);
    int64_t out = r == LZMA_STREAM_END ? (int64_t)stream.total_out : -1;
    lzma_end(&stream);
    return out;
}

static int64_t unpack_zstd(const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
    size_t out = ZSTD_decompress(to, room, from, size);
    return ZSTD_isError(out) ? -1 : (int64_t)out;
}

/* The legacy frame: a magic number, then blocks, each with its compressed size in front. */
static int64_t unpack_lz4(const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
    size_t in = 4, out = 0;
    while (in < size) {
        if (size - in < 4)
            return -1;
        uint32_t block = le32_read(from + in);
        in += 4;
        if (block == 0 || block > size - in || block > INT_MAX)
            return -1;
        int n = LZ4_decompress_safe((const char *)from + in, (char *)to + out, (int)block,
                                    (int)min(room - out, (size_t)INT_MAX));
        if (n < 0)
            return -1;
        in += block;
        out += (size_t)n;
    }
    return (int64_t)out;
}

static int64_t unpack_plain(const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
    if (size > room)
        return -1;
    memcpy(to, from, size);
    return (int64_t)size;
}

static const struct format {
    const char *name;
    uint8_t magic[6];
    uint8_t magic_size;
    bool own_trailer; /* the appended size is part of the format itself */
    unpacker *unpack; /* NULL = known and not taken */
} formats[] = {
    {"gzip", {0x1f, 0x8b}, 2, true, unpack_gzip},
    {"xz", {0xfd, '7', 'z', 'X', 'Z', 0}, 6, false, unpack_lzma},
    {"lzma", {0x5d, 0, 0}, 3, false, unpack_lzma},
    {"zstd", {0x28, 0xb5, 0x2f, 0xfd}, 4, false, unpack_zstd},
    {"lz4", {0x02, 0x21, 0x4c, 0x18}, 4, false, unpack_lz4},
    {"uncompressed", {0x7f, 'E', 'L', 'F'}, 4, false, unpack_plain},
    {"bzip2", {'B', 'Z', 'h'}, 3, false, NULL},
    {"lzo", {0x89, 'L', 'Z', 'O'}, 4, false, NULL},
};

static const struct format *format_find(const uint8_t *packed, size_t size)
{
    for (size_t i = 0; i < ARRAY_LEN(formats); i++)
        if (size >= formats[i].magic_size &&
            memcmp(packed, formats[i].magic, formats[i].magic_size) == 0)
            return &formats[i];
    return NULL;
}

int load_unpack(const uint8_t *packed, size_t size, uint64_t limit, struct load_source *ret_source,
                struct err *err)
{
    const struct format *format = format_find(packed, size);
    if (!format)
        return err_set(err, -ENOEXEC,
                       "the kernel's payload is packed in a way that is not known, or damaged");
    if (!format->unpack)
        return err_set(err, -ENOEXEC,
                       "the kernel is packed with %s, which is not supported: use one packed with "
                       "gzip, xz, lz4 or zstd, or its vmlinux",
                       format->name);
    if (size < 8)
        return err_set(err, -ENOEXEC, "the kernel's payload is truncated");
    uint64_t unpacked = le32_read(packed + size - 4);
    if (unpacked == 0)
        return err_set(err, -ENOEXEC, "the kernel's payload is damaged: it claims to be empty");
    if (unpacked > limit)
        return err_set(err, -ENOMEM,
                       "the kernel unpacks to %" PRIu64 " MiB, more than the %" PRIu64
                       " MiB there is room for: give the guest more memory (--memory)",
                       (unpacked + MIB(1) - 1) >> 20, limit >> 20);

    struct load_source room;
    int r = load_source_room(&room, "kernel", unpacked, err);
    if (r < 0)
        return r;
    int64_t out =
        format->unpack(packed, format->own_trailer ? size : size - 4, room.room, unpacked);
    if (out < 0 || (uint64_t)out != unpacked) {
        load_source_free(&room);
        return err_set(err, -ENOEXEC,
                       "the kernel's %s payload is damaged: fetch or build the file again",
                       format->name);
    }
    *ret_source = room;
    return 0;
}
