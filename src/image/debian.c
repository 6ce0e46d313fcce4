#include "image/debian.h"

#include "base/bytes.h"
#include "base/own.h"
#include "image/debian_recipe.h"
#include "image/digest.h"
#include "image/draft.h"
#include "image/package.h"
#include "image/process.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

enum { SOURCES_MAX = 16, SUITE_MAX = 32, ARGUMENTS_MAX = 16 + SOURCES_MAX, SOURCE_SIZE = 512 };

enum flow { FILES, KERNEL, INITRD, PACKAGES, DISK, FLOW_MAX };
static const char *const flow_names[FLOW_MAX] = {
    [FILES] = "LODGE_FILES",       [KERNEL] = "LODGE_KERNEL", [INITRD] = "LODGE_INITRD",
    [PACKAGES] = "LODGE_PACKAGES", [DISK] = "LODGE_DISK",
};

/* Everything one build knows; made by image_build_debian(), freed by it. */
struct work {
    const struct image_build *build;
    const char *suite;
    struct draft draft;
    struct err *err;
    char *debs; /* private lists of packages, where the machine has none */
    struct package_source source;
    char sources[SOURCES_MAX][SOURCE_SIZE];
    unsigned source_count;
    char *append, *include;            /* kernel's words, packages' names */
    char own_digest[DIGEST_TEXT_SIZE]; /* of what is ours: files with the agent, scripts, words */
    int flows[FLOW_MAX];
    char *packages; /* lines "NAME VERSION" */
    char hash[DIGEST_TEXT_SIZE];
};

static int no_memory(const struct work *work)
{
    return err_set(work->err, -ENOMEM, "no memory");
}

/* --- where packages come from --- */

bool image_debian_suite_valid(const char *suite)
{
    size_t length = strlen(suite);
    return length > 0 && length <= SUITE_MAX && *suite >= 'a' && *suite <= 'z' &&
           strspn(suite, "abcdefghijklmnopqrstuvwxyz0123456789-") == length;
}

int image_debian_source(const char *repository, const char *suite, char *ret_line, size_t size)
{
    /* "bookworm-updates": what follows the suite stays, where every suite has it. */
    char site[SOURCE_SIZE / 2], release[64], component[32];
    if (sscanf(repository, "%255s %63s %31s", site, release, component) != 3 ||
        strcmp(component, "main") != 0)
        return -ENOENT;
    const char *rest = release + strcspn(release, "-");
    bool rolling = !strcmp(suite, "sid") || !strcmp(suite, "unstable");
    if (*rest && (rolling || (strcmp(rest, "-updates") != 0 && strcmp(rest, "-security") != 0)))
        return -ENOENT;
    int length = snprintf(ret_line, size, "deb %s %s%s main", site, suite, rest);
    return length < (int)size ? 0 : -ENOENT;
}

static bool known_source(const struct work *work, const char *line)
{
    for (unsigned i = 0; i < work->source_count; i++)
        if (!strcmp(work->sources[i], line))
            return true;
    return false;
}

static int take_sources(struct work *work)
{
    _cleanup_free_ char *text = NULL;
    int r = package_repositories(&work->source, &text, work->err);
    if (r < 0)
        return r;
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char *to = work->sources[work->source_count];
        if (work->source_count + 1 < SOURCES_MAX &&
            image_debian_source(line, work->suite, to, SOURCE_SIZE) >= 0 && !known_source(work, to))
            work->source_count++;
    }
    return draft_stopped(&work->draft);
}

/* None is fine: mmdebstrap then takes Debian's own. */
static int find_sources(struct work *work)
{
    work->source.cache = work->debs;
    int r = take_sources(work);
    if (r < 0 || work->source_count > 0)
        return r;
    draft_note(&work->draft, "this machine has no package lists; fetching private ones");
    struct err ignored = {0};
    r = package_update(&work->source, &ignored);
    return r >= 0 ? take_sources(work) : draft_stopped(&work->draft);
}

/* --- what we put in, and get out --- */

