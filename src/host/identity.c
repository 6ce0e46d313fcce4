#include "host/identity.h"

#include "base/own.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/pidfd.h>

enum { STAT_SIZE = 4096 };

static int gone(int64_t pid, struct err *err)
{
    return err_set(err, -ESRCH, "process %" PRId64 " has ended", pid);
}

/* proc(5): the name is in brackets and may hold any byte, brackets too; the state follows it as
 * field 3, the start as field 22. */
static bool parse_stat(const char *line, char *ret_state, uint64_t *ret_start)
{
    const char *at = strrchr(line, ')');
    if (!at || at[1] != ' ' || !at[2])
        return false;
    at += 2;
    char state = *at;
    for (int field = 3; field < 22; field++) {
        at = strchr(at, ' ');
        if (!at)
            return false;
        at++;
    }
    char *end;
    errno = 0;
    uint64_t start = strtoull(at, &end, 10);
    if (errno || end == at || *end != ' ')
        return false;
    *ret_state = state;
    *ret_start = start;
    return true;
}

int identity_read(pid_t pid, struct store_process *ret_process, struct err *err)
{
    char path[64], line[STAT_SIZE];
    struct store_process process = {.pid = pid};
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    _cleanup_file_ FILE *stat = fopen(path, "re");
    if (!stat)
        return errno == ENOENT ? gone(pid, err) : err_errno(err, errno, "'%s'", path);
    size_t length = fread(line, 1, sizeof line - 1, stat);
    if (ferror(stat))
        return errno == ESRCH ? gone(pid, err) : err_errno(err, errno, "'%s'", path);
    line[length] = '\0';
    char state;
    if (!parse_stat(line, &state, &process.start))
        return err_set(err, -EBADMSG, "'%s' is not as proc(5) says", path);
    if (state == 'Z' || state == 'X')
        return gone(pid, err);
    _cleanup_file_ FILE *boot = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (!boot)
        return err_errno(err, errno, "the boot's id");
    if (fread(process.boot, 1, STORE_UUID_LENGTH, boot) != STORE_UUID_LENGTH)
        return err_set(err, -EBADMSG, "the boot's id is too short");
    *ret_process = process;
    return 0;
}

int identity_open(const struct store_process *process, struct err *err)
{
    struct store_process now;
    if (process->pid < 1 || process->pid > INT32_MAX)
        return gone(process->pid, err);
    /* Opened first: who is found below with this number and this start had the number then, too. */
    _cleanup_fd_ int fd = pidfd_open((pid_t)process->pid, 0);
    if (fd < 0)
        return errno == ESRCH ? gone(process->pid, err)
                              : err_errno(err, errno, "process %" PRId64, process->pid);
    int r = identity_read((pid_t)process->pid, &now, err);
    if (r < 0)
        return r;
    if (now.start != process->start || strcmp(now.boot, process->boot) != 0)
        return gone(process->pid, err);
    return take_fd(&fd);
}
