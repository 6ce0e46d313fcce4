/*
 * identity.h: a guest that was copied becomes one of its own.
 *
 * A clone wakes up with all that the first guest knew, its random numbers among it. In this order:
 * the kernel's random numbers are seeded anew, so that what follows is nobody else's; the clock,
 * the host name (/etc/hostname and the 127.0.1.1 of /etc/hosts with it), /etc/machine-id, the
 * cards' addresses, and the host keys of sshd(8), each of its kind, where there are some.
 *
 * What is not there is not made: a guest without /etc/machine-id gets none. What programs have in
 * memory (a key, a random generator of their own, a session) is theirs, and copied.
 *
 * Errors: with the first thing that cannot be had; what came before it is done.
 */
#pragma once

#include "base/err.h"
#include "wire/agent.h"

#include <stdbool.h>

/* `message` is an IDENTITY. `init`: we are the guest's init, and its DHCP clients are ours. */
int identity_set(const struct agent_message *message, bool init, struct err *err);

/* Files below `root`, "" in a guest: these are what it is made of. */
int identity_hostname_files(const char *root, const char *before, const char *name,
                            struct err *err);
int identity_machine_id(const char *root, struct err *err);
