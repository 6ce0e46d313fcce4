#include "chain.h"

#include "base/own.h"
#include "disk/disk.h"
#include "disk/http.h"
#include "fetch.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

struct chain {
    struct guest_disk *disk;
    struct fetch fetch;
    bool busy; /* somebody else has locked one of the files */
};

static int open_and_keep(void *opaque, const char *path, const char *from, bool write, bool direct)
{
    struct chain *chain = opaque;
    bool writes = !from && !chain->disk->read_only;
    _cleanup_fd_ int fd = fetch_open(&chain->fetch, path, from, writes, direct);
    if (fd < 0)
        return take_fd(&fd);
    int r = disk_lock(fd, writes);
    chain->busy |= r == -EBUSY;
    _cleanup_fd_ int kept = r < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (kept < 0)
        return r < 0 ? r : -errno;
    r = guest_disk_add_image(chain->disk, path, kept);
    if (r < 0)
        return r;
    take_fd(&kept);
    return take_fd(&fd);
}

/* The passphrase stays here. */
static int keep_key(struct guest_disk *disk, const struct disk *opened, struct err *err)
{
    if (!disk->key_file)
        return 0;
    int fd = disk_key_unlocked(opened);
    if (fd < 0)
        return err_errno(err, -fd, "disk '%s': key", disk->path);
    disk->key_fd = fd;
    disk->unlocked = true;
    return 0;
}

int chain_open(struct guest_disk *disk, struct err *err)
{
    static const enum disk_format formats[GUEST_DISK_FORMAT_MAX] = {
        [GUEST_DISK_PROBE] = DISK_FORMAT_PROBE,
        [GUEST_DISK_RAW] = DISK_FORMAT_RAW,
        [GUEST_DISK_QCOW2] = DISK_FORMAT_QCOW2,
    };
    struct chain chain = {.disk = disk, .fetch = {.ca_file = disk->cacert}};
    struct disk_key *key = NULL;
    const struct disk_opener opener = {.open = open_and_keep, .opaque = &chain};
    struct disk_options options = {
        .format = formats[disk->format],
        .cache = disk->cache == GUEST_DISK_NONE ? DISK_CACHE_NONE : DISK_CACHE_WRITEBACK,
        .read_only = true,
        .unlocked = true, /* open_and_keep() locks them as the guest will use them */
        .opener = &opener,
    };
    struct disk *opened;
    disk->read_only |= http_is_url(disk->path);
    int r = disk->key_file ? disk_key_read(disk->key_file, &key, err) : 0;
    options.key = key;
    if (r >= 0)
        r = disk_open(disk->path, &options, &opened, err);
    disk_key_free(key);
    if (r < 0 && *chain.fetch.why.text)
        return err_set(err, r, "disk '%s': %s", disk->path, chain.fetch.why.text);
    if (r == -E2BIG)
        return err_set(err, r, "disk '%s' stands on more than %d images", disk->path,
                       GUEST_IMAGES_MAX - 1);
    if (r < 0 && chain.busy)
        return err_set(err, r, "disk '%s' is in use, or an image that it stands on", disk->path);
    if (r < 0)
        return r;
    r = keep_key(disk, opened, err);
    int closed = disk_close(opened);
    return r >= 0 && closed < 0 ? err_errno(err, -closed, "disk '%s'", disk->path) : r;
}

void chain_close(struct guest_disk *disk)
{
    for (unsigned i = 0; i < disk->image_count; i++) {
        own_close(&disk->images[i].fd);
        disk->images[i].fd = -1;
    }
    if (disk->unlocked)
        close(disk->key_fd);
    disk->unlocked = false;
}
