/*
 * The confinement under attack. Each case runs in a child of its own that confines itself first,
 * with a folder open and a file beside it; the kernel must kill it for what is forbidden, refuse
 * what lies outside, and let it do what a file server does.
 */
#include "confine.h"
#include "share/share.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/landlock.h>
#include <linux/openat2.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/capability.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { FINE = 42, KILLED = -1 };

struct place {
    char top[64];
    struct confine confine;
};

static int open_below(const struct place *place, const char *name, uint64_t flags)
{
    struct open_how how = {.flags = flags | O_CLOEXEC, .mode = flags & O_CREAT ? 0644 : 0};
    return (int)syscall(SYS_openat2, place->confine.folder, name, &how, sizeof how);
}

static int setup(void **state)
{
    struct place *place = calloc(1, sizeof *place);
    char path[96];
    int pair[2];
    strcpy(place->top, "/tmp/lodge-confine-XXXXXX");
    if (!mkdtemp(place->top) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
        return -1;
    snprintf(path, sizeof path, "%s/folder", place->top);
    mkdir(path, 0755);
    place->confine.folder = open(path, O_PATH | O_DIRECTORY);
    place->confine.descriptors = open("/proc/self/fd", O_PATH | O_DIRECTORY);
    place->confine.socket = pair[0];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", place->top, i ? "folder/file" : "beside");
        close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    }
    *state = place;
    return 0;
}

static int teardown(void **state)
{
    struct place *place = *state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", place->top);
    int r = system(command);
    free(place);
    return r;
}

/* What becomes of a child that does this in confinement: its status, or KILLED. */
static int outcome(struct place *place, bool read_only, int (*act)(struct place *place))
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        place->confine.read_only = read_only;
        /* /proc/self is another's after fork(). Nothing here needs the socket. */
        dup2(open("/proc/self/fd", O_PATH | O_DIRECTORY), place->confine.descriptors);
        dup2(open("/proc/self/status", O_RDONLY), place->confine.socket);
        if (confine_enter(&place->confine, NULL) < 0)
            syscall(SYS_exit_group, 1);
        syscall(SYS_exit_group, act(place));
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFSIGNALED(status)) {
        assert_int_equal(WTERMSIG(status), SIGSYS);
        return KILLED;
    }
    return WEXITSTATUS(status);
}

static int attack_openat(struct place *place)
{
    return (int)syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDONLY);
}

static int attack_openat_folder(struct place *place)
{
    return (int)syscall(SYS_openat, place->confine.folder, "../beside", O_RDONLY);
}

static int attack_open(struct place *place)
{
    return (int)syscall(SYS_open, "/etc/passwd", O_RDONLY);
}

static int attack_stat(struct place *place)
{
    char room[256];
    return (int)syscall(SYS_newfstatat, AT_FDCWD, "/etc/passwd", room, 0);
}

static int attack_socket(struct place *place)
{
    return (int)syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
}

static int attack_execve(struct place *place)
{
    char *none[] = {NULL};
    return (int)syscall(SYS_execve, "/bin/true", none, none);
}

static int attack_fork(struct place *place)
{
    return (int)syscall(SYS_fork);
}

static int attack_clone(struct place *place)
{
    return (int)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
}

static int attack_ptrace(struct place *place)
{
    return (int)syscall(SYS_ptrace, 0, 0, NULL, NULL);
}

static int attack_mount(struct place *place)
{
    return (int)syscall(SYS_mount, "none", "/mnt", "tmpfs", 0, NULL);
}

static int attack_mknod(struct place *place)
{
    return (int)syscall(SYS_mknodat, place->confine.folder, "device", S_IFCHR | 0666, 0x103);
}

static int attack_setxattr(struct place *place)
{
    return (int)syscall(SYS_fsetxattr, place->confine.folder, "user.x", "", 0, 0);
}

static int attack_kill(struct place *place)
{
    return (int)syscall(SYS_kill, getppid(), 0);
}

static int attack_ioctl(struct place *place)
{
    return (int)syscall(SYS_ioctl, 0, 0x5412, "x");
}

static int attack_code(struct place *place)
{
    return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
           MAP_FAILED;
}

static int attack_chown(struct place *place)
{
    return (int)syscall(SYS_fchownat, AT_FDCWD, "/tmp", 0, 0, 0);
}

