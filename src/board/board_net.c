/*
 * The machine's network cards: each a virtio-net over a host end of its own.
 */
#include "board/board_private.h"
#include "nic/passt.h"
#include "nic/tap.h"
#include "virtio/net.h"

#include <errno.h>
#include <string.h>

static int make_nic(const struct board_nic *config, struct nic **ret_nic, struct err *err)
{
    switch (config->kind) {
    case BOARD_NIC_USER:
        if (config->fd_count != 1)
            return err_set(err, -EINVAL, "a user network is one socket");
        return nic_passt_new(config->fds[0], ret_nic, err);
    case BOARD_NIC_TAP: return nic_tap_new(config->fds, config->fd_count, ret_nic, err);
    }
    return err_set(err, -EINVAL, "no such kind of network");
}

int board_net_new(struct mem *mem, const struct board_nic *config, struct virtio_net **ret_net,
                  struct err *err)
{
    struct nic *nic;
    int r = make_nic(config, &nic, err);
    if (r < 0)
        return r;
    struct virtio_net_config card = {.nic = nic,
                                     .mtu = config->mtu,
                                     .anti_spoof = config->anti_spoof,
                                     .link_down = config->unplugged,
                                     .rate_in = config->rate_in,
                                     .rate_out = config->rate_out};
    memcpy(card.mac, config->mac, sizeof card.mac);
    r = virtio_net_new(mem, &card, ret_net, err);
    if (r < 0)
        nic_free(nic);
    return r;
}

int board_set_link(struct board *board, unsigned nic, bool up)
{
    if (nic >= board->nic_count)
        return -ENODEV;
    virtio_net_set_link(board->nics[nic], up);
    return 0;
}

int board_nic_stats(struct board *board, unsigned nic, struct virtio_net_stats *ret_stats)
{
    if (nic >= board->nic_count)
        return -ENODEV;
    virtio_net_stats(board->nics[nic], ret_stats);
    return 0;
}
