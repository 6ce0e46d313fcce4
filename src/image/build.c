#include "image/build.h"

#include "base/bytes.h"
#include "base/own.h"
#include "image/digest.h"
#include "image/package.h"
#include "image/process.h"
#include "image/recipe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include <jansson.h>

#define KERNEL_META   "linux-image-cloud-amd64"
#define KERNEL_PREFIX "linux-image-"
#define BUSYBOX       "busybox-static"

/* Everything one build knows; made by image_build_default(), freed by it. */
struct work {
    const struct image_build *build;
    struct err *err;
    char *folder; /* store/default */
    char *debs;   /* cache/debs */
    struct package_source source;
    struct package kernel, busybox;
    char agent_digest[DIGEST_TEXT_SIZE];
    char hash[DIGEST_TEXT_SIZE];
    char *append;
    char append_digest[DIGEST_TEXT_SIZE];
    /* What is taken from the packages. */
    int kernel_fd; /* memory file with the bzImage */
    struct module_set modules;
    uint8_t *busybox_bytes;
    size_t busybox_size;
    char *applets;
    char *temporary; /* the folder in the making, or NULL */
};

static void note(const struct work *work, const char *text)
{
    if (work->build->note)
        work->build->note(work->build->opaque, text);
}

static int stopped(const struct work *work)
{
    if (work->build->stop && *work->build->stop)
        return err_set(work->err, -EINTR, "interrupted");
    return 0;
}

static char *in_folder(const char *folder, const char *name)
{
    char *path;
    return asprintf(&path, "%s/%s", folder, name) < 0 ? NULL : path;
}

/* --- inputs --- */

static int find_kernel_name(struct work *work, char **ret_name)
{
    struct err first = {0};
    int r = package_dependency(&work->source, KERNEL_META, KERNEL_PREFIX, ret_name, &first);
    if (r >= 0 || r == -EINTR)
        return r < 0 ? err_set(work->err, r, "%s", first.text) : 0;
    note(work, "this machine has no package lists; fetching private ones");
    r = package_update(&work->source, work->err);
    if (r < 0)
        return r;
    return package_dependency(&work->source, KERNEL_META, KERNEL_PREFIX, ret_name, work->err);
}

static int find_inputs(struct work *work)
{
    _cleanup_free_ char *kernel = NULL;
    struct package packages[2];
    int r = find_kernel_name(work, &kernel);
    if (r < 0)
        return r;
    r = package_find(&work->source, (const char *const[]){kernel, BUSYBOX}, 2, packages, work->err);
    if (r < 0)
        return r;
    work->kernel = packages[0];
    work->busybox = packages[1];
    return stopped(work);
}

/* Asking apt takes seconds. As long as neither its lists nor our own part changed, its answer would
 * be that of the last time, whose image is named in the stamp. */
static int read_stamp(const struct work *work, bool private_lists, char *ret_text, size_t size)
{
    char lists[128];
    struct package_source source = {work->debs, private_lists};
    int r = package_lists_stamp(&source, lists, sizeof lists);
    if (r >= 0)
        snprintf(ret_text, size, "%s %d %s %s\n", lists, RECIPE_VERSION, work->agent_digest,
                 work->append_digest);
    return r;
}

static bool stamp_matches(const struct work *work, const struct image *image)
{
    char stored[512] = "", now[512];
    _cleanup_free_ char *path = in_folder(work->folder, image->hash);
    _cleanup_free_ char *stamp = path ? in_folder(path, "stamp") : NULL;
    _cleanup_file_ FILE *file = stamp ? fopen(stamp, "re") : NULL;
    if (!file || !fgets(stored, sizeof stored, file))
        return false;
    return read_stamp(work, *stored == '1', now, sizeof now) >= 0 && !strcmp(stored, now);
}

