#include "virtio/net_device.h"

#include "base/bytes.h"

void net_filter_reset(struct net_filter *filter, const uint8_t *mac)
{
    /* A driver that says nothing gets everything. */
    *filter = (struct net_filter){.promiscuous = true};
    memcpy(filter->mac, mac, NIC_MAC_SIZE);
}

static bool holds(const struct net_macs *table, const uint8_t *mac)
{
    if (table->all)
        return true;
    for (unsigned i = 0; i < table->count; i++)
        if (!memcmp(table->macs[i], mac, NIC_MAC_SIZE))
            return true;
    return false;
}

bool net_filter_wants(const struct net_filter *filter, const uint8_t *frame)
{
    static const uint8_t broadcast[NIC_MAC_SIZE] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    if (filter->promiscuous)
        return true;
    if (!memcmp(frame, broadcast, NIC_MAC_SIZE))
        return !filter->no_broadcast;
    if (frame[0] & 1)
        return !filter->no_multicast && (filter->all_multicast || holds(&filter->multicast, frame));
    return !filter->no_unicast &&
           (filter->all_unicast || !memcmp(frame, filter->mac, NIC_MAC_SIZE) ||
            holds(&filter->unicast, frame));
}
