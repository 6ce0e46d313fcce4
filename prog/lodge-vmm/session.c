#include "session.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/own.h"
#include "base/packet.h"
#include "chip/debug.h"
#include "virtio/net.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    DRAIN_SLICE_MS = 50,
    DEAF_MS = 100,
    DRAIN_CONSOLES_MS = 1000, /* whoever still wants those bytes is reading already */
};

/* Blocks while the owner does not read: it is not going to send requests either. An owner that is
 * gone is noticed by the poll. */
static void send_flags(int fd, const struct control_message *message, int flags)
{
    uint8_t bytes[CONTROL_MESSAGE_MAX];
    size_t size = control_encode(message, bytes), done = 0;
    while (fd >= 0 && done < size) {
        ssize_t n = send(fd, bytes + done, size - done, MSG_NOSIGNAL | flags);
        if (n < 0 && errno != EINTR)
            return;
        done += n > 0 ? (size_t)n : 0;
    }
}

static void send_message(int control_fd, const struct control_message *message)
{
    send_flags(control_fd, message, 0);
}

/* To who asked. A client that does not read its answers loses them; the machine waits for none. */
static void reply(const struct session *session, int fd, const struct control_message *message)
{
    send_flags(fd, message, fd == session->control_fd ? 0 : MSG_DONTWAIT);
}

static void send_type(struct session *session, enum control_type type)
{
    send_message(session->control_fd, &(struct control_message){.type = type});
}

static void send_text(int control_fd, enum control_type type, const char *text)
{
    struct control_message message = {.type = type};
    snprintf(message.text, sizeof message.text, "%s", text);
    if (control_fd >= 0)
        send_message(control_fd, &message);
    else
        fprintf(stderr, "lodge-vmm: %s\n", text);
}

int session_error(int control_fd, const char *text)
{
    send_text(control_fd, CONTROL_ERROR, text);
    return CONTROL_EXIT_FAILED;
}

static void end(struct session *session, int status)
{
    session->over = true;
    session->status = status;
}

static const char *full_disk(const struct session *session)
{
    return session->full ? session->disks[__builtin_ctz(session->full)].path : "";
}

static bool is_held(const struct session *session)
{
    return session->hold.client >= 0;
}

static void go_on(struct session *session)
{
    if (!session->paused && !session->full && !is_held(session))
        board_resume(session->board);
}

static void stats_send(struct session *session, int fd)
{
    struct board_stats stats;
    board_stats(session->board, &stats);
    struct control_message message = {.type = CONTROL_STATS,
                                      .instructions = stats.instructions,
                                      .guest_resident = stats.guest_resident};
    message.state = session->paused ? CONTROL_STATE_PAUSED
                    : session->full ? CONTROL_STATE_FULL
                                    : CONTROL_STATE_RUNS;
    snprintf(message.text, sizeof message.text, "%s", full_disk(session));
    /* proc(5): size, then resident, in pages. */
    char text[128] = "";
    unsigned long long pages = 0;
    if (session->statm_fd >= 0 && pread(session->statm_fd, text, sizeof text - 1, 0) > 0 &&
        sscanf(text, "%*u %llu", &pages) == 1)
        message.resident = pages * (uint64_t)sysconf(_SC_PAGESIZE);
    reply(session, fd, &message);
}

static void nics_send(struct session *session, int fd)
{
    struct virtio_net_stats stats;
    struct control_message message = {.type = CONTROL_NICS};
    _Static_assert((int)BOARD_NICS_MAX <= (int)CONTROL_NICS_MAX, "all of them are told");
    while (board_nic_stats(session->board, message.nic_count, &stats) >= 0)
        message.nics[message.nic_count++] = (struct control_nic){.up = stats.up,
                                                                 .in_frames = stats.in_frames,
                                                                 .in_bytes = stats.in_bytes,
                                                                 .in_dropped = stats.in_dropped,
                                                                 .out_frames = stats.out_frames,
                                                                 .out_bytes = stats.out_bytes,
                                                                 .out_dropped = stats.out_dropped};
    reply(session, fd, &message);
}

