#include "disks.h"

#include "virtio/blk.h"
#include "virtio/blk_ring.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void disks_rings(struct disks *disks, struct guest_conf *conf)
{
    disks->conf = conf->disks;
    disks->count = conf->disk_count;
    for (unsigned i = 0; i < disks->count; i++)
        for (unsigned queue = 0; queue < board_disk_queues(conf->cpus); queue++)
            if (blk_ring_new(BLK_RING_ENTRIES, &disks->board[i].rings[queue], NULL) < 0)
                return; /* and NULL in all others */
}

int disks_keys(struct disks *disks, struct err *err)
{
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < disks->count; i++) {
        if (!disks->conf[i].unlocked)
            continue;
        r = disk_key_receive(disks->conf[i].key_fd, &disks->keys[i], err);
        close(disks->conf[i].key_fd);
        disks->conf[i].unlocked = false;
    }
    return r;
}

/* How far disk_open() has come through the images that we were given, the top first. */
struct chain {
    struct guest_disk *disk;
    unsigned next;
};

/* Opens nothing: hands out the next descriptor, if it is what the image asks for. */
static int open_given(void *opaque, const char *path, const char *from, bool write, bool direct)
{
    struct chain *chain = opaque;
    if (chain->next == chain->disk->image_count)
        return -ENOENT;
    struct guest_image *image = &chain->disk->images[chain->next];
    if (strcmp(image->name, path) != 0 || !from != (chain->next == 0) || image->fd < 0)
        return -ENOENT;
    chain->next++;
    int fd = image->fd;
    image->fd = -1; /* the disk's from here on */
    return fd;
}

/* On an I/O thread. One line for each new kind of trouble: a guest tries again and again. */
static void complain(void *opaque, bool write, int number)
{
    struct complaint *complaint = opaque;
    if (atomic_exchange(&complaint->number, number) != number)
        fprintf(stderr, "lodge-vmm: disk '%s': a %s failed: %s\n", complaint->path,
                write ? "write" : "read", strerror(number));
}

static const enum disk_format format_of[GUEST_DISK_FORMAT_MAX] = {
    [GUEST_DISK_PROBE] = DISK_FORMAT_PROBE,
    [GUEST_DISK_RAW] = DISK_FORMAT_RAW,
    [GUEST_DISK_QCOW2] = DISK_FORMAT_QCOW2,
};

static const enum disk_cache cache_of[GUEST_DISK_CACHE_MAX] = {
    [GUEST_DISK_WRITEBACK] = DISK_CACHE_WRITEBACK,
    [GUEST_DISK_NONE] = DISK_CACHE_NONE,
    [GUEST_DISK_UNSAFE] = DISK_CACHE_UNSAFE,
};

static int open_disk(struct guest_disk *conf, const struct disk_key *key, struct board_disk *board,
                     struct err *err)
{
    struct chain chain = {.disk = conf};
    const struct disk_opener opener = {.open = open_given, .opaque = &chain};
    const struct disk_options options = {.format = format_of[conf->format],
                                         .cache = cache_of[conf->cache],
                                         .read_only = conf->read_only,
                                         .unlocked = true, /* lodge has locked them */
                                         .opener = &opener,
                                         .key = key};
    int r = disk_open(conf->path, &options, &board->disk, err);
    board->serial = conf->serial;
    board->waits = conf->on_full == GUEST_DISK_PAUSE;
    board->iops = conf->iops;
    board->bps = conf->bps;
    board->iops_burst = conf->iops_burst;
    board->bps_burst = conf->bps_burst;
    return r;
}

int disks_open(struct disks *disks, struct err *err)
{
    for (unsigned i = 0; i < disks->count; i++) {
        disks->complaints[i].path = disks->conf[i].path;
        disks->board[i].on_error = complain;
        disks->board[i].opaque = &disks->complaints[i];
        int r = open_disk(&disks->conf[i], disks->keys[i], &disks->board[i], err);
        disk_key_free(disks->keys[i]);
        disks->keys[i] = NULL;
        if (r < 0)
            return r;
    }
    return 0;
}

static int open_new(void *opaque, const char *path, const char *from, bool write, bool direct)
{
    int *fd = opaque, taken = *fd;
    *fd = -1;
    return taken >= 0 ? taken : -ENOENT;
}

int disks_stack(struct disks *disks, unsigned index, const char *name, int fd,
                struct disk **ret_disk, struct err *err)
{
    const struct guest_disk *conf = &disks->conf[index];
    const struct disk_opener opener = {.open = open_new, .opaque = &fd};
    const struct disk_options options = {
        .cache = cache_of[conf->cache], .unlocked = true, .opener = &opener};
    int r = 0;
    if (conf->read_only)
        r = err_set(err, -EROFS, "its disk %u is not written to", index);
    if (conf->key_file) /* what the guest writes would lie there in the clear */
        r = err_set(err, -ENOTSUP, "its disk %u is encrypted", index);
    if (r >= 0)
        r = disk_stack(name, &options, disks->board[index].disk, ret_disk, err);
    if (fd >= 0)
        close(fd);
    return r;
}

void disks_close(struct disks *disks)
{
    for (unsigned i = 0; i < disks->count; i++) {
        int r = disk_close(disks->board[i].disk);
        disks->board[i].disk = NULL;
        if (r < 0)
            complain(&disks->complaints[i], true, -r);
    }
}
