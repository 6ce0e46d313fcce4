#include "disk/private.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static int raw_open(const struct disk_opening *opening, struct file *file, struct disk **ret_disk,
                    struct err *err)
{
    uint64_t length;
    int r = file_length(file, &length);
    if (r < 0)
        return err_errno(err, -r, "disk '%s'", opening->path);
    struct disk *disk = calloc(1, sizeof *disk);
    if (!disk)
        return err_set(err, -ENOMEM, "disk '%s': no memory", opening->path);
    disk->ops = &raw_ops;
    disk->file = file;
    /* A last sector that is not all there is filled up with zeros. */
    disk->size = align_up(min(length, (uint64_t)INT64_MAX - DISK_SECTOR), DISK_SECTOR);
    *ret_disk = disk;
    return 0;
}

/* Blocks that are larger than the last sector make the file longer than the disk. */
static int cut_padding(struct disk *disk)
{
    uint64_t length;
    if (disk->read_only || disk->size % file_alignment(disk->file) == 0)
        return 0;
    int r = file_length(disk->file, &length);
    return r >= 0 && length > disk->size ? file_truncate(disk->file, disk->size) : r;
}

static int raw_close(struct disk *disk)
{
    int r = cut_padding(disk);
    free(disk);
    return r;
}

static int raw_read(struct disk *disk, uint64_t offset, struct span *to, uint64_t length)
{
    return file_read(disk->file, offset, to, length);
}

static int raw_write(struct disk *disk, uint64_t offset, struct span *from, uint64_t length)
{
    return file_write(disk->file, offset, from, length);
}

static int raw_write_zeroes(struct disk *disk, uint64_t offset, uint64_t length, bool may_unmap)
{
    return file_zero(disk->file, offset, length, may_unmap);
}

static int raw_discard(struct disk *disk, uint64_t offset, uint64_t length)
{
    return file_discard(disk->file, offset, length);
}

static int raw_flush(struct disk *disk)
{
    return file_flush(disk->file);
}

/* The place of a sector never changes, so nothing needs to be held. */
static bool raw_direct(struct disk *disk, uint64_t offset, uint64_t length, bool write,
                       struct disk_extent *ret_extent)
{
    uint64_t end = disk->size; /* the file ends within its last sector, or there */
    uint32_t alignment = file_alignment(disk->file);
    if (offset % alignment || file_is_layer(disk->file))
        return false;
    if ((write && disk->guarded && offset < DISK_SECTOR) ||
        (!write && offset + length > end - DISK_SECTOR && file_length(disk->file, &end) < 0))
        return false;
    length = align_down(min(length, end > offset ? end - offset : 0), max(alignment, 512u));
    *ret_extent = (struct disk_extent){file_fd(disk->file), offset, length, alignment, NULL};
    return length > 0;
}

static void raw_direct_end(struct disk *disk, const struct disk_extent *extent)
{
}

static int raw_status(struct disk *disk, uint64_t offset, uint64_t length,
                      enum disk_extent_kind *ret_kind, uint64_t *ret_length)
{
    bool hole;
    int r = file_status(disk->file, offset, length, &hole, ret_length);
    if (r >= 0)
        *ret_kind = hole ? DISK_EXTENT_HOLE : DISK_EXTENT_DATA;
    return r;
}

static int raw_resize(struct disk *disk, uint64_t size, struct err *err)
{
    int r = file_truncate(disk->file, size);
    if (r == -ENOTSUP)
        return err_set(err, r, "a block device cannot be resized from here");
    if (r < 0)
        return err_errno(err, -r, "cannot make it %llu bytes long", (unsigned long long)size);
    disk->size = size;
    return 0;
}

const struct disk_ops raw_ops = {
    .name = "raw",
    .format = DISK_FORMAT_RAW,
    .open = raw_open,
    .close = raw_close,
    .read = raw_read,
    .write = raw_write,
    .write_zeroes = raw_write_zeroes,
    .discard = raw_discard,
    .flush = raw_flush,
    .direct = raw_direct,
    .direct_end = raw_direct_end,
    .status = raw_status,
    .resize = raw_resize,
};

int raw_create(const char *path, const struct disk_create *create, struct err *err)
{
    if (create->backing)
        return err_set(err, -EINVAL, "disk '%s': a raw disk has no backing; qcow2 has", path);
    _cleanup_fd_ int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_errno(err, errno, "disk '%s'", path);
    int r = ftruncate(fd, (off_t)create->size) < 0 ? errno : 0;
    if (r == 0 && create->preallocate)
        r = posix_fallocate(fd, 0, (off_t)create->size);
    if (r == 0)
        return 0;
    unlink(path);
    return err_errno(err, r, "disk '%s'", path);
}
