#include "image/build.h"

#include "base/bytes.h"
#include "base/own.h"
#include "image/digest.h"
#include "image/draft.h"
#include "image/package.h"
#include "image/process.h"
#include "image/recipe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <jansson.h>

#define KERNEL_META   "linux-image-cloud-amd64"
#define KERNEL_PREFIX "linux-image-"
#define BUSYBOX       "busybox-static"

/* Everything one build knows; made by image_build_default(), freed by it. */
struct work {
    const struct image_build *build;
    struct draft draft;
    struct err *err;
    char *debs; /* cache/debs */
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
};

/* --- inputs --- */

static int find_kernel_name(struct work *work, char **ret_name)
{
    struct err first = {0};
    int r = package_dependency(&work->source, KERNEL_META, KERNEL_PREFIX, ret_name, &first);
    if (r >= 0 || r == -EINTR)
        return r < 0 ? err_set(work->err, r, "%s", first.text) : 0;
    draft_note(&work->draft, "this machine has no package lists; fetching private ones");
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
    return draft_stopped(&work->draft);
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
    return draft_read_stamp(&work->draft, image->hash, stored, sizeof stored) &&
           read_stamp(work, *stored == '1', now, sizeof now) >= 0 && !strcmp(stored, now);
}

static void write_stamp(const struct work *work, const char *hash)
{
    char text[512];
    if (read_stamp(work, work->source.private_lists, text, sizeof text) >= 0)
        draft_write_stamp(&work->draft, hash, text);
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
    int r = draft_stopped(&work->draft);
    if (r < 0 || package_cached(&work->source, package))
        return r;
    snprintf(text, sizeof text, "downloading %s %s (%.1f MB)", package->name, package->version,
             (double)package->size / 1e6);
    draft_note(&work->draft, text);
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
    int r = draft_stopped(&work->draft);
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
    _cleanup_free_ char *link = draft_path(work->draft.temporary, "busybox");
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
    draft_note(&work->draft, "unpacking the packages");
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

static int write_initrd(struct work *work)
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
        r = draft_create(&work->draft, "initrd.img", &path, &fd);
    if (r >= 0)
        r = recipe_write_initramfs(&files, fd, work->err);
    return r < 0 ? r : draft_finish_file(&work->draft, fd, path, "initrd", "initrd.img");
}

static json_t *describe(const struct work *work)
{
    return json_pack("{s:s, s:s, s:b, s:[{s:s, s:s}, {s:s, s:s}]}", "release",
                     work->kernel.name + strlen(KERNEL_PREFIX), "append", work->append, "agent", 1,
                     "packages", "name", work->kernel.name, "version", work->kernel.version, "name",
                     work->busybox.name, "version", work->busybox.version);
}

static int make(struct work *work)
{
    int r = download(work, &work->kernel);
    if (r >= 0)
        r = download(work, &work->busybox);
    if (r >= 0)
        r = draft_begin(&work->draft);
    if (r >= 0)
        r = open_packages(work);
    if (r >= 0)
        r = draft_write_kernel(&work->draft, work->kernel_fd);
    if (r >= 0)
        r = write_initrd(work);
    return r < 0 ? r : draft_publish(&work->draft, work->hash, describe(work));
}

/* --- the whole --- */

static int make_cache(struct work *work)
{
    work->debs = draft_path(work->build->cache, "debs");
    work->source.cache = work->debs;
    return work->debs ? image_make_directories(work->debs, work->err)
                      : err_set(work->err, -ENOMEM, "no memory");
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
    bool current = present && image_usable(&image) && stamp_matches(work, &image);
    if (!current) {
        r = find_inputs(work);
        if (r >= 0)
            r = hash_inputs(work);
        current = r >= 0 && present && image_usable(&image) && !strcmp(image.hash, work->hash);
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
    package_free(&work->kernel);
    package_free(&work->busybox);
    module_set_free(&work->modules);
    own_close(&work->kernel_fd);
    free(work->debs);
    free(work->append);
    free(work->busybox_bytes);
    free(work->applets);
}

int image_build_default(const struct image_build *build, struct image *ret_image, struct err *err)
{
    struct work work = {.build = build, .err = err, .kernel_fd = -1};
    int r = draft_open(&work.draft, build, "default", err);
    if (r >= 0)
        r = make_cache(&work);
    if (r >= 0)
        r = build_locked(&work, ret_image);
    free_work(&work);
    draft_close(&work.draft);
    return r < 0 ? err_prefix(err, r, "cannot build image 'default'") : r;
}
