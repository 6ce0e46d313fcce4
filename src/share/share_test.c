/* The server as a guest sees it that behaves, and one that does not. */
#include "share/private.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { NODES = 64, HANDLES = 16 };

struct fixture {
    char top[64]; /* holds `folder`, and what a guest must not reach */
    int folder, descriptors;
    struct share *share;
    uint64_t unique;
    uint32_t uid, gid;
    uint8_t request[SHARE_MESSAGE_MAX + 64], reply[SHARE_MESSAGE_MAX];
    size_t length; /* of the reply's body */
    uint8_t *body;
};

/* One request of up to three parts; the reply's error. 1 = there was no reply. */
static int ask_parts(struct fixture *f, uint32_t opcode, uint64_t node, const void *args,
                     size_t size, const void *more, size_t more_size)
{
    struct fuse_in_header in = {.opcode = opcode,
                                .nodeid = node,
                                .unique = ++f->unique,
                                .uid = f->uid,
                                .gid = f->gid,
                                .len = (uint32_t)(sizeof in + size + more_size)};
    struct fuse_out_header out;
    memcpy(f->request, &in, sizeof in);
    if (size)
        memcpy(f->request + sizeof in, args, size);
    if (more_size)
        memcpy(f->request + sizeof in + size, more, more_size);
    size_t length = share_serve(f->share, f->request, in.len, f->reply);
    if (length == 0)
        return 1;
    memcpy(&out, f->reply, sizeof out);
    assert_int_equal(out.len, length);
    assert_int_equal(out.unique, f->unique);
    f->body = f->reply + sizeof out;
    f->length = length - sizeof out;
    if (out.error)
        assert_int_equal(f->length, 0);
    return out.error;
}

static int ask(struct fixture *f, uint32_t opcode, uint64_t node, const void *args, size_t size)
{
    return ask_parts(f, opcode, node, args, size, NULL, 0);
}

static int ask_name(struct fixture *f, uint32_t opcode, uint64_t node, const void *args,
                    size_t size, const char *name)
{
    return ask_parts(f, opcode, node, args, size, name, strlen(name) + 1);
}

static int greet_with(struct fixture *f, uint32_t major, uint32_t minor)
{
    const struct fuse_init_in in = {.major = major, .minor = minor, .flags = UINT32_MAX};
    return ask(f, FUSE_INIT, 0, &in, sizeof in);
}

static struct fuse_entry_out entry(struct fixture *f)
{
    struct fuse_entry_out out;
    assert_true(f->length >= sizeof out);
    memcpy(&out, f->body, sizeof out);
    return out;
}

static uint64_t look_up(struct fixture *f, uint64_t folder, const char *name)
{
    assert_int_equal(ask_name(f, FUSE_LOOKUP, folder, NULL, 0, name), 0);
    return entry(f).nodeid;
}

static int open_as(struct fixture *f, uint32_t opcode, uint64_t node, uint32_t flags,
                   uint64_t *ret_fh)
{
    const struct fuse_open_in in = {.flags = flags};
    struct fuse_open_out out = {0};
    int r = ask(f, opcode, node, &in, sizeof in);
    if (r == 0)
        memcpy(&out, f->body, sizeof out);
    *ret_fh = out.fh;
    return r;
}

static int create(struct fixture *f, uint64_t folder, const char *name, uint32_t flags,
                  uint32_t mode, uint64_t *ret_node, uint64_t *ret_fh)
{
    const struct fuse_create_in in = {.flags = flags, .mode = S_IFREG | mode};
    struct fuse_open_out out = {0};
    int r = ask_name(f, FUSE_CREATE, folder, &in, sizeof in, name);
    *ret_node = r == 0 ? entry(f).nodeid : 0;
    if (r == 0)
        memcpy(&out, f->body + sizeof(struct fuse_entry_out), sizeof out);
    *ret_fh = out.fh;
    return r;
}

static int write_at(struct fixture *f, uint64_t node, uint64_t fh, uint64_t offset,
                    const void *data, uint32_t size, uint32_t flags)
{
    const struct fuse_write_in in = {.fh = fh, .offset = offset, .size = size, .flags = flags};
    return ask_parts(f, FUSE_WRITE, node, &in, sizeof in, data, size);
}

static int read_at(struct fixture *f, uint64_t node, uint64_t fh, uint64_t offset, uint32_t size)
{
    const struct fuse_read_in in = {.fh = fh, .offset = offset, .size = size};
    return ask(f, FUSE_READ, node, &in, sizeof in);
}

static int release(struct fixture *f, uint32_t opcode, uint64_t node, uint64_t fh)
{
    const struct fuse_release_in in = {.fh = fh};
    return ask(f, opcode, node, &in, sizeof in);
}

static int forget(struct fixture *f, uint64_t node, uint64_t times)
{
    const struct fuse_forget_in in = {.nlookup = times};
    return ask(f, FUSE_FORGET, node, &in, sizeof in);
}

