/*
 * signals.h: signals as bytes on a pipe, so that one poll() hears of them.
 *
 * Handlers, not signalfd: a write to a stopped terminal must end with EINTR when SIGTERM comes. A
 * process has one set of handlers, so this module has state.
 */
#pragma once

#include "base/err.h"

/* Installs the handlers; returns the descriptor to poll for reading. */
int signals_open(struct err *err);
/* The next signal's number, or 0. */
int signals_next(int fd);
