/*
 * lodge-agent: the host's hands inside a guest.
 *
 * As PID 1 of the default image it brings the guest up, serves the exec channel, gives the console
 * a shell, reaps what is orphaned, and shuts down. Started by another init it only serves the
 * channel. Where the guest has a socket device the host may connect to it as often as it likes, and
 * each connection is a channel. With --port-fd N the channel is a descriptor that it inherits,
 * which is how the tests run it; with --vsock-port N there is no other than connections to that
 * port.
 *
 * Kernel command line: lodge.console=ttyS0|hvc0|off (a shell there whose end powers the guest off;
 * ttyS0 when absent), lodge.hostname=NAME, lodge.net=user|tap (ask for an address for each
 * network card; with user, wait for it), lodge.share=TAG:FOLDER[:ro] (a shared folder to mount).
 */
#include "base/bytes.h"
#include "base/own.h"
#include "boot.h"
#include "listener.h"
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

enum {
    IDLE_MS = 20,
    SESSIONS_MAX = 1 + 32, /* the virtio port's, and the connections' */
    SLOTS = 3,             /* what is polled beside the sessions */
};

struct agent {
    bool init; /* we are PID 1 */
    bool port; /* look for the virtio port */
    enum session_rights rights;
    struct session *sessions[SESSIONS_MAX]; /* [0]: the port's, always there */
    unsigned vsock_port;                    /* 0 = do not listen */
    int listener;                           /* -1 while there is no socket device */
    int signals;                            /* signalfd */
    int uevents;                            /* until the port and the console are there */
    char console[32];                       /* "" = none, or started already */
    pid_t console_pid;
    FILE *modules; /* those that can wait until nothing else is to be done; NULL = no more */
    bool stop;
};

static const int handled[] = {SIGCHLD, SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGPWR};

static int open_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < ARRAY_LEN(handled); i++)
        sigaddset(&set, handled[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* A login shell with the console as its controlling terminal. False while the device is missing. */
static bool start_console(struct agent *agent)
{
    char path[64];
    char *argv[] = {"-sh", NULL};
    char *env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                   "HOME=/root", "TERM=linux", NULL};
    snprintf(path, sizeof path, "/dev/%s", agent->console);
    if (access(path, F_OK) < 0)
        return false;
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
    posix_spawn_file_actions_addopen(&actions, 0, path, O_RDWR, 0);
    posix_spawn_file_actions_adddup2(&actions, 0, 1);
    posix_spawn_file_actions_adddup2(&actions, 0, 2);
    posix_spawn_file_actions_addchdir_np(&actions, "/root");
    int r = posix_spawn(&agent->console_pid, "/bin/sh", &actions, &attributes, argv, env);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (r != 0) {
        agent->console_pid = 0;
        dprintf(STDERR_FILENO, "lodge-agent: shell on %s: %s\n", path, strerror(r));
    }
    return true;
}

static void close_uevents(struct agent *agent)
{
    own_close(&agent->uevents);
    agent->uevents = -1;
}

/* What may have appeared since the last look. */
static void look_for_devices(struct agent *agent)
{
    if (*agent->console && start_console(agent))
        *agent->console = '\0';
    if (agent->port && agent->sessions[0]->channel < 0) {
        int port = boot_open_port(AGENT_PORT_NAME);
        if (port >= 0)
            session_attach(agent->sessions[0], port);
    }
    if (agent->vsock_port && agent->listener < 0)
        agent->listener = listener_open(agent->vsock_port);
    /* Our own guest's modules are there from the beginning, or the device is not. */
    bool listens = agent->listener >= 0 || agent->init || !agent->vsock_port;
    if ((agent->sessions[0]->channel >= 0 || !agent->port) && listens && !*agent->console)
        close_uevents(agent);
}

static void drain_uevents(struct agent *agent)
{
    char event[8192];
    while (read(agent->uevents, event, sizeof event) > 0)
        ;
    look_for_devices(agent);
}

static void reap(struct agent *agent)
{
    int status;
    for (pid_t pid = waitpid(-1, &status, WNOHANG); pid > 0; pid = waitpid(-1, &status, WNOHANG)) {
        bool taken = false;
        for (unsigned i = 0; i < SESSIONS_MAX && !taken; i++)
            taken = agent->sessions[i] && session_reaped(agent->sessions[i], pid, status);
        if (!taken && pid == agent->console_pid)
            agent->sessions[0]->shutdown = AGENT_POWER_OFF;
    }
}

/* As BusyBox's poweroff, halt and reboot tell init what they want. */
static void take_signals(struct agent *agent)
{
    struct signalfd_siginfo info;
    while (read(agent->signals, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGCHLD)
            reap(agent);
        else if (!agent->init)
            agent->stop = true;
        else if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT)
            agent->sessions[0]->shutdown = AGENT_REBOOT;
        else
            agent->sessions[0]->shutdown = AGENT_POWER_OFF;
    }
}

/* --- sessions --- */

static void accept_connections(struct agent *agent)
{
    for (;;) {
        int fd = listener_accept(agent->listener);
        if (fd < 0)
            return;
        unsigned i = 1;
        while (i < SESSIONS_MAX && agent->sessions[i])
            i++;
        if (i < SESSIONS_MAX)
            agent->sessions[i] = session_new(agent->rights);
        if (i < SESSIONS_MAX && agent->sessions[i])
            session_attach(agent->sessions[i], fd);
        else
            close(fd);
    }
}

/* True where one of them can go on at once. A connection that has ended is forgotten; the port may
 * be opened by another host. */
