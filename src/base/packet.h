/*
 * packet.h: packets of a Unix socket (SEQPACKET) with open descriptors beside them (SCM_RIGHTS,
 * unix(7)), as our processes send them to each other.
 *
 * `flags` are 0 or MSG_DONTWAIT. Interrupted calls are made again; SIGPIPE never comes.
 */
#pragma once

#include <stddef.h>
#include <sys/types.h>

enum { PACKET_FDS_MAX = 4 };

/* `count` descriptors at most PACKET_FDS_MAX; they stay the caller's. 0 or -errno. */
int packet_send(int socket, const void *bytes, size_t length, const int *fds, unsigned count,
                int flags);

/* The packet's length, 0 where the other end is closed, -EMSGSIZE for one longer than `size`, or
 * -errno. ret_fds[0 .. max) become the caller's, -1 behind the last; what comes beyond `max` is
 * closed. A packet whose descriptors this process has no room for comes without them. */
ssize_t packet_receive(int socket, void *bytes, size_t size, int *ret_fds, unsigned max, int flags);
