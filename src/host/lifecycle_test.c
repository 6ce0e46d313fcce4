#include "base/bytes.h"
#include "host/lifecycle.h"

#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Every pair, as the diagram in lifecycle.h draws it: a row is a state, a column an event (start,
 * runs, stands, stop, ended, failed, migrate). D S R P s t C M are the states, s stopping, t
 * stopped. */
static const char states[] = "DSRPstCM";
static const char *const expected[LIFECYCLE_STATE_MAX] = {
    "S.....M", /* defined */
    ".RPstC.", /* starting */
    ".RPstCM", /* running */
    ".RPstCM", /* paused */
    ".ssstt.", /* stopping */
    "S.....M", /* stopped */
    "S..t..M", /* crashed */
    ".RPstC.", /* migrating */
};

static void every_pair_is_as_drawn(void **state)
{
    for (unsigned from = 0; from < LIFECYCLE_STATE_MAX; from++)
        for (unsigned event = 0; event < LIFECYCLE_EVENT_MAX; event++) {
            enum lifecycle_state to = LIFECYCLE_STATE_MAX;
            struct err err = {0};
            int r = lifecycle_next(from, event, &to, &err);
            if (expected[from][event] == '.') {
                assert_int_equal(r, -EINVAL);
                assert_int_equal(to, LIFECYCLE_STATE_MAX);
                assert_non_null(strstr(err.text, lifecycle_state_name(from)));
            } else {
                assert_int_equal(r, 0);
                assert_int_equal(states[to], expected[from][event]);
            }
        }
}

/* From wherever a guest is, a stop (or nothing) and its end lead to rest, where it can start anew.
 */
static void every_state_comes_to_rest(void **state)
{
    for (unsigned from = 0; from < LIFECYCLE_STATE_MAX; from++) {
        enum lifecycle_state at = from;
        if (lifecycle_is_live(at)) {
            assert_int_equal(lifecycle_next(at, LIFECYCLE_STOP, &at, NULL), 0);
            assert_int_equal(lifecycle_next(at, LIFECYCLE_ENDED, &at, NULL), 0);
        }
        assert_false(lifecycle_is_live(at));
        assert_int_equal(lifecycle_allows(at, LIFECYCLE_VERB_START, NULL), 0);
        assert_int_equal(lifecycle_allows(at, LIFECYCLE_VERB_REMOVE, NULL), 0);
        assert_int_equal(lifecycle_next(at, LIFECYCLE_START, &at, NULL), 0);
        assert_int_equal(at, LIFECYCLE_STARTING);
    }
}

/* What is allowed must not end in a state that has no such event. */
static void verbs_agree_with_events(void **state)
{
    static const struct {
        enum lifecycle_verb verb;
        enum lifecycle_event event;
    } pairs[] = {
        {LIFECYCLE_VERB_START, LIFECYCLE_START},     {LIFECYCLE_VERB_STOP, LIFECYCLE_STOP},
        {LIFECYCLE_VERB_KILL, LIFECYCLE_STOP},       {LIFECYCLE_VERB_PAUSE, LIFECYCLE_STANDS},
        {LIFECYCLE_VERB_RESUME, LIFECYCLE_RUNS},     {LIFECYCLE_VERB_REBOOT, LIFECYCLE_RUNS},
        {LIFECYCLE_VERB_MIGRATE, LIFECYCLE_MIGRATE},
    };
    for (size_t i = 0; i < ARRAY_LEN(pairs); i++)
        for (unsigned from = 0; from < LIFECYCLE_STATE_MAX; from++) {
            enum lifecycle_state to;
            if (lifecycle_allows(from, pairs[i].verb, NULL) == 0)
                assert_int_equal(lifecycle_next(from, pairs[i].event, &to, NULL), 0);
        }
    /* And each refusal says something. */
    for (unsigned from = 0; from < LIFECYCLE_STATE_MAX; from++)
        for (unsigned verb = 0; verb < LIFECYCLE_VERB_MAX; verb++) {
            struct err err = {0};
            int r = lifecycle_allows(from, verb, &err);
            assert_true(r == 0 || r == -EALREADY || r == -EBUSY || r == -ESRCH);
            assert_int_equal(r < 0, err.text[0] != '\0');
        }
}

static void refusals_are_phrases(void **state)
{
    static const struct {
        enum lifecycle_state state;
        enum lifecycle_verb verb;
        int code;
        const char *why;
    } rows[] = {
        {LIFECYCLE_RUNNING, LIFECYCLE_VERB_START, -EALREADY, "it runs already"},
        {LIFECYCLE_STOPPED, LIFECYCLE_VERB_STOP, -EALREADY, "it has stopped already"},
        {LIFECYCLE_STOPPED, LIFECYCLE_VERB_EXEC, -ESRCH, "it does not run: start it first"},
        {LIFECYCLE_PAUSED, LIFECYCLE_VERB_EXEC, -EBUSY, "it is paused: resume it first"},
        {LIFECYCLE_RUNNING, LIFECYCLE_VERB_REMOVE, -EBUSY, "it runs: stop it first"},
        {LIFECYCLE_CRASHED, LIFECYCLE_VERB_KILL, -ESRCH, "it does not run: start it first"},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct err err = {0};
        assert_int_equal(lifecycle_allows(rows[i].state, rows[i].verb, &err), rows[i].code);
        assert_string_equal(err.text, rows[i].why);
    }
    static const enum lifecycle_state kill_always[] = {LIFECYCLE_STARTING, LIFECYCLE_RUNNING,
                                                       LIFECYCLE_PAUSED, LIFECYCLE_STOPPING,
                                                       LIFECYCLE_MIGRATING};
    for (size_t i = 0; i < ARRAY_LEN(kill_always); i++)
        assert_int_equal(lifecycle_allows(kill_always[i], LIFECYCLE_VERB_KILL, NULL), 0);
}

