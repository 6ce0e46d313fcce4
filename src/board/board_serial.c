#include "board/board_serial.h"

#include "base/bytes.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum {
    RING_SIZE = 64 << 10,
    CROWDED = RING_SIZE / 2, /* the other half is for what vCPUs write before they look */
    CHUNK = 4096,            /* PIPE_BUF: a pipe that polls writable takes it without waiting */
    INPUT_SIZE = 1024,
    WAIT_MS = 10,
};

struct board_serial {
    int in_fd, out_fd, wake_fd; /* in_fd and out_fd: the thread's own after start */
    struct serial *serial;
    pthread_t thread;
    bool has_thread;
    _Atomic bool stop;

    pthread_mutex_t lock; /* the ring */
    pthread_cond_t drained;
    _Atomic size_t used;
    size_t first;
    bool gone; /* nobody reads */
    uint8_t ring[RING_SIZE];

    size_t input_first, input_end; /* the thread's: read and not yet taken by the UART */
    uint8_t input[INPUT_SIZE];
};

int board_serial_new(int in_fd, int out_fd, struct board_serial **ret_streams, struct err *err)
{
    struct board_serial *streams = calloc(1, sizeof *streams);
    if (!streams)
        return err_set(err, -ENOMEM, "no memory for the serial port");
    streams->in_fd = in_fd;
    streams->out_fd = out_fd;
    streams->gone = out_fd < 0;
    pthread_mutex_init(&streams->lock, NULL);
    pthread_cond_init(&streams->drained, NULL);
    streams->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (streams->wake_fd < 0) {
        int number = errno;
        board_serial_free(streams);
        return err_errno(err, number, "cannot make an eventfd for the serial port");
    }
    *ret_streams = streams;
    return 0;
}

static void wake(struct board_serial *streams)
{
    eventfd_write(streams->wake_fd, 1);
}

void board_serial_output(void *opaque, const uint8_t *bytes, size_t count)
{
    struct board_serial *streams = opaque;
    pthread_mutex_lock(&streams->lock);
    size_t used = streams->used;
    size_t take = streams->gone ? 0 : min(count, RING_SIZE - used);
    for (size_t i = 0; i < take; i++)
        streams->ring[(streams->first + used + i) % RING_SIZE] = bytes[i];
    streams->used = used + take;
    pthread_mutex_unlock(&streams->lock);
    if (take)
        wake(streams);
}

void board_serial_room(void *opaque)
{
    wake(opaque);
}

bool board_serial_crowded(const struct board_serial *streams)
{
    return atomic_load_explicit(&streams->used, memory_order_relaxed) >= CROWDED;
}

/* Waits for a change of the ring until `until`; false when that has passed. `lock` is held. */
static bool wait_until(struct board_serial *streams, const struct timespec *until)
{
    return pthread_cond_clockwait(&streams->drained, &streams->lock, CLOCK_MONOTONIC, until) == 0;
}

static struct timespec in_ms(int ms)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    long nsec = time.tv_nsec + ms % 1000 * 1000000L;
    return (struct timespec){.tv_sec = time.tv_sec + ms / 1000 + nsec / 1000000000L,
                             .tv_nsec = nsec % 1000000000L};
}

void board_serial_wait(struct board_serial *streams)
{
    struct timespec until = in_ms(WAIT_MS);
    pthread_mutex_lock(&streams->lock);
    while (board_serial_crowded(streams) && wait_until(streams, &until))
        ;
    pthread_mutex_unlock(&streams->lock);
}

bool board_serial_drain(struct board_serial *streams, int timeout_ms)
{
    struct timespec until = in_ms(timeout_ms);
    pthread_mutex_lock(&streams->lock);
    while (streams->used && wait_until(streams, &until))
        ;
    bool empty = streams->used == 0;
    pthread_mutex_unlock(&streams->lock);
    return empty;
}

/* Writes one piece of the ring. */
static void output_write(struct board_serial *streams)
{
    pthread_mutex_lock(&streams->lock);
    size_t count = min(streams->used, RING_SIZE - streams->first);
    count = min(count, (size_t)CHUNK);
    const uint8_t *from = streams->ring + streams->first;
    pthread_mutex_unlock(&streams->lock);
    /* Only this thread takes from the ring, so these bytes stay where they are meanwhile. */
    ssize_t n = count ? write(streams->out_fd, from, count) : 0;
    bool gone = n < 0 && errno != EAGAIN && errno != EINTR;

    pthread_mutex_lock(&streams->lock);
    if (gone) {
        streams->gone = true;
        streams->used = 0;
    } else if (n > 0) {
        streams->first = (streams->first + (size_t)n) % RING_SIZE;
        streams->used -= (size_t)n;
    }
    pthread_cond_broadcast(&streams->drained);
    pthread_mutex_unlock(&streams->lock);
    if (gone)
        streams->out_fd = -1;
}

static void input_offer(struct board_serial *streams)
{
    size_t count = streams->input_end - streams->input_first;
    if (count)
        streams->input_first +=
            serial_receive(streams->serial, streams->input + streams->input_first, count);
}

static void input_read(struct board_serial *streams)
{
    ssize_t n = read(streams->in_fd, streams->input, sizeof streams->input);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        streams->in_fd = -1;
        return;
    }
    streams->input_first = 0;
    streams->input_end = (size_t)n;
    input_offer(streams);
}

static void *serial_thread(void *opaque)
{
    struct board_serial *streams = opaque;
    pthread_setname_np(pthread_self(), "serial");
    /* A reader that went away is an error of write(), not a signal to the machine. */
    sigset_t pipe;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, NULL);

    while (!streams->stop) {
        bool wants_input = streams->input_first == streams->input_end;
        bool has_output = streams->used > 0;
        struct pollfd polls[] = {
            {.fd = streams->wake_fd, .events = POLLIN},
            {.fd = wants_input ? streams->in_fd : -1, .events = POLLIN},
            {.fd = has_output ? streams->out_fd : -1, .events = POLLOUT},
        };
        if (poll(polls, ARRAY_LEN(polls), -1) < 0)
            continue;
        eventfd_t count;
        if (polls[0].revents)
            eventfd_read(streams->wake_fd, &count);
        if (polls[2].revents)
            output_write(streams);
        if (polls[1].revents)
            input_read(streams);
        else
            input_offer(streams);
    }
    return NULL;
}

int board_serial_start(struct board_serial *streams, struct serial *serial, struct err *err)
{
    streams->serial = serial;
    if (streams->in_fd < 0 && streams->out_fd < 0)
        return 0;
    int number = pthread_create(&streams->thread, NULL, serial_thread, streams);
    if (number)
        return err_errno(err, number, "cannot start the serial port's thread");
    streams->has_thread = true;
    return 0;
}

void board_serial_stop(struct board_serial *streams)
{
    if (!streams || !streams->has_thread)
        return;
    streams->stop = true;
    wake(streams);
    pthread_join(streams->thread, NULL);
    streams->has_thread = false;
}

void board_serial_free(struct board_serial *streams)
{
    if (!streams)
        return;
    board_serial_stop(streams);
    if (streams->wake_fd >= 0)
        close(streams->wake_fd);
    pthread_cond_destroy(&streams->drained);
    pthread_mutex_destroy(&streams->lock);
    free(streams);
}
