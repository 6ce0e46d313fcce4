/*
 * vm.conf: the file that people write by hand.
 *
 *     file  = *( blank / comment / entry )
 *     entry = key "=" '"' value '"' [ comment ]
 *
 * One entry a line; `disk` and `share` may stand on several lines, each other key on one; '#'
 * begins a comment; in a value, \" and \\ stand for themselves. The file has no numbers and no
 * sections on purpose: every value is quoted, so nobody has to know which must be.
 */
#include "base/own.h"
#include "conf/guest.h"
#include "conf/private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum key {
    KEY_APPENDED,
    KEY_BALLOON,
    KEY_CODE_CACHE,
    KEY_CPU,
    KEY_DISK,
    KEY_ENGINE,
    KEY_FIRMWARE,
    KEY_INITRD,
    KEY_KERNEL,
    KEY_MEM,
    KEY_NAME,
    KEY_NET,
    KEY_NVRAM,
    KEY_PUBLISH,
    KEY_ROOT,
    KEY_SHARE,
    KEY_TRANSLATE,
    KEY_VCPUS,
    KEY_WATCHDOG,
    KEY_VSOCK,
    KEY_MAX
};

static const char *const key_names[KEY_MAX] = {
    [KEY_APPENDED] = "appended", [KEY_CODE_CACHE] = "code_cache",
    [KEY_DISK] = "disk",         [KEY_ENGINE] = "engine",
    [KEY_INITRD] = "initrd",     [KEY_KERNEL] = "kernel",
    [KEY_MEM] = "mem",           [KEY_NAME] = "name",
    [KEY_NET] = "net",           [KEY_PUBLISH] = "publish",
    [KEY_ROOT] = "root",         [KEY_TRANSLATE] = "translate",
    [KEY_VCPUS] = "vcpus",       [KEY_WATCHDOG] = "watchdog",
    [KEY_BALLOON] = "balloon",   [KEY_VSOCK] = "vsock",
    [KEY_SHARE] = "share",       [KEY_CPU] = "cpu",
    [KEY_FIRMWARE] = "firmware", [KEY_NVRAM] = "nvram",
};

struct reader {
    const char *at, *end;
    struct text_place place;
    const char *origin;
    struct err *err;
    struct guest_conf *conf;
    unsigned seen[KEY_MAX]; /* line of the first, 0 = not yet */
    char *root;
    char *publish; /* for when all networks are known */
    struct text_place publish_place;
};

static bool more(const struct reader *reader)
{
    return reader->at < reader->end;
}

static char next(struct reader *reader)
{
    char c = *reader->at++;
    reader->place.column++;
    if (c == '\n')
        reader->place = (struct text_place){reader->place.line + 1, 1};
    return c;
}

static void skip_blanks(struct reader *reader)
{
    while (more(reader) && (*reader->at == ' ' || *reader->at == '\t' || *reader->at == '\r'))
        next(reader);
}

static void skip_comment(struct reader *reader)
{
    if (more(reader) && *reader->at == '#')
        while (more(reader) && *reader->at != '\n')
            next(reader);
}

static bool key_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
}

static int read_key(struct reader *reader, enum key *ret_key)
{
    struct text_place start = reader->place;
    const char *name = reader->at;
    while (more(reader) && key_letter(*reader->at))
        next(reader);
    int length = (int)(reader->at - name);
    if (length == 0)
        return guest_text_error(reader->err, reader->origin, start,
                                "a key must stand here, as in mem = \"512M\"");
    for (enum key key = 0; key < KEY_MAX; key++) {
        if (strlen(key_names[key]) != (size_t)length ||
            memcmp(key_names[key], name, (size_t)length))
            continue;
        if (reader->seen[key] && key != KEY_DISK && key != KEY_SHARE) /* a guest may have many */
            return guest_text_error(reader->err, reader->origin, start,
                                    "'%s' was set on line %u already", key_names[key],
                                    reader->seen[key]);
        reader->seen[key] = start.line;
        *ret_key = key;
        return 0;
    }
    return guest_text_error(
        reader->err, reader->origin, start,
        "unknown key '%.*s'; the keys are appended, balloon, code_cache, cpu, disk, engine, "
        "firmware, initrd, kernel, mem, name, net, nvram, publish, root, share, translate, vcpus, "
        "vsock, watchdog",
        min(length, 64), name);
}

static int read_equals(struct reader *reader)
{
    skip_blanks(reader);
    if (!more(reader) || *reader->at != '=')
        return guest_text_error(reader->err, reader->origin, reader->place, "'=' is missing");
    next(reader);
    skip_blanks(reader);
    return 0;
}

static int read_value(struct reader *reader, char **ret_value, struct text_place *ret_place)
{
    struct text_place start = reader->place;
    if (!more(reader) || *reader->at != '"')
        return guest_text_error(reader->err, reader->origin, start,
                                "a value in double quotes must stand here");
    next(reader);
    struct text_place inside = reader->place;
    _cleanup_free_ char *value = malloc((size_t)(reader->end - reader->at) + 1);
    if (!value)
        return err_set(reader->err, -ENOMEM, "%s: no memory", reader->origin);
    size_t length = 0;
    for (;;) {
        if (!more(reader) || *reader->at == '\n')
            return guest_text_error(reader->err, reader->origin, start,
                                    "the value's closing quote is missing");
        struct text_place here = reader->place;
        char c = next(reader);
        if (c == '"')
            break;
        if (c == '\\') {
            c = more(reader) ? next(reader) : '\0';
            if (c != '"' && c != '\\')
                return guest_text_error(reader->err, reader->origin, here,
                                        "after a backslash only \\ or \" can stand");
        }
        value[length++] = c;
    }
    value[length] = '\0';
    *ret_value = take_ptr(value);
    *ret_place = inside;
    return 0;
}

