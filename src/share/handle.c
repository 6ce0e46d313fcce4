/* The files that a guest has open. As with nodes, no number comes twice. */
#include "share/private.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* The first free one from handle_low on, made where there is none. */
static struct handle *free_handle(struct share *share, uint32_t *ret_slot)
{
    while (share->handle_low < share->handle_count && share->handles[share->handle_low].fd >= 0)
        share->handle_low++;
    *ret_slot = share->handle_low;
    if (share->handle_low < share->handle_count)
        return &share->handles[share->handle_low];
    if (share->handle_count == share->options.handles_max)
        return NULL;
    uint32_t count = share->handle_count ? share->handle_count * 2 : 64;
    if (count > share->options.handles_max)
        count = share->options.handles_max;
    struct handle *handles = realloc(share->handles, count * sizeof *handles);
    if (!handles)
        return NULL;
    for (uint32_t i = share->handle_count; i < count; i++)
        handles[i] = (struct handle){.fd = -1};
    share->handles = handles;
    share->handle_count = count;
    return &handles[share->handle_low];
}

static int handle_add(struct share *share, int fd, bool folder, uint64_t *ret_id)
{
    uint32_t slot;
    struct handle *handle = free_handle(share, &slot);
    if (!handle) {
        close(fd);
        return -ENFILE;
    }
    handle->fd = fd;
    handle->folder = folder;
    handle->position = 0;
    *ret_id = (uint64_t)handle->uses << 32 | slot;
    return 0;
}

struct handle *handle_find(struct share *share, uint64_t id, bool folder)
{
    uint32_t slot = (uint32_t)id;
    if (slot >= share->handle_count)
        return NULL;
    struct handle *handle = &share->handles[slot];
    return handle->fd >= 0 && handle->uses == id >> 32 && handle->folder == folder ? handle : NULL;
}

static void drop(struct share *share, uint32_t slot)
{
    struct handle *handle = &share->handles[slot];
    close(handle->fd);
    handle->fd = -1;
    handle->uses++;
    if (slot < share->handle_low)
        share->handle_low = slot;
}

static int handle_close(struct share *share, uint64_t id, bool folder)
{
    if (!handle_find(share, id, folder))
        return -EBADF;
    drop(share, (uint32_t)id);
    return 0;
}

void handle_close_all(struct share *share)
{
    for (uint32_t slot = 0; slot < share->handle_count; slot++)
        if (share->handles[slot].fd >= 0)
            drop(share, slot);
}

/* FUSE's requests about an open file begin with its number. */
int handle_take(struct share *share, struct request *request, bool folder, void *ret_in,
                size_t size, struct handle **ret_handle)
{
    uint64_t id;
    int r = request_take(request, ret_in, size);
    if (r < 0)
        return r;
    memcpy(&id, ret_in, sizeof id);
    *ret_handle = handle_find(share, id, folder);
    return *ret_handle ? 0 : -EBADF;
}

int handle_give(struct share *share, struct request *request, int fd, bool folder)
{
    struct fuse_open_out out = {0};
    int r = handle_add(share, fd, folder, &out.fh);
    if (r >= 0)
        request_give(request, &out, sizeof out);
    return r;
}

int handle_release(struct share *share, struct request *request, bool folder)
{
    struct fuse_release_in in;
    int r = request_take(request, &in, sizeof in);
    return r < 0 ? r : handle_close(share, in.fh, folder);
}

int handle_sync(struct share *share, struct request *request, bool folder)
{
    struct fuse_fsync_in in;
    struct handle *handle;
    int r = handle_take(share, request, folder, &in, sizeof in, &handle);
    if (r < 0)
        return r;
    r = in.fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(handle->fd) : fsync(handle->fd);
    return r < 0 ? -errno : 0;
}
