/*
 * passt.h: a nic whose other end is passt (user-mode network) or anything else that speaks as it
 * does: a connected stream socket, each frame behind its length as four bytes, big-endian.
 *
 * Offloads. passt takes whole frames only. Checksums that are missing are computed here, natively,
 * while the frame is copied into the buffer that one write() sends with all others of its row.
 * Segmentation is not offered: the nic asks for an MTU of PASST_MTU, the largest that passt
 * handles, with which the guest has nothing to cut. A received frame counts as checked
 * (NIC_CSUM_VALID): passt has made it itself from a socket's bytes, on this machine.
 *
 * The socket is made non-blocking with MSG_DONTWAIT, call by call; its flags are left alone. One
 * queue. A length that no frame has (below 14, above NIC_FRAME_MAX) ends the link.
 *
 * Errors: -EINVAL for a descriptor that is no stream socket, -ENOMEM.
 */
#pragma once

#include "base/err.h"
#include "nic/nic.h"

enum { PASST_MTU = 65520 };

/* Owns `fd` after success. */
int nic_passt_new(int fd, struct nic **ret_nic, struct err *err);