/* A file on the host's side, below the top. */
static void host_writes(struct fixture *f, const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", f->top, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static const char *host_reads(struct fixture *f, const char *name)
{
    static char text[4096];
    char path[128];
    snprintf(path, sizeof path, "%s/%s", f->top, name);
    FILE *file = fopen(path, "r");
    if (!file)
        return NULL;
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    return text;
}

static void host_stats(struct fixture *f, const char *name, struct stat *ret_status)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", f->top, name);
    assert_int_equal(lstat(path, ret_status), 0);
}

static void host_runs(struct fixture *f, const char *command)
{
    char line[256];
    snprintf(line, sizeof line, "cd '%s' && %s", f->top, command);
    assert_int_equal(system(line), 0);
}

static void start(struct fixture *f, const struct share_options *options)
{
    share_free(f->share);
    f->share = NULL;
    assert_int_equal(share_new(f->folder, f->descriptors, options, &f->share, NULL), 0);
    assert_int_equal(greet_with(f, 7, 36), 0);
}

static int setup(void **state)
{
    static const struct share_options options = {.nodes_max = NODES, .handles_max = HANDLES};
    struct fixture *f = calloc(1, sizeof *f);
    char path[96];
    strcpy(f->top, "/tmp/lodge-share-XXXXXX");
    umask(0);
    if (!mkdtemp(f->top))
        return -1;
    snprintf(path, sizeof path, "%s/folder", f->top);
    mkdir(path, 0755);
    f->folder = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    f->descriptors = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
    f->uid = getuid();
    f->gid = getgid();
    host_writes(f, "secret", "secret");
    start(f, &options);
    *state = f;
    return 0;
}

static unsigned descriptors_open(void)
{
    unsigned count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    host_runs(f, "chmod -R u+rwx . && rm -rf folder secret other");
    share_free(f->share);
    close(f->folder);
    close(f->descriptors);
    rmdir(f->top);
    free(f);
    return 0;
}

static void a_guest_makes_writes_and_reads_files(void **state)
{
    struct fixture *f = *state;
    uint64_t node, fh;
    assert_int_equal(create(f, 1, "a", O_RDWR, 0640, &node, &fh), 0);
    assert_int_equal(write_at(f, node, fh, 3, "hello", 5, 0), 0);
    assert_int_equal(le32_read(f->body), 5);
    assert_int_equal(read_at(f, node, fh, 0, 100), 0);
    assert_int_equal(f->length, 8);
    assert_memory_equal(f->body, "\0\0\0hello", 8);
    assert_int_equal(read_at(f, node, fh, 8, 100), 0);
    assert_int_equal(f->length, 0);
    assert_int_equal(release(f, FUSE_RELEASE, node, fh), 0);
    assert_int_equal(read_at(f, node, fh, 0, 100), -EBADF);
    struct stat status;
    host_stats(f, "folder/a", &status);
    assert_int_equal(status.st_mode, S_IFREG | 0640);
    assert_int_equal(status.st_size, 8);
    assert_int_equal(look_up(f, 1, "a"), node);
    assert_int_equal(entry(f).attr.size, 8);
    /* Exclusive, or what is there. */
    assert_int_equal(create(f, 1, "a", O_RDWR | O_EXCL, 0640, &node, &fh), -EEXIST);
    assert_int_equal(create(f, 1, "a", O_RDWR | O_TRUNC, 0640, &node, &fh), 0);
    host_stats(f, "folder/a", &status);
    assert_int_equal(status.st_size, 0);
}

static void appended_is_at_the_end_whatever_the_guest_believes(void **state)
{
    struct fixture *f = *state;
    uint64_t fh;
    host_writes(f, "folder/log", "one ");
    uint64_t node = look_up(f, 1, "log");
    assert_int_equal(open_as(f, FUSE_OPEN, node, O_WRONLY | O_APPEND, &fh), 0);
    host_writes(f, "folder/log", "one two ");
    assert_int_equal(write_at(f, node, fh, 4, "three", 5, O_WRONLY | O_APPEND), 0);
    assert_string_equal(host_reads(f, "folder/log"), "one two three");
    /* But not what a page cache writes back. */
    struct fuse_write_in in = {
        .fh = fh, .offset = 0, .size = 3, .flags = O_APPEND, .write_flags = FUSE_WRITE_CACHE};
    assert_int_equal(ask_parts(f, FUSE_WRITE, node, &in, sizeof in, "ONE", 3), 0);
    assert_string_equal(host_reads(f, "folder/log"), "ONE two three");
}

