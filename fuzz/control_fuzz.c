// needs: base wire
/*
 * The control protocol against hostile bytes: each message that is accepted must be inside the
 * input, and encode to the very bytes it came from.
 */
#include "wire/control.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct control_message message;
    struct err err = {0};
    while (size > 0) {
        int took = control_decode(data, size, &message, &err);
        assert(took >= 0 || err.text[0]);
        if (took <= 0)
            return 0;
        assert((size_t)took <= size && took <= CONTROL_MESSAGE_MAX);
        uint8_t again[CONTROL_MESSAGE_MAX];
        /* A name's bytes behind its NUL are not compared: they mean nothing. */
        assert(control_encode(&message, again) == (size_t)took);
        if (message.type != CONTROL_READY)
            assert(memcmp(again, data, (size_t)took) == 0);
        data += took;
        size -= (size_t)took;
    }
    return 0;
}
