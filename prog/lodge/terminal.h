/*
 * terminal.h: the person's terminal in raw mode, and back.
 *
 * There is one controlling terminal, so this module has state. It restores the terminal on
 * terminal_restore(), at exit(), and when one of our own bugs kills us; only SIGKILL leaves it raw.
 */
#pragma once

#include "base/err.h"

#include <stdint.h>

/* `fd` must be a terminal. Legal again after a stop and continue. */
int terminal_raw(int fd, struct err *err);
void terminal_restore(void);

/* 80 x 24 where `fd` does not know. */
void terminal_size(int fd, uint16_t *ret_columns, uint16_t *ret_rows);
