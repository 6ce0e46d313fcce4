#include "base/bytes.h"
#include "wire/agent.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const struct agent_message messages[] = {
    {AGENT_HELLO, 0, .hello = {1, 0x1122334455667788}},
    {AGENT_WELCOME, 0, .welcome = {1, 7, 123456789, {"0.1.0\0006.1.0", 12, 2}}},
    {AGENT_EXEC, 1,
     .exec = {AGENT_EXEC_TTY, 80, 25, 4096, "/tmp", {"sh\0-c\0", 6, 2}, {"A=1", 4, 1}}},
    {AGENT_EXEC, 2, .exec = {0, 0, 0, 0, "", {"\0", 1, 1}, {"", 0, 0}}},
    {AGENT_STARTED, 1, .started = {4711, 65536}},
    {AGENT_FAILED, 1, .failed = {ENOENT, "no such file"}},
    {AGENT_STDIN, 1, .data = {(const uint8_t *)"a\0\xf7Lag", 6}},
    {AGENT_STDIN, 1, .data = {NULL, 0}},
    {AGENT_STDOUT, 0xffffffff, .data = {(const uint8_t *)"x", 1}},
    {AGENT_STDERR, 1, .data = {(const uint8_t *)"y", 1}},
    {AGENT_WINDOW_GRANT, 1, .window = {AGENT_FLOW_STDERR, AGENT_WINDOW_MAX}},
    {AGENT_SIGNAL, 1, .signal = {15}},
    {AGENT_RESIZE, 1, .resize = {132, 50}},
    {AGENT_EXIT, 1, .exit = {true, 9}},
    {AGENT_EXIT, 1, .exit = {false, 255}},
    {AGENT_SHUTDOWN, 0, .shutdown = {AGENT_REBOOT}},
    {AGENT_PING, 0, .ping = {42}},
    {AGENT_PONG, 0, .ping = {42}},
    {AGENT_PUSH, 2, .push = {0644, "/etc/motd"}},
    {AGENT_PULL, 3, .pull = {65536, "/proc/version"}},
    {AGENT_FILE, 3, .file = {04755, UINT64_MAX}},
    {AGENT_CLOCK, 4, .clock = {1700000000123456789}},
    {AGENT_ASK, 5, .ping = {0}},
    {AGENT_INFO, 5, .info = {{"kernel=6.1\0address=lo 127.0.0.1", 32, 2}}},
    {AGENT_IDENTITY, 6, .identity = {.seed = {1, [63] = 2}, .hostname = ""}},
    {AGENT_IDENTITY, 6,
     .identity = {.flags = AGENT_IDENTITY_ALL,
                  .time = INT64_MAX,
                  .card_count = 2,
                  .cards = {{{2, 1}, {2, 2}, true}, {{2, 3}, {0, 4}, false}},
                  .hostname = "web-1.example_x"}},
};

static void same_strings(struct agent_strings a, struct agent_strings b)
{
    assert_int_equal(a.count, b.count);
    assert_int_equal(a.size, b.size);
    assert_memory_equal(a.bytes, b.bytes, a.size);
}