static void names_are_one_component(void **state)
{
    static const char *const wrong[] = {".", "..", "../secret", "a/b", "/etc/passwd", "/", "a/"};
    struct fixture *f = *state;
    char longest[NAME_MAX + 2];
    uint64_t node, fh;
    struct fuse_mkdir_in mkdir_in = {.mode = 0755};
    struct fuse_link_in link_in;
    struct fuse_rename_in rename_in = {.newdir = 1};
    host_writes(f, "folder/a", "");
    link_in.oldnodeid = look_up(f, 1, "a");
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        assert_int_equal(ask_name(f, FUSE_LOOKUP, 1, NULL, 0, wrong[i]), -EINVAL);
        assert_int_equal(create(f, 1, wrong[i], O_RDWR, 0644, &node, &fh), -EINVAL);
        assert_int_equal(ask_name(f, FUSE_MKDIR, 1, &mkdir_in, sizeof mkdir_in, wrong[i]), -EINVAL);
        assert_int_equal(ask_name(f, FUSE_UNLINK, 1, NULL, 0, wrong[i]), -EINVAL);
        assert_int_equal(ask_name(f, FUSE_RMDIR, 1, NULL, 0, wrong[i]), -EINVAL);
        assert_int_equal(ask_name(f, FUSE_LINK, 1, &link_in, sizeof link_in, wrong[i]), -EINVAL);
        char two[64];
        int size = snprintf(two, sizeof two, "a%c%s", '\0', wrong[i]) + 1;
        assert_int_equal(
            ask_parts(f, FUSE_RENAME, 1, &rename_in, sizeof rename_in, two, (size_t)size), -EINVAL);
        size = snprintf(two, sizeof two, "%s%cb", wrong[i], '\0') + 1;
        assert_int_equal(
            ask_parts(f, FUSE_RENAME, 1, &rename_in, sizeof rename_in, two, (size_t)size), -EINVAL);
        assert_int_equal(ask_parts(f, FUSE_SYMLINK, 1, two, (size_t)size, NULL, 0), -EINVAL);
    }
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_int_equal(ask_name(f, FUSE_LOOKUP, 1, NULL, 0, longest), -ENAMETOOLONG);
    assert_int_equal(ask_name(f, FUSE_LOOKUP, 1, NULL, 0, longest + 1), -ENOENT);
    /* Empty, and without its end. */
    assert_int_equal(ask_name(f, FUSE_LOOKUP, 1, NULL, 0, ""), -EINVAL);
    assert_int_equal(ask(f, FUSE_LOOKUP, 1, "abc", 3), -EINVAL);
    assert_int_equal(ask(f, FUSE_LOOKUP, 1, NULL, 0), -EINVAL);
    host_runs(f, "test $(ls folder | wc -l) = 1");
}

static void symbolic_links_are_the_guests_to_follow(void **state)
{
    struct fixture *f = *state;
    uint64_t fh, node;
    struct fuse_setattr_in chmod_in = {.valid = FATTR_MODE, .mode = 0777};
    struct fuse_setattr_in size_in = {.valid = FATTR_SIZE, .size = 0};
    assert_int_equal(ask_parts(f, FUSE_SYMLINK, 1, "out", 4, "../secret", 10), 0);
    uint64_t link = entry(f).nodeid;
    assert_int_equal(entry(f).attr.mode & S_IFMT, S_IFLNK);
    assert_int_equal(ask(f, FUSE_READLINK, link, NULL, 0), 0);
    assert_int_equal(f->length, 9);
    assert_memory_equal(f->body, "../secret", 9);
    assert_int_equal(open_as(f, FUSE_OPEN, link, O_RDONLY, &fh), -ELOOP);
    assert_int_equal(open_as(f, FUSE_OPENDIR, link, O_RDONLY, &fh), -ENOTDIR);
    assert_int_equal(ask(f, FUSE_SETATTR, link, &chmod_in, sizeof chmod_in), -EOPNOTSUPP);
    assert_int_equal(ask(f, FUSE_SETATTR, link, &size_in, sizeof size_in), -EINVAL);
    assert_int_not_equal(create(f, 1, "out", O_RDWR | O_TRUNC, 0644, &node, &fh), 0);
    assert_string_equal(host_reads(f, "secret"), "secret");
    /* A hard link to it is one to the link. */
    struct fuse_link_in in = {.oldnodeid = link};
    assert_int_equal(ask_name(f, FUSE_LINK, 1, &in, sizeof in, "again"), 0);
    assert_int_equal(entry(f).nodeid, link);
    assert_int_equal(entry(f).attr.nlink, 2);
    /* And one in the way to something is no folder. */
    host_runs(f, "mkdir other && cp secret other && ln -s ../other folder/way");
    uint64_t way = look_up(f, 1, "way");
    assert_int_equal(ask_name(f, FUSE_LOOKUP, way, NULL, 0, "secret"), -ENOTDIR);
}

static void what_is_put_in_the_way_changes_nothing(void **state)
{
    struct fixture *f = *state;
    uint64_t fh;
    host_runs(f, "mkdir folder/d && echo in >folder/d/secret && mkdir other && cp secret other");
    uint64_t folder = look_up(f, 1, "d");
    host_runs(f, "mv folder/d folder/e && ln -s ../other folder/d");
    uint64_t node = look_up(f, folder, "secret");
    assert_int_equal(open_as(f, FUSE_OPEN, node, O_RDONLY, &fh), 0);
    host_runs(f, "rm folder/e/secret && ln -s ../../secret folder/e/secret");
    assert_int_equal(read_at(f, node, fh, 0, 10), 0);
    assert_memory_equal(f->body, "in\n", 3);
    assert_int_equal(open_as(f, FUSE_OPEN, node, O_RDONLY, &fh), 0);
    assert_int_equal(read_at(f, node, fh, 0, 10), 0);
    assert_memory_equal(f->body, "in\n", 3);
}

