/*
 * identity.h: processes that are found again by a `lodged` that did not start them, with no other
 * one taken for them: by pid, start time and boot (struct store_process).
 *
 * Reads /proc of this pid namespace. Any thread.
 *
 *     _cleanup_fd_ int process = identity_open(&guest->process, err);
 *     if (process == -ESRCH)
 *         ...    // it has ended, whoever has its number now
 */
#pragma once

#include "base/err.h"
#include "host/store.h"

#include <sys/types.h>

/* -ESRCH: there is no such process, or it has ended and is merely not waited for. */
int identity_read(pid_t pid, struct store_process *ret_process, struct err *err);

/* A descriptor of the process (pidfd_open(2): readable when it ends), the caller's; -ESRCH where it
 * has ended or the machine was started anew since. */
int identity_open(const struct store_process *process, struct err *err);
