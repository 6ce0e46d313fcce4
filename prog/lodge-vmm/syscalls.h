/*
 * syscalls.h: what lodge-vmm may ask of the kernel.
 *
 * syscalls_confine() installs the filter of syscalls_compile.c for the whole process, for ever:
 * every call that is not on the list kills it. Nothing can be opened, connected, executed or
 * forked; memory is never writable and executable at once. Call it before anything of the guest's
 * is looked at and before the first thread is made, with no_new_privs set.
 *
 * Errors: what the kernel answers, where it has no seccomp.
 */
#pragma once

#include "base/err.h"

/* Stands in the compiled filter where the process's own number belongs. */
#define SYSCALLS_PID 0x4c6f6467u

int syscalls_confine(struct err *err);
