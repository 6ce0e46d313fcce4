#include "image/draft.h"

#include "base/own.h"
#include "image/digest.h"
#include "image/process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>

void draft_note(const struct draft *draft, const char *text)
{
    if (draft->build->note)
        draft->build->note(draft->build->opaque, text);
}

int draft_stopped(const struct draft *draft)
{
    if (draft->build->stop && *draft->build->stop)
        return err_set(draft->err, -EINTR, "interrupted");
    return 0;
}

char *draft_path(const char *folder, const char *name)
{
    char *path;
    return asprintf(&path, "%s/%s", folder, name) < 0 ? NULL : path;
}

static int lock_folder(struct draft *draft)
{
    int r = image_make_directories(draft->folder, draft->err);
    if (r < 0)
        return r;
    _cleanup_free_ char *path = draft_path(draft->folder, ".lock");
    draft->lock = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644) : -1;
    if (draft->lock < 0 || flock(draft->lock, LOCK_EX) < 0)
        return err_errno(draft->err, errno, "cannot lock '%s'", draft->folder);
    return 0;
}

int draft_open(struct draft *draft, const struct image_build *build, const char *name,
               struct err *err)
{
    *draft = (struct draft){.build = build, .name = name, .err = err, .lock = -1};
    draft->folder = draft_path(build->store, name);
    draft->json = json_object();
    int r = draft->folder && draft->json ? lock_folder(draft) : err_set(err, -ENOMEM, "no memory");
    if (r < 0)
        draft_close(draft);
    return r;
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

void draft_close(struct draft *draft)
{
    if (draft->temporary)
        remove_folder(draft->temporary);
    json_decref(draft->json);
    own_close(&draft->lock);
    free(draft->temporary);
    free(draft->folder);
    *draft = (struct draft){.lock = -1};
}

int draft_begin(struct draft *draft)
{
    draft->temporary = draft_path(draft->folder, ".new-XXXXXX");
    if (!draft->temporary || !mkdtemp(draft->temporary)) {
        free(take_ptr(draft->temporary));
        return err_errno(draft->err, errno, "'%s'", draft->folder);
    }
    chmod(draft->temporary, 0755);
    return 0;
}

int draft_create(struct draft *draft, const char *name, char **ret_path, int *ret_fd)
{
    _cleanup_free_ char *path = draft_path(draft->temporary, name);
    if (!path)
        return err_set(draft->err, -ENOMEM, "no memory");
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_errno(draft->err, errno, "'%s'", path);
    *ret_path = take_ptr(path);
    *ret_fd = fd;
    return 0;
}

/* What is known by its digest must be on the disk before its name is. */
int draft_finish_file(struct draft *draft, int fd, const char *path, const char *key,
                      const char *name)
{
    char digest[DIGEST_TEXT_SIZE];
    struct stat status;
    /* Read-only from now on: lodge-vmm maps a kernel that nobody may write to (load_source.h). */
    if (fchmod(fd, 0444) < 0 || fsync(fd) < 0 || fstat(fd, &status) < 0)
        return err_errno(draft->err, errno, "'%s'", path);
    int r = digest_file(path, digest, draft->err);
    if (r < 0)
        return r;
    json_t *file = json_pack("{s:s, s:s, s:I}", "file", name, "sha256", digest, "size",
                             (json_int_t)status.st_size);
    return json_object_set_new(draft->json, key, file) < 0
               ? err_set(draft->err, -ENOMEM, "no memory")
               : 0;
}

int draft_write_kernel(struct draft *draft, int kernel_fd)
{
    _cleanup_free_ char *path = NULL;
    _cleanup_fd_ int fd = -1;
    char in[16], out[16];
    draft_note(draft, "unpacking the kernel");
    int r = draft_create(draft, "vmlinux", &path, &fd);
    if (r < 0)
        return r;
    lseek(kernel_fd, 0, SEEK_SET);
    snprintf(in, sizeof in, "%d", kernel_fd);
    snprintf(out, sizeof out, "%d", fd);
    const char *const argv[] = {draft->build->vmm, "--unpack-kernel", in, out, NULL};
    r = process_run(argv, NULL, (const int[]){kernel_fd, fd}, 2, draft->err);
    return r < 0 ? r : draft_finish_file(draft, fd, path, "kernel", "vmlinux");
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

static int write_json(struct draft *draft, const char *hash, json_t *rest)
{
    _cleanup_free_ char *path = NULL;
    _cleanup_fd_ int fd = -1;
    char created[32];
    creation_time(created, sizeof created);
    json_t *named =
        json_pack("{s:s, s:s, s:s}", "name", draft->name, "hash", hash, "created", created);
    bool whole = rest && named && json_object_update(draft->json, named) >= 0 &&
                 json_object_update(draft->json, rest) >= 0;
    json_decref(named);
    json_decref(rest);
    if (!whole)
        return err_set(draft->err, -ENOMEM, "no memory");
    int r = draft_create(draft, "image.json", &path, &fd);
    if (r < 0)
        return r;
    if (json_dumpfd(draft->json, fd, JSON_INDENT(2) | JSON_SORT_KEYS) < 0 ||
        write(fd, "\n", 1) != 1 || fsync(fd) < 0)
        return err_set(draft->err, -EIO, "'%s' cannot be written", path);
    return 0;
}

/* All but the image that is current: older ones, and what an interrupted build left. Guests that
 * run from them have their files open. */
static void remove_others(const struct draft *draft, const char *keep)
{
    DIR *dir = opendir(draft->folder);
    if (!dir)
        return;
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        bool ours =
            !strncmp(entry->d_name, ".new-", 5) || strlen(entry->d_name) == DIGEST_TEXT_SIZE - 1;
        if (!ours || (keep && !strcmp(entry->d_name, keep)))
            continue;
        _cleanup_free_ char *path = draft_path(draft->folder, entry->d_name);
        if (path)
            remove_folder(path);
    }
    closedir(dir);
}

int draft_publish(struct draft *draft, const char *hash, json_t *rest)
{
    int r = write_json(draft, hash, rest);
    if (r >= 0)
        r = draft_stopped(draft);
    if (r < 0)
        return r;
    _cleanup_free_ char *final = draft_path(draft->folder, hash);
    _cleanup_free_ char *fresh = draft_path(draft->folder, ".current-new");
    _cleanup_free_ char *current = draft_path(draft->folder, "current");
    if (!final || !fresh || !current)
        return err_set(draft->err, -ENOMEM, "no memory");
    remove_folder(final);
    if (rename(draft->temporary, final) < 0)
        return err_errno(draft->err, errno, "'%s'", final);
    free(take_ptr(draft->temporary));
    unlink(fresh);
    if (symlink(hash, fresh) < 0 || rename(fresh, current) < 0)
        return err_errno(draft->err, errno, "'%s'", current);
    remove_others(draft, hash);
    return 0;
}

static FILE *open_stamp(const struct draft *draft, const char *hash, const char *mode)
{
    _cleanup_free_ char *path = draft_path(draft->folder, hash);
    _cleanup_free_ char *stamp = path ? draft_path(path, "stamp") : NULL;
    return stamp ? fopen(stamp, mode) : NULL;
}

void draft_write_stamp(const struct draft *draft, const char *hash, const char *text)
{
    _cleanup_file_ FILE *file = open_stamp(draft, hash, "we");
    if (file)
        fputs(text, file);
}

bool draft_read_stamp(const struct draft *draft, const char *hash, char *ret_text, size_t size)
{
    _cleanup_file_ FILE *file = open_stamp(draft, hash, "re");
    return file && fgets(ret_text, (int)size, file);
}
