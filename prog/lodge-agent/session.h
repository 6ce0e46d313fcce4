/*
 * session.h: the agent's end of the exec channel: messages in, commands run, messages out.
 *
 * One session is one channel descriptor. A HELLO ends what an earlier peer left running; a channel
 * that hangs up does too. The caller polls: it asks which descriptors matter, waits, and calls
 * session_step().
 *
 * One thread. The session owns its commands, and the channel descriptor once attached.
 */
#pragma once

#include "base/err.h"
#include "command.h"
#include "wire/agent.h"

#include <poll.h>
#include <stdbool.h>

enum { SESSION_COMMANDS_MAX = 128, SESSION_POLL_MAX = 1 + SESSION_COMMANDS_MAX * COMMAND_POLL_MAX };

struct session {
    int channel; /* non-blocking; -1 = none yet */
    bool hung_up;
    uint64_t uptime; /* of the kernel when the agent started, ns */
    struct agent_reader reader;
    struct agent_writer writer;
    struct command *commands;
    unsigned command_count;
    int shutdown; /* enum agent_shutdown once the host asked, else -1 */
    bool may_shut_down;
};

struct session *session_new(bool may_shut_down);
void session_free(struct session *session);

/* Takes over `channel`. */
void session_attach(struct session *session, int channel);

unsigned session_poll(const struct session *session, struct pollfd *fds);
/* Moves every byte that can be moved without waiting. */
void session_step(struct session *session);
/* A child of ours ended; false when it was no command. */
bool session_reaped(struct session *session, pid_t pid, int wait_status);
/* Kills all commands. Their EXITs are not sent. */
void session_end_commands(struct session *session);
