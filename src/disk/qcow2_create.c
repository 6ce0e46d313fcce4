#include "disk/qcow2.h"

#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>

/*
 * A new image, version 3:
 *
 *     cluster 0                header, extensions, the backing's name
 *     cluster 1                refcount table
 *     blocks                   refcount blocks, enough for all of this
 *     L1 table
 */

enum { HEADER_BYTES = 112, REFCOUNT_ORDER = 4, CLUSTER_BITS_USUAL = 16 };

struct layout {
    unsigned cluster_bits;
    uint64_t cluster_size;
    uint64_t l1_entries, l1_clusters, blocks;
    uint64_t clusters; /* all of them */
};

static int lay_out(const struct disk_create *create, struct layout *layout, struct err *err)
{
    unsigned bits = create->cluster_bits ? create->cluster_bits : CLUSTER_BITS_USUAL;
    if (bits < QCOW2_CLUSTER_BITS_MIN || bits > QCOW2_CLUSTER_BITS_MAX)
        return err_set(err, -EINVAL, "clusters are of 512 bytes to 2 MiB");
    uint64_t size = UINT64_C(1) << bits, entries = ((create->size - 1) >> (2 * bits - 3)) + 1;
    if (entries > QCOW2_L1_BYTES_MAX / 8)
        return err_set(err, -EFBIG,
                       "%" PRIu64 " bytes are too many for clusters of %" PRIu64
                       " bytes; choose larger ones",
                       create->size, size);
    *layout = (struct layout){.cluster_bits = bits, .cluster_size = size, .l1_entries = entries};
    layout->l1_clusters = (entries * 8 + size - 1) >> bits;
    uint64_t per_block = size * 8 >> REFCOUNT_ORDER;
    do
        layout->clusters = 2 + ++layout->blocks + layout->l1_clusters;
    while (layout->blocks * per_block < layout->clusters);
    if (layout->blocks > size / 8)
        return err_set(err, -EFBIG, "clusters of %" PRIu64 " bytes are too small for this disk",
                       size);
    return 0;
}

static uint8_t *put_extension(uint8_t *at, uint32_t type, const void *data, size_t length)
{
    be32_write(at, type);
    be32_write(at + 4, (uint32_t)length);
    memcpy(at + 8, data, length);
    return at + 8 + align_up(length, 8);
}

/* Names for whoever does not know what we may set. */
static uint8_t *put_features(uint8_t *at)
{
    static const struct {
        uint8_t kind, bit;
        const char *name;
    } features[] = {{0, 0, "dirty bit"}, {0, 1, "corrupt bit"}};
    uint8_t rows[ARRAY_LEN(features) * 48] = {0};
    for (size_t i = 0; i < ARRAY_LEN(features); i++) {
        rows[i * 48] = features[i].kind;
        rows[i * 48 + 1] = features[i].bit;
        memcpy(rows + i * 48 + 2, features[i].name, strlen(features[i].name));
    }
    return put_extension(at, 0x6803f857, rows, sizeof rows);
}

static int fill_header(const struct disk_create *create, const struct layout *layout,
                       uint8_t *header, struct err *err)
{
    memcpy(header, "QFI\xfb", 4);
    be32_write(header + 4, 3);
    be32_write(header + 20, layout->cluster_bits);
    be64_write(header + QCOW2_AT_SIZE, create->size);
    be32_write(header + QCOW2_AT_L1_SIZE, (uint32_t)layout->l1_entries);
    be64_write(header + QCOW2_AT_L1_SIZE + 4, (2 + layout->blocks) << layout->cluster_bits);
    be64_write(header + QCOW2_AT_REFTABLE, layout->cluster_size);
    be32_write(header + QCOW2_AT_REFTABLE + 8, 1);
    be32_write(header + 96, REFCOUNT_ORDER);
    be32_write(header + 100, HEADER_BYTES);
    uint8_t *at = header + HEADER_BYTES;
    if (create->backing) {
        const char *format = create->backing_format == DISK_FORMAT_QCOW2 ? "qcow2" : "raw";
        at = put_extension(at, 0xe2792aca, format, strlen(format));
    }
    at = put_features(at);
    at += 8; /* the end of the extensions: all zeros */
    if (!create->backing)
        return 0;
    size_t length = strlen(create->backing);
    if (length > DISK_NAME_MAX || !range_fits((size_t)(at - header), length, layout->cluster_size))
        return err_set(err, -ENAMETOOLONG, "the name of the backing is too long");
    be64_write(header + 8, (uint64_t)(at - header));
    be32_write(header + 16, (uint32_t)length);
    memcpy(at, create->backing, length);
    return 0;
}

static void fill_tables(const struct layout *layout, uint8_t *image)
{
    for (uint64_t i = 0; i < layout->blocks; i++)
        be64_write(image + layout->cluster_size + i * 8, (2 + i) << layout->cluster_bits);
    /* The blocks lie side by side, so one index runs through all of them. */
    for (uint64_t i = 0; i < layout->clusters; i++)
        refcount_entry_set(image + 2 * layout->cluster_size, REFCOUNT_ORDER, i, 1);
}

static int write_image(struct file *file, const struct disk_create *create, struct err *err)
{
    struct layout layout = {0};
    int r = lay_out(create, &layout, err);
    if (r < 0)
        return r;
    size_t length = layout.clusters << layout.cluster_bits;
    _cleanup_free_ uint8_t *image = calloc(1, length);
    if (!image)
        return err_set(err, -ENOMEM, "no memory");
    r = fill_header(create, &layout, image, err);
    if (r < 0)
        return r;
    fill_tables(&layout, image);
    /* The header comes last: an image without one is none. */
    r = file_write_bytes(file, layout.cluster_size, image + layout.cluster_size,
                         length - layout.cluster_size);
    if (r >= 0)
        r = file_write_bytes(file, 0, image, layout.cluster_size);
    if (r >= 0)
        r = file_flush(file);
    return r < 0 ? err_errno(err, -r, "cannot write") : 0;
}

static int preallocate(struct file *file, const char *path, struct err *err)
{
    struct qcow2 *q;
    int r = qcow2_open_image(file, path, true, &q, err);
    if (r < 0)
        return r;
    r = qcow2_preallocate(q, err);
    int closed = qcow2_close_image(q);
    return r >= 0 && closed < 0 ? err_errno(err, -closed, "cannot write") : r;
}

int qcow2_create_in(struct file *file, const char *path, const struct disk_create *create,
                    struct err *err)
{
    if (create->backing && create->preallocate)
        return err_set(err, -EINVAL, "space that is taken beforehand would hide the backing");
    int r = write_image(file, create, err);
    return r >= 0 && create->preallocate ? preallocate(file, path, err) : r;
}

int qcow2_create(const char *path, const struct disk_create *create, struct err *err)
{
    struct disk_options options = {.format = DISK_FORMAT_QCOW2};
    struct file *file;
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_errno(err, errno, "disk '%s'", path);
    close(fd);
    int r = file_open(path, NULL, true, &options, &file, err);
    if (r >= 0) {
        r = qcow2_create_in(file, path, create, err);
        if (r < 0)
            err_prefix(err, r, "disk '%s'", path);
        file_free(file);
    }
    if (r < 0)
        unlink(path);
    return r;
}
