#include "base/bytes.h"
#include "host/store_fixture.h"

#include <sys/wait.h>

static int make_store(void **state)
{
    if (make_folder(state) < 0)
        return -1;
    struct fixture *fixture = *state;
    fixture->store = must_open(fixture->path);
    return 0;
}

static struct store *store_of(void **state)
{
    return ((struct fixture *)*state)->store;
}

static int move_to(struct store *store, const char *name, enum lifecycle_event event)
{
    return store_guest_move(store, name, &(struct store_move){.event = event}, NULL, NULL);
}

static void a_guest_comes_back_as_it_was(void **state)
{
    struct store_guest guest = {
        .name = "web",
        .uuid = "0123abcd-0000-4000-8000-0123456789ab",
        .kind = "vm",
        .definition = "{\"memory\": \"1 GiB \xe2\x82\xac 'x'\"}",
        .policy = {
            .restart = {RESTART_ON_FAILURE, 3}, .autostart = true, .protect = true, .order = -7}};
    assert_int_equal(store_guest_add(store_of(state), &guest, NULL), 0);
    reopen(*state);
    _cleanup_(store_guest_freep)
    struct store_guest *found = NULL;
    assert_int_equal(store_guest_find(store_of(state), "web", &found, NULL), 0);
    assert_string_equal(found->name, guest.name);
    assert_string_equal(found->uuid, guest.uuid);
    assert_string_equal(found->kind, guest.kind);
    assert_string_equal(found->definition, guest.definition);
    assert_int_equal(found->policy.restart.mode, RESTART_ON_FAILURE);
    assert_int_equal(found->policy.restart.tries, 3);
    assert_true(found->policy.autostart && found->policy.protect);
    assert_int_equal(found->policy.order, -7);
    assert_int_equal(found->revision, 1);
    assert_int_equal(found->state, LIFECYCLE_DEFINED);
    assert_false(found->wanted);
    assert_int_equal(found->process.pid, 0);
    assert_true(found->created > 0 && found->since == found->created);
}

static void names_are_checked(void **state)
{
    char longest[STORE_NAME_MAX + 2];
    memset(longest, 'a', sizeof longest);
    longest[STORE_NAME_MAX] = '\0';
    const char *const good[] = {"a", "Web-1", "x.y_z-", "_", "0", longest};
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        assert_int_equal(store_name_check(good[i], NULL), 0);
    char too_long[STORE_NAME_MAX + 2];
    memset(too_long, 'a', STORE_NAME_MAX + 1);
    too_long[STORE_NAME_MAX + 1] = '\0';
    const char *const bad[] = {"",    ".",     "..",  ".a",  "-a",       "a/b",   "../a",  "a b",
                               "a\n", "a\x7f", "a'b", "a:b", "\xc3\xa9", "a\xff", too_long};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        assert_int_equal(store_name_check(bad[i], NULL), -EINVAL);
        assert_int_equal(add_guest(store_of(state), bad[i], 1, "{}", NULL), -EINVAL);
    }
}

static void names_and_uuids_are_unique(void **state)
{
    struct err err;
    assert_int_equal(add_guest(store_of(state), "a", 1, "{}", NULL), 0);
    assert_int_equal(add_guest(store_of(state), "a", 2, "{}", &err), -EEXIST);
    assert_non_null(strstr(err.text, "'a'"));
    assert_int_equal(add_guest(store_of(state), "b", 1, "{}", NULL), -EEXIST);
    /* The failure has left nothing open. */
    assert_int_equal(add_guest(store_of(state), "b", 2, "{}", NULL), 0);
    struct store_guest *none = NULL;
    assert_int_equal(store_guest_find(store_of(state), "c", &none, &err), -ENOENT);
    assert_non_null(strstr(err.text, "'c'"));
    assert_null(none);
}

