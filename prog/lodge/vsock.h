/*
 * vsock.h: the host's end of a guest's socket device (docs/vsock.md). lodge-vmm opens nothing: what
 * it is to be connected with comes from here, over the link of wire/vsock.h.
 *
 *     client  --connect PATH, "CONNECT 1024\n"--> here --CALL 1024, descriptor--> lodge-vmm
 *     server  <--connect PATH_52----------------- here <-DIAL 52----------------- lodge-vmm
 *
 * Once a descriptor is handed over, its bytes do not come by here. The socket at PATH is for our
 * own user only, and it goes with us. Both ends are strangers: a client that says anything else is
 * hung up on, the VMM cannot have anything but a connection to PATH_PORT.
 *
 * One thread. Nothing waits. Errors: -EADDRINUSE where somebody listens at PATH or a file stands
 * there, or why there is no socket.
 */
#pragma once

#include "base/err.h"

struct vsock_host;

/* Listens at `path`, in place of a socket that nobody listens at any more. */
int vsock_host_new(const char *path, struct vsock_host **ret_host, struct err *err);
void vsock_host_free(struct vsock_host *host);

/* The VMM is at the other end of `link`, which is borrowed. */
void vsock_host_join(struct vsock_host *host, int link);

/* Readable while there is something to do: then vsock_host_step(). */
int vsock_host_fd(const struct vsock_host *host);
void vsock_host_step(struct vsock_host *host);
