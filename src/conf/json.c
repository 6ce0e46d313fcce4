/*
 * The definition as JSON: what lodge hands to lodge-vmm, and what people may write instead of
 * vm.conf. The fields are those of struct guest_conf; one that is absent keeps its value, one that
 * is unknown is an error. Jansson finds syntax errors with their place but does not say where a
 * value stood once it is parsed, so place_of_key() looks the key up in the text again.
 */
#include "base/own.h"
#include "conf/guest.h"
#include "conf/json_disk.h"
#include "conf/json_nic.h"
#include "conf/json_share.h"
#include "conf/json_vsock.h"
#include "conf/private.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include <jansson.h>

static void own_json(json_t **json)
{
    json_decref(*json);
}
#define _cleanup_json_ _cleanup_(own_json)

enum kind {
    KIND_STRING,
    KIND_ENGINE,
    KIND_CPU,
    KIND_TRANSLATE,
    KIND_CODE_CACHE,
    KIND_MEMORY,
    KIND_CPUS,
    KIND_FD,
    KIND_CONSOLES,
    KIND_DISKS,
    KIND_RESTORE,
    KIND_VSOCK,
    KIND_SHARES,
    KIND_ON_RESET,
    KIND_WATCHDOG,
    KIND_BALLOON,
    KIND_LOCKSTEP,
    KIND_NICS
};

static const struct field {
    const char *name;
    enum kind kind;
    size_t offset;
} fields[] = {
    {"name", KIND_STRING, offsetof(struct guest_conf, name)},
    {"engine", KIND_ENGINE, 0},
    {"cpu", KIND_CPU, 0},
    {"translate", KIND_TRANSLATE, 0},
    {"code_cache", KIND_CODE_CACHE, 0},
    {"memory", KIND_MEMORY, 0},
    {"cpus", KIND_CPUS, 0},
    {"kernel", KIND_STRING, offsetof(struct guest_conf, kernel)},
    {"initrd", KIND_STRING, offsetof(struct guest_conf, initrd)},
    {"append", KIND_STRING, offsetof(struct guest_conf, append)},
    {"firmware", KIND_STRING, offsetof(struct guest_conf, firmware)},
    {"nvram", KIND_STRING, offsetof(struct guest_conf, nvram)},
    {"kernel_fd", KIND_FD, offsetof(struct guest_conf, kernel_fd)},
    {"initrd_fd", KIND_FD, offsetof(struct guest_conf, initrd_fd)},
    {"firmware_fd", KIND_FD, offsetof(struct guest_conf, firmware_fd)},
    {"nvram_fd", KIND_FD, offsetof(struct guest_conf, nvram_fd)},
    {"kvm_fd", KIND_FD, offsetof(struct guest_conf, kvm_fd)},
    {"serial_in_fd", KIND_FD, offsetof(struct guest_conf, serial_in_fd)},
    {"serial_out_fd", KIND_FD, offsetof(struct guest_conf, serial_out_fd)},
    {"control_fd", KIND_FD, offsetof(struct guest_conf, control_fd)},
    {"consoles", KIND_CONSOLES, 0},
    {"disks", KIND_DISKS, 0},
    {"listen_fd", KIND_FD, offsetof(struct guest_conf, listen_fd)},
    {"restore", KIND_RESTORE, 0},
    {"vsock", KIND_VSOCK, 0},
    {"shares", KIND_SHARES, 0},
    {"on_reset", KIND_ON_RESET, 0},
    {"watchdog", KIND_WATCHDOG, 0},
    {"balloon", KIND_BALLOON, 0},
    {"lockstep", KIND_LOCKSTEP, 0},
    {"nics", KIND_NICS, 0},
};

struct scan {
    struct text_place place;
    unsigned depth;
    bool in_string, escaped;
};