static void values_have_bounds(void **state)
{
    _cleanup_free_ char *big = calloc(1, STORE_DEFINITION_MAX + 2);
    memset(big, 'x', STORE_DEFINITION_MAX);
    assert_int_equal(add_guest(store_of(state), "big", 1, big, NULL), 0);
    big[STORE_DEFINITION_MAX] = 'x';
    assert_int_equal(add_guest(store_of(state), "bigger", 2, big, NULL), -E2BIG);
    assert_int_equal(store_guest_change(store_of(state), "big", 1, big, NULL, NULL, NULL), -E2BIG);
    assert_int_equal(store_setting_set(store_of(state), "x", big, NULL), -E2BIG);
    assert_int_equal(store_setting_set(store_of(state), "../x", "1", NULL), -EINVAL);
    const char *const uuids[] = {"", "0123ABCD-0000-4000-8000-0123456789ab",
                                 "0123abcd-0000-4000-8000-0123456789ab0",
                                 "0123abcd00000-4000-8000-0123456789ab"};
    for (size_t i = 0; i < ARRAY_LEN(uuids); i++)
        assert_int_equal(
            store_guest_add(store_of(state),
                            &(struct store_guest){
                                .name = "u", .uuid = uuids[i], .kind = "vm", .definition = ""},
                            NULL),
            -EINVAL);
}

static void the_second_change_is_told(void **state)
{
    struct store *store = store_of(state);
    struct err err;
    uint64_t revision = 0;
    struct store_policy policy = {.restart = {RESTART_ALWAYS, 0}, .order = 3};
    add_guest(store, "a", 1, "one", NULL);
    assert_int_equal(store_guest_change(store, "a", 1, "two", NULL, &revision, NULL), 0);
    assert_int_equal(revision, 2);
    assert_int_equal(store_guest_change(store, "a", 1, "three", NULL, &revision, &err), -ESTALE);
    assert_non_null(strstr(err.text, "at revision 2, not 1"));
    assert_int_equal(revision, 2);
    assert_int_equal(store_guest_change(store, "a", 2, NULL, &policy, &revision, NULL), 0);
    assert_int_equal(
        store_guest_change(store, "a", STORE_ANY_REVISION, "four", NULL, &revision, NULL), 0);
    assert_int_equal(revision, 4);
    assert_int_equal(store_guest_change(store, "b", 1, "x", NULL, NULL, NULL), -ENOENT);
    _cleanup_(store_guest_freep)
    struct store_guest *found = NULL;
    assert_int_equal(store_guest_find(store, "a", &found, NULL), 0);
    assert_string_equal(found->definition, "four");
    assert_int_equal(found->policy.restart.mode, RESTART_ALWAYS);
    assert_int_equal(found->policy.order, 3);
}

static void moves_follow_the_lifecycle(void **state)
{
    struct store *store = store_of(state);
    struct err err;
    enum lifecycle_state at;
    struct store_process process = {.pid = 4711, .start = UINT64_MAX, .boot = "boot"};
    add_guest(store, "a", 1, "{}", NULL);
    assert_int_equal(
        store_guest_move(store, "a", &(struct store_move){LIFECYCLE_RUNS, NULL, NULL}, &at, &err),
        -EINVAL);
    assert_non_null(strstr(err.text, "'a'"));
    assert_int_equal(store_guest_move(store, "a",
                                      &(struct store_move){LIFECYCLE_START, &process, "asked"}, &at,
                                      NULL),
                     0);
    assert_int_equal(at, LIFECYCLE_STARTING);
    assert_int_equal(move_to(store, "a", LIFECYCLE_RUNS), 0);
    assert_int_equal(move_to(store, "nobody", LIFECYCLE_START), -ENOENT);
    {
        _cleanup_(store_guest_freep)
        struct store_guest *found = NULL;
        assert_int_equal(store_guest_find(store, "a", &found, NULL), 0);
        assert_int_equal(found->state, LIFECYCLE_RUNNING);
        assert_true(found->wanted);
        assert_int_equal(found->process.pid, 4711);
        assert_true(found->process.start == UINT64_MAX);
        assert_string_equal(found->process.boot, "boot");
        assert_int_equal(found->revision, 1);
    }
    assert_int_equal(store_guest_want(store, "a", true, 5, NULL), 0);
    assert_int_equal(store_guest_want(store, "b", true, 5, NULL), -ENOENT);
    assert_int_equal(store_guest_remove(store, "a", &err), -EBUSY);
    assert_string_equal(err.text, "guest 'a': it runs: stop it first");
    assert_int_equal(move_to(store, "a", LIFECYCLE_FAILED), 0);
    _cleanup_(store_guest_freep)
    struct store_guest *found = NULL;
    assert_int_equal(store_guest_find(store, "a", &found, NULL), 0);
    assert_int_equal(found->process.pid, 0);
    assert_int_equal(found->restart_tries, 5);
    assert_true(found->wanted);
    assert_int_equal(move_to(store, "a", LIFECYCLE_STOP), 0);
    store_guest_free(take_ptr(found));
    assert_int_equal(store_guest_find(store, "a", &found, NULL), 0);
    assert_false(found->wanted);
}

