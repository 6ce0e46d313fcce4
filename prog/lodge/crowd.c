#include "crowd.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/own.h"
#include "relay.h"
#include "signals.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <jansson.h>

enum { PIPES = 3 };

struct running {
    struct crowd *crowd;
    int signals;
    int ended_by; /* the signal that ended all, 0 = none */
    bool broken;  /* nobody reads what we write */
    bool interrupted;
    bool alarmed; /* the guard has failed */
    int hold;     /* the other end of `others_ready`, until they are; -1 */
    uint64_t began;
};

static void shut(int fd)
{
    if (fd >= 0)
        close(fd);
}

static bool is_guard(const struct crowd *crowd, const struct crowd_member *member)
{
    return crowd->guarded && member == &crowd->members[crowd->count - 1];
}

/* The guard has nobody at its terminal: an interrupt is not for it. */
static void signal_all(const struct running *running, int number)
{
    for (unsigned i = 0; i < running->crowd->count; i++) {
        const struct crowd_member *member = &running->crowd->members[i];
        if (member->pid > 0 && (number == SIGTERM || !is_guard(running->crowd, member)))
            kill(member->pid, number);
    }
}

/* A second Ctrl-C means us, whatever the members make of it. */
static void take_signals(struct running *running)
{
    for (int number = signals_next(running->signals); number;
         number = signals_next(running->signals)) {
        if (number != SIGINT && number != SIGTERM && number != SIGHUP && number != SIGQUIT)
            continue;
        bool gentle = (number == SIGINT || number == SIGQUIT) && !running->interrupted;
        running->interrupted |= number == SIGINT || number == SIGQUIT;
        if (!gentle)
            running->ended_by = number;
        signal_all(running, gentle ? number : SIGTERM);
    }
}

/* ---- what is written ---- */

/* All of it, unless we are told to end meanwhile. */
static void put(struct running *running, int fd, const char *text, size_t length)
{
    while (length > 0 && !running->broken) {
        ssize_t n = write(fd, text, length);
        if (n < 0 && errno == EINTR) {
            take_signals(running);
            running->broken = running->ended_by != 0;
        } else if (n < 0 && errno == EAGAIN) {
            struct pollfd fds[] = {{.fd = fd, .events = POLLOUT},
                                   {.fd = running->signals, .events = POLLIN}};
            poll(fds, 2, -1);
            take_signals(running);
            running->broken = running->ended_by != 0;
        } else if (n < 0) {
            running->broken = true;
            signal_all(running, SIGTERM);
        } else {
            text += n;
            length -= (size_t)n;
        }
    }
}

/* Takes `object` over. */
static void put_json(struct running *running, json_t *object)
{
    _cleanup_free_ char *text =
        object ? json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(7)) : NULL;
    json_decref(object);
    if (!text)
        return;
    size_t length = strlen(text);
    text[length] = '\n'; /* the NUL's place */
    put(running, STDOUT_FILENO, text, length + 1);
}

