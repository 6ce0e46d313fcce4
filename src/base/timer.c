/*
 * A binary heap under one mutex and a thread that sleeps until its top is due. The heap holds
 * pointers to timers embedded in devices; a machine has a few dozen at most.
 */
#include "base/timer.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

struct timers {
    pthread_mutex_t lock;
    pthread_cond_t changed, idle;
    pthread_t thread;
    struct timer **heap;
    size_t count, room;
    uint64_t base; /* host ns minus guest ns while running; guest ns while paused */
    bool paused, stop, has_thread;
    bool firing;          /* the thread is inside a callback */
    uint64_t looks_again; /* the thread, by itself; a guest that puts a timer off wakes nobody */
    uint64_t (*clock)(void *opaque); /* driven: no thread, no `base` */
    void *clock_opaque;
};

static uint64_t now_locked(const struct timers *timers)
{
    if (timers->clock)
        return timers->clock(timers->clock_opaque);
    return timers->paused ? timers->base : clock_ns() - timers->base;
}

static void heap_put(struct timers *timers, size_t slot, struct timer *timer)
{
    timers->heap[slot] = timer;
    timer->heap_slot = slot;
}

static void heap_up(struct timers *timers, size_t slot)
{
    struct timer *timer = timers->heap[slot];
    while (slot > 0 && timers->heap[(slot - 1) / 2]->at > timer->at) {
        heap_put(timers, slot, timers->heap[(slot - 1) / 2]);
        slot = (slot - 1) / 2;
    }
    heap_put(timers, slot, timer);
}

static void heap_down(struct timers *timers, size_t slot)
{
    struct timer *timer = timers->heap[slot];
    for (;;) {
        size_t child = slot * 2 + 1;
        if (child >= timers->count)
            break;
        if (child + 1 < timers->count && timers->heap[child + 1]->at < timers->heap[child]->at)
            child++;
        if (timers->heap[child]->at >= timer->at)
            break;
        heap_put(timers, slot, timers->heap[child]);
        slot = child;
    }
    heap_put(timers, slot, timer);
}

static void heap_remove(struct timers *timers, struct timer *timer)
{
    size_t slot = timer->heap_slot;
    timer->heap_slot = SIZE_MAX;
    struct timer *last = timers->heap[--timers->count];
    if (last == timer)
        return;
    heap_put(timers, slot, last);
    heap_up(timers, slot);
    heap_down(timers, last->heap_slot);
}

/* Calls the first timer's callback; `lock` is held before and after, not during. */
static void fire_first(struct timers *timers)
{
    struct timer *first = timers->heap[0];
    heap_remove(timers, first);
    void (*due)(void *) = first->due;
    void *due_opaque = first->opaque;
    pthread_mutex_unlock(&timers->lock);
    due(due_opaque);
    pthread_mutex_lock(&timers->lock);
}

static void *timers_thread(void *opaque)
{
    struct timers *timers = opaque;
    /* By the thread itself: naming another one opens a file in /proc, which a jail may refuse. */
    pthread_setname_np(pthread_self(), "timers");
    pthread_mutex_lock(&timers->lock);
    while (!timers->stop) {
        timers->looks_again = UINT64_MAX;
        if (timers->paused || timers->count == 0) {
            pthread_cond_wait(&timers->changed, &timers->lock);
            continue;
        }
        struct timer *next = timers->heap[0];
        uint64_t now = now_locked(timers);
        if (next->at > now) {
            /* By what is left: `base` wraps round where the guest's clock is ahead of the host's,
             * as that of a guest which has run for longer than this host. */
            uint64_t wake = clock_ns(), left = next->at - now;
            wake = left < UINT64_MAX - wake ? wake + left : UINT64_MAX;
            struct timespec until = {.tv_sec = (time_t)(wake / NSEC_PER_SEC),
                                     .tv_nsec = (long)(wake % NSEC_PER_SEC)};
            timers->looks_again = next->at;
            pthread_cond_clockwait(&timers->changed, &timers->lock, CLOCK_MONOTONIC, &until);
            continue;
        }
        timers->looks_again = 0;
        timers->firing = true;
        fire_first(timers);
        timers->firing = false;
        pthread_cond_broadcast(&timers->idle);
    }
    pthread_mutex_unlock(&timers->lock);
    return NULL;
}

static struct timers *timers_make(void)
{
    struct timers *timers = calloc(1, sizeof *timers);
    if (!timers)
        return NULL;
    timers->base = clock_ns();
    pthread_mutex_init(&timers->lock, NULL);
    pthread_cond_init(&timers->changed, NULL);
    pthread_cond_init(&timers->idle, NULL);
    return timers;
}

struct timers *timers_new_driven(uint64_t (*clock)(void *opaque), void *opaque)
{
    struct timers *timers = timers_make();
    if (!timers)
        return NULL;
    timers->clock = clock;
    timers->clock_opaque = opaque;
    return timers;
}

