#include "host/lifecycle.h"

#include "base/bytes.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>

static const char *const state_names[LIFECYCLE_STATE_MAX] = {
    [LIFECYCLE_DEFINED] = "defined",   [LIFECYCLE_STARTING] = "starting",
    [LIFECYCLE_RUNNING] = "running",   [LIFECYCLE_PAUSED] = "paused",
    [LIFECYCLE_STOPPING] = "stopping", [LIFECYCLE_STOPPED] = "stopped",
    [LIFECYCLE_CRASHED] = "crashed",   [LIFECYCLE_MIGRATING] = "migrating",
};

static const char *const event_names[LIFECYCLE_EVENT_MAX] = {
    [LIFECYCLE_START] = "start",     [LIFECYCLE_RUNS] = "runs",   [LIFECYCLE_STANDS] = "stands",
    [LIFECYCLE_STOP] = "stop",       [LIFECYCLE_ENDED] = "ended", [LIFECYCLE_FAILED] = "failed",
    [LIFECYCLE_MIGRATE] = "migrate",
};

static const char *const verb_names[LIFECYCLE_VERB_MAX] = {
    [LIFECYCLE_VERB_START] = "start",       [LIFECYCLE_VERB_STOP] = "stop",
    [LIFECYCLE_VERB_KILL] = "kill",         [LIFECYCLE_VERB_REBOOT] = "reboot",
    [LIFECYCLE_VERB_PAUSE] = "pause",       [LIFECYCLE_VERB_RESUME] = "resume",
    [LIFECYCLE_VERB_EXEC] = "exec",         [LIFECYCLE_VERB_CONSOLE] = "console",
    [LIFECYCLE_VERB_SNAPSHOT] = "snapshot", [LIFECYCLE_VERB_MIGRATE] = "migrate",
    [LIFECYCLE_VERB_REMOVE] = "rm",
};

const char *lifecycle_state_name(enum lifecycle_state state)
{
    return (unsigned)state < LIFECYCLE_STATE_MAX ? state_names[state] : NULL;
}

const char *lifecycle_event_name(enum lifecycle_event event)
{
    return (unsigned)event < LIFECYCLE_EVENT_MAX ? event_names[event] : NULL;
}

const char *lifecycle_verb_name(enum lifecycle_verb verb)
{
    return (unsigned)verb < LIFECYCLE_VERB_MAX ? verb_names[verb] : NULL;
}

bool lifecycle_state_parse(const char *name, enum lifecycle_state *ret_state)
{
    for (unsigned i = 0; name && i < LIFECYCLE_STATE_MAX; i++)
        if (!strcmp(name, state_names[i])) {
            *ret_state = i;
            return true;
        }
    return false;
}

bool lifecycle_is_live(enum lifecycle_state state)
{
    return state == LIFECYCLE_STARTING || state == LIFECYCLE_RUNNING || state == LIFECYCLE_PAUSED ||
           state == LIFECYCLE_STOPPING || state == LIFECYCLE_MIGRATING;
}

/* One more than the state, so that what is not written here is 0: no way. */
#define TO(state) (LIFECYCLE_##state + 1)