static void balloon_send(struct session *session)
{
    struct board_balloon now;
    board_balloon(session->board, &now);
    struct control_message message = {.type = CONTROL_BALLOON,
                                      .balloon = {.present = now.present,
                                                  .driver = now.driver,
                                                  .target = now.target,
                                                  .actual = now.actual,
                                                  .reported = now.reported,
                                                  .known = now.known}};
    if (now.known)
        message.balloon.age_ms =
            (uint32_t)min(clock_ms() - (int64_t)(now.stats_at / 1000000), (int64_t)INT32_MAX);
    memcpy(message.balloon.stats, now.stats, sizeof now.stats);
    send_message(session->control_fd, &message);
}

static void balloon_answer(struct session *session)
{
    for (; session->balloon_asked > 0; session->balloon_asked--)
        balloon_send(session);
}

/* A guest may never answer: its driver hangs, or the machine is paused. */
static void balloon_ask(struct session *session)
{
    if (!board_balloon_ask(session->board)) {
        balloon_send(session);
        return;
    }
    if (session->balloon_asked++ == 0)
        session->balloon_deadline = clock_ms() + CONTROL_BALLOON_WAIT_MS;
}

static void guest_reset(struct session *session)
{
    struct err err = {0};
    session->panicked = false;
    hold_end(&session->hold, false);
    if (board_reset(session->board, &err) < 0)
        end(session, session_error(session->control_fd, err.text));
    else if (session->paused) /* it stands at its first instruction */
        board_pause(session->board);
}

static void reply_failed(const struct session *session, int fd, const char *text)
{
    struct control_message message = {.type = CONTROL_FAILED};
    snprintf(message.text, sizeof message.text, "%s", text);
    reply(session, fd, &message);
}

static int may_save(const struct session *session, int fd, struct err *err)
{
    if (session->full) /* its request has left the guest's memory and is on no disk yet */
        return err_set(err, -EBUSY, "it waits for space for its disk '%s'", full_disk(session));
    if (is_held(session) && session->hold.client != fd)
        return err_set(err, -EBUSY, "it is being saved already");
    return 0;
}

/* The machine stands while it is written, and goes on if it ran. */
static void save(struct session *session, int fd, const struct control_message *message,
                 const int fds[CONTROL_FDS_MAX])
{
    struct err err = {0};
    struct board_saved saved;
    struct control_message done = {.type = CONTROL_DONE};
    struct board_save what = {.to = {.state_fd = fds[0], .memory_fd = fds[1]},
                              .pagemap_fd = session->pagemap_fd,
                              .changes = message->changes};
    if (fds[1] < 0) {
        reply_failed(session, fd, "no files to save to came with the request");
        return;
    }
    if (may_save(session, fd, &err) < 0) {
        reply_failed(session, fd, err.text);
        return;
    }
    _Static_assert((int)CONTROL_ID_SIZE == (int)BOARD_ID_SIZE, "one id");
    memcpy(what.id, message->id, sizeof what.id);
    memcpy(what.parent, message->parent, sizeof what.parent);
    board_pause(session->board);
    int r = board_save(session->board, &what, &saved, &err);
    go_on(session);
    if (r < 0) {
        reply_failed(session, fd, err.text);
        return;
    }
    done.pages = saved.pages;
    reply(session, fd, &done);
}

/* False where this is no request. */
static bool simple_request(struct session *session, const struct control_message *message)
{
    switch (message->type) {
    case CONTROL_POWER_BUTTON: board_power_button(session->board); break;
    case CONTROL_RESET_NOW: guest_reset(session); break;
    case CONTROL_PAUSE:
        session->paused = true;
        board_pause(session->board);
        break;
    case CONTROL_RESUME:
        session->paused = false;
        board_retry_disks(session->board);
        go_on(session);
        break;
    case CONTROL_QUIT:
        /* What the guest had said before is heard, if somebody listens. */
        board_drain_serial(session->board, DRAIN_SLICE_MS);
        end(session, 0);
        break;
    case CONTROL_CONSOLE_SIZE:
        board_console_size(session->board, message->port, message->cols, message->rows);
        break;
    case CONTROL_NEW_GENERATION: board_new_generation(session->board, NULL); break;
    default: return false;
    }
    return true;
}

