#include "wire/agent.h"

#include "base/bytes.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Header: magic u32, type u16, 0 u16, stream u32, length u32. The magic is no UTF-8 and no small
 * number, so that console output and padding are not taken for it. */
static const uint8_t magic[4] = {0xf7, 'L', 'a', 'g'};

enum { HEADER_TYPE = 4, HEADER_ZERO = 6, HEADER_STREAM = 8, HEADER_LENGTH = 12 };

/* HELLO and WELCOME begin with this behind the header: what synchronises must be hard to meet by
 * chance. */
static const uint8_t greeting[8] = {'l', 'o', 'd', 'g', 'e', '\r', '\n', 0x1a};

static const char *const type_names[AGENT_TYPE_MAX] = {
    [AGENT_HELLO] = "HELLO",       [AGENT_WELCOME] = "WELCOME", [AGENT_EXEC] = "EXEC",
    [AGENT_STARTED] = "STARTED",   [AGENT_FAILED] = "FAILED",   [AGENT_STDIN] = "STDIN",
    [AGENT_STDOUT] = "STDOUT",     [AGENT_STDERR] = "STDERR",   [AGENT_WINDOW_GRANT] = "WINDOW",
    [AGENT_SIGNAL] = "SIGNAL",     [AGENT_RESIZE] = "RESIZE",   [AGENT_EXIT] = "EXIT",
    [AGENT_SHUTDOWN] = "SHUTDOWN", [AGENT_PING] = "PING",       [AGENT_PONG] = "PONG",
    [AGENT_PUSH] = "PUSH",         [AGENT_PULL] = "PULL",       [AGENT_FILE] = "FILE",
    [AGENT_CLOCK] = "CLOCK",       [AGENT_ASK] = "ASK",         [AGENT_INFO] = "INFO",
    [AGENT_IDENTITY] = "IDENTITY",
};

const char *agent_type_name(enum agent_type type)
{
    const char *name = type < AGENT_TYPE_MAX ? type_names[type] : NULL;
    return name ? name : "unknown";
}

const char *agent_strings_next(const struct agent_strings *strings, const char *previous)
{
    const char *at = previous ? previous + strlen(previous) + 1 : strings->bytes;
    return strings->size && at < strings->bytes + strings->size ? at : NULL;
}

/* --- encoding --- */

/* A frame under construction: `overflow` once it would pass AGENT_PAYLOAD_MAX. */
struct payload {
    uint8_t *at;
    size_t length;
    bool overflow;
};

static void put_bytes(struct payload *payload, const void *bytes, size_t length)
{
    if (payload->overflow || length > AGENT_PAYLOAD_MAX - payload->length) {
        payload->overflow = true;
        return;
    }
    if (length)
        memcpy(payload->at + payload->length, bytes, length);
    payload->length += length;
}

static void put_u16(struct payload *payload, uint16_t value)
{
    uint8_t bytes[2];
    le16_write(bytes, value);
    put_bytes(payload, bytes, sizeof bytes);
}

static void put_u32(struct payload *payload, uint32_t value)
{
    uint8_t bytes[4];
    le32_write(bytes, value);
    put_bytes(payload, bytes, sizeof bytes);
}

static void put_u64(struct payload *payload, uint64_t value)
{
    uint8_t bytes[8];
    le64_write(bytes, value);
    put_bytes(payload, bytes, sizeof bytes);
}

static void put_text(struct payload *payload, const char *text)
{
    put_bytes(payload, text, strlen(text) + 1);
}

static void put_exec(struct payload *payload, const struct agent_message *message)
{
    put_u32(payload, message->exec.flags);
    put_u16(payload, message->exec.columns);
    put_u16(payload, message->exec.rows);
    put_u32(payload, message->exec.window);
    put_u32(payload, message->exec.argv.count);
    put_u32(payload, message->exec.env.count);
    put_text(payload, message->exec.cwd);
    put_bytes(payload, message->exec.argv.bytes, message->exec.argv.size);
    put_bytes(payload, message->exec.env.bytes, message->exec.env.size);
}

static void put_identity(struct payload *payload, const struct agent_message *message)
{
    put_u32(payload, message->identity.flags);
    put_u64(payload, message->identity.time);
    put_bytes(payload, message->identity.seed, AGENT_SEED_SIZE);
    put_u32(payload, message->identity.card_count);
    for (uint32_t i = 0; i < message->identity.card_count; i++) {
        const struct agent_card *card = &message->identity.cards[i];
        put_bytes(payload, card->from, sizeof card->from);
        put_bytes(payload, card->to, sizeof card->to);
        put_u16(payload, card->renew);
    }
    put_text(payload, message->identity.hostname);
}

