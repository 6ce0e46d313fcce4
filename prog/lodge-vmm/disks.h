/*
 * disks.h: the disks of the machine, from descriptors to what the board wants.
 *
 *     disks_rings()   before the filter, after which no I/O ring can be made
 *     disks_keys()    before it, too: memory can be locked only then
 *     disks_open()    inside it: an image is bytes from a stranger
 *     disks_stack()   inside it: a new image on top of one of them
 *     disks_close()   when nothing uses them any more
 *
 * Errors: those of disk_open(). A host that has no io_uring for us is none: plain calls do.
 */
#pragma once

#include "base/err.h"
#include "board/board.h"
#include "conf/guest.h"
#include "disk/disk.h"

struct disks {
    struct guest_disk *conf; /* borrowed */
    struct board_disk board[GUEST_DISKS_MAX];
    struct complaint {
        const char *path;
        _Atomic int number; /* what was told last */
    } complaints[GUEST_DISKS_MAX];
    struct disk_key *keys[GUEST_DISKS_MAX]; /* until it is open; NULL: not encrypted */
    unsigned count;
};

void disks_rings(struct disks *disks, struct guest_conf *conf);
int disks_keys(struct disks *disks, struct err *err);
int disks_open(struct disks *disks, struct err *err);
/* Puts the qcow2 of the descriptor, which it takes over, on a disk that is held (disk_stack()). */
int disks_stack(struct disks *disks, unsigned index, const char *name, int fd,
                struct disk **ret_disk, struct err *err);
void disks_close(struct disks *disks);