/* mmdebstrap's own shell scripts can name descriptors of one digit only, so ours leave it those. */
static int move_flows(struct work *work)
{
    enum { FIRST = 100 };
    for (int i = 0; i < FLOW_MAX; i++) {
        int moved = fcntl(work->flows[i], F_DUPFD_CLOEXEC, FIRST);
        if (moved < 0)
            return err_errno(work->err, errno, "descriptors");
        own_close(&work->flows[i]);
        work->flows[i] = moved;
    }
    return 0;
}

static int open_flows(struct work *work)
{
    for (int i = KERNEL; i < DISK; i++) {
        work->flows[i] = memfd_create(flow_names[i], MFD_CLOEXEC);
        if (work->flows[i] < 0)
            return err_errno(work->err, errno, "memory file");
    }
    /* Too large for memory. It has no name, so that anybody may write to it who was given the
     * descriptor, whatever user mmdebstrap makes of itself. */
    _cleanup_free_ char *path = draft_path(work->draft.temporary, "disk.raw");
    work->flows[DISK] = path ? open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
    if (work->flows[DISK] < 0 || unlink(path) < 0 || fchmod(work->flows[DISK], 0666) < 0)
        return err_errno(work->err, errno, "raw disk");
    return move_flows(work);
}

static char *hook(const struct work *work, const char *option, const char *script)
{
    char *text;
    int length =
        asprintf(&text, "--%s-hook=export %s=%d %s=%d %s=%d %s=%d %s=%d\n%s", option,
                 flow_names[FILES], work->flows[FILES], flow_names[KERNEL], work->flows[KERNEL],
                 flow_names[INITRD], work->flows[INITRD], flow_names[PACKAGES],
                 work->flows[PACKAGES], flow_names[DISK], work->flows[DISK], script);
    return length < 0 ? NULL : text;
}

static int run_mmdebstrap(struct work *work)
{
    _cleanup_free_ char *files = hook(work, "essential", debian_files_script);
    _cleanup_free_ char *finish = hook(work, "customize", debian_finish_script);
    _cleanup_free_ char *include = NULL;
    if (!files || !finish || asprintf(&include, "--include=%s", work->include) < 0)
        return no_memory(work);
    const char *argv[ARGUMENTS_MAX] = {
        "mmdebstrap",
        geteuid() == 0 ? "--mode=root" : "--mode=unshare",
        "--variant=apt",
        "--format=null",
        "--quiet",
        "--skip=cleanup", /* the script does it before it makes the disk */
        "--aptopt=Apt::Install-Recommends \"false\"",
        "--dpkgopt=force-unsafe-io", /* after a crash it is made anew anyway */
        include,
        files,
        finish,
        work->suite,
        "-", /* the target; nothing goes there */
    };
    size_t count = 0;
    while (argv[count])
        count++;
    for (unsigned i = 0; i < work->source_count; i++)
        argv[count++] = work->sources[i];
    return process_run(argv, NULL, work->flows, FLOW_MAX, work->err);
}

static int install(struct work *work)
{
    char text[128];
    snprintf(text, sizeof text, "installing Debian %s; this takes some minutes", work->suite);
    draft_note(&work->draft, text);
    int r = run_mmdebstrap(work);
    if (r == -ENOENT)
        return err_set(work->err, r, "there is no mmdebstrap; install the package of that name");
    return r;
}

static int read_packages(struct work *work)
{
    struct stat status;
    int fd = work->flows[PACKAGES];
    if (fstat(fd, &status) < 0 || status.st_size == 0 || status.st_size > 1 << 20)
        return err_set(work->err, -EIO, "mmdebstrap gave no list of packages");
    work->packages = calloc(1, (size_t)status.st_size + 1);
    if (!work->packages)
        return no_memory(work);
    if (pread(fd, work->packages, (size_t)status.st_size, 0) != status.st_size)
        return err_set(work->err, -EIO, "list of packages");
    _cleanup_free_ char *text = NULL;
    if (asprintf(&text, "debian\n%s\n%s\n%s", work->suite, work->own_digest, work->packages) < 0) {
        text = NULL;
        return no_memory(work);
    }
    int r = digest_bytes(text, strlen(text), work->hash);
    return r < 0 ? err_set(work->err, r, "SHA-256 failed") : 0;
}

