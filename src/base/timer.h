/*
 * timer.h: the guest's clock and what is due on it.
 *
 * A `struct timers` is one clock with one thread. Its time is nanoseconds that start at 0 and stand
 * still while the machine is paused, so that a device never learns of the pause. A `struct timer`
 * is embedded in the device that owns it and fires at most once per timer_arm().
 *
 * A *driven* clock (timers_new_driven()) has no thread: its time is what a function of the owner's
 * says, and callbacks run inside timers_fire(), on the caller's thread. Deterministic machines have
 * one.
 *
 * Threads: every function may be called from any thread. The callback runs on the timers' own
 * thread with no lock held; it may arm and cancel timers, itself included. timer_cancel() does not
 * wait: a callback that is already on its way may still run once, so a device looks at its own
 * state under its own lock when called. timers_free() joins the thread; after it no callback runs.
 *
 * Errors: timers_new*() return NULL when no memory or thread is to be had.
 */
#pragma once

#include "base/clock.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct timers;

struct timer {
    struct timers *timers;
    void (*due)(void *opaque);
    void *opaque;
    uint64_t at;      /* ns on the timers' clock */
    size_t heap_slot; /* SIZE_MAX when not armed */
};

struct timers *timers_new(void);
/* One whose clock stands at 0, without its thread: nothing fires until timers_begin(), which may
 * come after timers_resume(). 0 or -errno. */
struct timers *timers_new_paused(void);
int timers_begin(struct timers *timers);
/* `clock` is called with the timers' lock held. Pausing and setting the time mean nothing here. */
struct timers *timers_new_driven(uint64_t (*clock)(void *opaque), void *opaque);
void timers_free(struct timers *timers);

/* Nanoseconds of guest time: monotonic, stopped while paused. */
uint64_t timers_now(struct timers *timers);

/* Stops and continues the clock. Pausing twice is one pause. */
void timers_pause(struct timers *timers);
void timers_resume(struct timers *timers);

/* While paused: runs what was due when the clock stopped, and returns when no callback is under
 * way. After it nothing of the timers happens until timers_resume(). */
void timers_settle(struct timers *timers);

/* Sets the clock to `now` (restore of a snapshot). Timers armed in the past fire at once. */
void timers_set_now(struct timers *timers, uint64_t now);

/* Driven clocks: when the first timer is due, UINT64_MAX when none is armed; and the callbacks of
 * all that are due at `now`, in their order, those that they arm meanwhile included. */
uint64_t timers_next(struct timers *timers);
void timers_fire(struct timers *timers, uint64_t now);

void timer_init(struct timer *timer, struct timers *timers, void (*due)(void *opaque),
                void *opaque);

/* Fires once at `at` (ns, absolute); a time already past fires at once. Replaces an earlier one. */
void timer_arm(struct timer *timer, uint64_t at);
void timer_cancel(struct timer *timer);
bool timer_armed(struct timer *timer);
