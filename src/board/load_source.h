/*
 * load_source.h: the bytes of an image, from a descriptor or from memory.
 *
 * A source is a size and a way to read any part of it. load_source_open() takes a regular file by
 * its descriptor (borrowed); load_source_borrow() takes bytes that stay the caller's;
 * load_source_room() makes writable, zeroed room that the source owns, for what is unpacked.
 * load_source_free() accepts a zeroed struct. Not for several threads at once.
 *
 * Errors: -EINVAL for what is no regular file, -ENOEXEC for a read past the end, -ENOMEM.
 */
#pragma once

#include "base/err.h"

#include <stdint.h>

struct load_source {
    const char *what; /* "kernel", "initrd": how messages call it; a literal */
    int fd;           /* used where `bytes` is NULL */
    const uint8_t *bytes;
    uint64_t size;
    void *room; /* owned mapping behind `bytes`, or NULL */
    uint64_t room_size;
};

int load_source_open(struct load_source *ret_source, const char *what, int fd, struct err *err);
void load_source_borrow(struct load_source *ret_source, const char *what, const void *bytes,
                        uint64_t size);
int load_source_room(struct load_source *ret_source, const char *what, uint64_t size,
                     struct err *err);
void load_source_free(struct load_source *source);

/* Reads exactly [offset, offset + size); the message for a range past the end calls the file
 * truncated. */
int load_source_read(const struct load_source *source, uint64_t offset, void *to, uint64_t size,
                     struct err *err);

/* The same into memory that is zero already: what the file system knows to be a hole is left out.
 */
int load_source_read_sparse(const struct load_source *source, uint64_t offset, void *to,
                            uint64_t size, struct err *err);

/* The same into guest memory. Pages of a file that nobody may write to (no write permission in its
 * mode, as the image store has it) are mapped instead of read: a machine then starts without
 * copying its kernel, and machines share the pages that they do not change. MADV_DONTNEED brings
 * the file's bytes back. */
int load_source_place(const struct load_source *source, uint64_t offset, uint8_t *to, uint64_t size,
                      struct err *err);
