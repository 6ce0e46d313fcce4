/*
 * luks2.h: the binary part of a LUKS2 header (LUKS2 On-Disk Format 1.1.2, 2.1), big-endian. A JSON
 * text follows it. The checksum is over both, with its own place taken as zeros.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum {
    LUKS2_BINARY_BYTES = 4096,
    LUKS2_AT_SIZE = 8,
    LUKS2_AT_SEQUENCE = 16,
    LUKS2_AT_ALGORITHM = 72,
    LUKS2_AT_SALT = 104,
    LUKS2_SALT_BYTES = 64,
    LUKS2_AT_UUID = 168,
    LUKS2_AT_OFFSET = 256,
    LUKS2_AT_SUM = 448,
    LUKS2_SUM_BYTES = 64,
};

/* Returns the size of the sum, or -EINVAL for an algorithm that is unknown. */
int luks2_checksum(const char *algorithm, const uint8_t *header, size_t length,
                   uint8_t ret_sum[LUKS2_SUM_BYTES]);
