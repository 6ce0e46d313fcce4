#include "disk/qcow2.h"

#include "base/own.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

enum {
    LENGTH_V2 = 72,
    LENGTH_V3 = 104,
    EXTENSION_END = 0,
    EXTENSION_BACKING_FORMAT = 0xe2792aca,
    EXTENSION_FEATURES = 0x6803f857,
    EXTENSION_BITMAPS = 0x23852875,
    FEATURE_BYTES = 48,
    FEATURE_NAME = 46,
    KNOWN = QCOW2_DIRTY | QCOW2_CORRUPT | QCOW2_COMPRESSION_TYPE,
};

struct reader {
    const char *path;
    struct err *err;
    uint8_t *bytes; /* the first cluster */
    size_t length;
    uint64_t file_length;
    const uint8_t *features; /* the feature name table, or NULL */
    size_t features_length;
    struct qcow2_header *header;
};

static int bad(struct reader *reader, const char *what)
{
    return err_set(reader->err, -EIO, "disk '%s' is damaged: %s", reader->path, what);
}

static int refuse(struct reader *reader, const char *what)
{
    return err_set(reader->err, -ENOTSUP, "disk '%s' uses what is not supported: %s", reader->path,
                   what);
}

/* A table that starts at a cluster and lies in the file, whose last cluster need not be whole. */
static int check_table(struct reader *reader, uint64_t offset, uint64_t bytes, const char *what)
{
    uint64_t cluster = UINT64_C(1) << reader->header->cluster_bits;
    if (offset % cluster || offset == 0 ||
        !range_fits(offset, bytes, align_up(reader->file_length, cluster))) {
        char text[96];
        snprintf(text, sizeof text, "its %s is not where it can be", what);
        return bad(reader, text);
    }
    return 0;
}

static int read_fields(struct reader *reader)
{
    struct qcow2_header *header = reader->header;
    const uint8_t *at = reader->bytes;
    header->size = be64_read(at + QCOW2_AT_SIZE);
    header->l1_size = be32_read(at + QCOW2_AT_L1_SIZE);
    header->l1_offset = be64_read(at + QCOW2_AT_L1_SIZE + 4);
    header->reftable_offset = be64_read(at + QCOW2_AT_REFTABLE);
    header->reftable_clusters = be32_read(at + QCOW2_AT_REFTABLE + 8);
    header->snapshot_count = be32_read(at + 60);
    header->snapshots_offset = be64_read(at + 64);
    header->refcount_order = 4;
    if (header->version == 2)
        return LENGTH_V2;
    header->incompatible = be64_read(at + QCOW2_AT_INCOMPATIBLE);
    header->autoclear = be64_read(at + QCOW2_AT_AUTOCLEAR);
    header->refcount_order = be32_read(at + 96);
    uint32_t length = be32_read(at + 100);
    if (length < LENGTH_V3 || length % 8 || length > reader->length)
        return bad(reader, "its header has an impossible length");
    if (header->refcount_order > 6)
        return bad(reader, "its refcounts are wider than 64 bits");
    return (int)length;
}

static int check_compression(struct reader *reader, size_t length)
{
    uint8_t type = length > LENGTH_V3 ? reader->bytes[LENGTH_V3] : 0;
    if (!(reader->header->incompatible & QCOW2_COMPRESSION_TYPE) != !type)
        return bad(reader, "its compression type contradicts its features");
    if (type > 1)
        return refuse(reader, "a compression that is neither zlib nor zstd");
    reader->header->zstd = type == 1;
    return 0;
}

/* --- features --- */

static const char *feature_name(const struct reader *reader, unsigned bit, char *buffer,
                                size_t size)
{
    if (bit == 2)
        return "an external data file";
    if (bit == 4)
        return "extended L2 entries (subclusters)";
    for (size_t at = 0; at + FEATURE_BYTES <= reader->features_length; at += FEATURE_BYTES) {
        const uint8_t *row = reader->features + at;
        if (row[0] != 0 || row[1] != bit)
            continue;
        size_t length = strnlen((const char *)row + 2, FEATURE_NAME);
        snprintf(buffer, size, "%.*s", (int)length, (const char *)row + 2);
        for (char *c = buffer; *c; c++)
            if (*c < ' ' || *c > '~')
                *c = '?';
        return buffer;
    }
    snprintf(buffer, size, "incompatible feature %u, which has no name", bit);
    return buffer;
}

