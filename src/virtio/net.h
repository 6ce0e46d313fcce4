/*
 * net.h: virtio network device (virtio 1.2, 5.1).
 *
 * Joins a guest to a `struct nic` (nic/nic.h). Offered: mergeable receive buffers, checksum and TCP
 * segmentation offloads as far as the nic has them, MAC, MTU, link status, announcements, several
 * queue pairs as far as the nic has queues, and a control queue for receive modes, MAC tables, the
 * MAC address, announcements and the number of pairs.
 *
 * Flow: nothing is buffered here but one frame a pair. A guest without receive buffers holds that
 * frame and leaves the others with the host; a host that takes nothing leaves the guest's frames in
 * their queue. A token bucket each way (bucket.h) does the same.
 *
 * Trust. The device fails (DEVICE_NEEDS_RESET) where the driver breaks the queues' rules. A frame
 * that makes no sense is dropped and counted: shorter than its headers, longer than NIC_FRAME_MAX,
 * offloads that were not negotiated or whose offsets lie outside it, a segment size of 0. The
 * Ethernet header is looked at and sent from a private copy, so the guest cannot change it in
 * between.
 *
 * Anti-spoofing: frames whose source is not the configured MAC are dropped, and the guest cannot
 * change that MAC. Addresses above Ethernet are not looked at.
 *
 * Threads: one worker a pair; control commands are served on the vCPU that notifies. All functions
 * from any thread. The transport frees the device, and with it the nic.
 *
 * Errors: -EINVAL for a MAC that is no station's or an MTU out of bounds, -ENOMEM, or why there is
 * no thread. On failure the nic remains the caller's.
 */
#pragma once

#include "base/err.h"
#include "mem/mem.h"
#include "nic/nic.h"
#include "virtio/device.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    VIRTIO_NET_MTU_MIN = 68, /* IPv4's own minimum, 5.1.4.1 */
    VIRTIO_NET_MTU_MAX = 65535,
};

struct virtio_net;

struct virtio_net_config {
    struct nic *nic;
    uint8_t mac[NIC_MAC_SIZE];
    unsigned mtu; /* 0 = the nic's, or none */
    bool anti_spoof;
    bool link_down;             /* at first */
    uint64_t rate_in, rate_out; /* bytes a second to and from the guest; 0 = no limit */
};

struct virtio_net_stats {
    bool up; /* the link, as the guest sees it */
    /* To the guest; dropped: no buffer would do. */
    uint64_t in_frames, in_bytes, in_dropped;
    /* From the guest; dropped: makes no sense, spoofed, link down, or the host would not have it.
     */
    uint64_t out_frames, out_bytes, out_dropped;
};

int virtio_net_new(struct mem *mem, const struct virtio_net_config *config,
                   struct virtio_net **ret_net, struct err *err);

/* For virtio_pci_new(). */
struct virtio_device *virtio_net_device(struct virtio_net *net);

/* The cable; in at first, unless `link_down`. While it is out, frames are dropped both ways; put in
 * again, it may lead elsewhere, and the guest makes itself known. */
void virtio_net_set_link(struct virtio_net *net, bool up);

/* Asks the guest to tell the network where it is (gratuitous ARP), as after a migration. */
void virtio_net_announce(struct virtio_net *net);

void virtio_net_stats(struct virtio_net *net, struct virtio_net_stats *ret_stats);
