#include "conf/json_nic.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

enum { MTU_LIMIT = 65535 };

static int get_text(const json_t *value, const char **ret_text, struct err *why)
{
    if (!json_is_string(value))
        return err_set(why, -EINVAL, "must be a string");
    *ret_text = json_string_value(value);
    return 0;
}

static int get_flag(const json_t *value, bool *ret_flag, struct err *why)
{
    if (!json_is_boolean(value))
        return err_set(why, -EINVAL, "must be true or false");
    *ret_flag = json_is_true(value);
    return 0;
}

static int get_number(const json_t *value, unsigned limit, unsigned *ret_number, struct err *why)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) > limit)
        return err_set(why, -EINVAL, "must be a number up to %u", limit);
    *ret_number = (unsigned)json_integer_value(value);
    return 0;
}

static int get_rate(const json_t *value, uint64_t *ret_rate, struct err *why)
{
    if (json_is_string(value))
        return guest_parse_size(json_string_value(value), ret_rate, why);
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return err_set(why, -EINVAL, "must be bytes a second, or a string like \"10M\"");
    *ret_rate = (uint64_t)json_integer_value(value);
    return 0;
}

static int get_forwards(const json_t *value, struct guest_nic *nic, struct err *why)
{
    const char *text = "";
    if (!json_is_array(value) || json_array_size(value) > GUEST_FORWARDS_MAX)
        return err_set(why, -EINVAL, "must be an array of at most %d strings", GUEST_FORWARDS_MAX);
    for (size_t i = 0; i < json_array_size(value); i++) {
        int r = get_text(json_array_get(value, i), &text, why);
        if (r >= 0)
            r = guest_forward_parse(text, &nic->forwards[i], why);
        if (r < 0)
            return r;
        nic->forward_count++;
    }
    return 0;
}

static int get_fds(const json_t *value, struct guest_nic *nic, struct err *why)
{
    if (!json_is_array(value) || json_array_size(value) > GUEST_NIC_QUEUES_MAX)
        return err_set(why, -EINVAL, "must be an array of at most %d descriptors",
                       GUEST_NIC_QUEUES_MAX);
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *fd = json_array_get(value, i);
        if (!json_is_integer(fd) || json_integer_value(fd) < 0 || json_integer_value(fd) > INT_MAX)
            return err_set(why, -EINVAL, "must hold descriptors' numbers");
        nic->fds[nic->fd_count++] = (int)json_integer_value(fd);
    }
    return 0;
}

static int get_named(const json_t *value, struct guest_nic *nic, const char *key, struct err *why)
{
    const char *text = "";
    int r = get_text(value, &text, why);
    if (r < 0)
        return r;
    if (!strcmp(key, "net"))
        return guest_net_parse(text, &nic->net, why);
    if (!strcmp(key, "tap"))
        return guest_nic_set_tap(nic, text, why);
    return guest_mac_parse(text, nic->mac, why);
}

static int get_part(const json_t *value, struct guest_nic *nic, const char *key, struct err *why)
{
    if (!strcmp(key, "net") || !strcmp(key, "tap") || !strcmp(key, "mac"))
        return get_named(value, nic, key, why);
    if (!strcmp(key, "mtu"))
        return get_number(value, MTU_LIMIT, &nic->mtu, why);
    if (!strcmp(key, "queues"))
        return get_number(value, GUEST_NIC_QUEUES_MAX, &nic->queues, why);
    if (!strcmp(key, "anti_spoof"))
        return get_flag(value, &nic->anti_spoof, why);
    if (!strcmp(key, "unplugged"))
        return get_flag(value, &nic->unplugged, why);
    if (!strcmp(key, "host_loopback"))
        return get_flag(value, &nic->host_loopback, why);
    if (!strcmp(key, "rate_in"))
        return get_rate(value, &nic->rate_in, why);
    if (!strcmp(key, "rate_out"))
        return get_rate(value, &nic->rate_out, why);
    if (!strcmp(key, "forward"))
        return get_forwards(value, nic, why);
    if (!strcmp(key, "fds"))
        return get_fds(value, nic, why);
    return err_set(why, -EINVAL, "no network card has it");
}

