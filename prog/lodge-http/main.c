/*
 * lodge-http: one process, one file on a web server, for one reader of blocks.
 *
 *     lodge-http --socket FD --cache FD --cache-size BYTES [--cacert FILE] URL
 *
 * It speaks HTTP and TLS so that the VMM, which holds the guest, has to do neither. It answers
 * src/disk/http_wire.h on its socket, puts blocks into the cache, and ends when nobody holds the
 * other end of the socket any more. Why a block could not be had goes to standard error.
 *
 * Exit status: 0; 125 when it was called wrongly or cannot start.
 */
#include "base/bytes.h"
#include "base/descriptors.h"
#include "base/own.h"
#include "base/packet.h"
#include "disk/http_wire.h"
#include "fetch.h"
#include "syscalls.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <curl/curl.h>

enum { FAILED = 125, WORKERS = 4, BLOCK_SIZE = 128 << 10 };

struct server {
    int socket, cache_fd;
    const char *url;
    struct fetcher *fetcher;
    struct http_message welcome;
    _Atomic int complained; /* what was told last */
};

/* One line for each new kind of trouble: a guest tries again and again. */
static void complain(struct server *server, int number, const struct err *err)
{
    if (atomic_exchange(&server->complained, number) != number && number < 0)
        fprintf(stderr, "lodge-http: '%s': %s\n", server->url, err->text);
}

