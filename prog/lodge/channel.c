#include "channel.h"

#include "base/bytes.h"
#include "base/own.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { STREAM = 1, IDENTITY_STREAM = 2 };

static const bool transitions[CHANNEL_STATE_MAX][CHANNEL_STATE_MAX] = {
    [CHANNEL_GREETING] = {[CHANNEL_NAMING] = true, [CHANNEL_READY] = true},
    [CHANNEL_NAMING] = {[CHANNEL_READY] = true},
    [CHANNEL_READY] = {[CHANNEL_STARTING] = true},
    [CHANNEL_STARTING] = {[CHANNEL_RUNNING] = true, [CHANNEL_OVER] = true},
    [CHANNEL_RUNNING] = {[CHANNEL_OVER] = true},
};

/* False, and nothing changes, where the diagram has no such arrow. */
static bool move_to(struct channel *channel, enum channel_state state)
{
    if (!transitions[channel->state][state])
        return false;
    channel->state = state;
    return true;
}

struct channel *channel_new(int fd, struct sink *out, struct sink *errors, bool takeover)
{
    struct channel *channel = calloc(1, sizeof *channel);
    if (!channel)
        return NULL;
    channel->fd = fd;
    channel->out[0] = out;
    channel->out[1] = errors;
    if (getrandom(&channel->nonce, sizeof channel->nonce, 0) < 0)
        channel->nonce = (uint64_t)getpid();
    struct agent_message hello = {AGENT_HELLO, 0, .hello = {AGENT_VERSION, channel->nonce}};
    if ((takeover && agent_put_padding(&channel->writer, NULL) < 0) ||
        agent_put(&channel->writer, &hello, NULL) < 0) {
        channel_free(channel);
        return NULL;
    }
    return channel;
}

void channel_name(struct channel *channel, const struct agent_message *identity)
{
    channel->identity = identity;
}

bool channel_waits(const struct channel *channel)
{
    return channel->state == CHANNEL_GREETING || channel->state == CHANNEL_NAMING;
}

void channel_free(struct channel *channel)
{
    if (!channel)
        return;
    agent_writer_free(&channel->writer);
    free(channel);
}

/* The strings one after the other, each with its NUL; `*ret_bytes` is malloc'd. */
static int pack(const char *const *strings, unsigned count, char **ret_bytes,
                struct agent_strings *ret_strings)
{
    size_t size = 0;
    for (unsigned i = 0; i < count; i++)
        size += strlen(strings[i]) + 1;
    char *bytes = malloc(size + 1), *at = bytes;
    if (!bytes)
        return -ENOMEM;
    for (unsigned i = 0; i < count; i++)
        at = stpcpy(at, strings[i]) + 1;
    *ret_bytes = bytes;
    *ret_strings = (struct agent_strings){bytes, size, count};
    return 0;
}

int channel_exec(struct channel *channel, const struct channel_command *command, struct err *err)
{
    assert(channel->state == CHANNEL_READY);
    _cleanup_free_ char *argv = NULL;
    _cleanup_free_ char *env = NULL;
    unsigned argc = 0;
    while (command->argv[argc])
        argc++;
    struct agent_message message = {
        AGENT_EXEC,
        STREAM,
        .exec = {.flags = command->tty ? AGENT_EXEC_TTY : 0,
                 .columns = command->columns,
                 .rows = command->rows,
                 .window = SINK_SIZE,
                 .cwd = command->cwd},
    };
    if (argc > AGENT_STRINGS_MAX || command->env_count > AGENT_STRINGS_MAX)
        return err_set(err, -EMSGSIZE, "a command has at most %d arguments", AGENT_STRINGS_MAX);
    int r = pack(command->argv, argc, &argv, &message.exec.argv);
    if (r >= 0)
        r = pack(command->env, command->env_count, &env, &message.exec.env);
    if (r < 0)
        return err_set(err, r, "no memory");
    r = agent_put(&channel->writer, &message, NULL);
    if (r < 0)
        return err_set(err, r, "the command line is longer than %d bytes", AGENT_PAYLOAD_MAX);
    move_to(channel, CHANNEL_STARTING);
    return 0;
}

