#include "nic/offload.h"

#include "base/bytes.h"

enum {
    AT_FLAGS = 0,
    AT_SEGMENTATION = 1,
    AT_HEADER_LENGTH = 2,
    AT_SEGMENT_SIZE = 4,
    AT_CSUM_START = 6,
    AT_CSUM_OFFSET = 8,
};

void offload_write(const struct nic_offload *offload, uint8_t ret_bytes[OFFLOAD_BYTES])
{
    ret_bytes[AT_FLAGS] = offload->flags;
    ret_bytes[AT_SEGMENTATION] = offload->segmentation;
    le16_write(ret_bytes + AT_HEADER_LENGTH, offload->header_length);
    le16_write(ret_bytes + AT_SEGMENT_SIZE, offload->segment_size);
    le16_write(ret_bytes + AT_CSUM_START, offload->csum_start);
    le16_write(ret_bytes + AT_CSUM_OFFSET, offload->csum_offset);
    le16_write(ret_bytes + OFFLOAD_BUFFERS, 0);
}

struct nic_offload offload_read(const uint8_t bytes[OFFLOAD_BYTES])
{
    return (struct nic_offload){.flags = bytes[AT_FLAGS] & (NIC_CSUM_NEEDED | NIC_CSUM_VALID),
                                .segmentation = bytes[AT_SEGMENTATION],
                                .header_length = le16_read(bytes + AT_HEADER_LENGTH),
                                .segment_size = le16_read(bytes + AT_SEGMENT_SIZE),
                                .csum_start = le16_read(bytes + AT_CSUM_START),
                                .csum_offset = le16_read(bytes + AT_CSUM_OFFSET)};
}
