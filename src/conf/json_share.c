/* The shared folders of a JSON definition. Private to json.c. */
#include "conf/json_share.h"

#include "conf/private.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

static int get_field(const char *name, const json_t *value, struct guest_share *share,
                     struct err *why)
{
    if (!strcmp(name, "read_only") && json_is_boolean(value)) {
        share->read_only = json_is_true(value);
        return 0;
    }
    if (!strcmp(name, "fd") && json_is_integer(value) && json_integer_value(value) >= -1 &&
        json_integer_value(value) <= INT_MAX) {
        share->fd = (int)json_integer_value(value);
        return 0;
    }
    if (!json_is_string(value))
        return err_set(why, -EINVAL, "'%.64s' is no field of a share, or no such value", name);
    return guest_share_set(share, name, json_string_value(value), why);
}

static int get_share(const json_t *value, struct guest_conf *conf, struct err *why)
{
    struct guest_share share = {.fd = -1};
    const char *name;
    json_t *field;
    if (!json_is_object(value))
        return err_set(why, -EINVAL, "must hold objects with a path");
    json_object_foreach((json_t *)value, name, field)
    {
        int r = get_field(name, field, &share, why);
        if (r < 0) {
            guest_share_free(&share);
            return r;
        }
    }
    return guest_conf_take_share(conf, &share, why);
}

int json_get_shares(const json_t *value, struct guest_conf *conf, struct err *why)
{
    if (!json_is_array(value) || json_array_size(value) > GUEST_SHARES_MAX)
        return err_set(why, -EINVAL, "must be an array of at most %d shares", GUEST_SHARES_MAX);
    while (conf->share_count > 0)
        guest_share_free(&conf->shares[--conf->share_count]);
    int r = 0;
    for (size_t i = 0; r >= 0 && i < json_array_size(value); i++)
        r = get_share(json_array_get(value, i), conf, why);
    return r;
}

static int put_share(json_t *object, const struct guest_share *share)
{
    int r = json_object_set_new(object, "path", json_string(share->path));
    if (r >= 0)
        r = json_object_set_new(object, "tag", json_string(share->tag));
    if (r >= 0)
        r = json_object_set_new(object, "at", json_string(share->at));
    if (r >= 0 && share->read_only)
        r = json_object_set_new(object, "read_only", json_true());
    if (r >= 0 && share->fd >= 0)
        r = json_object_set_new(object, "fd", json_integer(share->fd));
    return r;
}

int json_put_shares(json_t *root, const struct guest_conf *conf)
{
    if (!conf->share_count)
        return 0;
    json_t *array = json_array();
    int r = json_object_set_new(root, "shares", array); /* takes it over */
    for (unsigned i = 0; r >= 0 && i < conf->share_count; i++) {
        json_t *object = json_object();
        r = json_array_append_new(array, object);
        if (r >= 0)
            r = put_share(object, &conf->shares[i]);
    }
    return r;
}
