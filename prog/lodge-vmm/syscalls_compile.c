/*
 * syscalls_compile: a program of the build. Compiles the list below into the filter that lodge-vmm
 * installs (syscalls.c), as a table in C on its standard output: a virtual machine that is to run
 * within milliseconds has none to spare for a compiler.
 */
#include "syscalls.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <sched.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* Calls whose arguments need no look: they work on what is open and mapped already. */
static const int plain[] = {
    /* Bytes of the guest's streams, of eventfds and of the control socket. */
    SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(readv), SCMP_SYS(writev), SCMP_SYS(recvfrom),
    SCMP_SYS(sendto), SCMP_SYS(recvmsg), SCMP_SYS(sendmsg),
    SCMP_SYS(accept4),    /* clients, at the socket that lodge listens with for us */
    SCMP_SYS(shutdown),   /* one direction of a guest's socket has ended */
    SCMP_SYS(getsockopt), /* is a console's descriptor a stream socket? */
    SCMP_SYS(pread64),    /* kernel and initrd, /proc/self/statm opened before */

    /* Disks. An I/O ring that was made before the filter reads and writes and can do nothing else
     * (blk_ring.h); none can be made inside it. */
    SCMP_SYS(io_uring_enter), SCMP_SYS(pwrite64), SCMP_SYS(preadv), SCMP_SYS(pwritev),
    SCMP_SYS(fdatasync), /* flush */

    SCMP_SYS(lseek), /* --unpack-kernel's output; stdio on the definition */
    SCMP_SYS(close), /* console ports, the definition, the guest's sockets */
    SCMP_SYS(fstat), /* is the kernel a regular file? */

    /* Waiting. */
    SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(epoll_create1), SCMP_SYS(epoll_ctl),
    SCMP_SYS(epoll_wait),      /* the guest's sockets */
    SCMP_SYS(futex),           /* mutexes, conditions, thread ends; sleeping vCPUs */
    SCMP_SYS(clock_nanosleep), /* the TSC's calibration */
    SCMP_SYS(nanosleep),
    SCMP_SYS(sched_yield), /* the software engine while it waits for other vCPUs */

    /* Clocks, where the vDSO has none. */
    SCMP_SYS(clock_gettime), SCMP_SYS(gettimeofday),

    /* Memory, apart from what becomes executable (below). */
    SCMP_SYS(munmap), SCMP_SYS(mremap), /* realloc() of large blocks */
    SCMP_SYS(madvise),      /* huge pages, memory given back (reset, balloon), thread stacks */
    SCMP_SYS(mincore),      /* how much of guest memory is resident */
    SCMP_SYS(brk),          /* malloc() */
    SCMP_SYS(memfd_create), /* the software engine's code, mapped twice: to write, to execute */
    SCMP_SYS(ftruncate),    /* its size */

    /* Descriptors that name nothing outside. */
    SCMP_SYS(eventfd2),

    /* Threads: their start, end and kicks. */
    SCMP_SYS(set_robust_list), SCMP_SYS(rseq), SCMP_SYS(set_tid_address), SCMP_SYS(gettid),
    SCMP_SYS(getpid), SCMP_SYS(exit), SCMP_SYS(exit_group),
    SCMP_SYS(rt_sigaction), /* the KVM engine's kick, the software engine's faults */
    SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn), SCMP_SYS(sigaltstack),
    SCMP_SYS(restart_syscall),   /* by the kernel, after a stop */
    SCMP_SYS(sched_getaffinity), /* how many CPUs there are: malloc()'s arenas */

    SCMP_SYS(getrandom), /* virtio-rng; malloc()'s seed */
};

static int allow(scmp_filter_ctx filter, int call, struct scmp_arg_cmp compare)
{
    return seccomp_rule_add(filter, SCMP_ACT_ALLOW, call, 1, compare);
}

/* Memory is writable or executable, not both; and code is a shared mapping of the software engine's
 * arena, never memory that was written before it became code. */
