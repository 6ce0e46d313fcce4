#include "privileges.h"

#include "base/bytes.h"
#include "base/descriptors.h"
#include "base/own.h"
#include "syscalls.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>

/* A machine of 64 vCPUs with all its devices has about two hundred, and its socket device as many
 * connections. */
enum { DESCRIPTORS_MAX = 1024 };

int privileges_close_others(const int *keep, size_t count, struct err *err)
{
    int r = descriptors_close_others(keep, count);
    return r < 0 ? err_errno(err, -r, "cannot close descriptors") : 0;
}

static int limit(int resource, rlim_t value)
{
    struct rlimit now;
    if (getrlimit(resource, &now) < 0)
        return -errno;
    struct rlimit lower = {.rlim_cur = min(now.rlim_cur, value),
                           .rlim_max = min(now.rlim_max, value)};
    return setrlimit(resource, &lower) < 0 ? -errno : 0;
}

static void own_caps(cap_t *caps)
{
    cap_free(*caps);
}

static int capabilities_drop(void)
{
    /* The bounding set may be narrowed only by who has CAP_SETPCAP; without it there is nothing to
     * gain either, for no_new_privs is set. */
    for (int cap = 0; cap_get_bound(cap) > 0; cap++)
        prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    _cleanup_(own_caps)
    cap_t none = cap_init();
    if (!none)
        return -ENOMEM;
    return cap_set_proc(none) < 0 ? -errno : 0;
}

int privileges_drop(struct err *err)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        return err_errno(err, errno, "cannot give up privileges");
    int r = limit(RLIMIT_CORE, 0);
    if (r >= 0)
        r = limit(RLIMIT_NOFILE, DESCRIPTORS_MAX);
    if (r < 0)
        return err_errno(err, -r, "cannot lower resource limits");
    r = capabilities_drop();
    if (r < 0)
        return err_errno(err, -r, "cannot drop capabilities");
    return syscalls_confine(err);
}
