/*
 * load_place.h: where kernel, initrd and command line go in guest memory, and whether they fit.
 *
 * Used by the boot protocols of load_boot.h, on a checked request. Errors as in load.h.
 */
#pragma once

#include "base/err.h"
#include "board/load.h"

#include <stdint.h>

struct load_initrd {
    uint64_t start, size; /* size 0 = none */
};

/* Whether [low, high) lies in one stretch of RAM above LOAD_KERNEL_LOWEST. */
int load_place_kernel(const struct load_request *request, uint64_t low, uint64_t high,
                      struct err *err);

/* Writes the command line to LOAD_AT_COMMAND_LINE; `longest` is what the kernel takes, without the
 * final NUL. */
int load_place_command_line(const struct load_request *request, uint64_t longest, struct err *err);

/* Reads the initrd to the highest pages of the kernel's stretch of RAM that end at or below
 * `last` + 1 and start at or above `kernel_end`. */
int load_place_initrd(const struct load_request *request, uint64_t kernel_end, uint64_t last,
                      struct load_initrd *ret_initrd, struct err *err);