static void scan_step(struct scan *scan, char c)
{
    scan->place.column++;
    if (c == '\n')
        scan->place = (struct text_place){scan->place.line + 1, 1};
    if (scan->in_string) {
        scan->in_string = scan->escaped || c != '"';
        scan->escaped = !scan->escaped && c == '\\';
    } else if (c == '"') {
        scan->in_string = true;
    } else if (c == '{' || c == '[') {
        scan->depth++;
    } else if ((c == '}' || c == ']') && scan->depth) {
        scan->depth--;
    }
}

/* The place of `key` among the outermost object's keys; the text's start where it is written with
 * escapes. The text is known to be well-formed. */
static struct text_place place_of_key(const char *text, size_t length, const char *key)
{
    size_t key_length = strlen(key);
    struct scan scan = {.place = {1, 1}};
    for (size_t i = 0; i < length; i++) {
        if (!scan.in_string && text[i] == '"' && scan.depth == 1 && length - i > key_length + 2 &&
            !memcmp(text + i + 1, key, key_length) && text[i + 1 + key_length] == '"') {
            size_t after = i + 2 + key_length;
            while (after < length && strchr(" \t\r\n", text[after]))
                after++;
            if (after < length && text[after] == ':')
                return scan.place;
        }
        scan_step(&scan, text[i]);
    }
    return (struct text_place){1, 1};
}

static int get_fd(const json_t *value, int *ret_fd, struct err *why)
{
    if (!json_is_integer(value) || json_integer_value(value) < -1 ||
        json_integer_value(value) > INT_MAX)
        return err_set(why, -EINVAL, "must be a descriptor's number");
    *ret_fd = (int)json_integer_value(value);
    return 0;
}

static int get_string(const json_t *value, char **field, struct err *why)
{
    if (!json_is_string(value))
        return err_set(why, -EINVAL, "must be a string");
    char *copy = strdup(json_string_value(value));
    if (!copy)
        return err_set(why, -ENOMEM, "no memory");
    free(*field);
    *field = copy;
    return 0;
}

static int get_cpu(const json_t *value, struct guest_conf *conf, struct err *why)
{
    if (!json_is_string(value))
        return err_set(why, -EINVAL, "must be \"auto\", \"portable\" or \"host\"");
    return guest_conf_set_cpu(conf, json_string_value(value), why);
}

static int get_engine(const json_t *value, struct guest_conf *conf, struct err *why)
{
    if (!json_is_string(value))
        return err_set(why, -EINVAL, "must be \"auto\", \"kvm\" or \"soft\"");
    return guest_conf_set_engine(conf, json_string_value(value), why);
}

static int get_translate(const json_t *value, struct guest_conf *conf, struct err *why)
{
    if (!json_is_string(value))
        return err_set(why, -EINVAL, "must be \"hot\", \"never\" or \"always\"");
    return guest_conf_set_translate(conf, json_string_value(value), why);
}

static int get_bytes(const json_t *value, int (*check)(uint64_t, struct err *), uint64_t *field,
                     struct err *why)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return err_set(why, -EINVAL, "must be a number of bytes or a string like \"512M\"");
    int r = check((uint64_t)json_integer_value(value), why);
    if (r >= 0)
        *field = (uint64_t)json_integer_value(value);
    return r;
}

static int get_memory(const json_t *value, struct guest_conf *conf, struct err *why)
{
    if (json_is_string(value))
        return guest_conf_set_memory(conf, json_string_value(value), why);
    return get_bytes(value, guest_check_memory, &conf->memory, why);
}

static int get_code_cache(const json_t *value, struct guest_conf *conf, struct err *why)
{
    if (json_is_string(value))
        return guest_conf_set_code_cache(conf, json_string_value(value), why);
    return get_bytes(value, guest_check_code_cache, &conf->code_cache, why);
}

static int get_cpus(const json_t *value, struct guest_conf *conf, struct err *why)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return err_set(why, -EINVAL, "must be a number from 1 to %d", GUEST_CPUS_MAX);
    int r = guest_check_cpus((uint64_t)json_integer_value(value), why);
    if (r >= 0)
        conf->cpus = (unsigned)json_integer_value(value);
    return r;
}

