#include "signals.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

static int pipe_in = -1;

static const int handled[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGCONT};

static void note(int number)
{
    int before = errno;
    uint8_t byte = (uint8_t)number;
    if (write(pipe_in, &byte, 1) < 0)
        errno = before; /* full of signals already */
    errno = before;
}

int signals_open(struct err *err)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
        return err_errno(err, errno, "pipe");
    pipe_in = fds[1];
    for (size_t i = 0; i < ARRAY_LEN(handled); i++) {
        struct sigaction before;
        sigaction(handled[i], NULL, &before);
        /* nohup(1) and background jobs of simple shells ignore some on purpose. */
        if (before.sa_handler != SIG_IGN)
            sigaction(handled[i], &(struct sigaction){.sa_handler = note}, NULL);
    }
    signal(SIGPIPE, SIG_IGN);
    return fds[0];
}

int signals_next(int fd)
{
    uint8_t byte;
    return read(fd, &byte, 1) == 1 ? byte : 0;
}
