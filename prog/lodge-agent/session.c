#include "session.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>

/* Output is read from commands only while less than this waits for the channel. */
enum { WRITER_FULL = 256 * 1024 };

struct session *session_new(bool may_shut_down)
{
    struct session *session = calloc(1, sizeof *session);
    if (!session)
        return NULL;
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    session->uptime = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    session->channel = -1;
    session->shutdown = -1;
    session->may_shut_down = may_shut_down;
    return session;
}

void session_end_commands(struct session *session)
{
    while (session->commands) {
        struct command *command = session->commands;
        session->commands = command->next;
        command_signal(command, SIGKILL);
        command_free(command);
    }
    session->command_count = 0;
}

void session_free(struct session *session)
{
    if (!session)
        return;
    session_end_commands(session);
    agent_writer_free(&session->writer);
    own_close(&session->channel);
    free(session);
}

void session_attach(struct session *session, int channel)
{
    session->channel = channel;
}

static struct command *find(const struct session *session, uint32_t stream)
{
    struct command *command = session->commands;
    while (command && command->stream != stream)
        command = command->next;
    return command;
}

/* Forgets the peer: what it started ends, what waits for it is dropped, and the next thing believed
 * is a HELLO. */
static void reset(struct session *session)
{
    session_end_commands(session);
    agent_writer_free(&session->writer);
}

static int welcome(struct session *session, const struct agent_message *hello)
{
    struct utsname names;
    char strings[sizeof names.release + 64];
    uname(&names);
    int length = snprintf(strings, sizeof strings, "%s%c%s", LODGE_VERSION, 0, names.release);
    reset(session);
    return agent_put(&session->writer,
                     &(struct agent_message){
                         AGENT_WELCOME,
                         0,
                         .welcome = {AGENT_VERSION,
                                     hello->hello.nonce,
                                     session->uptime,
                                     {strings, (size_t)length + 1, 2}},
                     },
                     NULL);
}

static int fail(struct session *session, uint32_t stream, int error, const char *text)
{
    struct agent_message message = {AGENT_FAILED, stream, .failed = {(uint32_t)error, text}};
    return agent_put(&session->writer, &message, NULL);
}

static int exec(struct session *session, const struct agent_message *message)
{
    struct command *command;
    struct err err = {0};
    if (find(session, message->stream))
        return fail(session, message->stream, EEXIST, "the stream is in use");
    if (session->command_count >= SESSION_COMMANDS_MAX)
        return fail(session, message->stream, EAGAIN, "too many commands at once");
    int r = command_spawn(message, &command, &err);
    if (r < 0)
        return fail(session, message->stream, -r, err.text);
    command->next = session->commands;
    session->commands = command;
    session->command_count++;
    return agent_put(&session->writer,
                     &(struct agent_message){
                         AGENT_STARTED,
                         message->stream,
                         .started = {(uint32_t)command->pid, AGENT_WINDOW},
                     },
                     NULL);
}

/* Credit saturates: a peer cannot wrap it round. */
static void grant(struct command *command, const struct agent_message *message)
{
    if (message->window.flow == AGENT_FLOW_STDIN)
        return;
    uint32_t *window = &command->window[message->window.flow == AGENT_FLOW_STDERR];
    *window = min(*window + message->window.bytes, (uint32_t)AGENT_WINDOW_MAX);
}

static int shut_down(struct session *session, const struct agent_message *message)
{
    if (!session->may_shut_down)
        return fail(session, 0, EPERM, "this agent is not the guest's PID 1");
    session->shutdown = (int)message->shutdown.how;
    return 0;
}

static int handle(struct session *session, const struct agent_message *message)
{
    /* A message for a stream that is over is no fault: EXIT may have crossed it on the way. */
    struct command *command = find(session, message->stream);
    switch (message->type) {
    case AGENT_HELLO: return welcome(session, message);
    case AGENT_EXEC: return exec(session, message);
    case AGENT_STDIN:
        return command ? command_input(command, message->data.bytes, message->data.length) : 0;
    case AGENT_WINDOW_GRANT:
        if (command)
            grant(command, message);
        return 0;
    case AGENT_SIGNAL:
        if (command)
            command_signal(command, (int)message->signal.number);
        return 0;
    case AGENT_RESIZE:
        if (command)
            command_resize(command, message->resize.columns, message->resize.rows);
        return 0;
    case AGENT_SHUTDOWN: return shut_down(session, message);
    case AGENT_PING: {
        struct agent_message pong = *message;
        pong.type = AGENT_PONG;
        return agent_put(&session->writer, &pong, NULL);
    }
    default: return -EPROTO; /* what only an agent sends */
    }
}

static void read_channel(struct session *session)
{
    struct agent_message message;
    /* Bounded, so that a host that never stops sending cannot starve the commands. */
    for (int i = 0; i < 16; i++) {
        size_t size;
        uint8_t *space = agent_reader_space(&session->reader, &size);
        ssize_t n = read(session->channel, space, size);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        /* A virtio port reads 0 while the host's end is closed. */
        session->hung_up = n <= 0;
        if (n <= 0) {
            reset(session);
            return;
        }
        agent_reader_filled(&session->reader, (size_t)n);
        while (agent_reader_next(&session->reader, &message) > 0)
            if (handle(session, &message) < 0) {
                reset(session);
                session->reader.synchronised = false;
            }
    }
}

static void write_channel(struct session *session)
{
    size_t length;
    const uint8_t *bytes = agent_writer_bytes(&session->writer, &length);
    while (length > 0) {
        ssize_t n = write(session->channel, bytes, length);
        if (n <= 0)
            return;
        agent_writer_sent(&session->writer, (size_t)n);
        bytes = agent_writer_bytes(&session->writer, &length);
    }
}

static bool may_read_commands(const struct session *session)
{
    size_t waiting;
    agent_writer_bytes(&session->writer, &waiting);
    return waiting < WRITER_FULL;
}

static void pump_commands(struct session *session)
{
    struct command **link = &session->commands;
    while (*link && may_read_commands(session)) {
        struct command *command = *link;
        int r = command_pump(command, &session->writer);
        if (r < 0 || command_over(command, &session->writer)) {
            *link = command->next;
            session->command_count--;
            command_free(command);
        } else {
            link = &command->next;
        }
    }
}

unsigned session_poll(const struct session *session, struct pollfd *fds)
{
    size_t waiting;
    unsigned count = 0;
    agent_writer_bytes(&session->writer, &waiting);
    if (session->channel >= 0 && !session->hung_up)
        fds[count++] = (struct pollfd){.fd = session->channel,
                                       .events = (short)(POLLIN | (waiting ? POLLOUT : 0))};
    for (const struct command *command = session->commands; command; command = command->next)
        count += command_poll(command, fds + count, may_read_commands(session));
    return count;
}

void session_step(struct session *session)
{
    if (session->channel < 0)
        return;
    read_channel(session);
    pump_commands(session);
    write_channel(session);
}

bool session_reaped(struct session *session, pid_t pid, int wait_status)
{
    for (struct command *command = session->commands; command; command = command->next)
        if (command->pid == pid) {
            command->exited = true;
            command->wait_status = wait_status;
            return true;
        }
    return false;
}
