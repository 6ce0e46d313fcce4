/*
 * file.h: a file or block device of the host, as the formats use it.
 *
 * Any offset and length, whatever O_DIRECT wants: what is not aligned goes through a bounce buffer,
 * and a write of less than a block through reading, changing and writing it back, one at a time.
 * (Two writers of different bytes of one block are both unaligned, so both are in that queue; a
 * writer of the whole block touches all of its bytes.)
 *
 * What lies behind the end of the file reads as zeros; writing there makes it longer.
 *
 * Threads: every call at any time. Errors: -errno.
 */
#pragma once

#include "disk/disk.h"
#include "disk/span.h"

struct file;

/* What lies between a format and the host's file (encryption), or stands in its place (a web
 * server). Every call below goes through it. One without `write` is for reading only. */
struct file_layer {
    void (*free)(void *opaque);
    int (*length)(void *opaque, uint64_t *ret_length);
    int (*read)(void *opaque, uint64_t offset, struct span *to, uint64_t length);
    int (*write)(void *opaque, uint64_t offset, struct span *from, uint64_t length);
    int (*zero)(void *opaque, uint64_t offset, uint64_t length);
    int (*discard)(void *opaque, uint64_t offset, uint64_t length);
    int (*reserve)(void *opaque, uint64_t offset, uint64_t length);
    int (*truncate)(void *opaque, uint64_t length);
    int (*flush)(void *opaque);
    int (*status)(void *opaque, uint64_t offset, uint64_t length, bool *ret_hole,
                  uint64_t *ret_length);
};

/* Owns `opaque`, which owns `below`, once it returned 0. `below`: the host's file, or NULL. */
int file_new_layer(const struct file_layer *layer, void *opaque, struct file *below,
                   struct file **ret_file);
bool file_is_layer(const struct file *file); /* then no descriptor has its bytes as they are */
bool file_is_remote(const struct file *file);
struct file *file_below(const struct file *file); /* the host's file, or NULL */
/* What a layer of this kind was made with; NULL for any other file. */
void *file_opaque(const struct file *file, const struct file_layer *layer);
bool file_writable(const struct file *file);

/* `from`: the path of the image that names this one, or NULL. */
int file_open(const char *path, const char *from, bool write, const struct disk_options *options,
              struct file **ret_file, struct err *err);
void file_free(struct file *file);

int file_fd(const struct file *file);             /* -1 for a layer */
uint32_t file_alignment(const struct file *file); /* 1 without O_DIRECT */
int file_length(const struct file *file, uint64_t *ret_length);
/* No block device and no layer: whoever else reads the file finds zeros where it has a hole. */
bool file_is_regular(const struct file *file);
uint64_t file_allocated(const struct file *file); /* bytes on the host's disk */
/* The same file by another name? */
bool file_same(const struct file *one, const struct file *other);

int file_read(struct file *file, uint64_t offset, struct span *to, uint64_t length);
int file_write(struct file *file, uint64_t offset, struct span *from, uint64_t length);
int file_read_bytes(struct file *file, uint64_t offset, void *to, size_t length);
int file_write_bytes(struct file *file, uint64_t offset, const void *from, size_t length);

/* Zeros, as fast as the host can; `unmap`: without space. */
int file_zero(struct file *file, uint64_t offset, uint64_t length, bool unmap);
/* Gives space back where the host can. It reads as zeros or as before. */
int file_discard(struct file *file, uint64_t offset, uint64_t length);
/* Space for [offset, offset + length), so that writes there do not fail for want of it. */
int file_reserve(struct file *file, uint64_t offset, uint64_t length);
int file_truncate(struct file *file, uint64_t length);
/* What was written is on the disk; nothing with DISK_CACHE_UNSAFE. Where that failed once in the
 * host's cache it is -EIO for ever. */
int file_flush(struct file *file);

/* Whether [offset, ...) is a hole of the file, and how far that goes, at most `length`. */
int file_status(struct file *file, uint64_t offset, uint64_t length, bool *ret_hole,
                uint64_t *ret_length);
