#include "duplicate.h"

#include "bar.h"
#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PART = 4 << 20, BLOCK = 4096 };

bool duplicate_clone(int from, int to)
{
    return ioctl(to, FICLONE, from) == 0;
}

/* What is zero stays a hole. */
static int write_blocks(int to, const uint8_t *bytes, size_t length, off_t at)
{
    for (size_t done = 0; done < length;) {
        size_t run = 0, part;
        while (done + run < length) {
            part = min((size_t)BLOCK, length - done - run);
            if (bytes_are_zero(bytes + done + run, part))
                break;
            run += part;
        }
        if (run == 0) {
            done += part;
            continue;
        }
        ssize_t n = pwrite(to, bytes + done, run, at + (off_t)done);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n == 0)
            return -ENOSPC;
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

struct copying {
    int from, to;
    off_t size;
    uint8_t *buffer;
    const volatile sig_atomic_t *stop;
    struct bar bar;
};

static int copy_range(struct copying *copying, off_t at, off_t end)
{
    while (at < end) {
        if (copying->stop && *copying->stop)
            return -EINTR;
        size_t part = (size_t)min((off_t)PART, end - at);
        ssize_t n = pread(copying->from, copying->buffer, part, at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0) /* it has become shorter */
            return -EIO;
        int r = write_blocks(copying->to, copying->buffer, (size_t)n, at);
        if (r < 0)
            return r;
        at += n;
        bar_draw(&copying->bar, (uint64_t)at, (uint64_t)copying->size);
    }
    return 0;
}

/* A device has no holes to be seen. */
static int copy_all(struct copying *copying)
{
    off_t at = 0;
    int r = 0;
    while (r >= 0 && at < copying->size) {
        off_t data = lseek(copying->from, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return 0;
        off_t hole = data < 0 ? -1 : lseek(copying->from, data, SEEK_HOLE);
        if (data < 0 || hole < 0) {
            data = at;
            hole = copying->size;
        }
        at = min(hole, copying->size);
        r = copy_range(copying, data, at);
    }
    return r;
}

int duplicate(int from, int to, const char *what, const volatile sig_atomic_t *stop,
              struct err *err)
{
    char name[64];
    if (duplicate_clone(from, to))
        return 0;
    /* Again, for its offset, its flags and its locks are its owner's. */
    snprintf(name, sizeof name, "/proc/self/fd/%d", from);
    _cleanup_fd_ int again = open(name, O_RDONLY | O_CLOEXEC);
    _cleanup_free_ uint8_t *buffer = aligned_alloc(BLOCK, PART);
    if (again < 0)
        return err_errno(err, errno, "cannot be opened once more");
    off_t size = lseek(again, 0, SEEK_END);
    if (size < 0 || ftruncate(to, size) < 0)
        return err_errno(err, errno, "cannot be copied");
    struct copying copying = {.from = again,
                              .to = to,
                              .size = size,
                              .buffer = buffer,
                              .stop = stop,
                              .bar = {.what = what}};
    int r = buffer ? copy_all(&copying) : -ENOMEM;
    bar_clear(&copying.bar);
    if (r == -EINTR)
        return err_set(err, r, "interrupted");
    return r < 0 ? err_errno(err, -r, "cannot be copied") : 0;
}

/* ---- what a copy stands on ---- */

int duplicate_read(const char *path, const struct disk_key *key, bool *ret_qcow2,
                   char **ret_backing, struct err *err)
{
    const struct disk_options options = {
        .read_only = true, .alone = true, .unlocked = true, .key = key};
    struct disk *disk;
    struct disk_info info = {0};
    int r = disk_open(path, &options, &disk, err);
    if (r < 0)
        return r;
    r = disk_info(disk, &info);
    *ret_qcow2 = !strcmp(disk_format_name(disk), "qcow2");
    *ret_backing = take_ptr(info.backing);
    disk_info_free(&info);
    disk_close(disk);
    return r < 0 ? err_errno(err, -r, "disk '%s'", path) : 0;
}

int duplicate_backing(const char *copied, const char *backing, char **ret_path, struct err *err)
{
    _cleanup_free_ char *joined = NULL;
    const char *slash = strrchr(copied, '/');
    if (*backing != '/' && slash &&
        asprintf(&joined, "%.*s/%s", (int)(slash - copied), copied, backing) < 0) {
        joined = NULL;
        return err_set(err, -ENOMEM, "no memory");
    }
    *ret_path = realpath(joined ? joined : backing, NULL);
    return *ret_path ? 0
                     : err_errno(err, errno, "'%s', which disk '%s' stands on", backing, copied);
}
