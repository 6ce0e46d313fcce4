#include "syscalls.h"

#include "base/bytes.h"

#include <errno.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What syscalls_compile made of its list. */
static const struct sock_filter compiled[] = {
#include "syscalls_program.inc"
};

enum { MMAP_THRESHOLD = 256 << 10 };

/* The one process whose threads may be signalled is this. */
static void put_pid(struct sock_filter *insns, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (BPF_CLASS(insns[i].code) == BPF_JMP && insns[i].k == SYSCALLS_PID)
            insns[i].k = (uint32_t)getpid();
}

int syscalls_confine(struct err *err)
{
    /* Before glibc gives a part of a thread's heap back it looks into /proc, for which the filter
     * would kill: so it never does. Large blocks are mappings of their own, and go back whole. */
    mallopt(M_TRIM_THRESHOLD, INT_MAX);
    mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD);
    struct sock_filter insns[ARRAY_LEN(compiled)];
    memcpy(insns, compiled, sizeof insns);
    put_pid(insns, ARRAY_LEN(insns));
    const struct sock_fprog program = {.len = ARRAY_LEN(insns), .filter = insns};
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
        return err_errno(err, errno, "cannot enter the system call filter");
    return 0;
}