static void only_files_and_folders_are_opened(void **state)
{
    struct fixture *f = *state;
    uint64_t fh, node;
    struct fuse_mknod_in in = {.mode = S_IFREG | 0600};
    host_runs(f, "mkfifo folder/fifo");
    node = look_up(f, 1, "fifo");
    assert_int_equal(open_as(f, FUSE_OPEN, node, O_RDONLY, &fh), -EACCES); /* and does not wait */
    assert_int_equal(open_as(f, FUSE_OPEN, node, O_WRONLY, &fh), -EACCES);
    assert_int_equal(create(f, 1, "fifo", O_WRONLY, 0600, &node, &fh), -EACCES);
    assert_int_equal(ask_name(f, FUSE_MKNOD, 1, &in, sizeof in, "made"), 0);
    assert_int_equal(open_as(f, FUSE_OPEN, entry(f).nodeid, O_RDWR, &fh), 0);
    const mode_t others[] = {S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK, S_IFDIR, S_IFLNK};
    for (size_t i = 0; i < ARRAY_LEN(others); i++) {
        in.mode = others[i] | 0600;
        assert_int_equal(ask_name(f, FUSE_MKNOD, 1, &in, sizeof in, "other"), -EPERM);
    }
    assert_int_equal(open_as(f, FUSE_OPEN, 1, O_RDONLY, &fh), -EISDIR);
    assert_int_equal(create(f, 1, "fifo", O_WRONLY | O_EXCL, 0600, &node, &fh), -EEXIST);
    host_runs(f, "mkdir folder/d");
    assert_int_equal(create(f, 1, "d", O_RDONLY, 0600, &node, &fh), -EISDIR);
}

static void nothing_becomes_set_user_id(void **state)
{
    struct fixture *f = *state;
    struct fuse_setattr_in in = {.valid = FATTR_MODE, .mode = 07755};
    struct fuse_mknod_in mknod_in = {.mode = S_IFREG | 06755};
    struct fuse_mkdir_in mkdir_in = {.mode = 06755};
    struct stat status;
    uint64_t node, fh;
    assert_int_equal(create(f, 1, "a", O_RDWR, 06755, &node, &fh), 0);
    host_stats(f, "folder/a", &status);
    assert_int_equal(status.st_mode & 07777, 0755);
    assert_int_equal(ask(f, FUSE_SETATTR, node, &in, sizeof in), 0);
    host_stats(f, "folder/a", &status);
    assert_int_equal(status.st_mode & 07777, 01755);
    assert_int_equal(ask_name(f, FUSE_MKNOD, 1, &mknod_in, sizeof mknod_in, "b"), 0);
    host_stats(f, "folder/b", &status);
    assert_int_equal(status.st_mode & 07777, 0755);
    assert_int_equal(ask_name(f, FUSE_MKDIR, 1, &mkdir_in, sizeof mkdir_in, "d"), 0);
    uint64_t folder = entry(f).nodeid;
    host_stats(f, "folder/d", &status);
    assert_int_equal(status.st_mode & 07777, 0755);
    assert_int_equal(ask(f, FUSE_SETATTR, folder, &in, sizeof in), 0);
    host_stats(f, "folder/d", &status);
    assert_int_equal(status.st_mode & 07777, 03755); /* its group is for what is made in it */
}

static void attributes_change(void **state)
{
    struct fixture *f = *state;
    struct stat status;
    uint64_t node, fh;
    assert_int_equal(create(f, 1, "a", O_RDWR, 0644, &node, &fh), 0);
    struct fuse_setattr_in in = {.valid = FATTR_SIZE | FATTR_MTIME | FATTR_ATIME | FATTR_MODE,
                                 .size = 12345,
                                 .mtime = 1000000000,
                                 .mtimensec = 5,
                                 .atime = 999,
                                 .atimensec = UTIME_NOW,
                                 .mode = 0600};
    assert_int_equal(ask(f, FUSE_SETATTR, node, &in, sizeof in), 0);
    host_stats(f, "folder/a", &status);
    assert_int_equal(status.st_size, 12345);
    assert_int_equal(status.st_mode & 07777, 0600);
    assert_int_equal(status.st_mtim.tv_sec, 1000000000);
    assert_int_equal(status.st_mtim.tv_nsec, 5);
    assert_int_equal(status.st_atim.tv_sec, 999); /* a number of nanoseconds is one */
    in = (struct fuse_setattr_in){.valid = FATTR_SIZE | FATTR_FH, .fh = fh, .size = 1};
    assert_int_equal(ask(f, FUSE_SETATTR, node, &in, sizeof in), 0);
    struct fuse_attr_out out;
    memcpy(&out, f->body, sizeof out);
    assert_int_equal(out.attr.size, 1);
    in.size = UINT64_MAX;
    assert_int_equal(ask(f, FUSE_SETATTR, node, &in, sizeof in), -EFBIG);
    in = (struct fuse_setattr_in){.valid = FATTR_SIZE};
    assert_int_equal(ask(f, FUSE_SETATTR, 1, &in, sizeof in), -EISDIR);
    struct fuse_getattr_in get = {0};
    assert_int_equal(ask(f, FUSE_GETATTR, 1, &get, sizeof get), 0);
    memcpy(&out, f->body, sizeof out);
    assert_int_equal(out.attr.mode, S_IFDIR | 0755);
    assert_int_equal(ask(f, FUSE_STATFS, 1, NULL, 0), 0);
    assert_int_equal(f->length, sizeof(struct fuse_statfs_out));
}