static void what_no_file_server_does_ends_it(void **state)
{
    static int (*const attacks[])(struct place *) = {
        attack_openat, attack_openat_folder, attack_open,  attack_stat,
        attack_socket, attack_execve,        attack_fork,  attack_clone,
        attack_ptrace, attack_mount,         attack_mknod, attack_setxattr,
        attack_kill,   attack_ioctl,         attack_code,  attack_chown};
    for (size_t i = 0; i < ARRAY_LEN(attacks); i++)
        for (int read_only = 0; read_only < 2; read_only++)
            assert_int_equal(outcome(*state, read_only, attacks[i]), KILLED);
}

static int change_make(struct place *place)
{
    return mkdirat(place->confine.folder, "made", 0755) == 0 ? FINE : errno;
}

static int change_remove(struct place *place)
{
    return unlinkat(place->confine.folder, "nothing", 0) < 0 && errno == ENOENT ? FINE : errno;
}

static int change_mode(struct place *place)
{
    char name[16];
    snprintf(name, sizeof name, "%d", place->confine.folder);
    return fchmodat(place->confine.descriptors, name, 0711, 0) == 0 ? FINE : errno;
}

static int change_size(struct place *place)
{
    return ftruncate(place->confine.folder, 0) < 0 && errno == EBADF ? FINE : errno;
}

static int change_times(struct place *place)
{
    return utimensat(place->confine.folder, "", NULL, AT_EMPTY_PATH) == 0 ? FINE : errno;
}

static int change_link(struct place *place)
{
    return linkat(place->confine.descriptors, "none", place->confine.folder, "x", 0) < 0 &&
                   errno == ENOENT
               ? FINE
               : errno;
}

static int change_by_cutting(struct place *place)
{
    return openat(place->confine.descriptors, "none", O_RDONLY | O_TRUNC) < 0 && errno == ENOENT
               ? FINE
               : errno;
}

static int change_by_opening(struct place *place)
{
    return openat(place->confine.descriptors, "none", O_RDWR) < 0 && errno == ENOENT ? FINE : errno;
}

static void a_read_only_server_cannot_change_anything(void **state)
{
    static int (*const changes[])(struct place *) = {
        change_make,  change_remove, change_mode,       change_size,
        change_times, change_link,   change_by_cutting, change_by_opening};
    for (size_t i = 0; i < ARRAY_LEN(changes); i++) {
        assert_int_equal(outcome(*state, true, changes[i]), KILLED);
        assert_int_equal(outcome(*state, false, changes[i]), FINE);
    }
}

static int reach_outside(struct place *place)
{
    char path[96];
    snprintf(path, sizeof path, "%s/beside", place->top);
    struct open_how how = {.flags = O_RDONLY};
    long fd = syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
    return fd < 0 && errno == EACCES ? FINE : 2;
}

static int reach_up(struct place *place)
{
    return open_below(place, "../beside", O_RDWR) < 0 && errno == EACCES ? FINE : 2;
}

static int make_outside(struct place *place)
{
    return mkdirat(place->confine.folder, "../made", 0755) < 0 && errno == EACCES ? FINE : 2;
}

static int reach_inside(struct place *place)
{
    return open_below(place, "file", O_RDONLY) >= 0 ? FINE : errno;
}

static int write_inside(struct place *place)
{
    return open_below(place, "file", O_RDWR | O_TRUNC) >= 0 &&
                   open_below(place, "other", O_RDWR | O_CREAT) >= 0
               ? FINE
               : errno;
}

static int write_refused(struct place *place)
{
    return open_below(place, "file", O_RDWR) < 0 && errno == EACCES ? FINE : 2;
}

/* Even without openat2()'s flags, which keep to the folder by themselves. */
static void the_kernel_keeps_it_in_the_folder(void **state)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    assert_int_equal(outcome(*state, false, reach_inside), FINE);
    assert_int_equal(outcome(*state, false, write_inside), FINE);
    assert_int_equal(outcome(*state, true, reach_inside), FINE);
    if (version < 2)
        skip();
    for (int read_only = 0; read_only < 2; read_only++) {
        assert_int_equal(outcome(*state, read_only, reach_outside), FINE);
        assert_int_equal(outcome(*state, read_only, reach_up), FINE);
    }
    assert_int_equal(outcome(*state, false, make_outside), FINE);
    assert_int_equal(outcome(*state, true, write_refused), FINE);
}

