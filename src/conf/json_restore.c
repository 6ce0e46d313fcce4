/* Where a guest goes on that was saved: {"layers": [{"state_fd": 7, "memory_fd": 8}], "same_host":
 * true, "verify": "beside"}. Filled by lodge alone. */
#include "conf/json_disk.h"

#include "conf/private.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

static const char *const verify_names[GUEST_VERIFY_MAX] = {
    [GUEST_VERIFY_BESIDE] = "beside",
    [GUEST_VERIFY_BEFORE] = "before",
    [GUEST_VERIFY_NEVER] = "never",
    [GUEST_VERIFY_ONLY] = "only",
};

/* GUEST_VERIFY_MAX where it is none. */
static enum guest_verify get_verify(const json_t *value)
{
    const char *name = json_string_value(value);
    unsigned verify = 0;
    while (verify < GUEST_VERIFY_MAX && (!name || strcmp(name, verify_names[verify]) != 0))
        verify++;
    return (enum guest_verify)verify;
}

static int get_fd(const json_t *object, const char *name, int *ret_fd)
{
    const json_t *value = json_object_get(object, name);
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) > INT_MAX)
        return -EINVAL;
    *ret_fd = (int)json_integer_value(value);
    return 0;
}

int json_get_restore(const json_t *value, struct guest_conf *conf, struct err *why)
{
    const json_t *same_host = json_object_get(value, "same_host");
    struct guest_restore restore = {.same_host = json_is_true(same_host),
                                    .verify = get_verify(json_object_get(value, "verify"))};
    const json_t *layers = json_object_get(value, "layers");
    size_t count = json_array_size(layers);
    if (!json_is_boolean(same_host) || restore.verify == GUEST_VERIFY_MAX ||
        json_object_size(value) != 3 || count < 1 || count > GUEST_LAYERS_MAX)
        return err_set(why, -EINVAL, "it has layers (1 to %d), same_host and verify",
                       GUEST_LAYERS_MAX);
    for (size_t i = 0; i < count; i++) {
        const json_t *layer = json_array_get(layers, i);
        if (json_object_size(layer) != 2 ||
            get_fd(layer, "state_fd", &restore.layers[i].state_fd) < 0 ||
            get_fd(layer, "memory_fd", &restore.layers[i].memory_fd) < 0)
            return err_set(why, -EINVAL, "a layer has a state_fd and a memory_fd");
    }
    restore.count = (unsigned)count;
    conf->restore = restore;
    return 0;
}

int json_put_restore(json_t *root, const struct guest_conf *conf)
{
    const struct guest_restore *restore = &conf->restore;
    if (!restore->count)
        return 0;
    json_t *object = json_object(), *layers = json_array();
    int r = json_object_set_new(root, "restore", object); /* takes it over */
    if (r >= 0)
        r = json_object_set_new(object, "layers", layers);
    for (unsigned i = 0; r >= 0 && i < restore->count; i++) {
        json_t *layer = json_object();
        r = json_array_append_new(layers, layer);
        if (r >= 0)
            r = json_object_set_new(layer, "state_fd", json_integer(restore->layers[i].state_fd));
        if (r >= 0)
            r = json_object_set_new(layer, "memory_fd", json_integer(restore->layers[i].memory_fd));
    }
    if (r >= 0)
        r = json_object_set_new(object, "same_host", json_boolean(restore->same_host));
    return r < 0
               ? r
               : json_object_set_new(object, "verify", json_string(verify_names[restore->verify]));
}
