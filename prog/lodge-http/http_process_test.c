/* What lodge-http makes of header lines, and what its filter lets through. */
#include "answer.h"
#include "syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static void lines(struct answer *answer, const char *text)
{
    while (*text) {
        size_t length = strcspn(text, "\n") + 1;
        answer_line(answer, text, length);
        text += length;
    }
}

static void the_last_answer_counts(void **state)
{
    struct answer answer = {0};
    lines(&answer, "HTTP/1.1 302 Found\r\nETag: \"old\"\r\nContent-Encoding: gzip\r\n"
                   "Content-Range: bytes 0-1/2\r\n\r\n"
                   "HTTP/2 206\r\netag:\"new\"\r\nLast-Modified:  today \r\n"
                   "content-range: Bytes 5-9/18446744073709\r\n\r\n");
    assert_true(answer.ranged && !answer.encoded);
    assert_int_equal(answer.first, 5);
    assert_int_equal(answer.last, 9);
    assert_int_equal(answer.size, 18446744073709);
    assert_string_equal(answer.etag, "\"new\"");
    assert_string_equal(answer.modified, "today");
}

static void ranges_without_sense_are_none(void **state)
{
    static const char *const texts[] = {
        "bytes 5-4/10",
        "bytes 0-10/10",
        "bytes 0-1/*",
        "bytes */10",
        "bytes 0-1/2x",
        "bytes -1/2",
        "bytes 0-/2",
        "items 0-1/2",
        "bytes 0-1/99999999999999999999",
        "bytes 0-1/18446744073709551615",
        "bytes 0-1",
        "bytes  0-1/2",
        "",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        char line[128];
        struct answer answer = {.ranged = true};
        snprintf(line, sizeof line, "Content-Range: %s\r\n", texts[i]);
        answer_line(&answer, line, strlen(line));
        if (answer.ranged)
            fail_msg("'%s'", texts[i]);
    }
}

static void odd_lines_do_no_harm(void **state)
{
    static char line[4000] = "ETag: ";
    struct answer answer = {0};
    memset(line + 6, 'x', sizeof line - 6);
    for (size_t length = 0; length <= sizeof line; length++)
        answer_line(&answer, line, length);
    answer_line(&answer, "ETag\0: y", 8);
    assert_true(strlen(answer.etag) < ANSWER_TEXT_MAX);
    answer_line(&answer, "Content-Encoding: identity", 26);
    assert_false(answer.encoded);
    answer_line(&answer, "Content-Encoding: br", 20);
    assert_true(answer.encoded);
}

static void versions_are_told_apart(void **state)
{
    const struct answer one = {.size = 5, .etag = "a", .modified = "m"};
    struct answer other = one;
    assert_true(answer_same(&one, &other));
    other.size = 6;
    assert_false(answer_same(&one, &other));
    other = one;
    other.etag[0] = 'b';
    assert_false(answer_same(&one, &other));
    other = one;
    other.modified[0] = '\0';
    assert_false(answer_same(&one, &other));
}

/* --- the filter --- */

#define REFUSED(call) ((call) < 0 && errno == EPERM)

static void *thread(void *opaque)
{
    *(int *)opaque = 1;
    return NULL;
}

/* The number of the first thing that is not as it should be; 0: none. */
static int inside(int file)
{
    char *const argv[] = {(char *)"/bin/true", NULL};
    char byte = 1;
    int ran = 0, line = socket(AF_INET, SOCK_STREAM, 0);
    pthread_t id;
    if (!REFUSED(execv(argv[0], argv)))
        return 1;
    if (!REFUSED(fork()))
        return 2;
    if (!REFUSED(open("/tmp/lodge-http-was-here", O_WRONLY | O_CREAT, 0600)))
        return 3;
    if (!REFUSED(open("/dev/null", O_RDWR)))
        return 4;
    if (!REFUSED(unlink("/tmp/lodge-http-was-here")))
        return 5;
    if (line < 0 || !REFUSED(listen(line, 1)))
        return 6;
    if (!REFUSED(socket(AF_PACKET, SOCK_RAW, 0)))
        return 7;
    if (!REFUSED(ptrace(PTRACE_TRACEME, 0, NULL, NULL)))
        return 8;
    if (!REFUSED(kill(getppid(), 0)))
        return 9;
    int config = open("/etc/passwd", O_RDONLY | O_CLOEXEC);
    if (config < 0 || read(config, &byte, 1) != 1)
        return 10;
    if (pwrite(file, &byte, 1, 0) != 1)
        return 11;
    if (pthread_create(&id, NULL, thread, &ran) || pthread_join(id, NULL) || !ran)
        return 12;
    return 0;
}

static void the_filter_leaves_what_is_needed(void **state)
{
    int file = memfd_create("cache", MFD_CLOEXEC), status;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || syscalls_confine(NULL) < 0)
            _exit(100);
        _exit(inside(file));
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_last_answer_counts),
        cmocka_unit_test(ranges_without_sense_are_none),
        cmocka_unit_test(odd_lines_do_no_harm),
        cmocka_unit_test(versions_are_told_apart),
        cmocka_unit_test(the_filter_leaves_what_is_needed),
    };
    return cmocka_run_group_tests_name("lodge-http", tests, NULL, NULL);
}
