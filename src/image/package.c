#include "image/package.h"

#include "base/bytes.h"
#include "base/own.h"
#include "image/digest.h"
#include "image/libarchive.h"
#include "image/process.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    ARGUMENTS_MAX = 32,
    OUTPUT_MAX = 1 << 20,
    FILE_SIZE_MAX = 256 << 20, /* a kernel is under 64 MiB */
};

void package_free(struct package *package)
{
    free(package->name);
    free(package->version);
    free(package->file);
    free(package->digest);
    *package = (struct package){0};
}

/* One apt command: the program, the options that point it at private lists, its words. */
struct command {
    const char *argv[ARGUMENTS_MAX];
    unsigned count;
    char options[4][4200];
};

static void add_word(struct command *command, const char *word)
{
    if (command->count + 1 < ARGUMENTS_MAX)
        command->argv[command->count++] = word;
}

static void begin(struct command *command, const struct package_source *source, const char *program)
{
    command->count = 0;
    memset(command->argv, 0, sizeof command->argv);
    add_word(command, program);
    if (!source->private_lists)
        return;
    snprintf(command->options[0], sizeof command->options[0], "Dir::State=%s/apt/state",
             source->cache);
    snprintf(command->options[1], sizeof command->options[1], "Dir::Cache=%s/apt/cache",
             source->cache);
    const char *const options[] = {
        command->options[0],  command->options[1],   "Dir::State::status=/var/lib/dpkg/status",
        "Debug::NoLocking=1", "APT::Sandbox::User=",
    };
    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        add_word(command, "-o");
        add_word(command, options[i]);
    }
}

static int make_directories(const char *path)
{
    _cleanup_free_ char *copy = strdup(path);
    if (!copy)
        return -ENOMEM;
    for (char *slash = strchr(copy + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(copy, 0755) < 0 && errno != EEXIST)
            return -errno;
        *slash = '/';
    }
    return mkdir(copy, 0755) < 0 && errno != EEXIST ? -errno : 0;
}

int package_update(struct package_source *source, struct err *err)
{
    static const char *const folders[] = {"apt/state/lists/partial", "apt/cache/archives/partial"};
    struct command command;
    source->private_lists = true;
    for (size_t i = 0; i < ARRAY_LEN(folders); i++) {
        char path[4200];
        snprintf(path, sizeof path, "%s/%s", source->cache, folders[i]);
        int r = make_directories(path);
        if (r < 0)
            return err_errno(err, -r, "'%s'", path);
    }
    begin(&command, source, "apt-get");
    add_word(&command, "update");
    int r = process_run(command.argv, NULL, NULL, 0, err);
    return r < 0 ? err_prefix(err, r, "no package lists") : 0;
}

