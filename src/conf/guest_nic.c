#include "conf/guest_nic.h"

#include "base/bytes.h"
#include "base/own.h"
#include "conf/guest.h"
#include "conf/private.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MTU_MIN = 68, MTU_MAX = 65535 };

static const char *const net_names[GUEST_NET_MAX] = {
    [GUEST_NET_USER] = "user",
    [GUEST_NET_TAP] = "tap",
};

const char *guest_net_name(enum guest_net net)
{
    return net_names[net];
}

int guest_net_parse(const char *text, enum guest_net *ret_net, struct err *err)
{
    for (enum guest_net net = 0; net < GUEST_NET_MAX; net++)
        if (!strcmp(text, net_names[net])) {
            *ret_net = net;
            return 0;
        }
    return err_set(err, -EINVAL, "'%.64s' is no kind of network; there are user and tap=NAME",
                   text);
}

int guest_nic_set_tap(struct guest_nic *nic, const char *name, struct err *err)
{
    size_t length = strlen(name);
    if (length == 0 || length >= sizeof nic->tap || strpbrk(name, "/ \t%:") || !strcmp(name, ".") ||
        !strcmp(name, ".."))
        return err_set(err, -EINVAL, "'%.64s' is no name of an interface, as in tap=tap0", name);
    memcpy(nic->tap, name, length + 1);
    return 0;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int guest_mac_parse(const char *text, uint8_t ret_mac[6], struct err *err)
{
    uint8_t mac[6] = {0}, any = 0;
    bool fine = strlen(text) == 17;
    for (unsigned i = 0; fine && i < 6; i++) {
        const char *at = text + 3 * i;
        int high = hex_digit(at[0]), low = hex_digit(at[1]);
        fine = high >= 0 && low >= 0 && at[2] == (i < 5 ? ':' : '\0');
        if (fine)
            mac[i] = (uint8_t)(high << 4 | low);
        any |= mac[i];
    }
    if (!fine)
        return err_set(err, -EINVAL, "'%.64s' is no MAC; write it like 52:54:00:12:34:56", text);
    if (mac[0] & 1 || !any)
        return err_set(err, -EINVAL, "MAC %s is not for a card; its first byte must be even", text);
    memcpy(ret_mac, mac, sizeof mac);
    return 0;
}

/* FNV-1a, and the mixing of MurmurHash3's end so that each bit of the name reaches all of ours. */
void guest_nic_mac(const char *name, unsigned index, uint8_t ret_mac[6])
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (const char *at = name; *at; at++)
        hash = (hash ^ (uint8_t)*at) * UINT64_C(0x100000001b3);
    hash = (hash ^ (0x100 + index)) * UINT64_C(0x100000001b3);
    hash ^= hash >> 33;
    hash *= UINT64_C(0xff51afd7ed558ccd);
    hash ^= hash >> 33;
    hash *= UINT64_C(0xc4ceb9fe1a85ec53);
    hash ^= hash >> 33;
    for (unsigned i = 0; i < 6; i++)
        ret_mac[i] = (uint8_t)(hash >> 8 * i);
    ret_mac[0] = (uint8_t)((ret_mac[0] & 0xfc) | 2); /* locally administered, a station's */
}

/* A decimal number of [low, high]. */
static bool parse_number(const char *text, unsigned low, unsigned high, unsigned *ret_number)
{
    uint64_t number = 0;
    size_t length = strlen(text);
    if (length == 0 || length > 9 || strspn(text, "0123456789") != length)
        return false;
    for (const char *at = text; *at; at++)
        number = number * 10 + (uint64_t)(*at - '0');
    if (number < low || number > high)
        return false;
    *ret_number = (unsigned)number;
    return true;
}

static int set_number(const char *name, const char *text, unsigned low, unsigned high,
                      unsigned *ret_number, struct err *err)
{
    if (text && parse_number(text, low, high, ret_number))
        return 0;
    return err_set(err, -EINVAL, "%s takes a number from %u to %u, not '%.64s'", name, low, high,
                   text ? text : "");
}

static int set_flag(const char *name, const char *text, bool *ret_flag, struct err *err)
{
    bool on = !text || !strcmp(text, "on");
    if (!on && strcmp(text, "off") != 0)
        return err_set(err, -EINVAL, "%s is on or off, not '%.64s'", name, text);
    *ret_flag = on;
    return 0;
}

