#include "relay.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/own.h"
#include "serial_log.h"
#include "signals.h"
#include "space.h"
#include "terminal.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum {
    ESCAPE = 0x1d,    /* Ctrl-] */
    GUEST_LINES = 20, /* of the serial port, shown when a guest fails */
    INTERRUPT_AGAIN_MS = 1000,
    END_OF_INPUT_MS = 1000,
    KILLED_BY_PIPE = 128 + SIGPIPE,
};

enum slot {
    SLOT_SIGNALS,
    SLOT_CONTROL,
    SLOT_SERIAL,
    SLOT_CHANNEL,
    SLOT_INPUT,
    SLOT_OUT,
    SLOT_ERRORS,
    SLOT_VSOCK,
    SLOT_STEER, /* STEER_POLL_MAX of them */
    SLOT_MAX = SLOT_STEER + STEER_POLL_MAX
};

struct relay {
    const struct relay_plan *plan;
    struct machine *machine;
    struct channel *channel; /* NULL where no agent is expected */
    struct sink out, errors;
    struct serial_log log;
    int signals;

    bool input_open;
    bool escaped;       /* Ctrl-] came, the next key decides */
    uint8_t keys[4096]; /* serial: input on its way to the guest */
    size_t key_start, key_end;
    int64_t next_end_of_input; /* serial: when to say again that input has ended; 0 = not yet */
    int64_t last_interrupt;
    int64_t started;

    uint32_t full;      /* disks that the guest waits for, a bit each; it stands meanwhile */
    int64_t full_since; /* where any is */

    bool over;
    int status;
    uint64_t restored_ns; /* from the VMM's start to the guest's next instruction; 0 = not yet */
    bool named, reported; /* its identity is set; who wanted to know has heard of it */
    bool panicked;
    bool watchdog;       /* it expired, since the last reset */
    bool ended_by_guest; /* not by a signal or a key */
};

static void end(struct relay *relay, int status)
{
    if (relay->over)
        return;
    relay->over = true;
    relay->status = status;
}

/* Writes what is left for standard output and error, however slow they are read; a signal that ends
 * us ends this too. */
static void drain(struct relay *relay)
{
    while (!sink_empty(&relay->out) || !sink_empty(&relay->errors)) {
        struct pollfd fds[] = {
            {.fd = relay->signals, .events = POLLIN},
            {.fd = sink_empty(&relay->out) ? -1 : relay->out.fd, .events = POLLOUT},
            {.fd = sink_empty(&relay->errors) ? -1 : relay->errors.fd, .events = POLLOUT},
        };
        if (poll(fds, ARRAY_LEN(fds), -1) < 0 && errno != EINTR)
            return;
        int number = fds[0].revents ? signals_next(relay->signals) : 0;
        if (number == SIGINT || number == SIGTERM || number == SIGHUP || number == SIGQUIT) {
            relay->over = true;
            relay->status = 128 + number;
            return;
        }
        sink_pump(&relay->out, fds[1].revents);
        sink_pump(&relay->errors, fds[2].revents);
    }
}

