/*
 * http.h: a file on a web server, for reading, through a lodge-http that fetches its blocks.
 *
 * The process that reads needs a socket and nothing else: no name resolution, no TLS, no HTTP. What
 * it has read stays in a cache of bounded size; blocks of a sequential reader come eight at once.
 *
 * Threads: any number at any time. Errors: -EIO where a block cannot be had after retries, -ESTALE
 * when the server has another file than before: blocks that are in the cache can still be read,
 * and all of them are of the one file that was opened.
 */
#pragma once

#include "disk/file.h"

bool http_is_url(const char *path);

/* Owns `fd`, the client's end of the socket (http_wire.h), whatever happens. */
int http_open(int fd, const char *url, struct file **ret_file, struct err *err);
