#include "image/initramfs.h"
#include "image/libarchive.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct entry {
    char *path;
    mode_t mode; /* with the type */
    uint8_t *bytes;
    size_t size;
};

struct initramfs {
    struct entry *entries;
    size_t count, capacity;
};

struct initramfs *initramfs_new(void)
{
    return calloc(1, sizeof(struct initramfs));
}

static void free_entry(struct entry *entry)
{
    free(entry->path);
    free(entry->bytes);
}

void initramfs_free(struct initramfs *initramfs)
{
    if (!initramfs)
        return;
    for (size_t i = 0; i < initramfs->count; i++)
        free_entry(&initramfs->entries[i]);
    free(initramfs->entries);
    free(initramfs);
}

static struct entry *find(struct initramfs *initramfs, const char *path)
{
    for (size_t i = 0; i < initramfs->count; i++)
        if (!strcmp(initramfs->entries[i].path, path))
            return &initramfs->entries[i];
    return NULL;
}

static int append(struct initramfs *initramfs, const char *path, mode_t mode, const void *bytes,
                  size_t size)
{
    if (initramfs->count == initramfs->capacity) {
        size_t capacity = max(2 * initramfs->capacity, (size_t)64);
        struct entry *entries = reallocarray(initramfs->entries, capacity, sizeof *entries);
        if (!entries)
            return -ENOMEM;
        initramfs->entries = entries;
        initramfs->capacity = capacity;
    }
    struct entry entry = {strdup(path), mode, malloc(size + 1), size};
    if (!entry.path || !entry.bytes) {
        free_entry(&entry);
        return -ENOMEM;
    }
    if (size)
        memcpy(entry.bytes, bytes, size);
    initramfs->entries[initramfs->count++] = entry;
    return 0;
}

static int add_parents(struct initramfs *initramfs, const char *path)
{
    _cleanup_free_ char *parent = strdup(path);
    if (!parent)
        return -ENOMEM;
    for (char *slash = strchr(parent, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (!find(initramfs, parent)) {
            int r = append(initramfs, parent, S_IFDIR | 0755, NULL, 0);
            if (r < 0)
                return r;
        }
        *slash = '/';
    }
    return 0;
}

static int add(struct initramfs *initramfs, const char *path, mode_t mode, const void *bytes,
               size_t size, struct err *err)
{
    if (find(initramfs, path))
        return err_set(err, -EEXIST, "'%s' is in the image twice", path);
    int r = add_parents(initramfs, path);
    if (r >= 0)
        r = append(initramfs, path, mode, bytes, size);
    return r < 0 ? err_set(err, r, "no memory") : 0;
}

int initramfs_add_file(struct initramfs *initramfs, const char *path, mode_t mode,
                       const void *bytes, size_t size, struct err *err)
{
    return add(initramfs, path, S_IFREG | mode, bytes, size, err);
}

int initramfs_add_directory(struct initramfs *initramfs, const char *path, mode_t mode,
                            struct err *err)
{
    return add(initramfs, path, S_IFDIR | mode, NULL, 0, err);
}

int initramfs_add_link(struct initramfs *initramfs, const char *path, const char *target,
                       struct err *err)
{
    return add(initramfs, path, S_IFLNK | 0777, target, strlen(target), err);
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->path, ((const struct entry *)b)->path);
}

static int write_entry(struct archive *archive, const struct entry *from, size_t number)
{
    struct archive_entry *entry = sym_archive_entry_new();
    if (!entry)
        return ARCHIVE_FATAL;
    sym_archive_entry_set_pathname(entry, from->path);
    sym_archive_entry_set_mode(entry, from->mode);
    sym_archive_entry_set_mtime(entry, 0, 0);
    sym_archive_entry_set_uid(entry, 0);
    sym_archive_entry_set_gid(entry, 0);
    sym_archive_entry_set_ino(entry, (la_int64_t)number);
    sym_archive_entry_set_nlink(entry, S_ISDIR(from->mode) ? 2 : 1);
    if (S_ISLNK(from->mode)) {
        char target[4096];
        snprintf(target, sizeof target, "%.*s", (int)from->size, (const char *)from->bytes);
        sym_archive_entry_set_symlink(entry, target);
    }
    sym_archive_entry_set_size(entry, S_ISREG(from->mode) ? (la_int64_t)from->size : 0);
    int r = sym_archive_write_header(archive, entry);
    if (r == ARCHIVE_OK && S_ISREG(from->mode) && from->size &&
        sym_archive_write_data(archive, from->bytes, from->size) != (la_ssize_t)from->size)
        r = ARCHIVE_FATAL;
    sym_archive_entry_free(entry);
    return r;
}

static int write_all(struct initramfs *initramfs, int (**set_format)(struct archive *archive),
                     int alignment, int fd, struct err *err)
{
    int r = archive_load(err);
    if (r < 0)
        return r;
    struct archive *archive = sym_archive_write_new();
    if (!archive)
        return err_set(err, -ENOMEM, "no memory");
    qsort(initramfs->entries, initramfs->count, sizeof *initramfs->entries, by_path);
    (*set_format)(archive);
    sym_archive_write_set_bytes_in_last_block(archive, alignment);
    r = sym_archive_write_open_fd(archive, fd);
    for (size_t i = 0; r == ARCHIVE_OK && i < initramfs->count; i++)
        r = write_entry(archive, &initramfs->entries[i], i + 1);
    if (r == ARCHIVE_OK)
        r = sym_archive_write_close(archive);
    int code = 0;
    if (r != ARCHIVE_OK)
        code = err_set(err, -EIO, "archive: %s", sym_archive_error_string(archive));
    sym_archive_write_free(archive);
    return code;
}

int initramfs_write(struct initramfs *initramfs, int fd, struct err *err)
{
    return write_all(initramfs, &sym_archive_write_set_format_cpio_newc, 4, fd, err);
}

int initramfs_write_tar(struct initramfs *initramfs, int fd, struct err *err)
{
    return write_all(initramfs, &sym_archive_write_set_format_ustar, 512, fd, err);
}