static void same_message(const struct agent_message *a, const struct agent_message *b)
{
    assert_int_equal(a->type, b->type);
    assert_int_equal(a->stream, b->stream);
    switch (a->type) {
    case AGENT_WELCOME:
        assert_int_equal(a->welcome.uptime, b->welcome.uptime);
        assert_int_equal(a->welcome.nonce, b->welcome.nonce);
        same_strings(a->welcome.strings, b->welcome.strings);
        break;
    case AGENT_EXEC:
        assert_int_equal(a->exec.flags, b->exec.flags);
        assert_int_equal(a->exec.columns, b->exec.columns);
        assert_int_equal(a->exec.rows, b->exec.rows);
        assert_int_equal(a->exec.window, b->exec.window);
        assert_string_equal(a->exec.cwd, b->exec.cwd);
        same_strings(a->exec.argv, b->exec.argv);
        same_strings(a->exec.env, b->exec.env);
        break;
    case AGENT_FAILED:
        assert_int_equal(a->failed.error, b->failed.error);
        assert_string_equal(a->failed.text, b->failed.text);
        break;
    case AGENT_STDIN:
    case AGENT_STDOUT:
    case AGENT_STDERR:
        assert_int_equal(a->data.length, b->data.length);
        if (a->data.length)
            assert_memory_equal(a->data.bytes, b->data.bytes, a->data.length);
        break;
    case AGENT_HELLO:
        assert_int_equal(a->hello.version, b->hello.version);
        assert_int_equal(a->hello.nonce, b->hello.nonce);
        break;
    case AGENT_STARTED:
        assert_int_equal(a->started.pid, b->started.pid);
        assert_int_equal(a->started.window, b->started.window);
        break;
    case AGENT_WINDOW_GRANT:
        assert_int_equal(a->window.flow, b->window.flow);
        assert_int_equal(a->window.bytes, b->window.bytes);
        break;
    case AGENT_SIGNAL: assert_int_equal(a->signal.number, b->signal.number); break;
    case AGENT_RESIZE:
        assert_int_equal(a->resize.columns, b->resize.columns);
        assert_int_equal(a->resize.rows, b->resize.rows);
        break;
    case AGENT_EXIT:
        assert_int_equal(a->exit.signaled, b->exit.signaled);
        assert_int_equal(a->exit.value, b->exit.value);
        break;
    case AGENT_SHUTDOWN: assert_int_equal(a->shutdown.how, b->shutdown.how); break;
    case AGENT_PUSH:
        assert_int_equal(a->push.mode, b->push.mode);
        assert_string_equal(a->push.path, b->push.path);
        break;
    case AGENT_PULL:
        assert_int_equal(a->pull.window, b->pull.window);
        assert_string_equal(a->pull.path, b->pull.path);
        break;
    case AGENT_FILE:
        assert_int_equal(a->file.mode, b->file.mode);
        assert_int_equal(a->file.size, b->file.size);
        break;
    case AGENT_CLOCK: assert_int_equal(a->clock.time, b->clock.time); break;
    case AGENT_INFO: same_strings(a->info.strings, b->info.strings); break;
    case AGENT_IDENTITY:
        assert_int_equal(a->identity.flags, b->identity.flags);
        assert_int_equal(a->identity.time, b->identity.time);
        assert_memory_equal(a->identity.seed, b->identity.seed, AGENT_SEED_SIZE);
        assert_int_equal(a->identity.card_count, b->identity.card_count);
        for (uint32_t i = 0; i < a->identity.card_count; i++) {
            assert_memory_equal(a->identity.cards[i].from, b->identity.cards[i].from, 6);
            assert_memory_equal(a->identity.cards[i].to, b->identity.cards[i].to, 6);
            assert_int_equal(a->identity.cards[i].renew, b->identity.cards[i].renew);
        }
        assert_string_equal(a->identity.hostname, b->identity.hostname);
        break;
    default: assert_int_equal(a->ping.token, b->ping.token);
    }
}

static void feed(struct agent_reader *reader, const uint8_t *bytes, size_t length)
{
    size_t room;
    uint8_t *space = agent_reader_space(reader, &room);
    assert_true(room >= length);
    memcpy(space, bytes, length);
    agent_reader_filled(reader, length);
}

static void messages_go_round_byte_by_byte(void **state)
{
    struct agent_writer writer = {0};
    struct agent_reader *reader = calloc(1, sizeof *reader);
    struct agent_message message;
    for (size_t i = 0; i < ARRAY_LEN(messages); i++) {
        size_t length;
        assert_int_equal(agent_put(&writer, &messages[i], NULL), 0);
        const uint8_t *bytes = agent_writer_bytes(&writer, &length);
        for (size_t at = 0; at < length; at++) {
            assert_int_equal(agent_reader_next(reader, &message), 0);
            feed(reader, bytes + at, 1);
        }
        assert_int_equal(agent_reader_next(reader, &message), 1);
        same_message(&messages[i], &message);
        agent_writer_sent(&writer, length);
    }
    agent_writer_free(&writer);
    free(reader);
}

static void the_header_is_little_endian(void **state)
{
    static const uint8_t expected[] = {0xf7, 'L', 'a', 'g', 10, 0, 0,  0, 5, 0,
                                       0,    0,   4,   0,   0,  0, 15, 0, 0, 0};
    struct agent_writer writer = {0};
    size_t length;
    agent_put(&writer, &(struct agent_message){AGENT_SIGNAL, 5, .signal = {15}}, NULL);
    const uint8_t *bytes = agent_writer_bytes(&writer, &length);
    assert_int_equal(length, sizeof expected);
    assert_memory_equal(bytes, expected, sizeof expected);
    agent_writer_free(&writer);
}

