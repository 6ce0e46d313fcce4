/*
 * The control queue (virtio 1.2, 5.1.6.5). A command is a class, a number and its data, and is
 * answered with one byte. Linux waits for the answer in a busy loop, so the vCPU that notifies
 * serves it itself: then it is there before the loop begins.
 */
#include "virtio/net_device.h"

#include "base/bytes.h"

enum { ACK_OK = 0, ACK_ERROR = 1 };

enum { COMMAND_HEAD = 2, TABLE_HEAD = 4 };

enum command_class { CLASS_RX = 0, CLASS_MAC = 1, CLASS_ANNOUNCE = 3, CLASS_MQ = 4 };

enum rx_command {
    RX_PROMISCUOUS,
    RX_ALL_MULTICAST,
    RX_ALL_UNICAST,
    RX_NO_MULTICAST,
    RX_NO_UNICAST,
    RX_NO_BROADCAST,
    RX_MAX
};

enum { MAC_TABLE_SET = 0, MAC_ADDRESS_SET = 1, ANNOUNCE_ACK = 0, MQ_PAIRS_SET = 0 };

unsigned net_control_queue(const struct virtio_net *net)
{
    return net->device.features & NET_F_MQ ? 2 * net->pair_count : 2;
}

static bool has(const struct virtio_net *net, uint64_t feature)
{
    return net->device.features & feature;
}

/* The command's data from `offset` on; false where it is shorter. */
static bool data(const struct queue_chain *chain, uint64_t offset, void *to, size_t size)
{
    return queue_chain_read(chain, COMMAND_HEAD + offset, to, size) == size;
}

static bool serve_rx(struct virtio_net *net, unsigned number, const struct queue_chain *chain)
{
    struct net_filter *filter = &net->filter;
    bool *const modes[RX_MAX] = {
        [RX_PROMISCUOUS] = &filter->promiscuous, [RX_ALL_MULTICAST] = &filter->all_multicast,
        [RX_ALL_UNICAST] = &filter->all_unicast, [RX_NO_MULTICAST] = &filter->no_multicast,
        [RX_NO_UNICAST] = &filter->no_unicast,   [RX_NO_BROADCAST] = &filter->no_broadcast,
    };
    uint8_t on;
    uint64_t feature = number > RX_ALL_MULTICAST ? NET_F_CTRL_RX_EXTRA : NET_F_CTRL_RX;
    if (number >= RX_MAX || !has(net, feature) || !data(chain, 0, &on, 1) || on > 1)
        return false;
    *modes[number] = on;
    return true;
}

/* One table at *offset: a count and as many MACs. */
static bool read_table(const struct queue_chain *chain, uint64_t *offset,
                       struct net_macs *ret_table)
{
    uint8_t head[TABLE_HEAD];
    if (!data(chain, *offset, head, sizeof head))
        return false;
    uint64_t count = le32_read(head), bytes = count * NIC_MAC_SIZE;
    uint64_t begin = *offset + TABLE_HEAD;
    if (!range_fits(COMMAND_HEAD + begin, bytes, chain->readable_bytes))
        return false;
    *offset = begin + bytes;
    ret_table->all = count > NET_MACS_MAX;
    ret_table->count = ret_table->all ? 0 : (unsigned)count;
    return data(chain, begin, ret_table->macs, ret_table->count * NIC_MAC_SIZE);
}

/* Unicast, then multicast, 5.1.6.5.2. */
static bool set_tables(struct virtio_net *net, const struct queue_chain *chain)
{
    struct net_macs unicast = {0}, multicast = {0};
    uint64_t offset = 0;
    if (!has(net, NET_F_CTRL_RX) || !read_table(chain, &offset, &unicast) ||
        !read_table(chain, &offset, &multicast))
        return false;
    net->filter.unicast = unicast;
    net->filter.multicast = multicast;
    return true;
}

static bool set_address(struct virtio_net *net, const struct queue_chain *chain)
{
    uint8_t mac[NIC_MAC_SIZE];
    if (!has(net, NET_F_CTRL_MAC_ADDR) || !data(chain, 0, mac, sizeof mac))
        return false;
    memcpy(net->filter.mac, mac, sizeof mac);
    return true;
}

static bool serve_mac(struct virtio_net *net, unsigned number, const struct queue_chain *chain)
{
    switch (number) {
    case MAC_TABLE_SET: return set_tables(net, chain);
    case MAC_ADDRESS_SET: return set_address(net, chain);
    default: return false;
    }
}

static bool serve_announce(struct virtio_net *net, unsigned number, const struct queue_chain *chain)
{
    if (number != ANNOUNCE_ACK || !has(net, NET_F_GUEST_ANNOUNCE))
        return false;
    atomic_fetch_and(&net->status, (uint16_t)~NET_S_ANNOUNCE);
    return true;
}

static bool serve_mq(struct virtio_net *net, unsigned number, const struct queue_chain *chain)
{
    uint8_t bytes[2];
    if (number != MQ_PAIRS_SET || !has(net, NET_F_MQ) || !data(chain, 0, bytes, sizeof bytes))
        return false;
    unsigned pairs = le16_read(bytes);
    if (pairs < 1 || pairs > net->pair_count)
        return false;
    net_use_pairs(net, pairs);
    return true;
}

static bool serve_command(struct virtio_net *net, const struct queue_chain *chain)
{
    uint8_t head[COMMAND_HEAD];
    if (queue_chain_read(chain, 0, head, sizeof head) != sizeof head)
        return false;
    switch (head[0]) {
    case CLASS_RX: return serve_rx(net, head[1], chain);
    case CLASS_MAC: return serve_mac(net, head[1], chain);
    case CLASS_ANNOUNCE: return serve_announce(net, head[1], chain);
    case CLASS_MQ: return serve_mq(net, head[1], chain);
    default: return false;
    }
}

void net_control_serve(struct virtio_net *net)
{
    net_lock_all(net);
    unsigned queue = net_control_queue(net);
    bool serves = net->live && has(net, NET_F_CTRL_VQ);
    /* As many as the ring holds: a guest that adds more meanwhile notifies again. */
    for (unsigned i = 0; serves && i < NET_QUEUE_SIZE; i++) {
        if (!virtio_pop(&net->device, queue, &net->command))
            break;
        uint8_t ack = serve_command(net, &net->command) ? ACK_OK : ACK_ERROR;
        size_t written = queue_chain_write(&net->command, 0, &ack, 1);
        if (!written) { /* nowhere to put an answer */
            virtio_fail(&net->device);
            break;
        }
        virtio_push(&net->device, queue, &net->command, written);
    }
    if (serves)
        virtio_notify(&net->device, queue);
    net_unlock_all(net);
}