static bool step_sessions(struct agent *agent)
{
    bool busy = false;
    for (unsigned i = 0; i < SESSIONS_MAX; i++) {
        struct session *session = agent->sessions[i];
        if (!session)
            continue;
        busy |= session_step(session);
        if (session->shutdown >= 0)
            agent->sessions[0]->shutdown = session->shutdown;
        if (i > 0 && session->hung_up) {
            session_free(session);
            agent->sessions[i] = NULL;
        }
    }
    return busy;
}

static unsigned poll_sessions(const struct agent *agent, struct pollfd *fds)
{
    unsigned count = 0;
    for (unsigned i = 0; i < SESSIONS_MAX; i++)
        if (agent->sessions[i])
            count += session_poll(agent->sessions[i], fds + count);
    return count;
}

/* How long to wait where nothing happens. A port whose host end is closed would be ready at all
 * times, so it is looked at now and then instead. */
static int patience(const struct agent *agent, bool busy)
{
    if (busy)
        return 0;
    return agent->sessions[0]->hung_up || agent->modules ? IDLE_MS : -1;
}

static void serve(struct agent *agent)
{
    static struct pollfd fds[SLOTS + SESSIONS_MAX * SESSION_POLL_MAX];
    bool busy = false;
    while (!agent->stop && agent->sessions[0]->shutdown < 0) {
        fds[0] = (struct pollfd){.fd = agent->signals, .events = POLLIN};
        fds[1] = (struct pollfd){.fd = agent->uevents, .events = POLLIN};
        fds[2] = (struct pollfd){.fd = agent->listener, .events = POLLIN};
        unsigned count = SLOTS + poll_sessions(agent, fds + SLOTS);
        int ready = poll(fds, count, patience(agent, busy));
        if (ready < 0 && errno != EINTR)
            break;
        if (ready == 0 && !busy && agent->modules && !boot_load_module(agent->modules))
            agent->modules = NULL;
        if (fds[0].revents)
            take_signals(agent);
        if (fds[1].revents)
            drain_uevents(agent);
        if (fds[2].revents)
            accept_connections(agent);
        busy = step_sessions(agent);
        if (agent->sessions[0]->hung_up && !agent->init && agent->listener < 0)
            agent->stop = true;
    }
}

static void bring_up(struct agent *agent)
{
    boot_mount();
    if (!boot_option("lodge.console", agent->console, sizeof agent->console))
        strcpy(agent->console, "ttyS0");
    if (!strcmp(agent->console, "off") || strchr(agent->console, '/'))
        *agent->console = '\0';
    agent->uevents = boot_open_uevents();
    boot_network();
    agent->modules = boot_load_modules();
    boot_cards();
    boot_shares();
}

static int usage(void)
{
    fprintf(stderr, "usage: lodge-agent [--port-fd N | --vsock-port N]\n"
                    "Serves the exec channel of a Lodge guest.\n");
    return 2;
}

static bool parse_number(const char *text, long limit, long *ret_number)
{
    char *end;
    *ret_number = strtol(text, &end, 10);
    return !*end && end != text && *ret_number >= 0 && *ret_number <= limit;
}

/* What the channel is to be; `*ret_fd` is one that was inherited, or -1. */
static int parse(int argc, char **argv, struct agent *agent, int *ret_fd)
{
    long number = 0;
    if (argc == 1)
        return 0;
    if (argc == 3 && !strcmp(argv[1], "--vsock-port") && parse_number(argv[2], INT_MAX, &number) &&
        number > 0) {
        agent->port = false;
        agent->vsock_port = (unsigned)number;
        return 0;
    }
    if (argc != 3 || strcmp(argv[1], "--port-fd") != 0 ||
        !parse_number(argv[2], 1 << 20, &number) || fcntl((int)number, F_SETFL, O_NONBLOCK) < 0)
        return usage();
    *agent = (struct agent){.rights = SESSION_NOTHING, .listener = -1, .uevents = -1};
    *ret_fd = (int)number;
    fcntl(*ret_fd, F_SETFD, FD_CLOEXEC);
    return 0;
}

/* Everything is ready for serve(). */
static int begin(struct agent *agent, int channel)
{
    agent->signals = open_signals();
    agent->sessions[0] = session_new(agent->rights);
    if (agent->signals < 0 || !agent->sessions[0]) {
        perror("lodge-agent");
        return 1;
    }
    if (agent->init)
        bring_up(agent);
    if (channel >= 0) {
        session_attach(agent->sessions[0], channel);
        return 0;
    }
    if (!agent->init)
        agent->uevents = boot_open_uevents();
    look_for_devices(agent);
    return 0;
}

int main(int argc, char **argv)
{
    bool init = getpid() == 1;
    struct agent agent = {.init = init,
                          .port = true,
                          .rights = init ? SESSION_INIT : SESSION_GUEST,
                          .vsock_port = AGENT_VSOCK_PORT,
                          .listener = -1,
                          .uevents = -1};
    int channel = -1, r = 0;
    /* What the kernel hands to its init as arguments (words it did not know) is not for us. */
    if (!init)
        r = parse(argc, argv, &agent, &channel);
    if (r == 0)
        r = begin(&agent, channel);
    if (r != 0)
        return r;
    serve(&agent);
    bool again = agent.sessions[0]->shutdown == AGENT_REBOOT;
    own_close(&agent.listener); /* first: nobody is to find an agent that is going down */
    for (unsigned i = 0; i < SESSIONS_MAX; i++)
        session_free(agent.sessions[i]);
    if (init)
        boot_shut_down(again);
    close_uevents(&agent);
    own_close(&agent.signals);
    return 0;
}
