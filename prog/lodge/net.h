/*
 * net.h: what a guest's network cards are joined to, opened before its lodge-vmm starts.
 *
 * For a tap its queues are opened. For a user network a passt is started: an unprivileged process
 * of its own (it leaves its user, its network's privileges and the file system behind by itself)
 * that holds one end of a socket pair and ends when the other one, the guest's, is closed, by
 * whatever. passt starts while the guest boots: net_wait() says whether it came up, with passt's
 * own words where it did not (a port that is taken, no network on this machine).
 *
 *     net_open(&net, conf, err)      fills conf->nics[].fds and MACs
 *     machine_start(...)
 *     net_close(&net, conf)          our copies
 *     net_wait(&net, err)
 */
#pragma once

#include "base/err.h"
#include "conf/guest.h"

#include <sys/types.h>

struct net {
    struct {
        pid_t pid; /* of passt until it has gone to the background */
        int words; /* what it says until then */
    } helpers[GUEST_NICS_MAX];
    unsigned helper_count;
};

/* Whether a definition names descriptors, which only we may. */
bool net_has_descriptors(const struct guest_conf *conf);

int net_open(struct net *net, struct guest_conf *conf, struct err *err);
void net_close(struct net *net, struct guest_conf *conf);

/* Once; also where nothing was started after net_open(). */
int net_wait(struct net *net, struct err *err);
