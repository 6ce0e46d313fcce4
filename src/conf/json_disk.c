/* The disks of a JSON definition. Private to json.c. */
#include "conf/json_disk.h"

#include "conf/private.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

/* Fields that take the same words as on the command line; numbers are written as such. */
static const struct limit {
    const char *name;
    size_t offset;
} limits[] = {
    {"iops", offsetof(struct guest_disk, iops)},
    {"bps", offsetof(struct guest_disk, bps)},
    {"iops_burst", offsetof(struct guest_disk, iops_burst)},
    {"bps_burst", offsetof(struct guest_disk, bps_burst)},
};

static int get_image(const json_t *value, struct guest_disk *disk, struct err *why)
{
    const json_t *name = json_object_get(value, "name"), *fd = json_object_get(value, "fd");
    if (!json_is_string(name) || !json_is_integer(fd) || json_object_size(value) != 2 ||
        json_integer_value(fd) < 0 || json_integer_value(fd) > INT_MAX)
        return err_set(why, -EINVAL, "an image is an object with a name and an fd");
    int r = guest_disk_add_image(disk, json_string_value(name), (int)json_integer_value(fd));
    return r < 0 ? err_set(why, r, "more than %d images behind each other, or no memory",
                           GUEST_IMAGES_MAX)
                 : 0;
}

static int get_images(const json_t *value, struct guest_disk *disk, struct err *why)
{
    if (!json_is_array(value) || disk->image_count)
        return err_set(why, -EINVAL, "the images of a disk are an array");
    int r = 0;
    for (size_t i = 0; r >= 0 && i < json_array_size(value); i++)
        r = get_image(json_array_get(value, i), disk, why);
    return r;
}

static int get_number(const json_t *value, const char *name, struct guest_disk *disk,
                      struct err *why)
{
    for (size_t i = 0; i < ARRAY_LEN(limits); i++)
        if (!strcmp(limits[i].name, name) && json_integer_value(value) > 0) {
            uint64_t number = (uint64_t)json_integer_value(value);
            memcpy((char *)disk + limits[i].offset, &number, sizeof number);
            return 0;
        }
    return err_set(why, -EINVAL, "'%.64s' of a disk is no such number", name);
}

static int get_field(const char *name, const json_t *value, struct guest_disk *disk,
                     struct err *why)
{
    if (!strcmp(name, "read_only") && json_is_boolean(value)) {
        disk->read_only = json_is_true(value);
        return 0;
    }
    if (!strcmp(name, "images"))
        return get_images(value, disk, why);
    if (!strcmp(name, "key_fd") && json_is_integer(value) && json_integer_value(value) >= 0 &&
        json_integer_value(value) <= INT_MAX) {
        disk->key_fd = (int)json_integer_value(value);
        disk->unlocked = true;
        return 0;
    }
    if (json_is_integer(value))
        return get_number(value, name, disk, why);
    if (!json_is_string(value))
        return err_set(why, -EINVAL, "'%.64s' is no field of a disk, or no such value", name);
    if (strcmp(name, "path") != 0)
        return guest_disk_set(disk, name, json_string_value(value), why);
    disk->path = strdup(json_string_value(value));
    return disk->path ? 0 : err_set(why, -ENOMEM, "no memory");
}

static int get_disk(const json_t *value, struct guest_disk *disk, struct err *why)
{
    const char *name;
    json_t *field;
    if (!json_is_object(value))
        return err_set(why, -EINVAL, "must hold objects with a path");
    json_object_foreach((json_t *)value, name, field)
    {
        int r = get_field(name, field, disk, why);
        if (r < 0)
            return r;
    }
    if (!disk->path || !*disk->path)
        return err_set(why, -EINVAL, "a disk wants a path");
    return guest_disk_check(disk, why);
}

int json_get_disks(const json_t *value, struct guest_conf *conf, struct err *why)
{
    if (!json_is_array(value) || json_array_size(value) > GUEST_DISKS_MAX)
        return err_set(why, -EINVAL, "must be an array of at most %d disks", GUEST_DISKS_MAX);
    while (conf->disk_count > 0)
        guest_disk_free(&conf->disks[--conf->disk_count]);
    for (size_t i = 0; i < json_array_size(value); i++) {
        conf->disk_count++;
        int r = get_disk(json_array_get(value, i), &conf->disks[i], why);
        if (r < 0)
            return r;
    }
    return 0;
}

static int put_string(json_t *object, const char *name, const char *value)
{
    return value ? json_object_set_new(object, name, json_string(value)) : 0;
}

static int put_images(json_t *object, const struct guest_disk *disk)
{
    json_t *array = json_array();
    int r = json_object_set_new(object, "images", array); /* takes it over */
    for (unsigned i = 0; r >= 0 && i < disk->image_count; i++) {
        json_t *image = json_object();
        r = json_array_append_new(array, image);
        if (r >= 0)
            r = put_string(image, "name", disk->images[i].name);
        if (r >= 0)
            r = json_object_set_new(image, "fd", json_integer(disk->images[i].fd));
    }
    return r;
}

static int put_disk(json_t *object, const struct guest_disk *disk)
{
    int r = put_string(object, "path", disk->path);
    if (r >= 0 && disk->format != GUEST_DISK_PROBE)
        r = put_string(object, "format", guest_disk_format_name(disk->format));
    if (r >= 0 && disk->read_only)
        r = json_object_set_new(object, "read_only", json_true());
    if (r >= 0)
        r = put_string(object, "cache", guest_disk_cache_name(disk->cache));
    if (r >= 0 && disk->on_full != GUEST_DISK_PAUSE)
        r = put_string(object, "on_full", guest_disk_on_full_name(disk->on_full));
    if (r >= 0)
        r = put_string(object, "serial", disk->serial);
    if (r >= 0)
        r = put_string(object, "key_file", disk->key_file);
    if (r >= 0)
        r = put_string(object, "cacert", disk->cacert);
    if (r >= 0 && disk->unlocked)
        r = json_object_set_new(object, "key_fd", json_integer(disk->key_fd));
    for (size_t i = 0; r >= 0 && i < ARRAY_LEN(limits); i++) {
        uint64_t number;
        memcpy(&number, (const char *)disk + limits[i].offset, sizeof number);
        if (number)
            r = json_object_set_new(object, limits[i].name, json_integer((json_int_t)number));
    }
    return r >= 0 && disk->image_count ? put_images(object, disk) : r;
}

int json_put_disks(json_t *root, const struct guest_conf *conf)
{
    if (!conf->disk_count)
        return 0;
    json_t *array = json_array();
    int r = json_object_set_new(root, "disks", array); /* takes it over */
    for (unsigned i = 0; r >= 0 && i < conf->disk_count; i++) {
        json_t *object = json_object();
        r = json_array_append_new(array, object);
        if (r >= 0)
            r = put_disk(object, &conf->disks[i]);
    }
    return r;
}
