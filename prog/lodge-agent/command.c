#include "command.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

static const char *const default_env[] = {
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
};

/* Pointers to each of `strings`, then to the defaults whose name none of them sets, then NULL. */
static char **pointers(const struct agent_strings *strings, const char *const *defaults,
                       size_t default_count)
{
    char **array = calloc(strings->count + default_count + 1, sizeof *array);
    size_t count = 0;
    if (!array)
        return NULL;
    for (const char *at = agent_strings_next(strings, NULL); at;
         at = agent_strings_next(strings, at))
        array[count++] = (char *)at;
    size_t given = count;
    for (size_t i = 0; i < default_count; i++) {
        size_t name = strcspn(defaults[i], "=") + 1, j = 0;
        while (j < given && strncmp(array[j], defaults[i], name) != 0)
            j++;
        if (j == given)
            array[count++] = (char *)defaults[i];
    }
    return array;
}

static const char *value_of(char *const *env, const char *name)
{
    size_t length = strlen(name);
    for (; *env; env++)
        if (!strncmp(*env, name, length) && (*env)[length] == '=')
            return *env + length + 1;
    return NULL;
}

/* As execvp() looks: the first file of that name on the path that may be executed; -EACCES when
 * there are only others. */
static int find_program(const char *name, const char *path, char *ret_found, size_t size)
{
    int r = -ENOENT;
    if (!*name)
        return -ENOENT;
    if (strchr(name, '/'))
        return snprintf(ret_found, size, "%s", name) < (int)size ? 0 : -ENAMETOOLONG;
    while (path) {
        size_t length = strcspn(path, ":");
        struct stat status;
        int written = snprintf(ret_found, size, "%.*s/%s", (int)length, length ? path : ".", name);
        if (written < (int)size && stat(ret_found, &status) == 0 && S_ISREG(status.st_mode)) {
            if (access(ret_found, X_OK) == 0)
                return 0;
            r = -EACCES;
        }
        path = path[length] ? path + length + 1 : NULL;
    }
    return r;
}

struct stdio {
    int child[3]; /* what becomes 0, 1, 2; -1 with a terminal */
    int ours[3];
    int slave;    /* see command.h */
    char tty[64]; /* the terminal's path, or "" */
};

static void close_stdio(struct stdio *stdio)
{
    for (int i = 0; i < 3; i++) {
        own_close(&stdio->child[i]);
        own_close(&stdio->ours[i]);
    }
    own_close(&stdio->slave);
}

static int make_pipes(struct stdio *stdio)
{
    for (int i = 0; i < 3; i++) {
        int fds[2];
        if (pipe2(fds, O_CLOEXEC) < 0)
            return -errno;
        stdio->ours[i] = fds[i == 0];
        stdio->child[i] = fds[i != 0];
        fcntl(stdio->ours[i], F_SETFL, O_NONBLOCK);
    }
    return 0;
}

static int make_terminal(struct stdio *stdio, const struct agent_message *message)
{
    stdio->ours[0] = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (stdio->ours[0] < 0)
        return -errno;
    if (unlockpt(stdio->ours[0]) < 0)
        return -errno;
    int r = ptsname_r(stdio->ours[0], stdio->tty, sizeof stdio->tty);
    if (r != 0)
        return -r;
    struct winsize size = {.ws_col = message->exec.columns, .ws_row = message->exec.rows};
    ioctl(stdio->ours[0], TIOCSWINSZ, &size);
    stdio->ours[1] = fcntl(stdio->ours[0], F_DUPFD_CLOEXEC, 0);
    stdio->slave = open(stdio->tty, O_RDWR | O_NOCTTY | O_CLOEXEC);
    return stdio->ours[1] < 0 || stdio->slave < 0 ? -errno : 0;
}

static void add_stdio(posix_spawn_file_actions_t *actions, const struct stdio *stdio)
{
    if (*stdio->tty) {
        /* Opened by a session leader that has none, it becomes the controlling terminal. */
        posix_spawn_file_actions_addopen(actions, 0, stdio->tty, O_RDWR, 0);
        posix_spawn_file_actions_adddup2(actions, 0, 1);
        posix_spawn_file_actions_adddup2(actions, 0, 2);
        return;
    }
    for (int i = 0; i < 3; i++)
        posix_spawn_file_actions_adddup2(actions, stdio->child[i], i);
}