static int write_all(int fd, const uint8_t *bytes, size_t length, uint64_t offset)
{
    while (length) {
        ssize_t n = pwrite(fd, bytes, length, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        bytes += n;
        offset += (size_t)n;
        length -= (size_t)n;
    }
    return 0;
}

static int get_blocks(struct server *server, struct fetch *fetch, const struct http_message *wanted,
                      uint8_t *buffer)
{
    struct err err = {0};
    uint64_t size = server->welcome.size, blocks = (size - 1) / BLOCK_SIZE + 1;
    if (!range_fits(wanted->block, wanted->count, blocks))
        return -EINVAL;
    for (uint32_t i = 0; i < wanted->count; i++)
        if (wanted->slot[i] >= server->welcome.slots)
            return -EINVAL;
    uint64_t offset = wanted->block * BLOCK_SIZE;
    uint32_t length = (uint32_t)min((uint64_t)wanted->count * BLOCK_SIZE, size - offset);
    int r = fetch_range(fetch, offset, length, buffer, &err);
    for (uint32_t i = 0; r >= 0 && i < wanted->count; i++) {
        size_t at = (size_t)i * BLOCK_SIZE;
        r = write_all(server->cache_fd, buffer + at, min((size_t)BLOCK_SIZE, length - at),
                      (uint64_t)wanted->slot[i] * BLOCK_SIZE);
        if (r < 0)
            err_errno(&err, -r, "its cache");
    }
    complain(server, r, &err);
    return r;
}

static int answer(struct server *server, const struct http_message *message)
{
    uint8_t bytes[HTTP_MESSAGE_MAX];
    bool with_cache = message->type == HTTP_WELCOME && message->status == 0;
    return packet_send(server->socket, bytes, http_encode(message, bytes), &server->cache_fd,
                       with_cache, 0);
}

/* Each worker takes the next packet from the one socket. */
static void *work(void *opaque)
{
    struct server *server = opaque;
    uint8_t bytes[HTTP_MESSAGE_MAX + 1];
    _cleanup_free_ uint8_t *buffer = malloc((size_t)HTTP_RUN_MAX * BLOCK_SIZE);
    struct fetch *fetch = NULL;
    if (!buffer || (server->fetcher && fetch_new(server->fetcher, &fetch) < 0))
        return NULL;
    for (;;) {
        struct http_message message, reply;
        ssize_t n = recv(server->socket, bytes, sizeof bytes, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0 || http_decode(bytes, (size_t)n, &message) < 0)
            break;
        reply =
            message.type == HTTP_HELLO ? server->welcome : (struct http_message){.type = HTTP_DONE};
        reply.id = message.id;
        if (message.type == HTTP_FETCH)
            reply.status =
                server->welcome.status < 0 ? -EIO : get_blocks(server, fetch, &message, buffer);
        if (answer(server, &reply) < 0)
            break;
    }
    fetch_free(fetch);
    /* One that cannot go on leaves nobody waiting for an answer that will not come. */
    shutdown(server->socket, SHUT_RDWR);
    return NULL;
}

/* What the first request says, good or bad, is what the client hears. */
static void probe(struct server *server, const char *ca_file, uint64_t cache_size)
{
    struct http_message *welcome = &server->welcome;
    struct err err = {0};
    struct fetch *fetch = NULL;
    uint64_t slots = max(cache_size / BLOCK_SIZE, (uint64_t)HTTP_SLOTS_MIN);
    *welcome = (struct http_message){
        .type = HTTP_WELCOME,
        .block_size = BLOCK_SIZE,
        .slots = (uint32_t)min(slots, (uint64_t)HTTP_SLOTS_MAX),
    };
    int r = fetcher_new(server->url, ca_file, &server->fetcher, &err);
    if (r >= 0 && fetch_new(server->fetcher, &fetch) < 0)
        r = err_set(&err, -ENOMEM, "no memory");
    if (r >= 0)
        r = fetch_probe(fetch, &welcome->size, &err);
    fetch_free(fetch);
    welcome->status = r < 0 ? r : 0;
    snprintf(welcome->text, sizeof welcome->text, "%.*s", HTTP_TEXT_MAX - 1, err.text);
}

static int serve(struct server *server, const char *ca_file, uint64_t cache_size)
{
    pthread_t workers[WORKERS];
    unsigned count = 0;
    probe(server, ca_file, cache_size);
    while (count < WORKERS && pthread_create(&workers[count], NULL, work, server) == 0)
        count++;
    for (unsigned i = 0; i < count; i++)
        pthread_join(workers[i], NULL);
    fetcher_free(server->fetcher);
    return count ? 0 : FAILED;
}

static void own_caps(cap_t *caps)
{
    cap_free(*caps);
}

static int capabilities_drop(void)
{
    _cleanup_(own_caps)
    cap_t none = cap_init();
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    return none && cap_set_proc(none) == 0 ? 0 : -1;
}

/* Nothing of our caller's but what we were given. */
static int confine(int first, int second, struct err *err)
{
    const int keep[] = {first, second};
    int r = descriptors_close_others(keep, ARRAY_LEN(keep));
    if (r < 0)
        return err_errno(err, -r, "cannot close descriptors");
    if (setrlimit(RLIMIT_CORE, &(struct rlimit){0}) < 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 ||
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || capabilities_drop() < 0)
        return err_errno(err, errno, "cannot give up privileges");
    return syscalls_confine(err);
}

static bool parse_number(const char *text, uint64_t most, uint64_t *ret_value)
{
    char *end;
    errno = 0;
    *ret_value = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && !*end && !errno && *ret_value <= most;
}

int main(int argc, char **argv)
{
    uint64_t socket_fd = 0, cache_fd = 0, cache_size = 0;
    const char *ca_file = NULL;
    struct err err = {0};
    bool good = argc % 2 == 0;
    for (int i = 1; good && i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--socket"))
            good = parse_number(argv[i + 1], INT_MAX, &socket_fd);
        else if (!strcmp(argv[i], "--cache"))
            good = parse_number(argv[i + 1], INT_MAX, &cache_fd);
        else if (!strcmp(argv[i], "--cache-size"))
            good = parse_number(argv[i + 1], INT64_MAX, &cache_size);
        else if (!strcmp(argv[i], "--cacert"))
            ca_file = argv[i + 1];
        else
            good = false;
    }
    if (!good || socket_fd < 3 || cache_fd < 3 || socket_fd == cache_fd || !cache_size) {
        fprintf(stderr, "usage: lodge-http --socket FD --cache FD --cache-size BYTES "
                        "[--cacert FILE] URL\nlodge-http is started by lodge; see lodge(1).\n");
        return FAILED;
    }
    signal(SIGPIPE, SIG_IGN);
    struct server server = {
        .socket = (int)socket_fd, .cache_fd = (int)cache_fd, .url = argv[argc - 1]};
    if (confine(server.socket, server.cache_fd, &err) < 0 ||
        curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        fprintf(stderr, "lodge-http: %s\n", *err.text ? err.text : "libcurl cannot start");
        return FAILED;
    }
    return serve(&server, ca_file, cache_size);
}
