/*
 * privileges.h: what the process gives up before it looks at anything of the guest's. Each only
 * narrows; none comes back. Single-threaded start of the process only.
 *
 * Errors: what the kernel answers.
 */
#pragma once

#include "base/err.h"

#include <stddef.h>

/* Closes every descriptor from 3 on that is not in `keep`. */
int privileges_close_others(const int *keep, size_t count, struct err *err);

/* No capabilities, no new privileges, no core dumps, few descriptors, nobody may trace us; then the
 * system call filter. */
int privileges_drop(struct err *err);