static void put_payload(struct payload *payload, const struct agent_message *message)
{
    switch (message->type) {
    case AGENT_HELLO:
        put_bytes(payload, greeting, sizeof greeting);
        put_u32(payload, message->hello.version);
        put_u64(payload, message->hello.nonce);
        break;
    case AGENT_WELCOME:
        put_bytes(payload, greeting, sizeof greeting);
        put_u32(payload, message->welcome.version);
        put_u64(payload, message->welcome.nonce);
        put_u64(payload, message->welcome.uptime);
        put_bytes(payload, message->welcome.strings.bytes, message->welcome.strings.size);
        break;
    case AGENT_EXEC: put_exec(payload, message); break;
    case AGENT_STARTED:
        put_u32(payload, message->started.pid);
        put_u32(payload, message->started.window);
        break;
    case AGENT_FAILED:
        put_u32(payload, message->failed.error);
        put_text(payload, message->failed.text);
        break;
    case AGENT_STDIN:
    case AGENT_STDOUT:
    case AGENT_STDERR: put_bytes(payload, message->data.bytes, message->data.length); break;
    case AGENT_WINDOW_GRANT:
        put_u32(payload, message->window.flow);
        put_u32(payload, message->window.bytes);
        break;
    case AGENT_SIGNAL: put_u32(payload, message->signal.number); break;
    case AGENT_RESIZE:
        put_u16(payload, message->resize.columns);
        put_u16(payload, message->resize.rows);
        break;
    case AGENT_EXIT:
        put_u32(payload, message->exit.signaled);
        put_u32(payload, message->exit.value);
        break;
    case AGENT_SHUTDOWN: put_u32(payload, message->shutdown.how); break;
    case AGENT_PING:
    case AGENT_PONG: put_u64(payload, message->ping.token); break;
    case AGENT_PUSH:
        put_u32(payload, message->push.mode);
        put_text(payload, message->push.path);
        break;
    case AGENT_PULL:
        put_u32(payload, message->pull.window);
        put_text(payload, message->pull.path);
        break;
    case AGENT_FILE:
        put_u32(payload, message->file.mode);
        put_u64(payload, message->file.size);
        break;
    case AGENT_CLOCK: put_u64(payload, message->clock.time); break;
    case AGENT_ASK: break;
    case AGENT_INFO:
        put_u32(payload, message->info.strings.count);
        put_bytes(payload, message->info.strings.bytes, message->info.strings.size);
        break;
    case AGENT_IDENTITY: put_identity(payload, message); break;
    case AGENT_TYPE_MAX: assert(false);
    }
}

/* Makes room for `length` bytes behind what waits. */
static int reserve(struct agent_writer *writer, size_t length, struct err *err)
{
    size_t waiting = writer->end - writer->start;
    if (writer->start == writer->end)
        writer->start = writer->end = 0;
    if (length <= writer->capacity - writer->end)
        return 0;
    if (waiting + length > AGENT_WRITER_MAX)
        return err_set(err, -ENOBUFS, "the agent's peer does not read its channel");
    if (waiting)
        memmove(writer->bytes, writer->bytes + writer->start, waiting);
    writer->start = 0;
    writer->end = waiting;
    if (length <= writer->capacity - writer->end)
        return 0;
    size_t capacity = max(2 * writer->capacity, waiting + length);
    uint8_t *bytes = realloc(writer->bytes, capacity);
    if (!bytes)
        return err_set(err, -ENOMEM, "no memory for a message");
    writer->bytes = bytes;
    writer->capacity = capacity;
    return 0;
}

int agent_put(struct agent_writer *writer, const struct agent_message *message, struct err *err)
{
    int r = reserve(writer, AGENT_HEADER_SIZE + AGENT_PAYLOAD_MAX, err);
    if (r < 0)
        return r;
    uint8_t *header = writer->bytes + writer->end;
    struct payload payload = {.at = header + AGENT_HEADER_SIZE};
    put_payload(&payload, message);
    if (payload.overflow)
        return err_set(err, -EMSGSIZE, "%s of more than %d bytes", agent_type_name(message->type),
                       AGENT_PAYLOAD_MAX);
    memcpy(header, magic, sizeof magic);
    le16_write(header + HEADER_TYPE, (uint16_t)message->type);
    le16_write(header + HEADER_ZERO, 0);
    le32_write(header + HEADER_STREAM, message->stream);
    le32_write(header + HEADER_LENGTH, (uint32_t)payload.length);
    writer->end += AGENT_HEADER_SIZE + payload.length;
    return 0;
}