struct lines {
    char text[4096];
    int stop_after; /* 0: never */
};

static int add_line(void *opaque, const struct store_history *history)
{
    struct lines *lines = opaque;
    size_t length = strlen(lines->text);
    snprintf(lines->text + length, sizeof lines->text - length, "%s:%s>%s(%s) ", history->name,
             history->from, history->to, history->why);
    assert_true(history->at > 0);
    return lines->stop_after && --lines->stop_after == 0 ? -ECANCELED : 0;
}

static void history_is_kept(void **state)
{
    struct store *store = store_of(state);
    add_guest(store, "a", 1, "{}", NULL);
    add_guest(store, "b", 2, "{}", NULL);
    store_guest_move(store, "a", &(struct store_move){LIFECYCLE_START, NULL, "asked"}, NULL, NULL);
    move_to(store, "a", LIFECYCLE_RUNS);
    move_to(store, "a", LIFECYCLE_RUNS); /* no news */
    move_to(store, "a", LIFECYCLE_ENDED);
    assert_int_equal(store_guest_remove(store, "a", NULL), 0);
    struct lines lines = {0};
    assert_int_equal(store_history_each(store, "00000000-0000-4000-8000-000000000001", 100,
                                        add_line, &lines, NULL),
                     0);
    assert_string_equal(lines.text, "a:stopped>() a:running>stopped() a:starting>running() "
                                    "a:defined>starting(asked) a:>defined() ");
    lines = (struct lines){0};
    assert_int_equal(store_history_each(store, NULL, 1, add_line, &lines, NULL), 0);
    assert_string_equal(lines.text, "a:stopped>() ");
    lines = (struct lines){.stop_after = 2};
    assert_int_equal(store_history_each(store, NULL, 100, add_line, &lines, NULL), -ECANCELED);
    assert_int_equal(lines.stop_after, 0);
}

static int count_rows(void *opaque, const struct store_history *history)
{
    ++*(unsigned *)opaque;
    if (*history->why) {
        assert_int_equal(strlen(history->why), STORE_WHY_MAX);
        assert_string_equal(history->why + STORE_WHY_MAX - 4, "y...");
    }
    return 0;
}

/* A guest that crashes for a year fills no disk, and no reason does. */
static void history_is_bounded(void **state)
{
    struct fixture *fixture = *state;
    add_guest(fixture->store, "a", 1, "{}", NULL);
    store_close(take_ptr(fixture->store));
    run_sql(fixture->path,
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) "
            "INSERT INTO history (at, uuid, name, state_from, state_to, why) "
            "SELECT i, '00000000-0000-4000-8000-000000000001', 'a', 'x', 'y', '' FROM n");
    fixture->store = must_open(fixture->path);
    _cleanup_free_ char *why = calloc(1, 100001);
    memset(why, 'y', 100000);
    assert_int_equal(store_guest_move(fixture->store, "a",
                                      &(struct store_move){LIFECYCLE_START, NULL, why}, NULL, NULL),
                     0);
    unsigned rows = 0;
    assert_int_equal(store_history_each(fixture->store, NULL, 10000, count_rows, &rows, NULL), 0);
    assert_int_equal(rows, STORE_HISTORY_PER_GUEST);
}

static void protected_guests_stay(void **state)
{
    struct store *store = store_of(state);
    struct store_policy policy = {.protect = true};
    struct err err;
    add_guest(store, "a", 1, "{}", NULL);
    assert_int_equal(store_guest_change(store, "a", 1, NULL, &policy, NULL, NULL), 0);
    assert_int_equal(store_guest_remove(store, "a", &err), -EPERM);
    policy.protect = false;
    assert_int_equal(store_guest_change(store, "a", 2, NULL, &policy, NULL, NULL), 0);
    assert_int_equal(store_guest_remove(store, "a", NULL), 0);
    assert_int_equal(store_guest_remove(store, "a", NULL), -ENOENT);
    /* The name is free again. */
    assert_int_equal(add_guest(store, "a", 1, "{}", NULL), 0);
}

struct walk {
    struct store *store;
    char names[64];
};

