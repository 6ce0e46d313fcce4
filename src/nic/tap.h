/*
 * tap.h: a nic whose other end is a tap interface of this machine's kernel.
 *
 * tap_open() attaches to an interface that is there; it needs the interface's owner (ip tuntap add
 * NAME mode tap user WHO) or CAP_NET_ADMIN, and is for the program that has these. nic_tap_new()
 * makes a nic of the descriptors, one a queue, and works in a process that can open nothing: all it
 * asks of the kernel are read(), write() and the ioctls TUNSETOFFLOAD and TUNSETQUEUE.
 *
 * Offloads are the kernel's, all of them, both ways: frames carry the virtio header on the
 * descriptor (IFF_VNET_HDR).
 *
 * Errors: what the kernel answers; -ENODEV where there is no such interface.
 */
#pragma once

#include "base/err.h"
#include "nic/nic.h"

/* `count` descriptors, non-blocking, into ret_fds; more than one wants an interface that was made
 * with multi_queue. */
int tap_open(const char *name, unsigned count, int *ret_fds, struct err *err);

/* Owns the descriptors after success. */
int nic_tap_new(const int *fds, unsigned count, struct nic **ret_nic, struct err *err);
