/*
 * keep.h: what becomes of a guest's disks in a snapshot of it (docs/snapshot.md).
 *
 * A disk that the guest may write to is kept as it is now, and the guest goes on in the file that
 * it was started with, of the format that it had. By the first of these that the host can:
 *
 *   clone     the file is cloned into the folder: both share their blocks (btrfs, XFS, ...)
 *   overlay   a qcow2 gets another name beside its own ("web.1.qcow2"), which nobody writes to any
 *             more; its own is a new image, which stands on that
 *   copy      the file's bytes are copied into the folder
 *
 * What goes with the guest's run is cloned or copied always. With `stop`, and where the guest only
 * reads, a disk is named and no more.
 *
 * An overlay, step by step, each harmless if it is the last one that we, or the VMM, live to do:
 *
 *   1  web.1.qcow2 is made, empty, to stand on "web.1.qcow2"      left over; the next one takes it
 *   2  web.qcow2 and web.1.qcow2 exchange their names, at once    the VMM goes on in web.1.qcow2,
 *                                                                 and web.qcow2 shows what is there
 *   3  the VMM puts the new web.qcow2 on what it has (STACK)      it takes it off when we are gone
 *   4  RELEASE: the guest goes on in web.qcow2                    no guest.json yet: a longer chain
 *   5  guest.json is written                                      done
 *
 * keep_undo() is the way back from 1 to 3.
 */
#pragma once

#include "base/err.h"
#include "conf/guest.h"
#include "folder.h"

#include <signal.h>

struct keep {
    const char *path; /* of the snapshot */
    int folder;       /* it, open */
    int guest;        /* the VMM that we hold (wire/control.h) */
    bool stop;        /* the guest ends with the snapshot */
    const volatile sig_atomic_t *interrupted;
    struct snapshot_about *about; /* its definition becomes the snapshot's */

    struct guest_conf conf;
    struct kept {
        int copy;        /* clone or copy: what lies in the folder; else -1 */
        char *copy_path; /* its name, */
        char *copied;    /* and that of the disk */
        int old;         /* overlay: what nobody writes to any more; else -1 */
        char *old_path;  /* its name from now on, */
        char *live_path; /* and that of what the guest goes on in */
    } disks[GUEST_DISKS_MAX];
};

/* `keep` has its first fields. Calls keep_undo() itself where it fails. */
int keep_disks(struct keep *keep, struct err *err);
/* Before RELEASE: as it was; what lies in the folder stays for folder_remove(). */
void keep_undo(struct keep *keep);
/* After it: copies are on the host's disk; others may read what nobody writes to any more; and the
 * user is told of it. */
int keep_done(struct keep *keep, struct err *err);
void keep_free(struct keep *keep);
