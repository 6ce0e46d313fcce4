#include "base/record.h"

#include "base/bytes.h"

#include <nmmintrin.h>

enum { POLYNOMIAL = 0x82f63b78 }; /* 0x1edc6f41, bits reversed */

static uint32_t by_bits(uint32_t crc, const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? (uint32_t)POLYNOMIAL : 0);
    }
    return crc;
}

__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t crc, const uint8_t *bytes,
                                                                 size_t size)
{
    uint64_t wide = crc;
    for (; size >= 8; bytes += 8, size -= 8)
        wide = _mm_crc32_u64(wide, le64_read(bytes));
    crc = (uint32_t)wide;
    for (; size > 0; bytes++, size--)
        crc = _mm_crc32_u8(crc, *bytes);
    return crc;
}

uint32_t crc32c(uint32_t crc, const void *bytes, size_t size)
{
    crc = ~crc;
    /* Every x86-64 since 2008 has the instruction; without it this is slow, and right. */
    crc = __builtin_cpu_supports("sse4.2") ? by_instruction(crc, bytes, size)
                                           : by_bits(crc, bytes, size);
    return ~crc;
}
