#include "image/seed.h"
#include "image/libarchive.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

static const char empty_user_data[] = "#cloud-config\n";

/* "ssh-ed25519 AAAA... comment", with perhaps options before the type; nothing that is no text. */
static bool is_public_key(const char *line)
{
    static const char *const types[] = {"ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"};
    for (const char *at = line; *at; at++)
        if ((unsigned char)*at < ' ' && *at != '\t')
            return false;
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        const char *type = strstr(line, types[i]);
        if (type && (type == line || type[-1] == ' ') && strstr(type, " AAAA"))
            return true;
    }
    return false;
}

static int add_key(struct seed *seed, const char *name, const char *line, struct err *err)
{
    if (!is_public_key(line))
        return err_set(err, -EINVAL,
                       "'%.256s' holds a line that is no public SSH key; those begin like "
                       "ssh-ed25519 AAAA",
                       name);
    if (seed->key_count == SEED_KEYS_MAX)
        return err_set(err, -E2BIG, "more than %d SSH keys", SEED_KEYS_MAX);
    char *copy = strdup(line);
    if (!copy)
        return err_set(err, -ENOMEM, "no memory");
    seed->keys[seed->key_count++] = copy;
    return 0;
}

int seed_add_keys(struct seed *seed, const char *name, const char *text, size_t size,
                  struct err *err)
{
    unsigned before = seed->key_count;
    _cleanup_free_ char *copy = strndup(text, size);
    if (!copy)
        return err_set(err, -ENOMEM, "no memory");
    if (strlen(copy) != size)
        return err_set(err, -EINVAL, "'%.256s' is no text", name);
    if (strstr(copy, "PRIVATE KEY-----"))
        return err_set(err, -EINVAL,
                       "'%.256s' is a private key, which is nobody's but yours; the public one is "
                       "in '%.256s.pub'",
                       name, name);
    int r = 0;
    char *rest = NULL;
    for (char *line = strtok_r(copy, "\r\n", &rest); line && r >= 0;
         line = strtok_r(NULL, "\r\n", &rest)) {
        line += strspn(line, " \t");
        if (*line && *line != '#')
            r = add_key(seed, name, line, err);
    }
    if (r >= 0 && seed->key_count == before)
        r = err_set(err, -EINVAL, "'%.256s' holds no public SSH key", name);
    return r;
}

int seed_check_user_data(const char *name, const char *text, size_t size, struct err *err)
{
    /* cloud-init's "User-data formats"; gzip is recognised by its magic. */
    static const char *const begins[] = {"#cloud-config", "#cloud-boothook", "#!",
                                         "#include",      "#part-handler",   "## template:",
                                         "Content-Type:", "MIME-Version:",   "\x1f\x8b"};
    for (size_t i = 0; i < ARRAY_LEN(begins); i++) {
        size_t length = strlen(begins[i]);
        if (size >= length && !memcmp(text, begins[i], length))
            return 0;
    }
    return err_set(err, -EINVAL,
                   "user data '%.256s': cloud-init would ignore what begins neither with "
                   "#cloud-config nor with #!",
                   name);
}

/* JSON is YAML. */
static char *meta_data(const struct seed *seed)
{
    uint8_t bytes[8];
    char id[sizeof "i-" + 2 * sizeof bytes] = "i-";
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        return NULL;
    for (size_t i = 0; i < sizeof bytes; i++)
        snprintf(id + 2 + 2 * i, 3, "%02x", bytes[i]);
    json_t *root = json_pack("{s:s, s:s*}", "instance-id", id, "local-hostname", seed->hostname);
    json_t *keys = json_array();
    for (unsigned i = 0; i < seed->key_count; i++)
        json_array_append_new(keys, json_string(seed->keys[i]));
    bool whole = json_array_size(keys) == seed->key_count &&
                 (seed->key_count ? json_object_set(root, "public-keys", keys) : 0) >= 0;
    char *text = whole && root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(keys);
    json_decref(root);
    return text;
}

static int add_file(struct archive *archive, const char *name, const char *bytes, size_t size)
{
    struct archive_entry *entry = sym_archive_entry_new();
    if (!entry)
        return ARCHIVE_FATAL;
    sym_archive_entry_set_pathname(entry, name);
    sym_archive_entry_set_mode(entry, S_IFREG | 0644);
    sym_archive_entry_set_size(entry, (la_int64_t)size);
    int r = sym_archive_write_header(archive, entry);
    if (r == ARCHIVE_OK && sym_archive_write_data(archive, bytes, size) != (la_ssize_t)size)
        r = ARCHIVE_FATAL;
    sym_archive_entry_free(entry);
    return r;
}

static int write_iso(const struct seed *seed, const char *meta, int fd, struct err *err)
{
    int r = archive_load(err);
    if (r < 0)
        return r;
    struct archive *archive = sym_archive_write_new();
    if (!archive)
        return err_set(err, -ENOMEM, "no memory");
    const char *user = seed->user_data ? seed->user_data : empty_user_data;
    size_t user_size = seed->user_data ? seed->user_data_size : strlen(empty_user_data);
    sym_archive_write_set_format_iso9660(archive);
    r = sym_archive_write_set_format_option(archive, "iso9660", "volume-id", "cidata");
    if (r == ARCHIVE_OK)
        r = sym_archive_write_open_fd(archive, fd);
    if (r == ARCHIVE_OK)
        r = add_file(archive, "meta-data", meta, strlen(meta));
    if (r == ARCHIVE_OK)
        r = add_file(archive, "user-data", user, user_size);
    if (r == ARCHIVE_OK)
        r = sym_archive_write_close(archive);
    int code = 0;
    if (r != ARCHIVE_OK)
        code = err_set(err, -EIO, "seed: %s", sym_archive_error_string(archive));
    sym_archive_write_free(archive);
    return code;
}

int seed_write(const struct seed *seed, struct err *err)
{
    _cleanup_free_ char *meta = meta_data(seed);
    if (!meta)
        return err_set(err, -EINVAL, "seed: the host name or a key is no UTF-8");
    _cleanup_fd_ int fd = memfd_create("seed", MFD_CLOEXEC);
    if (fd < 0)
        return err_errno(err, errno, "seed");
    int r = write_iso(seed, meta, fd, err);
    return r < 0 ? r : take_fd(&fd);
}

void seed_free(struct seed *seed)
{
    for (unsigned i = 0; i < seed->key_count; i++)
        free(seed->keys[i]);
    *seed = (struct seed){0};
}
