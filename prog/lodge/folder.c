#include "folder.h"

#include "base/bytes.h"
#include "base/own.h"
#include "disk/http.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <string.h>
#include <sys/stat.h>

enum { FORMAT = 1, BOOT_ID_MAX = 64, TEXT_MAX = 2 << 20 };

static const char *const names[CONTROL_FDS_MAX] = {"state", "memory"};

void snapshot_about_free(struct snapshot_about *about)
{
    free(about->parent);
    free(about->definition);
    for (unsigned i = 0; i < GUEST_DISKS_MAX; i++)
        free(about->temporary[i].backing);
    *about = (struct snapshot_about){0};
}

static void boot_id(char ret_id[BOOT_ID_MAX])
{
    _cleanup_fd_ int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, ret_id, BOOT_ID_MAX - 1);
    ret_id[max(n, (ssize_t)0)] = '\0';
    ret_id[strcspn(ret_id, "\n")] = '\0';
}

static void id_text(const uint8_t id[CONTROL_ID_SIZE], char ret_text[2 * CONTROL_ID_SIZE + 1])
{
    for (unsigned i = 0; i < CONTROL_ID_SIZE; i++)
        snprintf(ret_text + 2 * i, 3, "%02x", id[i]);
}

static bool id_parse(const char *text, uint8_t ret_id[CONTROL_ID_SIZE])
{
    if (strlen(text) != 2 * CONTROL_ID_SIZE ||
        strspn(text, "0123456789abcdef") != 2 * CONTROL_ID_SIZE)
        return false;
    for (unsigned i = 0; i < CONTROL_ID_SIZE; i++) {
        char byte[3] = {text[2 * i], text[2 * i + 1], '\0'};
        ret_id[i] = (uint8_t)strtoul(byte, NULL, 16);
    }
    return true;
}

char *folder_describe(const struct guest_conf *conf, const struct guest_conf *open, bool agent)
{
    _cleanup_free_ char *definition = guest_conf_write_json(conf);
    json_t *guest = definition ? json_loads(definition, 0, NULL) : NULL;
    json_t *disks = json_array();
    for (unsigned i = 0; disks && i < open->disk_count; i++) {
        const struct guest_disk *disk = &open->disks[i];
        const char *backing = disk->image_count > 1 ? disk->images[1].name : NULL;
        json_array_append_new(disks, disk->temporary ? json_pack("{s:s?}", "backing", backing)
                                                     : json_null());
    }
    json_t *root = json_pack("{s:b, s:o, s:o}", "agent", agent, "temporary", disks, "guest", guest);
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    return text;
}

static int read_temporary(const json_t *disks, struct snapshot_about *about)
{
    if (json_array_size(disks) > GUEST_DISKS_MAX)
        return -EBADMSG;
    for (size_t i = 0; i < json_array_size(disks); i++) {
        const json_t *disk = json_array_get(disks, i);
        const char *backing = json_string_value(json_object_get(disk, "backing"));
        about->temporary[i].is = json_is_object(disk);
        about->temporary[i].backing = backing ? strdup(backing) : NULL;
        if (backing && !about->temporary[i].backing)
            return -ENOMEM;
    }
    return 0;
}

int folder_described(const char *text, struct snapshot_about *ret_about, struct err *err)
{
    struct snapshot_about about = {0};
    json_t *definition, *disks, *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    int agent = 0, r = -EBADMSG;
    if (root && json_unpack(root, "{s:b, s:o, s:o}", "agent", &agent, "temporary", &disks, "guest",
                            &definition) >= 0) {
        about.agent = agent != 0;
        about.definition = json_dumps(definition, JSON_COMPACT);
        r = about.definition ? read_temporary(disks, &about) : -ENOMEM;
    }
    json_decref(root);
    if (r >= 0) {
        *ret_about = about;
        return 0;
    }
    snapshot_about_free(&about);
    return err_set(err, r, r == -ENOMEM ? "no memory" : "what the guest says of itself is damaged");
}

