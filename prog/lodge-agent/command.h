/*
 * command.h: one command that the host asked for: its processes, its three flows of bytes, its end.
 *
 *   spawn --> RUNNING --(waitpid)--> EXITED --(output drained)--> over: EXIT is sent, freed
 *
 * A command leads a session of its own, so that a signal reaches all it started in that session.
 * Its output ends when the process has exited and what it left in the pipes or the terminal was
 * read: a background process that keeps a pipe open does not hold the command up.
 *
 * One thread. A command owns its descriptors and its buffer; it borrows nothing.
 */
#pragma once

#include "base/err.h"
#include "wire/agent.h"

#include <poll.h>
#include <stdbool.h>
#include <sys/types.h>

enum { COMMAND_POLL_MAX = 3 };

struct command {
    struct command *next;
    uint32_t stream;
    pid_t pid;
    bool tty;
    bool exited;
    int wait_status;

    int in;     /* pipe, or the terminal's master; -1 once closed */
    int out[2]; /* stdout and stderr; with a terminal, out[0] is the master again and out[1] is -1
                 */
    /* The terminal's other side, held open so that the master does not read as hung up whenever the
     * command has closed its own. */
    int slave;
    uint32_t window[2]; /* bytes the host still takes of each */

    uint8_t *pending; /* AGENT_WINDOW bytes of input, [start, end) not yet written */
    size_t pending_start, pending_end;
    bool pending_eof;
    uint32_t taken; /* input consumed since the last grant */
};

/* Starts what `message` (EXEC) asks for. On failure *err says why and the errno is what EXEC's
 * sender should see. */
int command_spawn(const struct agent_message *message, struct command **ret_command,
                  struct err *err);
void command_free(struct command *command);

/* To the command's session, or to the process where it left that. */
void command_signal(const struct command *command, int number);
void command_resize(const struct command *command, uint16_t columns, uint16_t rows);

/* -EPROTO where the host sent more than it was granted. */
int command_input(struct command *command, const uint8_t *bytes, size_t length);

/* Descriptors to wait for, at most COMMAND_POLL_MAX; `may_read` is false while the channel is full.
 * Returns how many. */
unsigned command_poll(const struct command *command, struct pollfd *fds, bool may_read);
/* Moves what can be moved without waiting, into `writer` what goes to the host. */
int command_pump(struct command *command, struct agent_writer *writer);
/* True when EXIT was put into `writer`: the command is over. */
bool command_over(struct command *command, struct agent_writer *writer);
