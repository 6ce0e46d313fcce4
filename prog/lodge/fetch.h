/*
 * fetch.h: opens files for the disk library, those of web servers too: for a URL it starts a
 * lodge-http, which lives as long as anybody holds the socket.
 *
 *     struct fetch fetch = {.ca_file = NULL};
 *     struct disk_opener opener = {fetch_open, &fetch};
 *
 * What a lodge-http fetched is kept in a file without a name, in $XDG_CACHE_HOME/lodge or where
 * there is room; LODGE_HTTP_CACHE is how much of it there may be (1G).
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>

struct fetch {
    const char *ca_file; /* certificates to believe, instead of the system's; or NULL */
    struct err why;      /* after a failure of ours, else empty */
};

/* For struct disk_opener. */
int fetch_open(void *opaque, const char *path, const char *from, bool write, bool direct);
