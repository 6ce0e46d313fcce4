/*
 * channel.h: the host's end of the exec channel, for one command (docs/exec-channel.md).
 *
 *   GREETING --(WELCOME)--> READY --(exec)--> STARTING --(STARTED)--> RUNNING --(EXIT)--> OVER
 *      |                      ^                   |                                        ^
 *      +--> NAMING --(EXIT)---+                   +----------------(FAILED)----------------+
 *
 * A clone is NAMING while it is told who it is (IDENTITY).
 *
 * It moves bytes between the channel's descriptor and memory; who owns it polls. Output goes into
 * two sinks, and what left them is granted to the guest anew.
 */
#pragma once

#include "base/err.h"
#include "sink.h"
#include "wire/agent.h"

#include <stdbool.h>

enum channel_state {
    CHANNEL_GREETING,
    CHANNEL_NAMING,
    CHANNEL_READY,
    CHANNEL_STARTING,
    CHANNEL_RUNNING,
    CHANNEL_OVER,
    CHANNEL_STATE_MAX
};

struct channel {
    enum channel_state state;
    int fd; /* borrowed, non-blocking; -1 after it hung up */
    uint64_t nonce;
    const struct agent_message *identity; /* what a clone is told first; borrowed, or NULL. Its
                                             time, if it is not 0, is that of the telling */
    uint32_t input_window;
    bool input_ended;
    struct sink *out[2];
    uint32_t drained[2]; /* bytes that left a sink since the last grant */
    int status;          /* OVER: as a shell counts, 0..255 */
    char failure[512];   /* OVER by FAILED: why; else "" */
    struct agent_reader reader;
    struct agent_writer writer;
};

struct channel_command {
    const char *const *argv; /* ended by NULL */
    const char *const *env;
    unsigned env_count;
    const char *cwd; /* "" = the agent's choice */
    bool tty;
    uint16_t columns, rows;
};

/* Until it is over the guest is to become one of its own. Before the first step. */
void channel_name(struct channel *channel, const struct agent_message *identity);
/* The agent has not done yet what must be before a command. */
bool channel_waits(const struct channel *channel);

/* Malloc'd; says HELLO. NULL without memory. `takeover`: somebody else may have died on the channel
 * in the middle of a frame. */
struct channel *channel_new(int fd, struct sink *out, struct sink *errors, bool takeover);
void channel_free(struct channel *channel);

/* READY only. -EMSGSIZE for a command line that is too long. */
int channel_exec(struct channel *channel, const struct channel_command *command, struct err *err);

/* How many bytes of input the guest takes now: at most what channel_input() may be given. */
size_t channel_input_room(const struct channel *channel);
int channel_input(struct channel *channel, const uint8_t *bytes, size_t length);
int channel_input_end(struct channel *channel);
int channel_signal(struct channel *channel, int number);
int channel_resize(struct channel *channel, uint16_t columns, uint16_t rows);
/* `length` bytes left sink `i`. */
int channel_drained(struct channel *channel, unsigned i, size_t length);

short channel_events(const struct channel *channel);
/* Reads and writes what can be without waiting. -EPROTO for a peer that does not keep the rules,
 * -EPROTONOSUPPORT for one of another version, -EREMOTEIO where it cannot be given its identity. */
int channel_step(struct channel *channel, struct err *err);