int folder_make(const char *path, int *ret_folder, int ret_files[CONTROL_FDS_MAX], struct err *err)
{
    if (mkdir(path, 0700) < 0)
        return err_errno(err, errno, "folder '%s'", path);
    _cleanup_fd_ int folder = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int r = folder < 0 ? -errno : 0;
    for (unsigned i = 0; r >= 0 && i < CONTROL_FDS_MAX; i++) {
        ret_files[i] = openat(folder, names[i], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        r = ret_files[i] < 0 ? -errno : 0;
    }
    if (r < 0) {
        folder_remove(path, folder);
        return err_errno(err, -r, "folder '%s'", path);
    }
    *ret_folder = take_fd(&folder);
    return 0;
}

static const char *const disk_kinds[] = {"img", "qcow2", "luks"};

int folder_make_disk(int folder, unsigned index, const char *kind, char **ret_name, struct err *err)
{
    _cleanup_free_ char *name = NULL;
    if (asprintf(&name, "disk%u.%s", index, kind) < 0) {
        name = NULL;
        return err_set(err, -ENOMEM, "no memory");
    }
    int fd = openat(folder, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, errno, "%s", name);
    *ret_name = take_ptr(name);
    return fd;
}

static void remove_disks(int folder)
{
    for (unsigned i = 0; i < GUEST_DISKS_MAX; i++)
        for (size_t kind = 0; kind < ARRAY_LEN(disk_kinds); kind++) {
            char name[32];
            snprintf(name, sizeof name, "disk%u.%s", i, disk_kinds[kind]);
            unlinkat(folder, name, 0);
        }
}

void folder_remove(const char *path, int folder)
{
    if (folder >= 0)
        remove_disks(folder);
    for (unsigned i = 0; folder >= 0 && i < CONTROL_FDS_MAX; i++)
        unlinkat(folder, names[i], 0);
    unlinkat(folder, "guest.json.new", 0);
    unlinkat(folder, "guest.json", 0);
    rmdir(path);
}

static json_t *about_json(const struct snapshot_about *about, struct err *err)
{
    char id[2 * CONTROL_ID_SIZE + 1], boot[BOOT_ID_MAX];
    json_error_t place;
    json_t *definition = json_loads(about->definition, 0, &place);
    if (!definition) {
        err_set(err, -EINVAL, "the guest's definition: %s", place.text);
        return NULL;
    }
    id_text(about->id, id);
    boot_id(boot);
    json_t *root =
        json_pack("{s:i, s:s, s:s, s:s, s:b, s:o}", "format", FORMAT, "lodge", LODGE_VERSION, "id",
                  id, "boot", boot, "agent", about->agent, "guest", definition);
    if (root && about->parent &&
        json_object_set_new(root, "parent", json_string(about->parent)) < 0) {
        json_decref(root);
        root = NULL;
    }
    if (!root)
        err_set(err, -ENOMEM, "no memory, or a name that is no UTF-8");
    return root;
}

static int write_about(int folder, const struct snapshot_about *about, struct err *err)
{
    json_t *root = about_json(about, err);
    if (!root)
        return -EINVAL;
    _cleanup_free_ char *text = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    _cleanup_fd_ int fd =
        openat(folder, "guest.json.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    size_t length = text ? strlen(text) : 0;
    if (!text)
        return err_set(err, -ENOMEM, "no memory");
    if (fd < 0)
        return err_errno(err, errno, "guest.json");
    ssize_t n = write(fd, text, length);
    if (n >= 0 && (size_t)n < length)
        return err_errno(err, ENOSPC, "guest.json");
    if (n < 0 || fsync(fd) < 0 || renameat(folder, "guest.json.new", folder, "guest.json") < 0 ||
        fsync(folder) < 0)
        return err_errno(err, errno, "guest.json");
    return 0;
}

int folder_finish(const char *path, int folder, const int files[CONTROL_FDS_MAX],
                  const struct snapshot_about *about, struct err *err)
{
    for (unsigned i = 0; i < CONTROL_FDS_MAX; i++)
        if (fsync(files[i]) < 0)
            return err_errno(err, errno, "snapshot '%s': %s", path, names[i]);
    int r = write_about(folder, about, err);
    return r < 0 ? err_prefix(err, r, "snapshot '%s'", path) : 0;
}

/* ---- reading ---- */

static int read_text(const char *path, char **ret_text, struct err *err)
{
    _cleanup_free_ char *file = NULL;
    struct stat status;
    if (asprintf(&file, "%s/guest.json", path) < 0)
        return err_set(err, -ENOMEM, "no memory");
    _cleanup_fd_ int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return err_set(err, -ENOENT, "'%s' is no snapshot: it has no guest.json", path);
    if (fd < 0 || fstat(fd, &status) < 0)
        return err_errno(err, errno, "'%s'", file);
    size_t size = (size_t)min(status.st_size, (off_t)TEXT_MAX), have = 0;
    _cleanup_free_ char *text = calloc(1, size + 1);
    for (ssize_t n = 1; text && have < size && n > 0; have += n > 0 ? (size_t)n : 0)
        n = read(fd, text + have, size - have);
    if (!text || have < size)
        return err_set(err, -EIO, "'%s' cannot be read", file);
    *ret_text = take_ptr(text);
    return 0;
}

static int parse_about(const json_t *root, struct snapshot_about *about, struct err *err)
{
    const char *id, *boot, *parent = json_string_value(json_object_get(root, "parent"));
    char now[BOOT_ID_MAX];
    json_t *definition;
    int format = 0, agent = 0;
    if (json_unpack((json_t *)root, "{s:i}", "format", &format) < 0 || format < 1)
        return err_set(err, -EBADMSG, "its guest.json is none");
    if (format > FORMAT)
        return err_set(err, -ENOTSUP,
                       "it was made by a newer version: its format is %d, this one reads %d",
                       format, FORMAT);
    if (json_unpack((json_t *)root, "{s:s, s:s, s:b, s:o}", "id", &id, "boot", &boot, "agent",
                    &agent, "guest", &definition) < 0 ||
        !id_parse(id, about->id) || !json_is_object(definition))
        return err_set(err, -EBADMSG, "its guest.json lacks something");
    boot_id(now);
    about->same_host = *boot && !strcmp(boot, now);
    about->agent = agent != 0;
    about->definition = json_dumps(definition, JSON_COMPACT);
    about->parent = parent ? strdup(parent) : NULL;
    return about->definition && !about->parent == !parent ? 0 : err_set(err, -ENOMEM, "no memory");
}

int folder_read(const char *path, struct snapshot_about *ret_about, struct err *err)
{
    struct snapshot_about about = {0};
    _cleanup_free_ char *text = NULL;
    json_error_t place;
    int r = read_text(path, &text, err);
    if (r < 0)
        return r;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &place);
    r = root ? parse_about(root, &about, err)
             : err_set(err, -EBADMSG, "its guest.json is damaged: %s", place.text);
    json_decref(root);
    if (r < 0) {
        snapshot_about_free(&about);
        return err_prefix(err, r, "snapshot '%s'", path);
    }
    *ret_about = about;
    return 0;
}

int folder_find_disks(const char *path, struct guest_conf *conf, struct err *err)
{
    for (unsigned i = 0; i < conf->disk_count; i++) {
        char *name = conf->disks[i].path, *whole;
        if (*name == '/' || http_is_url(name))
            continue;
        if (asprintf(&whole, "%s/%s", path, name) < 0)
            return err_set(err, -ENOMEM, "no memory");
        free(name);
        conf->disks[i].path = whole;
    }
    return 0;
}

static int open_layer(const char *path, struct guest_restore *restore, struct err *err)
{
    int files[CONTROL_FDS_MAX] = {-1, -1};
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < CONTROL_FDS_MAX; i++) {
        _cleanup_free_ char *file = NULL;
        if (asprintf(&file, "%s/%s", path, names[i]) < 0)
            return err_set(err, -ENOMEM, "no memory");
        files[i] = open(file, O_RDONLY | O_CLOEXEC);
        if (files[i] < 0)
            r = err_errno(err, errno, "snapshot '%s': %s", path, names[i]);
    }
    restore->layers[restore->count].state_fd = files[0];
    restore->layers[restore->count].memory_fd = files[1];
    restore->count++;
    return r;
}

int folder_open_chain(const char *path, struct guest_restore *restore, struct err *err)
{
    _cleanup_free_ char *at = strdup(path);
    int r = at ? 0 : err_set(err, -ENOMEM, "no memory");
    while (r >= 0) {
        struct snapshot_about about;
        if (restore->count == GUEST_LAYERS_MAX)
            return err_set(err, -ELOOP, "snapshot '%s': more than %d stand on each other", path,
                           GUEST_LAYERS_MAX);
        r = folder_read(at, &about, err);
        if (r < 0)
            return r;
        r = open_layer(at, restore, err);
        _cleanup_free_ char *parent = take_ptr(about.parent);
        snapshot_about_free(&about);
        if (r < 0 || !parent)
            return r;
        _cleanup_free_ char *here = take_ptr(at);
        if (*parent == '/')
            at = take_ptr(parent);
        else if (asprintf(&at, "%s/%s", here, parent) < 0)
            return err_set(err, -ENOMEM, "no memory");
    }
    return r;
}
