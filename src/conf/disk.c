/*
 * A disk as people write it, in one value:
 *
 *     PATH [",ro"] [",format=" raw|qcow2] [",cache=" writeback|none|unsafe] [",serial=" TEXT]
 *          [",iops=" N] [",bps=" SIZE] [",iops_burst=" N] [",bps_burst=" SIZE]
 *          [",on_full=" pause|error] [",key_file=" FILE] [",cacert=" FILE]
 *
 * A comma in PATH, TEXT or FILE is written twice.
 */
#include "base/own.h"
#include "conf/guest.h"
#include "conf/private.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char *const format_names[GUEST_DISK_FORMAT_MAX] = {
    [GUEST_DISK_PROBE] = "probe",
    [GUEST_DISK_RAW] = "raw",
    [GUEST_DISK_QCOW2] = "qcow2",
};

static const char *const cache_names[GUEST_DISK_CACHE_MAX] = {
    [GUEST_DISK_WRITEBACK] = "writeback",
    [GUEST_DISK_NONE] = "none",
    [GUEST_DISK_UNSAFE] = "unsafe",
};

static const char *const on_full_names[GUEST_DISK_ON_FULL_MAX] = {
    [GUEST_DISK_PAUSE] = "pause",
    [GUEST_DISK_ERROR] = "error",
};

const char *guest_disk_format_name(enum guest_disk_format format)
{
    return format_names[format];
}

const char *guest_disk_cache_name(enum guest_disk_cache cache)
{
    return cache_names[cache];
}

const char *guest_disk_on_full_name(enum guest_disk_on_full on_full)
{
    return on_full_names[on_full];
}

void guest_disk_forget_descriptors(struct guest_disk *disk)
{
    for (unsigned i = 0; i < disk->image_count; i++)
        free(disk->images[i].name);
    free(disk->images);
    disk->images = NULL;
    disk->image_count = 0;
    disk->unlocked = false;
    disk->key_fd = 0;
}

void guest_disk_free(struct guest_disk *disk)
{
    guest_disk_forget_descriptors(disk);
    free(disk->path);
    free(disk->serial);
    free(disk->key_file);
    free(disk->cacert);
    *disk = (struct guest_disk){0};
}

int guest_disk_add_image(struct guest_disk *disk, const char *name, int fd)
{
    if (disk->image_count == GUEST_IMAGES_MAX)
        return -E2BIG;
    struct guest_image *more =
        realloc(disk->images, (disk->image_count + 1) * sizeof *disk->images);
    if (more)
        disk->images = more;
    char *copy = more ? strdup(name) : NULL;
    if (!copy)
        return -ENOMEM;
    disk->images[disk->image_count++] = (struct guest_image){copy, fd};
    return 0;
}

int guest_disk_copy(struct guest_disk *to, const struct guest_disk *from)
{
    *to = *from;
    to->images = NULL;
    to->image_count = 0;
    char *const texts[] = {from->path, from->serial, from->key_file, from->cacert};
    char **const copies[] = {&to->path, &to->serial, &to->key_file, &to->cacert};
    int r = 0;
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        *copies[i] = texts[i] ? strdup(texts[i]) : NULL;
        if (texts[i] && !*copies[i])
            r = -ENOMEM;
    }
    for (unsigned i = 0; r >= 0 && i < from->image_count; i++)
        r = guest_disk_add_image(to, from->images[i].name, from->images[i].fd);
    if (r < 0)
        guest_disk_free(to);
    return r;
}

static int find_name(const char *const *names, unsigned first, unsigned count, const char *text)
{
    for (unsigned i = first; i < count; i++)
        if (!strcmp(names[i], text))
            return (int)i;
    return -EINVAL;
}

static int set_format(struct guest_disk *disk, const char *text, struct err *err)
{
    int r = find_name(format_names, GUEST_DISK_RAW, GUEST_DISK_FORMAT_MAX, text);
    if (r < 0)
        return err_set(err, r, "disk format '%.64s' is unknown; there are raw and qcow2", text);
    disk->format = (enum guest_disk_format)r;
    return 0;
}

static int set_cache(struct guest_disk *disk, const char *text, struct err *err)
{
    int r = find_name(cache_names, 0, GUEST_DISK_CACHE_MAX, text);
    if (r < 0)
        return err_set(err, r,
                       "disk cache '%.64s' is unknown; there are writeback, none and unsafe", text);
    disk->cache = (enum guest_disk_cache)r;
    return 0;
}

static int set_on_full(struct guest_disk *disk, const char *text, struct err *err)
{
    int r = find_name(on_full_names, 0, GUEST_DISK_ON_FULL_MAX, text);
    if (r < 0)
        return err_set(err, r, "on_full of a disk is pause or error, not '%.64s'", text);
    disk->on_full = (enum guest_disk_on_full)r;
    return 0;
}