static void malformed_frames_are_refused(void **state)
{
    static const struct {
        size_t at;
        uint8_t byte;
    } damage[] = {{0, 0}, {4, 0}, {4, 99}, {6, 1}, {12, 5}, {12, 3}, {16, 0}, {16, 65}};
    for (size_t i = 0; i < ARRAY_LEN(damage); i++) {
        uint8_t frame[24] = {0xf7, 'L', 'a', 'g', 10, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 0, 15};
        struct agent_message message;
        struct err err = {0};
        assert_int_equal(agent_decode(frame, 20, &message, &err), 20);
        frame[damage[i].at] = damage[i].byte;
        assert_int_equal(agent_decode(frame, sizeof frame, &message, &err), -EPROTO);
        assert_true(*err.text);
    }
    /* A count of strings that are not there. */
    struct agent_writer writer = {0};
    struct agent_message message = messages[3];
    size_t length;
    message.exec.argv.count = 2;
    agent_put(&writer, &message, NULL);
    const uint8_t *bytes = agent_writer_bytes(&writer, &length);
    assert_int_equal(agent_decode(bytes, length, &message, NULL), -EPROTO);
    agent_writer_free(&writer);
}

/* What an agent writes into files and gives to its kernel is checked before. */
static void an_identity_that_makes_no_sense_is_refused(void **state)
{
    const struct agent_message good = {
        AGENT_IDENTITY, 1, .identity = {.card_count = 1, .cards = {{{2}, {2}}}, .hostname = "web"}};
    static const char *const names[] = {"a b", "a\nb", "a/b", "\xc3\xa9", "$(x)"};
    char longer[AGENT_HOSTNAME_MAX + 2] = "";
    memset(longer, 'x', AGENT_HOSTNAME_MAX + 1);
    for (size_t i = 0; i < ARRAY_LEN(names) + 7; i++) {
        struct agent_message message = good;
        struct agent_writer writer = {0};
        struct err err = {0};
        size_t length, bad = i - ARRAY_LEN(names);
        if (i < ARRAY_LEN(names))
            message.identity.hostname = names[i];
        else if (bad == 0)
            message.identity.hostname = longer;
        else if (bad == 1)
            message.identity.flags = AGENT_IDENTITY_ALL + 1;
        else if (bad == 2)
            message.identity.time = UINT64_MAX;
        else if (bad == 3)
            message.identity.cards[0].to[0] = 1; /* a group's address */
        else if (bad == 4)
            message.identity.cards[0].to[0] = 0; /* none */
        assert_int_equal(agent_put(&writer, &message, NULL), 0);
        size_t at = AGENT_HEADER_SIZE + 4 + 8 + AGENT_SEED_SIZE;
        if (bad == 5)
            writer.bytes[at] = AGENT_CARDS_MAX + 1;
        else if (bad == 6)
            writer.bytes[at + 4 + 12] = 2; /* a flag */
        const uint8_t *bytes = agent_writer_bytes(&writer, &length);
        assert_int_equal(agent_decode(bytes, length, &message, &err), -EPROTO);
        agent_writer_free(&writer);
    }
    struct agent_writer writer = {0};
    struct agent_message message;
    size_t length;
    assert_int_equal(agent_put(&writer, &good, NULL), 0);
    const uint8_t *bytes = agent_writer_bytes(&writer, &length);
    assert_int_equal(agent_decode(bytes, length, &message, NULL), length);
    agent_writer_free(&writer);
}

static void a_message_too_large_is_refused_whole(void **state)
{
    static uint8_t data[AGENT_PAYLOAD_MAX + 1];
    struct agent_writer writer = {0};
    struct agent_message message = {AGENT_STDOUT, 1, .data = {data, sizeof data}};
    struct err err = {0};
    size_t length;
    assert_int_equal(agent_put(&writer, &message, &err), -EMSGSIZE);
    agent_writer_bytes(&writer, &length);
    assert_int_equal(length, 0);
    message.data.length = AGENT_PAYLOAD_MAX;
    int r = 0, count = 0;
    while (r == 0 && ++count < 1000)
        r = agent_put(&writer, &message, &err);
    assert_int_equal(r, -ENOBUFS);
    agent_writer_bytes(&writer, &length);
    assert_true(length <= AGENT_WRITER_MAX && length > AGENT_WRITER_MAX / 2);
    agent_writer_free(&writer);
}

