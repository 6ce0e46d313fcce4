/* A process that writes and is killed at any instant has lost nothing that it acknowledged. */
#include "base/bytes.h"
#include "host/audit.h"
#include "host/store_fixture.h"

#include <signal.h>
#include <sys/wait.h>
#include <time.h>

enum { KILLS = 50, GUESTS_MAX = 20000 };

/* What was done, on the pipe once the call has returned. */
struct note {
    uint32_t number; /* of a guest */
    uint32_t done;   /* 1: added, 2: and changed, 3: and started, 4: and in the audit log */
};

static void acknowledge(int pipe, uint32_t number, uint32_t done)
{
    struct note note = {number, done};
    if (write(pipe, &note, sizeof note) != sizeof note)
        _exit(3);
}

/* Until it is killed. */
static void write_guests(const char *path, uint32_t number, int pipe)
{
    struct store *store = NULL;
    if (store_open(path, &store, NULL) < 0)
        _exit(2);
    for (;; number++) {
        char name[16];
        snprintf(name, sizeof name, "g%u", number);
        if (add_guest(store, name, number, "one", NULL) < 0)
            _exit(4);
        acknowledge(pipe, number, 1);
        if (store_guest_change(store, name, 1, "two", NULL, NULL, NULL) < 0)
            _exit(5);
        acknowledge(pipe, number, 2);
        if (store_guest_move(store, name, &(struct store_move){.event = LIFECYCLE_START}, NULL,
                             NULL) < 0)
            _exit(6);
        acknowledge(pipe, number, 3);
        if (audit_write(store, &(struct audit_row){.verb = "start", .what = name}, NULL) < 0)
            _exit(7);
        acknowledge(pipe, number, 4);
        /* A backup that is cut short leaves the one before. */
        if (number % 4 == 0 && store_backup(store, NULL) < 0)
            _exit(8);
    }
}

/* By number: what was acknowledged, and what the log says. */
struct progress {
    uint8_t done[GUESTS_MAX], audited[GUESTS_MAX];
    uint32_t last; /* that was acknowledged */
};

static void take_note(struct progress *progress, const struct note *note)
{
    assert_true(note->number < GUESTS_MAX);
    progress->done[note->number] = (uint8_t)note->done;
    progress->last = note->number;
}

static int note_row(void *opaque, const struct audit_row *row)
{
    struct progress *progress = opaque;
    unsigned long number = strtoul(row->what + 1, NULL, 10);
    assert_true(number < GUESTS_MAX);
    progress->audited[number] = 1;
    return 0;
}

/* The next number that is free. */
static uint32_t check(const char *path, struct progress *progress)
{
    _cleanup_(store_closep)
    struct store *store = must_open(path); /* quick_check, too */
    struct audit_head head;
    struct err err = {0};
    if (audit_verify(store, &head, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(audit_each(store, 1, note_row, progress, NULL), 0);
    for (uint32_t number = 1; number < GUESTS_MAX; number++) {
        _cleanup_(store_guest_freep)
        struct store_guest *guest = NULL;
        char name[16];
        uint8_t done = progress->done[number];
        snprintf(name, sizeof name, "g%u", number);
        if (store_guest_find(store, name, &guest, NULL) < 0) {
            assert_true(number > progress->last);
            return number;
        }
        assert_true(done < 2 || guest->revision == 2);
        assert_string_equal(guest->definition, guest->revision == 2 ? "two" : "one");
        assert_true(done < 3 || guest->state == LIFECYCLE_STARTING);
        assert_true(done < 4 || progress->audited[number]);
    }
    fail_msg("more guests than this test is made for");
    return 0;
}

static uint32_t kill_once(const char *path, struct progress *progress, uint32_t next,
                          unsigned *seed)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(ends[0]);
        write_guests(path, next, ends[1]);
    }
    close(ends[1]);
    /* From before it has opened the store to anywhere in what comes after some calls. */
    struct note note;
    for (int acks = rand_r(seed) % 10; acks > 0; acks--) {
        assert_int_equal(read(ends[0], &note, sizeof note), sizeof note);
        take_note(progress, &note);
    }
    struct timespec wait = {.tv_nsec = rand_r(seed) % 5000000};
    nanosleep(&wait, NULL);
    assert_int_equal(kill(child, SIGKILL), 0);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    while (read(ends[0], &note, sizeof note) == sizeof note)
        take_note(progress, &note);
    close(ends[0]);
    return check(path, progress);
}

static void nothing_acknowledged_is_lost(void **state)
{
    struct fixture *fixture = *state;
    _cleanup_free_ struct progress *progress = calloc(1, sizeof *progress);
    uint32_t next = 1;
    unsigned seed = 20;
    store_close(must_open(fixture->path));
    for (int i = 0; i < KILLS; i++)
        next = kill_once(fixture->path, progress, next, &seed);
    /* It has been more than an exercise. */
    assert_true(next > KILLS / 2);
    store_close(must_open(fixture->backup));
    print_message("%u guests, %d kills\n", next - 1, KILLS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(nothing_acknowledged_is_lost, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