static void balloon_target(struct session *session, uint64_t bytes)
{
    board_balloon_target(session->board, bytes);
    if (session->balloon_asked > 0) /* answers come in the order of the questions */
        session->balloon_asked++;
    else
        balloon_send(session);
}

static void request_handle(struct session *session, const struct control_message *message)
{
    static const int none[CONTROL_FDS_MAX] = {-1, -1};
    if (simple_request(session, message))
        return;
    if (message->type == CONTROL_STATS_ASK)
        stats_send(session, session->control_fd);
    else if (message->type == CONTROL_NICS_ASK)
        nics_send(session, session->control_fd);
    else if (message->type == CONTROL_BALLOON_TARGET)
        balloon_target(session, message->bytes);
    else if (message->type == CONTROL_BALLOON_ASK)
        balloon_ask(session);
    else if (message->type == CONTROL_SAVE)
        save(session, session->control_fd, message, none);
    else if (message->type == CONTROL_LINK)
        board_set_link(session->board, message->port, message->open);
    else /* an event, which is ours to send */
        end(session,
            session_error(session->control_fd, "a control message in the wrong direction"));
}

/* ---- a client that holds the machine ---- */

static void reply_with(int fd, const struct control_message *message, int descriptor)
{
    uint8_t bytes[CONTROL_MESSAGE_MAX];
    packet_send(fd, bytes, control_encode(message, bytes), &descriptor, 1, MSG_DONTWAIT);
}

static void release(struct session *session, bool for_good)
{
    hold_end(&session->hold, for_good);
    go_on(session);
}

/* False where this is no request of that kind. */
static bool hold_request(struct session *session, int fd, const struct control_message *message,
                         int fds[CONTROL_FDS_MAX])
{
    struct hold *hold = &session->hold;
    struct err err = {0};
    int r = 0, given = -1;
    if (message->type < CONTROL_HOLD || message->type > CONTROL_STACK)
        return false;
    if (message->type == CONTROL_HOLD) {
        r = may_save(session, fd, &err);
        if (r >= 0) {
            board_pause(session->board);
            r = hold_begin(hold, fd, &err);
            go_on(session); /* where it could not be held */
        }
    } else if (hold->client != fd) {
        r = err_set(&err, -EINVAL, "the guest is not held any more");
    } else if (message->type == CONTROL_RELEASE) {
        release(session, true);
    } else if (message->type == CONTROL_DISK) {
        r = given = hold_disk(hold, message->port, &err);
    } else if (fds[0] < 0) {
        r = err_set(&err, -EINVAL, "no image came with the request");
    } else {
        r = hold_stack(hold, message->port, message->text, fds[0], &err);
        fds[0] = -1;
    }
    const struct control_message done = {.type = CONTROL_DONE};
    if (r < 0)
        reply_failed(session, fd, err.text);
    else if (given >= 0)
        reply_with(fd, &done, given);
    else
        reply(session, fd, &done);
    return true;
}

/* ---- clients ---- */

static void client_link(struct session *session, int fd, const struct control_message *message)
{
    if (board_set_link(session->board, message->port, message->open) < 0)
        reply_failed(session, fd, "it has no such network card");
    else
        reply(session, fd, &(struct control_message){.type = CONTROL_DONE});
}

static void client_handle(struct session *session, int fd, const struct control_message *message,
                          int fds[CONTROL_FDS_MAX])
{
    const struct control_message done = {
        .type = CONTROL_DONE, .was_paused = message->type == CONTROL_PAUSE && session->paused};
    if (hold_request(session, fd, message, fds))
        return;
    if (message->type == CONTROL_SAVE)
        save(session, fd, message, fds);
    else if (message->type == CONTROL_STATS_ASK)
        stats_send(session, fd);
    else if (message->type == CONTROL_NICS_ASK)
        nics_send(session, fd);
    else if (message->type == CONTROL_LINK)
        client_link(session, fd, message);
    else if (simple_request(session, message))
        reply(session, fd, &done);
    else
        reply_failed(session, fd, "that is no request");
}

