/*
 * A machine that stands still altogether: for board_save(), and for what is done to its disks
 * beside that. The vCPUs are parked and the clock stands; what was due on it runs; each virtio
 * device finishes what it has begun and begins nothing.
 */
#include "board/board_private.h"

#include <errno.h>

static int check(struct board *board, struct err *err)
{
    pthread_mutex_lock(&board->lock);
    bool stands =
        board->run != BOARD_RUNNING && (!board->started || board->parked_count == board->cpus);
    pthread_mutex_unlock(&board->lock);
    if (!stands)
        return err_set(err, -EINVAL, "a machine is saved while it is paused");
    timers_settle(board->timers);
    pthread_mutex_lock(&board->lock);
    bool ended = board->ended; /* by a vCPU just before, or by a timer now: its end is not in it */
    pthread_mutex_unlock(&board->lock);
    return ended ? err_set(err, -EBUSY, "the guest has just ended") : 0;
}

static int check_devices(const struct board *board, struct err *err)
{
    for (unsigned i = 0; i < board->virtio_count; i++)
        if (!board->virtio[i]->ops->settle)
            return err_set(err, -ENOTSUP, "a machine with %s cannot be saved yet",
                           board->virtio[i]->ops->name);
    return 0;
}

/* A request that waits for space has been popped, and cannot be saved. */
static int settle_disks(struct board *board, struct err *err)
{
    for (unsigned i = 0; i < board->disk_count; i++) {
        if (!virtio_blk_settled(board->disks[i]))
            return err_set(err, -EBUSY, "the guest waits for space for its disk %u", i);
        int r = virtio_blk_flush(board->disks[i]);
        if (r < 0)
            return err_errno(err, -r, "the guest's disk %u cannot be flushed", i);
    }
    return 0;
}

int board_hold(struct board *board, struct err *err)
{
    if (board->held)
        return 0;
    int r = check_devices(board, err);
    if (r >= 0)
        r = check(board, err);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < board->virtio_count; i++)
        virtio_hold(board->virtio[i]);
    board->held = true;
    r = settle_disks(board, err);
    if (r < 0)
        board_let_go(board);
    return r;
}

void board_let_go(struct board *board)
{
    if (!board->held)
        return;
    board->held = false;
    for (unsigned i = 0; i < board->virtio_count; i++)
        virtio_release(board->virtio[i]);
}

void board_exchange_disk(struct board *board, unsigned index, struct disk *disk)
{
    virtio_blk_exchange(board->disks[index], disk);
}
