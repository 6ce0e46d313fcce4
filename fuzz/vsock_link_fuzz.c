// needs: base wire
/*
 * The messages between lodge-vmm's socket device and its owner: each that is accepted must encode
 * to the very bytes it came from, and each that is refused must say why.
 */
#include "wire/vsock.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct vsock_message message;
    struct err err = {0};
    uint8_t again[VSOCK_MESSAGE_SIZE];
    if (vsock_message_decode(data, size, &message, &err) < 0) {
        assert(err.text[0]);
        return 0;
    }
    vsock_message_encode(&message, again);
    assert(size == sizeof again && !memcmp(again, data, size));
    return 0;
}
