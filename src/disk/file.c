#include "disk/file.h"

#include "disk/http.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    WINDOW = 64,         /* iovecs a system call gets */
    BOUNCE = 256 * 1024, /* bytes that are bounced at once */
    BLOCK_MAX = 4096,    /* the most that O_DIRECT asks of anybody */
};

struct file {
    int fd;
    dev_t device;
    ino_t inode;
    bool block_device, write, sync;
    atomic_bool no_punch; /* the host said EOPNOTSUPP once */
    atomic_bool lost;     /* a flush failed */
    uint32_t alignment;
    pthread_mutex_t unaligned;      /* read, change, write back: one at a time */
    const struct file_layer *layer; /* NULL: the descriptor is all there is */
    void *opaque;
    struct file *below; /* the layer's */
};

/* --- opening --- */

static int open_file(void *opaque, const char *path, const char *from, bool write, bool direct)
{
    _cleanup_free_ char *joined = NULL;
    if (http_is_url(path))
        return -EPROTONOSUPPORT;
    const char *slash = from ? strrchr(from, '/') : NULL;
    if (*path != '/' && slash) {
        if (asprintf(&joined, "%.*s/%s", (int)(slash - from), from, path) < 0)
            return -ENOMEM;
        path = joined;
    }
    /* Not blocking on a FIFO, which is refused a moment later. */
    int flags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (write ? O_RDWR : O_RDONLY);
    int fd = open(path, flags | (direct ? O_DIRECT : 0));
    return fd < 0 ? -errno : fd;
}

const struct disk_opener disk_opener_files = {.open = open_file};

/* What O_DIRECT wants: the smallest that a read of the first block gets away with. */
static int probe_alignment(struct file *file)
{
    _cleanup_free_ uint8_t *buffer = aligned_alloc(BLOCK_MAX, 2 * BLOCK_MAX);
    if (!buffer)
        return -ENOMEM;
    for (uint32_t alignment = DISK_SECTOR; alignment <= BLOCK_MAX; alignment *= 2)
        if (pread(file->fd, buffer + alignment, alignment, 0) >= 0) {
            file->alignment = alignment;
            return 0;
        }
    return -errno;
}

static int adopt(struct file *file, const char *path, struct err *err)
{
    struct stat about;
    if (fstat(file->fd, &about) < 0)
        return err_errno(err, errno, "disk '%s'", path);
    if (!S_ISREG(about.st_mode) && !S_ISBLK(about.st_mode))
        return err_set(err, -EINVAL, "disk '%s' is no regular file and no block device", path);
    file->block_device = S_ISBLK(about.st_mode);
    file->device = file->block_device ? about.st_rdev : about.st_dev;
    file->inode = file->block_device ? 0 : about.st_ino;
    file->alignment = 1;
    int flags = fcntl(file->fd, F_GETFL);
    /* It was for a FIFO; io_uring would take it for every request's. */
    if (flags & O_NONBLOCK)
        (void)fcntl(file->fd, F_SETFL, flags & ~O_NONBLOCK);
    int r = flags & O_DIRECT ? probe_alignment(file) : 0;
    return r < 0 ? err_errno(err, -r, "disk '%s' cannot be read past the cache", path) : 0;
}

static int lock(struct file *file, const char *path, struct err *err)
{
    int r = disk_lock(file->fd, file->write);
    if (r == -EBUSY)
        return err_set(err, r, "disk '%s' is in use by a guest or another program", path);
    return r < 0 ? err_errno(err, -r, "disk '%s' cannot be locked", path) : 0;
}

/* What a disk of a guest names must not make us ask servers of its choice. */
static int open_remote(const char *url, const char *from, const struct disk_opener *opener,
                       struct file **ret_file, struct err *err)
{
    if (from)
        return err_set(err, -EPERM, "disk '%s' names a web server, '%s'; it is not asked", from,
                       url);
    int fd = opener->open(opener->opaque, url, NULL, false, false);
    return fd < 0 ? err_errno(err, -fd, "disk '%s'", url) : http_open(fd, url, ret_file, err);
}

int file_open(const char *path, const char *from, bool write, const struct disk_options *options,
              struct file **ret_file, struct err *err)
{
    const struct disk_opener *opener = options->opener ? options->opener : &disk_opener_files;
    bool direct = options->cache == DISK_CACHE_NONE;
    if (http_is_url(path))
        return open_remote(path, from, opener, ret_file, err);
    struct file *file = calloc(1, sizeof *file);
    if (!file)
        return err_set(err, -ENOMEM, "disk '%s': no memory", path);
    pthread_mutex_init(&file->unaligned, NULL);
    file->write = write;
    file->sync = options->cache != DISK_CACHE_UNSAFE;
    file->fd = opener->open(opener->opaque, path, from, write, direct);
    if (file->fd == -EINVAL && direct) /* a file system without O_DIRECT: flushes do what counts */
        file->fd = opener->open(opener->opaque, path, from, write, false);
    int r = file->fd < 0 ? err_errno(err, -file->fd, "disk '%s'", path) : adopt(file, path, err);
    if (r >= 0 && !options->unlocked)
        r = lock(file, path, err);
    if (r < 0) {
        file_free(file);
        return r;
    }
    *ret_file = file;
    return 0;
}

