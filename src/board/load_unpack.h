/*
 * load_unpack.h: undoes the compression of a Linux kernel's payload.
 *
 * The build of a bzImage compresses vmlinux with one of several tools and appends its size as a
 * 32-bit little-endian number (gzip's own trailer already ends so); scripts/Makefile.lib and
 * arch/x86/boot/compressed of the kernel. Taken: gzip, xz, lzma, lz4 (legacy frames), zstd, and a
 * payload that was not compressed. Not taken: bzip2 and lzo, by name.
 *
 * The output is exactly as long as the trailer says and no longer than `limit`; a stream that gives
 * more or less is damaged. Pure; any thread.
 *
 * Errors: -ENOEXEC (damaged, unknown or not taken), -ENOMEM (past the limit, or no memory).
 */
#pragma once

#include "base/err.h"
#include "board/load_source.h"

#include <stddef.h>
#include <stdint.h>

int load_unpack(const uint8_t *packed, size_t size, uint64_t limit, struct load_source *ret_source,
                struct err *err);
