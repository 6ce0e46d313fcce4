#include "share.h"

#include "base/bytes.h"
#include "base/own.h"
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

enum {
    READY_MS = 30000, /* it has little to do, but the machine may be busy */
    END_MS = 5000,    /* it may be waiting for a disk */
};

static int open_folder(const char *path, int *ret_fd, struct err *err)
{
    int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == ENOTDIR)
        return err_set(err, -ENOTDIR, "share '%s' is no folder", path);
    if (fd < 0)
        return err_errno(err, errno, "share '%s'", path);
    *ret_fd = fd;
    return 0;
}

static int spawn(const struct guest_share *share, int folder, int stream, pid_t *ret_pid,
                 struct err *err)
{
    char program[4096], folder_number[16], stream_number[16];
    int r = machine_find_program("lodge-share", "LODGE_SHARE", program, sizeof program, err);
    if (r < 0)
        return r;
    snprintf(folder_number, sizeof folder_number, "%d", folder);
    snprintf(stream_number, sizeof stream_number, "%d", stream);
    char *const argv[] = {(char *)"lodge-share",
                          (char *)"--folder-fd",
                          folder_number,
                          (char *)"--socket-fd",
                          stream_number,
                          share->read_only ? (char *)"--read-only" : NULL,
                          NULL};
    const int keep[] = {folder, stream};
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        machine_execute(program, argv, keep, ARRAY_LEN(keep), parent);
    if (pid < 0)
        return err_errno(err, errno, "lodge-share");
    *ret_pid = pid;
    return 0;
}

/* One byte says that it is confined and serves. */
static int await_ready(const struct guest_share *share, int fd, struct err *err)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    uint8_t byte;
    int r;
    do
        r = poll(&wait, 1, READY_MS);
    while (r < 0 && errno == EINTR);
    if (r == 0)
        return err_set(err, -ETIMEDOUT, "the server of share '%s' does not begin", share->path);
    if (recv(fd, &byte, 1, 0) != 1)
        return err_set(err, -EPIPE, "the server of share '%s' has ended", share->path);
    return 0;
}

int share_start(struct guest_share *share, pid_t *ret_pid, struct err *err)
{
    _cleanup_fd_ int folder = -1;
    int pair[2];
    int r = open_folder(share->path, &folder, err);
    if (r < 0)
        return r;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return err_errno(err, errno, "socket");
    share->fd = pair[0];
    _cleanup_fd_ int stream = pair[1];
    r = spawn(share, folder, stream, ret_pid, err);
    if (r < 0)
        return r;
    own_close(&stream); /* or its end would not be noticed */
    stream = -1;
    return await_ready(share, share->fd, err);
}

void share_end(struct guest_share *share, pid_t pid)
{
    own_close(&share->fd);
    share->fd = -1;
    if (pid <= 0)
        return;
    for (int ms = 0; ms < END_MS; ms++) {
        if (waitpid(pid, NULL, WNOHANG) != 0)
            return;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
}