/* One of the parts behind the first comma; `value` is NULL where there is no '='. */
static int set_part(struct guest_nic *nic, const char *name, const char *value, struct err *err)
{
    if (!strcmp(name, "mac"))
        return guest_mac_parse(value ? value : "", nic->mac, err);
    if (!strcmp(name, "mtu"))
        return set_number(name, value, MTU_MIN, MTU_MAX, &nic->mtu, err);
    if (!strcmp(name, "queues"))
        return set_number(name, value, 1, GUEST_NIC_QUEUES_MAX, &nic->queues, err);
    if (!strcmp(name, "anti-spoof"))
        return set_flag(name, value, &nic->anti_spoof, err);
    if (!strcmp(name, "host-loopback"))
        return set_flag(name, value, &nic->host_loopback, err);
    int r;
    if (!strcmp(name, "rate-in"))
        r = guest_parse_size(value ? value : "", &nic->rate_in, err);
    else if (!strcmp(name, "rate-out"))
        r = guest_parse_size(value ? value : "", &nic->rate_out, err);
    else
        return err_set(err, -EINVAL,
                       "'%.64s' is nothing that a network card has; there are mac, mtu, queues, "
                       "anti-spoof, host-loopback, rate-in and rate-out",
                       name);
    return r < 0 ? err_prefix(err, r, "%s", name) : 0;
}

static char *split_value(char *part)
{
    char *equals = strchr(part, '=');
    if (!equals)
        return NULL;
    *equals = '\0';
    return equals + 1;
}

int guest_nic_parse(const char *text, struct guest_nic *ret_nic, struct err *err)
{
    struct guest_nic nic = {0};
    _cleanup_free_ char *copy = strdup(text);
    char *rest = NULL;
    if (!copy)
        return err_set(err, -ENOMEM, "no memory");
    char *part = strtok_r(copy, ",", &rest);
    char *value = part ? split_value(part) : NULL;
    int r = guest_net_parse(part ? part : "", &nic.net, err);
    if (r >= 0 && nic.net == GUEST_NET_TAP)
        r = guest_nic_set_tap(&nic, value ? value : "", err);
    else if (r >= 0 && value)
        r = err_set(err, -EINVAL, "'%s' takes no value", part);
    while (r >= 0 && (part = strtok_r(NULL, ",", &rest))) {
        value = split_value(part);
        r = set_part(&nic, part, value, err);
    }
    if (r >= 0)
        r = guest_nic_check(&nic, err);
    if (r >= 0)
        *ret_nic = nic;
    return r;
}

int guest_nic_check(const struct guest_nic *nic, struct err *err)
{
    unsigned number;
    if (nic->net == GUEST_NET_TAP && !*nic->tap && nic->fd_count == 0)
        return err_set(err, -EINVAL, "a tap network needs the name of its interface, tap=NAME");
    if (nic->net == GUEST_NET_USER && nic->queues > 1)
        return err_set(err, -EINVAL, "a user network has one queue; several are for taps");
    if (nic->net != GUEST_NET_USER && (nic->forward_count > 0 || nic->host_loopback))
        return err_set(err, -EINVAL, "forwarded ports and host-loopback are for user networks");
    if (nic->queues > GUEST_NIC_QUEUES_MAX || nic->forward_count > GUEST_FORWARDS_MAX ||
        nic->fd_count > GUEST_NIC_QUEUES_MAX)
        return err_set(err, -EINVAL, "a network card has at most %d queues and %d forwarded ports",
                       GUEST_NIC_QUEUES_MAX, GUEST_FORWARDS_MAX);
    char text[16];
    snprintf(text, sizeof text, "%u", nic->mtu);
    return nic->mtu ? set_number("mtu", text, MTU_MIN, MTU_MAX, &number, err) : 0;
}

static int not_a_forward(const char *text, struct err *err)
{
    return err_set(err, -EINVAL,
                   "'%.64s' is no port to forward; write [ADDRESS:]HOST:GUEST[/udp], like 2222:22 "
                   "or 127.0.0.1:2222:22",
                   text);
}