int agent_put_padding(struct agent_writer *writer, struct err *err)
{
    size_t length = AGENT_HEADER_SIZE + AGENT_PAYLOAD_MAX;
    int r = reserve(writer, length, err);
    if (r < 0)
        return r;
    memset(writer->bytes + writer->end, 0, length);
    writer->end += length;
    return 0;
}

void agent_writer_sent(struct agent_writer *writer, size_t length)
{
    assert(length <= writer->end - writer->start);
    writer->start += length;
}

void agent_writer_free(struct agent_writer *writer)
{
    free(writer->bytes);
    *writer = (struct agent_writer){0};
}

/* --- decoding --- */

/* What is left of a payload; `bad` once something did not fit. */
struct cursor {
    const uint8_t *at;
    size_t left;
    bool bad;
};

static const uint8_t *get_bytes(struct cursor *cursor, size_t length)
{
    if (cursor->bad || length > cursor->left) {
        cursor->bad = true;
        return NULL;
    }
    const uint8_t *at = cursor->at;
    cursor->at += length;
    cursor->left -= length;
    return at;
}

static uint16_t get_u16(struct cursor *cursor)
{
    const uint8_t *at = get_bytes(cursor, 2);
    return at ? le16_read(at) : 0;
}

static uint32_t get_u32(struct cursor *cursor)
{
    const uint8_t *at = get_bytes(cursor, 4);
    return at ? le32_read(at) : 0;
}

static uint64_t get_u64(struct cursor *cursor)
{
    const uint8_t *at = get_bytes(cursor, 8);
    return at ? le64_read(at) : 0;
}

static void expect(struct cursor *cursor, bool condition)
{
    if (!condition)
        cursor->bad = true;
}

static void get_greeting(struct cursor *cursor)
{
    const uint8_t *at = get_bytes(cursor, sizeof greeting);
    expect(cursor, at && !memcmp(at, greeting, sizeof greeting));
}

static const char *get_text(struct cursor *cursor)
{
    const uint8_t *nul = cursor->left ? memchr(cursor->at, 0, cursor->left) : NULL;
    if (cursor->bad || !nul) {
        cursor->bad = true;
        return "";
    }
    return (const char *)get_bytes(cursor, (size_t)(nul - cursor->at) + 1);
}

static struct agent_strings get_strings(struct cursor *cursor, uint32_t count)
{
    struct agent_strings strings = {.bytes = (const char *)cursor->at};
    expect(cursor, count <= AGENT_STRINGS_MAX);
    for (; strings.count < count && !cursor->bad; strings.count++)
        get_text(cursor);
    strings.size = (size_t)(cursor->at - (const uint8_t *)strings.bytes);
    return strings;
}

static void get_exec(struct cursor *cursor, struct agent_message *message)
{
    message->exec.flags = get_u32(cursor);
    message->exec.columns = get_u16(cursor);
    message->exec.rows = get_u16(cursor);
    message->exec.window = get_u32(cursor);
    uint32_t argc = get_u32(cursor), envc = get_u32(cursor);
    message->exec.cwd = get_text(cursor);
    message->exec.argv = get_strings(cursor, argc);
    message->exec.env = get_strings(cursor, envc);
    expect(cursor, argc >= 1 && !(message->exec.flags & ~(uint32_t)AGENT_EXEC_TTY) &&
                       message->exec.window <= AGENT_WINDOW_MAX);
}

static void get_data(struct cursor *cursor, struct agent_message *message)
{
    message->data.length = cursor->left;
    message->data.bytes = get_bytes(cursor, cursor->left);
    expect(cursor, message->type == AGENT_STDIN || message->data.length > 0);
}

static void get_window(struct cursor *cursor, struct agent_message *message)
{
    uint32_t flow = get_u32(cursor);
    message->window.bytes = get_u32(cursor);
    expect(cursor, flow < AGENT_FLOW_MAX && message->window.bytes <= AGENT_WINDOW_MAX);
    message->window.flow = (enum agent_flow)flow;
}