static int get_console(const json_t *value, struct guest_console *console, struct err *why)
{
    const char *key;
    json_t *field;
    if (!json_is_object(value))
        return err_set(why, -EINVAL, "must hold objects with a name and an fd");
    json_object_foreach((json_t *)value, key, field)
    {
        int r;
        if (!strcmp(key, "fd"))
            r = get_fd(field, &console->fd, why);
        else if (!strcmp(key, "name"))
            r = get_string(field, &console->name, why);
        else
            r = err_set(why, -EINVAL, "'%.64s' is no field of a console", key);
        if (r < 0)
            return r;
    }
    return 0;
}

static int get_consoles(const json_t *value, struct guest_conf *conf, struct err *why)
{
    if (!json_is_array(value) || json_array_size(value) > GUEST_CONSOLES_MAX)
        return err_set(why, -EINVAL, "must be an array of at most %d consoles", GUEST_CONSOLES_MAX);
    for (size_t i = 0; i < GUEST_CONSOLES_MAX; i++) {
        free(conf->consoles[i].name);
        conf->consoles[i] = (struct guest_console){.fd = -1};
    }
    conf->console_count = 0;
    for (size_t i = 0; i < json_array_size(value); i++) {
        int r = get_console(json_array_get(value, i), &conf->consoles[i], why);
        if (r < 0)
            return r;
        conf->console_count++;
    }
    return 0;
}

static const char *const on_reset_names[GUEST_ON_RESET_MAX] = {
    [GUEST_ON_RESET_REBOOT] = "reboot",
    [GUEST_ON_RESET_EXIT] = "exit",
};

static int get_on_reset(const json_t *value, struct guest_conf *conf, struct err *why)
{
    for (unsigned i = 0; json_is_string(value) && i < GUEST_ON_RESET_MAX; i++)
        if (!strcmp(json_string_value(value), on_reset_names[i])) {
            conf->on_reset = (enum guest_on_reset)i;
            return 0;
        }
    return err_set(why, -EINVAL, "must be \"reboot\" or \"exit\"");
}

static int get_watchdog(const json_t *value, struct guest_conf *conf, struct err *why)
{
    if (!json_is_string(value))
        return err_set(why, -EINVAL, "must be \"off\", \"event\", \"reset\" or \"poweroff\"");
    return guest_conf_set_watchdog(conf, json_string_value(value), why);
}

static int get_balloon(const json_t *value, struct guest_conf *conf, struct err *why)
{
    if (!json_is_boolean(value))
        return err_set(why, -EINVAL, "must be true or false");
    conf->balloon = json_is_true(value);
    return 0;
}

static const char *const lockstep_names[GUEST_LOCKSTEP_MAX] = {
    [GUEST_LOCKSTEP_LEAD] = "lead",
    [GUEST_LOCKSTEP_FOLLOW] = "follow",
};

static int get_role(const json_t *value, enum guest_lockstep_role *role, struct err *why)
{
    for (unsigned i = GUEST_LOCKSTEP_LEAD; json_is_string(value) && i < GUEST_LOCKSTEP_MAX; i++)
        if (!strcmp(json_string_value(value), lockstep_names[i])) {
            *role = (enum guest_lockstep_role)i;
            return 0;
        }
    return err_set(why, -EINVAL, "its role must be \"lead\" or \"follow\"");
}

static bool is_tlb_size(const json_t *value)
{
    json_int_t size = json_is_integer(value) ? json_integer_value(value) : -1;
    return size >= 0 && size <= 4096 && (size & (size - 1)) == 0;
}

