#include "overlays.h"

#include "base/own.h"
#include "disk/disk.h"

#include <errno.h>
#include <string.h>

/* What the disk is, for the overlay must say it. */
static int format_of(const struct guest_disk *disk, enum disk_format *ret_format, struct err *err)
{
    struct disk_options options = {.read_only = true, .alone = true, .unlocked = true};
    struct disk *opened;
    if (disk->format != GUEST_DISK_PROBE) {
        *ret_format = disk->format == GUEST_DISK_RAW ? DISK_FORMAT_RAW : DISK_FORMAT_QCOW2;
        return 0;
    }
    int r = disk_open(disk->path, &options, &opened, err);
    if (r < 0)
        return r;
    *ret_format = strcmp(disk_format_name(opened), "raw") ? DISK_FORMAT_QCOW2 : DISK_FORMAT_RAW;
    r = disk_close(opened);
    return r < 0 ? err_errno(err, -r, "disk '%s'", disk->path) : 0;
}

static int put_overlay(struct scratch *scratch, struct guest_disk *disk, char **ret_path,
                       struct err *err)
{
    enum disk_format format;
    _cleanup_free_ char *whole = realpath(disk->path, NULL);
    if (!whole)
        return err_errno(err, errno, "disk '%s'", disk->path);
    int r = format_of(disk, &format, err);
    if (r >= 0)
        r = scratch_overlay(scratch, whole, format, ret_path, err);
    if (r >= 0)
        disk->format = GUEST_DISK_QCOW2;
    return r;
}

int overlays_make(struct guest_conf *conf, struct scratch *scratch, struct err *err)
{
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < conf->disk_count; i++) {
        struct guest_disk *disk = &conf->disks[i];
        char *path;
        if (disk->read_only)
            continue;
        r = disk->key_file ? scratch_copy(scratch, disk, &path, err)
                           : put_overlay(scratch, disk, &path, err);
        if (r < 0)
            break;
        free(disk->path);
        disk->path = path;
        disk->temporary = true;
    }
    return r;
}
