#include "virtio/net_device.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/record.h"
#include "base/timer.h"

#include <errno.h>
#include <stdlib.h>

enum { DEVICE_ID = 1 };

/* struct virtio_net_config, 5.1.4. */
enum { CONFIG_MAC = 0, CONFIG_STATUS = 6, CONFIG_PAIRS = 8, CONFIG_MTU = 10, CONFIG_SIZE = 12 };

/* Which feature bit stands for which work on frames from the guest, and on those to it. */
static const struct {
    unsigned nic;
    uint64_t out, in;
} works[] = {
    {NIC_F_CSUM, NET_F_CSUM, NET_F_GUEST_CSUM},
    {NIC_F_TSO4, NET_F_HOST_TSO4, NET_F_GUEST_TSO4},
    {NIC_F_TSO6, NET_F_HOST_TSO6, NET_F_GUEST_TSO6},
    {NIC_F_ECN, NET_F_HOST_ECN, NET_F_GUEST_ECN},
};

static struct virtio_net *of(struct virtio_device *device)
{
    return (struct virtio_net *)device;
}

void net_lock_all(struct virtio_net *net)
{
    pthread_mutex_lock(&net->control);
    for (unsigned i = 0; i < net->pair_count; i++)
        pthread_mutex_lock(&net->pairs[i].mutex);
}

void net_unlock_all(struct virtio_net *net)
{
    for (unsigned i = net->pair_count; i-- > 0;)
        pthread_mutex_unlock(&net->pairs[i].mutex);
    pthread_mutex_unlock(&net->control);
}

static void wake_all(struct virtio_net *net)
{
    for (unsigned i = 0; i < net->pair_count; i++)
        worker_wake(&net->pairs[i].worker);
}

void net_use_pairs(struct virtio_net *net, unsigned count)
{
    for (unsigned i = 0; i < net->pair_count; i++) {
        struct net_pair *pair = &net->pairs[i];
        bool live = i < count;
        if (i > 0)
            nic_enable(net->nic, i, live);
        if (live && !pair->live)
            net_pair_start(pair);
        else if (!live)
            net_pair_stop(pair);
    }
    wake_all(net);
}

void net_status_change(struct virtio_net *net, uint16_t set, uint16_t clear)
{
    uint16_t before = net->status, after;
    do
        after = (uint16_t)((before & ~clear) | set);
    while (!atomic_compare_exchange_weak(&net->status, &before, after));
    if (before != after)
        virtio_config_changed(&net->device);
}

/* Device operations. */

static void net_config_read(struct virtio_device *device, uint32_t offset, void *to, unsigned size)
{
    struct virtio_net *net = of(device);
    uint8_t config[CONFIG_SIZE];
    pthread_mutex_lock(&net->control);
    memcpy(config + CONFIG_MAC, net->filter.mac, NIC_MAC_SIZE);
    pthread_mutex_unlock(&net->control);
    le16_write(config + CONFIG_STATUS, net->status);
    le16_write(config + CONFIG_PAIRS, (uint16_t)net->pair_count);
    le16_write(config + CONFIG_MTU, (uint16_t)net->config.mtu);
    memcpy(to, config + offset, size);
}

/* What was negotiated; a work that another one needs counts only with it (5.1.3.1). */
static void take_features(struct virtio_net *net)
{
    uint64_t features = net->device.features;
    net->takes = net->gives = 0;
    for (unsigned i = 0; i < ARRAY_LEN(works); i++) {
        net->takes |= features & works[i].out ? works[i].nic : 0;
        net->gives |= features & works[i].in ? works[i].nic : 0;
    }
    if (!(net->takes & NIC_F_CSUM))
        net->takes = 0;
    if (!(net->gives & NIC_F_CSUM))
        net->gives = 0;
    net->mergeable = features & NET_F_MRG_RXBUF;
}

static void net_start(struct virtio_device *device)
{
    struct virtio_net *net = of(device);
    net_lock_all(net);
    net->live = true;
    take_features(net);
    nic_accept(net->nic, net->gives);
    net_use_pairs(net, 1); /* more, when the driver says so (5.1.5) */
    net_unlock_all(net);
}

static void net_reset(struct virtio_device *device)
{
    struct virtio_net *net = of(device);
    net_lock_all(net);
    net->live = false;
    net_use_pairs(net, 0);
    net_filter_reset(&net->filter, net->config.mac);
    atomic_fetch_and(&net->status, (uint16_t)~NET_S_ANNOUNCE);
    net_unlock_all(net);
}