/* One packet; false where the client is gone, or no client of ours. */
static bool client_receive(struct session *session, int fd)
{
    uint8_t bytes[CONTROL_MESSAGE_MAX];
    int fds[CONTROL_FDS_MAX];
    ssize_t n = packet_receive(fd, bytes, sizeof bytes, fds, CONTROL_FDS_MAX, MSG_DONTWAIT);
    if (n == -EMSGSIZE)
        reply_failed(session, fd, "that is too long for a request");
    if (n < 0)
        return n == -EAGAIN;
    struct control_message message;
    struct err err = {0};
    int took = n > 0 ? control_decode(bytes, (size_t)n, &message, &err) : 0;
    if (n > 0 && took == n)
        client_handle(session, fd, &message, fds);
    else if (n > 0)
        reply_failed(session, fd, took < 0 ? err.text : "half a message");
    for (unsigned i = 0; i < CONTROL_FDS_MAX; i++)
        own_close(&fds[i]);
    return n > 0 && took == n;
}

static void client_accept(struct session *session)
{
    int fd = accept4(session->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) {
        session->deaf = errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS;
        return;
    }
    if (session->client_count == SESSION_CLIENTS_MAX) {
        reply_failed(session, fd, "too many clients");
        close(fd);
        return;
    }
    session->clients[session->client_count++] = fd;
}

static void clients_handle(struct session *session, const struct pollfd *polls, unsigned count)
{
    for (unsigned i = count; i-- > 0 && !session->over;) {
        if (!polls[i].revents || client_receive(session, session->clients[i]))
            continue;
        if (session->hold.client == session->clients[i])
            release(session, false);
        close(session->clients[i]);
        session->clients[i] = session->clients[--session->client_count];
    }
}

/* Takes what has come and handles whole messages. */
static void control_receive(struct session *session)
{
    ssize_t n = recv(session->control_fd, session->buffer + session->received,
                     sizeof session->buffer - session->received, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        session->control_fd = -1;
        end(session, CONTROL_EXIT_FAILED);
        return;
    }
    session->received += (size_t)n;
    while (!session->over) {
        struct control_message message;
        struct err err = {0};
        int took = control_decode(session->buffer, session->received, &message, &err);
        if (took < 0)
            end(session, session_error(session->control_fd, err.text));
        if (took <= 0)
            return;
        session->received -= (size_t)took;
        memmove(session->buffer, session->buffer + took, session->received);
        request_handle(session, &message);
    }
}

/* Waits for the guest's last words to be read. The owner may stop that by leaving or by QUIT. */
static void drain(struct session *session)
{
    int consoles = DRAIN_CONSOLES_MS;
    while (!session->over) {
        bool serial = board_drain_serial(session->board, DRAIN_SLICE_MS);
        bool console = consoles <= 0 || board_drain_consoles(session->board, DRAIN_SLICE_MS);
        consoles -= DRAIN_SLICE_MS;
        if (serial && console)
            return;
        struct pollfd control = {.fd = session->control_fd, .events = POLLIN};
        if (poll(&control, 1, 0) > 0)
            control_receive(session);
    }
}

/* The machine has stopped for good; the owner hears of it when everything before is out. */
static void final_handle(struct session *session, const struct board_event *event)
{
    int panic = session->panicked ? CONTROL_EXIT_PANIC : 0;
    drain(session);
    if (session->over)
        return;
    switch (event->kind) {
    case BOARD_EVENT_RESET:
        send_type(session, CONTROL_RESET);
        end(session, panic);
        break;
    case BOARD_EVENT_POWER_OFF:
        send_type(session, CONTROL_POWER_OFF);
        end(session, panic);
        break;
    case BOARD_EVENT_DEBUG_EXIT: {
        int code = debug_exit_status((uint32_t)event->value);
        send_message(session->control_fd,
                     &(struct control_message){.type = CONTROL_DEBUG_EXIT, .code = (uint32_t)code});
        end(session, code);
        break;
    }
    case BOARD_EVENT_TRIPLE_FAULT:
        send_text(session->control_fd, CONTROL_TRIPLE_FAULT, event->text);
        end(session, CONTROL_EXIT_FAILED);
        break;
    default: end(session, session_error(session->control_fd, event->text)); break;
    }
}

