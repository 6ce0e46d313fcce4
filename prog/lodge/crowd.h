/*
 * crowd.h: several lodges side by side, each with a guest of its own, as one program.
 *
 * Each member is a child process that does what a single `lodge` does, with its output on pipes:
 * one that crashes takes nobody along, and all end when the first process does. Here their output
 * is put together, line by line, each with its member's name before it, or as JSON.
 *
 *     stdout   web-1 | the line                        {"name": "web-1", "stdout": "the line"}
 *              web-1 is ready after 31 ms              {"name": "web-1", "ready_ms": 31.2, ...}
 *              web-1 has ended, exit status 0          {"name": "web-1", "status": 0}
 *     stderr   web-1 | the line                        {"name": "web-1", "stderr": "the line"}
 *
 * Ctrl-C: to each member, as a person's at its terminal. SIGTERM and SIGHUP end all.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum { CROWD_MAX = 257, CROWD_LINE_MAX = 4096 };

struct crowd_line {
    size_t length;
    char bytes[CROWD_LINE_MAX];
};

struct crowd_member {
    const char *name;
    pid_t pid;                  /* 0 = it has ended, or never began */
    int out, errors, report;    /* pipes of its; -1 = closed */
    struct crowd_line lines[2]; /* what came of a line so far */
    bool ready;
    int status; /* once it has ended */
};

struct crowd {
    struct crowd_member *members;
    unsigned count;
    bool json;
    bool says; /* that they are ready, and that they have ended */
    bool mute; /* their standard output is nobody's */
    /* The last member is a guard, whose failing ends all, and who says nothing else. */
    bool guarded;
    bool guard_first; /* the others begin when it has ended well */
    /* Else what the guard does best begins when the others are ready, for somebody waits for them:
     * this descriptor is at its end then. */
    int others_ready;
    /* In the child: its exit status. `report` is for one line, "PID NANOSECONDS": its guest runs
     * in that process, since that long after its start. */
    int (*run)(struct crowd_member *member, int report, void *opaque);
    void *opaque;
};

/* Starts all, and returns when all have ended: the worst exit status. */
int crowd_run(struct crowd *crowd);
