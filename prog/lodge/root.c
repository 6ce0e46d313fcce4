#include "root.h"

#include "base/own.h"
#include "disk/disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int make_overlay(struct root *root, const char *disk, struct err *err)
{
    const char *where = getenv("TMPDIR");
    const struct disk_create create = {
        .format = DISK_FORMAT_QCOW2,
        .backing = disk,
        .backing_format = DISK_FORMAT_QCOW2,
    };
    if (asprintf(&root->folder, "%s/lodge-XXXXXX", where && *where == '/' ? where : "/var/tmp") < 0)
        root->folder = NULL;
    if (!root->folder)
        return err_set(err, -ENOMEM, "no memory");
    if (!mkdtemp(root->folder)) {
        int r = err_errno(err, errno, "folder '%s' for the guest's disk", root->folder);
        free(take_ptr(root->folder));
        return r;
    }
    if (asprintf(&root->overlay, "%s/root.qcow2", root->folder) < 0) {
        root->overlay = NULL;
        return err_set(err, -ENOMEM, "no memory");
    }
    return disk_create(root->overlay, &create, err);
}

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

int root_add_overlay(struct root *root, struct guest_conf *conf, const char *disk, struct err *err)
{
    int r = make_overlay(root, disk, err);
    if (r < 0)
        return r;
    /* Nobody will look at it after the host has crashed. */
    const struct guest_disk overlay = {
        .path = root->overlay, .format = GUEST_DISK_QCOW2, .cache = GUEST_DISK_UNSAFE};
    return add(conf, &overlay, 0, err);
}

int root_add_seed(struct root *root, struct guest_conf *conf, int fd, struct err *err)
{
    char path[64];
    root->seed = fd;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    const struct guest_disk seed = {.path = path, .format = GUEST_DISK_RAW, .read_only = true};
    return add(conf, &seed, conf->disk_count, err);
}

void root_forget(struct root *root)
{
    if (root->overlay)
        unlink(root->overlay);
    if (root->folder)
        rmdir(root->folder);
    own_close(&root->seed);
    free(root->overlay);
    free(root->folder);
    *root = (struct root){.seed = -1};
}
