/*
 * relay.h: everything between a person (or a script) and a running guest, until one of them ends.
 *
 * Two ways to be joined to a guest:
 *   command   through the agent: standard input, output, error, exit status, signals, window size;
 *             the serial port is kept aside and shown only when the guest fails
 *   serial    standard input and output are the guest's serial port
 *
 * With a terminal on standard input that is ours to switch to raw mode, Ctrl-] then q leaves.
 *
 * Ends, and the exit status of lodge:
 *   command ended                         its own status, 128 + n when signal n killed it
 *   not found / could not be executed     127 / 126
 *   guest powered off, serial             0;  before the command ended: 125
 *   panic, triple fault, VMM's failure    125
 *   isa-debug-exit                        as QEMU counts
 *   SIGINT, SIGTERM, SIGHUP               128 + n
 *   Ctrl-] q                              0
 *   nobody reads our standard output      141, as from SIGPIPE
 */
#pragma once

#include "channel.h"
#include "machine.h"
#include "steer.h"
#include "vsock.h"

#include <stdbool.h>

enum { RELAY_FAILED = 125 };

struct relay_plan {
    bool command;                   /* else serial */
    struct channel_command what;    /* command */
    bool shell;                     /* the command is the shell of an interactive guest: its
                                       powering off is a good end */
    bool agent;                     /* serial: an agent will say when the console listens */
    bool restored;                  /* the guest goes on from a snapshot: it has spoken to others */
    bool raw;                       /* standard input is a terminal to be switched */
    struct steer *steer;            /* who else may steer the guest, or NULL; borrowed */
    const struct guest_disk *disks; /* borrowed, open */
    unsigned disk_count;
    const char *kernel; /* its path, or the snapshot's or firmware's, for messages; borrowed */
    bool firmware;      /* that is what it is */
    bool watchdog_ends; /* so is what the watchdog does where it expires */
    bool reboots;       /* a reset of the guest's machine is not its end */
    bool verbose;       /* the serial port to standard error while a command runs */
    struct vsock_host *vsock; /* the sockets behind the guest's, or NULL; borrowed */
    unsigned agent_timeout;   /* seconds until an agent must have answered; 0 = no limit */

    /* Of a clone: */
    const struct agent_message *identity; /* what it gets first; or NULL; borrowed */
    unsigned plug; /* cards whose cables are put in once it has: a bit each, the lowest the first */
    int report;    /* descriptor for the line that says that it is ready; -1 = none */
    bool deaf;     /* a serial port whose input nobody gives: its end means nothing */
};

/* Runs until the end, with signal handlers of its own in place; the terminal is as before when it
 * returns, and `machine` is ended. Returns the exit status; what went wrong is on standard error.
 */
int relay_run(const struct relay_plan *plan, struct machine *machine);