static const uint8_t ways[LIFECYCLE_STATE_MAX][LIFECYCLE_EVENT_MAX] = {
    [LIFECYCLE_DEFINED] =
        {
            [LIFECYCLE_START] = TO(STARTING),
            [LIFECYCLE_MIGRATE] = TO(MIGRATING),
        },
    [LIFECYCLE_STARTING] =
        {
            [LIFECYCLE_RUNS] = TO(RUNNING),
            [LIFECYCLE_STANDS] = TO(PAUSED),
            [LIFECYCLE_STOP] = TO(STOPPING),
            [LIFECYCLE_ENDED] = TO(STOPPED),
            [LIFECYCLE_FAILED] = TO(CRASHED),
        },
    [LIFECYCLE_RUNNING] =
        {
            [LIFECYCLE_RUNS] = TO(RUNNING),
            [LIFECYCLE_STANDS] = TO(PAUSED),
            [LIFECYCLE_STOP] = TO(STOPPING),
            [LIFECYCLE_ENDED] = TO(STOPPED),
            [LIFECYCLE_FAILED] = TO(CRASHED),
            [LIFECYCLE_MIGRATE] = TO(MIGRATING),
        },
    [LIFECYCLE_PAUSED] =
        {
            [LIFECYCLE_RUNS] = TO(RUNNING),
            [LIFECYCLE_STANDS] = TO(PAUSED),
            [LIFECYCLE_STOP] = TO(STOPPING),
            [LIFECYCLE_ENDED] = TO(STOPPED),
            [LIFECYCLE_FAILED] = TO(CRASHED),
            [LIFECYCLE_MIGRATE] = TO(MIGRATING),
        },
    [LIFECYCLE_STOPPING] =
        {
            /* Underway when it was asked to stop. */
            [LIFECYCLE_RUNS] = TO(STOPPING),
            [LIFECYCLE_STANDS] = TO(STOPPING),
            /* A kill after the ask: once more. */
            [LIFECYCLE_STOP] = TO(STOPPING),
            [LIFECYCLE_ENDED] = TO(STOPPED),
            [LIFECYCLE_FAILED] = TO(STOPPED),
        },
    [LIFECYCLE_STOPPED] =
        {
            [LIFECYCLE_START] = TO(STARTING),
            [LIFECYCLE_MIGRATE] = TO(MIGRATING),
        },
    [LIFECYCLE_CRASHED] =
        {
            [LIFECYCLE_START] = TO(STARTING),
            [LIFECYCLE_STOP] = TO(STOPPED),
            [LIFECYCLE_MIGRATE] = TO(MIGRATING),
        },
    [LIFECYCLE_MIGRATING] =
        {
            [LIFECYCLE_RUNS] = TO(RUNNING),
            [LIFECYCLE_STANDS] = TO(PAUSED),
            [LIFECYCLE_STOP] = TO(STOPPING),
            [LIFECYCLE_ENDED] = TO(STOPPED),
            [LIFECYCLE_FAILED] = TO(CRASHED),
        },
};

int lifecycle_next(enum lifecycle_state state, enum lifecycle_event event,
                   enum lifecycle_state *ret_state, struct err *err)
{
    assert((unsigned)state < LIFECYCLE_STATE_MAX && (unsigned)event < LIFECYCLE_EVENT_MAX);
    unsigned to = ways[state][event];
    if (!to)
        return err_set(err, -EINVAL, "a guest that is %s has no \"%s\"", state_names[state],
                       event_names[event]);
    *ret_state = to - 1;
    return 0;
}

struct refusal {
    int code; /* 0: allowed */
    const char *why;
};

/* clang-format off */
#define ALREADY(phrase) {-EALREADY, phrase}
#define WAIT(phrase)    {-EBUSY, phrase}
#define DOWN            {-ESRCH, "it does not run: start it first"}
#define IS_STARTING     {-EBUSY, "it is still starting: wait until it runs"}
#define IS_STOPPING     {-EBUSY, "it is stopping: wait until it has stopped"}
#define IS_MIGRATING    {-EBUSY, "it is migrating: wait until it has arrived"}
#define IS_PAUSED       {-EBUSY, "it is paused: resume it first"}
/* clang-format on */

#define REFUSED_WHILE_DOWN                                                                         \
    [LIFECYCLE_VERB_KILL] = DOWN, [LIFECYCLE_VERB_REBOOT] = DOWN, [LIFECYCLE_VERB_PAUSE] = DOWN,   \
    [LIFECYCLE_VERB_RESUME] = DOWN, [LIFECYCLE_VERB_EXEC] = DOWN, [LIFECYCLE_VERB_CONSOLE] = DOWN, \
    [LIFECYCLE_VERB_SNAPSHOT] = DOWN, [LIFECYCLE_VERB_MIGRATE] = DOWN

