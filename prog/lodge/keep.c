#include "keep.h"

#include "base/bytes.h"
#include "base/own.h"
#include "disk/disk.h"
#include "duplicate.h"
#include "endpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

enum { NUMBERS_MAX = 1000 };

/* ---- names ---- */

/* "/disks/web.qcow2" is "/disks/web.7.qcow2". */
static int numbered(const char *path, unsigned number, char **ret_path, struct err *err)
{
    const char *base = strrchr(path, '/') + 1, *dot = strrchr(base, '.');
    int length = (int)(dot && dot != base ? dot - path : (ptrdiff_t)strlen(path));
    if (asprintf(ret_path, "%.*s.%u%s", length, path, number, path + length) >= 0)
        return 0;
    *ret_path = NULL;
    return err_set(err, -ENOMEM, "no memory");
}

/* True for /a/b/disk0.qcow2 and /a/c where /a/b is a snapshot. */
static bool is_beside(const char *file, const char *folder)
{
    _cleanup_free_ char *about = NULL;
    const char *slash = strrchr(folder, '/'), *base = strrchr(file, '/');
    size_t parent = (size_t)(slash - folder) + 1;
    if (strncmp(file, folder, parent) != 0 || base < file + parent ||
        memchr(file + parent, '/', (size_t)(base - file) - parent) ||
        asprintf(&about, "%.*s/guest.json", (int)(base - file), file) < 0)
        return false;
    return access(about, F_OK) == 0;
}

/* What lies in a snapshot beside this one is named so that both may be moved together. */
static int name_from(const char *folder, const char *file, char **ret_name, struct err *err)
{
    _cleanup_free_ char *here = realpath(folder, NULL);
    if (!here)
        return err_errno(err, errno, "folder '%s'", folder);
    const char *parent = strrchr(here, '/');
    if (!is_beside(file, here))
        *ret_name = strdup(file);
    else if (asprintf(ret_name, "..%s", file + (parent - here)) < 0)
        *ret_name = NULL;
    return *ret_name ? 0 : err_set(err, -ENOMEM, "no memory");
}

/* ---- clone and copy ---- */

static bool is_qcow2(const struct guest_disk *disk, int fd)
{
    char name[64], magic[4];
    if (disk->format == GUEST_DISK_QCOW2)
        return true;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd); /* it may be open past the cache */
    _cleanup_fd_ int again = open(name, O_RDONLY | O_CLOEXEC);
    return disk->format == GUEST_DISK_PROBE && pread(again, magic, sizeof magic, 0) == 4 &&
           !memcmp(magic, "QFI\xfb", 4);
}

/* 1; 0: the host cannot, with `only_clone`. */
static int take_in(struct keep *keep, unsigned index, int fd, bool only_clone, struct err *err)
{
    struct guest_disk *disk = &keep->conf.disks[index];
    struct kept *kept = &keep->disks[index];
    bool qcow2 = !disk->key_file && is_qcow2(disk, fd);
    const char *kind = disk->key_file ? "luks" : qcow2 ? "qcow2" : "img";
    _cleanup_free_ char *name = NULL;
    _cleanup_fd_ int to = folder_make_disk(keep->folder, index, kind, &name, err);
    if (to < 0)
        return to;
    if (only_clone && !duplicate_clone(fd, to)) {
        unlinkat(keep->folder, name, 0);
        return 0;
    }
    int r = only_clone ? 0 : duplicate(fd, to, "copying a disk", keep->interrupted, err);
    if (r < 0)
        return err_prefix(err, r, "disk '%s'", disk->path);
    if (asprintf(&kept->copy_path, "%s/%s", keep->path, name) < 0) {
        kept->copy_path = NULL;
        return err_set(err, -ENOMEM, "no memory");
    }
    kept->copy = take_fd(&to);
    kept->copied = take_ptr(disk->path);
    disk->path = take_ptr(name);
    if (!disk->key_file)
        disk->format = qcow2 ? GUEST_DISK_QCOW2 : GUEST_DISK_RAW;
    return 1;
}

/* ---- what copies stand on, once the guest has gone on ---- */

/* A copy names what it stands on as seen from its new place. What lodge made to go with a run
 * stands on what lodge said, whatever the VMM may have written there. */
static int fix_backing(const struct keep *keep, unsigned index, const struct disk_key *key,
                       struct err *err)
{
    const struct kept *kept = &keep->disks[index];
    const char *expected = keep->about->temporary[index].backing;
    _cleanup_free_ char *old = NULL, *whole = NULL, *name = NULL;
    bool qcow2;
    int r = duplicate_read(kept->copy_path, key, &qcow2, &old, err);
    if (r < 0 || !qcow2)
        return r;
    if (keep->about->temporary[index].is &&
        (!old != !expected || (old && strcmp(old, expected) != 0)))
        return err_set(err, -EBADMSG, "disk '%s' does not stand on what it did", kept->copied);
    if (!old)
        return 0;
    r = duplicate_backing(kept->copied, old, &whole, err);
    /* A restore copies a container to another folder. */
    if (r >= 0 && !key)
        r = name_from(keep->path, whole, &name, err);
    if (r < 0)
        return r;
    const char *better = key ? whole : name;
    return strcmp(better, old) ? disk_rename_backing(kept->copy_path, key, better, err) : 0;
}

