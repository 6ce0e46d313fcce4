/* The client of lodge-http, against servers of the test's own; and the messages between them. */
#include "disk/http.h"

#include "disk/http_cache.h"
#include "disk/http_wire.h"

#include "base/bytes.h"
#include "base/own.h"
#include "base/packet.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

enum { BLOCK = 4096, BLOCKS = 500, SIZE = BLOCKS * BLOCK - 1000, SLOTS = HTTP_SLOTS_MIN };

/* A lodge-http without a web server. */
struct server {
    int socket, cache;
    pthread_t thread;
    struct http_message welcome;
    atomic_uint fetches, blocks;
    unsigned fail_every; /* 0: never */
    int failure;
    bool junk;  /* answers nobody asked for come in between */
    bool mute;  /* ends instead of answering a FETCH */
    bool wrong; /* sends what is no message */
};

static uint8_t byte_at(uint64_t offset)
{
    return (uint8_t)(offset * 31 + (offset >> 12));
}

static void reply(struct server *server, const struct http_message *message, bool with_cache)
{
    uint8_t bytes[HTTP_MESSAGE_MAX];
    const int fds[] = {server->cache, server->cache}; /* one more than is wanted */
    packet_send(server->socket, bytes, http_encode(message, bytes), fds, with_cache ? 2 : 0, 0);
}

static void fetch(struct server *server, const struct http_message *wanted)
{
    struct http_message done = {.type = HTTP_DONE, .id = wanted->id};
    unsigned number = atomic_fetch_add(&server->fetches, 1) + 1;
    if (server->fail_every && number % server->fail_every == 0) {
        done.status = server->failure;
    } else {
        for (uint32_t i = 0; i < wanted->count; i++) {
            uint8_t bytes[BLOCK];
            for (unsigned at = 0; at < BLOCK; at++)
                bytes[at] = byte_at((wanted->block + i) * BLOCK + at);
            if (pwrite(server->cache, bytes, BLOCK, (off_t)wanted->slot[i] * BLOCK) != BLOCK)
                done.status = -EIO;
        }
        atomic_fetch_add(&server->blocks, wanted->count);
    }
    if (server->junk)
        reply(server, &(struct http_message){.type = HTTP_DONE, .id = wanted->id + 1000}, false);
    if (server->wrong)
        send(server->socket, "what is this", 12, MSG_NOSIGNAL);
    reply(server, &done, server->junk); /* a descriptor where none belongs */
}

static void *serve(void *opaque)
{
    struct server *server = opaque;
    uint8_t bytes[HTTP_MESSAGE_MAX];
    struct http_message message;
    ssize_t n;
    while ((n = recv(server->socket, bytes, sizeof bytes, 0)) > 0) {
        if (http_decode(bytes, (size_t)n, &message) < 0)
            break;
        if (message.type == HTTP_FETCH && server->mute)
            break;
        if (message.type == HTTP_FETCH) {
            fetch(server, &message);
            continue;
        }
        struct http_message welcome = server->welcome;
        welcome.id = message.id;
        if (server->junk)
            reply(server, &(struct http_message){.type = HTTP_DONE, .id = 5}, false);
        reply(server, &welcome, welcome.status == 0);
    }
    shutdown(server->socket, SHUT_RDWR);
    return NULL;
}

/* The client's end. */
static int start(struct server *server)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    server->socket = pair[1];
    server->cache = memfd_create("cache", MFD_CLOEXEC);
    assert_true(server->cache >= 0);
    if (!server->welcome.type)
        server->welcome = (struct http_message){
            .type = HTTP_WELCOME, .size = SIZE, .block_size = BLOCK, .slots = SLOTS};
    assert_int_equal(pthread_create(&server->thread, NULL, serve, server), 0);
    return pair[0];
}

static void stop(struct server *server)
{
    shutdown(server->socket, SHUT_RDWR);
    pthread_join(server->thread, NULL);
    close(server->socket);
    close(server->cache);
}

