/*
 * duplicate.h: a file's bytes into another file, as cheaply as the host can. Holes stay holes.
 */
#pragma once

#include "base/err.h"

#include <signal.h>
#include <stdbool.h>

/* True where both share their blocks from now on until one is written to (btrfs, XFS, ...): at
 * once, whatever the size. `to` is empty. */
bool duplicate_clone(int from, int to);
/* That, or a copy, with a bar on the terminal if it takes its time. `from` may be a block device,
 * and may be open past the cache. -EINTR when *stop (may be NULL) is set meanwhile. */
int duplicate(int from, int to, const char *what, const volatile sig_atomic_t *stop,
              struct err *err);
