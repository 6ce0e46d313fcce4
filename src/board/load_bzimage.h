/*
 * load_bzimage.h: the Linux boot protocol's file (Documentation/arch/x86/boot.rst, "The real-mode
 * kernel header").
 *
 * load_bzimage_probe() tells whether a file is one; load_bzimage_open() checks the header, unpacks
 * the payload to an ELF image and keeps what the 64-bit entry needs of the header. Pure; any
 * thread.
 */
#pragma once

#include "base/err.h"
#include "board/load_source.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    LOAD_BZIMAGE_HEADER_AT = 0x1f1, /* in the file and in boot_params alike */
    LOAD_BZIMAGE_HEADER_MAX = 0x290 - LOAD_BZIMAGE_HEADER_AT,
    LOAD_BZIMAGE_PROBE = 0x290, /* bytes from the start that a probe looks at */
};

struct load_bzimage {
    uint8_t header[LOAD_BZIMAGE_HEADER_MAX]; /* setup_header as it was in the file */
    uint32_t header_size;
    uint32_t command_line_max; /* without the final NUL */
    uint32_t initrd_last;      /* highest address an initrd may occupy */
};

bool load_bzimage_probe(const uint8_t *start, uint64_t size);

/* `ret_kernel` is the ELF image, to be freed by the caller; at most `limit` bytes. */
int load_bzimage_open(const struct load_source *file, uint64_t limit,
                      struct load_bzimage *ret_header, struct load_source *ret_kernel,
                      struct err *err);
