/*
 * disk.h: virtual disks, whatever lies under them. Today that is a raw file.
 *
 * A `struct disk` is an array of bytes with a size, in sectors of 512 bytes. Nothing here sees
 * guest memory but through iovecs.
 *
 * Consistency: everything that was written before a disk_flush() that returned 0 survives a crash.
 * Between flushes writes may reach the host's disk in any order.
 *
 * Threads: every call but disk_close() may be made by any thread at any time. Overlapping writes at
 * the same time leave either's bytes, sector by sector.
 *
 * Errors: -errno. -EINVAL for a range outside the disk (nothing is done), -EROFS for a write to
 * what is open for reading only, -ENOSPC when the host's disk is full.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum { DISK_SECTOR = 512 };

struct disk;

struct disk_options {
    bool read_only;
    bool unsafe; /* flushes do nothing: for guests that are thrown away */
};

/* A regular file or a block device, as it is; its last bytes, if they fill no sector, are not part
 * of the disk. Takes the descriptor over where it succeeds. */
int disk_open_raw(int fd, const struct disk_options *options, struct disk **ret_disk,
                  struct err *err);
void disk_close(struct disk *disk); /* without a flush; NULL is fine */

uint64_t disk_size(const struct disk *disk); /* bytes, a multiple of DISK_SECTOR */
bool disk_read_only(const struct disk *disk);

/* 0 or -errno. What was never written reads as zeros. The vectors are changed. */
int disk_readv(struct disk *disk, uint64_t offset, struct iovec *iov, unsigned count);
int disk_writev(struct disk *disk, uint64_t offset, struct iovec *iov, unsigned count);
/* Zeros from now on. `may_unmap`: the space may go back to the host. */
int disk_write_zeroes(struct disk *disk, uint64_t offset, uint64_t length, bool may_unmap);
/* The contents do not matter any more: space that can go back to the host, goes. */
int disk_discard(struct disk *disk, uint64_t offset, uint64_t length);
int disk_flush(struct disk *disk);
