#include "disk/disk.h"

#include "base/bytes.h"
#include "base/own.h"
#include "disk/luks.h"
#include "disk/private.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

static const struct disk_ops *const formats[] = {&raw_ops, &qcow2_ops};

enum { MAGIC_MAX = 21, SIZE_BITS = 62 };

/* What may stand at the start of a disk's first sector and would make the next one who probes it
 * open other files of the host. */
static const struct {
    const char *bytes;
    size_t length;
} magics[] = {
    {"QFI\xfb", 4}, {"QED\0", 4}, {"KDMV", 4}, {"COWD", 4}, {"# Disk DescriptorFile", MAGIC_MAX},
};

bool disk_magic_names_files(const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < ARRAY_LEN(magics); i++)
        if (length >= magics[i].length && !memcmp(bytes, magics[i].bytes, magics[i].length))
            return true;
    return false;
}

/* --- opening --- */

static const struct disk_ops *find_format(enum disk_format format)
{
    for (size_t i = 0; i < ARRAY_LEN(formats); i++)
        if (formats[i]->format == format)
            return formats[i];
    return NULL;
}

static int probe(struct file *file, enum disk_format *ret_format)
{
    uint8_t magic[4];
    int r = file_read_bytes(file, 0, magic, sizeof magic);
    if (r >= 0)
        *ret_format = memcmp(magic, "QFI\xfb", 4) ? DISK_FORMAT_RAW : DISK_FORMAT_QCOW2;
    return r;
}

/* An image that stands on itself would be read without end. */
static int check_chain(const struct disk_opening *opening, const struct file *file, struct err *err)
{
    if (opening->depth > DISK_CHAIN_MAX)
        return err_set(err, -ELOOP, "disk '%s': more than %d images behind each other",
                       opening->path, DISK_CHAIN_MAX);
    for (const struct disk *above = opening->from; above; above = above->from)
        if (file_same(above->file, file))
            return err_set(err, -ELOOP, "disk '%s' stands on itself", opening->path);
    return 0;
}

/* Puts a layer of plaintext above the file. */
static int unlock(struct file **file, const char *path, const struct disk_key *key, struct err *err)
{
    int r = luks_open(*file, key, file, err);
    return r < 0 ? err_prefix(err, r, "disk '%s'", path) : r;
}

static int open_image(const struct disk_opening *opening, struct disk **ret_disk, struct err *err)
{
    struct file *file;
    enum disk_format format = opening->format;
    int r = file_open(opening->path, opening->from ? opening->from->path : NULL, opening->write,
                      opening->options, &file, err);
    if (r < 0)
        return r;
    r = check_chain(opening, file, err);
    if (r >= 0 && opening->options->key && !opening->from)
        r = unlock(&file, opening->path, opening->options->key, err);
    if (r >= 0 && format == DISK_FORMAT_PROBE && (r = probe(file, &format)) < 0)
        err_errno(err, -r, "disk '%s'", opening->path);
    const struct disk_ops *ops = find_format(format);
    if (r >= 0 && !ops)
        r = err_set(err, -EINVAL, "disk '%s': unknown format", opening->path);
    struct disk *disk = NULL;
    char *path = NULL;
    const char *slash = opening->from ? strrchr(opening->from->path, '/') : NULL;
    if (r >= 0) {
        int length = slash && *opening->path != '/' ? (int)(slash + 1 - opening->from->path) : 0;
        if (asprintf(&path, "%.*s%s", length, length ? opening->from->path : "", opening->path) < 0)
            r = err_set(err, -ENOMEM, "disk '%s': no memory", opening->path);
    }
    struct disk_opening whole = *opening;
    whole.path = path;
    whole.write = opening->write && file_writable(file);
    if (r >= 0)
        r = ops->open(&whole, file, &disk, err);
    if (r < 0) {
        free(path);
        file_free(file);
        return r;
    }
    disk->path = path;
    disk->from = NULL;
    pthread_mutex_init(&disk->guard, NULL);
    disk->read_only = disk->read_only || !whole.write;
    disk->guarded = opening->format == DISK_FORMAT_PROBE && format == DISK_FORMAT_RAW;
    *ret_disk = disk;
    return 0;
}