static struct file *open_it(struct server *server)
{
    struct file *file = NULL;
    struct err err = {0};
    if (http_open(start(server), "http://x/y", &file, &err) < 0)
        fail_msg("%s", err.text);
    return file;
}

static bool right(const uint8_t *bytes, uint64_t offset, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (bytes[i] != (offset + i < SIZE ? byte_at(offset + i) : 0))
            return false;
    return true;
}

static void bytes_come_from_anywhere(void **state)
{
    static uint8_t bytes[100000];
    struct server server = {.junk = true};
    struct file *file = open_it(&server);
    uint64_t length;
    assert_int_equal(file_length(file, &length), 0);
    assert_int_equal(length, SIZE);
    assert_true(file_is_remote(file));
    unsigned seed = 1;
    for (int i = 0; i < 300; i++) {
        seed = seed * 1103515245 + 12345;
        size_t offset = (seed >> 6) % (SIZE + 5000), size = (seed >> 3) % sizeof bytes;
        assert_int_equal(file_read_bytes(file, offset, bytes, size), 0);
        assert_true(right(bytes, offset, size));
    }
    assert_int_equal(file_write_bytes(file, 0, bytes, 1), -EROFS);
    assert_int_equal(file_zero(file, 0, 1, true), -EROFS);
    assert_int_equal(file_discard(file, 0, 1), -EROFS);
    assert_int_equal(file_truncate(file, 1), -ENOTSUP);
    file_free(file);
    stop(&server);
}

static void what_was_read_is_not_fetched_again(void **state)
{
    uint8_t bytes[10 * BLOCK];
    struct server server = {0};
    struct file *file = open_it(&server);
    for (int i = 0; i < 5; i++)
        assert_int_equal(file_read_bytes(file, 0, bytes, sizeof bytes), 0);
    assert_true(server.blocks <= 10 + HTTP_RUN_MAX);
    assert_true(server.fetches < 5); /* some at once, for who reads on and on */
    file_free(file);
    stop(&server);
}

struct reader {
    struct file *file;
    unsigned seed;
    int wanted; /* what may happen */
};

static void *read_about(void *opaque)
{
    struct reader *reader = opaque;
    static _Thread_local uint8_t bytes[3 * BLOCK];
    unsigned seed = reader->seed;
    for (int i = 0; i < 400; i++) {
        seed = seed * 1103515245 + 12345;
        uint64_t offset = (seed >> 6) % SIZE;
        int r = file_read_bytes(reader->file, offset, bytes, sizeof bytes);
        if (r < 0 ? r != reader->wanted : !right(bytes, offset, sizeof bytes))
            return NULL;
    }
    return reader;
}

static void many_read_at_once(struct server *server, int wanted)
{
    struct file *file = open_it(server);
    struct reader readers[12];
    pthread_t threads[12];
    bool good = true;
    for (unsigned i = 0; i < 12; i++) {
        readers[i] = (struct reader){file, i + 1, wanted};
        assert_int_equal(pthread_create(&threads[i], NULL, read_about, &readers[i]), 0);
    }
    for (unsigned i = 0; i < 12; i++) {
        void *done;
        pthread_join(threads[i], &done);
        good &= done != NULL;
    }
    assert_true(good);
    file_free(file);
    stop(server);
}

static void many_readers_share_a_small_cache(void **state)
{
    struct server server = {0};
    many_read_at_once(&server, 0);
    assert_true(server.blocks > SLOTS); /* it was too small for all */
}

static void a_failure_is_for_those_who_waited(void **state)
{
    struct server server = {.fail_every = 5, .failure = -EIO};
    many_read_at_once(&server, -EIO);
}

static void one_who_says_nothing_sensible_is_left(void **state)
{
    struct server server = {.wrong = true};
    uint8_t bytes[BLOCK];
    struct file *file = open_it(&server);
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < 3; i++)
        r = file_read_bytes(file, i * 40 * BLOCK, bytes, BLOCK);
    assert_int_equal(r, -EIO);
    file_free(file);
    stop(&server);
}