static const struct refusal refusals[LIFECYCLE_STATE_MAX][LIFECYCLE_VERB_MAX] = {
    [LIFECYCLE_DEFINED] =
        {
            [LIFECYCLE_VERB_STOP] = ALREADY("it was never started"),
            REFUSED_WHILE_DOWN,
        },
    [LIFECYCLE_STARTING] =
        {
            [LIFECYCLE_VERB_START] = ALREADY("it is starting already"),
            [LIFECYCLE_VERB_REBOOT] = IS_STARTING,
            [LIFECYCLE_VERB_PAUSE] = IS_STARTING,
            [LIFECYCLE_VERB_RESUME] = IS_STARTING,
            [LIFECYCLE_VERB_EXEC] = IS_STARTING,
            [LIFECYCLE_VERB_SNAPSHOT] = IS_STARTING,
            [LIFECYCLE_VERB_MIGRATE] = IS_STARTING,
            [LIFECYCLE_VERB_REMOVE] = WAIT("it is starting: stop it first"),
        },
    [LIFECYCLE_RUNNING] =
        {
            [LIFECYCLE_VERB_START] = ALREADY("it runs already"),
            [LIFECYCLE_VERB_RESUME] = ALREADY("it runs already"),
            [LIFECYCLE_VERB_REMOVE] = WAIT("it runs: stop it first"),
        },
    [LIFECYCLE_PAUSED] =
        {
            [LIFECYCLE_VERB_START] = ALREADY("it is started already, and paused: resume it"),
            [LIFECYCLE_VERB_REBOOT] = IS_PAUSED,
            [LIFECYCLE_VERB_PAUSE] = ALREADY("it is paused already"),
            [LIFECYCLE_VERB_EXEC] = IS_PAUSED,
            [LIFECYCLE_VERB_REMOVE] = WAIT("it is paused: stop it first"),
        },
    [LIFECYCLE_STOPPING] =
        {
            [LIFECYCLE_VERB_START] = IS_STOPPING,
            [LIFECYCLE_VERB_STOP] =
                ALREADY("it is stopping already: kill it where that takes too long"),
            [LIFECYCLE_VERB_REBOOT] = IS_STOPPING,
            [LIFECYCLE_VERB_PAUSE] = IS_STOPPING,
            [LIFECYCLE_VERB_RESUME] = IS_STOPPING,
            [LIFECYCLE_VERB_EXEC] = IS_STOPPING,
            [LIFECYCLE_VERB_SNAPSHOT] = IS_STOPPING,
            [LIFECYCLE_VERB_MIGRATE] = IS_STOPPING,
            [LIFECYCLE_VERB_REMOVE] = IS_STOPPING,
        },
    [LIFECYCLE_STOPPED] =
        {
            [LIFECYCLE_VERB_STOP] = ALREADY("it has stopped already"),
            REFUSED_WHILE_DOWN,
        },
    /* `stop` is allowed: it calls off a restart. */
    [LIFECYCLE_CRASHED] = {REFUSED_WHILE_DOWN},
    [LIFECYCLE_MIGRATING] =
        {
            [LIFECYCLE_VERB_START] = IS_MIGRATING,
            [LIFECYCLE_VERB_REBOOT] = IS_MIGRATING,
            [LIFECYCLE_VERB_PAUSE] = IS_MIGRATING,
            [LIFECYCLE_VERB_RESUME] = IS_MIGRATING,
            [LIFECYCLE_VERB_EXEC] = IS_MIGRATING,
            [LIFECYCLE_VERB_CONSOLE] = IS_MIGRATING,
            [LIFECYCLE_VERB_SNAPSHOT] = IS_MIGRATING,
            [LIFECYCLE_VERB_MIGRATE] = ALREADY("it is migrating already"),
            [LIFECYCLE_VERB_REMOVE] = IS_MIGRATING,
        },
};

