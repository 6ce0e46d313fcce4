/*
 * channel.h: the host's end of the exec channel, for one command (docs/exec-channel.md).
 *
 *   GREETING --(WELCOME)--> READY --(channel_exec)--> STARTING --(STARTED)--> RUNNING --(EXIT)-->
 * OVER |                                       ^
 *                                                         +--------------(FAILED)-----------------+
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
 * -EPROTONOSUPPORT for one of another version. */
int channel_step(struct channel *channel, struct err *err);
