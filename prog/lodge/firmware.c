#include "firmware.h"

#include "base/bytes.h"
#include "base/own.h"
#include "image/store.h"
#include "input.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum { NVRAM_MAX = 4 << 20 };

/* Debian's and Ubuntu's, then Fedora's and Arch's names for OVMF and its empty store. */
static const struct build {
    const char *code, *store;
} builds[] = {
    {"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
    {"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},
    {"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},
    {"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},
};

static bool is_uefi(const struct guest_conf *conf)
{
    return !strcmp(conf->firmware, GUEST_FIRMWARE_UEFI);
}

static int find_build(const struct build **ret_build, struct err *err)
{
    for (size_t i = 0; i < ARRAY_LEN(builds); i++)
        if (access(builds[i].code, R_OK) == 0 && access(builds[i].store, R_OK) == 0) {
            *ret_build = &builds[i];
            return 0;
        }
    return err_set(err, -ENOENT,
                   "there is no UEFI firmware here; install it (apt install ovmf), or name an "
                   "image with --firmware=FILE");
}

int firmware_check(struct err *err)
{
    const struct build *build;
    return find_build(&build, err);
}

/* All of a store, which is small. */
static int read_store(const char *path, char **ret_bytes, size_t *ret_size, struct err *err)
{
    return input_read("variable store", path, NVRAM_MAX, ret_bytes, ret_size, err);
}

static int write_store(int fd, const char *bytes, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, bytes, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        bytes += n;
        size -= (size_t)n;
    }
    return 0;
}

/* ---- in memory ---- */

static int open_memory(const char *from, int *ret_fd, struct err *err)
{
    _cleanup_free_ char *bytes = NULL;
    size_t size;
    int r = read_store(from, &bytes, &size, err);
    if (r < 0)
        return r;
    _cleanup_fd_ int fd = memfd_create("nvram", MFD_CLOEXEC);
    r = fd < 0 ? -errno : write_store(fd, bytes, size);
    if (r < 0)
        return err_errno(err, -r, "variable store");
    *ret_fd = take_fd(&fd);
    return 0;
}

/* ---- a file ---- */

/* Under another name first: half a store would be none. */
static int make_file(const char *path, const char *from, struct err *err)
{
    _cleanup_free_ char *bytes = NULL;
    _cleanup_free_ char *fresh = NULL;
    size_t size;
    int r = read_store(from, &bytes, &size, err);
    if (r < 0)
        return r;
    if (asprintf(&fresh, "%s.XXXXXX", path) < 0) {
        fresh = NULL;
        return err_set(err, -ENOMEM, "no memory");
    }
    _cleanup_fd_ int fd = mkostemp(fresh, O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, errno, "variable store '%s'", path);
    r = write_store(fd, bytes, size);
    if (r >= 0 && fsync(fd) < 0)
        r = -errno;
    /* Two that start at once make it once. */
    if (r >= 0 && link(fresh, path) < 0 && errno != EEXIST)
        r = -errno;
    unlink(fresh);
    return r < 0 ? err_errno(err, -r, "variable store '%s'", path) : 0;
}

static int lock_file(int fd, const char *path, struct err *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_SETLK, &lock) >= 0)
        return 0;
    if (errno == EAGAIN || errno == EACCES)
        return err_set(err, -EBUSY, "variable store '%s' is another guest's that runs", path);
    return errno == ENOLCK || errno == EOPNOTSUPP || errno == EINVAL
               ? 0 /* a file system without locks */
               : err_errno(err, errno, "variable store '%s'", path);
}

/* `from` is what it is made of, or NULL. */
static int open_file(const char *path, const char *from, int *ret_fd, struct err *err)
{
    struct stat status, empty;
    int r = 0;
    if (from && access(path, F_OK) < 0 && errno == ENOENT)
        r = make_file(path, from, err);
    if (r < 0)
        return r;
    _cleanup_fd_ int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0)
        return err_errno(err, errno, "variable store '%s'", path);
    if (!S_ISREG(status.st_mode))
        return err_set(err, -EINVAL, "variable store '%s' is no regular file", path);
    if (from && stat(from, &empty) == 0 && empty.st_size != status.st_size)
        return err_set(err, -EINVAL, "variable store '%s' has not the size of '%s': it is not one",
                       path, from);
    r = lock_file(fd, path, err);
    if (r < 0)
        return r;
    *ret_fd = take_fd(&fd);
    return 0;
}

/* Where that of a guest with a name is kept; the folder is made. */
static int default_path(const char *name, char **ret_path, struct err *err)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    _cleanup_free_ char *folder = NULL;
    int r;
    if (!image_name_valid(name)) /* it becomes a file's */
        return err_set(err, -EINVAL,
                       "'%.64s' is no name for a guest; use letters, digits, '.', '_' and '-'",
                       name);
    if (state && *state == '/')
        r = asprintf(&folder, "%s/lodge/nvram", state);
    else if (home && *home == '/')
        r = asprintf(&folder, "%s/.local/state/lodge/nvram", home);
    else
        return err_set(err, -ENOENT,
                       "neither XDG_STATE_HOME nor HOME is set; name a file with --nvram");
    if (r < 0) {
        folder = NULL;
        return err_set(err, -ENOMEM, "no memory");
    }
    r = image_make_directories(folder, err);
    if (r >= 0 && asprintf(ret_path, "%s/%s.fd", folder, name) < 0)
        r = err_set(err, -ENOMEM, "no memory");
    return r;
}

static int open_nvram(struct guest_conf *conf, const char *empty, bool restored, int *ret_nvram,
                      struct err *err)
{
    const char *like = empty ? empty : conf->nvram;
    int r = 0;
    if (restored) /* what it holds comes from the snapshot: only its size matters */
        return like ? open_memory(like, ret_nvram, err) : 0;
    if (!conf->nvram && conf->name && empty)
        r = default_path(conf->name, &conf->nvram, err);
    if (r >= 0 && conf->nvram)
        return open_file(conf->nvram, empty, ret_nvram, err);
    return r < 0 || !empty ? r : open_memory(empty, ret_nvram, err);
}

int firmware_open(struct guest_conf *conf, bool restored, int *ret_firmware, int *ret_nvram,
                  struct err *err)
{
    const struct build *build = NULL;
    int r = is_uefi(conf) ? find_build(&build, err) : 0;
    if (r >= 0)
        r = input_open("firmware", build ? build->code : conf->firmware, ret_firmware, err);
    return r < 0 ? r : open_nvram(conf, build ? build->store : NULL, restored, ret_nvram, err);
}