/* Not part of the image: who loses it only asks apt once more. */
static void write_stamp(const struct work *work, const char *hash)
{
    char text[512];
    _cleanup_free_ char *path = in_folder(work->folder, hash);
    _cleanup_free_ char *stamp = path ? in_folder(path, "stamp") : NULL;
    _cleanup_file_ FILE *file = NULL;
    if (stamp && read_stamp(work, work->source.private_lists, text, sizeof text) >= 0)
        file = fopen(stamp, "we");
    if (file)
        fputs(text, file);
}

static int hash_inputs(struct work *work)
{
    _cleanup_free_ char *text = NULL;
    if (asprintf(&text, "recipe %d\n%s\n%s %s\n%s %s\nagent %s\n", RECIPE_VERSION, work->append,
                 work->kernel.file, work->kernel.digest, work->busybox.file, work->busybox.digest,
                 work->agent_digest) < 0) {
        text = NULL;
        return err_set(work->err, -ENOMEM, "no memory");
    }
    int r = digest_bytes(text, strlen(text), work->hash);
    return r < 0 ? err_set(work->err, r, "SHA-256 failed") : 0;
}

/* --- taking files from packages --- */

static int download(struct work *work, const struct package *package)
{
    char text[256];
    int r = stopped(work);
    if (r < 0 || package_cached(&work->source, package))
        return r;
    snprintf(text, sizeof text, "downloading %s %s (%.1f MB)", package->name, package->version,
             (double)package->size / 1e6);
    note(work, text);
    return package_download(&work->source, package, work->err);
}

static int write_all(int fd, const uint8_t *bytes, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, bytes, size);
        if (n < 0)
            return -errno;
        bytes += n;
        size -= (size_t)n;
    }
    return 0;
}

static bool is_vmlinuz(const char *path)
{
    return !strncmp(path, "boot/vmlinuz-", 13);
}

static bool is_kernel_file(const char *path)
{
    const char *name = strrchr(path, '/');
    return is_vmlinuz(path) || (strstr(path, "lib/modules/") && name && strstr(name, ".ko"));
}

static int take_kernel_file(void *opaque, const char *path, const uint8_t *bytes, size_t size)
{
    struct work *work = opaque;
    _cleanup_free_ uint8_t *plain = NULL;
    size_t plain_size = 0;
    int r = stopped(work);
    if (r < 0)
        return r;
    if (is_vmlinuz(path))
        return write_all(work->kernel_fd, bytes, size);
    const char *end = strrchr(path, '.');
    if (!strcmp(end, ".ko"))
        return module_add(&work->modules, path, bytes, size);
    r = package_decompress(bytes, size, &plain, &plain_size);
    return r < 0 ? r : module_add(&work->modules, path, plain, plain_size);
}

static bool is_busybox(const char *path)
{
    return !strcmp(path, "bin/busybox") || !strcmp(path, "usr/bin/busybox");
}

static int take_busybox(void *opaque, const char *path, const uint8_t *bytes, size_t size)
{
    struct work *work = opaque;
    free(work->busybox_bytes);
    work->busybox_bytes = malloc(size + 1);
    if (!work->busybox_bytes)
        return -ENOMEM;
    memcpy(work->busybox_bytes, bytes, size);
    work->busybox_size = size;
    return 0;
}

/* BusyBox itself says which names it answers to. It runs from memory, so that a data folder on a
 * file system without exec permission will do; the link gives it its name, which it looks at. */
static int list_applets(struct work *work)
{
    char target[64];
    _cleanup_fd_ int fd = memfd_create("busybox", MFD_CLOEXEC);
    _cleanup_free_ char *link = in_folder(work->temporary, "busybox");
    if (!link)
        return err_set(work->err, -ENOMEM, "no memory");
    if (fd < 0 || write_all(fd, work->busybox_bytes, work->busybox_size) < 0)
        return err_errno(work->err, errno, "busybox");
    snprintf(target, sizeof target, "/proc/%d/fd/%d", getpid(), fd);
    if (symlink(target, link) < 0)
        return err_errno(work->err, errno, "'%s'", link);
    const char *const argv[] = {link, "--list-full", NULL};
    int r = process_output(argv, NULL, 1 << 16, &work->applets, work->err);
    unlink(link);
    return r < 0 ? err_prefix(work->err, r, "busybox --list-full") : 0;
}