static bool alive(const struct channel *channel)
{
    return channel->state == CHANNEL_STARTING || channel->state == CHANNEL_RUNNING;
}

size_t channel_input_room(const struct channel *channel)
{
    if (channel->state != CHANNEL_RUNNING || channel->input_ended)
        return 0;
    return min((size_t)channel->input_window, (size_t)AGENT_DATA_MAX);
}

int channel_input(struct channel *channel, const uint8_t *bytes, size_t length)
{
    assert(length > 0 && length <= channel_input_room(channel));
    channel->input_window -= (uint32_t)length;
    return agent_put(&channel->writer,
                     &(struct agent_message){AGENT_STDIN, STREAM, .data = {bytes, length}}, NULL);
}

int channel_input_end(struct channel *channel)
{
    if (channel->input_ended || channel->state != CHANNEL_RUNNING)
        return 0;
    channel->input_ended = true;
    return agent_put(&channel->writer,
                     &(struct agent_message){AGENT_STDIN, STREAM, .data = {NULL, 0}}, NULL);
}

int channel_signal(struct channel *channel, int number)
{
    if (!alive(channel))
        return 0;
    return agent_put(&channel->writer,
                     &(struct agent_message){AGENT_SIGNAL, STREAM, .signal = {(uint32_t)number}},
                     NULL);
}

int channel_resize(struct channel *channel, uint16_t columns, uint16_t rows)
{
    if (!alive(channel))
        return 0;
    return agent_put(&channel->writer,
                     &(struct agent_message){AGENT_RESIZE, STREAM, .resize = {columns, rows}},
                     NULL);
}

int channel_drained(struct channel *channel, unsigned i, size_t length)
{
    channel->drained[i] += (uint32_t)length;
    if (!alive(channel) || channel->drained[i] < SINK_SIZE / 4)
        return 0;
    struct agent_message grant = {
        AGENT_WINDOW_GRANT,
        STREAM,
        .window = {i ? AGENT_FLOW_STDERR : AGENT_FLOW_STDOUT, channel->drained[i]},
    };
    channel->drained[i] = 0;
    return agent_put(&channel->writer, &grant, NULL);
}

static int broken_rule(const struct agent_message *message, struct err *err)
{
    return err_set(err, -EPROTO, "the guest's agent sent %s where it has no place",
                   agent_type_name(message->type));
}

static uint64_t wall_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static int take_welcome(struct channel *channel, const struct agent_message *message,
                        struct err *err)
{
    if (message->welcome.nonce != channel->nonce)
        return 0; /* meant for an earlier session */
    uint32_t version = message->welcome.version;
    if (version < AGENT_VERSION_MIN || version > AGENT_VERSION)
        return err_set(err, -EPROTONOSUPPORT,
                       "the guest's agent speaks version %u of the exec channel, this lodge %d; "
                       "build the image anew",
                       version, AGENT_VERSION);
    if (!channel->identity)
        return move_to(channel, CHANNEL_READY) ? 0 : broken_rule(message, err);
    if (version < AGENT_VERSION_IDENTITY)
        return err_set(
            err, -EPROTONOSUPPORT,
            "its agent is older than this lodge and cannot give it an identity; take the "
            "snapshot of an image that is built anew, or --keep-identity");
    struct agent_message identity = *channel->identity;
    identity.stream = IDENTITY_STREAM;
    if (identity.identity.time)
        identity.identity.time = wall_clock();
    if (!move_to(channel, CHANNEL_NAMING))
        return broken_rule(message, err);
    return agent_put(&channel->writer, &identity, err);
}

