/*
 * folder.h: a snapshot on the host's disk (docs/snapshot.md).
 *
 *     state        the machine, but for its memory        board/snapshot.h
 *     memory       pages, a sparse file                   board/snapshot_memory.h
 *     diskN.*      disks that are the snapshot's own, see keep.h
 *     guest.json   the definition, and what it stands on; written last: without it there is no
 *                  snapshot
 *
 * Errors: -errno with a phrase that names the folder.
 */
#pragma once

#include "base/err.h"
#include "conf/guest.h"
#include "wire/control.h"

#include <stdbool.h>

struct snapshot_about {
    uint8_t id[CONTROL_ID_SIZE];
    char *parent;     /* folder of what it stands on, as written: relative to this one; or NULL */
    char *definition; /* JSON, of the guest */
    bool agent;       /* the guest's image carries one */
    bool same_host;   /* reading: it was taken on this machine, which has not been booted since */
    struct {
        bool is;
        char *backing;            /* what lodge made it stand on, or NULL */
    } temporary[GUEST_DISKS_MAX]; /* of a running guest: disks that go with it */
};

void snapshot_about_free(struct snapshot_about *about);

/* What a running guest says of itself to those that come by its name (endpoint.h): malloc'd. `open`
 * is the same definition with its disks open. */
char *folder_describe(const struct guest_conf *conf, const struct guest_conf *open, bool agent);
/* Takes that apart: definition, agent, temporary. */
int folder_described(const char *text, struct snapshot_about *ret_about, struct err *err);

/* Makes the folder, which must not be there, and its two files. */
int folder_make(const char *path, int *ret_folder, int ret_files[CONTROL_FDS_MAX], struct err *err);
/* All is on the disk, and the folder is a snapshot. */
int folder_finish(const char *path, int folder, const int files[CONTROL_FDS_MAX],
                  const struct snapshot_about *about, struct err *err);
/* A file of the snapshot's own for disk `index`, and its name: "disk0.qcow2". */
int folder_make_disk(int folder, unsigned index, const char *kind, char **ret_name,
                     struct err *err);
/* Removes what these made. */
void folder_remove(const char *path, int folder);

int folder_read(const char *path, struct snapshot_about *ret_about, struct err *err);
/* The disks of a definition that was read there: those that are the snapshot's own get the folder's
 * name before theirs. */
int folder_find_disks(const char *path, struct guest_conf *conf, struct err *err);
/* Opens the whole chain into `restore`; the caller closes what is there, after an error too. */
int folder_open_chain(const char *path, struct guest_restore *restore, struct err *err);