int file_new_layer(const struct file_layer *layer, void *opaque, struct file *below,
                   struct file **ret_file)
{
    struct file *file = calloc(1, sizeof *file);
    if (!file)
        return -ENOMEM;
    pthread_mutex_init(&file->unaligned, NULL);
    file->fd = -1;
    file->alignment = 1;
    file->layer = layer;
    file->opaque = opaque;
    file->below = below;
    file->write = layer->write && (!below || below->write);
    if (below) {
        file->block_device = below->block_device;
        file->device = below->device;
        file->inode = below->inode;
    }
    *ret_file = file;
    return 0;
}

bool file_is_layer(const struct file *file)
{
    return file->layer;
}

bool file_is_remote(const struct file *file)
{
    return file->layer && (!file->below || file_is_remote(file->below));
}

struct file *file_below(const struct file *file)
{
    return file->below;
}

void *file_opaque(const struct file *file, const struct file_layer *layer)
{
    return file->layer == layer ? file->opaque : NULL;
}

bool file_writable(const struct file *file)
{
    return file->write;
}

void file_free(struct file *file)
{
    if (!file)
        return;
    if (file->layer)
        file->layer->free(file->opaque);
    if (file->fd >= 0)
        close(file->fd);
    pthread_mutex_destroy(&file->unaligned);
    free(file);
}

int file_fd(const struct file *file)
{
    return file->fd;
}

uint32_t file_alignment(const struct file *file)
{
    return file->alignment;
}

int file_length(const struct file *file, uint64_t *ret_length)
{
    if (file->layer)
        return file->layer->length(file->opaque, ret_length);
    struct stat about;
    off_t end;
    if (!file->block_device) {
        if (fstat(file->fd, &about) < 0)
            return -errno;
        end = about.st_size;
    } else {
        end = lseek(file->fd, 0, SEEK_END);
    }
    if (end < 0)
        return -errno;
    *ret_length = (uint64_t)end;
    return 0;
}

bool file_is_regular(const struct file *file)
{
    return !file->block_device && !file->layer;
}

uint64_t file_allocated(const struct file *file)
{
    struct stat about;
    uint64_t length;
    if (file->layer)
        return file->below ? file_allocated(file->below) : 0;
    if (file->block_device)
        return file_length(file, &length) < 0 ? 0 : length;
    return fstat(file->fd, &about) < 0 ? 0 : (uint64_t)about.st_blocks * 512;
}

bool file_same(const struct file *one, const struct file *other)
{
    return one->block_device == other->block_device && one->device == other->device &&
           one->inode == other->inode;
}

/* --- transfers --- */

static bool offset_sane(uint64_t offset, uint64_t length)
{
    return range_fits(offset, length, INT64_MAX);
}

static bool aligned(const struct file *file, uint64_t offset, const struct iovec *iov,
                    unsigned count)
{
    uint64_t bits = offset;
    for (unsigned i = 0; i < count; i++)
        bits |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
    return bits % file->alignment == 0;
}

/* Reads all of [offset, offset + length) into aligned memory, zeros behind the end of the file. */
static int read_whole(struct file *file, uint64_t offset, uint8_t *to, size_t length)
{
    while (length) {
        ssize_t got = pread(file->fd, to, length, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0 || (size_t)got % file->alignment) { /* the end, perhaps within a block */
            memset(to + got, 0, length - (size_t)got);
            return 0;
        }
        to += got;
        offset += (size_t)got;
        length -= (size_t)got;
    }
    return 0;
}

static int write_whole(struct file *file, uint64_t offset, const uint8_t *from, size_t length)
{
    while (length) {
        ssize_t put = pwrite(file->fd, from, length, (off_t)offset);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? -errno : -EIO;
        from += put;
        offset += (size_t)put;
        length -= (size_t)put;
    }
    return 0;
}

