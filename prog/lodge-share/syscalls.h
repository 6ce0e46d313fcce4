/*
 * syscalls.h: what lodge-share may ask of the kernel.
 *
 * syscalls_confine() installs the filter of syscalls.c for ever: every call that is not on the list
 * kills the process. Nothing can be connected, executed or forked; in a read-only share there is no
 * call by which a file could change but openat2(), whose flags a filter cannot see: Landlock
 * refuses it to make or to write, and from Linux 6.2 on to cut. `descriptors` is the descriptor of
 * /proc/self/fd, below which alone openat() may open.
 *
 * Errors: what the kernel answers, where it has no seccomp.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>

int syscalls_confine(int descriptors, bool read_only, struct err *err);