static int take_named(struct channel *channel, const struct agent_message *message, struct err *err)
{
    if (message->type == AGENT_FAILED)
        return err_set(err, -EREMOTEIO, "it cannot be given an identity: %.400s",
                       message->failed.text);
    return message->type == AGENT_EXIT && move_to(channel, CHANNEL_READY)
               ? 0
               : broken_rule(message, err);
}

static int take_failed(struct channel *channel, const struct agent_message *message,
                       struct err *err)
{
    if (!move_to(channel, CHANNEL_OVER))
        return broken_rule(message, err);
    /* As env(1) and every container runtime: 127 not found, 126 found but not executed. */
    channel->status = message->failed.error == ENOENT ? 127 : 126;
    snprintf(channel->failure, sizeof channel->failure, "%s", message->failed.text);
    return 0;
}

static int take_data(struct channel *channel, const struct agent_message *message, struct err *err)
{
    struct sink *sink = channel->out[message->type == AGENT_STDERR];
    if (!alive(channel) || message->data.length > sink_room(sink))
        return broken_rule(message, err);
    sink_put(sink, message->data.bytes, message->data.length);
    if (sink->broken)
        return channel_drained(channel, message->type == AGENT_STDERR, message->data.length);
    return 0;
}

static int take(struct channel *channel, const struct agent_message *message, struct err *err)
{
    if (message->type == AGENT_WELCOME)
        return take_welcome(channel, message, err);
    if (channel->state == CHANNEL_NAMING && message->stream == IDENTITY_STREAM)
        return take_named(channel, message, err);
    if (channel_waits(channel) || message->stream != STREAM)
        return 0;
    switch (message->type) {
    case AGENT_STARTED:
        channel->input_window = message->started.window;
        return move_to(channel, CHANNEL_RUNNING) ? 0 : broken_rule(message, err);
    case AGENT_FAILED: return take_failed(channel, message, err);
    case AGENT_STDOUT:
    case AGENT_STDERR: return take_data(channel, message, err);
    case AGENT_WINDOW_GRANT:
        channel->input_window =
            min(channel->input_window + message->window.bytes, (uint32_t)AGENT_WINDOW_MAX);
        return 0;
    case AGENT_EXIT:
        channel->status = (int)message->exit.value + (message->exit.signaled ? 128 : 0);
        return move_to(channel, CHANNEL_OVER) ? 0 : broken_rule(message, err);
    default: return broken_rule(message, err);
    }
}

short channel_events(const struct channel *channel)
{
    size_t waiting;
    agent_writer_bytes(&channel->writer, &waiting);
    return (short)(POLLIN | (waiting ? POLLOUT : 0));
}

static int read_channel(struct channel *channel, struct err *err)
{
    struct agent_message message;
    for (int i = 0; i < 16; i++) {
        size_t size;
        uint8_t *space = agent_reader_space(&channel->reader, &size);
        ssize_t n = read(channel->fd, space, size);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return 0;
        if (n <= 0) {
            channel->fd = -1; /* the VMM's end is closed: the control socket says why */
            return 0;
        }
        agent_reader_filled(&channel->reader, (size_t)n);
        while (agent_reader_next(&channel->reader, &message) > 0) {
            int r = take(channel, &message, err);
            if (r < 0)
                return r;
        }
        if (channel->state != CHANNEL_GREETING && !channel->reader.synchronised)
            return err_set(err, -EPROTO, "the guest's agent sent what is no message");
    }
    return 0;
}

int channel_step(struct channel *channel, struct err *err)
{
    size_t length;
    if (channel->fd < 0)
        return 0;
    int r = read_channel(channel, err);
    const uint8_t *bytes = agent_writer_bytes(&channel->writer, &length);
    if (r >= 0 && channel->fd >= 0 && length > 0) {
        ssize_t n = write(channel->fd, bytes, length);
        if (n > 0)
            agent_writer_sent(&channel->writer, (size_t)n);
    }
    return r;
}