static void net_queue_notified(struct virtio_device *device, unsigned queue)
{
    struct virtio_net *net = of(device);
    if (queue == net_control_queue(net))
        net_control_serve(net);
    else if (queue < 2 * net->pair_count)
        worker_wake(&net->pairs[queue / 2].worker);
}

static int net_notify_fd(struct virtio_device *device, unsigned queue)
{
    struct virtio_net *net = of(device);
    return queue < 2 * net->pair_count ? net->pairs[queue / 2].worker.wake_fd : -1;
}

static void net_settle(struct virtio_device *device)
{
    /* Frames are placed and sent whole under a pair's mutex, commands answered under `control`. */
    net_lock_all(of(device));
    net_unlock_all(of(device));
}

static void macs_state(struct record *record, struct net_macs *macs)
{
    uint32_t count = macs->count;
    record_u32_below(record, &count, NET_MACS_MAX + 1);
    macs->count = count;
    record_bool(record, &macs->all);
    record_bytes(record, macs->macs, macs->count * sizeof macs->macs[0]);
}

static void filter_state(struct record *record, struct net_filter *filter)
{
    bool *const modes[] = {&filter->promiscuous,  &filter->all_multicast, &filter->all_unicast,
                           &filter->no_multicast, &filter->no_unicast,    &filter->no_broadcast};
    record_bytes(record, filter->mac, sizeof filter->mac);
    for (unsigned i = 0; i < ARRAY_LEN(modes); i++)
        record_bool(record, modes[i]);
    macs_state(record, &filter->unicast);
    macs_state(record, &filter->multicast);
}

/* The network is another one: what was on its way is lost, as frames are. The link is as it is
 * here, and the guest is asked to make itself known. */
static void net_state(struct virtio_device *device, struct record *record)
{
    struct virtio_net *net = of(device);
    uint32_t used = 0;
    net_lock_all(net);
    record_same(record, net->pair_count, "has another number of queues");
    while (used < net->pair_count && net->pairs[used].live)
        used++;
    /* Without MQ the queues behind the first two are others. */
    record_u32_below(record, &used, (net->device.features & NET_F_MQ ? net->pair_count : 1) + 1);
    filter_state(record, &net->filter);
    /* With anti-spoofing the address is not the guest's to choose. */
    if (record->loading && net->config.anti_spoof)
        memcpy(net->filter.mac, net->config.mac, sizeof net->filter.mac);
    if (record->loading && net->live && !record->failed)
        net_use_pairs(net, used);
    net_unlock_all(net);
    if (record->loading && !record->failed)
        virtio_net_announce(net);
}

/* Everything but the nic. */
static void release(struct virtio_net *net)
{
    for (unsigned i = 0; i < net->pair_count; i++)
        worker_stop(&net->pairs[i].worker);
    for (unsigned i = 0; i < net->pair_count; i++)
        pthread_mutex_destroy(&net->pairs[i].mutex);
    pthread_mutex_destroy(&net->control);
    bucket_fini(&net->in);
    bucket_fini(&net->out);
    virtio_device_fini(&net->device);
    free(net->pairs);
    free(net);
}

static void net_free(struct virtio_device *device)
{
    struct nic *nic = of(device)->nic;
    release(of(device));
    nic_free(nic);
}

static const struct virtio_device_ops net_ops = {
    .name = "virtio-net",
    .id = DEVICE_ID,
    .class_code = 0x020000, /* network controller, Ethernet */
    .config_size = CONFIG_SIZE,
    .config_read = net_config_read,
    .start = net_start,
    .reset = net_reset,
    .queue_notified = net_queue_notified,
    .notify_fd = net_notify_fd,
    .settle = net_settle,
    .state = net_state,
    .state_version = 1,
    .free = net_free,
};

/* Making one. */

static uint64_t features_of(const struct virtio_net_config *config, unsigned pairs)
{
    uint64_t features = NET_F_MAC | NET_F_STATUS | NET_F_MRG_RXBUF | NET_F_CTRL_VQ | NET_F_CTRL_RX |
                        NET_F_CTRL_RX_EXTRA | NET_F_GUEST_ANNOUNCE;
    for (unsigned i = 0; i < ARRAY_LEN(works); i++) {
        features |= config->nic->takes & works[i].nic ? works[i].out : 0;
        features |= config->nic->gives & works[i].nic ? works[i].in : 0;
    }
    if (config->mtu)
        features |= NET_F_MTU;
    if (pairs > 1)
        features |= NET_F_MQ;
    if (!config->anti_spoof)
        features |= NET_F_CTRL_MAC_ADDR;
    return features;
}

