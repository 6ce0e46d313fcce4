#include "disk/http.h"

#include "disk/http_cache.h"
#include "disk/http_wire.h"

#include "base/bytes.h"
#include "base/own.h"
#include "base/packet.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/*
 * Whoever waits for a block and finds nobody at the socket receives there, for all: it marks what
 * came, wakes the others, and gives the place up when its own block is there. So there is no
 * thread of ours, and the lock is never held while something is waited for.
 */

/* lodge-http answers within two minutes, whatever the server does. */
enum { PATIENCE_MS = 150 * 1000, WINDOW = 64, STALE_MAX = 1000 };

struct http {
    int socket, cache_fd;
    uint64_t size;
    uint32_t block_size;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct http_cache *cache; /* under the lock */
    uint64_t next_id;
    unsigned coming;   /* requests that were not answered yet */
    uint64_t expected; /* the block behind the last one that was asked for */
    bool receiving;    /* somebody is at the socket */
    int broken;        /* -errno: nothing will ever come any more */
};

bool http_is_url(const char *path)
{
    return !strncasecmp(path, "http://", 7) || !strncasecmp(path, "https://", 8);
}

/* --- messages --- */

static int send_message(int socket, const struct http_message *message)
{
    uint8_t bytes[HTTP_MESSAGE_MAX];
    return packet_send(socket, bytes, http_encode(message, bytes), NULL, 0, 0);
}

/* *ret_fd: what came along, or -1. */
static int receive_message(int socket, struct http_message *ret_message, int *ret_fd)
{
    uint8_t bytes[HTTP_MESSAGE_MAX];
    struct pollfd ready = {.fd = socket, .events = POLLIN};
    int r;
    *ret_fd = -1;
    do
        r = poll(&ready, 1, PATIENCE_MS);
    while (r < 0 && errno == EINTR);
    if (r <= 0)
        return r < 0 ? -errno : -ETIMEDOUT;
    ssize_t n = packet_receive(socket, bytes, sizeof bytes, ret_fd, 1, 0);
    if (n <= 0)
        return n < 0 ? (int)n : -EPIPE;
    return http_decode(bytes, (size_t)n, ret_message);
}

/* --- blocks --- */

/* With the lock, which is given up meanwhile. Something has changed afterwards. */
static void wait_for_change(struct http *http)
{
    struct http_message message;
    int fd;
    if (http->receiving || !http->coming) { /* with nothing to come, a slot is let go some time */
        pthread_cond_wait(&http->changed, &http->lock);
        return;
    }
    http->receiving = true;
    pthread_mutex_unlock(&http->lock);
    int r = receive_message(http->socket, &message, &fd);
    own_close(&fd);
    pthread_mutex_lock(&http->lock);
    http->receiving = false;
    if (r < 0)
        http->broken = r;
    else if (message.type == HTTP_DONE && http_cache_done(http->cache, message.id, message.status))
        http->coming--;
    pthread_cond_broadcast(&http->changed);
}

/* Asks for a block, and for those behind it where somebody reads on and on. 0, or -EAGAIN: no slot
 * is free. With the lock. */
static int ask(struct http *http, uint64_t block)
{
    uint64_t blocks = (http->size - 1) / http->block_size + 1;
    uint64_t most = block && block == http->expected ? HTTP_RUN_MAX / 2 : 1;
    struct http_message message = {.type = HTTP_FETCH, .id = http->next_id++, .block = block};
    most = min(most, blocks - block);
    message.count =
        http_cache_reserve(http->cache, message.id, block, (uint32_t)most, message.slot);
    if (!message.count)
        return -EAGAIN;
    http->expected = block + message.count;
    http->coming++;
    int r = send_message(http->socket, &message);
    if (r < 0) {
        http_cache_done(http->cache, message.id, r);
        http->broken = r;
        pthread_cond_broadcast(&http->changed);
    }
    return 0;
}

/* Until the block is there; it is then held. */
static int hold_block(struct http *http, uint64_t block, uint32_t *ret_slot)
{
    int r = 0;
    pthread_mutex_lock(&http->lock);
    for (;;) {
        uint32_t slot = 0;
        enum http_cache_state state = http_cache_find(http->cache, block, &slot);
        if (state == HTTP_CACHE_THERE) {
            http_cache_hold(http->cache, slot);
            *ret_slot = slot;
            if (block == http->expected)
                http->expected = block + 1;
            break;
        }
        if (http->broken) {
            r = http->broken;
            break;
        }
        if (state == HTTP_CACHE_NONE && ask(http, block) >= 0)
            continue;
        uint64_t id = state == HTTP_CACHE_COMING ? http_cache_request(http->cache, slot) : 0;
        wait_for_change(http);
        if (id && (r = http_cache_failure(http->cache, slot, id)) < 0)
            break;
    }
    pthread_mutex_unlock(&http->lock);
    return r;
}