static int open_packages(struct work *work)
{
    note(work, "unpacking the packages");
    work->kernel_fd = memfd_create("vmlinuz", MFD_CLOEXEC);
    if (work->kernel_fd < 0)
        return err_errno(work->err, errno, "memory file");
    int r = package_walk(&work->source, &work->kernel, is_kernel_file, take_kernel_file, work,
                         work->err);
    if (r >= 0)
        r = package_walk(&work->source, &work->busybox, is_busybox, take_busybox, work, work->err);
    if (r >= 0 && !work->busybox_bytes)
        r = err_set(work->err, -ENOENT, "'%s' holds no busybox", work->busybox.file);
    if (r >= 0 && lseek(work->kernel_fd, 0, SEEK_CUR) == 0)
        r = err_set(work->err, -ENOENT, "'%s' holds no kernel", work->kernel.file);
    if (r >= 0)
        r = list_applets(work);
    return r;
}

/* --- writing the image --- */

static int create(struct work *work, const char *name, char **ret_path, int *ret_fd)
{
    _cleanup_free_ char *path = in_folder(work->temporary, name);
    if (!path)
        return err_set(work->err, -ENOMEM, "no memory");
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_errno(work->err, errno, "'%s'", path);
    *ret_path = take_ptr(path);
    *ret_fd = fd;
    return 0;
}

/* What is known by its digest must be on the disk before its name is. */
static int finish_file(struct work *work, int fd, const char *path, json_t *json, const char *key,
                       const char *name)
{
    char digest[DIGEST_TEXT_SIZE];
    struct stat status;
    /* Read-only from now on: lodge-vmm maps a kernel that nobody may write to (load_source.h). */
    if (fchmod(fd, 0444) < 0 || fsync(fd) < 0 || fstat(fd, &status) < 0)
        return err_errno(work->err, errno, "'%s'", path);
    int r = digest_file(path, digest, work->err);
    if (r < 0)
        return r;
    json_t *file = json_pack("{s:s, s:s, s:I}", "file", name, "sha256", digest, "size",
                             (json_int_t)status.st_size);
    return json_object_set_new(json, key, file) < 0 ? err_set(work->err, -ENOMEM, "no memory") : 0;
}

static int write_kernel(struct work *work, json_t *json)
{
    _cleanup_free_ char *path = NULL;
    _cleanup_fd_ int fd = -1;
    char in[16], out[16];
    note(work, "unpacking the kernel");
    int r = create(work, "vmlinux", &path, &fd);
    if (r < 0)
        return r;
    lseek(work->kernel_fd, 0, SEEK_SET);
    snprintf(in, sizeof in, "%d", work->kernel_fd);
    snprintf(out, sizeof out, "%d", fd);
    const char *const argv[] = {work->build->vmm, "--unpack-kernel", in, out, NULL};
    r = process_run(argv, NULL, (const int[]){work->kernel_fd, fd}, 2, work->err);
    return r < 0 ? r : finish_file(work, fd, path, json, "kernel", "vmlinux");
}

static int read_file(const char *path, uint8_t **ret_bytes, size_t *ret_size, struct err *err)
{
    struct stat status;
    _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0)
        return err_errno(err, errno, "'%s'", path);
    size_t size = (size_t)status.st_size;
    _cleanup_free_ uint8_t *bytes = malloc(size + 1);
    if (!bytes)
        return err_set(err, -ENOMEM, "no memory");
    if (read(fd, bytes, size) != (ssize_t)size)
        return err_set(err, -EIO, "'%s' cannot be read", path);
    *ret_bytes = take_ptr(bytes);
    *ret_size = size;
    return 0;
}