static void get_exit(struct cursor *cursor, struct agent_message *message)
{
    uint32_t signaled = get_u32(cursor);
    message->exit.signaled = signaled;
    message->exit.value = get_u32(cursor);
    expect(cursor, signaled <= 1 && message->exit.value <= 255);
}

static void get_shutdown(struct cursor *cursor, struct agent_message *message)
{
    uint32_t how = get_u32(cursor);
    expect(cursor, how < AGENT_SHUTDOWN_MAX);
    message->shutdown.how = (enum agent_shutdown)how;
}

/* Letters, digits, '.', '_' and '-': nothing that a file or a shell would take for more than a
 * name.
 */
static bool names_host(const char *text)
{
    return strlen(text) <= AGENT_HOSTNAME_MAX &&
           text[strspn(
               text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")] == '\0';
}

static void get_card(struct cursor *cursor, struct agent_card *card)
{
    static const uint8_t none[sizeof card->to];
    const uint8_t *from = get_bytes(cursor, sizeof card->from);
    const uint8_t *to = get_bytes(cursor, sizeof card->to);
    uint16_t renew = get_u16(cursor);
    if (cursor->bad)
        return;
    memcpy(card->from, from, sizeof card->from);
    memcpy(card->to, to, sizeof card->to);
    card->renew = renew;
    expect(cursor, renew <= 1 && !(to[0] & 1) && memcmp(to, none, sizeof none) != 0);
}

static void get_identity(struct cursor *cursor, struct agent_message *message)
{
    message->identity.flags = get_u32(cursor);
    message->identity.time = get_u64(cursor);
    const uint8_t *seed = get_bytes(cursor, AGENT_SEED_SIZE);
    if (seed)
        memcpy(message->identity.seed, seed, AGENT_SEED_SIZE);
    uint32_t count = get_u32(cursor);
    expect(cursor, count <= AGENT_CARDS_MAX);
    for (uint32_t i = 0; i < count && !cursor->bad; i++)
        get_card(cursor, &message->identity.cards[i]);
    message->identity.card_count = count;
    message->identity.hostname = get_text(cursor);
    expect(cursor, !(message->identity.flags & ~(uint32_t)AGENT_IDENTITY_ALL) &&
                       message->identity.time <= INT64_MAX &&
                       names_host(message->identity.hostname));
}

static void get_payload(struct cursor *cursor, struct agent_message *message)
{
    switch (message->type) {
    case AGENT_HELLO:
        get_greeting(cursor);
        message->hello.version = get_u32(cursor);
        message->hello.nonce = get_u64(cursor);
        break;
    case AGENT_WELCOME:
        get_greeting(cursor);
        message->welcome.version = get_u32(cursor);
        message->welcome.nonce = get_u64(cursor);
        message->welcome.uptime = get_u64(cursor);
        message->welcome.strings = get_strings(cursor, 2);
        break;
    case AGENT_EXEC: get_exec(cursor, message); break;
    case AGENT_STARTED:
        message->started.pid = get_u32(cursor);
        message->started.window = get_u32(cursor);
        expect(cursor, message->started.window <= AGENT_WINDOW_MAX);
        break;
    case AGENT_FAILED:
        message->failed.error = get_u32(cursor);
        message->failed.text = get_text(cursor);
        break;
    case AGENT_STDIN:
    case AGENT_STDOUT:
    case AGENT_STDERR: get_data(cursor, message); break;
    case AGENT_WINDOW_GRANT: get_window(cursor, message); break;
    case AGENT_SIGNAL:
        message->signal.number = get_u32(cursor);
        expect(cursor, message->signal.number >= 1 && message->signal.number <= 64);
        break;
    case AGENT_RESIZE:
        message->resize.columns = get_u16(cursor);
        message->resize.rows = get_u16(cursor);
        break;
    case AGENT_EXIT: get_exit(cursor, message); break;
    case AGENT_SHUTDOWN: get_shutdown(cursor, message); break;
    case AGENT_PING:
    case AGENT_PONG: message->ping.token = get_u64(cursor); break;
    case AGENT_PUSH:
        message->push.mode = get_u32(cursor);
        message->push.path = get_text(cursor);
        expect(cursor, message->push.mode <= AGENT_MODE_MAX && *message->push.path);
        break;
    case AGENT_PULL:
        message->pull.window = get_u32(cursor);
        message->pull.path = get_text(cursor);
        expect(cursor, message->pull.window <= AGENT_WINDOW_MAX && *message->pull.path);
        break;
    case AGENT_FILE:
        message->file.mode = get_u32(cursor);
        message->file.size = get_u64(cursor);
        expect(cursor, message->file.mode <= AGENT_MODE_MAX);
        break;
    case AGENT_CLOCK: message->clock.time = get_u64(cursor); break;
    case AGENT_ASK: break;
    case AGENT_INFO: message->info.strings = get_strings(cursor, get_u32(cursor)); break;
    case AGENT_IDENTITY: get_identity(cursor, message); break;
    case AGENT_TYPE_MAX: cursor->bad = true;
    }
    expect(cursor, cursor->left == 0);
}

int agent_decode(const uint8_t *bytes, size_t length, struct agent_message *ret_message,
                 struct err *err)
{
    if (memcmp(bytes, magic, min(length, sizeof magic)) != 0)
        return err_set(err, -EPROTO, "no frame begins here");
    if (length < AGENT_HEADER_SIZE)
        return 0;
    uint16_t type = le16_read(bytes + HEADER_TYPE);
    uint32_t size = le32_read(bytes + HEADER_LENGTH);
    if (type < AGENT_HELLO || type >= AGENT_TYPE_MAX || le16_read(bytes + HEADER_ZERO) != 0)
        return err_set(err, -EPROTO, "unknown message %u", type);
    if (size > AGENT_PAYLOAD_MAX)
        return err_set(err, -EPROTO, "a message of %u bytes", size);
    if (length - AGENT_HEADER_SIZE < size)
        return 0;
    struct agent_message message = {
        .type = (enum agent_type)type,
        .stream = le32_read(bytes + HEADER_STREAM),
    };
    struct cursor cursor = {.at = bytes + AGENT_HEADER_SIZE, .left = size};
    get_payload(&cursor, &message);
    if (cursor.bad)
        return err_set(err, -EPROTO, "malformed %s", agent_type_name(message.type));
    *ret_message = message;
    return AGENT_HEADER_SIZE + (int)size;
}

/* --- reading a stream --- */

uint8_t *agent_reader_space(struct agent_reader *reader, size_t *ret_size)
{
    if (reader->start == reader->end)
        reader->start = reader->end = 0;
    /* Moving only what is left of one frame, and only when less than a frame fits behind it. */
    if (sizeof reader->bytes - reader->end < AGENT_HEADER_SIZE + AGENT_PAYLOAD_MAX) {
        memmove(reader->bytes, reader->bytes + reader->start, reader->end - reader->start);
        reader->end -= reader->start;
        reader->start = 0;
    }
    *ret_size = sizeof reader->bytes - reader->end;
    return reader->bytes + reader->end;
}

void agent_reader_filled(struct agent_reader *reader, size_t length)
{
    assert(length <= sizeof reader->bytes - reader->end);
    reader->end += length;
}

/* Skips to the next byte at which a frame could begin. */
static void skip_to_magic(struct agent_reader *reader)
{
    const uint8_t *at = reader->bytes + reader->start;
    const uint8_t *found = memchr(at, magic[0], reader->end - reader->start);
    reader->start = found ? (size_t)(found - reader->bytes) : reader->end;
}

/* An unsynchronised reader believes only a greeting, and judges a possible one by as many bytes as
 * are there, so that it does not wait for a large frame that is none. True = skip this byte. */
static bool no_greeting(const uint8_t *bytes, size_t length)
{
    if (length >= AGENT_HEADER_SIZE) {
        uint16_t type = le16_read(bytes + HEADER_TYPE);
        if ((type != AGENT_HELLO && type != AGENT_WELCOME) ||
            le32_read(bytes + HEADER_LENGTH) > 1024)
            return true;
        size_t there = min(length - AGENT_HEADER_SIZE, sizeof greeting);
        return memcmp(bytes + AGENT_HEADER_SIZE, greeting, there) != 0;
    }
    return false;
}

int agent_reader_next(struct agent_reader *reader, struct agent_message *ret_message)
{
    while (reader->start < reader->end) {
        const uint8_t *at = reader->bytes + reader->start;
        size_t length = reader->end - reader->start;
        int r = -EPROTO;
        if (reader->synchronised || !no_greeting(at, length))
            r = agent_decode(at, length, ret_message, NULL);
        if (r == 0)
            return 0;
        if (r > 0) {
            reader->start += (size_t)r;
            reader->synchronised = true;
            return 1;
        }
        reader->synchronised = false;
        reader->start++;
        skip_to_magic(reader);
    }
    return 0;
}