/* posix_spawn() shares our memory until the exec, so it costs no copy of the page tables, and it
 * returns what exec said. */
static int spawn(const char *program, char *const *argv, char *const *env, const char *cwd,
                 const struct stdio *stdio, pid_t *ret_pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes,
                             POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    add_stdio(&actions, stdio);
    posix_spawn_file_actions_addchdir_np(&actions, cwd);
    int r = posix_spawn(ret_pid, program, &actions, &attributes, argv, env);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return -r;
}

/* The directory the command starts in: what was asked for, else HOME where that exists. One that is
 * missing must not look like a command that is: the errno is never ENOENT. */
static int choose_cwd(const char *asked, char *const *env, const char **ret_cwd, struct err *err)
{
    struct stat status;
    const char *home = value_of(env, "HOME");
    if (!*asked) {
        *ret_cwd = home && stat(home, &status) == 0 && S_ISDIR(status.st_mode) ? home : "/";
        return 0;
    }
    if (stat(asked, &status) < 0) {
        err_errno(err, errno, "directory '%s'", asked);
        return -ENOTDIR;
    }
    if (!S_ISDIR(status.st_mode))
        return err_errno(err, ENOTDIR, "directory '%s'", asked);
    *ret_cwd = asked;
    return 0;
}

static int start(struct command *command, const struct agent_message *message, struct stdio *stdio,
                 struct err *err)
{
    _cleanup_free_ char **argv = pointers(&message->exec.argv, NULL, 0);
    _cleanup_free_ char **env = pointers(&message->exec.env, default_env, ARRAY_LEN(default_env));
    if (!argv || !env)
        return err_set(err, -ENOMEM, "no memory");
    const char *cwd = NULL;
    char program[4096];
    int r = choose_cwd(message->exec.cwd, env, &cwd, err);
    if (r < 0)
        return r;
    r = find_program(argv[0], value_of(env, "PATH"), program, sizeof program);
    if (r < 0)
        return err_errno(err, -r, "'%s'", argv[0]);
    command->tty = message->exec.flags & AGENT_EXEC_TTY;
    r = command->tty ? make_terminal(stdio, message) : make_pipes(stdio);
    if (r < 0)
        return err_errno(err, -r, "standard input and output");
    r = spawn(program, argv, env, cwd, stdio, &command->pid);
    return r < 0 ? err_errno(err, -r, "'%s'", argv[0]) : 0;
}

int command_spawn(const struct agent_message *message, struct command **ret_command,
                  struct err *err)
{
    struct command *command = calloc(1, sizeof *command);
    if (!command)
        return err_set(err, -ENOMEM, "no memory");
    *command = (struct command){.stream = message->stream, .in = -1, .out = {-1, -1}, .slave = -1};
    command->pending = malloc(AGENT_WINDOW);
    struct stdio stdio = {.child = {-1, -1, -1}, .ours = {-1, -1, -1}, .slave = -1};
    int r = command->pending ? start(command, message, &stdio, err)
                             : err_set(err, -ENOMEM, "no memory");
    if (r >= 0) {
        command->in = take_fd(&stdio.ours[0]);
        command->out[0] = take_fd(&stdio.ours[1]);
        command->out[1] = take_fd(&stdio.ours[2]);
        command->slave = take_fd(&stdio.slave);
        command->window[0] = command->window[1] = message->exec.window;
        *ret_command = take_ptr(command);
    }
    close_stdio(&stdio);
    command_free(command);
    return r;
}

static void close_fd(int *fd)
{
    own_close(fd);
    *fd = -1;
}

void command_free(struct command *command)
{
    if (!command)
        return;
    close_fd(&command->in);
    close_fd(&command->out[0]);
    close_fd(&command->out[1]);
    close_fd(&command->slave);
    free(command->pending);
    free(command);
}

void command_signal(const struct command *command, int number)
{
    if (command->exited)
        return;
    if (kill(-command->pid, number) < 0)
        kill(command->pid, number);
}

void command_resize(const struct command *command, uint16_t columns, uint16_t rows)
{
    struct winsize size = {.ws_col = columns, .ws_row = rows};
    if (command->tty)
        ioctl(command->out[0], TIOCSWINSZ, &size);
}

