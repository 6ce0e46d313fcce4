/*
 * session.h: a running machine and its owner: events go out, requests come in (wire/control.h).
 *
 * One thread, the process's main one, waits with poll() for the board's events, the control socket
 * and a few clients. That is all there is to wait for, so there is no event loop library here.
 *
 * session_run() returns the process's exit status. The process is the machine: it then ends without
 * taking the machine apart, for a thread may be writing to a terminal that stands still.
 */
#pragma once

#include "board/board.h"
#include "conf/guest.h"
#include "hold.h"
#include "wire/control.h"

enum { SESSION_CLIENTS_MAX = 16 };

struct session {
    struct board *board;
    int control_fd; /* -1 = nobody; the machine then runs until the guest ends it */
    int listen_fd;  /* where clients come in, or -1 */
    int statm_fd;   /* /proc/self/statm, or -1 */
    int pagemap_fd; /* /proc/self/pagemap, or -1 */
    bool exit_on_reset;
    const char *engine, *why; /* for READY */
    uint64_t began_ns;        /* too */

    int clients[SESSION_CLIENTS_MAX];
    unsigned client_count;

    const struct guest_disk *disks; /* their names */

    _Atomic int nvram_number; /* why the firmware's store was last not written to */

    struct hold hold;         /* a client has it stand */
    bool paused;              /* somebody asked for it */
    uint32_t full;            /* disks that requests wait for, a bit each: it stands for that */
    bool panicked;            /* since the last reset */
    unsigned balloon_asked;   /* answers that wait for the guest's statistics */
    int64_t balloon_deadline; /* CLOCK_MONOTONIC ms: then without them */
    bool deaf;                /* clients cannot be taken for a moment: there are no descriptors */
    bool over;
    int status; /* where over */
    size_t received;
    uint8_t buffer[CONTROL_MESSAGE_MAX];
};

int session_run(struct session *session);

/* Tells the owner, or standard error where there is none, and returns the status to exit with. */
int session_error(int control_fd, const char *text);
