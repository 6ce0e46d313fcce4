#include "virtio/worker.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { STACK_SIZE = 256 * 1024 };

static void *thread_main(void *opaque)
{
    struct worker *worker = opaque;
    /* By the thread itself: naming another one opens a file in /proc, which the jail refuses. */
    pthread_setname_np(pthread_self(), worker->name);
    worker->run(worker->opaque);
    return NULL;
}

static int thread_start(struct worker *worker)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_SIZE);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the new thread inherits it */
    int number = pthread_create(&worker->thread, &attributes, thread_main, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return number;
}

int worker_init(struct worker *worker, const char *name, void (*run)(void *opaque), void *opaque,
                struct err *err)
{
    worker->name = name;
    worker->run = run;
    worker->opaque = opaque;
    worker->started = false;
    worker->stopping = false;
    worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (worker->wake_fd < 0)
        return err_errno(err, errno, "cannot make an eventfd for '%s'", name);
    worker->made = true;
    return 0;
}

int worker_begin(struct worker *worker, struct err *err)
{
    int number = thread_start(worker);
    if (number)
        return err_errno(err, number, "cannot start thread '%s'", worker->name);
    worker->started = true;
    return 0;
}

int worker_start(struct worker *worker, const char *name, void (*run)(void *opaque), void *opaque,
                 struct err *err)
{
    int r = worker_init(worker, name, run, opaque, err);
    if (r >= 0)
        r = worker_begin(worker, err);
    if (r < 0)
        worker_stop(worker);
    return r;
}

void worker_stop(struct worker *worker)
{
    worker->stopping = true;
    if (worker->started) {
        worker_wake(worker);
        pthread_join(worker->thread, NULL);
    }
    if (worker->made)
        close(worker->wake_fd);
    worker->started = worker->made = false;
    worker->wake_fd = -1;
}

void worker_wake(struct worker *worker)
{
    /* Fails only where the counter is full: then the thread is as awake as can be. */
    eventfd_write(worker->wake_fd, 1);
}

bool worker_stopping(const struct worker *worker)
{
    return worker->stopping;
}

void worker_drained(struct worker *worker)
{
    eventfd_t count;
    eventfd_read(worker->wake_fd, &count);
}

void worker_wait(struct worker *worker)
{
    struct pollfd wait = {.fd = worker->wake_fd, .events = POLLIN};
    while (poll(&wait, 1, -1) < 0 && errno == EINTR)
        ;
    worker_drained(worker);
}

void worker_serve(struct worker *worker, pthread_mutex_t *mutex, bool (*serve)(void *opaque),
                  void *opaque)
{
    while (!worker_stopping(worker)) {
        worker_wait(worker);
        bool more = true;
        while (more && !worker_stopping(worker)) {
            pthread_mutex_lock(mutex);
            more = serve(opaque);
            pthread_mutex_unlock(mutex);
        }
    }
}