static int get_nic(const json_t *value, struct guest_nic *nic, struct err *why)
{
    const char *key;
    json_t *part;
    if (!json_is_object(value))
        return err_set(why, -EINVAL, "must hold objects like {\"net\": \"user\"}");
    *nic = (struct guest_nic){0};
    json_object_foreach((json_t *)value, key, part)
    {
        int r = get_part(part, nic, key, why);
        if (r < 0)
            return err_prefix(why, r, "%.64s", key);
    }
    return guest_nic_check(nic, why);
}

int json_nics_get(const json_t *value, struct guest_conf *conf, struct err *why)
{
    if (!json_is_array(value) || json_array_size(value) > GUEST_NICS_MAX)
        return err_set(why, -EINVAL, "must be an array of at most %d network cards",
                       GUEST_NICS_MAX);
    conf->nic_count = 0;
    for (size_t i = 0; i < json_array_size(value); i++) {
        int r = get_nic(json_array_get(value, i), &conf->nics[i], why);
        if (r < 0)
            return r;
        conf->nic_count++;
    }
    return 0;
}

static json_t *put_mac(const uint8_t *mac)
{
    return json_sprintf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4],
                        mac[5]);
}

static json_t *put_forward(const struct guest_forward *forward)
{
    const char *address = forward->address;
    bool v6 = strchr(address, ':');
    return json_sprintf("%s%s%s%s%u:%u%s", v6 ? "[" : "", address, v6 ? "]" : "",
                        *address ? ":" : "", forward->host, forward->guest,
                        forward->udp ? "/udp" : "");
}

static json_t *put_lists(json_t *object, const struct guest_nic *nic)
{
    json_t *forwards = json_array(), *fds = json_array();
    int r = 0;
    for (unsigned i = 0; i < nic->forward_count; i++)
        r |= json_array_append_new(forwards, put_forward(&nic->forwards[i]));
    for (unsigned i = 0; i < nic->fd_count; i++)
        r |= json_array_append_new(fds, json_integer(nic->fds[i]));
    r |= json_object_set_new(object, "forward", forwards);
    r |= json_object_set_new(object, "fds", fds);
    if (r == 0)
        return object;
    json_decref(object);
    return NULL;
}

/* What is as it would be anyway is left out. */
static json_t *put_nic(const struct guest_nic *nic)
{
    static const uint8_t none[6];
    json_t *object = json_object();
    int r = json_object_set_new(object, "net", json_string(guest_net_name(nic->net)));
    if (*nic->tap)
        r |= json_object_set_new(object, "tap", json_string(nic->tap));
    if (memcmp(nic->mac, none, sizeof none) != 0)
        r |= json_object_set_new(object, "mac", put_mac(nic->mac));
    if (nic->mtu)
        r |= json_object_set_new(object, "mtu", json_integer(nic->mtu));
    if (nic->queues)
        r |= json_object_set_new(object, "queues", json_integer(nic->queues));
    if (nic->anti_spoof)
        r |= json_object_set_new(object, "anti_spoof", json_true());
    if (nic->unplugged)
        r |= json_object_set_new(object, "unplugged", json_true());
    if (nic->host_loopback)
        r |= json_object_set_new(object, "host_loopback", json_true());
    if (nic->rate_in)
        r |= json_object_set_new(object, "rate_in", json_integer((json_int_t)nic->rate_in));
    if (nic->rate_out)
        r |= json_object_set_new(object, "rate_out", json_integer((json_int_t)nic->rate_out));
    if (r == 0)
        return put_lists(object, nic);
    json_decref(object);
    return NULL;
}

json_t *json_nics_put(const struct guest_conf *conf)
{
    json_t *array = json_array();
    for (unsigned i = 0; i < conf->nic_count; i++)
        if (json_array_append_new(array, put_nic(&conf->nics[i])) < 0) {
            json_decref(array);
            return NULL;
        }
    return array;
}
