/*
 * steer.h: a Unix socket by which other programs steer a guest that `lodge run`, `restore` and
 * `clone` hold.
 *
 * JSON, one object a line, one verb in it; each line gets one line back, in order:
 *
 *     {"balloon": "256M"}         the guest shall give back so much memory
 *         {"balloon": {"driver": true, "target": 268435456, "actual": 0, ...}}
 *     {"memory": true}            what the balloon and the guest's kernel say now
 *     {"sleep": true}
 *         {"error": "'sleep' is no verb; there are balloon, memory, ..."}
 *
 * The verbs are the rows of steer.c; docs/cli.md lists them. The socket is the owner's alone
 * (0600). A client that does not read its answers is dropped.
 *
 * One thread, the relay's. Errors: why the socket cannot be had; -EADDRINUSE where somebody
 * listens there.
 */
#pragma once

#include "machine.h"

#include <poll.h>
#include <stdbool.h>

enum { STEER_CLIENTS_MAX = 8, STEER_POLL_MAX = 1 + STEER_CLIENTS_MAX };

struct steer;

int steer_new(const char *path, struct steer **ret_steer, struct err *err);
/* The socket's name goes too. */
void steer_free(struct steer *steer);

/* `can_reset`: nothing would be lost by a reset. */
void steer_know(struct steer *steer, bool can_reset, unsigned nic_count);

/* Fills all STEER_POLL_MAX entries; then steer_step() with what poll() said. */
void steer_poll(const struct steer *steer, struct pollfd *fds);
void steer_step(struct steer *steer, const struct pollfd *fds, struct machine *machine);

/* An event of the VMM's, which may be the answer that a client waits for. */
void steer_event(struct steer *steer, const struct control_message *event, struct machine *machine);
