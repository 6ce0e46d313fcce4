/*
 * share.h: the processes that serve a guest's shared folders (prog/lodge-share), as their starter
 * sees them.
 *
 * share_start() opens the folder, starts a server for it and waits until it is confined; the other
 * end of its stream is then share->fd, for lodge-vmm. A server ends with the VMM, and with us at
 * the latest.
 *
 * Errors: -ENOTDIR and the like for the path; -EPIPE where the server has ended, which has said why
 * on standard error.
 */
#pragma once

#include "base/err.h"
#include "conf/guest.h"

#include <sys/types.h>

int share_start(struct guest_share *share, pid_t *ret_pid, struct err *err);
/* Closes our copy of the stream, and waits until the server is gone. A pid of 0 is nobody. */
void share_end(struct guest_share *share, pid_t pid);
