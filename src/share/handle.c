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

int handle_add(struct share *share, int fd, bool folder, uint64_t *ret_id)
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

int handle_close(struct share *share, uint64_t id, bool folder)
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
