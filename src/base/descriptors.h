/*
 * descriptors.h: the open files that a process was started with.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* A descriptor's number as somebody wrote it; false where it is none. */
bool descriptor_parse(const char *text, int *ret_fd);

/* Closes every descriptor from 3 on that is not in `keep`; what is negative there is nothing. 0 or
 * -errno. While the process has one thread. */
int descriptors_close_others(const int *keep, size_t count);
