#include "disk/disk.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

struct disk {
    int fd;
    uint64_t size;
    struct disk_options options;
};

int disk_open_raw(int fd, const struct disk_options *options, struct disk **ret_disk,
                  struct err *err)
{
    off_t end = lseek(fd, 0, SEEK_END);
    if (end < 0)
        return err_errno(err, errno, "size of a disk");
    uint64_t size = align_down((uint64_t)end, (uint64_t)DISK_SECTOR);
    if (size == 0)
        return err_set(err, -EINVAL, "a disk has at least %d bytes", DISK_SECTOR);
    struct disk *disk = malloc(sizeof *disk);
    if (!disk)
        return err_set(err, -ENOMEM, "no memory");
    *disk = (struct disk){.fd = fd, .size = size, .options = *options};
    *ret_disk = disk;
    return 0;
}

void disk_close(struct disk *disk)
{
    if (!disk)
        return;
    close(disk->fd);
    free(disk);
}

uint64_t disk_size(const struct disk *disk)
{
    return disk->size;
}

bool disk_read_only(const struct disk *disk)
{
    return disk->options.read_only;
}

static int check(const struct disk *disk, uint64_t offset, uint64_t length, bool write)
{
    if (offset > disk->size || length > disk->size - offset)
        return -EINVAL;
    return write && disk->options.read_only ? -EROFS : 0;
}

static uint64_t total(const struct iovec *iov, unsigned count)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < count; i++)
        bytes += iov[i].iov_len;
    return bytes;
}

/* Takes `bytes` off the front. */
static void advance(struct iovec **iov, unsigned *count, size_t bytes)
{
    while (*count > 0 && bytes >= (*iov)->iov_len) {
        bytes -= (*iov)->iov_len;
        ++*iov;
        --*count;
    }
    if (*count > 0) {
        (*iov)->iov_base = (char *)(*iov)->iov_base + bytes;
        (*iov)->iov_len -= bytes;
    }
}

/* A file that became shorter under our hands reads as zeros behind its end. */
static void zero_rest(struct iovec *iov, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        memset(iov[i].iov_base, 0, iov[i].iov_len);
}

int disk_readv(struct disk *disk, uint64_t offset, struct iovec *iov, unsigned count)
{
    int r = check(disk, offset, total(iov, count), false);
    while (r == 0 && total(iov, count) > 0) {
        ssize_t n = preadv(disk->fd, iov, (int)min(count, (unsigned)IOV_MAX), (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0) {
            zero_rest(iov, count);
            return 0;
        }
        offset += (uint64_t)n;
        advance(&iov, &count, (size_t)n);
    }
    return r;
}

int disk_writev(struct disk *disk, uint64_t offset, struct iovec *iov, unsigned count)
{
    int r = check(disk, offset, total(iov, count), true);
    while (r == 0 && total(iov, count) > 0) {
        ssize_t n = pwritev(disk->fd, iov, (int)min(count, (unsigned)IOV_MAX), (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        offset += (uint64_t)n;
        advance(&iov, &count, (size_t)n);
    }
    return r;
}

static int allocate(const struct disk *disk, int mode, uint64_t offset, uint64_t length)
{
    int r;
    do
        r = fallocate(disk->fd, mode, (off_t)offset, (off_t)length);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

/* Where the file system can do nothing for us. */
static int write_zero_bytes(struct disk *disk, uint64_t offset, uint64_t length)
{
    static const uint8_t zeros[64 << 10];
    while (length > 0) {
        struct iovec iov = {(void *)zeros, min(length, (uint64_t)sizeof zeros)};
        uint64_t bytes = iov.iov_len;
        int r = disk_writev(disk, offset, &iov, 1);
        if (r < 0)
            return r;
        offset += bytes;
        length -= bytes;
    }
    return 0;
}

int disk_write_zeroes(struct disk *disk, uint64_t offset, uint64_t length, bool may_unmap)
{
    int r = check(disk, offset, length, true);
    if (r < 0 || length == 0)
        return r;
    r = allocate(disk,
                 FALLOC_FL_KEEP_SIZE | (may_unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE),
                 offset, length);
    return r == -EOPNOTSUPP || r == -ENOSYS ? write_zero_bytes(disk, offset, length) : r;
}

int disk_discard(struct disk *disk, uint64_t offset, uint64_t length)
{
    int r = check(disk, offset, length, true);
    if (r < 0 || length == 0)
        return r;
    r = allocate(disk, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, length);
    return r == -EOPNOTSUPP || r == -ENOSYS ? 0 : r;
}

int disk_flush(struct disk *disk)
{
    if (disk->options.unsafe || disk->options.read_only)
        return 0;
    return fdatasync(disk->fd) < 0 ? -errno : 0;
}
