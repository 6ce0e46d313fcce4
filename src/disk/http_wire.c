#include "disk/http_wire.h"

#include "base/bytes.h"

#include <errno.h>
#include <string.h>

/* Every message: type, 8 bytes; id, 8 bytes. Behind that: */
enum {
    AT_ID = 8,
    HELLO_BYTES = 16,
    FETCH_AT_BLOCK = 16,
    FETCH_AT_SLOTS = 24,
    DONE_AT_STATUS = 16,
    DONE_BYTES = 24,
    WELCOME_AT_SIZE = 24,
    WELCOME_AT_BLOCK_SIZE = 32,
    WELCOME_AT_SLOTS = 36,
    WELCOME_AT_TEXT = 40,
};

size_t http_encode(const struct http_message *message, uint8_t *to)
{
    memset(to, 0, HTTP_MESSAGE_MAX);
    to[0] = (uint8_t)message->type;
    le64_write(to + AT_ID, message->id);
    size_t text;
    switch (message->type) {
    case HTTP_HELLO: return HELLO_BYTES;
    case HTTP_FETCH:
        le64_write(to + FETCH_AT_BLOCK, message->block);
        for (uint32_t i = 0; i < message->count; i++)
            le32_write(to + FETCH_AT_SLOTS + 4 * i, message->slot[i]);
        return FETCH_AT_SLOTS + 4 * (size_t)message->count;
    case HTTP_DONE: le32_write(to + DONE_AT_STATUS, (uint32_t)message->status); return DONE_BYTES;
    default:
        le32_write(to + DONE_AT_STATUS, (uint32_t)message->status);
        le64_write(to + WELCOME_AT_SIZE, message->size);
        le32_write(to + WELCOME_AT_BLOCK_SIZE, message->block_size);
        le32_write(to + WELCOME_AT_SLOTS, message->slots);
        text = strnlen(message->text, HTTP_TEXT_MAX - 1);
        memcpy(to + WELCOME_AT_TEXT, message->text, text);
        return WELCOME_AT_TEXT + text;
    }
}

static int decode_fetch(const uint8_t *bytes, size_t length, struct http_message *message)
{
    if (length <= FETCH_AT_SLOTS || length % 4 ||
        length > FETCH_AT_SLOTS + 4 * (size_t)HTTP_RUN_MAX)
        return -EBADMSG;
    message->block = le64_read(bytes + FETCH_AT_BLOCK);
    message->count = (uint32_t)(length - FETCH_AT_SLOTS) / 4;
    for (uint32_t i = 0; i < message->count; i++)
        message->slot[i] = le32_read(bytes + FETCH_AT_SLOTS + 4 * i);
    return 0;
}

static bool sane(const struct http_message *message)
{
    return message->size > 0 && message->size <= INT64_MAX &&
           message->block_size >= HTTP_BLOCK_MIN && message->block_size <= HTTP_BLOCK_MAX &&
           !(message->block_size & (message->block_size - 1)) && message->slots >= HTTP_SLOTS_MIN &&
           message->slots <= HTTP_SLOTS_MAX;
}

static int decode_status(const uint8_t *bytes, struct http_message *message)
{
    message->status = (int32_t)le32_read(bytes + DONE_AT_STATUS);
    return message->status <= 0 && message->status >= -4095 ? 0 : -EBADMSG;
}

static int decode_welcome(const uint8_t *bytes, size_t length, struct http_message *message)
{
    if (length < WELCOME_AT_TEXT || length >= WELCOME_AT_TEXT + HTTP_TEXT_MAX)
        return -EBADMSG;
    message->size = le64_read(bytes + WELCOME_AT_SIZE);
    message->block_size = le32_read(bytes + WELCOME_AT_BLOCK_SIZE);
    message->slots = le32_read(bytes + WELCOME_AT_SLOTS);
    memcpy(message->text, bytes + WELCOME_AT_TEXT, length - WELCOME_AT_TEXT);
    int r = decode_status(bytes, message);
    return r < 0 || (message->status == 0 && !sane(message)) ? -EBADMSG : 0;
}

int http_decode(const uint8_t *bytes, size_t length, struct http_message *ret_message)
{
    struct http_message message = {0};
    static const uint8_t none[7];
    int r = -EBADMSG;
    if (length < HELLO_BYTES || memcmp(bytes + 1, none, sizeof none) != 0)
        return r;
    message.type = bytes[0];
    message.id = le64_read(bytes + AT_ID);
    switch (bytes[0]) {
    case HTTP_HELLO: r = length == HELLO_BYTES ? 0 : r; break;
    case HTTP_FETCH: r = decode_fetch(bytes, length, &message); break;
    case HTTP_WELCOME: r = decode_welcome(bytes, length, &message); break;
    case HTTP_DONE: r = length == DONE_BYTES ? decode_status(bytes, &message) : r; break;
    default: break;
    }
    if (r >= 0)
        *ret_message = message;
    return r;
}
