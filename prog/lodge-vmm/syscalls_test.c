/*
 * The filter under attack. Each case runs in a child of its own that confines itself first; the
 * kernel must kill it for what is forbidden, and let it end well for what a machine needs.
 */
#include "privileges.h"
#include "syscalls.h"
#include "virtio/blk_ring.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { SURVIVED = 42, SKIPPED = 77 };

static void attack_open(void)
{
    syscall(SYS_open, "/etc/passwd", O_RDONLY);
}

static void attack_openat(void)
{
    syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDONLY);
}

static void attack_openat2(void)
{
    syscall(SYS_openat2, AT_FDCWD, "/dev/null", NULL, 0);
}

static void attack_creat(void)
{
    syscall(SYS_creat, "/tmp/lodge-was-here", 0600);
}

static void attack_socket(void)
{
    syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
}

static void attack_connect(void)
{
    syscall(SYS_connect, 0, NULL, 0);
}

static void attack_bind(void)
{
    syscall(SYS_bind, 0, NULL, 0);
}

static void attack_listen(void)
{
    syscall(SYS_listen, 0, 1);
}

static void attack_setsockopt(void)
{
    syscall(SYS_setsockopt, 0, SOL_SOCKET, SO_RCVBUF, NULL, 0);
}

static void attack_execve(void)
{
    char *none[] = {NULL};
    syscall(SYS_execve, "/bin/true", none, none);
}

static void attack_execveat(void)
{
    syscall(SYS_execveat, AT_FDCWD, "/bin/true", NULL, NULL, 0);
}

static void attack_fork(void)
{
    syscall(SYS_fork);
}

static void attack_clone(void)
{
    syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
}

static void attack_unshare(void)
{
    syscall(SYS_unshare, CLONE_NEWUSER);
}

static void attack_ptrace(void)
{
    syscall(SYS_ptrace, PTRACE_TRACEME, 0, NULL, NULL);
}

static void attack_process_vm_readv(void)
{
    syscall(SYS_process_vm_readv, getppid(), NULL, 0, NULL, 0, 0);
}

static void attack_kill(void)
{
    syscall(SYS_kill, getpid(), 0);
}

static void attack_signal_to_another(void)
{
    syscall(SYS_tgkill, 1, 1, 0);
}

static void attack_mount(void)
{
    syscall(SYS_mount, "none", "/mnt", "tmpfs", 0, NULL);
}

static void attack_setuid(void)
{
    syscall(SYS_setuid, 0);
}

static void attack_bpf(void)
{
    syscall(SYS_bpf, 0, NULL, 0);
}

static void attack_io_uring(void)
{
    syscall(SYS_io_uring_setup, 1, NULL);
}

static void attack_io_uring_register(void)
{
    syscall(SYS_io_uring_register, 0, 0, NULL, 0);
}

static void attack_move_data(void)
{
    syscall(SYS_fallocate, 1, FALLOC_FL_COLLAPSE_RANGE, 0, 4096);
}

static void attack_preadv2(void)
{
    syscall(SYS_preadv2, 0, NULL, 0, 0, 0, RWF_HIPRI);
}

static void attack_terminal(void)
{
    syscall(SYS_ioctl, 0, TIOCSTI, "x");
}

/* Of a tap's requests only two are needed. */
static void attack_other_tap(void)
{
    struct ifreq request = {.ifr_name = "tap0"};
    syscall(SYS_ioctl, 0, TUNSETIFF, &request);
}

