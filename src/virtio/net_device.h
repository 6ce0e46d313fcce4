/*
 * net_device.h: the insides of virtio-net, for net.c, net_pair.c, net_filter.c and net_control.c
 * only.
 *
 * Locks, from the outside in: `control`, then the pairs' mutexes in ascending order. A pair's
 * mutex guards its two queues and what is in struct net_pair. What all pairs read (filter, link,
 * offloads) changes only while `control` and the mutexes of all pairs are held, so a worker that
 * holds its own may read it.
 */
#pragma once

#include "nic/nic.h"
#include "virtio/bucket.h"
#include "virtio/device.h"
#include "virtio/net.h"
#include "virtio/worker.h"

#include <pthread.h>

enum {
    NET_MACS_MAX = 64, /* in a table; more is as if all were in it */
    NET_QUEUE_SIZE = 256,
};

/* Feature bits, 5.1.3. */
enum {
    NET_F_CSUM = 1 << 0,
    NET_F_GUEST_CSUM = 1 << 1,
    NET_F_MTU = 1 << 3,
    NET_F_MAC = 1 << 5,
    NET_F_GUEST_TSO4 = 1 << 7,
    NET_F_GUEST_TSO6 = 1 << 8,
    NET_F_GUEST_ECN = 1 << 9,
    NET_F_HOST_TSO4 = 1 << 11,
    NET_F_HOST_TSO6 = 1 << 12,
    NET_F_HOST_ECN = 1 << 13,
    NET_F_MRG_RXBUF = 1 << 15,
    NET_F_STATUS = 1 << 16,
    NET_F_CTRL_VQ = 1 << 17,
    NET_F_CTRL_RX = 1 << 18,
    NET_F_CTRL_RX_EXTRA = 1 << 20,
    NET_F_GUEST_ANNOUNCE = 1 << 21,
    NET_F_MQ = 1 << 22,
    NET_F_CTRL_MAC_ADDR = 1 << 23,
};

/* Status in the configuration, 5.1.4. */
enum { NET_S_LINK_UP = 1, NET_S_ANNOUNCE = 2 };

struct net_macs {
    unsigned count;
    bool all; /* there were too many */
    uint8_t macs[NET_MACS_MAX][NIC_MAC_SIZE];
};

/* Which received frames the guest wants to see, 5.1.6.5.1 and 5.1.6.5.2. */
struct net_filter {
    uint8_t mac[NIC_MAC_SIZE];
    bool promiscuous, all_multicast, all_unicast, no_multicast, no_unicast, no_broadcast;
    struct net_macs unicast, multicast;
};

struct net_pair {
    struct virtio_net *net;
    unsigned index;
    struct worker worker;
    pthread_mutex_t mutex;

    bool live;              /* between start() and reset(), and among the pairs in use */
    bool gone;              /* the nic's queue has come to its end */
    bool readable;          /* the nic may have a frame: it has not said that it has none */
    bool held;              /* `frame` waits for buffers, or for its turn */
    bool output_full;       /* the nic takes nothing for now */
    uint64_t in_at, out_at; /* ns: before this the buckets are empty; 0 = they are not */
    struct nic_frame frame;
    struct virtio_net_stats stats;

    struct queue_chain transmit;
    struct queue_chain receive[2]; /* the first of a frame's, and the one in hand */
    struct iovec iov[QUEUE_CHAIN_MAX + 1];
};

struct virtio_net {
    struct virtio_device device; /* first: ops get this pointer */
    struct nic *nic;
    struct virtio_net_config config; /* as made; never changes */
    unsigned pair_count;
    struct net_pair *pairs;

    pthread_mutex_t control;
    bool live;
    struct queue_chain command;
    _Atomic uint16_t status; /* NET_S_* */

    bool link_up;
    unsigned takes; /* enum nic_feature of frames from the guest, as negotiated */
    unsigned gives; /* and of those to it */
    bool mergeable;
    struct net_filter filter;
    struct bucket in, out;
};

/* net_filter.c: pure. */
void net_filter_reset(struct net_filter *filter, const uint8_t *mac);
bool net_filter_wants(const struct net_filter *filter, const uint8_t *frame);

/* net_pair.c. The worker's function; the others under the pair's mutex. */
void net_pair_run(void *opaque);
void net_pair_start(struct net_pair *pair);
void net_pair_stop(struct net_pair *pair);

/* net_control.c. */
unsigned net_control_queue(const struct virtio_net *net); /* its number, as negotiated */
void net_control_serve(struct virtio_net *net);           /* with no lock held */

/* net.c. */
void net_lock_all(struct virtio_net *net); /* `control`, and all pairs */
void net_unlock_all(struct virtio_net *net);
/* How many pairs the guest uses, under net_lock_all(). 0 stops all. */
void net_use_pairs(struct virtio_net *net, unsigned count);
void net_status_change(struct virtio_net *net, uint16_t set, uint16_t clear);