int disk_open_backing(struct disk *disk, const struct disk_opening *opening, const char *path,
                      enum disk_format format, struct err *err)
{
    if (file_is_remote(disk->file))
        return err_set(err, -EPERM,
                       "disk '%s' comes from a web server and names a file, '%s'; it gets none",
                       opening->path, path);
    struct disk_opening below = {
        .path = path,
        .options = opening->options,
        .format = format,
        .from = disk,
        .depth = opening->depth + 1,
    };
    int r = open_image(&below, &disk->backing, err);
    if (r < 0) /* in front of all the names of a long chain nothing else would find room */
        return opening->depth ? r : err_prefix(err, r, "backing of '%s'", opening->path);
    /* What a guest wrote into a raw disk is no reason to open whatever it names. */
    if (format == DISK_FORMAT_PROBE && disk->backing->backing) {
        disk_close(take_ptr(disk->backing));
        return err_set(err, -EPERM,
                       "disk '%s' does not say that its backing '%s' is qcow2, which names another "
                       "file; write it down: qemu-img rebase -u -b '%s' -F qcow2 '%s'",
                       opening->path, path, path, opening->path);
    }
    return 0;
}

int disk_open(const char *path, const struct disk_options *options, struct disk **ret_disk,
              struct err *err)
{
    struct disk_opening opening = {
        .path = path,
        .options = options,
        .format = options->format,
        .write = !options->read_only,
    };
    return open_image(&opening, ret_disk, err);
}

int disk_close(struct disk *disk)
{
    if (!disk)
        return 0;
    struct file *file = disk->file;
    struct disk *backing = disk->backing;
    char *path = disk->path;
    pthread_mutex_destroy(&disk->guard);
    int r = disk->ops->close(disk);
    disk_close(backing);
    file_free(file);
    free(path);
    return r;
}

uint64_t disk_size(const struct disk *disk)
{
    return disk->size;
}

bool disk_read_only(const struct disk *disk)
{
    return disk->read_only;
}

const char *disk_format_name(const struct disk *disk)
{
    return disk->ops->name;
}

/* --- the calls --- */

static int check_range(const struct disk *disk, uint64_t offset, uint64_t length, bool write)
{
    if (!range_fits(offset, length, disk->size))
        return -EINVAL;
    return write && disk->read_only ? -EROFS : 0;
}

static int iov_length(const struct iovec *iov, unsigned count, uint64_t *ret_length)
{
    *ret_length = 0;
    for (unsigned i = 0; i < count; i++)
        if (__builtin_add_overflow(*ret_length, iov[i].iov_len, ret_length))
            return -EINVAL;
    return 0;
}

int disk_readv(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count)
{
    uint64_t length;
    int r = iov_length(iov, count, &length);
    if (r >= 0)
        r = check_range(disk, offset, length, false);
    if (r < 0 || length == 0)
        return r;
    return disk->ops->read(disk, offset, &(struct span){iov, count, 0}, length);
}

/* Writes the first sector from a copy: what was looked at is what is written, whatever its owner
 * does to the bytes meanwhile. Under the guard, so that two threads cannot write half a magic each.
 */
static int write_guarded(struct disk *disk, uint64_t offset, struct span *from, uint64_t length)
{
    uint8_t sector[DISK_SECTOR];
    struct iovec whole = {sector, sizeof sector};
    size_t part = (size_t)min(length, DISK_SECTOR - offset);
    int r = disk->ops->read(disk, 0, &(struct span){&whole, 1, 0}, sizeof sector);
    if (r < 0)
        return r;
    span_take(from, sector + offset, part);
    if (disk_magic_names_files(sector, sizeof sector))
        return -EPERM;
    struct iovec copy = {sector + offset, part};
    r = disk->ops->write(disk, offset, &(struct span){&copy, 1, 0}, part);
    return r < 0 || part == length ? r : disk->ops->write(disk, DISK_SECTOR, from, length - part);
}

