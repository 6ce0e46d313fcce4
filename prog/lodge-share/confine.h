/*
 * confine.h: what the process gives up before it looks at anything of the guest's: every descriptor
 * but the folder, the socket and its own /proc/self/fd; capabilities but for those that concern
 * files of others, where it has them at all; every file outside the folder (Landlock, where the
 * kernel has it); every system call that a file server does not make (syscalls.h). None comes back.
 *
 * Errors: what the kernel answers. That it has no Landlock is none.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>

struct confine {
    int folder, socket, descriptors;
    bool read_only;

    /* What is left to us. */
    bool owners; /* files may be given to others: CAP_CHOWN and what goes with it */
    unsigned nodes_max, handles_max;
};

int confine_enter(struct confine *confine, struct err *err);
