/*
 * scratch.h: images that go with one run of a guest. They lie in a folder below $TMPDIR, else
 * /var/tmp, and lose their names as soon as they are open: nothing is left behind by one that
 * was killed, but where that was before it had opened them.
 */
#pragma once

#include "base/err.h"
#include "conf/guest.h"
#include "disk/disk.h"

struct scratch {
    char *folder; /* NULL: none was made yet */
    char *paths[GUEST_DISKS_MAX];
    unsigned count;
    int fds[GUEST_DISKS_MAX]; /* of those that have no name any more */
    unsigned fd_count;
};

/* A new qcow2 that stands on `backing`, an absolute path. *ret_path is the caller's. */
int scratch_overlay(struct scratch *scratch, const char *backing, enum disk_format format,
                    char **ret_path, struct err *err);
/* A copy of a disk that is encrypted, for the same key. */
int scratch_copy(struct scratch *scratch, const struct guest_disk *disk, char **ret_path,
                 struct err *err);
/* All are open: takes the names away. */
void scratch_forget(struct scratch *scratch);
