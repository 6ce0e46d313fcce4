/*
 * agent.h: the messages between `lodge` and `lodge-agent`, the exec channel (docs/exec-channel.md).
 *
 * The channel is one byte stream: a virtio-console port named AGENT_PORT_NAME, or a connection to
 * the guest's vsock port AGENT_VSOCK_PORT. Both ends send frames: a 16-byte header (magic, type,
 * stream, length; little-endian) and at most AGENT_PAYLOAD_MAX bytes. A stream is one command; the
 * host numbers it.
 *
 *     host                                agent
 *      |-- HELLO (version, nonce) -------->|   ends what an earlier session left
 *      |<- WELCOME (version, nonce, ...) --|   everything before it is from an earlier session
 *      |-- EXEC 1 (argv, window) --------->|
 *      |<- STARTED 1 (window) -------------|   or FAILED 1 (errno, text)
 *      |-- STDIN 1 / WINDOW 1 ------------>|   an empty STDIN is end of file
 *      |<- STDOUT 1, STDERR 1, WINDOW 1 ---|
 *      |-- SIGNAL 1, RESIZE 1 ------------>|
 *      |<- EXIT 1 -------------------------|   last frame of the stream, after all its output
 *
 * Files go by streams too, and what is asked of the guest as a whole is one:
 *
 *      |-- PUSH 2 (mode, path) --------->|   then as with EXEC: STARTED, STDIN, EXIT or FAILED
 *      |-- PULL 3 (window, path) ------->|   FILE, then STDOUT, EXIT or FAILED
 *      |-- CLOCK 4 (time) -------------->|   EXIT or FAILED
 *      |-- ASK 5 ----------------------->|   INFO
 *      |-- IDENTITY 6 (seed, names) ---->|   EXIT or FAILED; since version 3
 *
 * An agent answers HELLO with the lower of both versions, and the host keeps to that.
 *
 * Flow control is by credit, for each stream and each of its three byte flows: who receives grants
 * bytes with WINDOW, who sends stays within them. So neither end ever has to stop reading the
 * channel, and a SIGNAL or EXIT cannot be stuck behind data that nobody takes.
 *
 * A `struct agent_reader` cuts a stream into messages. It starts unsynchronised, and becomes so
 * again at a malformed frame: then it skips bytes until a HELLO or WELCOME that is whole. Before it
 * greets a peer that may hold half a frame of an earlier session, a host sends agent_put_padding(),
 * which completes such a frame and is skipped otherwise.
 *
 * Ownership: a decoded message points into the bytes it was decoded from. Pure but for memory; any
 * thread, one reader or writer by one thread at a time.
 *
 * Errors: -EPROTO for malformed bytes, -EMSGSIZE for a message that does not fit a frame, -ENOMEM,
 * -ENOBUFS when a writer would hold more than AGENT_WRITER_MAX bytes.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AGENT_PORT_NAME "org.lodge.agent"

enum {
    AGENT_VERSION = 3,
    AGENT_VERSION_MIN = 2,      /* what a host still speaks to */
    AGENT_VERSION_IDENTITY = 3, /* the first that knows IDENTITY */
    AGENT_VSOCK_PORT = 1024,
    AGENT_HEADER_SIZE = 16,
    AGENT_PAYLOAD_MAX = 64 * 1024 - AGENT_HEADER_SIZE,
    AGENT_DATA_MAX = 32 * 1024 - AGENT_HEADER_SIZE, /* of STDIN, STDOUT, STDERR: what senders use */
    AGENT_WINDOW = 256 * 1024,                      /* what receivers grant at first */
    AGENT_WINDOW_MAX = 1 << 30,
    AGENT_WRITER_MAX = 4 << 20,
    AGENT_STRINGS_MAX = 4096, /* of argv, and of env */
    AGENT_MODE_MAX = 07777,
    AGENT_SEED_SIZE = 64,
    AGENT_CARDS_MAX = 8,
    AGENT_HOSTNAME_MAX = 64, /* as Linux has it */
};

enum agent_type {
    AGENT_HELLO = 1,
    AGENT_WELCOME,
    AGENT_EXEC,
    AGENT_STARTED,
    AGENT_FAILED,
    AGENT_STDIN,
    AGENT_STDOUT,
    AGENT_STDERR,
    AGENT_WINDOW_GRANT,
    AGENT_SIGNAL,
    AGENT_RESIZE,
    AGENT_EXIT,
    AGENT_SHUTDOWN,
    AGENT_PING,
    AGENT_PONG,
    AGENT_PUSH,
    AGENT_PULL,
    AGENT_FILE,
    AGENT_CLOCK,
    AGENT_ASK,
    AGENT_INFO,
    AGENT_IDENTITY,
    AGENT_TYPE_MAX
};

enum agent_flow { AGENT_FLOW_STDIN, AGENT_FLOW_STDOUT, AGENT_FLOW_STDERR, AGENT_FLOW_MAX };
enum agent_shutdown { AGENT_POWER_OFF, AGENT_REBOOT, AGENT_SHUTDOWN_MAX };
enum { AGENT_EXEC_TTY = 1 << 0 };

