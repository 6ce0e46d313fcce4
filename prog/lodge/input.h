/*
 * input.h: the files that a command line names.
 */
#pragma once

#include "base/err.h"

#include <stddef.h>

/* All of a file of at most `max_size` bytes (-EFBIG), with a NUL behind it; malloc'd. `what` is
 * what messages call it. */
int input_read(const char *what, const char *path, size_t max_size, char **ret_text,
               size_t *ret_length, struct err *err);

/* For reading; a regular file that is not empty. */
int input_open(const char *what, const char *path, int *ret_fd, struct err *err);