int lifecycle_allows(enum lifecycle_state state, enum lifecycle_verb verb, struct err *err)
{
    assert((unsigned)state < LIFECYCLE_STATE_MAX && (unsigned)verb < LIFECYCLE_VERB_MAX);
    const struct refusal *refusal = &refusals[state][verb];
    return refusal->code ? err_set(err, refusal->code, "%s", refusal->why) : 0;
}

int lifecycle_may_remove(enum lifecycle_state state, bool protect, struct err *err)
{
    int r = lifecycle_allows(state, LIFECYCLE_VERB_REMOVE, err);
    if (r < 0)
        return r;
    return protect ? err_set(err, -EPERM, "it is protected: take its protection off first") : 0;
}

int restart_policy_parse(const char *text, struct restart_policy *ret_policy, struct err *err)
{
    static const char on_failure[] = "on-failure";
    struct restart_policy policy = {0};
    if (!strcmp(text, "no"))
        policy.mode = RESTART_NO;
    else if (!strcmp(text, "always"))
        policy.mode = RESTART_ALWAYS;
    else if (!strcmp(text, on_failure))
        policy.mode = RESTART_ON_FAILURE;
    else if (!strncmp(text, "on-failure:", sizeof on_failure)) {
        policy.mode = RESTART_ON_FAILURE;
        const char *digits = text + sizeof on_failure;
        size_t length = strspn(digits, "0123456789");
        for (size_t i = 0; i < length && policy.tries <= RESTART_TRIES_MAX; i++)
            policy.tries = 10 * policy.tries + (unsigned)(digits[i] - '0');
        if (digits[length] || policy.tries == 0 || policy.tries > RESTART_TRIES_MAX)
            return err_set(err, -EINVAL, "restart '%s': the number of tries is from 1 to %d", text,
                           RESTART_TRIES_MAX);
    } else {
        return err_set(err, -EINVAL,
                       "restart '%s': it is no, on-failure, on-failure:TRIES or always", text);
    }
    *ret_policy = policy;
    return 0;
}

void restart_policy_format(const struct restart_policy *policy, char ret_text[RESTART_TEXT_SIZE])
{
    static const char *const names[RESTART_MODE_MAX] = {
        [RESTART_NO] = "no", [RESTART_ON_FAILURE] = "on-failure", [RESTART_ALWAYS] = "always"};
    assert((unsigned)policy->mode < RESTART_MODE_MAX);
    if (policy->mode == RESTART_ON_FAILURE && policy->tries)
        snprintf(ret_text, RESTART_TEXT_SIZE, "on-failure:%u", policy->tries);
    else
        snprintf(ret_text, RESTART_TEXT_SIZE, "%s", names[policy->mode]);
}

struct restart_decision restart_decide(const struct restart_policy *policy,
                                       const struct restart_end *end)
{
    const struct restart_decision no = {0};
    if (end->asked || policy->mode == RESTART_NO)
        return no;
    if (policy->mode == RESTART_ON_FAILURE && !end->failed)
        return no;
    unsigned tries = end->lived_ms >= RESTART_SETTLED ? 0 : end->tries;
    if (policy->mode == RESTART_ON_FAILURE && policy->tries && tries >= policy->tries)
        return no;
    uint64_t wait = RESTART_WAIT_FIRST;
    for (unsigned i = 0; i < tries && wait < RESTART_WAIT_MAX; i++)
        wait *= 2;
    return (struct restart_decision){.restart = true,
                                     .wait_ms = min(wait, (uint64_t)RESTART_WAIT_MAX),
                                     .tries = tries < UINT_MAX ? tries + 1 : tries};
}

int lifecycle_start_order(const struct lifecycle_place *a, const struct lifecycle_place *b)
{
    if (a->order != b->order)
        return a->order < b->order ? -1 : 1;
    return strcmp(a->name, b->name);
}