static void owners_are_the_guests_users_where_that_can_be(void **state)
{
    static const struct share_options options = {
        .nodes_max = NODES, .handles_max = HANDLES, .owners = true};
    struct fixture *f = *state;
    struct fuse_mkdir_in in = {.mode = 0755};
    struct stat status;
    uint64_t node, fh;
    if (getuid() != 0)
        skip();
    start(f, &options);
    f->uid = 1234;
    f->gid = 2345;
    assert_int_equal(create(f, 1, "a", O_RDWR, 0644, &node, &fh), 0);
    assert_int_equal(ask_name(f, FUSE_MKDIR, 1, &in, sizeof in, "d"), 0);
    uint64_t folder = entry(f).nodeid;
    assert_int_equal(ask_parts(f, FUSE_SYMLINK, 1, "l", 2, "x", 2), 0);
    static const char *const names[] = {"folder/a", "folder/d", "folder/l"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        host_stats(f, names[i], &status);
        assert_int_equal(status.st_uid, 1234);
        assert_int_equal(status.st_gid, 2345);
    }
    host_runs(f, "chown 7:8 folder/d && chmod g+s folder/d");
    assert_int_equal(create(f, folder, "b", O_RDWR, 0644, &node, &fh), 0);
    host_stats(f, "folder/d/b", &status);
    assert_int_equal(status.st_uid, 1234);
    assert_int_equal(status.st_gid, 8);
    /* What was there keeps its owner. */
    host_runs(f, "touch folder/old && chown 5:6 folder/old");
    assert_int_equal(create(f, 1, "old", O_RDWR, 0644, &node, &fh), 0);
    host_stats(f, "folder/old", &status);
    assert_int_equal(status.st_uid, 5);
}

static void names_move_and_go(void **state)
{
    struct fixture *f = *state;
    struct fuse_mkdir_in mkdir_in = {.mode = 0755};
    struct fuse_rename_in in;
    struct fuse_rename2_in in2;
    host_writes(f, "folder/a", "a");
    uint64_t a = look_up(f, 1, "a");
    assert_int_equal(ask_name(f, FUSE_MKDIR, 1, &mkdir_in, sizeof mkdir_in, "d"), 0);
    in = (struct fuse_rename_in){.newdir = entry(f).nodeid};
    uint64_t d = in.newdir;
    assert_int_equal(ask_parts(f, FUSE_RENAME, 1, &in, sizeof in, "a\0b", 4), 0);
    assert_string_equal(host_reads(f, "folder/d/b"), "a");
    assert_int_equal(look_up(f, d, "b"), a); /* it is the same file */
    host_writes(f, "folder/c", "c");
    in2 = (struct fuse_rename2_in){.newdir = d, .flags = RENAME_NOREPLACE};
    assert_int_equal(ask_parts(f, FUSE_RENAME2, 1, &in2, sizeof in2, "c\0b", 4), -EEXIST);
    in2.flags = RENAME_EXCHANGE;
    assert_int_equal(ask_parts(f, FUSE_RENAME2, 1, &in2, sizeof in2, "c\0b", 4), 0);
    assert_string_equal(host_reads(f, "folder/d/b"), "c");
    in2.flags = RENAME_WHITEOUT;
    assert_int_equal(ask_parts(f, FUSE_RENAME2, 1, &in2, sizeof in2, "c\0x", 4), -EINVAL);
    in2.newdir = 77;
    assert_int_equal(ask_parts(f, FUSE_RENAME2, 1, &in2, sizeof in2, "c\0x", 4), -ESTALE);
    assert_int_equal(ask_name(f, FUSE_RMDIR, 1, NULL, 0, "d"), -ENOTEMPTY);
    assert_int_equal(ask_name(f, FUSE_UNLINK, 1, NULL, 0, "d"), -EISDIR);
    assert_int_equal(ask_name(f, FUSE_UNLINK, d, NULL, 0, "b"), 0);
    assert_int_equal(ask_name(f, FUSE_RMDIR, 1, NULL, 0, "d"), 0);
    assert_int_equal(ask_name(f, FUSE_UNLINK, 1, NULL, 0, "c"), 0);
    host_runs(f, "test -z \"$(ls -A folder)\"");
    /* An open file outlives its name. */
    uint64_t node, fh;
    assert_int_equal(create(f, 1, "gone", O_RDWR, 0644, &node, &fh), 0);
    assert_int_equal(ask_name(f, FUSE_UNLINK, 1, NULL, 0, "gone"), 0);
    assert_int_equal(write_at(f, node, fh, 0, "x", 1, 0), 0);
    assert_int_equal(read_at(f, node, fh, 0, 1), 0);
    assert_int_equal(f->length, 1);
}