static int allow_mmap(scmp_filter_ctx filter)
{
    int r = allow(filter, SCMP_SYS(mmap), SCMP_CMP(2, SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    if (r >= 0)
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 2,
                             SCMP_CMP(2, SCMP_CMP_MASKED_EQ, PROT_WRITE | PROT_EXEC, PROT_EXEC),
                             SCMP_CMP(3, SCMP_CMP_MASKED_EQ, MAP_TYPE | MAP_ANONYMOUS, MAP_SHARED));
    return r;
}

static int allow_by_argument(scmp_filter_ctx filter)
{
    int r = allow_mmap(filter);
    /* Code comes from one place only, the arena's alias, mapped as such; nothing becomes code. */
    if (r >= 0)
        r = allow(filter, SCMP_SYS(mprotect), SCMP_CMP(2, SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    /* fstat() of newer C libraries; AT_EMPTY_PATH says that the descriptor itself is meant. */
    if (r >= 0)
        r = allow(filter, SCMP_SYS(newfstatat), SCMP_A3(SCMP_CMP_EQ, AT_EMPTY_PATH));
    /* Disks: room, holes and zeros, nothing that moves data; transfers that do not wait; whether a
     * descriptor is O_DIRECT. */
    const scmp_datum_t modes = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;
    if (r >= 0)
        r = allow(filter, SCMP_SYS(fallocate), SCMP_A1(SCMP_CMP_MASKED_EQ, ~modes & UINT32_MAX, 0));
    if (r >= 0)
        r = allow(filter, SCMP_SYS(preadv2), SCMP_A5(SCMP_CMP_EQ, RWF_NOWAIT));
    if (r >= 0)
        r = allow(filter, SCMP_SYS(pwritev2), SCMP_A5(SCMP_CMP_EQ, RWF_NOWAIT));
    if (r >= 0)
        r = allow(filter, SCMP_SYS(fcntl), SCMP_A1(SCMP_CMP_EQ, F_GETFL));
    /* Requests of KVM's own number space, on descriptors that came open. */
    if (r >= 0)
        r = allow(filter, SCMP_SYS(ioctl), SCMP_A1(SCMP_CMP_MASKED_EQ, 0xff00, KVMIO << 8));
    /* A tap's offloads and which of its queues are used, as the guest negotiates them; and no other
     * request to a tap. */
    if (r >= 0)
        r = allow(filter, SCMP_SYS(ioctl), SCMP_A1(SCMP_CMP_EQ, TUNSETOFFLOAD));
    if (r >= 0)
        r = allow(filter, SCMP_SYS(ioctl), SCMP_A1(SCMP_CMP_EQ, TUNSETQUEUE));
    /* Threads, never processes. clone3() hides its flags behind a pointer, so it does not exist
     * here, and the C library falls back to clone(). */
    if (r >= 0)
        r = allow(filter, SCMP_SYS(clone),
                  SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD | CLONE_VM, CLONE_THREAD | CLONE_VM));
    if (r >= 0)
        r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    /* A kick: a signal to a thread of our own. Of which process is put in when the filter is
     * installed; a thread's number alone could be anybody's. */
    if (r >= 0)
        r = allow(filter, SCMP_SYS(tgkill), SCMP_A0(SCMP_CMP_EQ, SYSCALLS_PID));
    /* Thread names; how glibc names the memory of malloc(). */
    if (r >= 0)
        r = allow(filter, SCMP_SYS(prctl), SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME));
    return r;
}

static int fill(scmp_filter_ctx filter)
{
    int r = 0;
    for (size_t i = 0; i < ARRAY_LEN(plain) && r >= 0; i++)
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, plain[i], 0);
    if (r >= 0)
        r = allow_by_argument(filter);
    /* Another architecture's call ends all threads too, not only the one that made it. */
    if (r >= 0)
        r = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    /* The kernel's search goes from calls to arguments by a balanced tree, not down the list. */
    if (r >= 0)
        r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    return r;
}

static int print(scmp_filter_ctx filter)
{
    struct sock_filter insn;
    FILE *program = tmpfile();
    int r = program ? seccomp_export_bpf(filter, fileno(program)) : -errno;
    if (r < 0)
        return r;
    rewind(program);
    while (fread(&insn, sizeof insn, 1, program) == 1)
        printf("{%#x, %u, %u, %#x},\n", insn.code, insn.jt, insn.jf, insn.k);
    return ferror(program) || fclose(program) != 0 || fflush(stdout) != 0 ? -EIO : 0;
}

int main(void)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    int r = filter ? fill(filter) : -ENOMEM;
    if (r >= 0)
        r = print(filter);
    if (r < 0)
        fprintf(stderr, "syscalls_compile: %s\n", strerror(-r));
    seccomp_release(filter);
    return r < 0;
}
