#include "syscalls.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <sys/mman.h>

static void own_filter(scmp_filter_ctx *filter)
{
    seccomp_release(*filter);
}

static const int plain[] = {
    SCMP_SYS(recvfrom), SCMP_SYS(sendto), /* requests and replies */
    SCMP_SYS(write),                      /* last words on standard error */

    /* By name, below a folder's descriptor and never through a link (openat2's flags say so). */
    SCMP_SYS(openat2), SCMP_SYS(readlinkat),

    /* On what is open. */
    SCMP_SYS(close), SCMP_SYS(pread64), SCMP_SYS(lseek), SCMP_SYS(getdents64), SCMP_SYS(fstatfs),
    SCMP_SYS(fsync), SCMP_SYS(fdatasync),

    /* Memory, apart from what becomes executable (below). */
    SCMP_SYS(munmap), SCMP_SYS(mremap), /* realloc() of large blocks */
    SCMP_SYS(madvise),                  /* free() */
    SCMP_SYS(brk),                      /* malloc() */
    SCMP_SYS(getrandom),                /* its seed, and that of the inode table */

    SCMP_SYS(exit_group), SCMP_SYS(rt_sigreturn), SCMP_SYS(restart_syscall), /* after a stop */
#ifdef __SANITIZE_ADDRESS__
    SCMP_SYS(sigaltstack), /* it asks before _exit() */
#endif
};

/* Where files may change. */
static const int changing[] = {
    SCMP_SYS(pwritev2),  SCMP_SYS(ftruncate), SCMP_SYS(fallocate),
    SCMP_SYS(mkdirat),   SCMP_SYS(symlinkat), SCMP_SYS(unlinkat),
    SCMP_SYS(renameat2), SCMP_SYS(renameat), /* what the C library makes of the latter where there
                                                are no flags */
};

static int allow(scmp_filter_ctx filter, int call, struct scmp_arg_cmp compare)
{
    return seccomp_rule_add(filter, SCMP_ACT_ALLOW, call, 1, compare);
}

#define DESCRIPTORS(fd)   SCMP_A0(SCMP_CMP_MASKED_EQ, 0xffffffff, (scmp_datum_t)(unsigned)(fd))
#define EMPTY_PATH(place) SCMP_CMP(place, SCMP_CMP_MASKED_EQ, AT_EMPTY_PATH, AT_EMPTY_PATH)

/* What a descriptor stands for, opened anew; in a read-only share to read, and nothing is made or
 * cut. */
static int allow_reopening(scmp_filter_ctx filter, int descriptors, bool read_only)
{
    const scmp_datum_t writing = O_ACCMODE | O_CREAT | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY);
    if (!read_only)
        return allow(filter, SCMP_SYS(openat), DESCRIPTORS(descriptors));
    return seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(openat), 2, DESCRIPTORS(descriptors),
                            SCMP_CMP(2, SCMP_CMP_MASKED_EQ, writing, 0));
}

static int allow_by_argument(scmp_filter_ctx filter, int descriptors, bool read_only)
{
    int r = allow_reopening(filter, descriptors, read_only);
    /* Of the descriptor itself. */
    if (r >= 0)
        r = allow(filter, SCMP_SYS(newfstatat), EMPTY_PATH(3));
    /* Nothing becomes code. */
    if (r >= 0)
        r = allow(filter, SCMP_SYS(mmap), SCMP_CMP(2, SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    if (r >= 0)
        r = allow(filter, SCMP_SYS(mprotect), SCMP_CMP(2, SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    return r;
}

static int allow_changes(scmp_filter_ctx filter, int descriptors)
{
    int r = 0;
    for (size_t i = 0; i < ARRAY_LEN(changing) && r >= 0; i++)
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, changing[i], 0);
    if (r >= 0)
        r = allow(filter, SCMP_SYS(fchownat), EMPTY_PATH(4));
    if (r >= 0)
        r = allow(filter, SCMP_SYS(utimensat), EMPTY_PATH(3));
    if (r >= 0)
        r = allow(filter, SCMP_SYS(fchmodat), DESCRIPTORS(descriptors));
    if (r >= 0)
        r = allow(filter, SCMP_SYS(linkat), DESCRIPTORS(descriptors));
    return r;
}

int syscalls_confine(int descriptors, bool read_only, struct err *err)
{
    _cleanup_(own_filter)
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (!filter)
        return err_set(err, -ENOMEM, "no memory for the system call filter");
    int r = 0;
    for (size_t i = 0; i < ARRAY_LEN(plain) && r >= 0; i++)
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, plain[i], 0);
    if (r >= 0)
        r = allow_by_argument(filter, descriptors, read_only);
    if (r >= 0 && !read_only)
        r = allow_changes(filter, descriptors);
    if (r >= 0)
        r = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (r >= 0)
        r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    if (r >= 0)
        r = seccomp_load(filter);
    if (r < 0)
        return err_errno(err, -r, "cannot enter the system call filter");
    return 0;
}