static void protected_guests_stay(void **state)
{
    struct err err;
    assert_int_equal(lifecycle_may_remove(LIFECYCLE_STOPPED, false, &err), 0);
    assert_int_equal(lifecycle_may_remove(LIFECYCLE_STOPPED, true, &err), -EPERM);
    assert_int_equal(lifecycle_may_remove(LIFECYCLE_RUNNING, true, &err), -EBUSY);
}

static void names_come_back(void **state)
{
    for (unsigned i = 0; i < LIFECYCLE_STATE_MAX; i++) {
        enum lifecycle_state parsed;
        assert_true(lifecycle_state_parse(lifecycle_state_name(i), &parsed));
        assert_int_equal(parsed, i);
    }
    enum lifecycle_state parsed;
    assert_false(lifecycle_state_parse("Running", &parsed));
    assert_false(lifecycle_state_parse(NULL, &parsed));
    assert_null(lifecycle_state_name(LIFECYCLE_STATE_MAX));
    for (unsigned i = 0; i < LIFECYCLE_VERB_MAX; i++)
        assert_non_null(lifecycle_verb_name(i));
    for (unsigned i = 0; i < LIFECYCLE_EVENT_MAX; i++)
        assert_non_null(lifecycle_event_name(i));
}

static void policies_are_read(void **state)
{
    static const char *const good[] = {"no", "always", "on-failure", "on-failure:1",
                                       "on-failure:1000000"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        struct restart_policy policy;
        char text[RESTART_TEXT_SIZE];
        assert_int_equal(restart_policy_parse(good[i], &policy, NULL), 0);
        restart_policy_format(&policy, text);
        assert_string_equal(text, good[i]);
    }
    static const char *const bad[] = {"",
                                      "yes",
                                      "on-failure:",
                                      "on-failure:0",
                                      "on-failure:-1",
                                      "on-failure: 1",
                                      "on-failure:1x",
                                      "on-failure:1000001",
                                      "on-failure:99999999999999999999999",
                                      "always:3",
                                      "on-failur"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct restart_policy policy;
        struct err err = {0};
        assert_int_equal(restart_policy_parse(bad[i], &policy, &err), -EINVAL);
        assert_non_null(strstr(err.text, bad[i]));
    }
}

static struct restart_decision decide(const char *text, bool failed, bool asked, unsigned tries,
                                      uint64_t lived)
{
    struct restart_policy policy;
    assert_int_equal(restart_policy_parse(text, &policy, NULL), 0);
    return restart_decide(&policy, &(struct restart_end){failed, asked, tries, lived});
}

static void restarts_are_decided(void **state)
{
    assert_false(decide("no", true, false, 0, 0).restart);
    assert_false(decide("always", true, true, 0, 0).restart);
    assert_true(decide("always", false, false, 0, 0).restart);
    assert_false(decide("on-failure", false, false, 0, 0).restart);
    assert_true(decide("on-failure", true, false, 100000, 0).restart);
    assert_true(decide("on-failure:2", true, false, 1, 0).restart);
    assert_false(decide("on-failure:2", true, false, 2, 0).restart);
    assert_true(decide("on-failure:2", true, false, 2, RESTART_SETTLED).restart);
}

static void waits_grow_and_end(void **state)
{
    uint64_t before = 0;
    unsigned tries = 0;
    for (int i = 0; i < 40; i++) {
        struct restart_decision next = decide("always", true, false, tries, 0);
        assert_true(next.wait_ms >= before && next.wait_ms <= RESTART_WAIT_MAX);
        assert_int_equal(next.tries, tries + 1);
        before = next.wait_ms;
        tries = next.tries;
    }
    assert_int_equal(before, RESTART_WAIT_MAX);
    assert_int_equal(decide("always", true, false, 0, 0).wait_ms, RESTART_WAIT_FIRST);
    assert_int_equal(decide("always", true, false, tries, RESTART_SETTLED).wait_ms,
                     RESTART_WAIT_FIRST);
    assert_int_equal(decide("always", true, false, UINT_MAX, 0).tries, UINT_MAX);
}

static int by_order(const void *a, const void *b)
{
    return lifecycle_start_order(a, b);
}

static void the_order_is_total(void **state)
{
    struct lifecycle_place places[] = {
        {5, "db"}, {INT_MIN, "first"}, {5, "cache"}, {INT_MAX, "last"}, {0, "web"}};
    qsort(places, ARRAY_LEN(places), sizeof places[0], by_order);
    static const char *const sorted[] = {"first", "web", "cache", "db", "last"};
    for (size_t i = 0; i < ARRAY_LEN(places); i++)
        assert_string_equal(places[i].name, sorted[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pair_is_as_drawn),  cmocka_unit_test(every_state_comes_to_rest),
        cmocka_unit_test(verbs_agree_with_events), cmocka_unit_test(refusals_are_phrases),
        cmocka_unit_test(protected_guests_stay),   cmocka_unit_test(names_come_back),
        cmocka_unit_test(policies_are_read),       cmocka_unit_test(restarts_are_decided),
        cmocka_unit_test(waits_grow_and_end),      cmocka_unit_test(the_order_is_total),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
