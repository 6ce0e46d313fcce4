#include "machine.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "wire/agent.h"

enum {
    END_MS = 10000, /* an image may have to reach the disk */
};

static bool program_at(const char *folder, size_t length, const char *between, const char *name,
                       char *ret_path, size_t size)
{
    int n = snprintf(ret_path, size, "%.*s/%s%s", (int)length, folder, between, name);
    return n < (int)size && access(ret_path, X_OK) == 0;
}

int machine_find_program(const char *name, const char *variable, char *ret_path, size_t size,
                         struct err *err)
{
    const char *given = getenv(variable);
    if (given && *given) {
        if (snprintf(ret_path, size, "%s", given) < (int)size && access(ret_path, X_OK) == 0)
            return 0;
        return err_errno(err, errno, "%s (from %s): '%s'", name, variable, given);
    }
    char self[4096];
    /* As it was called, which may be a link among links; then as it is; then the build tree. */
    const char *called = (const char *)getauxval(AT_EXECFN);
    const char *slash = called ? strrchr(called, '/') : NULL;
    if (slash && program_at(called, (size_t)(slash - called), "", name, ret_path, size))
        return 0;
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    self[max(length, (ssize_t)0)] = '\0';
    slash = strrchr(self, '/');
    if (slash &&
        (program_at(self, (size_t)(slash - self), "", name, ret_path, size) ||
         program_at(self, (size_t)(slash - self), "../libexec/lodge/", name, ret_path, size)))
        return 0;
    char between[128];
    snprintf(between, sizeof between, "../%s/", name);
    if (slash && program_at(self, (size_t)(slash - self), between, name, ret_path, size))
        return 0;
    if (program_at(LODGE_LIBEXEC, strlen(LODGE_LIBEXEC), "", name, ret_path, size))
        return 0;
    return err_set(err, -ENOENT, "%s is not beside lodge and not in %s; set %s to its path", name,
                   LODGE_LIBEXEC, variable);
}

static int make_pair(int type, int *ret_ours, int *ret_theirs, struct err *err)
{
    int fds[2];
    if (socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds) < 0)
        return err_errno(err, errno, "socket");
    *ret_ours = fds[0];
    *ret_theirs = fds[1];
    return fcntl(fds[0], F_SETFL, O_NONBLOCK) < 0 ? err_errno(err, errno, "socket") : 0;
}

/* A sealed-by-position copy of the definition: a memory file read from its start. */
static int definition(const struct guest_conf *conf, struct err *err)
{
    _cleanup_free_ char *text = guest_conf_write_json(conf);
    if (!text)
        return err_set(err, -EINVAL, "the definition holds a string that is no UTF-8");
    size_t length = strlen(text);
    _cleanup_fd_ int fd = memfd_create("definition", MFD_CLOEXEC);
    if (fd < 0 || write(fd, text, length) != (ssize_t)length || lseek(fd, 0, SEEK_SET) != 0)
        return err_errno(err, errno, "definition");
    return take_fd(&fd);
}

/* Async-signal-safe calls only. */
void machine_execute(const char *program, char *const *argv, const int *keep, size_t keep_count,
                     pid_t parent)
{
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(127);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    for (size_t i = 0; i < keep_count; i++)
        if (keep[i] >= 0)
            fcntl(keep[i], F_SETFD, 0);
    execv(program, argv);
    static const char before[] = "lodge: cannot execute ", after[] = "\n";
    if (write(STDERR_FILENO, before, sizeof before - 1) < 0 ||
        write(STDERR_FILENO, argv[0], strlen(argv[0])) < 0 ||
        write(STDERR_FILENO, after, sizeof after - 1) < 0)
        _exit(126);
    _exit(127);
}

static int spawn(struct machine *machine, const char *program, struct guest_conf *conf,
                 struct err *err)
{
    _cleanup_fd_ int fd = definition(conf, err);
    if (fd < 0)
        return fd;
    char number[16];
    snprintf(number, sizeof number, "%d", fd);
    char *const argv[] = {(char *)"lodge-vmm", (char *)"--definition-fd", number, NULL};
    int keep[GUEST_FDS_MAX + 1];
    unsigned count = guest_conf_fds(conf, keep);
    keep[count++] = fd;
    /* vfork(): what the child does until it executes does not touch our memory, and a copy of our
     * page tables would be made for nothing. */
    pid_t parent = getpid(), pid = vfork();
    if (pid == 0)
        machine_execute(program, argv, keep, count, parent);
    if (pid < 0)
        return err_errno(err, errno, "lodge-vmm");
    machine->pid = pid;
    return 0;
}

int machine_start(struct machine *machine, const char *program, struct guest_conf *conf,
                  struct err *err)
{
    _cleanup_fd_ int control = -1;
    _cleanup_fd_ int serial = -1;
    _cleanup_fd_ int agent = -1;
    _cleanup_fd_ int vsock = -1;
    *machine = (struct machine){.pid = -1, .control = -1, .serial = -1, .agent = -1, .vsock = -1};
    int r = make_pair(SOCK_SEQPACKET, &machine->control, &control, err);
    if (r >= 0)
        r = make_pair(SOCK_STREAM, &machine->serial, &serial, err);
    if (r >= 0)
        r = make_pair(SOCK_STREAM, &machine->agent, &agent, err);
    if (r >= 0 && conf->vsock.path)
        r = make_pair(SOCK_SEQPACKET, &machine->vsock, &vsock, err);
    if (r >= 0) {
        conf->control_fd = control;
        conf->vsock.fd = vsock;
        conf->serial_in_fd = conf->serial_out_fd = serial;
        free(conf->consoles[0].name);
        conf->consoles[0] = (struct guest_console){strdup(AGENT_PORT_NAME), agent};
        conf->console_count = 1;
        r = conf->consoles[0].name ? spawn(machine, program, conf, err)
                                   : err_set(err, -ENOMEM, "no memory");
    }
    if (r < 0)
        machine_end(machine);
    return r;
}

int machine_event(struct machine *machine, struct control_message *ret_message, struct err *err)
{
    uint8_t bytes[CONTROL_MESSAGE_MAX];
    ssize_t n = recv(machine->control, bytes, sizeof bytes, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0)
        return -EPIPE;
    int r = control_decode(bytes, (size_t)n, ret_message, err);
    if (r < 0)
        return r;
    return r == n ? 1 : err_set(err, -EBADMSG, "half a message");
}

int machine_request(struct machine *machine, const struct control_message *request, struct err *err)
{
    uint8_t bytes[CONTROL_MESSAGE_MAX];
    size_t length = control_encode(request, bytes);
    if (send(machine->control, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)length)
        return 0;
    return err_errno(err, errno, "lodge-vmm does not listen");
}

static void close_fd(int *fd)
{
    own_close(fd);
    *fd = -1;
}

/* It ends by itself within moments; a stuck one is killed. */
static int wait_for(pid_t pid)
{
    int status = 0;
    for (int ms = 0; ms < END_MS; ms++) {
        if (waitpid(pid, &status, WNOHANG) != 0)
            return status;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return status;
}

int machine_end(struct machine *machine)
{
    int status = 0;
    if (machine->control >= 0 && machine->pid > 0) {
        uint8_t bytes[CONTROL_MESSAGE_MAX];
        const struct control_message quit = {.type = CONTROL_QUIT};
        size_t length = control_encode(&quit, bytes);
        send(machine->control, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    close_fd(&machine->control);
    close_fd(&machine->serial);
    close_fd(&machine->agent);
    close_fd(&machine->vsock);
    if (machine->pid > 0)
        status = wait_for(machine->pid);
    machine->pid = -1;
    return status;
}