static int replace(char **field, char **value)
{
    free(*field);
    *field = take_ptr(*value);
    return 0;
}

/* These may be empty, or have words of their own for what is. */
static bool checks_itself(enum key key)
{
    return key == KEY_APPENDED || key == KEY_CODE_CACHE || key == KEY_DISK || key == KEY_ENGINE ||
           key == KEY_SHARE || key == KEY_MEM || key == KEY_TRANSLATE || key == KEY_VCPUS ||
           key == KEY_VSOCK;
}

static int set(struct reader *reader, enum key key, char **value, struct err *why)
{
    struct guest_conf *conf = reader->conf;
    if (!**value && !checks_itself(key))
        return err_set(why, -EINVAL, "'%s' is empty; leave the line out instead", key_names[key]);
    switch (key) {
    case KEY_APPENDED: return replace(&conf->append, value);
    case KEY_CODE_CACHE: return guest_conf_set_code_cache(conf, *value, why);
    case KEY_CPU: return guest_conf_set_cpu(conf, *value, why);
    case KEY_DISK: return guest_conf_add_disk(conf, *value, why);
    case KEY_SHARE: return guest_conf_add_share(conf, *value, why);
    case KEY_ENGINE: return guest_conf_set_engine(conf, *value, why);
    case KEY_FIRMWARE: return replace(&conf->firmware, value);
    case KEY_NVRAM: return replace(&conf->nvram, value);
    case KEY_INITRD: return replace(&conf->initrd, value);
    case KEY_KERNEL: return replace(&conf->kernel, value);
    case KEY_MEM: return guest_conf_set_memory(conf, *value, why);
    case KEY_NAME: return replace(&conf->name, value);
    case KEY_NET: return guest_conf_set_nets(conf, *value, why);
    case KEY_PUBLISH: return replace(&reader->publish, value);
    case KEY_ROOT:
        if (strpbrk(*value, " \t\"\\"))
            return err_set(why, -EINVAL, "root must be one word, as in \"/dev/sda1\"");
        return replace(&reader->root, value);
    case KEY_TRANSLATE: return guest_conf_set_translate(conf, *value, why);
    case KEY_VCPUS: return guest_conf_set_cpus(conf, *value, why);
    case KEY_WATCHDOG: return guest_conf_set_watchdog(conf, *value, why);
    case KEY_BALLOON: return guest_conf_set_balloon(conf, *value, why);
    case KEY_VSOCK: return guest_conf_set_vsock(conf, *value, why);
    case KEY_MAX: break;
    }
    return -EINVAL;
}

static int read_entry(struct reader *reader)
{
    enum key key = KEY_MAX;
    _cleanup_free_ char *value = NULL;
    struct text_place place = reader->place;
    int r = read_key(reader, &key);
    if (r >= 0)
        r = read_equals(reader);
    if (r >= 0)
        r = read_value(reader, &value, &place);
    if (r < 0)
        return r;
    struct err why = {0};
    if (key == KEY_PUBLISH)
        reader->publish_place = place;
    r = set(reader, key, &value, &why);
    if (r < 0)
        return guest_text_error(reader->err, reader->origin, place, "%s", why.text);
    return 0;
}

static int read_line(struct reader *reader)
{
    skip_blanks(reader);
    if (more(reader) && *reader->at != '#' && *reader->at != '\n') {
        int r = read_entry(reader);
        if (r < 0)
            return r;
        skip_blanks(reader);
    }
    skip_comment(reader);
    if (!more(reader))
        return 0;
    if (*reader->at != '\n')
        return guest_text_error(reader->err, reader->origin, reader->place,
                                "only a comment can follow the value");
    next(reader);
    return 0;
}

static int join_root(struct reader *reader)
{
    if (!reader->root)
        return 0;
    _cleanup_free_ char *word = NULL;
    if (asprintf(&word, "root=%s", reader->root) < 0) {
        word = NULL;
        return err_set(reader->err, -ENOMEM, "%s: no memory", reader->origin);
    }
    return guest_conf_append(reader->conf, word);
}

static int join_publish(struct reader *reader)
{
    struct err why = {0};
    if (!reader->publish || guest_conf_add_forwards(reader->conf, reader->publish, &why) >= 0)
        return 0;
    return guest_text_error(reader->err, reader->origin, reader->publish_place, "%s", why.text);
}

int guest_conf_read_vmconf(struct guest_conf *conf, const char *text, size_t length,
                           const char *origin, struct err *err)
{
    int r = guest_text_check(text, length, origin, err);
    if (r < 0)
        return r;
    struct guest_conf copy;
    if (guest_conf_copy(&copy, conf) < 0)
        return err_set(err, -ENOMEM, "%s: no memory", origin);
    struct reader reader = {
        .at = text,
        .end = text + length,
        .place = {1, 1},
        .origin = origin,
        .err = err,
        .conf = &copy,
    };
    while (r >= 0 && more(&reader))
        r = read_line(&reader);
    if (r >= 0)
        r = join_root(&reader);
    if (r >= 0)
        r = join_publish(&reader);
    free(reader.root);
    free(reader.publish);
    if (r < 0) {
        guest_conf_free(&copy);
        return r;
    }
    guest_conf_free(conf);
    *conf = copy;
    return 0;
}