/* All names of the root, by pieces of `room` bytes. Returns their count. */
static unsigned list(struct fixture *f, uint32_t opcode, uint32_t room, uint64_t *ret_inodes)
{
    struct fuse_read_in in = {.size = room};
    unsigned count = 0;
    assert_int_equal(open_as(f, FUSE_OPENDIR, 1, O_RDONLY, &in.fh), 0);
    for (;;) {
        size_t head = opcode == FUSE_READDIRPLUS ? sizeof(struct fuse_entry_out) : 0;
        assert_int_equal(ask(f, opcode, 1, &in, sizeof in), 0);
        if (f->length == 0)
            break;
        assert_true(f->length <= room);
        for (size_t at = 0; at < f->length;) {
            struct fuse_dirent entry;
            struct fuse_entry_out inode = {0};
            memcpy(&inode, f->body + at, head);
            memcpy(&entry, f->body + at + head, FUSE_NAME_OFFSET);
            const char *name = (const char *)f->body + at + head + FUSE_NAME_OFFSET;
            if (name[0] == 'f') {
                assert_int_equal(entry.namelen, 4);
                count++;
            }
            if (ret_inodes && name[0] == 'f')
                ret_inodes[(name[2] - '0') * 10 + name[3] - '0'] = inode.nodeid;
            else
                assert_int_equal(inode.nodeid, 0);
            in.offset = entry.off;
            at += align_up(head + FUSE_NAME_OFFSET + entry.namelen, 8);
        }
    }
    assert_int_equal(release(f, FUSE_RELEASEDIR, 1, in.fh), 0);
    return count;
}

static void folders_are_listed_in_pieces(void **state)
{
    struct fixture *f = *state;
    uint64_t inodes[40] = {0}, fh;
    host_runs(f, "cd folder && for i in 0 1 2 3; do for j in 0 1 2 3 4 5 6 7 8 9; do "
                 "echo >ff$i$j; done; done");
    static const uint32_t rooms[] = {100, 333, 4096, SHARE_WRITE_MAX, UINT32_MAX};
    for (size_t i = 0; i < ARRAY_LEN(rooms); i++)
        assert_int_equal(list(f, FUSE_READDIR, rooms[i], NULL), 40);
    assert_int_equal(list(f, FUSE_READDIRPLUS, 600, inodes), 40);
    assert_int_equal(look_up(f, 1, "ff17"), inodes[17]);
    /* Looked up twice, so forgotten after twice. */
    assert_int_equal(forget(f, inodes[17], 1), 1);
    struct fuse_getattr_in get = {0};
    assert_int_equal(ask(f, FUSE_GETATTR, inodes[17], &get, sizeof get), 0);
    assert_int_equal(forget(f, inodes[17], 1), 1);
    assert_int_equal(ask(f, FUSE_GETATTR, inodes[17], &get, sizeof get), -ESTALE);
    /* What the guest says of where to go on may be nonsense. */
    assert_int_equal(open_as(f, FUSE_OPENDIR, 1, O_RDONLY, &fh), 0);
    static const uint64_t places[] = {1, 12345, INT64_MAX, UINT64_MAX, 1u << 31};
    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        struct fuse_read_in in = {.fh = fh, .offset = places[i], .size = 4096};
        int r = ask(f, FUSE_READDIR, 1, &in, sizeof in);
        assert_true(r == 0 || r == -EINVAL);
    }
    struct fuse_read_in in = {.fh = fh, .size = 8};
    assert_int_equal(ask(f, FUSE_READDIR, 1, &in, sizeof in), -EINVAL);
    assert_int_equal(ask(f, FUSE_READ, 1, &in, sizeof in), -EBADF); /* no file's */
}

static void nothing_changes_in_a_read_only_share(void **state)
{
    static const struct share_options options = {
        .nodes_max = NODES, .handles_max = HANDLES, .read_only = true};
    struct fixture *f = *state;
    uint64_t node, fh;
    host_runs(f, "mkdir folder/d && echo text >folder/a");
    start(f, &options);
    node = look_up(f, 1, "a");
    assert_int_equal(open_as(f, FUSE_OPEN, node, O_RDONLY, &fh), 0);
    assert_int_equal(read_at(f, node, fh, 0, 100), 0);
    assert_memory_equal(f->body, "text\n", 5);
    uint64_t other;
    assert_int_equal(open_as(f, FUSE_OPEN, node, O_WRONLY, &other), -EROFS);
    assert_int_equal(open_as(f, FUSE_OPEN, node, O_RDWR, &other), -EROFS);
    assert_int_equal(open_as(f, FUSE_OPEN, node, O_RDONLY | O_TRUNC, &other), -EROFS);
    static const uint32_t changes[] = {FUSE_SETATTR, FUSE_SYMLINK, FUSE_MKNOD,   FUSE_MKDIR,
                                       FUSE_UNLINK,  FUSE_RMDIR,   FUSE_RENAME,  FUSE_LINK,
                                       FUSE_WRITE,   FUSE_CREATE,  FUSE_RENAME2, FUSE_FALLOCATE};
    uint8_t body[200] = "a";
    for (size_t i = 0; i < ARRAY_LEN(changes); i++)
        assert_int_equal(ask(f, changes[i], 1, body, sizeof body), -EROFS);
    host_runs(f, "test \"$(cat folder/a)\" = text && test $(ls folder | wc -l) = 2");
}

