#include "fetch.h"

#include "base/bytes.h"
#include "base/own.h"
#include "conf/guest.h"
#include "disk/disk.h"
#include "disk/http.h"
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

static int nameless(const char *folder)
{
    return open(folder, O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600);
}

static int home_cache(void)
{
    _cleanup_free_ char *base = NULL;
    _cleanup_free_ char *folder = NULL;
    const char *given = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int r = given && *given == '/' ? asprintf(&base, "%s", given)
            : home && *home == '/' ? asprintf(&base, "%s/.cache", home)
                                   : -1;
    if (r < 0 || asprintf(&folder, "%s/lodge", base) < 0)
        return -1;
    (void)mkdir(base, 0700);
    (void)mkdir(folder, 0700);
    return nameless(folder);
}

/* On a disk, else in memory, and less of that. */
static int open_cache(uint64_t *size)
{
    int fd = home_cache();
    if (fd < 0)
        fd = nameless("/var/tmp");
    if (fd < 0) {
        *size = min(*size, MIB(128));
        fd = memfd_create("blocks", MFD_CLOEXEC);
    }
    return fd;
}

static int cache_size(uint64_t *ret_size, struct err *err)
{
    const char *text = getenv("LODGE_HTTP_CACHE");
    *ret_size = GIB(1);
    int r = text && *text ? guest_parse_size(text, ret_size, err) : 0;
    return r < 0 ? err_prefix(err, r, "LODGE_HTTP_CACHE") : 0;
}

/* In the child: async-signal-safe calls only. Ctrl-C is for lodge to interpret, which closes the
 * socket when it is over. */
static void become(const char *program, char *const *argv, int socket, int cache)
{
    setsid();
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    fcntl(socket, F_SETFD, 0);
    fcntl(cache, F_SETFD, 0);
    execv(program, argv);
    static const char message[] = "lodge: cannot execute lodge-http\n";
    if (write(STDERR_FILENO, message, sizeof message - 1) < 0)
        _exit(126);
    _exit(127);
}

/* Twice, so that it is no child of ours that somebody would have to wait for. */
static int spawn(const char *program, char *const *argv, int socket, int cache)
{
    pid_t pid = fork();
    if (pid == 0) {
        pid_t second = fork();
        if (second == 0)
            become(program, argv, socket, cache);
        _exit(second < 0);
    }
    int status = 0;
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return pid < 0 ? -errno : status ? -EAGAIN : 0;
}

static int start(const struct fetch *fetch, const char *url, int *ret_socket, struct err *err)
{
    char program[4096], numbers[3][24];
    uint64_t size;
    int r = machine_find_program("lodge-http", "LODGE_HTTP", program, sizeof program, err);
    if (r >= 0)
        r = cache_size(&size, err);
    if (r < 0)
        return r;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return err_errno(err, errno, "socket");
    _cleanup_fd_ int ours = pair[0];
    _cleanup_fd_ int theirs = pair[1];
    _cleanup_fd_ int cache = open_cache(&size);
    if (cache < 0)
        return err_errno(err, errno, "cache of a web server's disk");
    snprintf(numbers[0], sizeof numbers[0], "%d", theirs);
    snprintf(numbers[1], sizeof numbers[1], "%d", cache);
    snprintf(numbers[2], sizeof numbers[2], "%llu", (unsigned long long)size);
    const char *argv[] = {"lodge-http", "--socket",     numbers[0], "--cache",
                          numbers[1],   "--cache-size", numbers[2], url,
                          NULL,         NULL,           NULL};
    if (fetch->ca_file) {
        argv[7] = "--cacert";
        argv[8] = fetch->ca_file;
        argv[9] = url;
    }
    r = spawn(program, (char *const *)(uintptr_t)argv, theirs, cache);
    if (r < 0)
        return err_errno(err, -r, "lodge-http");
    *ret_socket = take_fd(&ours);
    return 0;
}

int fetch_open(void *opaque, const char *path, const char *from, bool write, bool direct)
{
    struct fetch *fetch = opaque;
    int socket;
    if (!http_is_url(path))
        return disk_opener_files.open(NULL, path, from, write, direct);
    int r = start(fetch, path, &socket, &fetch->why);
    return r < 0 ? r : socket;
}
