/*
 * Sockets of a guest, for tests/test_vsock.py:
 *
 *     vsock connect CID PORT    standard input to the socket, the socket to standard output
 *     vsock send CID PORT       standard input to the socket, which is not read
 *     vsock listen PORT         the same, for one connection that comes
 *     vsock echo PORT COUNT     gives back what comes, for COUNT connections at once
 *
 * The end of the input ends the socket's one direction only. Exit status 1 and the errno's name on
 * standard error where something fails.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

static void need(bool good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "%s: %s\n", what, strerrorname_np(errno));
    exit(1);
}

static void write_all(int fd, const char *bytes, ssize_t length)
{
    while (length > 0) {
        ssize_t n = write(fd, bytes, (size_t)length);
        need(n > 0, "write");
        bytes += n;
        length -= n;
    }
}

static void join(int fd)
{
    static char bytes[65536];
    struct pollfd fds[2] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
    for (;;) {
        need(poll(fds, 2, -1) >= 0, "poll");
        if (fds[0].revents) {
            ssize_t n = read(STDIN_FILENO, bytes, sizeof bytes);
            need(n >= 0, "read");
            if (n == 0) {
                fds[0].fd = -1;
                shutdown(fd, SHUT_WR);
            }
            write_all(fd, bytes, n);
        }
        if (fds[1].revents) {
            ssize_t n = read(fd, bytes, sizeof bytes);
            need(n >= 0, "read from the socket");
            if (n == 0)
                return;
            write_all(STDOUT_FILENO, bytes, n);
        }
    }
}

static void send_input(int fd)
{
    static char bytes[65536];
    ssize_t n;
    signal(SIGPIPE, SIG_IGN);
    while ((n = read(STDIN_FILENO, bytes, sizeof bytes)) > 0)
        write_all(fd, bytes, n);
    need(n == 0, "read");
}

static void echo(int fd)
{
    static char bytes[65536];
    ssize_t n;
    while ((n = read(fd, bytes, sizeof bytes)) > 0)
        write_all(fd, bytes, n);
    need(n == 0, "read from the socket");
}

static int listen_at(unsigned port)
{
    struct sockaddr_vm address = {
        .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    need(fd >= 0, "socket");
    need(bind(fd, (struct sockaddr *)&address, sizeof address) == 0, "bind");
    need(listen(fd, 256) == 0, "listen");
    puts("listening");
    fflush(stdout);
    return fd;
}

static int accept_one(int listener)
{
    int fd = accept(listener, NULL, NULL);
    need(fd >= 0, "accept");
    return fd;
}

static int connect_to(unsigned cid, unsigned port)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    need(fd >= 0, "socket");
    need(connect(fd, (struct sockaddr *)&address, sizeof address) == 0, "connect");
    return fd;
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "connect")) {
        join(connect_to((unsigned)strtoul(argv[2], NULL, 10), (unsigned)atoi(argv[3])));
    } else if (argc == 3 && !strcmp(argv[1], "listen")) {
        join(accept_one(listen_at((unsigned)atoi(argv[2]))));
    } else if (argc == 4 && !strcmp(argv[1], "send")) {
        send_input(connect_to((unsigned)strtoul(argv[2], NULL, 10), (unsigned)atoi(argv[3])));
    } else if (argc == 4 && !strcmp(argv[1], "echo")) {
        int listener = listen_at((unsigned)atoi(argv[2])), status = 0, bad = 0;
        for (int i = 0; i < atoi(argv[3]); i++) {
            int fd = accept_one(listener);
            if (fork() == 0) {
                echo(fd);
                return 0;
            }
            close(fd);
        }
        while (wait(&status) > 0)
            bad |= status;
        return bad != 0;
    } else {
        return 2;
    }
    return 0;
}
