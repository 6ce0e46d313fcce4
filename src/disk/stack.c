/*
 * Another image on top of a disk that is in use, and the names of images: what a snapshot of a
 * running guest needs.
 */
#include "disk/private.h"

#include "base/bytes.h"
#include "base/own.h"
#include "disk/luks.h"
#include "disk/qcow2.h"

#include <errno.h>
#include <stdlib.h>

static int check_stack(const struct disk *top, const struct disk *below, const char *path,
                       struct err *err)
{
    unsigned depth = 0;
    if (top->ops != &qcow2_ops || !qcow2_stands_on_something(top))
        return err_set(err, -EINVAL, "disk '%s' was not made to stand on another one", path);
    if (top->size != below->size)
        return err_set(err, -EINVAL, "disk '%s' has another size than what it is to stand on",
                       path);
    for (const struct disk *disk = below; disk; disk = disk->backing, depth++)
        if (file_same(disk->file, top->file))
            return err_set(err, -ELOOP, "disk '%s' would stand on itself", path);
    if (depth > DISK_CHAIN_MAX)
        return err_set(err, -ELOOP,
                       "disk '%s': more than %d images would stand on each other; lodge disk "
                       "convert makes one of them",
                       path, DISK_CHAIN_MAX);
    return 0;
}

int disk_stack(const char *path, const struct disk_options *options, struct disk *below,
               struct disk **ret_disk, struct err *err)
{
    struct disk_options alone = *options;
    struct disk *top;
    alone.format = DISK_FORMAT_QCOW2;
    alone.alone = true;
    /* Twice: refcounts that the first one lowers, in a block that is new, are the second one's. */
    int r = disk_flush(below);
    if (r >= 0)
        r = disk_flush(below);
    if (r < 0)
        return err_errno(err, -r, "disk '%s' cannot be flushed", below->path);
    r = disk_open(path, &alone, &top, err);
    if (r < 0)
        return r;
    r = check_stack(top, below, path, err);
    if (r < 0) {
        disk_close(top);
        return r;
    }
    qcow2_join(top, below);
    *ret_disk = top;
    return 0;
}

struct disk *disk_unstack(struct disk *disk)
{
    struct disk *below = take_ptr(disk->backing);
    disk_close(disk);
    return below;
}

struct disk *disk_below(const struct disk *disk)
{
    return disk->backing;
}

void disk_stack_for_good(struct disk *disk)
{
    disk->backing->read_only = true;
}

int disk_host_fd(const struct disk *disk)
{
    const struct file *below = file_below(disk->file);
    return file_fd(below ? below : disk->file);
}

/* The name stays where it is: nothing lies behind it in the first cluster (specification, "the
 * backing file name is usually stored there"). */
static int write_name(struct file *file, const struct qcow2_header *header, const char *name,
                      struct err *err)
{
    uint8_t place[8], length[4];
    size_t size = strlen(name), old = strlen(header->backing);
    int r = file_read_bytes(file, 8, place, sizeof place);
    if (r < 0)
        return err_errno(err, -r, "cannot read");
    uint64_t offset = be64_read(place);
    if (size > DISK_NAME_MAX || !range_fits(offset, size, UINT64_C(1) << header->cluster_bits))
        return err_set(err, -ENAMETOOLONG, "the name of the backing is too long");
    _cleanup_free_ uint8_t *bytes = calloc(1, max(size, old) + 1);
    if (!bytes)
        return err_set(err, -ENOMEM, "no memory");
    memcpy(bytes, name, size);
    be32_write(length, (uint32_t)size);
    r = file_write_bytes(file, offset, bytes, max(size, old));
    if (r >= 0)
        r = file_write_bytes(file, 16, length, sizeof length);
    return r < 0 ? err_errno(err, -r, "cannot write") : 0;
}

int disk_rename_backing(const char *path, const struct disk_key *key, const char *name,
                        struct err *err)
{
    const struct disk_options options = {0};
    struct qcow2_header header = {0};
    struct file *file;
    int r = file_open(path, NULL, true, &options, &file, err);
    if (r < 0)
        return r;
    if (key)
        r = luks_open(file, key, &file, err);
    if (r >= 0)
        r = qcow2_header_read(file, path, &header, err);
    if (r >= 0 && !header.backing)
        r = err_set(err, -EINVAL, "it stands on nothing");
    if (r >= 0)
        r = write_name(file, &header, name, err);
    if (r >= 0 && (r = file_flush(file)) < 0)
        err_errno(err, -r, "cannot write");
    qcow2_header_free(&header);
    file_free(file);
    return r < 0 ? err_prefix(err, r, "disk '%s'", path) : 0;
}