struct timers *timers_new_paused(void)
{
    struct timers *timers = timers_make();
    if (!timers)
        return NULL;
    timers->base = 0;
    timers->paused = true;
    return timers;
}

int timers_begin(struct timers *timers)
{
    if (timers->clock || timers->has_thread)
        return 0;
    int number = pthread_create(&timers->thread, NULL, timers_thread, timers);
    timers->has_thread = number == 0;
    return -number;
}

struct timers *timers_new(void)
{
    struct timers *timers = timers_make();
    if (timers && timers_begin(timers) < 0) {
        timers_free(timers);
        return NULL;
    }
    return timers;
}

void timers_free(struct timers *timers)
{
    if (!timers)
        return;
    pthread_mutex_lock(&timers->lock);
    timers->stop = true;
    pthread_cond_signal(&timers->changed);
    pthread_mutex_unlock(&timers->lock);
    if (timers->has_thread)
        pthread_join(timers->thread, NULL);
    pthread_cond_destroy(&timers->idle);
    pthread_cond_destroy(&timers->changed);
    pthread_mutex_destroy(&timers->lock);
    free(timers->heap);
    free(timers);
}

uint64_t timers_now(struct timers *timers)
{
    pthread_mutex_lock(&timers->lock);
    uint64_t now = now_locked(timers);
    pthread_mutex_unlock(&timers->lock);
    return now;
}

void timers_pause(struct timers *timers)
{
    pthread_mutex_lock(&timers->lock);
    if (!timers->paused && !timers->clock) {
        timers->base = now_locked(timers);
        timers->paused = true;
    }
    pthread_mutex_unlock(&timers->lock);
}

void timers_resume(struct timers *timers)
{
    pthread_mutex_lock(&timers->lock);
    if (timers->paused) {
        timers->base = clock_ns() - timers->base;
        timers->paused = false;
        pthread_cond_signal(&timers->changed);
    }
    pthread_mutex_unlock(&timers->lock);
}

void timers_settle(struct timers *timers)
{
    pthread_mutex_lock(&timers->lock);
    while (timers->firing)
        pthread_cond_wait(&timers->idle, &timers->lock);
    while (timers->paused && timers->count && timers->heap[0]->at <= timers->base)
        fire_first(timers);
    pthread_mutex_unlock(&timers->lock);
}

void timers_set_now(struct timers *timers, uint64_t now)
{
    pthread_mutex_lock(&timers->lock);
    timers->base = timers->paused ? now : clock_ns() - now;
    pthread_cond_signal(&timers->changed);
    pthread_mutex_unlock(&timers->lock);
}

uint64_t timers_next(struct timers *timers)
{
    pthread_mutex_lock(&timers->lock);
    uint64_t at = timers->count ? timers->heap[0]->at : UINT64_MAX;
    pthread_mutex_unlock(&timers->lock);
    return at;
}

void timers_fire(struct timers *timers, uint64_t now)
{
    pthread_mutex_lock(&timers->lock);
    while (timers->count && timers->heap[0]->at <= now)
        fire_first(timers);
    pthread_mutex_unlock(&timers->lock);
}

void timer_init(struct timer *timer, struct timers *timers, void (*due)(void *opaque), void *opaque)
{
    *timer = (struct timer){.timers = timers, .due = due, .opaque = opaque, .heap_slot = SIZE_MAX};
}

void timer_arm(struct timer *timer, uint64_t at)
{
    struct timers *timers = timer->timers;
    pthread_mutex_lock(&timers->lock);
    if (timer->heap_slot != SIZE_MAX)
        heap_remove(timers, timer);
    if (timers->count == timers->room) {
        size_t room = timers->room ? timers->room * 2 : 16;
        struct timer **heap = reallocarray(timers->heap, room, sizeof *heap);
        /* A few hundred bytes, once: a host that cannot give them cannot run a guest. */
        assert(heap);
        timers->heap = heap;
        timers->room = room;
    }
    timer->at = at;
    timers->heap[timers->count] = timer;
    heap_up(timers, timers->count++);
    if (at < timers->looks_again)
        pthread_cond_signal(&timers->changed);
    pthread_mutex_unlock(&timers->lock);
}

void timer_cancel(struct timer *timer)
{
    struct timers *timers = timer->timers;
    pthread_mutex_lock(&timers->lock);
    if (timer->heap_slot != SIZE_MAX)
        heap_remove(timers, timer);
    pthread_mutex_unlock(&timers->lock);
}

bool timer_armed(struct timer *timer)
{
    pthread_mutex_lock(&timer->timers->lock);
    bool armed = timer->heap_slot != SIZE_MAX;
    pthread_mutex_unlock(&timer->timers->lock);
    return armed;
}
