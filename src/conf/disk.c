/*
 * A guest's disks as a line of words: "PATH[,ro][,cache=KIND][,serial=TEXT]".
 */
#include "base/own.h"
#include "conf/guest.h"
#include "conf/private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *const cache_names[GUEST_CACHE_MAX] = {
    [GUEST_CACHE_WRITEBACK] = "writeback",
    [GUEST_CACHE_UNSAFE] = "unsafe",
};

const char *guest_cache_name(enum guest_cache cache)
{
    return cache_names[cache];
}

int guest_disk_set_cache(struct guest_disk *disk, const char *text, struct err *err)
{
    for (enum guest_cache cache = 0; cache < GUEST_CACHE_MAX; cache++)
        if (!strcmp(text, cache_names[cache])) {
            disk->cache = cache;
            return 0;
        }
    return err_set(err, -EINVAL, "a disk's cache is writeback or unsafe, not '%.64s'", text);
}

int guest_disk_set_serial(struct guest_disk *disk, const char *text, struct err *err)
{
    size_t length = strlen(text);
    if (length == 0 || length > GUEST_SERIAL_MAX)
        return err_set(err, -EINVAL, "a disk's serial has 1 to %d bytes, unlike '%.64s'",
                       GUEST_SERIAL_MAX, text);
    for (size_t i = 0; i < length; i++)
        if (text[i] <= ' ' || text[i] > '~')
            return err_set(err, -EINVAL, "a disk's serial is of printable ASCII without blanks");
    memset(disk->serial, 0, sizeof disk->serial);
    memcpy(disk->serial, text, length);
    return 0;
}

static int set_word(struct guest_disk *disk, const char *word, struct err *err)
{
    if (!strcmp(word, "ro")) {
        disk->read_only = true;
        return 0;
    }
    if (!strncmp(word, "cache=", 6))
        return guest_disk_set_cache(disk, word + 6, err);
    if (!strncmp(word, "serial=", 7))
        return guest_disk_set_serial(disk, word + 7, err);
    return err_set(err, -EINVAL,
                   "'%.64s' says nothing of a disk; there are ro, cache=KIND and serial=TEXT",
                   word);
}

int guest_conf_add_disk(struct guest_conf *conf, const char *text, struct err *err)
{
    if (conf->disk_count == GUEST_DISKS_MAX)
        return err_set(err, -E2BIG, "a guest has at most %d disks", GUEST_DISKS_MAX);
    struct guest_disk disk = {.fd = -1};
    _cleanup_free_ char *words = strdup(text);
    if (!words)
        return err_set(err, -ENOMEM, "no memory");
    char *rest = words, *path = strsep(&rest, ",");
    if (!*path)
        return err_set(err, -EINVAL, "a disk begins with the path of its image");
    while (rest) {
        int r = set_word(&disk, strsep(&rest, ","), err);
        if (r < 0)
            return r;
    }
    disk.path = strdup(path);
    if (!disk.path)
        return err_set(err, -ENOMEM, "no memory");
    conf->disks[conf->disk_count++] = disk;
    return 0;
}

void guest_disks_free(struct guest_conf *conf)
{
    for (unsigned i = 0; i < GUEST_DISKS_MAX; i++) {
        free(conf->disks[i].path);
        conf->disks[i] = (struct guest_disk){.fd = -1};
    }
    conf->disk_count = 0;
}
