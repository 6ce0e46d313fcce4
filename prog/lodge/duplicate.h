/*
 * duplicate.h: a file's bytes into another file, as cheaply as the host can. Holes stay holes.
 */
#pragma once

#include "base/err.h"
#include "disk/disk.h"

#include <signal.h>
#include <stdbool.h>

/* True where both share their blocks from now on until one is written to (btrfs, XFS, ...): at
 * once, whatever the size. `to` is empty. */
bool duplicate_clone(int from, int to);
/* That, or a copy, with a bar on the terminal if it takes its time. `from` may be a block device,
 * and may be open past the cache. -EINTR when *stop (may be NULL) is set meanwhile. */
int duplicate(int from, int to, const char *what, const volatile sig_atomic_t *stop,
              struct err *err);

/* What the disk at `path` is and says that it stands on: malloc'd, or NULL. */
int duplicate_read(const char *path, const struct disk_key *key, bool *ret_qcow2,
                   char **ret_backing, struct err *err);
/* The whole name of that, as seen from the disk that was copied. */
int duplicate_backing(const char *copied, const char *backing, char **ret_path, struct err *err);
