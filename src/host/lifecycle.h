/*
 * lifecycle.h: what a guest does next: one state machine for virtual machines and containers, and
 * the decisions that hang on it. Pure functions over tables: no I/O, no clock; any thread.
 *
 *                     ┌─ alive ─────────────────────────────────────────────────────┐
 *   ┌─────────┐ start │ ┌──────────┐   runs   ┌─────────┐   stands   ┌────────┐     │
 *   │ defined ├───────┼▶│ starting ├─────────▶│ running ├───────────▶│ paused │     │
 *   └────┬────┘       │ └────┬─────┘          │         │◀───────────┤        │     │
 *        │            │      └─▶ paused        └─┬─────▲─┘    runs    └─┬────▲─┘     │
 *        │            │        stands    migrate │     │ runs   migrate │    │stands │
 *        │            │                        ┌─▼─────┴────────────────▼────┴─┐     │
 *        └────────────┼───────────────────────▶│           migrating           │     │
 *          migrate    │                        └───────────────────────────────┘     │
 *                     └──┬──────────────────────┬───────────────────────┬────────────┘
 *                 failed │                ended │                  stop │
 *                   ┌────▼────┐   stop     ┌────▼────┐   ended,    ┌────▼─────┐
 *                   │ crashed ├───────────▶│ stopped │◀────────────┤ stopping │
 *                   └─────────┘            └─────────┘   failed    └──────────┘
 *
 * Crashed and stopped guests start and migrate as defined ones do (such a migration comes to this
 * host). Stopping stays stopping where late news (runs, stands) or another stop comes.
 *
 * An event is a wish that was granted (start, stop, migrate) or news of the guest (runs, stands,
 * ended, failed). `pause` and `resume` change the state by their news: a guest also stands because
 * its disk is full. News may come late or twice; where that is no fault the state stays.
 *
 * - "ended" of a guest that is alive: it switched itself off.
 * - What dies while it is stopping has done what it should: it is stopped, never crashed.
 * - "stop" of a crashed guest is "leave it": no restart is due any more.
 * - A guest that migrates away ends here (ended) when it runs there; where that fails it goes on.
 *
 *     r = lifecycle_allows(guest->state, LIFECYCLE_VERB_START, err);   // "it runs already"
 *     r = lifecycle_next(guest->state, LIFECYCLE_START, &state, err);
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum lifecycle_state {
    LIFECYCLE_DEFINED, /* never started */
    LIFECYCLE_STARTING,
    LIFECYCLE_RUNNING,
    LIFECYCLE_PAUSED,
    LIFECYCLE_STOPPING,
    LIFECYCLE_STOPPED,
    LIFECYCLE_CRASHED,
    LIFECYCLE_MIGRATING,
    LIFECYCLE_STATE_MAX,
};

enum lifecycle_event {
    LIFECYCLE_START,   /* resources are held, its process is about to be made */
    LIFECYCLE_RUNS,    /* its vCPUs, or its first process, run */
    LIFECYCLE_STANDS,  /* all of it is paused */
    LIFECYCLE_STOP,    /* it has been asked to end */
    LIFECYCLE_ENDED,   /* its process is gone as it should */
    LIFECYCLE_FAILED,  /* its process is gone, or could not be made, by a fault */
    LIFECYCLE_MIGRATE, /* it leaves, or is awaited */
    LIFECYCLE_EVENT_MAX,
};

/* What a person asks of a guest that exists. */
enum lifecycle_verb {
    LIFECYCLE_VERB_START,
    LIFECYCLE_VERB_STOP,
    LIFECYCLE_VERB_KILL,
    LIFECYCLE_VERB_REBOOT,
    LIFECYCLE_VERB_PAUSE,
    LIFECYCLE_VERB_RESUME,
    LIFECYCLE_VERB_EXEC,
    LIFECYCLE_VERB_CONSOLE,
    LIFECYCLE_VERB_SNAPSHOT,
    LIFECYCLE_VERB_MIGRATE,
    LIFECYCLE_VERB_REMOVE,
    LIFECYCLE_VERB_MAX,
};

/* "running", "start"; stable: they are stored and shown. NULL for a number that is none. */
const char *lifecycle_state_name(enum lifecycle_state state);
const char *lifecycle_event_name(enum lifecycle_event event);
const char *lifecycle_verb_name(enum lifecycle_verb verb);
/* False for a name that is none. */
bool lifecycle_state_parse(const char *name, enum lifecycle_state *ret_state);

/* True while a process of the guest's is, or may be, there. */
bool lifecycle_is_live(enum lifecycle_state state);

/* The only way from a state to the next. -EINVAL: this cannot happen in that state, a fault of the
 * caller's or of the process that brought the news. */
int lifecycle_next(enum lifecycle_state state, enum lifecycle_event event,
                   enum lifecycle_state *ret_state, struct err *err);

/* 0, or why not, as a phrase to put the guest's name in front of: -EALREADY: it is so already;
 * -EBUSY: not while this lasts; -ESRCH: it does not run. */
int lifecycle_allows(enum lifecycle_state state, enum lifecycle_verb verb, struct err *err);

/* As lifecycle_allows() of LIFECYCLE_VERB_REMOVE; -EPERM for what is protected. */
int lifecycle_may_remove(enum lifecycle_state state, bool protect, struct err *err);

/*
 * Restarts
 */

enum restart_mode {
    RESTART_NO,
    RESTART_ON_FAILURE, /* "on-failure", "on-failure:3" */
    RESTART_ALWAYS,
    RESTART_MODE_MAX,
};

enum {
    RESTART_TRIES_MAX = 1000000,
    RESTART_TEXT_SIZE = 24,
    RESTART_WAIT_FIRST = 100, /* ms; doubled at each try */
    RESTART_WAIT_MAX = 60000, /* ms */
    RESTART_SETTLED = 10000,  /* ms: who ran so long starts to count anew */
};

struct restart_policy {
    enum restart_mode mode;
    unsigned tries; /* of on-failure: so many in a row, 0 = without end */
};

/* -EINVAL with the forms that there are. */
int restart_policy_parse(const char *text, struct restart_policy *ret_policy, struct err *err);
void restart_policy_format(const struct restart_policy *policy, char ret_text[RESTART_TEXT_SIZE]);

/* How a guest ended, for restart_decide(). */
struct restart_end {
    bool failed;       /* it is crashed now, rather than stopped */
    bool asked;        /* somebody had asked it to end: never restarted */
    unsigned tries;    /* restarts in a row before this end */
    uint64_t lived_ms; /* from its start to its end */
};

struct restart_decision {
    bool restart;
    uint64_t wait_ms; /* until then */
    unsigned tries;   /* to be kept for the next end */
};

struct restart_decision restart_decide(const struct restart_policy *policy,
                                       const struct restart_end *end);

/*
 * Order
 */

struct lifecycle_place {
    int order; /* lower ones start first and stop last */
    const char *name;
};

/* Less than, equal to or more than 0, as of qsort(): which of two starts first. Names decide among
 * equals, so that the order is the same each time. */
int lifecycle_start_order(const struct lifecycle_place *a, const struct lifecycle_place *b);
