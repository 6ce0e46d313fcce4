/* <interface>. */
#include "base/bytes.h"
#include "base/own.h"
#include "conf/libvirt_xml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIREWALL "a firewall that is asked for and not there would be missed"

/* ---- what it is joined to ---- */

static bool choose_network(struct libvirt *reader, const xmlNode *node, struct guest_nic *nic)
{
    const xmlNode *source = libvirt_child(node, "source");
    const char *network = source ? libvirt_attribute(source, "network") : NULL;
    if (!libvirt_is(network, "default")) {
        libvirt_refuse(reader, source ? source : node, source ? "network" : NULL,
                       "there are no networks but 'default' here; write <interface type='user'/>, "
                       "or type='ethernet' with a tap");
        return false;
    }
    libvirt_map(reader, source, "network",
                "a user network: the guest reaches what this machine does, and is reached by "
                "forwarded ports");
    nic->net = GUEST_NET_USER;
    return true;
}

static bool choose_tap(struct libvirt *reader, const xmlNode *node, struct guest_nic *nic)
{
    const xmlNode *target = libvirt_child(node, "target");
    const char *name = target ? libvirt_attribute(target, "dev") : NULL;
    struct err why = {0};
    nic->net = GUEST_NET_TAP;
    if (guest_nic_set_tap(nic, name ? name : "", &why) < 0) {
        libvirt_refuse(reader, target ? target : node, NULL,
                       "no tap; write <target dev='tap0' managed='no'/>");
        return false;
    }
    if (!libvirt_is(libvirt_attribute(target, "managed"), "no"))
        libvirt_map(reader, target, "dev", "a tap that is there: Lodge makes none");
    return true;
}

static bool choose(struct libvirt *reader, const xmlNode *node, struct guest_nic *nic)
{
    const char *type = libvirt_attribute(node, "type");
    nic->net = GUEST_NET_USER;
    if (libvirt_is(type, "user"))
        return true;
    if (libvirt_is(type, "network"))
        return choose_network(reader, node, nic);
    if (libvirt_is(type, "ethernet"))
        return choose_tap(reader, node, nic);
    if (libvirt_is(type, "bridge"))
        libvirt_refuse(reader, node, "type",
                       "Lodge joins no bridges itself; put a tap on it (ip tuntap add tap0 mode "
                       "tap; ip link set tap0 master BRIDGE) and write <interface "
                       "type='ethernet'><target dev='tap0' managed='no'/>");
    else
        libvirt_refuse(reader, node, "type",
                       "'%.64s' is no network here; there are user, network (default) and "
                       "ethernet (a tap)",
                       type ? type : "");
    return false;
}

/* ---- its parts ---- */

/* Looked at by choose(). */
static void read_source(struct libvirt *reader, const xmlNode *node, void *object)
{
    libvirt_visit(reader, node, "network", NULL, 0, NULL);
}

static void read_target(struct libvirt *reader, const xmlNode *node, void *object)
{
    const struct guest_nic *nic = object;
    libvirt_visit(reader, node, nic->net == GUEST_NET_TAP ? "dev managed" : "", NULL, 0, NULL);
}

static void read_mac(struct libvirt *reader, const xmlNode *node, void *object)
{
    struct guest_nic *nic = object;
    const char *address = libvirt_attribute(node, "address");
    struct err why = {0};
    libvirt_visit(reader, node, "address", NULL, 0, NULL);
    if (guest_mac_parse(address ? address : "", nic->mac, &why) < 0)
        libvirt_refuse(reader, node, "address", "%s", why.text);
}

static void read_model(struct libvirt *reader, const xmlNode *node, void *object)
{
    const char *type = libvirt_attribute(node, "type");
    libvirt_visit(reader, node, "type", NULL, 0, NULL);
    if (type && strncmp(type, "virtio", 6) != 0)
        libvirt_map(reader, node, "type", "virtio, instead of %.32s: the guest needs that driver",
                    type);
}

static void read_mtu(struct libvirt *reader, const xmlNode *node, void *object)
{
    struct guest_nic *nic = object;
    const char *size = libvirt_attribute(node, "size");
    uint64_t number;
    libvirt_visit(reader, node, "size", NULL, 0, NULL);
    if (libvirt_number(reader, node, "size", size ? size : "", 65535, "<mtu size='1500'/>",
                       &number))
        nic->mtu = (unsigned)number;
}