static int get_lockstep(const json_t *value, struct guest_conf *conf, struct err *why)
{
    struct guest_lockstep lockstep = {.fd = -1};
    const char *key;
    json_t *field;
    if (!json_is_object(value))
        return err_set(why, -EINVAL, "must be an object with a role and an fd");
    json_object_foreach((json_t *)value, key, field)
    {
        int r = 0;
        if (!strcmp(key, "role"))
            r = get_role(field, &lockstep.role, why);
        else if (!strcmp(key, "fd"))
            r = get_fd(field, &lockstep.fd, why);
        else if (!strcmp(key, "instructions") && json_is_integer(field) &&
                 json_integer_value(field) >= 0)
            lockstep.instructions = (uint64_t)json_integer_value(field);
        else if (!strcmp(key, "tlb_entries") && is_tlb_size(field))
            lockstep.tlb_entries = (unsigned)json_integer_value(field);
        else
            r = err_set(why, -EINVAL, "'%.64s' is no field of it, or no count", key);
        if (r < 0)
            return r;
    }
    if (lockstep.role == GUEST_LOCKSTEP_NONE || lockstep.fd < 0)
        return err_set(why, -EINVAL, "must have a role and an fd");
    conf->lockstep = lockstep;
    return 0;
}

static int get_field(const struct field *field, const json_t *value, struct guest_conf *conf,
                     struct err *why)
{
    void *at = (char *)conf + field->offset;
    switch (field->kind) {
    case KIND_STRING: return get_string(value, at, why);
    case KIND_ENGINE: return get_engine(value, conf, why);
    case KIND_CPU: return get_cpu(value, conf, why);
    case KIND_TRANSLATE: return get_translate(value, conf, why);
    case KIND_CODE_CACHE: return get_code_cache(value, conf, why);
    case KIND_MEMORY: return get_memory(value, conf, why);
    case KIND_CPUS: return get_cpus(value, conf, why);
    case KIND_FD: return get_fd(value, at, why);
    case KIND_CONSOLES: return get_consoles(value, conf, why);
    case KIND_DISKS: return json_get_disks(value, conf, why);
    case KIND_RESTORE: return json_get_restore(value, conf, why);
    case KIND_VSOCK: return json_get_vsock(value, &conf->vsock, why);
    case KIND_SHARES: return json_get_shares(value, conf, why);
    case KIND_ON_RESET: return get_on_reset(value, conf, why);
    case KIND_WATCHDOG: return get_watchdog(value, conf, why);
    case KIND_BALLOON: return get_balloon(value, conf, why);
    case KIND_LOCKSTEP: return get_lockstep(value, conf, why);
    case KIND_NICS: return json_nics_get(value, conf, why);
    }
    return -EINVAL;
}

static const struct field *find_field(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(fields); i++)
        if (!strcmp(fields[i].name, name))
            return &fields[i];
    return NULL;
}

static int read_object(struct guest_conf *conf, json_t *root, const char *text, size_t length,
                       const char *origin, struct err *err)
{
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value)
    {
        const struct field *field = find_field(key);
        struct text_place place = place_of_key(text, length, key);
        if (!field)
            return guest_text_error(err, origin, place, "unknown field '%.64s'", key);
        struct err why = {0};
        if (get_field(field, value, conf, &why) < 0)
            return guest_text_error(err, origin, place, "%s: %s", key, why.text);
    }
    return 0;
}

int guest_conf_read_json(struct guest_conf *conf, const char *text, size_t length,
                         const char *origin, struct err *err)
{
    int r = guest_text_check(text, length, origin, err);
    if (r < 0)
        return r;
    json_error_t where;
    _cleanup_json_ json_t *root = json_loadb(text, length, JSON_REJECT_DUPLICATES, &where);
    if (!root)
        return guest_text_error(
            err, origin,
            (struct text_place){(unsigned)max(where.line, 1), (unsigned)max(where.column, 1)}, "%s",
            where.text);
    if (!json_is_object(root))
        return guest_text_error(err, origin, (struct text_place){1, 1},
                                "a definition is one object, { ... }");
    struct guest_conf copy;
    if (guest_conf_copy(&copy, conf) < 0)
        return err_set(err, -ENOMEM, "%s: no memory", origin);
    r = read_object(&copy, root, text, length, origin, err);
    if (r < 0) {
        guest_conf_free(&copy);
        return r;
    }
    guest_conf_free(conf);
    *conf = copy;
    return 0;
}

