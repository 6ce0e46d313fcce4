/*
 * http_wire.h: what src/disk/http.c and lodge-http, which fetches blocks of a web server's file,
 * say to each other over a SOCK_SEQPACKET pair. One message a packet, integers little-endian.
 *
 *     client                               lodge-http
 *     HELLO id                    -->
 *                                 <--      HELLO id, 0, size, block size, slots; the cache's fd
 *                                 <--      or HELLO id, -errno, a phrase
 *     FETCH id, block, slots[]    -->
 *                                 <--      DONE id, 0 or -errno
 *
 * The cache is a file of `slots` places, each a block long. The client says which blocks go into
 * which places and remembers that; lodge-http remembers nothing of it. Blocks are side by side in
 * the web server's file, slots need not be. The last block of a file may be short; what lies behind
 * it in its slot is not said.
 */
#pragma once

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

enum {
    HTTP_RUN_MAX = 16, /* blocks of one FETCH */
    HTTP_TEXT_MAX = 400,
    HTTP_MESSAGE_MAX = 512,
    HTTP_BLOCK_MIN = 4096,
    HTTP_BLOCK_MAX = 1 << 20,
    HTTP_SLOTS_MIN = 2 * HTTP_RUN_MAX,
    HTTP_SLOTS_MAX = 1 << 20,
};

enum http_type {
    HTTP_HELLO = 1,
    HTTP_FETCH,
    HTTP_WELCOME,
    HTTP_DONE,
};

struct http_message {
    enum http_type type;
    uint64_t id;
    int32_t status; /* WELCOME, DONE: 0 or -errno */
    uint64_t block; /* FETCH: the first one */
    uint32_t count; /* FETCH: 1 to HTTP_RUN_MAX */
    uint32_t slot[HTTP_RUN_MAX];
    uint64_t size;              /* WELCOME: of the file, in bytes */
    uint32_t block_size, slots; /* WELCOME */
    char text[HTTP_TEXT_MAX];   /* WELCOME: why not */
};

/* Returns the length; `to` has HTTP_MESSAGE_MAX bytes. */
size_t http_encode(const struct http_message *message, uint8_t *to);
/* -EBADMSG for anything that is not exactly a message with values as above. */
int http_decode(const uint8_t *bytes, size_t length, struct http_message *ret_message);
