/*
 * hold.h: a client that has the machine stand still while it saves it and works on the files of its
 * disks (wire/control.h, HOLD).
 *
 *            HOLD                  RELEASE: new images are there to stay
 *     free --------> held by one -----------------------------------------> free, and it goes on
 *                                  the client goes, or a reset: they never were
 *
 * Errors: those of board_hold() and disk_stack(), -EBUSY where another client holds it.
 */
#pragma once

#include "base/err.h"
#include "board/board.h"
#include "disks.h"

#include <stdbool.h>

struct hold {
    struct board *board;
    struct disks *disks;
    int client; /* -1 = nobody */
    bool stacked[GUEST_DISKS_MAX];
};

/* The machine is paused already. */
int hold_begin(struct hold *hold, int client, struct err *err);
/* Nothing where nobody holds it. The machine stays paused. */
void hold_end(struct hold *hold, bool for_good);

/* The descriptor of a disk's first image, still the disk's. */
int hold_disk(const struct hold *hold, unsigned index, struct err *err);
/* Takes the descriptor over, also where it fails. */
int hold_stack(struct hold *hold, unsigned index, const char *name, int fd, struct err *err);
