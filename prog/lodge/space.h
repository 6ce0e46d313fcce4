/*
 * space.h: what a person is told of a guest that stands since the host's disk under one of its
 * disks is full.
 */
#pragma once

#include "conf/guest.h"

#include <stddef.h>

/* One phrase. `number`: ENOSPC, EDQUOT, or 0: there is space again. The disk's files are open. */
void space_describe(const struct guest_disk *disk, int number, char *ret_text, size_t size);