static void say(struct running *running, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void say(struct running *running, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    put(running, STDOUT_FILENO, text, (size_t)min(length, (int)sizeof text - 1));
}

/* JSON's strings are UTF-8: in a line that is none, all that is not ASCII becomes '?'. */
static json_t *text_json(const char *bytes, size_t length)
{
    json_t *value = json_stringn(bytes, length);
    char plain[CROWD_LINE_MAX];
    if (value)
        return value;
    for (size_t i = 0; i < length; i++)
        plain[i] = (unsigned char)bytes[i] < 0x80 ? bytes[i] : '?';
    return json_stringn(plain, length);
}

static void put_line(struct running *running, const struct crowd_member *member, unsigned which,
                     const char *bytes, size_t length)
{
    char text[CROWD_LINE_MAX + 256];
    if (which == 0 && running->crowd->mute)
        return;
    if (length > 0 && bytes[length - 1] == '\r')
        length--;
    if (running->crowd->json) {
        put_json(running, json_pack("{s:s, s:o}", "name", member->name, which ? "stderr" : "stdout",
                                    text_json(bytes, length)));
        return;
    }
    size_t head = (size_t)snprintf(text, 240, "%.200s | ", member->name);
    memcpy(text + head, bytes, length); /* with NULs, if it has some */
    text[head + length] = '\n';
    put(running, which ? STDERR_FILENO : STDOUT_FILENO, text, head + length + 1);
}

/* ---- what comes from a member ---- */

static void take_line(struct running *running, struct crowd_member *member, unsigned which)
{
    struct crowd_line *line = &member->lines[which];
    size_t start = 0;
    for (size_t i = 0; i < line->length; i++)
        if (line->bytes[i] == '\n') {
            put_line(running, member, which, line->bytes + start, i - start);
            start = i + 1;
        }
    if (start == 0 && line->length == sizeof line->bytes) {
        put_line(running, member, which, line->bytes, line->length);
        start = line->length;
    }
    line->length -= start;
    memmove(line->bytes, line->bytes + start, line->length);
}

/* False where nothing more comes for now. */
static bool take_bytes(struct running *running, struct crowd_member *member, unsigned which)
{
    int *fd = which ? &member->errors : &member->out;
    struct crowd_line *line = &member->lines[which];
    if (*fd < 0)
        return false;
    ssize_t n = read(*fd, line->bytes + line->length, sizeof line->bytes - line->length);
    if (n < 0)
        return errno == EINTR;
    if (n == 0) {
        shut(*fd);
        *fd = -1;
        return false;
    }
    line->length += (size_t)n;
    take_line(running, member, which);
    return true;
}

static void take_ready(struct running *running, struct crowd_member *member, const char *text)
{
    int pid;
    uint64_t restored;
    double after = (double)(clock_ns() - running->began) / 1e6;
    if (member->ready || sscanf(text, "%d %" SCNu64, &pid, &restored) != 2)
        return;
    member->ready = true;
    if (!running->crowd->says)
        return;
    if (running->crowd->json)
        put_json(running, json_pack("{s:s, s:f, s:f, s:i}", "name", member->name, "ready_ms", after,
                                    "restore_ms", (double)restored / 1e6, "pid", pid));
    else
        say(running, "%s is ready after %.0f ms\n", member->name, after);
}

static void finish(struct running *running, struct crowd_member *member)
{
    int status = 0;
    while (waitpid(member->pid, &status, 0) < 0 && errno == EINTR)
        take_signals(running);
    member->pid = 0;
    member->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    for (unsigned which = 0; which < 2; which++) {
        while (take_bytes(running, member, which)) /* what is left in the pipe */
            ;
        if (member->lines[which].length)
            put_line(running, member, which, member->lines[which].bytes,
                     member->lines[which].length);
        shut(which ? member->errors : member->out);
    }
    member->out = member->errors = -1;
    if (is_guard(running->crowd, member)) {
        /* Where we ended it ourselves, that says nothing of the snapshot. */
        running->alarmed = member->status != 0 && !running->ended_by && !running->broken;
        if (running->alarmed)
            signal_all(running, SIGTERM);
        return;
    }
    if (!running->crowd->says)
        return;
    if (running->crowd->json)
        put_json(running, json_pack("{s:s, s:i}", "name", member->name, "status", member->status));
    else
        say(running, "%s has ended, exit status %d\n", member->name, member->status);
}

/* The child alone has that pipe: its end is the child's. */
static void take_report(struct running *running, struct crowd_member *member)
{
    char text[64] = "";
    ssize_t n = read(member->report, text, sizeof text - 1);
    if (n > 0)
        take_ready(running, member, text);
    if (n > 0 || (n < 0 && (errno == EINTR || errno == EAGAIN)))
        return;
    shut(member->report);
    member->report = -1;
    finish(running, member);
}

/* ---- starting them ---- */

static void become_member(struct running *running, struct crowd_member *member,
                          const int pipes[PIPES][2], pid_t parent)
{
    struct crowd *crowd = running->crowd;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(RELAY_FAILED);
    setpgid(0, 0); /* Ctrl-C is for the first of us, who tells the others */
    for (const struct crowd_member *other = crowd->members; other < crowd->members + crowd->count;
         other++) {
        shut(other->out);
        shut(other->errors);
        shut(other->report);
    }
    shut(running->hold);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(pipes[0][1], STDOUT_FILENO) < 0 ||
        dup2(pipes[1][1], STDERR_FILENO) < 0)
        _exit(RELAY_FAILED);
    shut(null);
    for (unsigned i = 0; i < PIPES; i++)
        shut(pipes[i][0]);
    shut(pipes[0][1]);
    shut(pipes[1][1]);
    int status = crowd->run(member, pipes[2][1], crowd->opaque);
    fflush(stdout);
    _exit(status);
}

