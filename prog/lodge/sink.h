/*
 * sink.h: bytes on their way to a descriptor that may be slow, written without ever blocking us.
 *
 * Standard output is often shared with other processes, so it must not be made non-blocking.
 * Instead a sink writes only after poll() said POLLOUT, and then no more than a pipe promises to
 * take (PIPE_BUF); regular files take everything at once. Who fills a sink keeps within
 * sink_room().
 */
#pragma once

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SINK_SIZE = 256 * 1024 };

struct sink {
    int fd;
    bool regular;
    bool broken; /* nobody reads any more; what comes is dropped */
    size_t start, end;
    uint8_t bytes[SINK_SIZE];
};

void sink_init(struct sink *sink, int fd);
size_t sink_room(const struct sink *sink);
void sink_put(struct sink *sink, const uint8_t *bytes, size_t length);
bool sink_empty(const struct sink *sink);
/* Writes a piece, `ready` being poll()'s answer; returns how many bytes left the sink. */
size_t sink_pump(struct sink *sink, short ready);
