/*
 * session.h: the agent's end of an exec channel: messages in, commands run, files moved, messages
 * out.
 *
 * One session is one channel descriptor. A HELLO ends what an earlier peer left running; a channel
 * that hangs up does too. The caller polls: it asks which descriptors matter, waits, and calls
 * session_step().
 *
 * One thread. The session owns its commands and transfers, and the channel descriptor once
 * attached.
 */
#pragma once

#include "base/err.h"
#include "command.h"
#include "transfer.h"
#include "wire/agent.h"

#include <poll.h>
#include <stdbool.h>

enum {
    SESSION_COMMANDS_MAX = 128,
    SESSION_TRANSFERS_MAX = 16,
    SESSION_POLL_MAX = 1 + SESSION_COMMANDS_MAX * COMMAND_POLL_MAX,
};

/* What a host may have beside commands and files. */
enum session_rights {
    SESSION_NOTHING, /* this process only happens to run here */
    SESSION_GUEST,   /* the guest's clock and identity; its shutdown is asked of its init */
    SESSION_INIT,    /* we are its init */
};

struct session {
    int channel; /* non-blocking; -1 = none yet */
    bool hung_up;
    uint64_t uptime; /* of the kernel when the agent started, ns */
    struct agent_reader reader;
    struct agent_writer writer;
    struct command *commands;
    unsigned command_count;
    struct transfer *transfers;
    unsigned transfer_count;
    int shutdown; /* enum agent_shutdown once the host asked its init, else -1 */
    enum session_rights rights;
};

struct session *session_new(enum session_rights rights);
void session_free(struct session *session);

/* Takes over `channel`. */
void session_attach(struct session *session, int channel);

unsigned session_poll(const struct session *session, struct pollfd *fds);
/* Moves every byte that can be moved without waiting, but not for ever: true where more can. */
bool session_step(struct session *session);
/* A child of ours ended; false when it was no command. */
bool session_reaped(struct session *session, pid_t pid, int wait_status);
/* Kills all commands. Their EXITs are not sent. */
void session_end_commands(struct session *session);
