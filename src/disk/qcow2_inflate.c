#include "disk/qcow2.h"

#include <errno.h>

#include <zlib.h>
#include <zstd.h>

/* The data ends when a cluster has come out; what follows it belongs to others (specification,
 * "Compressed Clusters Descriptor"). zlib: raw deflate with a window of 4 KiB at most as QEMU
 * writes it; a larger one does no harm. */
static int inflate_zlib(const uint8_t *from, size_t from_length, uint8_t *to, size_t to_length)
{
    z_stream stream = {
        .next_in = (uint8_t *)(uintptr_t)from,
        .avail_in = (uInt)from_length,
        .next_out = to,
        .avail_out = (uInt)to_length,
    };
    if (inflateInit2(&stream, -MAX_WBITS) != Z_OK)
        return -ENOMEM;
    int r = inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    return (r == Z_STREAM_END || r == Z_BUF_ERROR) && stream.avail_out == 0 ? 0 : -EIO;
}

static int inflate_zstd(const uint8_t *from, size_t from_length, uint8_t *to, size_t to_length)
{
    ZSTD_DCtx *context = ZSTD_createDCtx();
    if (!context)
        return -ENOMEM;
    ZSTD_inBuffer in = {from, from_length, 0};
    ZSTD_outBuffer out = {to, to_length, 0};
    int r = 0;
    /* Progress in each round or an end: the loop is bounded by what goes in and out. */
    while (r == 0 && out.pos < out.size) {
        size_t before_in = in.pos, before_out = out.pos;
        size_t left = ZSTD_decompressStream(context, &out, &in);
        if (ZSTD_isError(left) || (in.pos == before_in && out.pos == before_out))
            r = -EIO;
    }
    ZSTD_freeDCtx(context);
    return r;
}

int qcow2_inflate(bool zstd, const uint8_t *from, size_t from_length, uint8_t *to, size_t to_length)
{
    return zstd ? inflate_zstd(from, from_length, to, to_length)
                : inflate_zlib(from, from_length, to, to_length);
}
