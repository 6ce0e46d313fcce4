#include "board/board_private.h"

#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

static void event_fd_raise(struct board *board)
{
    eventfd_write(board->event_fd, 1);
}

void board_tell_ready(struct board *board, uint64_t now)
{
    pthread_mutex_lock(&board->lock);
    if (!board->ready_told) {
        board->ready_told = board->ready_due = true;
        board->ready_ns = now;
        event_fd_raise(board);
    }
    pthread_mutex_unlock(&board->lock);
}

void board_tell_console(void *opaque, unsigned port, bool open)
{
    struct board *board = opaque;
    uint32_t bit = UINT32_C(1) << port;
    pthread_mutex_lock(&board->lock);
    board->console_open = open ? board->console_open | bit : board->console_open & ~bit;
    board->console_due |= bit;
    event_fd_raise(board);
    pthread_mutex_unlock(&board->lock);
}

void board_tell_plain(struct board *board, enum board_event_kind kind, bool once)
{
    uint32_t bit = UINT32_C(1) << kind;
    pthread_mutex_lock(&board->lock);
    if (!once || !(board->once_told & bit)) {
        board->once_told |= once ? bit : 0;
        board->plain_due |= bit;
        event_fd_raise(board);
    }
    pthread_mutex_unlock(&board->lock);
}

void board_tell_balloon(void *board)
{
    board_tell_plain(board, BOARD_EVENT_BALLOON, false);
}

void board_tell_full(void *opaque)
{
    struct board *board = opaque;
    pthread_mutex_lock(&board->lock);
    board->full_due = true;
    event_fd_raise(board);
    pthread_mutex_unlock(&board->lock);
}

void board_tell_final(struct board *board, enum board_event_kind kind, uint64_t value,
                      const char *text)
{
    const char *differs = board->lockstep ? lockstep_end(board->lockstep, kind) : NULL;
    if (differs) {
        kind = BOARD_EVENT_ERROR;
        text = differs;
    }
    pthread_mutex_lock(&board->lock);
    if (!board->ended) {
        board->ended = true;
        *board->final = (struct board_event){.kind = kind, .value = value};
        snprintf(board->final->text, sizeof board->final->text, "%s", text);
        board_stop_locked(board);
        event_fd_raise(board);
    }
    pthread_mutex_unlock(&board->lock);
}

int board_event_fd(struct board *board)
{
    return board->event_fd;
}

/* As the disks are now, whatever they were meanwhile. */
static bool next_full(struct board *board, struct board_event *event)
{
    for (unsigned i = 0; board->full_due && i < board->disk_count; i++) {
        int number = virtio_blk_full(board->disks[i]);
        if (number == board->full_told[i])
            continue;
        board->full_told[i] = number;
        *event =
            (struct board_event){.kind = BOARD_EVENT_FULL, .port = i, .value = (uint64_t)number};
        return true;
    }
    board->full_due = false;
    return false;
}

static bool next_locked(struct board *board, struct board_event *event)
{
    *event = (struct board_event){.kind = BOARD_EVENT_NONE};
    if (board->ready_due) {
        board->ready_due = false;
        event->kind = BOARD_EVENT_READY;
        event->value = board->ready_ns;
    } else if (board->console_due) {
        event->kind = BOARD_EVENT_CONSOLE;
        event->port = (unsigned)__builtin_ctz(board->console_due);
        event->value = board->console_open >> event->port & 1;
        board->console_due &= board->console_due - 1;
    } else if (next_full(board, event)) {
        return true;
    } else if (board->plain_due) {
        event->kind = (enum board_event_kind)__builtin_ctz(board->plain_due);
        board->plain_due &= board->plain_due - 1;
    } else if (board->final->kind != BOARD_EVENT_NONE) {
        *event = *board->final;
        board->final->kind = BOARD_EVENT_NONE;
    }
    return event->kind != BOARD_EVENT_NONE;
}

bool board_event_next(struct board *board, struct board_event *ret_event)
{
    pthread_mutex_lock(&board->lock);
    bool any = next_locked(board, ret_event);
    eventfd_t count;
    if (!any)
        eventfd_read(board->event_fd, &count);
    pthread_mutex_unlock(&board->lock);
    return any;
}
