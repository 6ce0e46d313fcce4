#include "transfer.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

static int over(const struct transfer *transfer, int number, struct agent_writer *writer)
{
    struct agent_message message = {AGENT_EXIT, transfer->stream, .exit = {false, 0}};
    if (number) {
        message.type = AGENT_FAILED;
        message.failed.error = (uint32_t)number;
        message.failed.text = strerror(number);
    }
    int r = agent_put(writer, &message, NULL);
    return r < 0 ? r : 1;
}

/* --- into the guest --- */

/* Where the file is to be: behind the links that lead there, if there is one already. */
static int find_place(struct transfer *transfer, const char *path, struct err *err)
{
    char place[PATH_MAX];
    struct stat status;
    if (!realpath(path, place)) {
        if (errno != ENOENT || strlen(path) >= sizeof place)
            return err_errno(err, errno, "'%s'", path);
        strcpy(place, path);
    } else if (stat(place, &status) == 0 && !S_ISREG(status.st_mode)) {
        return err_set(err, S_ISDIR(status.st_mode) ? -EISDIR : -EINVAL,
                       "'%s' is there and no regular file", path);
    }
    transfer->path = strdup(place);
    if (!transfer->path || asprintf(&transfer->making, "%s.XXXXXX", place) < 0) {
        transfer->making = NULL;
        return err_set(err, -ENOMEM, "no memory");
    }
    return 0;
}

static int start_push(struct transfer *transfer, const struct agent_message *message,
                      struct agent_writer *writer, struct err *err)
{
    int r = find_place(transfer, message->push.path, err);
    if (r < 0)
        return r;
    transfer->fd = mkostemp(transfer->making, O_CLOEXEC);
    if (transfer->fd < 0) {
        int number = errno;
        free(take_ptr(transfer->making));
        return err_errno(err, number, "'%s'", message->push.path);
    }
    if (fchmod(transfer->fd, message->push.mode) < 0)
        return err_errno(err, errno, "'%s'", message->push.path);
    transfer->granted = AGENT_WINDOW;
    return agent_put(
        writer,
        &(struct agent_message){AGENT_STARTED, message->stream, .started = {0, AGENT_WINDOW}}, err);
}

static int write_all(int fd, const uint8_t *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = write(fd, bytes, length);
        if (n < 0 && errno != EINTR)
            return errno;
        if (n > 0) {
            bytes += n;
            length -= (size_t)n;
        }
    }
    return 0;
}

/* The whole file is on its disk before it takes its place. */
static int put_in_place(struct transfer *transfer)
{
    if (fsync(transfer->fd) < 0 && errno != EINVAL)
        return errno;
    if (rename(transfer->making, transfer->path) < 0)
        return errno;
    free(take_ptr(transfer->making));
    return 0;
}

int transfer_input(struct transfer *transfer, const uint8_t *bytes, size_t length,
                   struct agent_writer *writer)
{
    if (!transfer->making || length > transfer->granted)
        return -EPROTO;
    if (length == 0)
        return over(transfer, put_in_place(transfer), writer);
    int number = write_all(transfer->fd, bytes, length);
    if (number)
        return over(transfer, number, writer);
    transfer->granted -= (uint32_t)length;
    transfer->taken += (uint32_t)length;
    if (transfer->taken < AGENT_WINDOW / 4)
        return 0;
    struct agent_message grant = {AGENT_WINDOW_GRANT, transfer->stream,
                                  .window = {AGENT_FLOW_STDIN, transfer->taken}};
    transfer->granted += transfer->taken;
    transfer->taken = 0;
    return agent_put(writer, &grant, NULL);
}

/* --- out of it --- */

static int start_pull(struct transfer *transfer, const struct agent_message *message,
                      struct agent_writer *writer, struct err *err)
{
    struct stat status;
    const char *path = message->pull.path;
    /* Not waiting: for a writer of a FIFO, or for a device. */
    transfer->fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (transfer->fd < 0 || fstat(transfer->fd, &status) < 0)
        return err_errno(err, errno, "'%s'", path);
    if (!S_ISREG(status.st_mode))
        return err_set(err, S_ISDIR(status.st_mode) ? -EISDIR : -EINVAL, "'%s' is no regular file",
                       path);
    transfer->window = message->pull.window;
    return agent_put(writer,
                     &(struct agent_message){
                         AGENT_FILE,
                         message->stream,
                         .file = {status.st_mode & AGENT_MODE_MAX, (uint64_t)status.st_size},
                     },
                     err);
}

bool transfer_wants_output(const struct transfer *transfer)
{
    return !transfer->making && transfer->window > 0;
}

int transfer_output(struct transfer *transfer, struct agent_writer *writer)
{
    uint8_t bytes[AGENT_DATA_MAX];
    if (!transfer_wants_output(transfer))
        return 0;
    ssize_t n = read(transfer->fd, bytes, min(sizeof bytes, (size_t)transfer->window));
    if (n < 0 && errno == EINTR)
        return 0;
    if (n <= 0)
        return over(transfer, n < 0 ? errno : 0, writer);
    transfer->window -= (uint32_t)n;
    return agent_put(
        writer, &(struct agent_message){AGENT_STDOUT, transfer->stream, .data = {bytes, (size_t)n}},
        NULL);
}

/* --- both --- */

int transfer_start(const struct agent_message *message, struct agent_writer *writer,
                   struct transfer **ret_transfer, struct err *err)
{
    struct transfer *transfer = calloc(1, sizeof *transfer);
    if (!transfer)
        return err_set(err, -ENOMEM, "no memory");
    transfer->stream = message->stream;
    transfer->fd = -1;
    int r = message->type == AGENT_PUSH ? start_push(transfer, message, writer, err)
                                        : start_pull(transfer, message, writer, err);
    if (r < 0) {
        transfer_free(transfer);
        return r;
    }
    *ret_transfer = transfer;
    return 0;
}

void transfer_free(struct transfer *transfer)
{
    if (!transfer)
        return;
    if (transfer->making)
        unlink(transfer->making);
    own_close(&transfer->fd);
    free(transfer->making);
    free(transfer->path);
    free(transfer);
}