int disk_writev(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count)
{
    uint64_t length;
    int r = iov_length(iov, count, &length);
    if (r >= 0)
        r = check_range(disk, offset, length, true);
    if (r < 0 || length == 0)
        return r;
    struct span from = {iov, count, 0};
    if (!disk->guarded || offset >= DISK_SECTOR)
        return disk->ops->write(disk, offset, &from, length);
    pthread_mutex_lock(&disk->guard);
    r = write_guarded(disk, offset, &from, length);
    pthread_mutex_unlock(&disk->guard);
    return r;
}

int disk_read(struct disk *disk, uint64_t offset, void *to, size_t length)
{
    return disk_readv(disk, offset, &(struct iovec){to, length}, 1);
}

int disk_write(struct disk *disk, uint64_t offset, const void *from, size_t length)
{
    return disk_writev(disk, offset, &(struct iovec){(void *)(uintptr_t)from, length}, 1);
}

int disk_read_padded(struct disk *disk, uint64_t offset, struct span *to, uint64_t length)
{
    uint64_t size = disk ? disk->size : 0;
    uint64_t inside = offset < size ? min(length, size - offset) : 0;
    int r = inside ? disk->ops->read(disk, offset, to, inside) : 0;
    if (r >= 0 && length > inside)
        span_zero(to, length - inside);
    return r;
}

int disk_write_zeroes(struct disk *disk, uint64_t offset, uint64_t length, bool may_unmap)
{
    int r = check_range(disk, offset, length, true);
    return r < 0 || length == 0 ? r : disk->ops->write_zeroes(disk, offset, length, may_unmap);
}

int disk_discard(struct disk *disk, uint64_t offset, uint64_t length)
{
    int r = check_range(disk, offset, length, true);
    return r < 0 || length == 0 ? r : disk->ops->discard(disk, offset, length);
}

int disk_flush(struct disk *disk)
{
    return disk->read_only ? 0 : disk->ops->flush(disk);
}

bool disk_direct(struct disk *disk, uint64_t offset, uint64_t length, bool write,
                 struct disk_extent *ret_extent)
{
    return length && check_range(disk, offset, length, write) >= 0 &&
           disk->ops->direct(disk, offset, length, write, ret_extent);
}

void disk_direct_end(struct disk *disk, const struct disk_extent *extent)
{
    disk->ops->direct_end(disk, extent);
}

/* --- what tools do --- */

int disk_status(struct disk *disk, uint64_t offset, uint64_t length,
                enum disk_extent_kind *ret_kind, uint64_t *ret_length)
{
    int r = check_range(disk, offset, length, false);
    if (r < 0 || length == 0)
        return r < 0 ? r : -EINVAL;
    return disk->ops->status(disk, offset, length, ret_kind, ret_length);
}

static int check_size(uint64_t size, struct err *err)
{
    if (size == 0)
        return err_set(err, -EINVAL, "a disk of no size is none; write it like 10G");
    if (size >> SIZE_BITS)
        return err_set(err, -EFBIG, "%" PRIu64 " bytes are more than any disk has", size);
    return 0;
}

int disk_resize(struct disk *disk, uint64_t size, struct err *err)
{
    if (disk->read_only)
        return err_set(err, -EROFS, "disk '%s' is open for reading only", disk->path);
    int r = check_size(size, err);
    if (r >= 0)
        r = disk->ops->resize(disk, align_up(size, DISK_SECTOR), err);
    return r < 0 ? err_prefix(err, r, "disk '%s'", disk->path) : 0;
}

/* The size of what a new image stands on; relative to the new image's folder, as it will be read.
 */
static int backing_size(const char *path, const struct disk_create *create, uint64_t *ret_size,
                        struct err *err)
{
    struct disk_options options = {
        .format = create->backing_format, .read_only = true, .unlocked = true};
    struct disk *disk;
    _cleanup_free_ char *joined = NULL;
    const char *slash = strrchr(path, '/');
    int folder = slash && *create->backing != '/' ? (int)(slash + 1 - path) : 0;
    if (asprintf(&joined, "%.*s%s", folder, path, create->backing) < 0)
        return err_set(err, -ENOMEM, "no memory");
    int r = disk_open(joined, &options, &disk, err);
    if (r < 0)
        return err_prefix(err, r, "backing");
    *ret_size = disk_size(disk);
    disk_close(disk);
    return 0;
}