static void attack_dumpable(void)
{
    syscall(SYS_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
}

static void attack_unlink(void)
{
    syscall(SYS_unlink, "/tmp/lodge-is-not-here");
}

static void attack_stat(void)
{
    syscall(SYS_newfstatat, AT_FDCWD, "/etc/passwd", NULL, 0);
}

static void attack_writable_code(void)
{
    mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void attack_code_made_writable(void)
{
    void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(page, 4096, PROT_WRITE | PROT_EXEC);
}

static void attack_data_made_code(void)
{
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(page, 4096, PROT_READ | PROT_EXEC);
}

static void attack_anonymous_code(void)
{
    mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void attack_descriptor_flags(void)
{
    fcntl(0, F_SETFL, O_ASYNC);
}

/* The 32-bit entry has other numbers; the filter must not read them as ours. 20 is getpid there and
 * writev here. */
static void attack_other_numbers(void)
{
    __asm__ volatile("int $0x80" : : "a"(20) : "memory");
}

static const struct attack {
    const char *name;
    void (*run)(void);
} attacks[] = {
    {"open", attack_open},
    {"openat", attack_openat},
    {"openat2", attack_openat2},
    {"creat", attack_creat},
    {"socket", attack_socket},
    {"connect", attack_connect},
    {"bind", attack_bind},
    {"listen", attack_listen},
    {"setsockopt", attack_setsockopt},
    {"execve", attack_execve},
    {"execveat", attack_execveat},
    {"fork", attack_fork},
    {"clone of a process", attack_clone},
    {"unshare", attack_unshare},
    {"ptrace", attack_ptrace},
    {"process_vm_readv", attack_process_vm_readv},
    {"kill", attack_kill},
    {"tgkill of another process", attack_signal_to_another},
    {"mount", attack_mount},
    {"setuid", attack_setuid},
    {"bpf", attack_bpf},
    {"io_uring_setup", attack_io_uring},
    {"io_uring_register", attack_io_uring_register},
    {"fallocate that moves data", attack_move_data},
    {"preadv2 but for what is there", attack_preadv2},
    {"ioctl of a terminal", attack_terminal},
    {"ioctl that attaches to a tap", attack_other_tap},
    {"prctl", attack_dumpable},
    {"unlink", attack_unlink},
    {"stat of a path", attack_stat},
    {"mmap of writable code", attack_writable_code},
    {"mprotect to writable code", attack_code_made_writable},
    {"mprotect of data to code", attack_data_made_code},
    {"mmap of anonymous code", attack_anonymous_code},
    {"fcntl of a descriptor's flags", attack_descriptor_flags},
    {"32-bit system call", attack_other_numbers},
};

/* Runs in a child, confined; returns what waitpid() says. */
static int confined(void (*run)(void))
{
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct err err = {0};
        if (privileges_drop(&err) < 0) {
            fprintf(stderr, "%s\n", err.text);
            _exit(1);
        }
        run();
        _exit(SURVIVED);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void what_is_forbidden_kills(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof attacks / sizeof attacks[0]; i++) {
        int status = confined(attacks[i].run);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS)
            fail_msg("%s: wait status 0x%x", attacks[i].name, (unsigned)status);
    }
}

static void need(bool condition)
{
    if (!condition)
        _exit(1);
}

static void *thread(void *opaque)
{
    need(pthread_setname_np(pthread_self(), "named") == 0);
    void *block = malloc(1 << 20);
    need(block);
    free(block);
    *(int *)opaque = 1;
    return NULL;
}

static void ignore(int number)
{
}

/* Blocks that a thread's heap takes in and lets go of, small and large. */
static void *allocating_thread(void *opaque)
{
    enum { BLOCKS = 64 };
    static const size_t sizes[] = {100, 4096, 65536, 200 << 10, 1 << 20, 64, 260 << 10};
    void *blocks[BLOCKS];
    for (unsigned round = 0; round < 8; round++) {
        for (unsigned i = 0; i < BLOCKS; i++) {
            size_t size = sizes[(i + round) % (sizeof sizes / sizeof sizes[0])];
            blocks[i] = malloc(size);
            if (blocks[i])
                memset(blocks[i], 1, size);
        }
        for (unsigned i = BLOCKS; i-- > 0;)
            free(blocks[i]);
    }
    *(int *)opaque = 1;
    return NULL;
}

static void machine_life(void)
{
    int ran = 0;
    pthread_t id;
    need(pthread_create(&id, NULL, thread, &ran) == 0);
    need(pthread_join(id, NULL) == 0 && ran == 1);
    ran = 0;
    need(pthread_create(&id, NULL, allocating_thread, &ran) == 0);
    need(pthread_join(id, NULL) == 0 && ran == 1);

    int event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    eventfd_t value;
    need(event >= 0 && eventfd_write(event, 3) == 0 && eventfd_read(event, &value) == 0);
    need(value == 3);
    uint8_t random[16];
    need(getrandom(random, sizeof random, 0) == sizeof random);

    /* A connection of the guest's: it came over a socket, it is waited for, and half of it ends. */
    int pair[2] = {-1, -1};
    struct epoll_event wanted = {.events = EPOLLIN | EPOLLET}, got;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    need(epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted) == 0);
    need(eventfd_write(event, 1) == 0 && epoll_wait(epoll, &got, 1, -1) == 1);
    need(shutdown(pair[0], SHUT_WR) < 0 && errno == EBADF);

    /* The software engine's arena: one memory, an alias to write and one to execute. */
    int arena = memfd_create("code", MFD_CLOEXEC);
    need(arena >= 0 && ftruncate(arena, 4096) == 0);
    uint8_t *write_alias = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, arena, 0);
    uint8_t *code_alias = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, arena, 0);
    need(write_alias != MAP_FAILED && code_alias != MAP_FAILED);
    memcpy(write_alias, "\xb8\x2a\x00\x00\x00\xc3", 6); /* mov eax, 42; ret */
    need(((int (*)(void))(uintptr_t)code_alias)() == 42);

    /* A disk's file. */
    uint8_t bytes[8192] = {1};
    struct iovec iov = {bytes, sizeof bytes};
    need(pwritev(arena, &iov, 1, 0) == sizeof bytes && preadv(arena, &iov, 1, 0) == sizeof bytes);
    need(pwrite(arena, bytes, 512, 4096) == 512 && pread(arena, bytes, 512, 4096) == 512);
    preadv2(arena, &iov, 1, 0, RWF_NOWAIT);
    pwritev2(arena, &iov, 1, 0, RWF_NOWAIT);
    need(fallocate(arena, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 4096) == 0);
    need(fdatasync(arena) == 0 && fcntl(arena, F_GETFL) >= 0);
    /* A tap's requests; here there is none. */
    need(ioctl(event, TUNSETOFFLOAD, 0ul) < 0 && errno != EPERM);
    need(ioctl(event, TUNSETQUEUE, &value) < 0 && errno != EPERM);

    signal(SIGRTMIN + 5, ignore);
    need(pthread_kill(pthread_self(), SIGRTMIN + 5) == 0);
}

