/*
 * own.h: ownership that the compiler keeps.
 *
 * Every local owner carries a cleanup attribute, so that each return path releases it. take_fd()
 * and take_ptr() mark the place where ownership leaves a variable:
 *
 *     _cleanup_fd_ int fd = open(...);
 *     ...
 *     guest->fd = take_fd(&fd);
 */
#pragma once

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void own_free(void *pointer)
{
    free(*(void **)pointer);
}

static inline void own_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static inline void own_fclose(FILE **file)
{
    if (*file)
        fclose(*file);
}

#define _cleanup_(function) __attribute__((cleanup(function)))
#define _cleanup_free_      _cleanup_(own_free)
#define _cleanup_fd_        _cleanup_(own_close)
#define _cleanup_file_      _cleanup_(own_fclose)

/* The pointer moves to the caller; the variable no longer owns it. */
#define take_ptr(variable)                                                                         \
    ({                                                                                             \
        __auto_type own_taken_ = (variable);                                                       \
        (variable) = NULL;                                                                         \
        own_taken_;                                                                                \
    })

static inline int take_fd(int *fd)
{
    int taken = *fd;
    *fd = -1;
    return taken;
}