static int create_inside(struct file *file, const char *path, const struct disk_create *create,
                         struct err *err)
{
    if (create->format == DISK_FORMAT_QCOW2)
        return qcow2_create_in(file, path, create, err);
    if (create->backing)
        return err_set(err, -EINVAL, "a raw disk has no backing; qcow2 has");
    int r = file_truncate(file, create->size);
    if (r >= 0 && create->preallocate)
        r = file_reserve(file, 0, create->size);
    return r < 0 ? err_errno(err, -r, "cannot write") : 0;
}

static int create_around(struct file *file, const char *path, const struct disk_create *create,
                         struct err *err)
{
    struct file *inside;
    struct crypt *crypt = secret_new(sizeof *crypt);
    int r = crypt ? luks_format(file, create, crypt, err) : err_set(err, -ENOMEM, "no memory");
    if (r >= 0)
        r = crypt_open(file, crypt, &inside, err);
    secret_free(crypt, sizeof *crypt);
    if (r < 0) {
        file_free(file);
        return r;
    }
    r = create_inside(inside, path, create, err);
    int flushed = r < 0 ? 0 : file_flush(inside);
    file_free(inside);
    return flushed < 0 ? err_errno(err, -flushed, "cannot write") : r;
}

static int create_encrypted(const char *path, const struct disk_create *create, struct err *err)
{
    struct disk_options options = {0};
    struct file *file;
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, errno, "disk '%s'", path);
    close(fd);
    int r = file_open(path, NULL, true, &options, &file, err);
    if (r >= 0) {
        r = create_around(file, path, create, err);
        if (r < 0)
            err_prefix(err, r, "disk '%s'", path);
    }
    if (r < 0)
        unlink(path);
    return r;
}

int disk_create(const char *path, const struct disk_create *create, struct err *err)
{
    struct disk_create checked = *create;
    int r = 0;
    if (create->backing && create->backing_format == DISK_FORMAT_PROBE)
        return err_set(err, -EINVAL, "disk '%s': the format of its backing must be said", path);
    if (create->backing && !create->size)
        r = backing_size(path, create, &checked.size, err);
    if (r >= 0)
        r = check_size(checked.size, err);
    if (r < 0)
        return err_prefix(err, r, "disk '%s'", path);
    checked.size = align_up(checked.size, create->key ? max(create->crypt_sector, 512u) : 512u);
    if (create->key)
        return create_encrypted(path, &checked, err);
    return create->format == DISK_FORMAT_QCOW2 ? qcow2_create(path, &checked, err)
                                               : raw_create(path, &checked, err);
}

int disk_info(struct disk *disk, struct disk_info *ret_info)
{
    struct disk_info info = {
        .format = disk->ops->name,
        .size = disk->size,
        .allocated = file_allocated(disk->file),
    };
    struct file *below = file_below(disk->file);
    luks_describe(below ? below : disk->file, info.encryption, sizeof info.encryption);
    int r = disk->ops->info ? disk->ops->info(disk, &info) : 0;
    if (r >= 0)
        *ret_info = info;
    return r;
}

void disk_info_free(struct disk_info *info)
{
    if (info)
        free(take_ptr(info->backing));
}

int disk_check(const char *path, enum disk_format format, const struct disk_checker *checker,
               struct disk_check *ret_check, struct err *err)
{
    struct disk_options options = {.format = format};
    struct disk_opening opening = {
        .path = path,
        .options = &options,
        .write = checker->repair,
    };
    struct file *file;
    int r = file_open(path, NULL, opening.write, &options, &file, err);
    if (r < 0)
        return r;
    if (checker->key)
        r = unlock(&file, path, checker->key, err);
    if (r >= 0 && format == DISK_FORMAT_PROBE && (r = probe(file, &format)) < 0)
        err_errno(err, -r, "disk '%s'", path);
    if (r >= 0 && format != DISK_FORMAT_QCOW2)
        r = err_set(err, -ENOTSUP, "disk '%s' is raw: there is nothing to check", path);
    if (r >= 0)
        r = qcow2_check(&opening, file, checker, ret_check, err);
    file_free(file);
    return r;
}
