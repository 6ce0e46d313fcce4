#include "overlays.h"

#include "base/own.h"
#include "disk/disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct overlays {
    char *folder;
    char *paths[GUEST_DISKS_MAX];
    unsigned count;
};

static struct overlays *overlays_new(struct err *err)
{
    const char *place = getenv("TMPDIR");
    struct overlays *overlays = calloc(1, sizeof *overlays);
    if (!overlays ||
        asprintf(&overlays->folder, "%s/lodge-XXXXXX", place && *place ? place : "/var/tmp") < 0) {
        free(overlays);
        err_set(err, -ENOMEM, "no memory");
        return NULL;
    }
    if (mkdtemp(overlays->folder))
        return overlays;
    err_errno(err, errno, "folder '%s' for disks", overlays->folder);
    free(overlays->folder);
    free(overlays);
    return NULL;
}

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

static int put(struct overlays *overlays, unsigned index, struct guest_disk *disk, struct err *err)
{
    enum disk_format format;
    char *path;
    if (disk->key_file)
        return err_set(err, -ENOTSUP, "disk '%s' is encrypted; no overlay can be put on it yet",
                       disk->path);
    int r = format_of(disk, &format, err);
    if (r < 0)
        return r;
    if (asprintf(&path, "%s/disk%u.qcow2", overlays->folder, index) < 0)
        return err_set(err, -ENOMEM, "no memory");
    overlays->paths[overlays->count++] = path;
    r = disk_create(path,
                    &(struct disk_create){.format = DISK_FORMAT_QCOW2,
                                          .backing = disk->path,
                                          .backing_format = format},
                    err);
    if (r < 0)
        return r;
    char *copy = strdup(path);
    if (!copy)
        return err_set(err, -ENOMEM, "no memory");
    free(disk->path);
    disk->path = copy;
    disk->format = GUEST_DISK_QCOW2;
    return 0;
}

int overlays_make(struct guest_conf *conf, struct overlays **ret_overlays, struct err *err)
{
    struct overlays *overlays = NULL;
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < conf->disk_count; i++) {
        if (conf->disks[i].read_only)
            continue;
        if (!overlays && !(overlays = overlays_new(err)))
            return -EIO;
        r = put(overlays, i, &conf->disks[i], err);
    }
    if (r < 0)
        overlays_free(overlays);
    else
        *ret_overlays = overlays;
    return r;
}

void overlays_free(struct overlays *overlays)
{
    if (!overlays)
        return;
    for (unsigned i = 0; i < overlays->count; i++) {
        unlink(overlays->paths[i]);
        free(overlays->paths[i]);
    }
    rmdir(overlays->folder);
    free(overlays->folder);
    free(overlays);
}
