#include "nic/checksum.h"

#include "base/bytes.h"

#include <assert.h>

/* Four sums side by side, so that they do not wait for one another. 32-bit words in 64-bit sums
 * cannot overflow below 16 GiB; the carries are folded in at the end. */
static uint64_t sum_words(const uint8_t **bytes, size_t *length)
{
    uint64_t sums[4] = {0};
    while (*length >= 16) {
        uint32_t words[4];
        memcpy(words, *bytes, sizeof words);
        for (int i = 0; i < 4; i++)
            sums[i] += words[i];
        *bytes += sizeof words;
        *length -= sizeof words;
    }
    return sums[0] + sums[1] + sums[2] + sums[3];
}

uint16_t checksum_sum(const uint8_t *bytes, size_t length)
{
    uint64_t sum = sum_words(&bytes, &length);
    for (; length >= 2; bytes += 2, length -= 2) {
        uint16_t word;
        memcpy(&word, bytes, sizeof word);
        sum += word;
    }
    if (length)
        sum += le16toh((uint16_t)*bytes);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

void checksum_finish(uint8_t *frame, size_t length, size_t start, size_t offset)
{
    assert(range_fits(start, length - start, length) && range_fits(offset, 2, length - start));
    uint16_t sum = (uint16_t)~checksum_sum(frame + start, length - start);
    /* To UDP 0 means that there is none (RFC 768); to all others both zeros are the same. */
    if (sum == 0)
        sum = 0xffff;
    memcpy(frame + start + offset, &sum, sizeof sum);
}