static int write_initrd(struct work *work, json_t *json)
{
    _cleanup_free_ char *path = NULL;
    _cleanup_free_ uint8_t *agent = NULL;
    _cleanup_fd_ int fd = -1;
    struct recipe_files files = {
        .busybox = work->busybox_bytes,
        .busybox_size = work->busybox_size,
        .applets = work->applets,
        .modules = &work->modules,
    };
    int r = read_file(work->build->agent, &agent, &files.agent_size, work->err);
    files.agent = agent;
    if (r >= 0)
        r = create(work, "initrd.img", &path, &fd);
    if (r >= 0)
        r = recipe_write_initramfs(&files, fd, work->err);
    return r < 0 ? r : finish_file(work, fd, path, json, "initrd", "initrd.img");
}

/* Now, or the time that reproducible builds agree on. */
static void creation_time(char *ret_text, size_t size)
{
    const char *epoch = getenv("SOURCE_DATE_EPOCH");
    time_t now = epoch ? (time_t)strtoll(epoch, NULL, 10) : time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(ret_text, size, "%Y-%m-%dT%H:%M:%SZ", &utc);
}

static int write_json(struct work *work, json_t *json)
{
    _cleanup_free_ char *path = NULL;
    _cleanup_fd_ int fd = -1;
    char created[32];
    creation_time(created, sizeof created);
    json_t *rest = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:b, s:[{s:s, s:s}, {s:s, s:s}]}", "name", "default", "hash",
        work->hash, "created", created, "release", work->kernel.name + strlen(KERNEL_PREFIX),
        "append", work->append, "agent", 1, "packages", "name", work->kernel.name, "version",
        work->kernel.version, "name", work->busybox.name, "version", work->busybox.version);
    int r = rest && json_object_update(json, rest) >= 0 ? 0 : -ENOMEM;
    json_decref(rest);
    if (r < 0)
        return err_set(work->err, r, "no memory");
    r = create(work, "image.json", &path, &fd);
    if (r < 0)
        return r;
    if (json_dumpfd(json, fd, JSON_INDENT(2) | JSON_SORT_KEYS) < 0 || write(fd, "\n", 1) != 1 ||
        fsync(fd) < 0)
        return err_set(work->err, -EIO, "'%s' cannot be written", path);
    return 0;
}

/* Removes a folder of ours and the files in it; there are no folders inside. */
static void remove_folder(const char *path)
{
    DIR *dir = opendir(path);
    if (!dir)
        return;
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir))
        unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
    rmdir(path);
}

/* All but the image that is current: older ones, and what an interrupted build left. Guests that
 * run from them have their files open. */
static void remove_others(const struct work *work, const char *keep)
{
    DIR *dir = opendir(work->folder);
    if (!dir)
        return;
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        bool ours =
            !strncmp(entry->d_name, ".new-", 5) || strlen(entry->d_name) == DIGEST_TEXT_SIZE - 1;
        if (!ours || (keep && !strcmp(entry->d_name, keep)))
            continue;
        _cleanup_free_ char *path = in_folder(work->folder, entry->d_name);
        if (path)
            remove_folder(path);
    }
    closedir(dir);
}

/* The image gets its name, then `current` means it. */
static int publish(struct work *work)
{
    _cleanup_free_ char *final = in_folder(work->folder, work->hash);
    _cleanup_free_ char *fresh = in_folder(work->folder, ".current-new");
    _cleanup_free_ char *current = in_folder(work->folder, "current");
    if (!final || !fresh || !current)
        return err_set(work->err, -ENOMEM, "no memory");
    remove_folder(final);
    if (rename(work->temporary, final) < 0)
        return err_errno(work->err, errno, "'%s'", final);
    free(take_ptr(work->temporary));
    unlink(fresh);
    if (symlink(work->hash, fresh) < 0 || rename(fresh, current) < 0)
        return err_errno(work->err, errno, "'%s'", current);
    remove_others(work, work->hash);
    return 0;
}