/* For messages while we hold the terminal: it is given back first, so that lines are lines. */
static void say(struct relay *relay, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(struct relay *relay, const char *format, ...)
{
    va_list arguments;
    terminal_restore();
    drain(relay);
    fputs("lodge: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}

/* A line for a person while the guest has the terminal, and keeps it. */
static void notice(struct relay *relay, const char *text)
{
    if (relay->plan->raw)
        fprintf(stderr, "\r\nlodge: %s\r\n", text);
    else
        say(relay, "%s", text);
}

static void show_guest(struct relay *relay)
{
    if (relay->plan->command && !relay->plan->verbose)
        serial_log_print(&relay->log, GUEST_LINES, "lodge: guest: ", stderr);
}

/* The guest failed: says so, shows its last words. */
static void fail(struct relay *relay, const char *what, const char *detail)
{
    if (relay->over)
        return;
    int length = (int)strlen(detail);
    while (length > 0 && detail[length - 1] == '\n')
        length--;
    say(relay, "%s%s%.*s", what, length ? ": " : "", length, detail);
    show_guest(relay);
    end(relay, RELAY_FAILED);
}

/* The VMM knows its kernel as a descriptor; the person knows it as a path. */
static void cannot_run(struct relay *relay, const char *why)
{
    char what[512];
    snprintf(what, sizeof what, "cannot run the guest %s '%.400s'",
             relay->plan->restored   ? "from snapshot"
             : relay->plan->firmware ? "with firmware"
                                     : "with kernel",
             relay->plan->kernel);
    fail(relay, what, why);
}

/* --- the serial port --- */

/* False when nothing came. */
static bool take_serial(struct relay *relay)
{
    uint8_t bytes[16384];
    size_t room = sizeof bytes;
    if (!relay->plan->command)
        room = min(room, sink_room(&relay->out));
    else if (relay->plan->verbose)
        room = min(room, sink_room(&relay->errors));
    ssize_t n = read(relay->machine->serial, bytes, room);
    if (n <= 0)
        return false;
    serial_log_put(&relay->log, bytes, (size_t)n);
    if (!relay->plan->command)
        sink_put(&relay->out, bytes, (size_t)n);
    else if (relay->plan->verbose)
        sink_put(&relay->errors, bytes, (size_t)n);
    return true;
}

/* What the guest said before it ended is in the socket already. */
static void take_last_words(struct relay *relay)
{
    while (!relay->over && take_serial(relay))
        drain(relay);
}

static void give_keys(struct relay *relay)
{
    size_t length = relay->key_end - relay->key_start;
    if (length == 0)
        return;
    ssize_t n = send(relay->machine->serial, relay->keys + relay->key_start, length, MSG_NOSIGNAL);
    if (n > 0)
        relay->key_start += (size_t)n;
    else if (n < 0 && errno != EAGAIN && errno != EINTR)
        relay->key_start = relay->key_end;
    if (relay->key_start == relay->key_end)
        relay->key_start = relay->key_end = 0;
}

/* A serial line has no end of file. A shell on it takes Ctrl-D for one, but only when it happens to
 * be reading, so this is said again until the guest is off. Only to guests of ours: a stranger's
 * program could take it for anything. */
static void end_of_input(struct relay *relay)
{
    if (relay->input_open || relay->plan->command || !relay->plan->agent || relay->plan->raw ||
        relay->plan->deaf)
        return;
    if (relay->key_end != 0 || clock_ms() < relay->next_end_of_input)
        return;
    relay->keys[relay->key_end++] = 4;
    relay->next_end_of_input = clock_ms() + END_OF_INPUT_MS;
    give_keys(relay);
}

/* --- standard input --- */

/* Takes Ctrl-] and what follows it out of `bytes`; returns how many are left for the guest. */
static size_t take_escapes(struct relay *relay, uint8_t *bytes, size_t length)
{
    static const char help[] = "\r\nCtrl-] q  end the guest and leave\r\n"
                               "Ctrl-] Ctrl-]  send Ctrl-]\r\nCtrl-] ?  this\r\n";
    size_t kept = 0;
    for (size_t i = 0; i < length; i++) {
        if (!relay->escaped && bytes[i] == ESCAPE) {
            relay->escaped = true;
            continue;
        }
        if (relay->escaped) {
            relay->escaped = false;
            if (bytes[i] == 'q' || bytes[i] == 'Q') {
                end(relay, 0);
                return 0;
            }
            if (bytes[i] == '?' && sink_room(&relay->out) >= sizeof help) {
                sink_put(&relay->out, (const uint8_t *)help, sizeof help - 1);
                continue;
            }
        }
        bytes[kept++] = bytes[i];
    }
    return kept;
}

/* How much input has a place to go now. */
static size_t input_room(const struct relay *relay)
{
    if (relay->plan->command && relay->channel->state == CHANNEL_RUNNING)
        return channel_input_room(relay->channel);
    /* Before the command runs, only a person's keys are read: Ctrl-] must always work. What else
     * they type then is lost, as on any machine that is not up yet. */
    if (relay->plan->command)
        return relay->plan->raw ? 64 : 0;
    /* Nor is anything typed at a serial port that nobody has opened: Linux drops it then. */
    if (relay->plan->agent && !relay->plan->raw && relay->channel->state == CHANNEL_GREETING)
        return 0;
    return relay->key_end == 0 ? sizeof relay->keys : 0;
}

static int input_over(struct relay *relay)
{
    relay->input_open = false;
    return relay->plan->command ? channel_input_end(relay->channel) : 0;
}

static int take_input(struct relay *relay)
{
    uint8_t bytes[AGENT_DATA_MAX];
    size_t room = min(input_room(relay), sizeof bytes);
    if (room == 0)
        return 0;
    ssize_t n = read(STDIN_FILENO, bytes, room);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return 0;
    if (n <= 0)
        return input_over(relay);
    size_t length = (size_t)n;
    if (relay->plan->raw)
        length = take_escapes(relay, bytes, length);
    if (length == 0)
        return 0;
    if (relay->plan->command)
        return relay->channel->state == CHANNEL_RUNNING
                   ? channel_input(relay->channel, bytes, length)
                   : 0;
    memcpy(relay->keys, bytes, length);
    relay->key_start = 0;
    relay->key_end = length;
    give_keys(relay);
    return 0;
}

/* --- signals --- */

/* A person's Ctrl-C is the command's affair; a second one soon after means us. */
static void interrupt(struct relay *relay, int number)
{
    bool again = relay->last_interrupt && clock_ms() - relay->last_interrupt < INTERRUPT_AGAIN_MS;
    if (!relay->plan->command || relay->channel->state < CHANNEL_STARTING || again) {
        end(relay, 128 + number);
        return;
    }
    relay->last_interrupt = clock_ms();
    channel_signal(relay->channel, number);
}

static void tell_size(struct relay *relay)
{
    uint16_t columns, rows;
    if (!relay->plan->command || !relay->plan->what.tty)
        return;
    terminal_size(STDOUT_FILENO, &columns, &rows);
    channel_resize(relay->channel, columns, rows);
}

static void take_signals(struct relay *relay)
{
    for (int number = signals_next(relay->signals); number; number = signals_next(relay->signals))
        switch (number) {
        case SIGINT:
        case SIGQUIT: interrupt(relay, number); break;
        case SIGTERM:
        case SIGHUP: end(relay, 128 + number); break;
        case SIGWINCH: tell_size(relay); break;
        case SIGCONT:
            if (relay->plan->raw)
                terminal_raw(STDIN_FILENO, NULL);
            tell_size(relay);
            break;
        default: break;
        }
}

/* --- the VMM --- */

static void guest_reset(struct relay *relay)
{
    char reason[160];
    if (serial_log_panic(&relay->log, reason, sizeof reason))
        fail(relay, "the guest's kernel panicked", reason);
    else if (relay->panicked)
        fail(relay, "the guest's kernel panicked", "");
    else if (relay->watchdog)
        fail(relay, "the guest hung: its watchdog expired", "");
    else if (relay->plan->command && !relay->plan->shell)
        fail(relay, "the guest reset its machine before the command ended", "");
    else
        end(relay, 0);
}

static void guest_powered_off(struct relay *relay)
{
    if (relay->watchdog)
        fail(relay, "the guest hung: its watchdog expired", "");
    else if (relay->plan->command && !relay->plan->shell)
        fail(relay, "the guest powered off before the command ended", "");
    else
        end(relay, 0);
}

static void take_full(struct relay *relay, const struct control_message *event)
{
    char text[1024];
    uint32_t before = relay->full;
    if (event->port >= relay->plan->disk_count)
        return;
    space_describe(&relay->plan->disks[event->port], (int)event->code, text, sizeof text);
    notice(relay, text);
    relay->full &= ~(UINT32_C(1) << event->port);
    relay->full |= (uint32_t)(event->code != 0) << event->port;
    if (!before)
        relay->full_since = clock_ms();
    else if (!relay->full) /* that was not the agent's time */
        relay->started += clock_ms() - relay->full_since;
}

/* The guest runs; a clone is ready when it is its own. */
static void check_ready(struct relay *relay)
{
    const struct relay_plan *plan = relay->plan;
    struct err err = {0};
    if (!relay->named && (!plan->identity || !channel_waits(relay->channel))) {
        relay->named = true;
        for (unsigned i = 0; plan->plug >> i; i++) {
            const struct control_message link = {.type = CONTROL_LINK, .port = i, .open = true};
            if (plan->plug >> i & 1 && machine_request(relay->machine, &link, &err) < 0)
                fail(relay, "its network cannot be joined", err.text);
        }
    }
    if (plan->report < 0 || relay->reported || !relay->named || !relay->restored_ns)
        return;
    relay->reported = true;
    dprintf(plan->report, "%d %" PRIu64 "\n", (int)relay->machine->pid, relay->restored_ns);
}

static void guest_runs(struct relay *relay, const struct control_message *event)
{
    relay->restored_ns = event->time_ns - event->began_ns;
    if (!relay->plan->verbose || relay->plan->raw)
        return;
    if (relay->plan->restored)
        say(relay, "engine %s: %s; it ran %.1f ms after its process began", event->engine,
            event->text, (double)relay->restored_ns / 1e6);
    else
        say(relay, "engine %s: %s", event->engine, event->text);
}

static void take_event(struct relay *relay, const struct control_message *event)
{
    steer_event(relay->plan->steer, event, relay->machine);
    switch (event->type) {
    case CONTROL_READY: guest_runs(relay, event); return;
    case CONTROL_PANICKED: relay->panicked = true; return;
    case CONTROL_FULL: take_full(relay, event); return;
    case CONTROL_WATCHDOG:
        relay->watchdog = true;
        if (!relay->plan->watchdog_ends && !relay->plan->raw)
            say(relay, "the guest's watchdog expired");
        return;
    case CONTROL_RESET:
        if (relay->plan->reboots) { /* it starts anew */
            relay->panicked = relay->watchdog = false;
            return;
        }
        break;
    case CONTROL_POWER_OFF: break;
    case CONTROL_TRIPLE_FAULT: break;
    case CONTROL_DEBUG_EXIT: break;
    case CONTROL_ERROR: break;
    default: return;
    }
    relay->ended_by_guest = true;
    drain(relay);
    take_last_words(relay);
    if (event->type == CONTROL_RESET)
        guest_reset(relay);
    else if (event->type == CONTROL_POWER_OFF)
        guest_powered_off(relay);
    else if (event->type == CONTROL_TRIPLE_FAULT)
        fail(relay, "the guest died", event->text);
    else if (event->type == CONTROL_ERROR)
        cannot_run(relay, event->text);
    else
        end(relay, (int)event->code);
}

/* The VMM went without a word: its exit status is all there is. */
static void vmm_gone(struct relay *relay)
{
    take_last_words(relay);
    int status = machine_end(relay->machine);
    char text[64] = "";
    if (WIFSIGNALED(status))
        snprintf(text, sizeof text, "killed by signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else
        snprintf(text, sizeof text, "exit status %d", WEXITSTATUS(status));
    fail(relay, "lodge-vmm ended", text);
}

static void take_events(struct relay *relay)
{
    static struct control_message event; /* large; this program has one relay */
    struct err err = {0};
    while (!relay->over) {
        int r = machine_event(relay->machine, &event, &err);
        if (r == 0)
            return;
        if (r == -EPIPE) {
            vmm_gone(relay);
            return;
        }
        if (r < 0) {
            fail(relay, "lodge-vmm cannot be understood", err.text);
            return;
        }
        take_event(relay, &event);
    }
}

/* --- the command --- */

static int step_channel(struct relay *relay, struct err *err)
{
    struct channel *channel = relay->channel;
    if (!channel)
        return 0;
    int r = channel_step(channel, err);
    if (r >= 0)
        check_ready(relay);
    if (r >= 0 && relay->plan->command && channel->state == CHANNEL_READY) {
        struct channel_command command = relay->plan->what;
        if (command.tty)
            terminal_size(STDOUT_FILENO, &command.columns, &command.rows);
        r = channel_exec(channel, &command, err);
        if (r >= 0)
            r = channel_step(channel, err); /* at once: the guest waits for it */
    }
    if (r < 0)
        return r;
    if (channel->state == CHANNEL_OVER && sink_empty(&relay->out) && sink_empty(&relay->errors)) {
        if (*channel->failure)
            say(relay, "%s", channel->failure);
        end(relay, channel->status);
    }
    return 0;
}

static int pump_sinks(struct relay *relay, const struct pollfd *fds)
{
    int r = 0;
    struct sink *sinks[] = {&relay->out, &relay->errors};
    for (unsigned i = 0; i < 2; i++) {
        size_t gone = sink_pump(sinks[i], fds[SLOT_OUT + i].revents);
        if (r >= 0 && gone && relay->plan->command)
            r = channel_drained(relay->channel, i, gone);
    }
    if (relay->out.broken)
        end(relay, KILLED_BY_PIPE);
    return r;
}

static void check_agent_timeout(struct relay *relay)
{
    const struct relay_plan *plan = relay->plan;
    if ((!plan->command && !plan->identity) || !plan->agent_timeout || relay->full ||
        !channel_waits(relay->channel) ||
        clock_ms() - relay->started < (int64_t)plan->agent_timeout * 1000)
        return;
    char text[128];
    snprintf(text, sizeof text,
             "no answer within %u s; does its initrd start lodge-agent? (--agent-timeout)",
             plan->agent_timeout);
    fail(relay,
         plan->identity ? "the guest runs no agent that could give it its identity"
                        : "the guest runs no agent that could start the command",
         text);
}

/* --- the loop --- */

static void prepare(const struct relay *relay, struct pollfd *fds)
{
    const struct machine *machine = relay->machine;
    bool serial_room = relay->plan->command ? !relay->plan->verbose || sink_room(&relay->errors) > 0
                                            : sink_room(&relay->out) > 0;
    short serial = (short)((serial_room ? POLLIN : 0) | (relay->key_end ? POLLOUT : 0));
    fds[SLOT_SIGNALS] = (struct pollfd){.fd = relay->signals, .events = POLLIN};
    fds[SLOT_CONTROL] = (struct pollfd){.fd = machine->control, .events = POLLIN};
    fds[SLOT_SERIAL] = (struct pollfd){.fd = serial ? machine->serial : -1, .events = serial};
    fds[SLOT_CHANNEL] = (struct pollfd){.fd = -1};
    if (relay->channel && relay->channel->fd >= 0)
        fds[SLOT_CHANNEL] =
            (struct pollfd){.fd = relay->channel->fd, .events = channel_events(relay->channel)};
    fds[SLOT_INPUT] = (struct pollfd){
        .fd = relay->input_open && input_room(relay) ? STDIN_FILENO : -1, .events = POLLIN};
    fds[SLOT_OUT] =
        (struct pollfd){.fd = sink_empty(&relay->out) ? -1 : relay->out.fd, .events = POLLOUT};
    steer_poll(relay->plan->steer, fds + SLOT_STEER);
    fds[SLOT_VSOCK] = (struct pollfd){
        .fd = relay->plan->vsock ? vsock_host_fd(relay->plan->vsock) : -1, .events = POLLIN};
    fds[SLOT_ERRORS] = (struct pollfd){.fd = sink_empty(&relay->errors) ? -1 : relay->errors.fd,
                                       .events = POLLOUT};
}

static void step(struct relay *relay)
{
    struct pollfd fds[SLOT_MAX];
    struct err err = {0};
    int r = 0;
    prepare(relay, fds);
    bool timed =
        ((relay->plan->command || relay->plan->identity) && channel_waits(relay->channel)) ||
        (!relay->input_open && !relay->plan->command && relay->plan->agent && !relay->plan->deaf);
    if (poll(fds, SLOT_MAX, timed ? 250 : -1) < 0 && errno != EINTR) {
        fail(relay, "poll", strerror(errno));
        return;
    }
    take_signals(relay);
    if (fds[SLOT_SERIAL].revents & (POLLIN | POLLHUP))
        take_serial(relay);
    if (fds[SLOT_SERIAL].revents & POLLOUT)
        give_keys(relay);
    if (fds[SLOT_INPUT].revents)
        r = take_input(relay);
    if (r >= 0)
        r = pump_sinks(relay, fds);
    if (r >= 0 && !relay->over)
        r = step_channel(relay, &err);
    if (r < 0)
        fail(relay, "the exec channel failed", *err.text ? err.text : strerror(-r));
    if (fds[SLOT_VSOCK].revents)
        vsock_host_step(relay->plan->vsock);
    if (fds[SLOT_CONTROL].revents && !relay->over)
        take_events(relay);
    if (!relay->over)
        steer_step(relay->plan->steer, fds + SLOT_STEER, relay->machine);
    if (!relay->over)
        check_ready(relay);
    end_of_input(relay);
    check_agent_timeout(relay);
}

static int begin(struct relay *relay, struct err *err)
{
    relay->signals = signals_open(err);
    if (relay->signals < 0)
        return relay->signals;
    sink_init(&relay->out, STDOUT_FILENO);
    sink_init(&relay->errors, STDERR_FILENO);
    relay->input_open = true;
    if (relay->plan->vsock)
        vsock_host_join(relay->plan->vsock, relay->machine->vsock);
    relay->started = clock_ms();
    if (relay->plan->command || relay->plan->agent) {
        relay->channel =
            channel_new(relay->machine->agent, &relay->out, &relay->errors, relay->plan->restored);
        if (!relay->channel)
            return err_set(err, -ENOMEM, "no memory");
        channel_name(relay->channel, relay->plan->identity);
    }
    if (!relay->plan->raw)
        return 0;
    if (isatty(STDERR_FILENO))
        fputs("Ctrl-] then q leaves the guest.\n", stderr);
    return terminal_raw(STDIN_FILENO, err);
}

int relay_run(const struct relay_plan *plan, struct machine *machine)
{
    struct err err = {0};
    struct relay *relay = calloc(1, sizeof *relay);
    if (!relay) {
        machine_end(machine);
        fputs("lodge: no memory\n", stderr);
        return RELAY_FAILED;
    }
    *relay = (struct relay){.plan = plan, .machine = machine, .signals = -1};
    if (begin(relay, &err) < 0)
        fail(relay, "cannot start", err.text);
    while (!relay->over)
        step(relay);
    machine_end(machine);
    /* A person who left, and a script that was told to end, do not wait for a slow reader. */
    if (relay->ended_by_guest)
        drain(relay);
    terminal_restore();
    int status = relay->status;
    own_close(&relay->signals);
    channel_free(relay->channel);
    free(relay);
    return status;
}