static int check_features(struct reader *reader)
{
    uint64_t unknown = reader->header->incompatible & ~(uint64_t)KNOWN;
    char names[400] = "", name[64];
    size_t used = 0;
    for (unsigned bit = 0; bit < 64; bit++)
        if (unknown >> bit & 1 && used < sizeof names)
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "",
                                     feature_name(reader, bit, name, sizeof name));
    return unknown ? refuse(reader, names) : 0;
}

static int check_encryption(struct reader *reader)
{
    uint32_t method = be32_read(reader->bytes + 32);
    return method == 0 ? 0
                       : refuse(reader, method == 1   ? "AES encryption"
                                        : method == 2 ? "LUKS encryption"
                                                      : "an unknown encryption");
}

/* --- extensions and the backing's name --- */

static void read_backing_format(struct reader *reader, const uint8_t *name, size_t length)
{
    static const struct {
        const char *name;
        enum disk_format format;
    } known[] = {{"raw", DISK_FORMAT_RAW},
                 {"file", DISK_FORMAT_RAW},
                 {"host_device", DISK_FORMAT_RAW},
                 {"qcow2", DISK_FORMAT_QCOW2}};
    reader->header->backing_format = DISK_FORMAT_OTHER;
    for (size_t i = 0; i < ARRAY_LEN(known); i++)
        if (length == strlen(known[i].name) && !memcmp(name, known[i].name, length))
            reader->header->backing_format = known[i].format;
}

static int read_bitmaps(struct reader *reader, const uint8_t *data, size_t length)
{
    struct qcow2_header *header = reader->header;
    if (length < 24)
        return bad(reader, "its bitmaps extension is too short");
    header->bitmap_count = be32_read(data);
    header->bitmaps_size = be64_read(data + 8);
    header->bitmaps_offset = be64_read(data + 16);
    if (header->bitmap_count > QCOW2_BITMAPS_MAX || header->bitmaps_size > QCOW2_SNAPSHOT_TABLE_MAX)
        return bad(reader, "it has too many bitmaps");
    return header->bitmap_count ? check_table(reader, header->bitmaps_offset, header->bitmaps_size,
                                              "directory of bitmaps")
                                : 0;
}

static int read_extension(struct reader *reader, uint32_t type, const uint8_t *data, size_t length)
{
    if (type == EXTENSION_BACKING_FORMAT)
        read_backing_format(reader, data, length);
    if (type == EXTENSION_FEATURES) {
        reader->features = data;
        reader->features_length = length;
    }
    return type == EXTENSION_BITMAPS ? read_bitmaps(reader, data, length) : 0;
}

static int read_extensions(struct reader *reader, size_t at, size_t end)
{
    while (at + 8 <= end) {
        uint32_t type = be32_read(reader->bytes + at);
        uint32_t length = be32_read(reader->bytes + at + 4);
        at += 8;
        if (type == EXTENSION_END)
            return 0;
        if (length > end - at)
            return bad(reader, "a header extension is longer than the header");
        int r = read_extension(reader, type, reader->bytes + at, length);
        if (r < 0)
            return r;
        at += align_up(length, 8);
    }
    return 0;
}

static int read_backing(struct reader *reader)
{
    uint64_t offset = be64_read(reader->bytes + 8);
    uint32_t length = be32_read(reader->bytes + 16);
    if (offset == 0)
        return 0;
    if (length > DISK_NAME_MAX || length == 0 || !range_fits(offset, length, reader->length))
        return bad(reader, "the name of its backing is not where it can be");
    const char *name = (const char *)reader->bytes + offset;
    if (memchr(name, 0, length))
        return bad(reader, "the name of its backing has a zero byte");
    reader->header->backing = strndup(name, length);
    return reader->header->backing ? 0 : -ENOMEM;
}