/* --- writing the image --- */

static int write_initrd(struct work *work)
{
    _cleanup_free_ char *path = NULL;
    _cleanup_fd_ int fd = -1;
    struct stat status;
    int r = draft_create(&work->draft, "initrd.img", &path, &fd);
    if (r < 0)
        return r;
    if (fstat(work->flows[INITRD], &status) < 0 || status.st_size == 0)
        return err_set(work->err, -EIO, "mmdebstrap gave no initrd");
    off_t from = 0;
    while (from < status.st_size) {
        ssize_t n = sendfile(fd, work->flows[INITRD], &from, (size_t)(status.st_size - from));
        if (n <= 0)
            return err_errno(work->err, n < 0 ? errno : EIO, "'%s'", path);
    }
    return draft_finish_file(&work->draft, fd, path, "initrd", "initrd.img");
}

static int write_disk(struct work *work)
{
    static const char name[] = "disk.qcow2";
    char raw[64];
    draft_note(&work->draft, "writing the disk");
    _cleanup_free_ char *path = draft_path(work->draft.temporary, name);
    if (!path)
        return no_memory(work);
    snprintf(raw, sizeof raw, "/proc/self/fd/%d", work->flows[DISK]);
    int r = work->build->make_disk(work->build->opaque, raw, path, work->err);
    if (r < 0)
        return r;
    _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(work->err, errno, "'%s'", path);
    return draft_finish_file(&work->draft, fd, path, "disk", name);
}

/* Of the packages' "linux-image-6.1.0-56-cloud-amd64" what follows the prefix: the one with a
 * version in its name. */
static void find_release(const struct work *work, char *ret_release, size_t size)
{
    static const char prefix[] = "\nlinux-image-";
    *ret_release = '\0';
    for (const char *at = strstr(work->packages, prefix); at; at = strstr(at + 1, prefix)) {
        const char *version = at + strlen(prefix);
        if (*version >= '0' && *version <= '9')
            snprintf(ret_release, size, "%.*s", (int)strcspn(version, " \n"), version);
    }
}

static json_t *describe_packages(struct work *work)
{
    json_t *array = json_array();
    char *rest = NULL;
    for (char *line = strtok_r(work->packages, "\n", &rest); line;
         line = strtok_r(NULL, "\n", &rest)) {
        char *blank = strchr(line, ' ');
        if (!blank)
            continue;
        *blank = '\0';
        json_array_append_new(array, json_pack("{s:s, s:s}", "name", line, "version", blank + 1));
    }
    return array;
}

static json_t *describe(struct work *work)
{
    char release[128];
    find_release(work, release, sizeof release);
    return json_pack("{s:s, s:s, s:I, s:b, s:b, s:b, s:o}", "release", release, "append",
                     work->append, "memory", (json_int_t)DEBIAN_MEMORY, "agent", 1, "login", 1,
                     "seed", 1, "packages", describe_packages(work));
}

static int make(struct work *work)
{
    int r = draft_begin(&work->draft);
    if (r >= 0)
        r = find_sources(work);
    if (r >= 0)
        r = open_flows(work);
    if (r >= 0)
        r = install(work);
    if (r >= 0)
        r = read_packages(work);
    if (r >= 0)
        r = draft_write_kernel(&work->draft, work->flows[KERNEL]);
    if (r >= 0)
        r = write_initrd(work);
    if (r >= 0)
        r = write_disk(work);
    return r < 0 ? r : draft_publish(&work->draft, work->hash, describe(work));
}

/* --- the whole --- */