static void what_a_machine_needs_works(void **state)
{
    (void)state;
    int status = confined(machine_life);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), SURVIVED);
}

/* A ring that was made before goes on, and does what it may do: nothing else, whatever the filter
 * would say to it. */
static void a_ring_reads_and_opens_nothing(void **state)
{
    (void)state;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct blk_ring *ring;
        uint8_t bytes[16];
        const struct iovec iov = {bytes, sizeof bytes};
        int file = memfd_create("disk", MFD_CLOEXEC), result = 0;
        void *tag = NULL;
        if (ftruncate(file, 4096) < 0 || blk_ring_new(4, &ring, NULL) < 0)
            _exit(SKIPPED);
        need(privileges_drop(NULL) == 0);
        need(blk_ring_add(ring, false, file, 0, &iov, 1, ring) && blk_ring_submit(ring));
        while (!blk_ring_reap(ring, &tag, &result))
            ;
        need(tag == ring && result == sizeof bytes);
        _exit(SURVIVED);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == SKIPPED)
        skip();
    assert_int_equal(WEXITSTATUS(status), SURVIVED);
}

static void privileges_are_gone(void **state)
{
    (void)state;
    /* Asked for from outside, where files may still be opened. */
    int ready[2], leave[2];
    assert_int_equal(pipe(ready), 0);
    assert_int_equal(pipe(leave), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char byte = 0;
        if (privileges_drop(NULL) < 0)
            _exit(1);
        if (write(ready[1], &byte, 1) != 1 || read(leave[0], &byte, 1) != 1)
            _exit(1);
        _exit(SURVIVED);
    }
    char byte, path[64], text[4096];
    assert_int_equal(read(ready[0], &byte, 1), 1);
    snprintf(path, sizeof path, "/proc/%d/status", child);
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    ssize_t n = read(fd, text, sizeof text - 1);
    assert_true(n > 0);
    text[n] = 0;
    close(fd);
    static const char *const lines[] = {
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
        if (!strstr(text, lines[i]))
            fail_msg("no '%s' in\n%s", lines[i], text);
    assert_int_equal(write(leave[1], &byte, 1), 1);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(WEXITSTATUS(status), SURVIVED);
}

static void only_named_descriptors_stay_open(void **state)
{
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        for (int fd = 3; fd < 40; fd++)
            dup2(0, fd);
        const int keep[] = {20, -1, 5, 5, 2, 39};
        if (privileges_close_others(keep, sizeof keep / sizeof keep[0], NULL) < 0)
            _exit(1);
        for (int fd = 0; fd < 64; fd++) {
            bool open = fcntl(fd, F_GETFD) >= 0;
            if (fd > 2 && open != (fd == 5 || fd == 20 || fd == 39))
                _exit(2);
        }
        _exit(SURVIVED);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(WEXITSTATUS(status), SURVIVED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_forbidden_kills),
        cmocka_unit_test(what_a_machine_needs_works),
        cmocka_unit_test(a_ring_reads_and_opens_nothing),
        cmocka_unit_test(privileges_are_gone),
        cmocka_unit_test(only_named_descriptors_stay_open),
    };
    return cmocka_run_group_tests_name("system calls", tests, NULL, NULL);
}
