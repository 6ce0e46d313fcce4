#include "session.h"

#include "base/bytes.h"
#include "base/own.h"
#include "guest.h"
#include "identity.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>

/* Output is read from commands only while less than this waits for the channel. */
enum { WRITER_FULL = 256 * 1024, ROUNDS = 16 };

struct session *session_new(enum session_rights rights)
{
    struct session *session = calloc(1, sizeof *session);
    if (!session)
        return NULL;
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    session->uptime = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    session->channel = -1;
    session->shutdown = -1;
    session->rights = rights;
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
    while (session->transfers) {
        struct transfer *transfer = session->transfers;
        session->transfers = transfer->next;
        transfer_free(transfer);
    }
    session->transfer_count = 0;
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

static struct transfer *find_transfer(const struct session *session, uint32_t stream)
{
    struct transfer *transfer = session->transfers;
    while (transfer && transfer->stream != stream)
        transfer = transfer->next;
    return transfer;
}

static bool in_use(const struct session *session, uint32_t stream)
{
    return find(session, stream) || find_transfer(session, stream);
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
    uint32_t version = min(hello->hello.version, (uint32_t)AGENT_VERSION);
    version = max(version, (uint32_t)AGENT_VERSION_MIN); /* an older host will say so */
    uname(&names);
    int length = snprintf(strings, sizeof strings, "%s%c%s", LODGE_VERSION, 0, names.release);
    reset(session);
    return agent_put(&session->writer,
                     &(struct agent_message){
                         AGENT_WELCOME,
                         0,
                         .welcome = {version,
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
    if (in_use(session, message->stream))
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

static int transfer(struct session *session, const struct agent_message *message)
{
    struct transfer *new;
    struct err err = {0};
    if (in_use(session, message->stream))
        return fail(session, message->stream, EEXIST, "the stream is in use");
    if (session->transfer_count >= SESSION_TRANSFERS_MAX)
        return fail(session, message->stream, EAGAIN, "too many files at once");
    int r = transfer_start(message, &session->writer, &new, &err);
    if (r < 0)
        return fail(session, message->stream, -r, err.text);
    new->next = session->transfers;
    session->transfers = new;
    session->transfer_count++;
    return 0;
}

static void end_transfer(struct session *session, struct transfer *transfer)
{
    struct transfer **link = &session->transfers;
    while (*link != transfer)
        link = &(*link)->next;
    *link = transfer->next;
    session->transfer_count--;
    transfer_free(transfer);
}

static int input(struct session *session, const struct agent_message *message)
{
    const uint8_t *bytes = message->data.bytes;
    struct command *command = find(session, message->stream);
    if (command)
        return command_input(command, bytes, message->data.length);
    struct transfer *transfer = find_transfer(session, message->stream);
    if (!transfer)
        return 0;
    int r = transfer_input(transfer, bytes, message->data.length, &session->writer);
    if (r == 1)
        end_transfer(session, transfer);
    return r;
}

/* Credit saturates: a peer cannot wrap it round. */
static void grant(struct session *session, const struct agent_message *message)
{
    struct command *command = find(session, message->stream);
    struct transfer *transfer = find_transfer(session, message->stream);
    uint32_t *window = NULL;
    if (command && message->window.flow != AGENT_FLOW_STDIN)
        window = &command->window[message->window.flow == AGENT_FLOW_STDERR];
    if (transfer && message->window.flow == AGENT_FLOW_STDOUT)
        window = &transfer->window;
    if (window)
        *window = min(*window + message->window.bytes, (uint32_t)AGENT_WINDOW_MAX);
}

static int shut_down(struct session *session, const struct agent_message *message)
{
    struct err err = {0};
    if (session->rights == SESSION_NOTHING)
        return fail(session, 0, EPERM, "this agent does not serve a guest");
    if (session->rights == SESSION_INIT) {
        session->shutdown = (int)message->shutdown.how;
        return 0;
    }
    int r = guest_ask_init(message->shutdown.how, &err);
    return r < 0 ? fail(session, 0, -r, err.text) : 0;
}

static int set_clock(struct session *session, const struct agent_message *message)
{
    struct err err = {0};
    if (session->rights == SESSION_NOTHING)
        return fail(session, message->stream, EPERM, "this agent does not serve a guest");
    int r = guest_set_clock(message->clock.time, &err);
    if (r < 0)
        return fail(session, message->stream, -r, err.text);
    return agent_put(&session->writer,
                     &(struct agent_message){AGENT_EXIT, message->stream, .exit = {false, 0}},
                     NULL);
}

static int set_identity(struct session *session, const struct agent_message *message)
{
    struct err err = {0};
    if (session->rights == SESSION_NOTHING)
        return fail(session, message->stream, EPERM, "this agent does not serve a guest");
    int r = identity_set(message, session->rights == SESSION_INIT, &err);
    if (r < 0)
        return fail(session, message->stream, -r, err.text);
    return agent_put(&session->writer,
                     &(struct agent_message){AGENT_EXIT, message->stream, .exit = {false, 0}},
                     NULL);
}

static int describe(struct session *session, const struct agent_message *message)
{
    _cleanup_free_ char *bytes = NULL;
    struct agent_message info = {AGENT_INFO, message->stream, .info = {{NULL, 0, 0}}};
    if (guest_describe(&bytes, &info.info.strings) < 0)
        return fail(session, message->stream, ENOMEM, "no memory");
    return agent_put(&session->writer, &info, NULL);
}

static int handle(struct session *session, const struct agent_message *message)
{
    /* A message for a stream that is over is no fault: EXIT may have crossed it on the way. */
    struct command *command = find(session, message->stream);
    switch (message->type) {
    case AGENT_HELLO: return welcome(session, message);
    case AGENT_EXEC: return exec(session, message);
    case AGENT_STDIN: return input(session, message);
    case AGENT_WINDOW_GRANT: grant(session, message); return 0;
    case AGENT_SIGNAL:
        if (command)
            command_signal(command, (int)message->signal.number);
        return 0;
    case AGENT_RESIZE:
        if (command)
            command_resize(command, message->resize.columns, message->resize.rows);
        return 0;
    case AGENT_SHUTDOWN: return shut_down(session, message);
    case AGENT_PUSH:
    case AGENT_PULL: return transfer(session, message);
    case AGENT_CLOCK: return set_clock(session, message);
    case AGENT_ASK: return describe(session, message);
    case AGENT_IDENTITY: return set_identity(session, message);
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

/* One piece of each file. */
static void pump_transfers(struct session *session)
{
    struct transfer *next;
    for (struct transfer *transfer = session->transfers; transfer; transfer = next) {
        next = transfer->next;
        if (may_read_commands(session) && transfer_output(transfer, &session->writer) != 0)
            end_transfer(session, transfer);
    }
}

/* A file has always something to read, so nothing but this says that there is more to do; unless
 * the channel is full, which is polled. */
static bool busy(const struct session *session)
{
    const struct transfer *transfer = session->transfers;
    while (transfer && !transfer_wants_output(transfer))
        transfer = transfer->next;
    return transfer && may_read_commands(session);
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

bool session_step(struct session *session)
{
    if (session->channel < 0)
        return false;
    read_channel(session);
    pump_commands(session);
    for (int i = 0; i == 0 || (i < ROUNDS && busy(session)); i++) {
        pump_transfers(session);
        write_channel(session);
    }
    return busy(session);
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
