#include "image/process.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

extern char **environ;

/* Our environment with LC_ALL=C: what programs print is parsed. The strings stay the environment's.
 */
static char **plain_environment(void)
{
    size_t count = 0;
    while (environ[count])
        count++;
    char **copy = calloc(count + 2, sizeof *copy);
    if (!copy)
        return NULL;
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (strncmp(environ[i], "LC_ALL=", 7) != 0)
            copy[kept++] = environ[i];
    copy[kept] = (char *)"LC_ALL=C";
    return copy;
}

static int spawn(struct process *process, const char *const *argv, const char *directory,
                 const int *keep, size_t keep_count, int out)
{
    _cleanup_free_ char **env = plain_environment();
    if (!env)
        return -ENOMEM;
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    /* Its own process group: what it has started in turn ends with it (interrupt()). */
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, out, 1);
    posix_spawn_file_actions_adddup2(&actions, process->errors, 2);
    /* Onto itself: that takes its close-on-exec away in the child. */
    for (size_t i = 0; i < keep_count; i++)
        posix_spawn_file_actions_adddup2(&actions, keep[i], keep[i]);
    if (directory)
        posix_spawn_file_actions_addchdir_np(&actions, directory);
    int r = posix_spawnp(&process->pid, argv[0], &actions, &attributes, (char *const *)argv, env);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return -r;
}

static void close_all(struct process *process)
{
    own_close(&process->out);
    own_close(&process->errors);
    process->out = process->errors = -1;
}

int process_start(struct process *process, const char *const *argv, const char *directory,
                  const int *keep, size_t keep_count, struct err *err)
{
    int fds[2];
    *process = (struct process){.out = -1, .errors = -1, .name = argv[0]};
    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_errno(err, errno, "%s", argv[0]);
    process->out = fds[0];
    _cleanup_fd_ int out = fds[1];
    process->errors = memfd_create("errors", MFD_CLOEXEC);
    int r = process->errors < 0 ? -errno : spawn(process, argv, directory, keep, keep_count, out);
    if (r < 0) {
        close_all(process);
        return err_errno(err, -r, "cannot run %s", argv[0]);
    }
    return 0;
}

/* The line with the reason: the first that apt, mmdebstrap and their like mark as an error; else
 * the last that says something. */
static void reason_line(int fd, char *ret_line, size_t size)
{
    char text[4096];
    off_t end = lseek(fd, 0, SEEK_END);
    off_t start = max(end - (off_t)sizeof text + 1, (off_t)0);
    ssize_t length = pread(fd, text, sizeof text - 1, start);
    text[max(length, (ssize_t)0)] = '\0';
    *ret_line = '\0';
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        if (line[strspn(line, " \t")])
            snprintf(ret_line, size, "%s", line);
        if (!strncmp(line, "E: ", 3))
            return;
    }
}

static void interrupt(struct process *process)
{
    process->interrupted = true;
    kill(-process->pid, SIGTERM);
}

int process_wait(struct process *process, struct err *err)
{
    int status;
    own_close(&process->out);
    process->out = -1;
    pid_t pid = waitpid(process->pid, &status, 0);
    if (pid < 0 && errno == EINTR) {
        interrupt(process);
        while (waitpid(process->pid, &status, 0) < 0 && errno == EINTR)
            ;
    }
    if (process->interrupted) {
        close_all(process);
        return err_set(err, -EINTR, "interrupted");
    }
    char line[512];
    reason_line(process->errors, line, sizeof line);
    close_all(process);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE)
        return 0;
    if (WIFSIGNALED(status))
        return err_set(err, -EIO, "%s was killed by signal %d", process->name, WTERMSIG(status));
    return err_set(err, -EIO, "%s failed: %s", process->name, *line ? line : "it did not say why");
}

/* -E2BIG past `max`, -EINTR as process_wait(). */
static int read_all(int fd, size_t max_size, char **ret_text)
{
    _cleanup_free_ char *text = malloc(max_size + 1);
    size_t length = 0;
    if (!text)
        return -ENOMEM;
    for (;;) {
        ssize_t n = read(fd, text + length, max_size - length);
        if (n < 0)
            return -errno;
        length += (size_t)n;
        if (n == 0)
            break;
        if (length == max_size)
            return -E2BIG;
    }
    text[length] = '\0';
    *ret_text = take_ptr(text);
    return 0;
}

int process_output(const char *const *argv, const char *directory, size_t max_size, char **ret_text,
                   struct err *err)
{
    struct process process;
    _cleanup_free_ char *text = NULL;
    int r = process_start(&process, argv, directory, NULL, 0, err);
    if (r < 0)
        return r;
    int read_result = read_all(process.out, max_size, &text);
    if (read_result == -EINTR)
        interrupt(&process);
    r = process_wait(&process, err);
    if (r >= 0 && read_result < 0)
        return err_errno(err, -read_result, "output of %s", argv[0]);
    if (r >= 0)
        *ret_text = take_ptr(text);
    return r;
}

int process_run(const char *const *argv, const char *directory, const int *keep, size_t keep_count,
                struct err *err)
{
    struct process process;
    int r = process_start(&process, argv, directory, keep, keep_count, err);
    if (r < 0)
        return r;
    /* It may say much: drained, so that it does not wait for us. */
    char ignored[4096];
    ssize_t n;
    do
        n = read(process.out, ignored, sizeof ignored);
    while (n > 0);
    if (n < 0 && errno == EINTR)
        interrupt(&process);
    return process_wait(&process, err);
}