int command_input(struct command *command, const uint8_t *bytes, size_t length)
{
    if (length == 0) {
        command->pending_eof = true;
        return 0;
    }
    size_t waiting = command->pending_end - command->pending_start;
    if (command->pending_eof || length > AGENT_WINDOW - waiting - command->taken)
        return -EPROTO;
    memmove(command->pending, command->pending + command->pending_start, waiting);
    memcpy(command->pending + waiting, bytes, length);
    command->pending_start = 0;
    command->pending_end = waiting + length;
    return 0;
}

unsigned command_poll(const struct command *command, struct pollfd *fds, bool may_read)
{
    unsigned count = 0;
    if (command->in >= 0 && command->pending_start < command->pending_end)
        fds[count++] = (struct pollfd){.fd = command->in, .events = POLLOUT};
    for (int i = 0; i < 2; i++)
        if (may_read && command->out[i] >= 0 && command->window[i] > 0)
            fds[count++] = (struct pollfd){.fd = command->out[i], .events = POLLIN};
    return count;
}

/* Consumed input is granted anew in large pieces, so that grants are few. */
static int grant_input(struct command *command, struct agent_writer *writer)
{
    if (command->taken < AGENT_WINDOW / 4)
        return 0;
    struct agent_message grant = {AGENT_WINDOW_GRANT, command->stream,
                                  .window = {AGENT_FLOW_STDIN, command->taken}};
    command->taken = 0;
    return agent_put(writer, &grant, NULL);
}

static void end_input(struct command *command)
{
    /* A terminal has no end of file but the character that its line discipline takes for one. */
    if (command->tty && command->in >= 0 && write(command->in, "\4", 1) < 0 && errno == EAGAIN)
        return;
    close_fd(&command->in);
}

static int pump_input(struct command *command, struct agent_writer *writer)
{
    size_t waiting = command->pending_end - command->pending_start;
    ssize_t n = 0;
    if (waiting && command->in >= 0)
        n = write(command->in, command->pending + command->pending_start, waiting);
    if (n < 0 && errno != EAGAIN && errno != EINTR)
        close_fd(&command->in);
    /* Nobody reads it any more: it is taken and dropped, as a closed pipe would. */
    if (command->in < 0)
        n = (ssize_t)waiting;
    if (n > 0) {
        command->pending_start += (size_t)n;
        command->taken += (uint32_t)n;
    }
    if (command->pending_eof && command->pending_start == command->pending_end && command->in >= 0)
        end_input(command);
    return grant_input(command, writer);
}

/* Returns 1 when bytes came, 0 when none are there now, and closes the flow at its end. */
static int pump_output(struct command *command, int i, struct agent_writer *writer)
{
    uint8_t bytes[AGENT_DATA_MAX];
    size_t length = min(sizeof bytes, (size_t)command->window[i]);
    if (command->out[i] < 0 || length == 0)
        return 0;
    ssize_t n = read(command->out[i], bytes, length);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0) {
        close_fd(&command->out[i]);
        return 0;
    }
    command->window[i] -= (uint32_t)n;
    struct agent_message message = {i ? AGENT_STDERR : AGENT_STDOUT, command->stream,
                                    .data = {bytes, (size_t)n}};
    int r = agent_put(writer, &message, NULL);
    return r < 0 ? r : 1;
}

int command_pump(struct command *command, struct agent_writer *writer)
{
    int r = pump_input(command, writer);
    for (int i = 0; r >= 0 && i < 2; i++)
        r = pump_output(command, i, writer);
    return r < 0 ? r : 0;
}

/* What the process wrote before it exited is in the pipe, so one look that finds nothing there is
 * enough; but while the host grants nothing, nothing was looked at. */
static bool drained(const struct command *command)
{
    for (int i = 0; i < 2; i++) {
        struct pollfd fd = {.fd = command->out[i], .events = POLLIN};
        if (command->out[i] >= 0 && poll(&fd, 1, 0) > 0 && fd.revents & POLLIN)
            return false;
    }
    return true;
}

bool command_over(struct command *command, struct agent_writer *writer)
{
    if (!command->exited || !drained(command))
        return false;
    struct agent_message message = {AGENT_EXIT, command->stream, .exit = {0}};
    message.exit.signaled = WIFSIGNALED(command->wait_status);
    message.exit.value = (uint32_t)(message.exit.signaled ? WTERMSIG(command->wait_status)
                                                          : WEXITSTATUS(command->wait_status));
    return agent_put(writer, &message, NULL) >= 0;
}
