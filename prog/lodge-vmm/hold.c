#include "hold.h"

#include <errno.h>
#include <unistd.h>

int hold_begin(struct hold *hold, int client, struct err *err)
{
    if (hold->client >= 0)
        return err_set(err, -EBUSY, "it is being saved already");
    int r = board_hold(hold->board, err);
    if (r >= 0)
        hold->client = client;
    return r;
}

void hold_end(struct hold *hold, bool for_good)
{
    for (unsigned i = 0; i < hold->disks->count; i++) {
        if (!hold->stacked[i])
            continue;
        hold->stacked[i] = false;
        if (for_good) {
            disk_stack_for_good(hold->disks->board[i].disk);
            continue;
        }
        struct disk *top = hold->disks->board[i].disk;
        board_exchange_disk(hold->board, i, disk_below(top));
        hold->disks->board[i].disk = disk_unstack(top);
    }
    if (hold->client >= 0)
        board_let_go(hold->board);
    hold->client = -1;
}

static int check(const struct hold *hold, unsigned index, struct err *err)
{
    return index < hold->disks->count ? 0 : err_set(err, -ENODEV, "it has no disk %u", index);
}

int hold_disk(const struct hold *hold, unsigned index, struct err *err)
{
    int r = check(hold, index, err);
    if (r < 0)
        return r;
    int fd = disk_host_fd(hold->disks->board[index].disk);
    return fd >= 0 ? fd : err_set(err, -ENOTSUP, "its disk %u is no file of this host", index);
}

int hold_stack(struct hold *hold, unsigned index, const char *name, int fd, struct err *err)
{
    struct disk *disk;
    int r = check(hold, index, err);
    if (r >= 0 && hold->stacked[index])
        r = err_set(err, -EBUSY, "disk %u has a new image already", index);
    if (r < 0) {
        close(fd);
        return r;
    }
    r = disks_stack(hold->disks, index, name, fd, &disk, err);
    if (r < 0)
        return r;
    board_exchange_disk(hold->board, index, disk);
    hold->disks->board[index].disk = disk;
    hold->stacked[index] = true;
    return 0;
}
