/*
 * vsock.h: the messages between lodge-vmm's socket device and whoever owns the sockets of the host
 * (lodge): the VMM opens and connects nothing itself.
 *
 * One connected Unix socket, SEQPACKET: a packet is a message of 16 bytes (type, 32 bits; id; port;
 * zero; all little-endian), with the descriptor of a connected stream socket beside it where its
 * type says so.
 *
 *     CALL id 0, port, descriptor   to the VMM: a client of the host's wants this port of the guest
 *     DIAL id, port                 from the VMM: the guest wants this port of the host
 *     DIALED id, port 0, descriptor to the VMM: here it is
 *     REFUSED id, port 0            to the VMM: nobody is there
 *
 * Encoding and decoding are pure. Sending and receiving never wait: -EAGAIN. Any thread.
 * Errors: -EBADMSG for what breaks these rules, -EPIPE when the other end is closed.
 */
#pragma once

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

enum { VSOCK_MESSAGE_SIZE = 16 };

enum vsock_message_type {
    VSOCK_CALL = 1,
    VSOCK_DIAL,
    VSOCK_DIALED,
    VSOCK_REFUSED,
    VSOCK_MESSAGE_MAX
};

struct vsock_message {
    enum vsock_message_type type;
    uint32_t id, port;
};

void vsock_message_encode(const struct vsock_message *message,
                          uint8_t ret_bytes[VSOCK_MESSAGE_SIZE]);
int vsock_message_decode(const uint8_t *bytes, size_t size, struct vsock_message *ret_message,
                         struct err *err);

/* `fd` stays the caller's; -1 where the type has none. */
int vsock_message_send(int link, const struct vsock_message *message, int fd, struct err *err);

/* `*ret_fd` becomes the caller's, -1 where the type has none. A message whose descriptor is missing
 * (this process may have no more of them) counts as one without: DIALED becomes REFUSED, and CALL
 * is -EMFILE. */
int vsock_message_receive(int link, struct vsock_message *ret_message, int *ret_fd,
                          struct err *err);
