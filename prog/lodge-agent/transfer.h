/*
 * transfer.h: one file on its way into the guest or out of it.
 *
 * A file that comes is written beside its place, and takes it when it is whole: whoever looks sees
 * the old one or the new one, and a transfer that is broken off leaves nothing. Only regular files
 * go either way.
 *
 * One thread. A transfer owns its descriptor and the file in the making; transfer_free() removes
 * that.
 */
#pragma once

#include "base/err.h"
#include "wire/agent.h"

#include <stdbool.h>
#include <sys/types.h>

struct transfer {
    struct transfer *next;
    uint32_t stream;
    int fd;
    char *path, *making; /* PUSH: where it goes, and what stands there until then */
    uint32_t granted;    /* PUSH: bytes that the host may still send */
    uint32_t taken;      /* PUSH: written since the last grant */
    uint32_t window;     /* PULL: bytes that the host still takes */
};

/* For PUSH and PULL; puts STARTED or FILE into `writer`. On failure *err says why, and the errno is
 * what the sender should see. */
int transfer_start(const struct agent_message *message, struct agent_writer *writer,
                   struct transfer **ret_transfer, struct err *err);
void transfer_free(struct transfer *transfer);

/* PUSH: bytes, or none for the end. 1 when it is over: EXIT or FAILED was put into `writer`; 0; or
 * -EPROTO where the host sent more than it was granted. */
int transfer_input(struct transfer *transfer, const uint8_t *bytes, size_t length,
                   struct agent_writer *writer);

/* PULL: reads the next piece, as far as the window goes. 1 when it is over. */
int transfer_output(struct transfer *transfer, struct agent_writer *writer);
/* PULL with a window: transfer_output() would do something. */
bool transfer_wants_output(const struct transfer *transfer);
