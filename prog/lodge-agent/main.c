/*
 * lodge-agent: the host's hands inside a guest.
 *
 * As PID 1 of the default image it brings the guest up, serves the exec channel, gives the console
 * a shell, reaps what is orphaned, and shuts down. Started by another init it only serves the
 * channel. With --port-fd N the channel is a descriptor that it inherits, which is how the tests
 * run it.
 *
 * Kernel command line: lodge.console=ttyS0|hvc0|off (a shell there whose end powers the guest off;
 * ttyS0 when absent), lodge.hostname=NAME, lodge.net=user|tap (ask for an address for each
 * network card; with user, wait for it).
 */
#include "base/bytes.h"
#include "base/own.h"
#include "boot.h"
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

struct agent {
    bool init; /* we are PID 1 */
    struct session *session;
    int signals;      /* signalfd */
    int uevents;      /* until the port and the console are there */
    char console[32]; /* "" = none, or started already */
    pid_t console_pid;
    FILE *modules; /* those that can wait until nothing else is to be done; NULL = no more */
    bool stop;
};

enum { IDLE_MS = 20 };

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
    if (agent->session->channel < 0) {
        int port = boot_open_port(AGENT_PORT_NAME);
        if (port >= 0)
            session_attach(agent->session, port);
    }
    if (agent->session->channel >= 0 && !*agent->console)
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
    for (pid_t pid = waitpid(-1, &status, WNOHANG); pid > 0; pid = waitpid(-1, &status, WNOHANG))
        if (!session_reaped(agent->session, pid, status) && pid == agent->console_pid)
            agent->session->shutdown = AGENT_POWER_OFF;
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
            agent->session->shutdown = AGENT_REBOOT;
        else
            agent->session->shutdown = AGENT_POWER_OFF;
    }
}

static void serve(struct agent *agent)
{
    static struct pollfd fds[SESSION_POLL_MAX + 2];
    while (!agent->stop && agent->session->shutdown < 0) {
        fds[0] = (struct pollfd){.fd = agent->signals, .events = POLLIN};
        fds[1] = (struct pollfd){.fd = agent->uevents, .events = POLLIN};
        unsigned count = 2 + session_poll(agent->session, fds + 2);
        /* A port whose host end is closed would be ready at all times, so it is looked at now and
         * then instead. */
        int wait = agent->session->hung_up || agent->modules ? IDLE_MS : -1;
        int ready = poll(fds, count, wait);
        if (ready < 0 && errno != EINTR)
            break;
        if (ready == 0 && agent->modules && !boot_load_module(agent->modules))
            agent->modules = NULL;
        if (fds[0].revents)
            take_signals(agent);
        if (fds[1].revents)
            drain_uevents(agent);
        session_step(agent->session);
        if (agent->session->hung_up && !agent->init)
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
}

static int usage(void)
{
    fprintf(stderr, "usage: lodge-agent [--port-fd N]\n"
                    "Serves the exec channel of a Lodge guest.\n");
    return 2;
}

static int parse(int argc, char **argv, int *ret_port)
{
    char *end;
    *ret_port = -1;
    if (argc == 1)
        return 0;
    if (argc != 3 || strcmp(argv[1], "--port-fd") != 0)
        return usage();
    long port = strtol(argv[2], &end, 10);
    if (*end || end == argv[2] || port < 0 || port > 1 << 20)
        return usage();
    *ret_port = (int)port;
    return fcntl(*ret_port, F_SETFL, O_NONBLOCK) < 0 ? usage() : 0;
}

int main(int argc, char **argv)
{
    struct agent agent = {.init = getpid() == 1, .uevents = -1};
    int port = -1, r = 0;
    /* What the kernel hands to its init as arguments (words it did not know) is not for us. */
    if (!agent.init)
        r = parse(argc, argv, &port);
    if (r != 0)
        return r;
    agent.signals = open_signals();
    agent.session = session_new(agent.init);
    if (agent.signals < 0 || !agent.session) {
        perror("lodge-agent");
        return 1;
    }
    if (agent.init)
        bring_up(&agent);
    if (port >= 0) {
        fcntl(port, F_SETFD, FD_CLOEXEC);
        session_attach(agent.session, port);
    } else {
        if (!agent.init)
            agent.uevents = boot_open_uevents();
        look_for_devices(&agent);
    }
    serve(&agent);
    bool again = agent.session->shutdown == AGENT_REBOOT;
    session_free(agent.session);
    if (agent.init)
        boot_shut_down(again);
    close_uevents(&agent);
    own_close(&agent.signals);
    return 0;
}