static void numbers_are_not_used_again(void **state)
{
    struct fixture *f = *state;
    struct fuse_getattr_in get = {0};
    uint64_t fh, later;
    host_writes(f, "folder/a", "a");
    host_writes(f, "folder/b", "b");
    uint64_t a = look_up(f, 1, "a");
    assert_int_equal(open_as(f, FUSE_OPEN, a, O_RDONLY, &fh), 0);
    assert_int_equal(release(f, FUSE_RELEASE, a, fh), 0);
    assert_int_equal(release(f, FUSE_RELEASE, a, fh), -EBADF);
    assert_int_equal(open_as(f, FUSE_OPEN, a, O_RDONLY, &later), 0);
    assert_int_not_equal(fh, later);
    assert_int_equal(read_at(f, a, fh, 0, 1), -EBADF);
    assert_int_equal(forget(f, a, UINT64_MAX), 1);
    uint64_t b = look_up(f, 1, "b");
    assert_int_not_equal(a, b);
    assert_int_equal(ask(f, FUSE_GETATTR, a, &get, sizeof get), -ESTALE);
    assert_int_equal(ask(f, FUSE_GETATTR, 0, &get, sizeof get), -ESTALE);
    assert_int_equal(ask(f, FUSE_GETATTR, UINT64_MAX, &get, sizeof get), -ESTALE);
    assert_int_equal(forget(f, 1, UINT64_MAX), 1); /* the root stays */
    assert_int_equal(ask(f, FUSE_GETATTR, 1, &get, sizeof get), 0);
    /* The count of a batch is the guest's word. */
    const struct fuse_batch_forget_in batch = {.count = UINT32_MAX};
    const struct fuse_forget_one one = {.nodeid = b, .nlookup = 1};
    assert_int_equal(ask_parts(f, FUSE_BATCH_FORGET, 0, &batch, sizeof batch, &one, sizeof one), 1);
    assert_int_equal(ask(f, FUSE_GETATTR, b, &get, sizeof get), -ESTALE);
}

static void there_is_a_limit_to_everything(void **state)
{
    struct fixture *f = *state;
    unsigned before = descriptors_open();
    uint64_t node = 0, fh, handles[HANDLES];
    host_runs(f, "cd folder && i=0; while [ $i -lt 100 ]; do echo >f$i; i=$((i+1)); done");
    int r = 0, made = 0;
    for (; made < 100 && r == 0; made++) {
        char name[16];
        snprintf(name, sizeof name, "f%d", made);
        r = ask_name(f, FUSE_LOOKUP, 1, NULL, 0, name);
        node = r == 0 ? entry(f).nodeid : node;
    }
    assert_int_equal(r, -ENFILE);
    assert_int_equal(made, NODES);
    assert_int_equal(forget(f, node, 1), 1);
    node = look_up(f, 1, "f99");
    for (int i = 0; i < HANDLES; i++)
        assert_int_equal(open_as(f, FUSE_OPEN, node, O_RDONLY, &handles[i]), 0);
    assert_int_equal(open_as(f, FUSE_OPEN, node, O_RDONLY, &fh), -ENFILE);
    assert_int_equal(release(f, FUSE_RELEASE, node, handles[3]), 0);
    assert_int_equal(open_as(f, FUSE_OPEN, node, O_RDONLY, &fh), 0);
    assert_int_equal(read_at(f, node, fh, 0, SHARE_WRITE_MAX + 1), -EINVAL);
    assert_int_equal(read_at(f, node, fh, UINT64_MAX, 1), -EINVAL);
    struct fuse_write_in in = {.fh = fh, .size = UINT32_MAX};
    assert_int_equal(ask_parts(f, FUSE_WRITE, node, &in, sizeof in, "abc", 3), -EINVAL);
    /* A guest that begins anew has nothing. */
    assert_int_equal(greet_with(f, 7, 31), 0);
    assert_int_equal(descriptors_open(), before);
    assert_int_equal(read_at(f, 1, fh, 0, 1), -EBADF);
}

static void what_is_no_request_has_no_reply(void **state)
{
    struct fixture *f = *state;
    struct fuse_in_header in = {.opcode = FUSE_GETATTR, .nodeid = 1, .len = 41};
    memcpy(f->request, &in, sizeof in);
    assert_int_equal(share_serve(f->share, f->request, 40, f->reply), 0);
    assert_int_equal(share_serve(f->share, f->request, 39, f->reply), 0);
    assert_int_equal(share_serve(f->share, f->request, 0, f->reply), 0);
    /* Short ones of every kind have an error or nothing, and unknown kinds ENOSYS. */
    for (uint32_t opcode = 0; opcode < 64; opcode++) {
        uint8_t bytes[4] = {0};
        int r = ask(f, opcode, 1, bytes, sizeof bytes);
        if (opcode == FUSE_GETATTR || opcode == FUSE_STATFS || opcode == FUSE_DESTROY)
            assert_int_equal(r, 0);
        else
            assert_true(r < 0 || r == 1);
        greet_with(f, 7, 36);
    }
    assert_int_equal(ask(f, UINT32_MAX, 1, NULL, 0), -ENOSYS);
    assert_int_equal(ask(f, FUSE_GETXATTR, 1, NULL, 0), -ENOSYS);
}