static void what_is_there_outlives_the_server(void **state)
{
    uint8_t bytes[BLOCK];
    struct server server = {0};
    struct file *file = open_it(&server);
    assert_int_equal(file_read_bytes(file, BLOCK, bytes, BLOCK), 0);
    shutdown(server.socket, SHUT_RDWR);
    assert_int_equal(file_read_bytes(file, 50 * BLOCK, bytes, BLOCK), -EIO);
    assert_int_equal(file_read_bytes(file, BLOCK, bytes, BLOCK), 0);
    assert_true(right(bytes, BLOCK, BLOCK));
    file_free(file);
    stop(&server);
}

static void a_changed_file_is_told_apart(void **state)
{
    uint8_t bytes[BLOCK];
    struct server server = {.fail_every = 2, .failure = -ESTALE};
    struct file *file = open_it(&server);
    assert_int_equal(file_read_bytes(file, BLOCK, bytes, BLOCK), 0);
    assert_int_equal(file_read_bytes(file, 50 * BLOCK, bytes, BLOCK), -ESTALE);
    file_free(file);
    stop(&server);
}

static void a_refusal_is_told(void **state)
{
    struct server server = {
        .welcome = {.type = HTTP_WELCOME, .status = -EOPNOTSUPP, .text = "no ranges"}};
    struct file *file;
    struct err err = {0};
    assert_int_equal(http_open(start(&server), "http://x/y", &file, &err), -EOPNOTSUPP);
    assert_string_equal(err.text, "disk 'http://x/y': no ranges");
    stop(&server);
}

static void a_server_that_is_gone_is_noticed(void **state)
{
    struct file *file;
    struct err err = {0};
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
    close(pair[1]);
    assert_int_equal(http_open(pair[0], "http://x/y", &file, &err), -EIO);
    struct server server = {.mute = true};
    many_read_at_once(&server, -EIO);
}

static void messages_are_what_they_were(void **state)
{
    const struct http_message messages[] = {
        {.type = HTTP_HELLO, .id = 1},
        {.type = HTTP_FETCH, .id = UINT64_MAX, .block = 77, .count = 3, .slot = {9, 8, 7}},
        {.type = HTTP_DONE, .id = 5, .status = -EIO},
        {.type = HTTP_WELCOME, .id = 6, .size = 1, .block_size = 4096, .slots = 32},
        {.type = HTTP_WELCOME, .id = 6, .status = -EIO, .text = "why"},
    };
    uint8_t bytes[HTTP_MESSAGE_MAX];
    struct http_message back;
    for (size_t i = 0; i < ARRAY_LEN(messages); i++) {
        size_t length = http_encode(&messages[i], bytes);
        assert_int_equal(http_decode(bytes, length, &back), 0);
        assert_memory_equal(&back, &messages[i], sizeof back);
        if (messages[i].type != HTTP_WELCOME) /* whose text may be shorter */
            for (size_t cut = 0; cut < length; cut++)
                if (messages[i].type != HTTP_FETCH || cut < 28 || cut % 4)
                    assert_int_equal(http_decode(bytes, cut, &back), -EBADMSG);
    }
}

static void senseless_messages_are_refused(void **state)
{
    const struct http_message messages[] = {
        {.type = HTTP_DONE, .status = 1},
        {.type = HTTP_DONE, .status = -100000},
        {.type = HTTP_WELCOME, .size = 0, .block_size = 4096, .slots = 32},
        {.type = HTTP_WELCOME, .size = UINT64_MAX, .block_size = 4096, .slots = 32},
        {.type = HTTP_WELCOME, .size = 1, .block_size = 4097, .slots = 32},
        {.type = HTTP_WELCOME, .size = 1, .block_size = 2048, .slots = 32},
        {.type = HTTP_WELCOME, .size = 1, .block_size = 1u << 31, .slots = 32},
        {.type = HTTP_WELCOME, .size = 1, .block_size = 4096, .slots = 31},
        {.type = HTTP_WELCOME, .size = 1, .block_size = 4096, .slots = UINT32_MAX},
        {.type = 9},
    };
    uint8_t bytes[HTTP_MESSAGE_MAX];
    struct http_message back;
    for (size_t i = 0; i < ARRAY_LEN(messages); i++)
        assert_int_equal(http_decode(bytes, http_encode(&messages[i], bytes), &back), -EBADMSG);
    size_t length = http_encode(&(struct http_message){.type = HTTP_FETCH, .count = 1}, bytes);
    assert_int_equal(http_decode(bytes, length, &back), 0);
    assert_int_equal(http_decode(bytes, 24 + 4 * (HTTP_RUN_MAX + 1), &back), -EBADMSG);
    bytes[3] = 1;
    assert_int_equal(http_decode(bytes, length, &back), -EBADMSG);
}