/* --- the whole --- */

static int check_tables(struct reader *reader)
{
    const struct qcow2_header *header = reader->header;
    uint64_t l1_bytes = (uint64_t)header->l1_size * 8;
    unsigned l1_shift = 2 * header->cluster_bits - 3; /* bytes that an L1 entry stands for */
    if (header->size > INT64_MAX - UINT32_MAX)
        return bad(reader, "it is larger than any disk");
    if (l1_bytes > QCOW2_L1_BYTES_MAX)
        return bad(reader, "its L1 table is too large");
    if (header->size && (header->size - 1) >> l1_shift >= header->l1_size)
        return bad(reader, "its L1 table is too small for its size");
    int r = header->l1_size ? check_table(reader, header->l1_offset, l1_bytes, "L1 table") : 0;
    uint64_t reftable = (uint64_t)header->reftable_clusters << header->cluster_bits;
    if (r >= 0 && (reftable == 0 || reftable > QCOW2_REFTABLE_BYTES_MAX))
        r = bad(reader, "its refcount table has an impossible size");
    if (r >= 0)
        r = check_table(reader, header->reftable_offset, reftable, "refcount table");
    if (r >= 0 && header->snapshot_count > QCOW2_SNAPSHOTS_MAX)
        r = bad(reader, "it has too many snapshots");
    if (r >= 0 && header->snapshot_count)
        r = check_table(reader, header->snapshots_offset, (uint64_t)header->snapshot_count * 40,
                        "table of snapshots");
    return r;
}

static int read_start(struct reader *reader, struct file *file)
{
    uint8_t start[24];
    int r = file_read_bytes(file, 0, start, sizeof start);
    if (r < 0)
        return err_errno(reader->err, -r, "disk '%s'", reader->path);
    struct qcow2_header *header = reader->header;
    header->version = be32_read(start + 4);
    header->cluster_bits = be32_read(start + 20);
    if (memcmp(start, "QFI\xfb", 4) != 0)
        return err_set(reader->err, -EINVAL, "disk '%s' is no qcow2", reader->path);
    if (header->version != 2 && header->version != 3)
        return refuse(reader, header->version == 1 ? "version 1 of the format"
                                                   : "a version of the format behind 3");
    if (header->cluster_bits < QCOW2_CLUSTER_BITS_MIN ||
        header->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
        return bad(reader, "its clusters are not of 512 bytes to 2 MiB");
    reader->length = (size_t)1 << header->cluster_bits;
    reader->bytes = malloc(reader->length);
    if (!reader->bytes)
        return err_set(reader->err, -ENOMEM, "disk '%s': no memory", reader->path);
    r = file_read_bytes(file, 0, reader->bytes, reader->length);
    if (r >= 0)
        r = file_length(file, &reader->file_length);
    return r < 0 ? err_errno(reader->err, -r, "disk '%s'", reader->path) : 0;
}

static int read_all(struct reader *reader, struct file *file)
{
    int length = read_start(reader, file);
    if (length >= 0)
        length = read_fields(reader);
    if (length < 0)
        return length;
    uint64_t backing = be64_read(reader->bytes + 8);
    size_t end = backing && backing < reader->length ? (size_t)backing : reader->length;
    int r = read_extensions(reader, (size_t)length, end);
    if (r >= 0)
        r = check_features(reader);
    if (r >= 0)
        r = check_encryption(reader);
    if (r >= 0)
        r = check_compression(reader, (size_t)length);
    if (r >= 0)
        r = check_tables(reader);
    if (r >= 0)
        r = read_backing(reader);
    return r;
}

int qcow2_header_read(struct file *file, const char *path, struct qcow2_header *ret_header,
                      struct err *err)
{
    struct qcow2_header header = {0};
    struct reader reader = {.path = path, .err = err, .header = &header};
    int r = read_all(&reader, file);
    free(reader.bytes);
    if (r < 0)
        qcow2_header_free(&header);
    else
        *ret_header = header;
    return r;
}

void qcow2_header_free(struct qcow2_header *header)
{
    free(header->backing);
    header->backing = NULL;
}