int package_lists_stamp(const struct package_source *source, char *ret_text, size_t size)
{
    struct stat status;
    char path[4200] = "/var/lib/apt/lists";
    if (source->private_lists)
        snprintf(path, sizeof path, "%s/apt/state/lists", source->cache);
    if (stat(path, &status) < 0)
        return -errno;
    snprintf(ret_text, size, "%d %lld.%09ld", source->private_lists,
             (long long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
    return 0;
}

int package_repositories(const struct package_source *source, char **ret_text, struct err *err)
{
    struct command command;
    begin(&command, source, "apt-get");
    static const char *const words[] = {"indextargets", "--format",
                                        "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages",
                                        "Origin: Debian"};
    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        add_word(&command, words[i]);
    return process_output(command.argv, NULL, OUTPUT_MAX, ret_text, err);
}

int package_dependency(const struct package_source *source, const char *name, const char *prefix,
                       char **ret_name, struct err *err)
{
    struct command command;
    _cleanup_free_ char *text = NULL;
    begin(&command, source, "apt-cache");
    add_word(&command, "depends");
    add_word(&command, name);
    int r = process_output(command.argv, NULL, OUTPUT_MAX, &text, err);
    if (r < 0)
        return r;
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        static const char key[] = "Depends: ";
        line += strspn(line, " |");
        if (strncmp(line, key, strlen(key)) != 0 ||
            strncmp(line + strlen(key), prefix, strlen(prefix)) != 0)
            continue;
        *ret_name = strdup(line + strlen(key));
        return *ret_name ? 0 : err_set(err, -ENOMEM, "no memory");
    }
    return err_set(err, -ENOENT, "package '%s' depends on no %s...", name, prefix);
}

/* The version inside NAME_VERSION_ARCH.deb, in which apt writes ':' as %3a. */
static char *version_of(const char *file)
{
    const char *start = strchr(file, '_');
    const char *end = start ? strchr(start + 1, '_') : NULL;
    char *version = start && end ? strndup(start + 1, (size_t)(end - start - 1)) : strdup("");
    char *escaped = version ? strstr(version, "%3a") : NULL;
    if (escaped) {
        *escaped = ':';
        memmove(escaped + 1, escaped + 3, strlen(escaped + 3) + 1);
    }
    return version;
}

/* A line of --print-uris: 'address' FILE SIZE DIGEST, FILE being NAME_VERSION_ARCH.deb */
static int parse_line(char *line, struct package *ret_package)
{
    char *rest = NULL;
    if (*line != '\'')
        return -ENOENT;
    const char *address = strtok_r(line, " ", &rest);
    const char *file = strtok_r(NULL, " ", &rest), *size = strtok_r(NULL, " ", &rest);
    const char *digest = strtok_r(NULL, " ", &rest);
    if (!address || !file || !size || strchr(file, '/') || *file == '.')
        return -ENOENT;
    *ret_package = (struct package){
        .name = strndup(file, strcspn(file, "_")),
        .version = version_of(file),
        .file = strdup(file),
        .digest = strdup(digest ? digest : ""),
        .size = strtoull(size, NULL, 10),
    };
    if (ret_package->name && ret_package->version && ret_package->file && ret_package->digest)
        return 0;
    package_free(ret_package);
    return -ENOMEM;
}

static int take_line(char *line, const char *const *names, size_t count,
                     struct package *ret_packages)
{
    struct package package;
    int r = parse_line(line, &package);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    for (size_t i = 0; i < count; i++)
        if (!ret_packages[i].name && !strcmp(package.name, names[i])) {
            ret_packages[i] = package;
            return 0;
        }
    package_free(&package);
    return 0;
}

int package_find(const struct package_source *source, const char *const *names, size_t count,
                 struct package *ret_packages, struct err *err)
{
    struct command command;
    _cleanup_free_ char *text = NULL;
    begin(&command, source, "apt-get");
    add_word(&command, "download");
    add_word(&command, "--print-uris");
    for (size_t i = 0; i < count; i++)
        add_word(&command, names[i]);
    int r = process_output(command.argv, NULL, OUTPUT_MAX, &text, err);
    if (r < 0)
        return r;
    memset(ret_packages, 0, count * sizeof *ret_packages);
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line && r >= 0;
         line = strtok_r(NULL, "\n", &rest))
        r = take_line(line, names, count, ret_packages);
    if (r < 0)
        err_set(err, r, "no memory");
    for (size_t i = 0; r >= 0 && i < count; i++)
        if (!ret_packages[i].name)
            r = err_set(err, -ENOENT, "package '%s' cannot be downloaded", names[i]);
    for (size_t i = 0; r < 0 && i < count; i++)
        package_free(&ret_packages[i]);
    return r;
}

bool package_cached(const struct package_source *source, const struct package *package)
{
    char path[4200], digest[DIGEST_TEXT_SIZE];
    static const char kind[] = "SHA256:";
    snprintf(path, sizeof path, "%s/%s", source->cache, package->file);
    return !strncmp(package->digest, kind, strlen(kind)) && digest_file(path, digest, NULL) >= 0 &&
           !strcmp(digest, package->digest + strlen(kind));
}

int package_download(const struct package_source *source, const struct package *package,
                     struct err *err)
{
    struct command command;
    char word[512], path[4200];
    /* The version that package_find() saw, so that the image's hash tells the truth. */
    snprintf(word, sizeof word, "%s=%s", package->name, package->version);
    snprintf(path, sizeof path, "%s/%s", source->cache, package->file);
    unlink(path);
    begin(&command, source, "apt-get");
    add_word(&command, "download");
    add_word(&command, word);
    int r = process_run(command.argv, source->cache, NULL, 0, err);
    if (r < 0)
        return err_prefix(err, r, "package '%s'", package->name);
    if (access(path, R_OK) < 0)
        return err_errno(err, errno, "apt-get did not leave '%s'", path);
    return 0;
}

