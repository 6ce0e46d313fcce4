/*
 * lodge-share: one process, one shared folder of one guest.
 *
 *     lodge-share --folder-fd N --socket-fd N [--read-only]
 *
 * Serves the FUSE requests (share/share.h) that lodge-vmm takes from the guest and sends over a
 * stream socket, and ends with that. The folder is open when it starts, with O_PATH; everything
 * else it gives up (confine.h) before it says that it is ready, with one byte on the socket, and
 * before it reads anything. Exit status 0 when the other end has gone, 125 with one line on
 * standard error for all else.
 */
#include "base/bytes.h"
#include "base/descriptors.h"
#include "base/own.h"
#include "confine.h"
#include "share/share.h"
#include "virtio/fs.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

enum { FAILED = 125, READY = 'R' };

_Static_assert((int)SHARE_MESSAGE_MAX == (int)VIRTIO_FS_MESSAGE_MAX,
               "the device carries what the server takes and makes");

struct server {
    struct share *share;
    int socket;
    size_t have;                             /* bytes of requests that are not served */
    uint8_t requests[2 * SHARE_MESSAGE_MAX]; /* a whole one and the begin of another fit */
    uint8_t reply[SHARE_MESSAGE_MAX];
};

static int fail(const char *text)
{
    fprintf(stderr, "lodge-share: %s\n", text);
    return FAILED;
}

/* False when nobody is there to take it. */
static bool send_all(int fd, const uint8_t *bytes, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = send(fd, bytes + done, size - done, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR)
            return false;
        done += n > 0 ? (size_t)n : 0;
    }
    return true;
}

/* The whole request at `at`: its length; 0 = there is none yet; -EBADMSG, after which nothing that
 * comes has a meaning. */
static int whole_request(const struct server *server, size_t at)
{
    size_t left = server->have - at;
    if (left < sizeof(uint32_t))
        return 0;
    uint32_t length = le32_read(server->requests + at);
    if (length < SHARE_REQUEST_MIN || length > SHARE_MESSAGE_MAX)
        return -EBADMSG;
    return length <= left ? (int)length : 0;
}

/* Serves what is there. 1, or 0 when the other end has gone, or -EBADMSG. */
static int serve_requests(struct server *server)
{
    size_t at = 0;
    int length;
    while ((length = whole_request(server, at)) > 0) {
        size_t reply =
            share_serve(server->share, server->requests + at, (size_t)length, server->reply);
        if (reply > 0 && !send_all(server->socket, server->reply, reply))
            return 0;
        at += (size_t)length;
    }
    server->have -= at;
    memmove(server->requests, server->requests + at, server->have);
    return length < 0 ? length : 1;
}

static int serve(struct server *server)
{
    int r = 1;
    while (r > 0) {
        ssize_t n = recv(server->socket, server->requests + server->have,
                         sizeof server->requests - server->have, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return 0;
        server->have += (size_t)n;
        r = serve_requests(server);
    }
    return r < 0 ? fail("what came is no request") : 0;
}

static int usage(void)
{
    fprintf(stderr, "usage: lodge-share --folder-fd N --socket-fd N [--read-only]\n"
                    "lodge-share is started by lodge; see lodge(1).\n");
    return FAILED;
}

static bool parse(int argc, char **argv, struct confine *ret_confine)
{
    *ret_confine = (struct confine){.folder = -1, .socket = -1, .descriptors = -1};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--read-only"))
            ret_confine->read_only = true;
        else if (!strcmp(argv[i], "--folder-fd") && i + 1 < argc) {
            if (!descriptor_parse(argv[++i], &ret_confine->folder))
                return false;
        } else if (!strcmp(argv[i], "--socket-fd") && i + 1 < argc) {
            if (!descriptor_parse(argv[++i], &ret_confine->socket))
                return false;
        } else {
            return false;
        }
    }
    return ret_confine->folder >= 0 && ret_confine->socket >= 0;
}

static int run(struct confine *confine)
{
    static const uint8_t ready = READY;
    struct err err = {0};
    /* How a file that is held is opened; /proc has to be there for it. */
    confine->descriptors = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (confine->descriptors < 0)
        return fail("/proc is not mounted, and no file can be opened without it");
    umask(0); /* the guest's kernel has a mask of its own */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    if (confine_enter(confine, &err) < 0)
        return fail(err.text);
    const struct share_options options = {.read_only = confine->read_only,
                                          .owners = confine->owners,
                                          .nodes_max = confine->nodes_max,
                                          .handles_max = confine->handles_max};
    struct server *server = calloc(1, sizeof *server);
    if (!server)
        return fail("no memory");
    server->socket = confine->socket;
    if (share_new(confine->folder, confine->descriptors, &options, &server->share, &err) < 0)
        return fail(err.text);
    return send_all(server->socket, &ready, 1) ? serve(server) : 0;
}

int main(int argc, char **argv)
{
    struct confine confine;
    int status = parse(argc, argv, &confine) ? run(&confine) : usage();
    _exit(status);
}
