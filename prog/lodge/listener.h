/*
 * listener.h: a Unix socket with a path, for other programs of this user's.
 *
 * It takes the place of one that nobody listens on, as a lodge leaves behind that was killed, and
 * of nothing else. It goes when it is closed, if it is still the one that was made.
 */
#pragma once

#include "base/err.h"

#include <sys/types.h>

struct listener {
    int fd; /* -1 = none */
    char *path;
    dev_t device;
    ino_t inode;
};

/* A stream socket of mode 0600 that does not block. `what` is what messages call it. -EADDRINUSE
 * where somebody has the path. */
int listener_open(struct listener *listener, const char *what, const char *path, struct err *err);
/* One that was never opened is fine, if it is all zeros or was refused. */
void listener_close(struct listener *listener);

/* A connected socket that does not block, or a negative errno. */
int listener_dial(const char *path);