static int put_string(json_t *root, const char *name, const char *value)
{
    return value ? json_object_set_new(root, name, json_string(value)) : 0;
}

static int put_consoles(json_t *root, const struct guest_conf *conf)
{
    json_t *array = json_array();
    for (unsigned i = 0; i < conf->console_count; i++) {
        json_t *console = json_object();
        int r = put_string(console, "name", conf->consoles[i].name);
        if (r >= 0)
            r = json_object_set_new(console, "fd", json_integer(conf->consoles[i].fd));
        /* The array takes the console over, whatever else happens. */
        if (json_array_append_new(array, console) < 0 || r < 0) {
            json_decref(array);
            return -1;
        }
    }
    return json_object_set_new(root, "consoles", array);
}

static int put_lockstep(json_t *root, const struct guest_lockstep *lockstep)
{
    json_t *object = json_object();
    int r = put_string(object, "role", lockstep_names[lockstep->role]);
    if (r >= 0)
        r = json_object_set_new(object, "fd", json_integer(lockstep->fd));
    if (r >= 0)
        r = json_object_set_new(object, "instructions",
                                json_integer((json_int_t)lockstep->instructions));
    if (r >= 0)
        r = json_object_set_new(object, "tlb_entries", json_integer(lockstep->tlb_entries));
    if (r < 0) {
        json_decref(object);
        return r;
    }
    return json_object_set_new(root, "lockstep", object);
}

static int put_bytes(json_t *root, const char *name, uint64_t bytes)
{
    return json_object_set_new(root, name, json_integer((json_int_t)bytes));
}

static int put_field(json_t *root, const struct field *field, const struct guest_conf *conf)
{
    const void *at = (const char *)conf + field->offset;
    int fd;
    switch (field->kind) {
    case KIND_STRING: return put_string(root, field->name, *(char *const *)at);
    case KIND_ENGINE: return put_string(root, field->name, guest_engine_name(conf->engine));
    case KIND_CPU: return put_string(root, field->name, guest_cpu_name(conf->cpu));
    case KIND_TRANSLATE:
        return put_string(root, field->name, guest_translate_name(conf->translate));
    case KIND_CODE_CACHE:
        return conf->code_cache ? put_bytes(root, field->name, conf->code_cache) : 0;
    case KIND_MEMORY: return put_bytes(root, field->name, conf->memory);
    case KIND_CPUS: return json_object_set_new(root, field->name, json_integer(conf->cpus));
    case KIND_FD:
        fd = *(const int *)at;
        return fd < 0 ? 0 : json_object_set_new(root, field->name, json_integer(fd));
    case KIND_DISKS: return json_put_disks(root, conf);
    case KIND_RESTORE: return json_put_restore(root, conf);
    case KIND_VSOCK: return json_put_vsock(root, &conf->vsock);
    case KIND_SHARES: return json_put_shares(root, conf);
    case KIND_CONSOLES: return conf->console_count ? put_consoles(root, conf) : 0;
    case KIND_LOCKSTEP: return conf->lockstep.role ? put_lockstep(root, &conf->lockstep) : 0;
    case KIND_ON_RESET: return put_string(root, field->name, on_reset_names[conf->on_reset]);
    case KIND_WATCHDOG: return put_string(root, field->name, guest_watchdog_name(conf->watchdog));
    case KIND_BALLOON: return json_object_set_new(root, field->name, json_boolean(conf->balloon));
    case KIND_NICS:
        return conf->nic_count ? json_object_set_new(root, field->name, json_nics_put(conf)) : 0;
    }
    return -1;
}

char *guest_conf_write_json(const struct guest_conf *conf)
{
    _cleanup_json_ json_t *root = json_object();
    for (size_t i = 0; i < ARRAY_LEN(fields); i++)
        if (put_field(root, &fields[i], conf) < 0)
            return NULL;
    return json_dumps(root, JSON_COMPACT);
}