static void read_link(struct libvirt *reader, const xmlNode *node, void *object)
{
    libvirt_visit(reader, node, "state", NULL, 0, NULL);
    if (libvirt_is(libvirt_attribute(node, "state"), "down"))
        libvirt_ignore(reader, node, "state",
                       "a card begins with its cable in; lodge link GUEST NIC down takes it out");
}

static void read_driver(struct libvirt *reader, const xmlNode *node, void *object)
{
    struct guest_nic *nic = object;
    const char *queues = libvirt_attribute(node, "queues");
    uint64_t number;
    libvirt_visit(reader, node, "queues", NULL, 0, NULL);
    if (queues &&
        libvirt_number(reader, node, "queues", queues, GUEST_NIC_QUEUES_MAX, "1 to 8", &number))
        nic->queues = (unsigned)number;
}

/* Kilobytes a second; as libvirt hands them to tc, a thousand bytes each. */
static void read_rate(struct libvirt *reader, const xmlNode *node, uint64_t *rate)
{
    const char *average = libvirt_attribute(node, "average");
    uint64_t number;
    libvirt_visit(reader, node, "average", NULL, 0, NULL);
    if (libvirt_number(reader, node, "average", average ? average : "", UINT64_MAX / 1000,
                       "average='1000', in kilobytes a second", &number))
        *rate = number * 1000;
}

static void read_inbound(struct libvirt *reader, const xmlNode *node, void *object)
{
    read_rate(reader, node, &((struct guest_nic *)object)->rate_in);
}

static void read_outbound(struct libvirt *reader, const xmlNode *node, void *object)
{
    read_rate(reader, node, &((struct guest_nic *)object)->rate_out);
}

static const struct libvirt_row bandwidth_rows[] = {
    {.name = "inbound", .read = read_inbound},
    {.name = "outbound", .read = read_outbound},
};

static void read_bandwidth(struct libvirt *reader, const xmlNode *node, void *object)
{
    libvirt_visit(reader, node, "", bandwidth_rows, ARRAY_LEN(bandwidth_rows), object);
}

static void read_filter(struct libvirt *reader, const xmlNode *node, void *object)
{
    struct guest_nic *nic = object;
    const char *filter = libvirt_attribute(node, "filter");
    libvirt_visit(reader, node, "filter", NULL, 0, NULL);
    nic->anti_spoof = libvirt_is(filter, "no-mac-spoofing");
    if (!nic->anti_spoof)
        libvirt_refuse(reader, node, "filter", "'%.64s': " FIREWALL "; there is no-mac-spoofing",
                       filter ? filter : "");
}

static void read_backend(struct libvirt *reader, const xmlNode *node, void *object)
{
    const char *type = libvirt_attribute(node, "type");
    libvirt_visit(reader, node, "type", NULL, 0, NULL);
    if (type && strcmp(type, "passt") != 0)
        libvirt_map(reader, node, "type", "passt, which carries user networks");
}

/* ---- forwarded ports ---- */

struct forwards {
    struct guest_nic *nic;
    struct guest_forward one; /* protocol and address of them all */
};

static void read_range(struct libvirt *reader, const xmlNode *node, void *object)
{
    static const char example[] = "<range start='2222' to='22'/>";
    struct forwards *at = object;
    const char *start = libvirt_attribute(node, "start"), *end = libvirt_attribute(node, "end");
    const char *to = libvirt_attribute(node, "to");
    uint64_t first, last, guest;
    libvirt_visit(reader, node, "start end to exclude", NULL, 0, NULL);
    if (libvirt_is(libvirt_attribute(node, "exclude"), "yes")) {
        libvirt_refuse(reader, node, "exclude", "name the ports that are forwarded; %s", example);
        return;
    }
    if (!libvirt_number(reader, node, "start", start ? start : "", 65535, example, &first))
        return;
    last = guest = first;
    if ((end && !libvirt_number(reader, node, "end", end, 65535, example, &last)) ||
        (to && !libvirt_number(reader, node, "to", to, 65535, example, &guest)))
        return;
    if (first == 0 || guest == 0 || last < first || guest + (last - first) > 65535) {
        libvirt_refuse(reader, node, NULL, "these are no ports; write %s", example);
        return;
    }
    for (uint64_t i = 0; i <= last - first; i++) {
        if (at->nic->forward_count == GUEST_FORWARDS_MAX) {
            libvirt_refuse(reader, node, NULL, "at most %d ports are forwarded",
                           GUEST_FORWARDS_MAX);
            return;
        }
        at->one.host = (uint16_t)(first + i);
        at->one.guest = (uint16_t)(guest + i);
        at->nic->forwards[at->nic->forward_count++] = at->one;
    }
}

