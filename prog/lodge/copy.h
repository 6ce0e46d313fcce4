/*
 * copy.h: one disk's contents into a new disk of another format or shape.
 */
#pragma once

#include "disk/disk.h"

#include <signal.h>

/* Makes `path` as `create` says and copies `from` into it, with a bar; what is zero takes no space.
 * Flushed when it returns. -EINTR when *stop is set meanwhile. On error a half-made `path` stays.
 */
int copy_disk(struct disk *from, const char *path, const struct disk_create *create,
              const volatile sig_atomic_t *stop, struct err *err);