static int read_entry(struct archive *archive, struct archive_entry *entry, uint8_t **ret_bytes,
                      size_t *ret_size)
{
    la_int64_t size = sym_archive_entry_size(entry);
    if (size < 0 || size > FILE_SIZE_MAX)
        return -EFBIG;
    _cleanup_free_ uint8_t *bytes = malloc((size_t)size + 1);
    if (!bytes)
        return -ENOMEM;
    size_t length = 0;
    while (length < (size_t)size) {
        la_ssize_t n = sym_archive_read_data(archive, bytes + length, (size_t)size - length);
        if (n <= 0)
            return -EIO;
        length += (size_t)n;
    }
    *ret_bytes = take_ptr(bytes);
    *ret_size = length;
    return 0;
}

static int walk(struct archive *archive, bool (*wants)(const char *path),
                int (*visit)(void *opaque, const char *path, const uint8_t *bytes, size_t size),
                void *opaque, struct err *err)
{
    struct archive_entry *entry;
    int r;
    while ((r = sym_archive_read_next_header(archive, &entry)) == ARCHIVE_OK) {
        const char *path = sym_archive_entry_pathname(entry);
        if (!path)
            continue;
        path += !strncmp(path, "./", 2) ? 2 : 0;
        if (sym_archive_entry_filetype(entry) != AE_IFREG || !wants(path))
            continue;
        _cleanup_free_ uint8_t *bytes = NULL;
        size_t size;
        int code = read_entry(archive, entry, &bytes, &size);
        if (code < 0)
            return err_errno(err, -code, "'%s'", path);
        code = visit(opaque, path, bytes, size);
        if (code < 0)
            return err_prefix(err, code, "'%s'", path);
    }
    return r == ARCHIVE_EOF ? 0 : err_set(err, -EIO, "%s", sym_archive_error_string(archive));
}

int package_walk(const struct package_source *source, const struct package *package,
                 bool (*wants)(const char *path),
                 int (*visit)(void *opaque, const char *path, const uint8_t *bytes, size_t size),
                 void *opaque, struct err *err)
{
    const char *const argv[] = {"dpkg-deb", "--fsys-tarfile", package->file, NULL};
    struct process process;
    int r = archive_load(err);
    if (r >= 0)
        r = process_start(&process, argv, source->cache, NULL, 0, err);
    if (r < 0)
        return r;
    struct archive *archive = sym_archive_read_new();
    if (!archive) {
        r = err_set(err, -ENOMEM, "no memory");
    } else {
        sym_archive_read_support_format_tar(archive);
        if (sym_archive_read_open_fd(archive, process.out, 1 << 16) == ARCHIVE_OK)
            r = walk(archive, wants, visit, opaque, err);
        else
            r = err_set(err, -EIO, "%s", sym_archive_error_string(archive));
    }
    sym_archive_read_free(archive);
    /* What dpkg-deb says explains an archive that ended too early. */
    struct err cause = {0};
    int ended = process_wait(&process, &cause);
    if (ended < 0)
        r = err_set(err, ended, "%s", cause.text);
    return r < 0 ? err_prefix(err, r, "package '%s'", package->file) : 0;
}

static int read_raw(struct archive *archive, uint8_t **ret_bytes, size_t *ret_size)
{
    struct archive_entry *entry;
    _cleanup_free_ uint8_t *bytes = NULL;
    size_t length = 0, capacity = 0;
    if (sym_archive_read_next_header(archive, &entry) != ARCHIVE_OK)
        return -EBADMSG;
    for (;;) {
        if (length == capacity) {
            capacity = max(2 * capacity, (size_t)1 << 16);
            uint8_t *more = capacity > FILE_SIZE_MAX ? NULL : realloc(bytes, capacity);
            if (!more)
                return -ENOMEM;
            bytes = more;
        }
        la_ssize_t n = sym_archive_read_data(archive, bytes + length, capacity - length);
        if (n < 0)
            return -EBADMSG;
        if (n == 0)
            break;
        length += (size_t)n;
    }
    *ret_bytes = take_ptr(bytes);
    *ret_size = length;
    return 0;
}

int package_decompress(const uint8_t *bytes, size_t size, uint8_t **ret_bytes, size_t *ret_size)
{
    int r = archive_load(NULL);
    if (r < 0)
        return r;
    struct archive *archive = sym_archive_read_new();
    if (!archive)
        return -ENOMEM;
    sym_archive_read_support_filter_xz(archive);
    sym_archive_read_support_filter_zstd(archive);
    sym_archive_read_support_filter_gzip(archive);
    sym_archive_read_support_format_raw(archive);
    r = -EBADMSG;
    if (sym_archive_read_open_memory(archive, bytes, size) == ARCHIVE_OK)
        r = read_raw(archive, ret_bytes, ret_size);
    sym_archive_read_free(archive);
    return r;
}
