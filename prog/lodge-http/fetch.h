/*
 * fetch.h: ranges of one file on one web server, by HTTP range requests (RFC 9110, 14), over
 * libcurl.
 *
 * fetch_probe() learns how long the file is and what tells this version of it from another: its
 * ETag, its date, its length. fetch_range() asks for bytes of that version only. What does not
 * come, or comes in part, is asked for again, later and later; what comes differently from what was
 * asked for is never believed.
 *
 * Threads: a `struct fetcher` belongs to all of them, a `struct fetch` to one.
 *
 * Errors: -ESTALE when the file on the server is not the same any more, from then on always;
 * -EOPNOTSUPP for a server that has no ranges; else -EIO, with the cause.
 */
#pragma once

#include "base/err.h"

#include <stdint.h>

struct fetcher;
struct fetch;

/* curl_global_init() is the caller's. `ca_file` may be NULL: the system's. */
int fetcher_new(const char *url, const char *ca_file, struct fetcher **ret_fetcher,
                struct err *err);
void fetcher_free(struct fetcher *fetcher);

int fetch_new(struct fetcher *fetcher, struct fetch **ret_fetch); /* -ENOMEM */
void fetch_free(struct fetch *fetch);

int fetch_probe(struct fetch *fetch, uint64_t *ret_size, struct err *err);
int fetch_range(struct fetch *fetch, uint64_t offset, uint32_t length, uint8_t *to,
                struct err *err);
