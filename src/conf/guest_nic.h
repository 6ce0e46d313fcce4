/*
 * guest_nic.h: the network cards of a guest's definition.
 *
 * People write a card as one word, on the command line and in vm.conf:
 *
 *     user | tap=NAME [,mac=MAC] [,mtu=N] [,queues=N] [,anti-spoof] [,host-loopback]
 *                     [,rate-in=SIZE] [,rate-out=SIZE]
 *
 * and a forwarded port as [ADDRESS:]HOST:GUEST[/tcp|/udp], an IPv6 address in brackets. In JSON a
 * card is an object with the same names ('_' for '-'), "net" for the first.
 *
 * Plain structs that own nothing. Pure functions, any thread. Errors: -EINVAL with a message that
 * shows how to write it.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    GUEST_NICS_MAX = 8,
    GUEST_NIC_QUEUES_MAX = 8,
    GUEST_FORWARDS_MAX = 32,
    GUEST_TAP_NAME_SIZE = 16,
    GUEST_ADDRESS_SIZE = 46, /* an IPv6 address as text */
};

enum guest_net {
    GUEST_NET_USER, /* user-mode: passt translates to sockets of the host's */
    GUEST_NET_TAP,  /* a tap interface that is there */
    GUEST_NET_MAX
};

struct guest_forward {
    bool udp;
    char address[GUEST_ADDRESS_SIZE]; /* of the host's, to listen on; "" = all */
    uint16_t host, guest;             /* ports */
};

struct guest_nic {
    enum guest_net net;
    char tap[GUEST_TAP_NAME_SIZE];
    uint8_t mac[6];             /* all 0 = to be made: guest_nic_mac() */
    unsigned mtu;               /* 0 = as the network likes it */
    unsigned queues;            /* pairs; 0 = 1 */
    bool anti_spoof;            /* frames from other MACs are dropped */
    bool host_loopback;         /* user: the gateway's address leads to the host's loopback */
    uint64_t rate_in, rate_out; /* bytes a second to and from the guest; 0 = no limit */
    struct guest_forward forwards[GUEST_FORWARDS_MAX]; /* user */
    unsigned forward_count;

    bool unplugged; /* by lodge: the cable is out, until the VMM is told otherwise */
    /* Filled by `lodge run`: a socket to passt, or the tap's descriptors, one a queue. */
    int fds[GUEST_NIC_QUEUES_MAX];
    unsigned fd_count;
};

int guest_nic_parse(const char *text, struct guest_nic *ret_nic, struct err *err);
int guest_forward_parse(const char *text, struct guest_forward *ret_forward, struct err *err);

/* What no single value can answer. */
int guest_nic_check(const struct guest_nic *nic, struct err *err);

/* "52:54:00:12:34:56"; no multicast address, not all zeros. */
int guest_mac_parse(const char *text, uint8_t ret_mac[6], struct err *err);

/* The same address for the same name and card, always, locally administered. */
void guest_nic_mac(const char *name, unsigned index, uint8_t ret_mac[6]);

const char *guest_net_name(enum guest_net net);
int guest_net_parse(const char *text, enum guest_net *ret_net, struct err *err);

/* Checks what is to be a tap's name and copies it. */
int guest_nic_set_tap(struct guest_nic *nic, const char *name, struct err *err);
