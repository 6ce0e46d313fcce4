#include "virtio/blk_device.h"

#include "base/bytes.h"

#include <errno.h>

enum { FLAG_UNMAP = 1 };

bool blk_request_is_transfer(const struct blk_request *request)
{
    return request->type == BLK_T_IN || request->type == BLK_T_OUT;
}

/* A transfer's data: all that is readable behind the header, or writable before the status. */
static int read_transfer(struct virtio_blk *blk, struct blk_request *request, uint64_t sector)
{
    const struct queue_chain *chain = &request->chain;
    bool write = request->type == BLK_T_OUT;
    uint64_t length = write ? chain->readable_bytes - BLK_HEADER_SIZE : chain->writable_bytes - 1;
    if (write && disk_read_only(blk->disk))
        return -EROFS;
    if (length % DISK_SECTOR || length > BLK_REQUEST_BYTES_MAX ||
        sector > UINT64_MAX / DISK_SECTOR ||
        !range_fits(sector * DISK_SECTOR, length, disk_size(blk->disk)))
        return -EINVAL;
    request->offset = sector * DISK_SECTOR;
    request->length = length;
    if (length == 0)
        return 0;
    request->iov_count =
        write ? queue_chain_readable(chain, BLK_HEADER_SIZE, request->iov, QUEUE_CHAIN_MAX)
              : queue_chain_writable(chain, 0, request->iov, QUEUE_CHAIN_MAX);
    /* The status is the last byte of all, in a buffer of its own or behind the data. */
    if (!write && --request->iov[request->iov_count - 1].iov_len == 0)
        request->iov_count--;
    request->iov_bits = 0;
    for (unsigned i = 0; i < request->iov_count; i++)
        request->iov_bits |= (uintptr_t)request->iov[i].iov_base | request->iov[i].iov_len;
    return 1;
}

/* 5.2.6: NUL-padded; without a NUL where it takes all the room. */
static int answer_id(struct virtio_blk *blk, struct blk_request *request)
{
    size_t room = (size_t)min(request->chain.writable_bytes - 1, (uint64_t)BLK_SERIAL_MAX);
    queue_chain_write(&request->chain, 0, blk->serial, room);
    return 0;
}

int blk_request_read(struct virtio_blk *blk, struct blk_request *request)
{
    uint8_t header[BLK_HEADER_SIZE];
    if (queue_chain_read(&request->chain, 0, header, sizeof header) < sizeof header)
        return -EINVAL;
    request->type = le32_read(header);
    request->offset = request->length = 0;
    uint64_t features = blk->device.features;
    switch (request->type) {
    case BLK_T_IN:
    case BLK_T_OUT: return read_transfer(blk, request, le64_read(header + 8));
    case BLK_T_GET_ID: return answer_id(blk, request);
    case BLK_T_FLUSH: return 1;
    case BLK_T_DISCARD: return features & BLK_F_DISCARD ? 1 : -EOPNOTSUPP;
    case BLK_T_WRITE_ZEROES: return features & BLK_F_WRITE_ZEROES ? 1 : -EOPNOTSUPP;
    default: return -EOPNOTSUPP;
    }
}

/* struct virtio_blk_discard_write_zeroes. */
struct range {
    uint64_t offset, length; /* bytes */
    uint32_t flags;
};

static int read_range(struct virtio_blk *blk, struct blk_request *request, unsigned index,
                      uint32_t sectors_max, struct range *ret_range)
{
    uint8_t bytes[BLK_RANGE_SIZE];
    queue_chain_read(&request->chain, BLK_HEADER_SIZE + index * BLK_RANGE_SIZE, bytes,
                     sizeof bytes);
    uint64_t sector = le64_read(bytes);
    uint32_t sectors = le32_read(bytes + 8), flags = le32_read(bytes + 12);
    bool may_unmap = request->type == BLK_T_WRITE_ZEROES;
    if (flags & ~(may_unmap ? (uint32_t)FLAG_UNMAP : 0))
        return -EOPNOTSUPP;
    if (sectors > sectors_max || !range_fits(sector, sectors, disk_size(blk->disk) / DISK_SECTOR))
        return -EINVAL;
    *ret_range = (struct range){sector * DISK_SECTOR, (uint64_t)sectors * DISK_SECTOR, flags};
    return 0;
}

/* All segments are checked before the first is done. The driver may change them in between, so each
 * is checked when it is read, too. */
static int call_ranges(struct virtio_blk *blk, struct blk_request *request)
{
    bool discard = request->type == BLK_T_DISCARD;
    uint64_t bytes = request->chain.readable_bytes - BLK_HEADER_SIZE;
    uint32_t sectors_max = discard ? BLK_DISCARD_SECTORS_MAX : BLK_ZERO_SECTORS_MAX;
    uint64_t count = bytes / BLK_RANGE_SIZE;
    struct range range;
    if (bytes == 0 || bytes % BLK_RANGE_SIZE ||
        count > (discard ? BLK_DISCARD_SEGMENTS_MAX : BLK_ZERO_SEGMENTS_MAX))
        return -EINVAL;
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < count; i++)
        r = read_range(blk, request, i, sectors_max, &range);
    for (unsigned i = 0; r >= 0 && i < count; i++) {
        r = read_range(blk, request, i, sectors_max, &range);
        if (r >= 0 && discard)
            r = disk_discard(blk->disk, range.offset, range.length);
        else if (r >= 0)
            r = disk_write_zeroes(blk->disk, range.offset, range.length, range.flags & FLAG_UNMAP);
    }
    return r;
}

int blk_request_call(struct virtio_blk *blk, struct blk_request *request)
{
    int r;
    switch (request->type) {
    case BLK_T_IN: return disk_readv(blk->disk, request->offset, request->iov, request->iov_count);
    case BLK_T_OUT:
        r = disk_writev(blk->disk, request->offset, request->iov, request->iov_count);
        break;
    case BLK_T_FLUSH: return disk_flush(blk->disk);
    default: r = call_ranges(blk, request); break;
    }
    return r >= 0 && blk_write_through(blk) ? disk_flush(blk->disk) : r;
}