static int walk_guest(void *opaque, const struct store_guest *guest)
{
    struct walk *walk = opaque;
    _cleanup_(store_guest_freep)
    struct store_guest *other = NULL;
    strcat(strcat(walk->names, guest->name), " ");
    /* Others may be read meanwhile, but nothing is written, and no second walk begins. */
    assert_int_equal(store_guest_find(walk->store, "b", &other, NULL), 0);
    assert_int_equal(move_to(walk->store, "b", LIFECYCLE_START), -EBUSY);
    assert_int_equal(store_guest_each(walk->store, walk_guest, walk, NULL), -EBUSY);
    assert_int_equal(store_backup(walk->store, NULL), -EBUSY);
    return 0;
}

static void guests_are_walked_in_order(void **state)
{
    struct walk walk = {.store = store_of(state)};
    add_guest(walk.store, "c", 1, "{}", NULL);
    add_guest(walk.store, "a", 2, "{}", NULL);
    add_guest(walk.store, "b", 3, "{}", NULL);
    assert_int_equal(store_guest_each(walk.store, walk_guest, &walk, NULL), 0);
    assert_string_equal(walk.names, "a b c ");
    assert_int_equal(move_to(walk.store, "b", LIFECYCLE_START), 0);
}

static void settings_are_kept(void **state)
{
    struct store *store = store_of(state);
    _cleanup_free_ char *value = NULL;
    assert_int_equal(store_setting_get(store, "cpu.ratio", &value, NULL), -ENOENT);
    assert_int_equal(store_setting_set(store, "cpu.ratio", "2.0", NULL), 0);
    assert_int_equal(store_setting_set(store, "cpu.ratio", "4.0", NULL), 0);
    assert_int_equal(store_setting_get(store, "cpu.ratio", &value, NULL), 0);
    assert_string_equal(value, "4.0");
    assert_int_equal(store_setting_set(store, "cpu.ratio", NULL, NULL), 0);
    assert_int_equal(store_setting_set(store, "cpu.ratio", NULL, NULL), 0);
    char *gone = NULL;
    assert_int_equal(store_setting_get(store, "cpu.ratio", &gone, NULL), -ENOENT);
}

/* Another process is kept out for as long as this one has it; it can come in afterwards. */
static void one_process_at_a_time(void **state)
{
    struct fixture *fixture = *state;
    add_guest(fixture->store, "a", 1, "{}", NULL);
    for (int open_here = 1; open_here >= 0; open_here--) {
        if (!open_here)
            store_close(take_ptr(fixture->store));
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            struct store *store = NULL;
            _exit(-store_open(fixture->path, &store, NULL));
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), open_here ? EBUSY : 0);
    }
}

/* Several make the database at once: each gets its turn, and all are in the same one. */
static void the_first_of_many_makes_it(void **state)
{
    enum { PROCESSES = 4, TRIES = 50 };
    struct fixture *fixture = *state;
    pid_t children[PROCESSES];
    for (unsigned i = 0; i < PROCESSES; i++) {
        children[i] = fork();
        assert_true(children[i] >= 0);
        if (children[i] == 0) {
            char name[16];
            struct store *store = NULL;
            int r = -EBUSY;
            for (int try = 0; try < TRIES && r == -EBUSY; try++)
                r = store_open(fixture->path, &store, NULL);
            snprintf(name, sizeof name, "g%u", i);
            _exit(r < 0 || add_guest(store, name, i, "{}", NULL) < 0);
        }
    }
    for (unsigned i = 0; i < PROCESSES; i++) {
        int status;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_int_equal(status, 0);
    }
    fixture->store = must_open(fixture->path);
    for (unsigned i = 0; i < PROCESSES; i++) {
        _cleanup_(store_guest_freep)
        struct store_guest *guest = NULL;
        char name[16];
        snprintf(name, sizeof name, "g%u", i);
        assert_int_equal(store_guest_find(fixture->store, name, &guest, NULL), 0);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_store, remove_folder)
    const struct CMUnitTest tests[] = {
        TEST(a_guest_comes_back_as_it_was),
        TEST(names_are_checked),
        TEST(names_and_uuids_are_unique),
        TEST(values_have_bounds),
        TEST(the_second_change_is_told),
        TEST(moves_follow_the_lifecycle),
        TEST(history_is_kept),
        TEST(history_is_bounded),
        TEST(protected_guests_stay),
        TEST(guests_are_walked_in_order),
        TEST(settings_are_kept),
        TEST(one_process_at_a_time),
        cmocka_unit_test_setup_teardown(the_first_of_many_makes_it, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
