#include "confine.h"

#include "base/bytes.h"
#include "base/descriptors.h"
#include "base/own.h"
#include "share/share.h"
#include "syscalls.h"

#include <errno.h>
#include <linux/landlock.h>
#include <sys/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

/* Newer than the headers that we are built with. */
#define ACCESS_REFER    (UINT64_C(1) << 13) /* version 2 */
#define ACCESS_TRUNCATE (UINT64_C(1) << 14) /* version 3 */

#define ACCESS_FIRST ((UINT64_C(1) << 13) - 1) /* all of version 1 */
#define ACCESS_READ  (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define ACCESS_WRITE                                                                               \
    (ACCESS_READ | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR |                 \
     LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG |  \
     LANDLOCK_ACCESS_FS_MAKE_SYM | ACCESS_REFER | ACCESS_TRUNCATE)

enum { RESERVE = 64, HANDLES_PART = 4 /* of all descriptors, one in so many is for open files */ };

/* As many descriptors as we may have: each inode that the guest knows is one. */
static int limits_set(struct confine *confine)
{
    struct rlimit files, none = {0};
    if (setrlimit(RLIMIT_CORE, &none) < 0 || getrlimit(RLIMIT_NOFILE, &files) < 0)
        return -errno;
    files.rlim_cur = min(files.rlim_max, (rlim_t)SHARE_NODES_MAX);
    if (setrlimit(RLIMIT_NOFILE, &files) < 0)
        return -errno;
    unsigned room = (unsigned)max(files.rlim_cur, (rlim_t)RESERVE * 2) - RESERVE;
    confine->handles_max = min(room / HANDLES_PART, (unsigned)SHARE_HANDLES_MAX);
    confine->nodes_max = room - confine->handles_max;
    return 0;
}

static void own_caps(cap_t *caps)
{
    cap_free(*caps);
}

/* Of the capabilities that a server of other people's files needs those that we have. */
static int capabilities_drop(struct confine *confine)
{
    static const cap_value_t write[] = {CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER};
    static const cap_value_t read[] = {CAP_DAC_READ_SEARCH};
    const cap_value_t *wanted = confine->read_only ? read : write;
    int count = confine->read_only ? (int)ARRAY_LEN(read) : (int)ARRAY_LEN(write);
    for (int cap = 0; cap_get_bound(cap) > 0; cap++)
        prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    _cleanup_(own_caps)
    cap_t had = cap_get_proc();
    _cleanup_(own_caps)
    cap_t left = cap_init();
    if (!had || !left)
        return -ENOMEM;
    int kept = 0;
    for (int i = 0; i < count; i++) {
        cap_flag_value_t there = CAP_CLEAR;
        cap_get_flag(had, wanted[i], CAP_EFFECTIVE, &there);
        if (there != CAP_SET)
            continue;
        cap_set_flag(left, CAP_PERMITTED, 1, &wanted[i], CAP_SET);
        cap_set_flag(left, CAP_EFFECTIVE, 1, &wanted[i], CAP_SET);
        kept++;
    }
    confine->owners = !confine->read_only && kept == count;
    return cap_set_proc(left) < 0 ? -errno : 0;
}

/* Version 1 knows no move from one folder to another, and refuses it: worse than none. */
static int landlock(const struct confine *confine)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (version < 1 || (version < 2 && !confine->read_only))
        return 0;
    uint64_t known =
        ACCESS_FIRST | (version >= 2 ? ACCESS_REFER : 0) | (version >= 3 ? ACCESS_TRUNCATE : 0);
    const struct landlock_ruleset_attr rules = {.handled_access_fs = known};
    const struct landlock_path_beneath_attr beneath = {
        .allowed_access = known & (confine->read_only ? ACCESS_READ : ACCESS_WRITE),
        .parent_fd = confine->folder};
    _cleanup_fd_ int fd =
        (int)syscall(SYS_landlock_create_ruleset, &rules, sizeof rules.handled_access_fs, 0);
    if (fd < 0 || syscall(SYS_landlock_add_rule, fd, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0) < 0 ||
        syscall(SYS_landlock_restrict_self, fd, 0) < 0)
        return -errno;
    return 0;
}

int confine_enter(struct confine *confine, struct err *err)
{
    const int keep[] = {confine->folder, confine->socket, confine->descriptors};
    int r = descriptors_close_others(keep, ARRAY_LEN(keep));
    if (r < 0)
        return err_errno(err, -r, "cannot close descriptors");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        return err_errno(err, errno, "cannot give up privileges");
    r = limits_set(confine);
    if (r < 0)
        return err_errno(err, -r, "cannot set resource limits");
    r = capabilities_drop(confine);
    if (r < 0)
        return err_errno(err, -r, "cannot drop capabilities");
    r = landlock(confine);
    if (r < 0)
        return err_errno(err, -r, "cannot leave all but the folder (Landlock)");
    return syscalls_confine(confine->descriptors, confine->read_only, err);
}
