// needs: base wire
/*
 * The exec channel. What decodes must encode to the same bytes; a reader fed in pieces must end,
 * and must not read outside.
 */
#include "base/bytes.h"
#include "wire/agent.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void goes_round(const uint8_t *data, size_t size)
{
    struct agent_message message;
    int length = agent_decode(data, size, &message, NULL);
    if (length <= 0)
        return;
    struct agent_writer writer = {0};
    size_t again;
    assert(agent_put(&writer, &message, NULL) == 0);
    const uint8_t *bytes = agent_writer_bytes(&writer, &again);
    assert(again == (size_t)length && !memcmp(bytes, data, again));
    agent_writer_free(&writer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    goes_round(data, size);
    struct agent_reader *reader = calloc(1, sizeof *reader);
    struct agent_message message;
    reader->synchronised = size & 1;
    for (size_t at = 0; at < size;) {
        size_t room, step = min(size - at, (size_t)1 + data[at] % 64);
        uint8_t *space = agent_reader_space(reader, &room);
        assert(room > 0);
        step = min(step, room);
        memcpy(space, data + at, step);
        agent_reader_filled(reader, step);
        at += step;
        while (agent_reader_next(reader, &message) > 0)
            if (message.type == AGENT_EXEC)
                for (const char *s = agent_strings_next(&message.exec.argv, NULL); s;
                     s = agent_strings_next(&message.exec.argv, s))
                    assert(memchr(s, 0, AGENT_PAYLOAD_MAX));
    }
    free(reader);
    return 0;
}
