#include "vsock.h"

#include "base/bytes.h"
#include "base/own.h"
#include "listener.h"
#include "wire/vsock.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum {
    CLIENTS_MAX = 32, /* that have not said yet what they want; the oldest makes room */
    LINE_MAX = 32,    /* "CONNECT 4294967295\n" has 19 */
    EVENTS = 16,
};

/* What epoll says with an event: one of these, or a client's place. */
enum { DATA_LISTENER = CLIENTS_MAX, DATA_LINK };

struct vsock_host {
    struct listener listener;
    int epoll, link;
    int clients[CLIENTS_MAX];
    unsigned next_client; /* whose turn it is to make room */
};

static void watch(struct vsock_host *host, int fd, uint32_t events, uint32_t data, int how)
{
    struct epoll_event event = {.events = events, .data.u32 = data};
    epoll_ctl(host->epoll, how, fd, &event);
}

int vsock_host_new(const char *path, struct vsock_host **ret_host, struct err *err)
{
    struct vsock_host *host = calloc(1, sizeof *host);
    if (!host)
        return err_set(err, -ENOMEM, "no memory");
    host->link = -1;
    for (unsigned i = 0; i < CLIENTS_MAX; i++)
        host->clients[i] = -1;
    host->epoll = epoll_create1(EPOLL_CLOEXEC);
    int r = host->epoll < 0 ? err_errno(err, errno, "vsock '%s'", path) : 0;
    if (r >= 0)
        r = listener_open(&host->listener, "vsock", path, err);
    if (r < 0) {
        vsock_host_free(host);
        return r;
    }
    watch(host, host->listener.fd, EPOLLIN, DATA_LISTENER, EPOLL_CTL_ADD);
    *ret_host = host;
    return 0;
}

void vsock_host_free(struct vsock_host *host)
{
    if (!host)
        return;
    listener_close(&host->listener);
    for (unsigned i = 0; i < CLIENTS_MAX; i++)
        own_close(&host->clients[i]);
    own_close(&host->epoll);
    free(host);
}

void vsock_host_join(struct vsock_host *host, int link)
{
    host->link = link;
    watch(host, link, EPOLLIN, DATA_LINK, EPOLL_CTL_ADD);
}

int vsock_host_fd(const struct vsock_host *host)
{
    return host->epoll;
}

/* --- clients --- */

static void drop_client(struct vsock_host *host, unsigned place)
{
    own_close(&host->clients[place]);
    host->clients[place] = -1;
}

static unsigned place_for_client(struct vsock_host *host)
{
    for (unsigned i = 0; i < CLIENTS_MAX; i++)
        if (host->clients[i] < 0)
            return i;
    unsigned place = host->next_client++ % CLIENTS_MAX;
    drop_client(host, place);
    return place;
}

static void accept_client(struct vsock_host *host)
{
    int fd = accept4(host->listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    unsigned place = place_for_client(host);
    host->clients[place] = fd;
    /* Edge-triggered: half a line is looked at again when there is more of it. */
    watch(host, fd, EPOLLIN | EPOLLRDHUP | EPOLLET, place, EPOLL_CTL_ADD);
}

/* "CONNECT 1024": false for anything else. */
static bool parse_line(const char *line, uint32_t *ret_port)
{
    static const char word[] = "CONNECT ";
    if (strncmp(line, word, sizeof word - 1) != 0)
        return false;
    const char *digits = line + sizeof word - 1;
    size_t length = strlen(digits);
    if (length == 0 || length > 10 || strspn(digits, "0123456789") != length)
        return false;
    unsigned long long port = strtoull(digits, NULL, 10);
    *ret_port = (uint32_t)port;
    return port < UINT32_MAX;
}

/* The line is taken from the socket and not a byte more: what follows is for the guest. */
static void hear_client(struct vsock_host *host, unsigned place)
{
    char line[LINE_MAX + 1];
    int fd = host->clients[place];
    ssize_t n = recv(fd, line, LINE_MAX, MSG_PEEK);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    char *end = n > 0 ? memchr(line, '\n', (size_t)n) : NULL;
    if (n > 0 && !end && n < LINE_MAX)
        return;
    struct vsock_message call = {.type = VSOCK_CALL};
    if (end) {
        *end = '\0';
        if (parse_line(line, &call.port) && recv(fd, line, (size_t)(end - line) + 1, 0) > 0)
            vsock_message_send(host->link, &call, fd, NULL); /* else it is hung up on */
    }
    drop_client(host, place);
}

/* --- the VMM --- */

static void answer(struct vsock_host *host, const struct vsock_message *asked)
{
    _cleanup_free_ char *path = NULL;
    if (asprintf(&path, "%s_%u", host->listener.path, asked->port) < 0)
        path = NULL;
    _cleanup_fd_ int fd = path ? listener_dial(path) : -ENOMEM;
    const struct vsock_message reply = {.type = fd >= 0 ? VSOCK_DIALED : VSOCK_REFUSED,
                                        .id = asked->id};
    vsock_message_send(host->link, &reply, fd, NULL);
}

static void hang_up(struct vsock_host *host)
{
    epoll_ctl(host->epoll, EPOLL_CTL_DEL, host->link, NULL);
    host->link = -1;
}

/* Asks of the VMM's are taken only while an answer can be sent. */
static void hear_vmm(struct vsock_host *host)
{
    struct vsock_message message;
    struct pollfd room = {.fd = host->link, .events = POLLOUT};
    if (poll(&room, 1, 0) == 0) {
        watch(host, host->link, EPOLLOUT, DATA_LINK, EPOLL_CTL_MOD);
        return;
    }
    watch(host, host->link, EPOLLIN, DATA_LINK, EPOLL_CTL_MOD);
    int fd = -1, r = vsock_message_receive(host->link, &message, &fd, NULL);
    own_close(&fd); /* it has none to give */
    if (r == -EAGAIN)
        return;
    if (r < 0 || message.type != VSOCK_DIAL)
        hang_up(host);
    else
        answer(host, &message);
}

void vsock_host_step(struct vsock_host *host)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(host->epoll, events, EVENTS, 0);
    for (int i = 0; i < count; i++) {
        uint32_t data = events[i].data.u32;
        if (data == DATA_LISTENER)
            accept_client(host);
        else if (data == DATA_LINK && host->link >= 0)
            hear_vmm(host);
        else if (data < CLIENTS_MAX && host->clients[data] >= 0)
            hear_client(host, data);
    }
}
