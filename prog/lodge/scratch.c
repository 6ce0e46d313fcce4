#include "scratch.h"

#include "base/own.h"
#include "duplicate.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static int make_folder(struct scratch *scratch, struct err *err)
{
    const char *place = getenv("TMPDIR");
    _cleanup_free_ char *folder = NULL;
    if (scratch->folder)
        return 0;
    if (asprintf(&folder, "%s/lodge-XXXXXX", place && *place == '/' ? place : "/var/tmp") < 0) {
        folder = NULL;
        return err_set(err, -ENOMEM, "no memory");
    }
    if (!mkdtemp(folder))
        return err_errno(err, errno, "folder '%s' for disks", folder);
    scratch->folder = take_ptr(folder);
    return 0;
}

/* The next one's name. */
static int add(struct scratch *scratch, char **ret_path, struct err *err)
{
    char *path;
    int r = make_folder(scratch, err);
    if (r < 0)
        return r;
    if (asprintf(&path, "%s/disk%u", scratch->folder, scratch->count) < 0)
        return err_set(err, -ENOMEM, "no memory");
    scratch->paths[scratch->count++] = path;
    *ret_path = strdup(path);
    return *ret_path ? 0 : err_set(err, -ENOMEM, "no memory");
}

int scratch_overlay(struct scratch *scratch, const char *backing, enum disk_format format,
                    char **ret_path, struct err *err)
{
    _cleanup_free_ char *path = NULL;
    int r = add(scratch, &path, err);
    if (r >= 0)
        r = disk_create(path,
                        &(struct disk_create){.format = DISK_FORMAT_QCOW2,
                                              .backing = backing,
                                              .backing_format = format},
                        err);
    if (r >= 0)
        *ret_path = take_ptr(path);
    return r;
}

/* A relative name in it would be looked for from where the copy is: it becomes a whole one. */
static int fix_backing(const struct guest_disk *disk, const char *path, struct err *err)
{
    _cleanup_free_ char *old = NULL, *whole = NULL;
    struct disk_key *key = NULL;
    bool qcow2;
    if (!strcmp(disk->key_file, "-")) /* it can be read once */
        return 0;
    int r = disk_key_read(disk->key_file, &key, err);
    if (r >= 0)
        r = duplicate_read(path, key, &qcow2, &old, err);
    if (r >= 0 && qcow2 && old && *old != '/') {
        r = duplicate_backing(disk->path, old, &whole, err);
        if (r >= 0)
            r = disk_rename_backing(path, key, whole, err);
    }
    disk_key_free(key);
    return r;
}

int scratch_copy(struct scratch *scratch, const struct guest_disk *disk, char **ret_path,
                 struct err *err)
{
    _cleanup_free_ char *path = NULL;
    _cleanup_fd_ int from = open(disk->path, O_RDONLY | O_CLOEXEC);
    if (from < 0)
        return err_errno(err, errno, "disk '%s'", disk->path);
    int r = disk_lock(from, false);
    if (r < 0)
        return err_errno(err, -r, "disk '%s'", disk->path);
    r = add(scratch, &path, err);
    if (r < 0)
        return r;
    int to = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (to < 0)
        return err_errno(err, errno, "disk '%s'", path);
    unlink(path); /* it may take long, and we be killed meanwhile */
    scratch->fds[scratch->fd_count++] = to;
    r = duplicate(from, to, "copying the encrypted disk", NULL, err);
    if (r < 0)
        return err_prefix(err, r, "disk '%s'", disk->path);
    _cleanup_free_ char *copy = NULL;
    if (asprintf(&copy, "/proc/self/fd/%d", to) < 0) {
        copy = NULL;
        return err_set(err, -ENOMEM, "no memory");
    }
    r = fix_backing(disk, copy, err);
    if (r >= 0)
        *ret_path = take_ptr(copy);
    return r;
}

void scratch_forget(struct scratch *scratch)
{
    for (unsigned i = 0; i < scratch->fd_count; i++)
        close(scratch->fds[i]);
    for (unsigned i = 0; i < scratch->count; i++) {
        unlink(scratch->paths[i]);
        free(scratch->paths[i]);
    }
    if (scratch->folder)
        rmdir(scratch->folder);
    free(scratch->folder);
    *scratch = (struct scratch){0};
}
