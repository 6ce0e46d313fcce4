#include "syscalls.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/socket.h>

static void own_filter(scmp_filter_ctx *filter)
{
    seccomp_release(*filter);
}

static const int plain[] = {
    /* Our client's socket, web servers' and name servers'. */
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(readv),
    SCMP_SYS(writev),
    SCMP_SYS(recvfrom),
    SCMP_SYS(sendto),
    SCMP_SYS(recvmsg),
    SCMP_SYS(sendmsg),
    SCMP_SYS(sendmmsg),
    SCMP_SYS(connect),
    SCMP_SYS(shutdown),
    SCMP_SYS(getsockname),
    SCMP_SYS(getpeername),
    SCMP_SYS(getsockopt),
    SCMP_SYS(setsockopt),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(ioctl),
    SCMP_SYS(fcntl),
    SCMP_SYS(bind),       /* the netlink socket by which the resolver learns our addresses */
    SCMP_SYS(socketpair), /* libcurl's resolver thread wakes its own thread */
    SCMP_SYS(pipe2),
    SCMP_SYS(eventfd2),

    SCMP_SYS(pwrite64), /* the cache */

    /* Certificates, resolv.conf, hosts, the resolver's modules: opened below, for reading. */
    SCMP_SYS(pread64),
    SCMP_SYS(close),
    SCMP_SYS(fstat),
    SCMP_SYS(newfstatat),
    SCMP_SYS(stat),
    SCMP_SYS(lstat),
    SCMP_SYS(statx),
    SCMP_SYS(lseek),
    SCMP_SYS(getdents64),
    SCMP_SYS(readlink),
    SCMP_SYS(access),
    SCMP_SYS(faccessat2),
    SCMP_SYS(getcwd),

    /* Memory; modules of the resolver are code. */
    SCMP_SYS(mmap),
    SCMP_SYS(mprotect),
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    SCMP_SYS(brk),

    /* Threads, clocks, waiting. */
    SCMP_SYS(futex),
    SCMP_SYS(set_robust_list),
    SCMP_SYS(rseq),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(nanosleep),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(time),

    /* Who and where we are, for OpenSSL and the resolver. */
    SCMP_SYS(getrandom),
    SCMP_SYS(getpid),
    SCMP_SYS(gettid),
    SCMP_SYS(getuid),
    SCMP_SYS(geteuid),
    SCMP_SYS(getgid),
    SCMP_SYS(getegid),
    SCMP_SYS(uname),
    SCMP_SYS(sysinfo),
};

static int allow(scmp_filter_ctx filter, int call, struct scmp_arg_cmp compare)
{
    return seccomp_rule_add(filter, SCMP_ACT_ALLOW, call, 1, compare);
}

static int allow_by_argument(scmp_filter_ctx filter)
{
    static const int families[] = {
        AF_INET, AF_INET6, AF_UNIX, /* a resolver's or name cache's daemon */
        AF_NETLINK,                 /* which addresses we have */
    };
    const scmp_datum_t writes = O_ACCMODE | O_CREAT | O_TRUNC;
    int r = 0;
    for (size_t i = 0; i < ARRAY_LEN(families) && r >= 0; i++)
        r = allow(filter, SCMP_SYS(socket), SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)families[i]));
    if (r >= 0)
        r = allow(filter, SCMP_SYS(openat), SCMP_A2(SCMP_CMP_MASKED_EQ, writes, O_RDONLY));
    if (r >= 0)
        r = allow(filter, SCMP_SYS(open), SCMP_A1(SCMP_CMP_MASKED_EQ, writes, O_RDONLY));
    /* Threads, never processes. clone3() hides its flags behind a pointer, so it does not exist
     * here, and the C library falls back to clone(). */
    if (r >= 0)
        r = allow(filter, SCMP_SYS(clone),
                  SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD | CLONE_VM, CLONE_THREAD | CLONE_VM));
    if (r >= 0)
        r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    return r;
}

int syscalls_confine(struct err *err)
{
    _cleanup_(own_filter)
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    if (!filter)
        return err_set(err, -ENOMEM, "no memory for the system call filter");
    int r = 0;
    for (size_t i = 0; i < ARRAY_LEN(plain) && r >= 0; i++)
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, plain[i], 0);
    if (r >= 0)
        r = allow_by_argument(filter);
    if (r >= 0)
        r = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (r >= 0)
        r = seccomp_load(filter);
    return r < 0 ? err_errno(err, -r, "cannot enter the system call filter") : 0;
}
