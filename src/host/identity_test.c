#include "base/bytes.h"
#include "base/own.h"
#include "host/identity.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <cmocka.h>

/* A child that waits to be killed, under a name that is hard to read. */
static pid_t start_child(void)
{
    int ends[2];
    char byte = 0;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_NAME, ") Z 1 (\n)");
        if (write(ends[1], &byte, 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    assert_int_equal(read(ends[0], &byte, 1), 1);
    close(ends[0]);
    close(ends[1]);
    return child;
}

static void a_process_is_found_until_it_ends(void **state)
{
    struct store_process process;
    pid_t child = start_child();
    assert_int_equal(identity_read(child, &process, NULL), 0);
    assert_int_equal(process.pid, child);
    assert_int_equal(strlen(process.boot), STORE_UUID_LENGTH);
    _cleanup_fd_ int fd = identity_open(&process, NULL);
    assert_true(fd >= 0);
    struct pollfd ended = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&ended, 1, 0), 0);
    kill(child, SIGKILL);
    assert_int_equal(poll(&ended, 1, 10000), 1);
    /* Not waited for yet: it is gone all the same. */
    struct err err = {0};
    assert_int_equal(identity_open(&process, &err), -ESRCH);
    assert_non_null(strstr(err.text, "has ended"));
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_int_equal(identity_open(&process, NULL), -ESRCH);
}

static void another_one_is_not_taken_for_it(void **state)
{
    struct store_process process, other;
    assert_int_equal(identity_read(getpid(), &process, NULL), 0);
    _cleanup_fd_ int fd = identity_open(&process, NULL);
    assert_true(fd >= 0);
    other = process;
    other.start++;
    assert_int_equal(identity_open(&other, NULL), -ESRCH);
    other = process;
    other.boot[3] ^= 1;
    assert_int_equal(identity_open(&other, NULL), -ESRCH);
    static const int64_t none[] = {0, -1, INT64_MAX, (INT64_C(1) << 32) + 1};
    for (size_t i = 0; i < ARRAY_LEN(none); i++) {
        other = process;
        other.pid = none[i];
        assert_int_equal(identity_open(&other, NULL), -ESRCH);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_process_is_found_until_it_ends),
        cmocka_unit_test(another_one_is_not_taken_for_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