static int fix_copy(const struct keep *keep, unsigned index, struct err *err)
{
    const struct guest_disk *disk = &keep->conf.disks[index];
    struct disk_key *key = NULL;
    if (disk->format == GUEST_DISK_RAW)
        return 0;
    int r = disk->key_file ? disk_key_read(disk->key_file, &key, err) : 0;
    if (r >= 0)
        r = fix_backing(keep, index, key, err);
    disk_key_free(key);
    return r;
}

/* ---- overlay ---- */

/* Whether it was step 1 of one that got no further: an image that names itself. */
static bool is_left_over(const char *path)
{
    const struct disk_options options = {
        .format = DISK_FORMAT_QCOW2, .read_only = true, .alone = true, .unlocked = true};
    struct disk_info info = {0};
    struct disk *disk;
    if (disk_open(path, &options, &disk, NULL) < 0)
        return false;
    bool itself = disk_info(disk, &info) >= 0 && info.backing &&
                  !strcmp(info.backing, strrchr(path, '/') + 1);
    disk_info_free(&info);
    disk_close(disk);
    return itself;
}

/* It is to belong to whom the other did, and to be read by whom the other was; where that cannot
 * be, by nobody else. */
static int set_owner(int fd, const struct stat *like)
{
    mode_t mode = fchown(fd, like->st_uid, like->st_gid) < 0 ? 0600 : 0777;
    return fchmod(fd, like->st_mode & mode) < 0 ? -errno : 0;
}

static int open_new(const struct guest_disk *disk, const char *path, const struct stat *like,
                    struct err *err)
{
    int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;
    int fd = disk->cache == GUEST_DISK_NONE ? open(path, flags | O_DIRECT) : -1;
    if (fd < 0)
        fd = open(path, flags);
    int r = fd < 0 ? -errno : disk_lock(fd, true);
    if (r >= 0)
        r = set_owner(fd, like);
    if (r < 0) {
        own_close(&fd);
        return err_errno(err, -r, "disk '%s'", path);
    }
    return fd;
}

/* Makes the image under a name that nobody has. -EACCES and the like where there is no place. */
static int make_new(const struct guest_disk *disk, char **ret_path, struct err *err)
{
    const struct disk_options options = {
        .format = DISK_FORMAT_QCOW2, .read_only = true, .alone = true, .unlocked = true};
    struct disk_create create = {.format = DISK_FORMAT_QCOW2, .backing_format = DISK_FORMAT_QCOW2};
    struct disk_info info = {0};
    struct disk *opened;
    int r = disk_open(disk->path, &options, &opened, err);
    if (r < 0)
        return r;
    create.size = disk_size(opened);
    if (disk_info(opened, &info) >= 0)
        create.cluster_bits = info.cluster_bits;
    disk_info_free(&info);
    disk_close(opened);
    r = -EEXIST;
    for (unsigned number = 1; r == -EEXIST && number < NUMBERS_MAX; number++) {
        _cleanup_free_ char *path = NULL;
        r = numbered(disk->path, number, &path, err);
        if (r < 0)
            return r;
        create.backing = strrchr(path, '/') + 1;
        r = disk_create(path, &create, err);
        if (r == -EEXIST && is_left_over(path) && unlink(path) == 0)
            r = disk_create(path, &create, err);
        if (r >= 0)
            *ret_path = take_ptr(path);
    }
    return r;
}

/* The names are on the disk before the guest writes by them. */
static int sync_folder(const char *file, struct err *err)
{
    _cleanup_free_ char *folder = strndup(file, (size_t)(strrchr(file, '/') + 1 - file));
    _cleanup_fd_ int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    return fd < 0 || fsync(fd) < 0 ? err_errno(err, errno, "folder of disk '%s'", file) : 0;
}

/* True where the disk's name is still that of the file that the VMM has, and a file can be put in
 * its place. */
static bool may_be_replaced(const struct guest_disk *disk, int fd, struct stat *ret_about)
{
    struct stat named;
    return *disk->path == '/' && fstat(fd, ret_about) >= 0 && lstat(disk->path, &named) >= 0 &&
           S_ISREG(ret_about->st_mode) && ret_about->st_dev == named.st_dev &&
           ret_about->st_ino == named.st_ino;
}

static int stack(struct keep *keep, unsigned index, int new, struct err *err)
{
    struct control_message reply, request = {.type = CONTROL_STACK, .port = index};
    const char *path = keep->disks[index].live_path;
    snprintf(request.text, sizeof request.text, "%s", path);
    int r = sync_folder(path, err);
    return r < 0 ? r : endpoint_ask(keep->guest, &request, &new, 1, &reply, err);
}