static int bounce_read(struct file *file, uint64_t offset, struct span *to, size_t length)
{
    uint64_t begin = align_down(offset, file->alignment);
    uint64_t end = align_up(offset + length, file->alignment);
    _cleanup_free_ uint8_t *buffer = aligned_alloc(BLOCK_MAX, align_up(end - begin, BLOCK_MAX));
    if (!buffer)
        return -ENOMEM;
    int r = read_whole(file, begin, buffer, end - begin);
    if (r >= 0)
        span_fill(to, buffer + (offset - begin), length);
    return r;
}

static int bounce_write(struct file *file, uint64_t offset, struct span *from, size_t length)
{
    uint64_t block = file->alignment;
    uint64_t begin = align_down(offset, block), end = align_up(offset + length, block);
    _cleanup_free_ uint8_t *buffer = aligned_alloc(BLOCK_MAX, align_up(end - begin, BLOCK_MAX));
    if (!buffer)
        return -ENOMEM;
    bool partial = begin != offset || end != offset + length;
    int r = 0;
    if (partial)
        pthread_mutex_lock(&file->unaligned);
    if (begin != offset)
        r = read_whole(file, begin, buffer, block);
    if (r >= 0 && end != offset + length)
        r = read_whole(file, end - block, buffer + (end - block - begin), block);
    if (r >= 0) {
        span_take(from, buffer + (offset - begin), length);
        r = write_whole(file, begin, buffer, end - begin);
    }
    if (partial)
        pthread_mutex_unlock(&file->unaligned);
    return r;
}

static int read_some(struct file *file, uint64_t offset, struct span *to, uint64_t length)
{
    struct iovec iov[WINDOW];
    size_t part;
    unsigned count = span_window(to, min(length, (uint64_t)INT_MAX), iov, WINDOW, &part);
    if (!aligned(file, offset, iov, count)) {
        part = (size_t)min(length, (uint64_t)BOUNCE);
        int r = bounce_read(file, offset, to, part);
        return r < 0 ? r : (int)part;
    }
    ssize_t got = preadv(file->fd, iov, (int)count, (off_t)offset);
    if (got < 0)
        return errno == EINTR ? 0 : -errno;
    span_advance(to, (size_t)got);
    /* The end of the file, perhaps within a block: the rest reads as zeros. */
    if (got == 0 || (size_t)got % file->alignment) {
        span_zero(to, part - (size_t)got);
        return (int)part;
    }
    return (int)got;
}

static int write_some(struct file *file, uint64_t offset, struct span *from, uint64_t length)
{
    struct iovec iov[WINDOW];
    size_t part;
    unsigned count = span_window(from, min(length, (uint64_t)INT_MAX), iov, WINDOW, &part);
    if (!aligned(file, offset, iov, count)) {
        part = (size_t)min(length, (uint64_t)BOUNCE);
        int r = bounce_write(file, offset, from, part);
        return r < 0 ? r : (int)part;
    }
    ssize_t put = pwritev(file->fd, iov, (int)count, (off_t)offset);
    if (put < 0)
        return errno == EINTR ? 0 : -errno;
    if (put == 0)
        return -EIO;
    span_advance(from, (size_t)put);
    return (int)put;
}

static int transfer(struct file *file, uint64_t offset, struct span *span, uint64_t length,
                    int (*some)(struct file *, uint64_t, struct span *, uint64_t))
{
    if (!offset_sane(offset, length))
        return -EINVAL;
    while (length) {
        int r = some(file, offset, span, length);
        if (r < 0)
            return r;
        offset += (unsigned)r;
        length -= (unsigned)r;
    }
    return 0;
}

int file_read(struct file *file, uint64_t offset, struct span *to, uint64_t length)
{
    if (file->layer)
        return offset_sane(offset, length) ? file->layer->read(file->opaque, offset, to, length)
                                           : -EINVAL;
    return transfer(file, offset, to, length, read_some);
}

int file_write(struct file *file, uint64_t offset, struct span *from, uint64_t length)
{
    if (file->layer && !file->layer->write)
        return -EROFS;
    if (file->layer)
        return offset_sane(offset, length) ? file->layer->write(file->opaque, offset, from, length)
                                           : -EINVAL;
    return transfer(file, offset, from, length, write_some);
}

int file_read_bytes(struct file *file, uint64_t offset, void *to, size_t length)
{
    struct iovec iov = {to, length};
    return file_read(file, offset, &(struct span){&iov, 1, 0}, length);
}

int file_write_bytes(struct file *file, uint64_t offset, const void *from, size_t length)
{
    struct iovec iov = {(void *)(uintptr_t)from, length};
    return file_write(file, offset, &(struct span){&iov, 1, 0}, length);
}

/* --- space --- */