static int make_temporary(struct work *work)
{
    work->temporary = in_folder(work->folder, ".new-XXXXXX");
    if (!work->temporary || !mkdtemp(work->temporary)) {
        free(take_ptr(work->temporary));
        return err_errno(work->err, errno, "'%s'", work->folder);
    }
    chmod(work->temporary, 0755);
    return 0;
}

static int make(struct work *work)
{
    int r = download(work, &work->kernel);
    if (r >= 0)
        r = download(work, &work->busybox);
    if (r >= 0)
        r = make_temporary(work);
    if (r >= 0)
        r = open_packages(work);
    if (r < 0)
        return r;
    json_t *json = json_object();
    r = write_kernel(work, json);
    if (r >= 0)
        r = write_initrd(work, json);
    if (r >= 0)
        r = write_json(work, json);
    json_decref(json);
    if (r >= 0)
        r = stopped(work);
    return r < 0 ? r : publish(work);
}

/* --- the whole --- */

static int lock_folder(struct work *work, int *ret_lock)
{
    work->folder = in_folder(work->build->store, "default");
    work->debs = in_folder(work->build->cache, "debs");
    if (!work->folder || !work->debs)
        return err_set(work->err, -ENOMEM, "no memory");
    int r = image_make_directories(work->folder, work->err);
    if (r >= 0)
        r = image_make_directories(work->debs, work->err);
    if (r < 0)
        return r;
    work->source.cache = work->debs;
    _cleanup_free_ char *path = in_folder(work->folder, ".lock");
    _cleanup_fd_ int lock = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644) : -1;
    if (lock < 0 || flock(lock, LOCK_EX) < 0)
        return err_errno(work->err, errno, "cannot lock '%s'", work->folder);
    *ret_lock = take_fd(&lock);
    return 0;
}

static bool usable(const struct image *image)
{
    return access(image->kernel, R_OK) == 0 && access(image->initrd, R_OK) == 0;
}

/* What of the inputs is our own. */
static int digest_own_part(struct work *work)
{
    work->append = recipe_append();
    if (!work->append || digest_bytes(work->append, strlen(work->append), work->append_digest) < 0)
        return err_set(work->err, -ENOMEM, "no memory");
    return digest_file(work->build->agent, work->agent_digest, work->err);
}

static int build_locked(struct work *work, struct image *ret_image)
{
    struct image image = {0};
    int r = digest_own_part(work);
    if (r < 0)
        return r;
    bool present = image_find(work->build->store, "default", &image, NULL) >= 0;
    bool current = present && usable(&image) && stamp_matches(work, &image);
    if (!current) {
        r = find_inputs(work);
        if (r >= 0)
            r = hash_inputs(work);
        current = r >= 0 && present && usable(&image) && !strcmp(image.hash, work->hash);
        if (current)
            write_stamp(work, image.hash);
    }
    if (current) {
        *ret_image = image;
        return 0;
    }
    image_free(&image);
    if (r >= 0)
        r = make(work);
    if (r >= 0)
        r = image_find(work->build->store, "default", ret_image, work->err);
    if (r >= 0)
        write_stamp(work, ret_image->hash);
    return r < 0 ? r : 1;
}

static void free_work(struct work *work)
{
    if (work->temporary)
        remove_folder(work->temporary);
    package_free(&work->kernel);
    package_free(&work->busybox);
    module_set_free(&work->modules);
    own_close(&work->kernel_fd);
    free(work->temporary);
    free(work->folder);
    free(work->debs);
    free(work->append);
    free(work->busybox_bytes);
    free(work->applets);
}

int image_build_default(const struct image_build *build, struct image *ret_image, struct err *err)
{
    struct work work = {.build = build, .err = err, .kernel_fd = -1};
    _cleanup_fd_ int lock = -1;
    int r = lock_folder(&work, &lock);
    if (r >= 0)
        r = build_locked(&work, ret_image);
    free_work(&work);
    return r < 0 ? err_prefix(err, r, "cannot build image 'default'") : r;
}
