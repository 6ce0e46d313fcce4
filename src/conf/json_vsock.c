#include "conf/json_vsock.h"

#include "conf/private.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static int get_field(const char *name, const json_t *value, struct guest_vsock *vsock,
                     struct err *why)
{
    json_int_t number = json_integer_value(value); /* 0 where it is none */
    if (!strcmp(name, "path") && json_is_string(value))
        return guest_vsock_set_path(vsock, json_string_value(value), why);
    if (!strcmp(name, "cid") && json_is_integer(value)) {
        int r = guest_check_cid(number, why);
        if (r >= 0)
            vsock->cid = (uint32_t)number;
        return r;
    }
    if (!strcmp(name, "fd") && json_is_integer(value) && number >= 0 && number <= INT_MAX) {
        vsock->fd = (int)number;
        return 0;
    }
    return err_set(why, -EINVAL,
                   "'%.64s' is no field of it, or not of that kind; there are path and cid", name);
}

int json_get_vsock(const json_t *value, struct guest_vsock *vsock, struct err *why)
{
    const char *name;
    json_t *field;
    if (!json_is_object(value))
        return err_set(why, -EINVAL, "must be an object with a path");
    free(vsock->path);
    *vsock = (struct guest_vsock){.cid = GUEST_CID_MIN, .fd = -1};
    json_object_foreach((json_t *)value, name, field)
    {
        int r = get_field(name, field, vsock, why);
        if (r < 0)
            return r;
    }
    return vsock->path || vsock->fd >= 0 ? 0 : err_set(why, -EINVAL, "must have a path");
}

int json_put_vsock(json_t *root, const struct guest_vsock *vsock)
{
    if (!vsock->path && vsock->fd < 0)
        return 0;
    json_t *object = json_object();
    int r = json_object_set_new(object, "cid", json_integer(vsock->cid));
    if (r >= 0 && vsock->path)
        r = json_object_set_new(object, "path", json_string(vsock->path));
    if (r >= 0 && vsock->fd >= 0)
        r = json_object_set_new(object, "fd", json_integer(vsock->fd));
    if (r < 0) {
        json_decref(object);
        return r;
    }
    return json_object_set_new(root, "vsock", object);
}