/* The address before the ports, if there is one; moves *at behind it. */
static bool take_address(char **at, char *ret_address)
{
    char *text = *at, *end;
    struct in6_addr parsed;
    int family = AF_INET;
    if (*text == '[') {
        family = AF_INET6;
        text++;
        end = strchr(text, ']');
        if (!end || end[1] != ':')
            return false;
        *at = end + 2;
    } else {
        end = strchr(text, ':');
        if (!end || !strchr(end + 1, ':')) /* two numbers only */
            return true;
        *at = end + 1;
    }
    *end = '\0';
    if (inet_pton(family, text, &parsed) != 1 || strlen(text) >= GUEST_ADDRESS_SIZE)
        return false;
    memcpy(ret_address, text, strlen(text) + 1);
    return true;
}

int guest_forward_parse(const char *text, struct guest_forward *ret_forward, struct err *err)
{
    struct guest_forward forward = {0};
    unsigned host, guest;
    _cleanup_free_ char *copy = strdup(text);
    if (!copy)
        return err_set(err, -ENOMEM, "no memory");
    char *at = copy, *protocol = strchr(copy, '/');
    if (protocol) {
        *protocol++ = '\0';
        forward.udp = !strcmp(protocol, "udp");
        if (!forward.udp && strcmp(protocol, "tcp") != 0)
            return not_a_forward(text, err);
    }
    if (!take_address(&at, forward.address))
        return not_a_forward(text, err);
    char *colon = strchr(at, ':');
    if (!colon)
        return not_a_forward(text, err);
    *colon = '\0';
    if (!parse_number(at, 1, 65535, &host) || !parse_number(colon + 1, 1, 65535, &guest))
        return not_a_forward(text, err);
    forward.host = (uint16_t)host;
    forward.guest = (uint16_t)guest;
    *ret_forward = forward;
    return 0;
}

/* Of a whole definition. */

int guest_conf_add_net(struct guest_conf *conf, const char *text, struct err *err)
{
    struct guest_nic nic;
    if (!strcmp(text, "none"))
        return 0;
    int r = guest_nic_parse(text, &nic, err);
    if (r < 0)
        return r;
    if (conf->nic_count == GUEST_NICS_MAX)
        return err_set(err, -EINVAL, "a guest has at most %d network cards", GUEST_NICS_MAX);
    conf->nics[conf->nic_count++] = nic;
    return 0;
}

int guest_conf_add_forward(struct guest_conf *conf, const char *text, struct err *err)
{
    struct guest_forward forward;
    struct guest_nic *nic = NULL;
    int r = guest_forward_parse(text, &forward, err);
    if (r < 0)
        return r;
    if (conf->nic_count == 0)
        conf->nics[conf->nic_count++] = (struct guest_nic){.net = GUEST_NET_USER};
    for (unsigned i = 0; !nic && i < conf->nic_count; i++)
        if (conf->nics[i].net == GUEST_NET_USER)
            nic = &conf->nics[i];
    if (!nic)
        return err_set(err, -EINVAL,
                       "ports are forwarded to a user network, and this guest has none; a guest on "
                       "a tap is reached by its own address");
    if (nic->forward_count == GUEST_FORWARDS_MAX)
        return err_set(err, -EINVAL, "at most %d ports are forwarded", GUEST_FORWARDS_MAX);
    nic->forwards[nic->forward_count++] = forward;
    return 0;
}

static int each_word(struct guest_conf *conf, const char *text,
                     int (*add)(struct guest_conf *, const char *, struct err *), struct err *err)
{
    _cleanup_free_ char *copy = strdup(text);
    char *rest = NULL;
    int r = copy ? 0 : err_set(err, -ENOMEM, "no memory");
    for (char *word = copy ? strtok_r(copy, " \t", &rest) : NULL; r >= 0 && word;
         word = strtok_r(NULL, " \t", &rest))
        r = add(conf, word, err);
    return r;
}

int guest_conf_set_nets(struct guest_conf *conf, const char *text, struct err *err)
{
    conf->nic_count = 0;
    return each_word(conf, text, guest_conf_add_net, err);
}

int guest_conf_add_forwards(struct guest_conf *conf, const char *text, struct err *err)
{
    return each_word(conf, text, guest_conf_add_forward, err);
}

int guest_conf_check_nics(const struct guest_conf *conf, struct err *err)
{
    for (unsigned i = 0; i < conf->nic_count; i++) {
        int r = guest_nic_check(&conf->nics[i], err);
        if (r < 0)
            return err_prefix(err, r, "network card %u", i);
    }
    return 0;
}