static int write_files(struct work *work)
{
    struct stat status;
    _cleanup_fd_ int fd = open(work->build->agent, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0)
        return err_errno(work->err, errno, "'%s'", work->build->agent);
    size_t size = (size_t)status.st_size;
    _cleanup_free_ uint8_t *agent = malloc(size + 1);
    if (!agent)
        return no_memory(work);
    if (read(fd, agent, size) != (ssize_t)size)
        return err_set(work->err, -EIO, "'%s' cannot be read", work->build->agent);
    work->flows[FILES] = memfd_create(flow_names[FILES], MFD_CLOEXEC);
    if (work->flows[FILES] < 0)
        return err_errno(work->err, errno, "memory file");
    return debian_write_files(agent, size, work->flows[FILES], work->err);
}

static int prepare_own_part(struct work *work)
{
    char path[64], files_digest[DIGEST_TEXT_SIZE];
    _cleanup_free_ char *text = NULL;
    work->append = debian_append();
    work->include = debian_packages();
    work->debs = draft_path(work->build->cache, "debs");
    if (!work->append || !work->include || !work->debs)
        return no_memory(work);
    int r = write_files(work);
    if (r < 0)
        return r;
    snprintf(path, sizeof path, "/proc/self/fd/%d", work->flows[FILES]);
    r = digest_file(path, files_digest, work->err);
    if (r < 0)
        return r;
    if (asprintf(&text, "%s\n%s\n%s\n%s\n%s", files_digest, work->append, work->include,
                 debian_files_script, debian_finish_script) < 0) {
        text = NULL;
        return no_memory(work);
    }
    r = digest_bytes(text, strlen(text), work->own_digest);
    return r < 0 ? err_set(work->err, r, "SHA-256 failed")
                 : image_make_directories(work->debs, work->err);
}

/* As long as neither the machine's package lists nor our own part changed, there is no reason to
 * install it all again. */
static int stamp_now(const struct work *work, bool private_lists, char *ret_text, size_t size)
{
    char lists[128];
    struct package_source source = {work->debs, private_lists};
    int r = package_lists_stamp(&source, lists, sizeof lists);
    if (r >= 0)
        snprintf(ret_text, size, "%s %s\n", lists, work->own_digest);
    return r;
}

static bool is_current(const struct work *work, const struct image *image)
{
    char stored[512] = "", now[512];
    return image_usable(image) &&
           draft_read_stamp(&work->draft, image->hash, stored, sizeof stored) &&
           stamp_now(work, *stored == '1', now, sizeof now) >= 0 && !strcmp(stored, now);
}

static int build_locked(struct work *work, struct image *ret_image)
{
    struct image image = {0};
    char stamp[512];
    int r = prepare_own_part(work);
    if (r < 0)
        return r;
    if (image_find(work->build->store, work->draft.name, &image, NULL) >= 0 &&
        is_current(work, &image)) {
        *ret_image = image;
        return 0;
    }
    image_free(&image);
    r = make(work);
    if (r >= 0)
        r = image_find(work->build->store, work->draft.name, ret_image, work->err);
    if (r >= 0 && stamp_now(work, work->source.private_lists, stamp, sizeof stamp) >= 0)
        draft_write_stamp(&work->draft, ret_image->hash, stamp);
    return r < 0 ? r : 1;
}

static void free_work(struct work *work)
{
    for (int i = 0; i < FLOW_MAX; i++)
        own_close(&work->flows[i]);
    free(work->debs);
    free(work->append);
    free(work->include);
    free(work->packages);
    draft_close(&work->draft);
}

int image_build_debian(const struct image_build *build, const char *suite, struct image *ret_image,
                       struct err *err)
{
    struct work work = {.build = build, .suite = suite, .err = err, .flows = {-1, -1, -1, -1, -1}};
    char name[SUITE_MAX + sizeof "debian:"];
    if (!image_debian_suite_valid(suite))
        return err_set(err, -EINVAL, "'%.64s' is no name of a Debian suite", suite);
    snprintf(name, sizeof name, "debian:%s", suite);
    int r = draft_open(&work.draft, build, name, err);
    if (r >= 0)
        r = build_locked(&work, ret_image);
    free_work(&work);
    return r < 0 ? err_prefix(err, r, "cannot build image '%s'", name) : r;
}