/* The peer holds the first `cut` bytes of a large frame of an earlier session. */
static void greets_after(size_t cut)
{
    static uint8_t data[AGENT_PAYLOAD_MAX];
    struct agent_reader *reader = calloc(1, sizeof *reader);
    struct agent_writer writer = {0};
    struct agent_message message;
    size_t length;
    memset(data, 0xf7, sizeof data);
    agent_put(&writer, &messages[0], NULL);
    agent_put(&writer, &(struct agent_message){AGENT_STDIN, 1, .data = {data, sizeof data}}, NULL);
    const uint8_t *bytes = agent_writer_bytes(&writer, &length);
    size_t hello = length - AGENT_HEADER_SIZE - AGENT_PAYLOAD_MAX;
    feed(reader, bytes, hello);
    assert_int_equal(agent_reader_next(reader, &message), 1);
    agent_writer_sent(&writer, hello);
    feed(reader, bytes + hello, cut);
    assert_int_equal(agent_reader_next(reader, &message), 0);
    agent_writer_sent(&writer, length - hello);

    struct agent_message fresh = {AGENT_HELLO, 0, .hello = {1, 99}};
    agent_put_padding(&writer, NULL);
    agent_put(&writer, &fresh, NULL);
    bytes = agent_writer_bytes(&writer, &length);
    int hellos = 0;
    for (size_t at = 0; at < length;) {
        size_t step = min(length - at, (size_t)1000);
        feed(reader, bytes + at, step);
        at += step;
        while (agent_reader_next(reader, &message) > 0)
            if (message.type == AGENT_HELLO) {
                same_message(&fresh, &message);
                hellos++;
            }
    }
    assert_int_equal(hellos, 1);
    agent_writer_free(&writer);
    free(reader);
}

static void a_reader_finds_the_next_greeting(void **state)
{
    static const size_t cuts[] = {1, 3, 4, 15, 16, 17, 1000, AGENT_PAYLOAD_MAX + 15};
    for (size_t i = 0; i < ARRAY_LEN(cuts); i++)
        greets_after(cuts[i]);
}

static void an_unsynchronised_reader_believes_only_a_greeting(void **state)
{
    struct agent_reader *reader = calloc(1, sizeof *reader);
    struct agent_writer writer = {0};
    struct agent_message message;
    size_t length;
    agent_put(&writer, &messages[11], NULL);
    agent_put(&writer, &messages[16], NULL);
    const uint8_t *bytes = agent_writer_bytes(&writer, &length);
    feed(reader, bytes, length);
    assert_int_equal(agent_reader_next(reader, &message), 0);
    agent_writer_sent(&writer, length);
    agent_put(&writer, &messages[0], NULL);
    agent_put(&writer, &messages[11], NULL);
    bytes = agent_writer_bytes(&writer, &length);
    feed(reader, (const uint8_t *)"\xf7La\xf7Lag kernel noise \xf7", 21);
    feed(reader, bytes, length);
    assert_int_equal(agent_reader_next(reader, &message), 1);
    same_message(&messages[0], &message);
    assert_int_equal(agent_reader_next(reader, &message), 1);
    same_message(&messages[11], &message);
    agent_writer_free(&writer);
    free(reader);
}

static void strings_are_walked(void **state)
{
    struct agent_strings strings = {"a\0\0bc", 6, 3};
    const char *at = agent_strings_next(&strings, NULL);
    assert_string_equal(at, "a");
    at = agent_strings_next(&strings, at);
    assert_string_equal(at, "");
    at = agent_strings_next(&strings, at);
    assert_string_equal(at, "bc");
    assert_null(agent_strings_next(&strings, at));
    assert_null(agent_strings_next(&(struct agent_strings){0}, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_go_round_byte_by_byte),
        cmocka_unit_test(the_header_is_little_endian),
        cmocka_unit_test(malformed_frames_are_refused),
        cmocka_unit_test(an_identity_that_makes_no_sense_is_refused),
        cmocka_unit_test(a_message_too_large_is_refused_whole),
        cmocka_unit_test(a_reader_finds_the_next_greeting),
        cmocka_unit_test(an_unsynchronised_reader_believes_only_a_greeting),
        cmocka_unit_test(strings_are_walked),
    };
    return cmocka_run_group_tests_name("agent", tests, NULL, NULL);
}