static int check(const struct virtio_net_config *config, struct err *err)
{
    static const uint8_t none[NIC_MAC_SIZE];
    if (config->mac[0] & 1 || !memcmp(config->mac, none, NIC_MAC_SIZE))
        return err_set(err, -EINVAL, "a network card's MAC is no multicast address, and not 0");
    if (config->mtu && (config->mtu < VIRTIO_NET_MTU_MIN || config->mtu > VIRTIO_NET_MTU_MAX))
        return err_set(err, -EINVAL, "an MTU is %d to %d, not %u", VIRTIO_NET_MTU_MIN,
                       VIRTIO_NET_MTU_MAX, config->mtu);
    return 0;
}

static int start_pairs(struct virtio_net *net, struct err *err)
{
    for (unsigned i = 0; i < net->pair_count; i++) {
        struct net_pair *pair = &net->pairs[i];
        int r = worker_start(&pair->worker, "virtio-net", net_pair_run, pair, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* So that a frame of any length passes a slow one now and then. */
static uint64_t burst_of(uint64_t rate)
{
    return max(rate / 10, KIB(64));
}

static void init(struct virtio_net *net, const struct virtio_net_config *config, unsigned pairs)
{
    net->config = *config;
    net->nic = config->nic;
    net->pair_count = pairs;
    net->link_up = !config->link_down;
    net->status = net->link_up ? NET_S_LINK_UP : 0;
    net_filter_reset(&net->filter, config->mac);
    bucket_init(&net->in, config->rate_in, burst_of(config->rate_in));
    bucket_init(&net->out, config->rate_out, burst_of(config->rate_out));
    pthread_mutex_init(&net->control, NULL);
    for (unsigned i = 0; i < pairs; i++) {
        net->pairs[i].net = net;
        net->pairs[i].index = i;
        pthread_mutex_init(&net->pairs[i].mutex, NULL);
    }
}

int virtio_net_new(struct mem *mem, const struct virtio_net_config *config,
                   struct virtio_net **ret_net, struct err *err)
{
    uint16_t sizes[2 * NIC_QUEUES_MAX + 1];
    struct virtio_net_config whole = *config;
    unsigned pairs = config->nic->queues;
    whole.mtu = config->mtu ? config->mtu : config->nic->mtu;
    int r = check(&whole, err);
    if (r < 0)
        return r;
    struct virtio_net *net = calloc(1, sizeof *net);
    if (net)
        net->pairs = calloc(pairs, sizeof *net->pairs);
    if (!net || !net->pairs) {
        free(net);
        return err_set(err, -ENOMEM, "no memory for virtio-net");
    }
    for (unsigned i = 0; i < ARRAY_LEN(sizes); i++)
        sizes[i] = NET_QUEUE_SIZE;
    init(net, &whole, pairs);
    r = virtio_device_init(&net->device, &net_ops, mem, features_of(&whole, pairs), sizes,
                           2 * pairs + 1, err);
    if (r >= 0)
        r = start_pairs(net, err);
    if (r < 0) {
        release(net);
        return r;
    }
    for (unsigned i = 1; i < pairs; i++) /* until the driver wants them */
        nic_enable(net->nic, i, false);
    *ret_net = net;
    return 0;
}

struct virtio_device *virtio_net_device(struct virtio_net *net)
{
    return &net->device;
}

void virtio_net_set_link(struct virtio_net *net, bool up)
{
    net_lock_all(net);
    net->link_up = up;
    bool gone = net->pairs[0].gone;
    net_unlock_all(net);
    net_status_change(net, up && !gone ? NET_S_LINK_UP : 0, up && !gone ? 0 : NET_S_LINK_UP);
    wake_all(net);
    if (up && !gone)
        virtio_net_announce(net); /* it may be another network */
}

void virtio_net_announce(struct virtio_net *net)
{
    if (net->device.features & NET_F_GUEST_ANNOUNCE)
        net_status_change(net, NET_S_ANNOUNCE, 0);
}

void virtio_net_stats(struct virtio_net *net, struct virtio_net_stats *ret_stats)
{
    *ret_stats = (struct virtio_net_stats){.up = net->status & NET_S_LINK_UP};
    for (unsigned i = 0; i < net->pair_count; i++) {
        struct net_pair *pair = &net->pairs[i];
        pthread_mutex_lock(&pair->mutex);
        ret_stats->in_frames += pair->stats.in_frames;
        ret_stats->in_bytes += pair->stats.in_bytes;
        ret_stats->in_dropped += pair->stats.in_dropped;
        ret_stats->out_frames += pair->stats.out_frames;
        ret_stats->out_bytes += pair->stats.out_bytes;
        ret_stats->out_dropped += pair->stats.out_dropped;
        pthread_mutex_unlock(&pair->mutex);
    }
}