/* 1; 0: the host cannot. */
static int put_overlay(struct keep *keep, unsigned index, int *fd, struct err *err)
{
    struct guest_disk *disk = &keep->conf.disks[index];
    struct kept *kept = &keep->disks[index];
    _cleanup_free_ char *path = NULL;
    struct stat about;
    if (disk->key_file || !is_qcow2(disk, *fd) || !may_be_replaced(disk, *fd, &about))
        return 0;
    int r = make_new(disk, &path, err);
    if (r == -EACCES || r == -EPERM || r == -EROFS)
        return 0;
    _cleanup_fd_ int new = r < 0 ? -1 : open_new(disk, path, &about, err);
    if (r < 0)
        return r;
    if (new < 0 || renameat2(AT_FDCWD, path, AT_FDCWD, disk->path, RENAME_EXCHANGE) < 0) {
        unlink(path);
        return new < 0 ? new : 0; /* a file system that has no exchange */
    }
    kept->old = take_fd(fd);
    kept->old_path = strdup(path);
    kept->live_path = strdup(disk->path);
    if (!kept->old_path || !kept->live_path) { /* the way back needs the names */
        renameat2(AT_FDCWD, path, AT_FDCWD, disk->path, RENAME_EXCHANGE);
        unlink(path);
        own_close(&kept->old);
        kept->old = -1;
        return err_set(err, -ENOMEM, "no memory");
    }
    r = stack(keep, index, new, err);
    if (r < 0)
        return err_prefix(err, r, "disk '%s'", kept->live_path);
    free(disk->path);
    disk->path = take_ptr(path);
    disk->format = GUEST_DISK_QCOW2;
    return 1;
}

/* ---- all of them ---- */

/* One that is not kept: by its name. */
static int name_disk(const struct keep *keep, struct guest_disk *disk, struct err *err)
{
    char *name;
    if (*disk->path != '/') /* a URL */
        return 0;
    int r = name_from(keep->path, disk->path, &name, err);
    if (r < 0)
        return r;
    free(disk->path);
    disk->path = name;
    return 0;
}

static int keep_disk(struct keep *keep, unsigned index, struct err *err)
{
    const struct control_message request = {.type = CONTROL_DISK, .port = index};
    bool temporary = keep->about->temporary[index].is;
    if (!temporary && (keep->conf.disks[index].read_only || keep->stop))
        return name_disk(keep, &keep->conf.disks[index], err);
    _cleanup_fd_ int fd = endpoint_ask_fd(keep->guest, &request, err);
    if (fd < 0)
        return fd;
    int r = temporary ? 0 : take_in(keep, index, fd, true, err);
    if (r == 0 && !temporary)
        r = put_overlay(keep, index, &fd, err);
    return r == 0 ? take_in(keep, index, fd, false, err) : r;
}

int keep_disks(struct keep *keep, struct err *err)
{
    char **definition = &keep->about->definition;
    for (unsigned i = 0; i < GUEST_DISKS_MAX; i++)
        keep->disks[i] = (struct kept){.copy = -1, .old = -1};
    guest_conf_init(&keep->conf);
    int r = guest_conf_read_json(&keep->conf, *definition, strlen(*definition), "definition", err);
    for (unsigned i = 0; r >= 0 && i < keep->conf.disk_count; i++) {
        r = keep_disk(keep, i, err);
        if (r >= 0 && *keep->interrupted)
            r = err_set(err, -EINTR, "interrupted");
    }
    char *text = r >= 0 ? guest_conf_write_json(&keep->conf) : NULL;
    if (text) {
        free(*definition);
        *definition = text;
        return 0;
    }
    keep_undo(keep);
    return r < 0 ? r : err_set(err, -EINVAL, "the definition holds a string that is no UTF-8");
}

void keep_undo(struct keep *keep)
{
    for (unsigned i = 0; i < GUEST_DISKS_MAX; i++) {
        struct kept *kept = &keep->disks[i];
        if (kept->old < 0)
            continue;
        /* The new one is empty: where the names cannot be exchanged, it shows what the other has.
         */
        if (renameat2(AT_FDCWD, kept->old_path, AT_FDCWD, kept->live_path, RENAME_EXCHANGE) == 0)
            unlink(kept->old_path);
        own_close(&kept->old);
        kept->old = -1;
    }
}

int keep_done(struct keep *keep, struct err *err)
{
    int r = 0;
    for (unsigned i = 0; i < GUEST_DISKS_MAX; i++) {
        struct kept *kept = &keep->disks[i];
        if (r >= 0 && kept->copy >= 0)
            r = fix_copy(keep, i, err);
        if (r >= 0 && kept->copy >= 0 && fsync(kept->copy) < 0)
            r = err_errno(err, errno, "disk '%s'", kept->copy_path);
        if (kept->old < 0)
            continue;
        disk_lock_share(kept->old);
        fprintf(stderr, "lodge: disk '%s' stands on '%s' from now on: keep both\n", kept->live_path,
                kept->old_path);
    }
    return r;
}

void keep_free(struct keep *keep)
{
    for (unsigned i = 0; i < GUEST_DISKS_MAX; i++) {
        own_close(&keep->disks[i].copy);
        free(keep->disks[i].copy_path);
        free(keep->disks[i].copied);
        own_close(&keep->disks[i].old);
        free(keep->disks[i].old_path);
        free(keep->disks[i].live_path);
    }
    guest_conf_free(&keep->conf);
}
