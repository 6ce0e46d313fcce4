/*
 * vsock_packet.h: the header of a packet of a virtio socket device (virtio 1.2, 5.10.6), between
 * its bytes and a struct. Pure; private to the device and its tests.
 */
#pragma once

#include <stdint.h>

enum { VSOCK_HEADER_SIZE = 44 };

enum { VSOCK_TYPE_STREAM = 1 };

enum vsock_op {
    VSOCK_OP_REQUEST = 1,
    VSOCK_OP_RESPONSE,
    VSOCK_OP_RST,
    VSOCK_OP_SHUTDOWN,
    VSOCK_OP_RW,
    VSOCK_OP_CREDIT_UPDATE,
    VSOCK_OP_CREDIT_REQUEST,
};

/* Flags of SHUTDOWN: the sender will receive, or send, no more. */
enum { VSOCK_SHUT_RECEIVE = 1, VSOCK_SHUT_SEND = 2, VSOCK_SHUT_BOTH = 3 };

struct vsock_packet {
    uint64_t src_cid, dst_cid;
    uint32_t src_port, dst_port;
    uint32_t length; /* of the payload behind the header */
    uint16_t type, op;
    uint32_t flags;
    uint32_t buf_alloc, fwd_cnt; /* the sender's credit for the receiver, 5.10.6.3 */
};

void vsock_packet_encode(const struct vsock_packet *packet, uint8_t ret_bytes[VSOCK_HEADER_SIZE]);
void vsock_packet_decode(const uint8_t bytes[VSOCK_HEADER_SIZE], struct vsock_packet *ret_packet);