/* Which of the guest's names it is to make anew, where it has them. */
enum {
    AGENT_IDENTITY_MACHINE_ID = 1 << 0, /* /etc/machine-id */
    AGENT_IDENTITY_SSH_KEYS = 1 << 1,   /* host keys of sshd(8) */
    AGENT_IDENTITY_ALL = AGENT_IDENTITY_MACHINE_ID | AGENT_IDENTITY_SSH_KEYS,
};

/* A network card that is to have another address. */
struct agent_card {
    uint8_t from[6], to[6];
    bool renew; /* its network is shared: what it has as IPv4 addresses is another guest's */
};

/* `count` strings, each ended by NUL, one after the other. */
struct agent_strings {
    const char *bytes;
    size_t size; /* with all NULs */
    unsigned count;
};

struct agent_message {
    enum agent_type type;
    uint32_t stream; /* 0 where the message is about no command */
    union {
        struct {
            uint32_t version;
            uint64_t nonce; /* the host's; WELCOME repeats it */
        } hello;
        struct {
            uint32_t version;
            uint64_t nonce;
            uint64_t uptime; /* ns since the guest's kernel started, when the agent did */
            struct agent_strings strings; /* agent's version, kernel release */
        } welcome;
        struct {
            uint32_t flags; /* AGENT_EXEC_TTY */
            uint16_t columns, rows;
            uint32_t window; /* granted for STDOUT, and as much for STDERR */
            const char *cwd; /* "" = the agent's choice */
            struct agent_strings argv, env;
        } exec;
        struct {
            uint32_t pid, window; /* the window granted for STDIN */
        } started;
        struct {
            uint32_t error; /* errno as Linux numbers it */
            const char *text;
        } failed;
        struct {
            const uint8_t *bytes;
            size_t length;
        } data; /* STDIN, STDOUT, STDERR */
        struct {
            enum agent_flow flow;
            uint32_t bytes;
        } window;
        struct {
            uint32_t number; /* 1..64 */
        } signal;
        struct {
            uint16_t columns, rows;
        } resize;
        struct {
            bool signaled;
            uint32_t value; /* exit status 0..255, or the signal */
        } exit;
        struct {
            enum agent_shutdown how;
        } shutdown;
        struct {
            uint64_t token;
        } ping; /* PING, PONG */
        struct {
            uint32_t mode; /* permissions of the new file */
            const char *path;
        } push;
        struct {
            uint32_t window; /* granted for STDOUT */
            const char *path;
        } pull;
        struct {
            uint32_t mode;
            uint64_t size; /* as it was; what follows may be more or less */
        } file;
        struct {
            uint64_t time; /* ns since 1970 */
        } clock;
        struct {
            struct agent_strings strings; /* "NAME=VALUE", some names more than once */
        } info;
        struct {
            uint32_t flags; /* AGENT_IDENTITY_... */
            uint64_t time;  /* ns since 1970; 0 = the guest's clock is right */
            uint8_t seed[AGENT_SEED_SIZE];
            uint32_t card_count;
            struct agent_card cards[AGENT_CARDS_MAX];
            const char *hostname; /* "" = as it is */
        } identity;
    };
};

const char *agent_type_name(enum agent_type type);

/* The first string of `strings`, or NULL when it is empty; then, given one, the one after it. */
const char *agent_strings_next(const struct agent_strings *strings, const char *previous);

/* Bytes that wait to be sent. Zeroed is empty; agent_writer_free() empties it. */
struct agent_writer {
    uint8_t *bytes;
    size_t start, end, capacity; /* [start, end) waits */
};

int agent_put(struct agent_writer *writer, const struct agent_message *message, struct err *err);
int agent_put_padding(struct agent_writer *writer, struct err *err);
void agent_writer_free(struct agent_writer *writer);

/* What waits, and that `length` bytes of it were sent. */
static inline const uint8_t *agent_writer_bytes(const struct agent_writer *writer,
                                                size_t *ret_length)
{
    *ret_length = writer->end - writer->start;
    return writer->bytes + writer->start;
}
void agent_writer_sent(struct agent_writer *writer, size_t length);

struct agent_reader {
    bool synchronised;
    size_t start, end;
    uint8_t bytes[2 * (AGENT_HEADER_SIZE + AGENT_PAYLOAD_MAX)];
};

/* Room for at least one byte, once agent_reader_next() has returned 0: read there, then say how
 * many bytes came. */
uint8_t *agent_reader_space(struct agent_reader *reader, size_t *ret_size);
void agent_reader_filled(struct agent_reader *reader, size_t length);

/* 1 and a message, which lives until the next call of any of the three; 0 when more bytes are
 * needed. */
int agent_reader_next(struct agent_reader *reader, struct agent_message *ret_message);

/* One frame at the start of `bytes`: its length in bytes, 0 when it is not all there yet, or
 * -EPROTO. */
int agent_decode(const uint8_t *bytes, size_t length, struct agent_message *ret_message,
                 struct err *err);
