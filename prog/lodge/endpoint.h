/*
 * endpoint.h: where a running guest is found by its name.
 *
 * A folder of this user's ($XDG_RUNTIME_DIR/lodge; without that /run/lodge for root, /tmp/lodge-UID
 * for others) has, for each guest that runs with a name, a socket of its lodge-vmm (NAME.sock,
 * wire/control.h), its definition (NAME.json) and a lock (NAME.lock), which its lodge holds as long
 * as it lives: whatever else is left behind by one that was killed is taken over by the next.
 *
 * Errors: -EEXIST where the name is taken, -ENOENT where nobody has it.
 */
#pragma once

#include "base/err.h"
#include "wire/control.h"

struct endpoint {
    char *name;
    int folder, lock; /* descriptors; -1 = none */
};

/* Takes the name and listens: *ret_fd is for the VMM. `definition` is what others read back. */
int endpoint_open(struct endpoint *endpoint, const char *name, const char *definition, int *ret_fd,
                  struct err *err);
/* Gives the name back. One that was never opened is fine, if it is all zeros. */
void endpoint_close(struct endpoint *endpoint);

/* Whether guests can have names here: 0, or why not. */
int endpoint_check(struct err *err);
/* The names of all that run (or ran, and were killed). What cannot be read has none. */
void endpoint_each(void (*each)(void *opaque, const char *name), void *opaque);

/* A socket to the guest's VMM. */
int endpoint_connect(const char *name, struct err *err);
/* The definition of a running guest, malloc'd. */
int endpoint_definition(const char *name, char **ret_text, struct err *err);

/* Sends a request, with `fd_count` descriptors, and waits for its answer: 0 for DONE and STATS, or
 * -EIO with what FAILED said. -EINTR where a signal's handler was run meanwhile. */
int endpoint_ask(int fd, const struct control_message *request, const int *fds, unsigned fd_count,
                 struct control_message *ret_reply, struct err *err);
/* The same where a descriptor comes with the answer: it. */
int endpoint_ask_fd(int fd, const struct control_message *request, struct err *err);
