/*
 * worker.h: the I/O thread of a device, and the eventfd that wakes it.
 *
 * The device embeds a `struct worker` and gives it a function that serves until worker_stopping().
 * The thread blocks all signals: those are for the program's main thread. A wake that comes while
 * the thread works is not lost: the eventfd stays readable until worker_wait() or worker_drained().
 *
 * Threads: worker_wake() from any. worker_stop() joins; one that never started, or was never made
 * (all zeros), is fine.
 * Errors: -errno of eventfd or pthread_create, with a phrase.
 */
#pragma once

#include "base/err.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

struct worker {
    const char *name; /* borrowed */
    pthread_t thread;
    bool made, started;
    int wake_fd; /* an eventfd, non-blocking */
    _Atomic bool stopping;
    void (*run)(void *opaque);
    void *opaque;
};

/* `name` is what ps and top show, at most 15 bytes. worker_init() makes what can be woken,
 * worker_begin() its thread, which takes a third of a millisecond; worker_start() does both. */
int worker_init(struct worker *worker, const char *name, void (*run)(void *opaque), void *opaque,
                struct err *err);
int worker_begin(struct worker *worker, struct err *err);
int worker_start(struct worker *worker, const char *name, void (*run)(void *opaque), void *opaque,
                 struct err *err);
void worker_stop(struct worker *worker);

void worker_wake(struct worker *worker);
bool worker_stopping(const struct worker *worker);

/* Takes all wakes so far. For a thread that waits for wake_fd together with other descriptors. */
void worker_drained(struct worker *worker);
/* Sleeps until woken, then takes the wakes. */
void worker_wait(struct worker *worker);
/* All that most run functions do: whenever woken calls `serve` with the mutex held, again as long
 * as it says that more may wait; the mutex is let go of in between, so that a reset waits briefly.
 */
void worker_serve(struct worker *worker, pthread_mutex_t *mutex, bool (*serve)(void *opaque),
                  void *opaque);
