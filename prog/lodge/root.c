#include "root.h"

#include "base/own.h"

#include <errno.h>
#include <string.h>

static int add(struct guest_conf *conf, const struct guest_disk *disk, unsigned at, struct err *err)
{
    if (conf->disk_count == GUEST_DISKS_MAX)
        return err_set(err, -E2BIG, "a guest has at most %d disks, with those of image and seed",
                       GUEST_DISKS_MAX);
    struct guest_disk copy = *disk;
    copy.path = strdup(disk->path);
    if (!copy.path)
        return err_set(err, -ENOMEM, "no memory");
    memmove(conf->disks + at + 1, conf->disks + at, (conf->disk_count - at) * sizeof *conf->disks);
    conf->disks[at] = copy;
    conf->disk_count++;
    return 0;
}

int root_add_overlay(struct scratch *scratch, struct guest_conf *conf, const char *disk,
                     struct err *err)
{
    _cleanup_free_ char *path = NULL;
    int r = scratch_overlay(scratch, disk, DISK_FORMAT_QCOW2, &path, err);
    if (r < 0)
        return r;
    /* Nobody will look at it after the host has crashed. */
    const struct guest_disk overlay = {
        .path = path, .format = GUEST_DISK_QCOW2, .cache = GUEST_DISK_UNSAFE, .temporary = true};
    return add(conf, &overlay, 0, err);
}

int root_add_seed(struct guest_conf *conf, int fd, struct err *err)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    const struct guest_disk seed = {
        .path = path, .format = GUEST_DISK_RAW, .read_only = true, .temporary = true};
    return add(conf, &seed, conf->disk_count, err);
}