static int set_serial(struct guest_disk *disk, const char *text, struct err *err)
{
    if (strlen(text) > GUEST_SERIAL_MAX)
        return err_set(err, -EINVAL, "disk serial '%.64s' is longer than %d bytes", text,
                       GUEST_SERIAL_MAX);
    char *copy = strdup(text);
    if (!copy)
        return err_set(err, -ENOMEM, "no memory");
    free(disk->serial);
    disk->serial = copy;
    return 0;
}

static int set_file(char **field, const char *text, struct err *err)
{
    if (!*text)
        return err_set(err, -EINVAL, "a disk's key_file and cacert are paths");
    char *copy = strdup(text);
    if (!copy)
        return err_set(err, -ENOMEM, "no memory");
    free(*field);
    *field = copy;
    return 0;
}

static int set_key_file(struct guest_disk *disk, const char *text, struct err *err)
{
    if (!strcmp(text, "-"))
        return err_set(err, -EINVAL,
                       "standard input is the guest's; key_file takes a path, like /dev/fd/9");
    return set_file(&disk->key_file, text, err);
}

static int set_cacert(struct guest_disk *disk, const char *text, struct err *err)
{
    return set_file(&disk->cacert, text, err);
}

static int set_count(uint64_t *field, const char *text, struct err *err)
{
    size_t length = strlen(text);
    if (length == 0 || length > 9 || strspn(text, "0123456789") != length || *text == '0')
        return err_set(err, -EINVAL, "'%.64s' is no number of requests a second", text);
    *field = strtoull(text, NULL, 10);
    return 0;
}

static const struct word {
    const char *name;
    int (*set)(struct guest_disk *disk, const char *text, struct err *err); /* or a limit: */
    size_t count, bytes; /* offset + 1 of what it sets */
} words[] = {
    {"format", set_format, 0, 0},
    {"cache", set_cache, 0, 0},
    {"serial", set_serial, 0, 0},
    {"on_full", set_on_full, 0, 0},
    {"key_file", set_key_file, 0, 0},
    {"cacert", set_cacert, 0, 0},
    {"iops", NULL, offsetof(struct guest_disk, iops) + 1, 0},
    {"iops_burst", NULL, offsetof(struct guest_disk, iops_burst) + 1, 0},
    {"bps", NULL, 0, offsetof(struct guest_disk, bps) + 1},
    {"bps_burst", NULL, 0, offsetof(struct guest_disk, bps_burst) + 1},
};

int guest_disk_set(struct guest_disk *disk, const char *name, const char *value, struct err *err)
{
    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        const struct word *word = &words[i];
        if (strcmp(word->name, name) != 0)
            continue;
        if (word->set)
            return word->set(disk, value, err);
        if (word->count)
            return set_count((uint64_t *)(void *)((char *)disk + word->count - 1), value, err);
        return guest_parse_size(value, (uint64_t *)(void *)((char *)disk + word->bytes - 1), err);
    }
    return err_set(err, -EINVAL,
                   "'%.64s' is no property of a disk; there are ro, format, cache, serial, "
                   "on_full, iops, bps, iops_burst, bps_burst, key_file, cacert",
                   name);
}

static int parse(struct guest_disk *disk, char *text, struct err *err)
{
    char *rest = text, *path = guest_text_word(&rest);
    if (!*path)
        return err_set(err, -EINVAL, "a disk wants a path, as in disk.img,ro");
    disk->path = strdup(path);
    if (!disk->path)
        return err_set(err, -ENOMEM, "no memory");
    int r = 0;
    while (r >= 0 && rest) {
        char *word = guest_text_word(&rest), *equals = strchr(word, '=');
        if (equals)
            *equals = '\0';
        if (!equals && !strcmp(word, "ro"))
            disk->read_only = true;
        else
            r = guest_disk_set(disk, word, equals ? equals + 1 : "", err);
    }
    return r;
}

int guest_disk_check(const struct guest_disk *disk, struct err *err)
{
    if ((disk->iops_burst && !disk->iops) || (disk->bps_burst && !disk->bps))
        return err_set(err, -EINVAL, "disk '%.256s': a burst without a limit",
                       disk->path ? disk->path : "");
    return 0;
}

int guest_conf_add_disk(struct guest_conf *conf, const char *text, struct err *err)
{
    struct guest_disk disk = {0};
    if (conf->disk_count == GUEST_DISKS_MAX)
        return err_set(err, -E2BIG, "a guest has at most %d disks", GUEST_DISKS_MAX);
    _cleanup_free_ char *copy = strdup(text);
    int r = copy ? parse(&disk, copy, err) : err_set(err, -ENOMEM, "no memory");
    if (r >= 0)
        r = guest_disk_check(&disk, err);
    if (r < 0) {
        guest_disk_free(&disk);
        return r;
    }
    conf->disks[conf->disk_count++] = disk;
    return 0;
}
