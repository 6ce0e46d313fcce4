/* Answers each datagram with itself: udp_echo PORT. Runs in a guest. */
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    char bytes[65536];
    struct sockaddr_in peer, own = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    own.sin_port = htons((unsigned short)atoi(argc > 1 ? argv[1] : "0"));
    if (fd < 0 || bind(fd, (struct sockaddr *)&own, sizeof own) < 0)
        return 1;
    for (;;) {
        socklen_t size = sizeof peer;
        ssize_t n = recvfrom(fd, bytes, sizeof bytes, 0, (struct sockaddr *)&peer, &size);
        if (n >= 0)
            sendto(fd, bytes, (size_t)n, 0, (struct sockaddr *)&peer, size);
    }
}