static void release_block(struct http *http, uint32_t slot)
{
    pthread_mutex_lock(&http->lock);
    if (http_cache_release(http->cache, slot))
        pthread_cond_broadcast(&http->changed);
    pthread_mutex_unlock(&http->lock);
}

static int read_cache(struct http *http, uint64_t offset, struct span *to, size_t length)
{
    while (length) {
        struct iovec iov[WINDOW];
        size_t part;
        unsigned count = span_window(to, length, iov, WINDOW, &part);
        ssize_t n = preadv(http->cache_fd, iov, (int)count, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        span_advance(to, (size_t)n);
        offset += (size_t)n;
        length -= (size_t)n;
    }
    return 0;
}

static int http_read(void *opaque, uint64_t offset, struct span *to, uint64_t length)
{
    struct http *http = opaque;
    uint64_t inside = offset < http->size ? min(length, http->size - offset) : 0;
    int r = 0;
    for (uint64_t left = inside; r >= 0 && left;) {
        uint64_t block = offset / http->block_size, within = offset % http->block_size;
        size_t part = (size_t)min(left, http->block_size - within);
        uint32_t slot = 0;
        r = hold_block(http, block, &slot);
        if (r < 0)
            break;
        r = read_cache(http, (uint64_t)slot * http->block_size + within, to, part);
        release_block(http, slot);
        offset += part;
        left -= part;
    }
    if (r >= 0 && length > inside)
        span_zero(to, length - inside);
    return r == -ESTALE || r >= 0 ? r : -EIO;
}

static int http_length(void *opaque, uint64_t *ret_length)
{
    *ret_length = ((struct http *)opaque)->size;
    return 0;
}

static int http_status(void *opaque, uint64_t offset, uint64_t length, bool *ret_hole,
                       uint64_t *ret_length)
{
    *ret_hole = false;
    *ret_length = length;
    return 0;
}

/* --- opening --- */

static void http_free(void *opaque)
{
    struct http *http = opaque;
    own_close(&http->socket);
    own_close(&http->cache_fd);
    http_cache_free(http->cache);
    pthread_cond_destroy(&http->changed);
    pthread_mutex_destroy(&http->lock);
    free(http);
}

static const struct file_layer http_layer = {
    .free = http_free,
    .length = http_length,
    .read = http_read,
    .status = http_status,
};

/* What another reader of this socket asked for may still come; it is passed over. */
static int greet(struct http *http, struct http_message *ret_welcome, const char *url,
                 struct err *err)
{
    struct http_message hello = {.type = HTTP_HELLO, .id = http->next_id++};
    int r = send_message(http->socket, &hello);
    bool welcome = false;
    for (unsigned i = 0; r >= 0 && !welcome; i++) {
        int fd;
        r = receive_message(http->socket, ret_welcome, &fd);
        r = r >= 0 && i == STALE_MAX ? -EIO : r;
        welcome = r >= 0 && ret_welcome->type == HTTP_WELCOME && ret_welcome->id == hello.id;
        if (welcome)
            http->cache_fd = fd;
        else
            own_close(&fd);
    }
    if (r < 0)
        return err_set(err, -EIO, "disk '%s': lodge-http does not answer", url);
    if (ret_welcome->status < 0)
        return err_set(err, ret_welcome->status, "disk '%s': %s", url, ret_welcome->text);
    if (http->cache_fd < 0)
        return err_set(err, -EIO, "disk '%s': lodge-http gave no cache", url);
    return 0;
}

/* Readers of one socket, one after the other, must not take each other's answers for theirs. */
static uint64_t first_id(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return ((uint64_t)time.tv_sec << 30 | (uint64_t)time.tv_nsec) << 16 | 1;
}

int http_open(int fd, const char *url, struct file **ret_file, struct err *err)
{
    struct http_message welcome;
    struct http *http = calloc(1, sizeof *http);
    if (!http) {
        close(fd);
        return err_set(err, -ENOMEM, "disk '%s': no memory", url);
    }
    pthread_mutex_init(&http->lock, NULL);
    pthread_cond_init(&http->changed, NULL);
    http->socket = fd;
    http->cache_fd = -1;
    http->next_id = first_id();
    int r = greet(http, &welcome, url, err);
    if (r >= 0) {
        http->size = welcome.size;
        http->block_size = welcome.block_size;
        r = http_cache_new(welcome.slots, &http->cache);
        if (r >= 0)
            r = file_new_layer(&http_layer, http, NULL, ret_file);
        if (r < 0)
            err_errno(err, -r, "disk '%s'", url);
    }
    if (r < 0)
        http_free(http);
    return r;
}
