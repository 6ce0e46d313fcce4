#include "terminal.h"

#include "base/bytes.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <termios.h>

static struct {
    volatile sig_atomic_t raw;
    bool known;
    int fd;
    struct termios before;
} terminal;

static const int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};

void terminal_restore(void)
{
    if (terminal.raw)
        tcsetattr(terminal.fd, TCSADRAIN, &terminal.before);
    terminal.raw = 0;
}

/* The handler is gone when it runs (SA_RESETHAND), so raising again ends us as the signal would. */
static void die(int number)
{
    if (terminal.raw)
        tcsetattr(terminal.fd, TCSANOW, &terminal.before);
    raise(number);
}

static void watch_ends(void)
{
    atexit(terminal_restore);
    for (size_t i = 0; i < ARRAY_LEN(fatal); i++)
        sigaction(fatal[i],
                  &(struct sigaction){.sa_handler = die, .sa_flags = SA_RESETHAND | SA_NODEFER},
                  NULL);
}

int terminal_raw(int fd, struct err *err)
{
    if (!terminal.known) {
        if (tcgetattr(fd, &terminal.before) < 0)
            return err_errno(err, errno, "terminal");
        terminal.fd = fd;
        terminal.known = true;
        watch_ends();
    }
    struct termios raw = terminal.before;
    cfmakeraw(&raw);
    terminal.raw = 1;
    if (tcsetattr(fd, TCSANOW, &raw) < 0)
        return err_errno(err, errno, "terminal");
    return 0;
}

void terminal_size(int fd, uint16_t *ret_columns, uint16_t *ret_rows)
{
    struct winsize size;
    *ret_columns = 80;
    *ret_rows = 24;
    if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col && size.ws_row) {
        *ret_columns = size.ws_col;
        *ret_rows = size.ws_row;
    }
}