static void versions_are_agreed_on(void **state)
{
    struct fixture *f = *state;
    struct fuse_getattr_in get = {0};
    struct fuse_init_out out;
    assert_int_equal(greet_with(f, 7, 38), 0);
    memcpy(&out, f->body, sizeof out);
    assert_int_equal(out.major, 7);
    assert_int_equal(out.minor, 31);
    assert_int_equal(out.max_write, SHARE_WRITE_MAX);
    assert_int_equal(out.max_pages, SHARE_WRITE_MAX / 4096);
    assert_false(out.flags & (FUSE_WRITEBACK_CACHE | FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS));
    assert_int_equal(greet_with(f, 7, 30), -EPROTO);
    assert_int_equal(greet_with(f, 6, 99), -EPROTO);
    assert_int_equal(greet_with(f, 8, 0), 0);
    assert_int_equal(ask(f, FUSE_GETATTR, 1, &get, sizeof get), -EIO); /* nothing agreed on yet */
    assert_int_equal(greet_with(f, 7, 31), 0);
    assert_int_equal(ask(f, FUSE_GETATTR, 1, &get, sizeof get), 0);
    assert_int_equal(ask(f, FUSE_DESTROY, 1, NULL, 0), 0);
    assert_int_equal(ask(f, FUSE_GETATTR, 1, &get, sizeof get), -EIO);
}

static void holes_and_syncs(void **state)
{
    struct fixture *f = *state;
    uint64_t node, fh, folder;
    assert_int_equal(create(f, 1, "a", O_RDWR, 0644, &node, &fh), 0);
    struct fuse_fallocate_in allocate = {.fh = fh, .length = 1 << 20};
    assert_int_equal(ask(f, FUSE_FALLOCATE, node, &allocate, sizeof allocate), 0);
    struct stat status;
    host_stats(f, "folder/a", &status);
    assert_int_equal(status.st_size, 1 << 20);
    allocate.mode = FALLOC_FL_COLLAPSE_RANGE;
    assert_int_equal(ask(f, FUSE_FALLOCATE, node, &allocate, sizeof allocate), -EOPNOTSUPP);
    struct fuse_lseek_in seek = {.fh = fh, .whence = SEEK_HOLE};
    assert_int_equal(ask(f, FUSE_LSEEK, node, &seek, sizeof seek), 0);
    seek.whence = SEEK_END;
    assert_int_equal(ask(f, FUSE_LSEEK, node, &seek, sizeof seek), -EINVAL);
    struct fuse_fsync_in sync = {.fh = fh, .fsync_flags = FUSE_FSYNC_FDATASYNC};
    assert_int_equal(ask(f, FUSE_FSYNC, node, &sync, sizeof sync), 0);
    assert_int_equal(ask(f, FUSE_FSYNCDIR, node, &sync, sizeof sync), -EBADF);
    assert_int_equal(open_as(f, FUSE_OPENDIR, 1, O_RDONLY, &folder), 0);
    sync.fh = folder;
    assert_int_equal(ask(f, FUSE_FSYNCDIR, 1, &sync, sizeof sync), 0);
    assert_int_equal(ask(f, FUSE_FSYNC, 1, &sync, sizeof sync), -EBADF);
}

static void only_a_folder_is_shared(void **state)
{
    static const struct share_options options = {.nodes_max = NODES, .handles_max = HANDLES};
    struct share *share;
    int fd = open("/proc/self/exe", O_PATH | O_CLOEXEC);
    assert_int_equal(share_new(fd, -1, &options, &share, NULL), -ENOTDIR);
    close(fd);
}

#define with_share(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        with_share(a_guest_makes_writes_and_reads_files),
        with_share(appended_is_at_the_end_whatever_the_guest_believes),
        with_share(names_are_one_component),
        with_share(symbolic_links_are_the_guests_to_follow),
        with_share(what_is_put_in_the_way_changes_nothing),
        with_share(only_files_and_folders_are_opened),
        with_share(nothing_becomes_set_user_id),
        with_share(attributes_change),
        with_share(owners_are_the_guests_users_where_that_can_be),
        with_share(names_move_and_go),
        with_share(folders_are_listed_in_pieces),
        with_share(nothing_changes_in_a_read_only_share),
        with_share(numbers_are_not_used_again),
        with_share(there_is_a_limit_to_everything),
        with_share(what_is_no_request_has_no_reply),
        with_share(versions_are_agreed_on),
        with_share(holes_and_syncs),
        cmocka_unit_test(only_a_folder_is_shared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