static const struct libvirt_row forward_rows[] = {
    {.name = "range", .read = read_range, .many = true},
};

static void read_forward(struct libvirt *reader, const xmlNode *node, void *object)
{
    struct forwards at = {.nic = object};
    const char *protocol = libvirt_attribute(node, "proto");
    const char *address = libvirt_attribute(node, "address");
    at.one.udp = libvirt_is(protocol, "udp");
    if (!at.one.udp && !libvirt_is(protocol, "tcp"))
        libvirt_refuse(reader, node, "proto", "write proto='tcp' or 'udp'");
    if (address) {
        /* By the reader of the command line's form, which checks addresses. */
        char text[GUEST_ADDRESS_SIZE + 8];
        bool six = strchr(address, ':') != NULL;
        snprintf(text, sizeof text, six ? "[%.*s]:1:1" : "%.*s:1:1", GUEST_ADDRESS_SIZE - 1,
                 address);
        struct guest_forward parsed;
        if (guest_forward_parse(text, &parsed, NULL) < 0 || strcmp(parsed.address, address) != 0)
            libvirt_refuse(reader, node, "address", "'%.64s' is no address of this machine's",
                           address);
        else
            memcpy(at.one.address, parsed.address, sizeof at.one.address);
    }
    if (!libvirt_child(node, "range"))
        libvirt_refuse(reader, node, NULL, "all ports; write <range start='2222' to='22'/>");
    libvirt_visit(reader, node, "proto address", forward_rows, ARRAY_LEN(forward_rows), &at);
}

/* ---- the whole ---- */

static const struct libvirt_row nic_rows[] = {
    {.name = "source", .read = read_source},
    {.name = "target", .read = read_target},
    {.name = "mac", .read = read_mac},
    {.name = "model", .read = read_model},
    {.name = "mtu", .read = read_mtu},
    {.name = "link", .read = read_link},
    {.name = "driver", .read = read_driver},
    {.name = "bandwidth", .read = read_bandwidth},
    {.name = "filterref", .read = read_filter},
    {.name = "backend", .read = read_backend},
    {.name = "portForward", .read = read_forward, .many = true},
    {.name = "alias", .verdict = GUEST_NOTE_IGNORED, .why = LIBVIRT_ADDRESS},
    {.name = "address", .verdict = GUEST_NOTE_IGNORED, .why = LIBVIRT_ADDRESS},
    {.name = "boot", .verdict = GUEST_NOTE_IGNORED, .why = "nothing boots from networks"},
    {.name = "rom", .verdict = GUEST_NOTE_IGNORED, .why = "nothing boots from networks"},
    {.name = "ip", .verdict = GUEST_NOTE_IGNORED, .why = "a user network gives out addresses"},
    {.name = "vlan", .verdict = GUEST_NOTE_REFUSED, .why = "give the tap its VLAN"},
    {.name = "virtualport", .verdict = GUEST_NOTE_REFUSED, .why = "there are no such switches"},
    {.name = "port", .verdict = GUEST_NOTE_REFUSED, .why = FIREWALL},
    {.name = "script", .verdict = GUEST_NOTE_REFUSED, .why = "Lodge runs no scripts for a tap"},
};

void libvirt_nic(struct libvirt *reader, const xmlNode *node, void *object)
{
    struct guest_conf *conf = reader->conf;
    struct guest_nic nic = {0};
    struct err why = {0};
    if (conf->nic_count == GUEST_NICS_MAX) {
        libvirt_refuse(reader, node, NULL, "a guest has at most %d network cards", GUEST_NICS_MAX);
        return;
    }
    bool joined = choose(reader, node, &nic);
    libvirt_visit(reader, node, "type", nic_rows, ARRAY_LEN(nic_rows), &nic);
    if (!joined)
        return;
    if (guest_nic_check(&nic, &why) < 0)
        libvirt_refuse(reader, node, NULL, "%s", why.text);
    else
        conf->nics[conf->nic_count++] = nic;
}
