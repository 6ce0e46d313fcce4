#include "base/own.h"
#include "base/packet.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static int make_pair(void **state)
{
    static int fds[2];
    *state = fds;
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds);
}

static int end_pair(void **state)
{
    int *fds = *state;
    own_close(&fds[0]);
    own_close(&fds[1]);
    return 0;
}

static unsigned open_descriptors(void)
{
    unsigned count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static ino_t inode(int fd)
{
    struct stat about;
    assert_int_equal(fstat(fd, &about), 0);
    return about.st_ino;
}

static void descriptors_come_in_their_order(void **state)
{
    int *ends = *state, pipe_fds[2], got[3];
    char bytes[8];
    assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_int_equal(packet_send(ends[0], "abc", 3, (int[]){null, pipe_fds[1]}, 2, 0), 0);
    assert_int_equal(packet_receive(ends[1], bytes, sizeof bytes, got, 3, 0), 3);
    assert_memory_equal(bytes, "abc", 3);
    assert_int_equal(inode(got[0]), inode(null));
    assert_int_equal(inode(got[1]), inode(pipe_fds[1]));
    assert_int_equal(got[2], -1);
    assert_int_equal(fcntl(got[0], F_GETFD), FD_CLOEXEC);
    int all[] = {null, pipe_fds[0], pipe_fds[1], got[0], got[1]};
    for (unsigned i = 0; i < 5; i++)
        close(all[i]);
}

static void what_nobody_wants_is_closed(void **state)
{
    int *ends = *state, got[1];
    char bytes[2];
    unsigned before = open_descriptors();
    assert_int_equal(packet_send(ends[0], "a", 1, (int[]){0, 1, 2}, 3, 0), 0);
    assert_int_equal(packet_receive(ends[1], bytes, sizeof bytes, got, 1, 0), 1);
    assert_int_equal(open_descriptors(), before + 1);
    close(got[0]);
    /* One that is too long is none, and nothing stays of it. */
    assert_int_equal(packet_send(ends[0], "abc", 3, (int[]){0}, 1, 0), 0);
    assert_int_equal(packet_receive(ends[1], bytes, sizeof bytes, got, 1, 0), -EMSGSIZE);
    assert_int_equal(got[0], -1);
    assert_int_equal(open_descriptors(), before);
}

static void ends_and_empty_sockets_are_told(void **state)
{
    int *ends = *state;
    char bytes[2];
    assert_int_equal(packet_receive(ends[1], bytes, sizeof bytes, NULL, 0, MSG_DONTWAIT), -EAGAIN);
    close(take_fd(&ends[0]));
    assert_int_equal(packet_receive(ends[1], bytes, sizeof bytes, NULL, 0, 0), 0);
    assert_int_equal(packet_send(ends[1], "a", 1, NULL, 0, 0), -EPIPE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(descriptors_come_in_their_order, make_pair, end_pair),
        cmocka_unit_test_setup_teardown(what_nobody_wants_is_closed, make_pair, end_pair),
        cmocka_unit_test_setup_teardown(ends_and_empty_sockets_are_told, make_pair, end_pair),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