static void ready_send(struct session *session, uint64_t now)
{
    struct control_message message = {
        .type = CONTROL_READY, .time_ns = now, .began_ns = session->began_ns};
    snprintf(message.engine, sizeof message.engine, "%s", session->engine);
    snprintf(message.text, sizeof message.text, "%s", session->why);
    send_message(session->control_fd, &message);
}

/* A guest that ran on would find its writes waiting, more and more, and take its disk for dead. */
static void full_handle(struct session *session, const struct board_event *event)
{
    uint32_t bit = UINT32_C(1) << event->port;
    session->full = event->value ? session->full | bit : session->full & ~bit;
    if (session->full)
        board_pause(session->board);
    else
        go_on(session);
    send_message(session->control_fd, &(struct control_message){.type = CONTROL_FULL,
                                                                .port = event->port,
                                                                .code = (uint32_t)event->value});
    if (session->control_fd < 0)
        fprintf(stderr, "lodge-vmm: disk '%s': %s\n", session->disks[event->port].path,
                event->value ? "there is no space; the guest stands until there is some"
                             : "there is space again");
}

static void event_handle(struct session *session, const struct board_event *event)
{
    switch (event->kind) {
    case BOARD_EVENT_READY: ready_send(session, event->value); break;
    case BOARD_EVENT_CONSOLE:
        send_message(session->control_fd, &(struct control_message){.type = CONTROL_CONSOLE_OPENED,
                                                                    .port = event->port,
                                                                    .open = event->value != 0});
        break;
    case BOARD_EVENT_PANICKED:
        session->panicked = true;
        send_type(session, CONTROL_PANICKED);
        break;
    case BOARD_EVENT_CRASH_LOADED: send_type(session, CONTROL_CRASH_LOADED); break;
    case BOARD_EVENT_WATCHDOG: send_type(session, CONTROL_WATCHDOG); break;
    case BOARD_EVENT_BALLOON: balloon_answer(session); break;
    case BOARD_EVENT_FULL: full_handle(session, event); break;
    case BOARD_EVENT_RESET:
        if (session->exit_on_reset) {
            final_handle(session, event);
        } else {
            send_type(session, CONTROL_RESET);
            guest_reset(session);
        }
        break;
    default: final_handle(session, event); break;
    }
}

/* In milliseconds; -1: until something comes. */
static int time_to_wait(const struct session *session)
{
    int wait = session->balloon_asked ? (int)max(session->balloon_deadline - clock_ms(), 0l) : -1;
    return session->deaf && (wait < 0 || wait > DEAF_MS) ? DEAF_MS : wait;
}

int session_run(struct session *session)
{
    enum { EVENTS, OWNER, LISTENER, CLIENTS };
    while (!session->over) {
        struct pollfd polls[CLIENTS + SESSION_CLIENTS_MAX] = {
            [EVENTS] = {.fd = board_event_fd(session->board), .events = POLLIN},
            [OWNER] = {.fd = session->control_fd, .events = POLLIN},
            [LISTENER] = {.fd = session->deaf ? -1 : session->listen_fd, .events = POLLIN},
        };
        unsigned clients = session->client_count;
        for (unsigned i = 0; i < clients; i++)
            polls[CLIENTS + i] = (struct pollfd){.fd = session->clients[i], .events = POLLIN};
        int ready = poll(polls, CLIENTS + clients, time_to_wait(session));
        session->deaf = false;
        if (session->balloon_asked && clock_ms() >= session->balloon_deadline)
            balloon_answer(session);
        if (ready <= 0)
            continue;
        if (polls[OWNER].revents)
            control_receive(session);
        clients_handle(session, polls + CLIENTS, clients);
        if (polls[LISTENER].revents && !session->over)
            client_accept(session);
        /* One event a turn: a guest may make them faster than they are told, and the owner wants to
         * be heard, and its leaving noticed, all the same. */
        struct board_event event;
        if (polls[EVENTS].revents && !session->over && board_event_next(session->board, &event))
            event_handle(session, &event);
    }
    return session->status;
}
