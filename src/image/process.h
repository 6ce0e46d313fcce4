/*
 * process.h: other people's programs (apt-get, dpkg-deb), run to their end.
 *
 * A program is found on PATH, gets /dev/null as standard input, and LC_ALL=C. What it says on
 * standard error is kept, and the line with the reason becomes the phrase in *err when it fails. No
 * shell is involved, so no argument needs quoting.
 *
 * Errors: -EINTR when a signal handler ran while we waited (the program, with all it has started,
 * is killed first, so that who asked to stop is obeyed), -EIO when it failed, what exec said when
 * it could not be started.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct process {
    pid_t pid;
    int out;          /* read end of its standard output; -1 where that is /dev/null */
    int errors;       /* memory file with its standard error */
    bool interrupted; /* it was told to end because we were */
    const char *name;
};

/* `argv` ends with NULL; `keep` are descriptors that it inherits under their numbers. */
int process_start(struct process *process, const char *const *argv, const char *directory,
                  const int *keep, size_t keep_count, struct err *err);
/* Waits for its end; closes what the struct holds. Legal after a partial read of `out`, which then
 * counts as our decision: the program's death by SIGPIPE is no failure. */
int process_wait(struct process *process, struct err *err);

/* The whole standard output as a string, at most `max` bytes. */
int process_output(const char *const *argv, const char *directory, size_t max, char **ret_text,
                   struct err *err);
/* Runs it for its effect. */
int process_run(const char *const *argv, const char *directory, const int *keep, size_t keep_count,
                struct err *err);
