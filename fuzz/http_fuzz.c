// needs: disk base
// flags: -max_len=4096
/*
 * What a lodge-http that was taken over could send: packets of the fuzzer's choice, with and
 * without descriptors, as answers to a reader. The first part of each packet may be made right, so
 * that the fuzzer comes further than the greeting. The reader ends with bytes or an error, and
 * crashes or waits for ever in no case.
 */
#include "base/bytes.h"
#include "disk/http.h"
#include "disk/http_wire.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { RIGHT_ID = 1, RIGHT_DONE = 2, RIGHT_WELCOME = 4, WITH_CACHE = 8, WITH_TWO = 16 };

struct peer {
    int socket, cache;
    const uint8_t *data;
    size_t size;
};

static void send_packet(struct peer *peer, const uint8_t *bytes, size_t length, unsigned flags)
{
    struct iovec iov = {(void *)(uintptr_t)bytes, length};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {0};
    const int fds[] = {peer->cache, peer->cache};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    if (flags & (WITH_CACHE | WITH_TWO)) {
        size_t count = flags & WITH_TWO ? 2 : 1;
        header.msg_control = control;
        header.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *part = CMSG_FIRSTHDR(&header);
        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(part), fds, count * sizeof(int));
    }
    (void)sendmsg(peer->socket, &header, MSG_NOSIGNAL);
}

/* flags, length, bytes. Until one is the answer that was asked for; false: nothing is left. */
static bool answer(struct peer *peer, const struct http_message *asked, bool *ret_right)
{
    uint8_t bytes[HTTP_MESSAGE_MAX] = {0};
    if (peer->size < 2)
        return false;
    unsigned flags = peer->data[0];
    size_t length = min((size_t)peer->data[1] * 2, peer->size - 2);
    memcpy(bytes, peer->data + 2, length);
    peer->data += 2 + length;
    peer->size -= 2 + length;
    struct http_message made = {.type = HTTP_DONE, .id = asked->id};
    if (flags & RIGHT_WELCOME)
        made = (struct http_message){.type = HTTP_WELCOME,
                                     .id = asked->id,
                                     .size = 1000000 + length,
                                     .block_size = 4096,
                                     .slots = HTTP_SLOTS_MIN};
    if (flags & (RIGHT_WELCOME | RIGHT_DONE))
        length = http_encode(&made, bytes);
    else if (flags & RIGHT_ID && length >= 16)
        le64_write(bytes + 8, asked->id);
    if (length)
        send_packet(peer, bytes, length, flags);
    *ret_right = flags & RIGHT_WELCOME ? asked->type == HTTP_HELLO
                                       : flags & RIGHT_DONE && asked->type == HTTP_FETCH;
    return true;
}

static void *be_peer(void *opaque)
{
    struct peer *peer = opaque;
    uint8_t bytes[HTTP_MESSAGE_MAX];
    struct http_message asked = {0};
    ssize_t n;
    while ((n = recv(peer->socket, bytes, sizeof bytes, 0)) > 0) {
        int r = http_decode(bytes, (size_t)n, &asked);
        assert(r == 0 && (asked.type == HTTP_HELLO || asked.type == HTTP_FETCH));
        bool right = false, more = true;
        while (more && !right)
            more = answer(peer, &asked, &right);
        if (!right)
            break;
    }
    shutdown(peer->socket, SHUT_RDWR);
    return NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t bytes[20000];
    struct http_message message;
    int pair[2];
    if (http_decode(data, size, &message) == 0) {
        uint8_t again[HTTP_MESSAGE_MAX];
        struct http_message back;
        int r = http_decode(again, http_encode(&message, again), &back);
        assert(r == 0 && back.type == message.type && back.id == message.id);
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return 0;
    struct peer peer = {pair[1], memfd_create("cache", MFD_CLOEXEC), data, size};
    pthread_t thread;
    int r = ftruncate(peer.cache, 100000);
    r = r < 0 ? r : pthread_create(&thread, NULL, be_peer, &peer);
    assert(r == 0);
    struct file *file;
    if (http_open(pair[0], "http://x/y", &file, NULL) == 0) {
        for (unsigned i = 0; i < 6; i++)
            (void)file_read_bytes(file, i * 150000, bytes, sizeof bytes);
        (void)file_read_bytes(file, UINT32_MAX, bytes, sizeof bytes);
        file_free(file);
    }
    shutdown(peer.socket, SHUT_RDWR);
    pthread_join(thread, NULL);
    close(peer.socket);
    close(peer.cache);
    return 0;
}