static int start(struct running *running, struct crowd_member *member)
{
    int pipes[PIPES][2], r = 0;
    for (unsigned i = 0; i < PIPES; i++)
        pipes[i][0] = pipes[i][1] = -1;
    for (unsigned i = 0; r >= 0 && i < PIPES; i++)
        r = pipe2(pipes[i], O_CLOEXEC);
    pid_t parent = getpid();
    pid_t pid = r < 0 ? -1 : fork();
    if (pid == 0)
        become_member(running, member, pipes, parent);
    r = pid < 0 ? -errno : 0;
    for (unsigned i = 0; i < PIPES; i++) {
        shut(pipes[i][1]);
        if (r < 0)
            shut(pipes[i][0]);
        else
            fcntl(pipes[i][0], F_SETFL, O_NONBLOCK);
    }
    if (r < 0)
        return r;
    member->pid = pid;
    member->out = pipes[0][0];
    member->errors = pipes[1][0];
    member->report = pipes[2][0];
    return 0;
}

static void start_or_say(struct running *running, struct crowd_member *member)
{
    int r = start(running, member);
    if (r >= 0)
        return;
    fprintf(stderr, "lodge: cannot start '%s': %s\n", member->name, strerror(-r));
    member->status = RELAY_FAILED;
    running->alarmed |= is_guard(running->crowd, member);
}

/* ---- all of them ---- */

static void release_guard(struct running *running)
{
    const struct crowd *crowd = running->crowd;
    if (running->hold < 0)
        return;
    for (unsigned i = 0; i < crowd->count; i++) {
        const struct crowd_member *member = &crowd->members[i];
        if (member->pid > 0 && !member->ready && !is_guard(crowd, member))
            return;
    }
    close(running->hold);
    running->hold = -1;
}

/* False when all have ended. */
static bool step(struct running *running)
{
    struct crowd *crowd = running->crowd;
    struct pollfd fds[1 + PIPES * CROWD_MAX];
    bool alive = false;
    fds[0] = (struct pollfd){.fd = running->signals, .events = POLLIN};
    for (unsigned i = 0; i < crowd->count; i++) {
        const struct crowd_member *member = &crowd->members[i];
        const int from[PIPES] = {member->out, member->errors, member->report};
        for (unsigned k = 0; k < PIPES; k++)
            fds[1 + PIPES * i + k] = (struct pollfd){.fd = from[k], .events = POLLIN};
        alive |= member->pid > 0;
    }
    if (!alive)
        return false;
    if (poll(fds, 1 + PIPES * crowd->count, -1) < 0 && errno != EINTR)
        return false;
    take_signals(running);
    for (unsigned i = 0; i < crowd->count; i++) {
        const struct pollfd *of = fds + 1 + PIPES * i;
        for (unsigned which = 0; which < 2; which++)
            if (of[which].revents)
                take_bytes(running, &crowd->members[i], which);
        if (of[2].revents)
            take_report(running, &crowd->members[i]);
    }
    release_guard(running);
    return true;
}

/* Without the guard no other begins. */
static void start_all(struct running *running)
{
    struct crowd *crowd = running->crowd;
    unsigned count = crowd->count - crowd->guarded;
    for (unsigned i = 0; i < crowd->count; i++)
        crowd->members[i].out = crowd->members[i].errors = crowd->members[i].report = -1;
    crowd->others_ready = -1;
    int pair[2];
    if (crowd->guarded && !crowd->guard_first && pipe2(pair, O_CLOEXEC) == 0) {
        crowd->others_ready = pair[0];
        running->hold = pair[1];
    }
    if (crowd->guarded)
        start_or_say(running, &crowd->members[count]);
    shut(crowd->others_ready);
    while (crowd->guard_first && step(running))
        ;
    for (unsigned i = 0; i < count && !running->alarmed; i++)
        start_or_say(running, &crowd->members[i]);
}

int crowd_run(struct crowd *crowd)
{
    struct running running = {.crowd = crowd, .signals = -1, .hold = -1, .began = clock_ns()};
    struct err err = {0};
    int worst = 0;
    /* Before our own signal handlers: a child must not inherit them, for they write to our pipe. */
    start_all(&running);
    running.signals = signals_open(&err);
    if (running.signals < 0) {
        fprintf(stderr, "lodge: %s\n", err.text);
        signal_all(&running, SIGTERM);
    }
    while (step(&running))
        ;
    shut(running.signals);
    shut(running.hold);
    for (unsigned i = 0; i < crowd->count; i++)
        worst = max(worst, crowd->members[i].status);
    if (running.alarmed)
        return RELAY_FAILED;
    if (running.ended_by)
        return 128 + running.ended_by;
    return running.broken ? 128 + SIGPIPE : worst;
}