static int write_zeros(struct file *file, uint64_t offset, uint64_t length)
{
    size_t size = (size_t)min(align_up(length, BLOCK_MAX), (uint64_t)BOUNCE);
    _cleanup_free_ uint8_t *zeros = aligned_alloc(BLOCK_MAX, size);
    if (!zeros)
        return -ENOMEM;
    memset(zeros, 0, size);
    while (length) {
        size_t part = (size_t)min(length, (uint64_t)size);
        int r = file_write_bytes(file, offset, zeros, part);
        if (r < 0)
            return r;
        offset += part;
        length -= part;
    }
    return 0;
}

/* fallocate() for as long as it is interrupted. */
static int change_space(struct file *file, int mode, uint64_t offset, uint64_t length)
{
    int r;
    do
        r = fallocate(file->fd, mode, (off_t)offset, (off_t)length);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

static bool unsupported(int r)
{
    return r == -EOPNOTSUPP || r == -ENOSYS || r == -ENODEV || r == -EINVAL;
}

int file_zero(struct file *file, uint64_t offset, uint64_t length, bool unmap)
{
    if (!offset_sane(offset, length))
        return -EINVAL;
    if (!length)
        return 0;
    if (file->layer)
        return file->layer->zero ? file->layer->zero(file->opaque, offset, length) : -EROFS;
    uint64_t end;
    int r = file_length(file, &end);
    if (r < 0)
        return r;
    if (unmap && !file->no_punch) {
        /* A hole does not make a file longer; what lies behind its end is zero as it is. */
        if (offset + length > end && !file->block_device)
            r = file_truncate(file, offset + length);
        if (r >= 0)
            r = change_space(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
        if (!unsupported(r))
            return r;
        file->no_punch = true;
    }
    r = change_space(file, FALLOC_FL_ZERO_RANGE, offset, length);
    return unsupported(r) ? write_zeros(file, offset, length) : r;
}

int file_discard(struct file *file, uint64_t offset, uint64_t length)
{
    if (!offset_sane(offset, length))
        return -EINVAL;
    if (!length || file->no_punch)
        return 0;
    if (file->layer)
        return file->layer->discard ? file->layer->discard(file->opaque, offset, length) : -EROFS;
    int r = change_space(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    if (!unsupported(r))
        return r;
    file->no_punch = true;
    return 0;
}

int file_reserve(struct file *file, uint64_t offset, uint64_t length)
{
    if (length && file->layer)
        return file->layer->reserve ? file->layer->reserve(file->opaque, offset, length) : -EROFS;
    if (!length || file->block_device)
        return 0;
    int r = change_space(file, 0, offset, length);
    /* Without fallocate() a file can only be made long enough. */
    uint64_t end;
    if (unsupported(r) && (r = file_length(file, &end)) >= 0 && end < offset + length)
        r = file_truncate(file, offset + length);
    return r;
}

int file_truncate(struct file *file, uint64_t length)
{
    if (length > INT64_MAX)
        return -EFBIG;
    if (file->layer)
        return file->layer->truncate ? file->layer->truncate(file->opaque, length) : -ENOTSUP;
    if (file->block_device)
        return -ENOTSUP;
    return ftruncate(file->fd, (off_t)length) < 0 ? -errno : 0;
}

int file_flush(struct file *file)
{
    if (file->layer)
        return file->layer->flush ? file->layer->flush(file->opaque) : 0;
    if (!file->sync || !file->write)
        return 0;
    if (file->lost)
        return -EIO;
    if (fdatasync(file->fd) == 0)
        return 0;
    int number = errno;
    /* What the host's cache could not write it has forgotten, and says so once: that the next flush
     * succeeds means nothing. Past the cache there was nothing to forget. */
    file->lost = file->alignment == 1;
    return file->lost ? -EIO : -number;
}

int file_status(struct file *file, uint64_t offset, uint64_t length, bool *ret_hole,
                uint64_t *ret_length)
{
    *ret_hole = false;
    *ret_length = length;
    if (offset_sane(offset, length) && file->layer)
        return file->layer->status(file->opaque, offset, length, ret_hole, ret_length);
    if (!offset_sane(offset, length) || file->block_device)
        return 0;
    off_t data = lseek(file->fd, (off_t)offset, SEEK_DATA);
    if (data < 0 && errno == ENXIO) { /* nothing but a hole from here on */
        *ret_hole = true;
        return 0;
    }
    if (data < 0)
        return errno == EINVAL || errno == EOPNOTSUPP ? 0 : -errno;
    if ((uint64_t)data > offset) {
        *ret_hole = true;
        *ret_length = min(length, (uint64_t)data - offset);
        return 0;
    }
    off_t hole = lseek(file->fd, (off_t)offset, SEEK_HOLE);
    if (hole > (off_t)offset)
        *ret_length = min(length, (uint64_t)hole - offset);
    return 0;
}