/* By the kernel's own word: /proc/self/status was opened before. */
static int tell_capabilities(struct place *place)
{
    char text[4096] = "";
    uint64_t wanted = place->confine.read_only
                          ? 1u << CAP_DAC_READ_SEARCH
                          : 1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_FOWNER;
    if (pread(place->confine.socket, text, sizeof text - 1, 0) <= 0)
        return 2;
    static const char *const sets[] = {"CapPrm:\t", "CapEff:\t"};
    for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
        const char *at = strstr(text, sets[i]);
        if (!at || strtoull(at + strlen(sets[i]), NULL, 16) != wanted)
            return 3;
    }
    return place->confine.owners == !place->confine.read_only ? FINE : 4;
}

static void few_capabilities_are_left(void **state)
{
    struct place *place = *state;
    if (getuid() != 0)
        skip();
    for (int read_only = 0; read_only < 2; read_only++)
        assert_int_equal(outcome(place, read_only, tell_capabilities), FINE);
}

/* A whole round: the server makes, writes, reads and removes a file in its confinement. */
static int serve_all(struct place *place)
{
    static uint8_t request[SHARE_MESSAGE_MAX], reply[SHARE_MESSAGE_MAX];
    const struct share_options options = {.read_only = place->confine.read_only,
                                          .owners = place->confine.owners,
                                          .nodes_max = place->confine.nodes_max,
                                          .handles_max = place->confine.handles_max};
    struct share *share;
    if (share_new(place->confine.folder, place->confine.descriptors, &options, &share, NULL) < 0)
        return 2;
    static const struct fuse_init_in init = {.major = 7, .minor = 36};
    static const struct {
        uint32_t opcode;
        size_t size;
        const char *name;
        size_t name_size;
    } steps[] = {
        {FUSE_INIT, sizeof init, "", 0},
        {FUSE_CREATE, sizeof(struct fuse_create_in), "a", 2},
        {FUSE_MKDIR, sizeof(struct fuse_mkdir_in), "d", 2},
        {FUSE_SYMLINK, 0, "l\0to", 5},
        {FUSE_LOOKUP, 0, "a", 2},
        {FUSE_SETATTR, sizeof(struct fuse_setattr_in), "", 0},
        {FUSE_STATFS, 0, "", 0},
        {FUSE_RENAME, sizeof(struct fuse_rename_in), "a\0b", 4},
        {FUSE_UNLINK, 0, "b", 2},
        {FUSE_RMDIR, 0, "d", 2},
        {FUSE_UNLINK, 0, "l", 2},
    };
    for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
        struct fuse_in_header in = {.opcode = steps[i].opcode, .nodeid = 1};
        memset(request, 0, 512);
        in.len = (uint32_t)(sizeof in + steps[i].size + steps[i].name_size);
        memcpy(request, &in, sizeof in);
        if (steps[i].opcode == FUSE_INIT)
            memcpy(request + sizeof in, &init, sizeof init);
        if (steps[i].opcode == FUSE_RENAME)
            request[sizeof in] = 1; /* to the root */
        if (steps[i].opcode == FUSE_SETATTR)
            le32_write(request + sizeof in, FATTR_MTIME_NOW | FATTR_UID | FATTR_MODE);
        if (steps[i].opcode == FUSE_SETATTR)
            le32_write(request + sizeof in + offsetof(struct fuse_setattr_in, mode), 0755);
        memcpy(request + sizeof in + steps[i].size, steps[i].name, steps[i].name_size);
        share_serve(share, request, in.len, reply);
        if (le32_read(reply + 4) != 0)
            return (int)i + 100;
    }
    share_free(share);
    return FINE;
}

static void it_can_serve(void **state)
{
    struct place *place = *state;
    assert_int_equal(outcome(place, false, serve_all), FINE);
}

#define with_place(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        with_place(what_no_file_server_does_ends_it),
        with_place(a_read_only_server_cannot_change_anything),
        with_place(the_kernel_keeps_it_in_the_folder),
        with_place(few_capabilities_are_left),
        with_place(it_can_serve),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
