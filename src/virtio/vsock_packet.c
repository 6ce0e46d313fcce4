#include "virtio/vsock_packet.h"

#include "base/bytes.h"

/* struct virtio_vsock_hdr, 5.10.6. */
enum {
    AT_SRC_CID = 0,
    AT_DST_CID = 8,
    AT_SRC_PORT = 16,
    AT_DST_PORT = 20,
    AT_LEN = 24,
    AT_TYPE = 28,
    AT_OP = 30,
    AT_FLAGS = 32,
    AT_BUF_ALLOC = 36,
    AT_FWD_CNT = 40,
};

void vsock_packet_encode(const struct vsock_packet *packet, uint8_t ret_bytes[VSOCK_HEADER_SIZE])
{
    le64_write(ret_bytes + AT_SRC_CID, packet->src_cid);
    le64_write(ret_bytes + AT_DST_CID, packet->dst_cid);
    le32_write(ret_bytes + AT_SRC_PORT, packet->src_port);
    le32_write(ret_bytes + AT_DST_PORT, packet->dst_port);
    le32_write(ret_bytes + AT_LEN, packet->length);
    le16_write(ret_bytes + AT_TYPE, packet->type);
    le16_write(ret_bytes + AT_OP, packet->op);
    le32_write(ret_bytes + AT_FLAGS, packet->flags);
    le32_write(ret_bytes + AT_BUF_ALLOC, packet->buf_alloc);
    le32_write(ret_bytes + AT_FWD_CNT, packet->fwd_cnt);
}

void vsock_packet_decode(const uint8_t bytes[VSOCK_HEADER_SIZE], struct vsock_packet *ret_packet)
{
    *ret_packet = (struct vsock_packet){
        .src_cid = le64_read(bytes + AT_SRC_CID),
        .dst_cid = le64_read(bytes + AT_DST_CID),
        .src_port = le32_read(bytes + AT_SRC_PORT),
        .dst_port = le32_read(bytes + AT_DST_PORT),
        .length = le32_read(bytes + AT_LEN),
        .type = le16_read(bytes + AT_TYPE),
        .op = le16_read(bytes + AT_OP),
        .flags = le32_read(bytes + AT_FLAGS),
        .buf_alloc = le32_read(bytes + AT_BUF_ALLOC),
        .fwd_cnt = le32_read(bytes + AT_FWD_CNT),
    };
}
