#include "sink.h"

#include "base/bytes.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void sink_init(struct sink *sink, int fd)
{
    struct stat status;
    sink->fd = fd;
    sink->start = sink->end = 0;
    sink->broken = false;
    sink->regular = fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

size_t sink_room(const struct sink *sink)
{
    return sink->broken ? SINK_SIZE : SINK_SIZE - (sink->end - sink->start);
}

bool sink_empty(const struct sink *sink)
{
    return sink->start == sink->end;
}

void sink_put(struct sink *sink, const uint8_t *bytes, size_t length)
{
    if (sink->broken)
        return;
    assert(length <= sink_room(sink));
    if (length > SINK_SIZE - sink->end) {
        memmove(sink->bytes, sink->bytes + sink->start, sink->end - sink->start);
        sink->end -= sink->start;
        sink->start = 0;
    }
    memcpy(sink->bytes + sink->end, bytes, length);
    sink->end += length;
}

size_t sink_pump(struct sink *sink, short ready)
{
    size_t length = sink->end - sink->start;
    if (length == 0 || !(ready & (POLLOUT | POLLERR | POLLHUP | POLLNVAL)))
        return 0;
    if (!sink->regular)
        length = min(length, (size_t)PIPE_BUF);
    ssize_t n = write(sink->fd, sink->bytes + sink->start, length);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return 0;
    if (n < 0) {
        length = sink->end - sink->start;
        sink->broken = true;
        sink->start = sink->end = 0;
        return length;
    }
    sink->start += (size_t)n;
    if (sink_empty(sink))
        sink->start = sink->end = 0;
    return (size_t)n;
}