static void held_slots_keep_their_blocks(void **state)
{
    struct http_cache *cache;
    uint32_t slots[SLOTS], slot;
    assert_int_equal(http_cache_new(SLOTS, &cache), 0);
    assert_int_equal(http_cache_reserve(cache, 1, 0, SLOTS, slots), SLOTS);
    assert_int_equal(http_cache_reserve(cache, 2, 1000, 1, &slot), 0); /* all are coming */
    assert_true(http_cache_done(cache, 1, 0));
    assert_false(http_cache_done(cache, 1, 0));
    for (unsigned i = 0; i + 1 < SLOTS; i++)
        http_cache_hold(cache, slots[i]);
    assert_int_equal(http_cache_reserve(cache, 2, 1000, 5, &slot), 1);
    assert_int_equal(slot, slots[SLOTS - 1]);
    assert_int_equal(http_cache_find(cache, SLOTS - 1, &slot), HTTP_CACHE_NONE);
    assert_int_equal(http_cache_find(cache, 1000, &slot), HTTP_CACHE_COMING);
    assert_true(http_cache_done(cache, 2, -EIO));
    assert_int_equal(http_cache_find(cache, 1000, &slot), HTTP_CACHE_NONE);
    assert_int_equal(http_cache_failure(cache, slots[SLOTS - 1], 2), -EIO);
    assert_true(http_cache_release(cache, slots[3]));
    http_cache_free(cache);
}

static void a_url_is_one(void **state)
{
    assert_true(http_is_url("http://a/b") && http_is_url("HTTPS://a/b"));
    assert_false(http_is_url("/http://a") || http_is_url("httpx://a") || http_is_url("ftp://a"));
}

/* An image on a disk must not make us ask servers. */
static void images_name_no_servers(void **state)
{
    struct disk_create create = {.format = DISK_FORMAT_QCOW2,
                                 .size = 1 << 20,
                                 .backing = "http://127.0.0.1:1/x",
                                 .backing_format = DISK_FORMAT_RAW};
    char path[] = "/var/tmp/http-XXXXXX";
    struct err err = {0};
    struct disk *disk;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    unlink(path);
    assert_int_equal(disk_create(path, &create, &err), 0);
    assert_int_equal(disk_open(path, &(struct disk_options){0}, &disk, &err), -EPERM);
    assert_non_null(strstr(err.text, "is not asked"));
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_come_from_anywhere),
        cmocka_unit_test(what_was_read_is_not_fetched_again),
        cmocka_unit_test(many_readers_share_a_small_cache),
        cmocka_unit_test(a_failure_is_for_those_who_waited),
        cmocka_unit_test(one_who_says_nothing_sensible_is_left),
        cmocka_unit_test(what_is_there_outlives_the_server),
        cmocka_unit_test(a_changed_file_is_told_apart),
        cmocka_unit_test(a_refusal_is_told),
        cmocka_unit_test(a_server_that_is_gone_is_noticed),
        cmocka_unit_test(messages_are_what_they_were),
        cmocka_unit_test(senseless_messages_are_refused),
        cmocka_unit_test(held_slots_keep_their_blocks),
        cmocka_unit_test(a_url_is_one),
        cmocka_unit_test(images_name_no_servers),
    };
    return cmocka_run_group_tests_name("http disks", tests, NULL, NULL);
}
