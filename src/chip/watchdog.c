#include "chip/watchdog.h"

#include "base/bytes.h"
#include "base/record.h"

#include <pthread.h>
#include <stdlib.h>

#define TICK_NS (UINT64_C(1000000) * WATCHDOG_TICK_MS)

struct watchdog {
    pthread_mutex_t lock;
    struct watchdog_config config;
    struct timer timer;
    bool running, expired;
    uint32_t period;
    uint64_t due; /* ns, while running */
};

static void count_anew(struct watchdog *watchdog)
{
    if (!watchdog->running) {
        timer_cancel(&watchdog->timer);
        return;
    }
    watchdog->due = timers_now(watchdog->config.timers) + watchdog->period * TICK_NS;
    timer_arm(&watchdog->timer, watchdog->due);
}

/* A call that was on its way when the guest came by finds the count begun anew. */
static void timer_due(void *opaque)
{
    struct watchdog *watchdog = opaque;
    pthread_mutex_lock(&watchdog->lock);
    bool expired = watchdog->running && timers_now(watchdog->config.timers) >= watchdog->due;
    if (expired) {
        watchdog->running = false;
        watchdog->expired = true;
    }
    pthread_mutex_unlock(&watchdog->lock);
    if (expired)
        watchdog->config.expired(watchdog->config.opaque);
}

static uint32_t ticks_left(const struct watchdog *watchdog)
{
    uint64_t now = timers_now(watchdog->config.timers);
    if (!watchdog->running)
        return watchdog->period;
    return watchdog->due > now ? (uint32_t)((watchdog->due - now + TICK_NS - 1) / TICK_NS) : 0;
}

static uint64_t watchdog_read(void *opaque, uint64_t offset, unsigned size)
{
    struct watchdog *watchdog = opaque;
    uint32_t value = 0;
    if (size != 4)
        return 0;
    pthread_mutex_lock(&watchdog->lock);
    switch (offset) {
    case WATCHDOG_RUNNING: value = watchdog->running; break;
    case WATCHDOG_PERIOD: value = watchdog->period; break;
    case WATCHDOG_COUNT: value = ticks_left(watchdog); break;
    case WATCHDOG_EXPIRED: value = watchdog->expired; break;
    default: break;
    }
    pthread_mutex_unlock(&watchdog->lock);
    return value;
}

static void watchdog_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct watchdog *watchdog = opaque;
    if (size != 4)
        return;
    pthread_mutex_lock(&watchdog->lock);
    switch (offset) {
    case WATCHDOG_RUNNING:
        watchdog->running = value & 1;
        count_anew(watchdog);
        break;
    case WATCHDOG_PERIOD:
        watchdog->period =
            min(max((uint32_t)value, (uint32_t)WATCHDOG_PERIOD_MIN), (uint32_t)WATCHDOG_PERIOD_MAX);
        count_anew(watchdog);
        break;
    case WATCHDOG_COUNT: count_anew(watchdog); break;
    case WATCHDOG_EXPIRED: watchdog->expired = false; break;
    default: break;
    }
    pthread_mutex_unlock(&watchdog->lock);
}

const struct bus_ops watchdog_ops = {
    .name = "watchdog", .read = watchdog_read, .write = watchdog_write};
static void watchdog_state(void *opaque, struct record *record)
{
    struct watchdog *watchdog = opaque;
    pthread_mutex_lock(&watchdog->lock);
    record_bool(record, &watchdog->running);
    record_bool(record, &watchdog->expired);
    record_u32_below(record, &watchdog->period, WATCHDOG_PERIOD_MAX + 1);
    record_u64(record, &watchdog->due);
    if (record->loading) {
        timer_cancel(&watchdog->timer);
        if (watchdog->running)
            timer_arm(&watchdog->timer, watchdog->due);
    }
    pthread_mutex_unlock(&watchdog->lock);
}

const struct device_ops watchdog_device = {.name = "watchdog",
                                           .reset = watchdog_reset,
                                           .free = watchdog_free,
                                           .state = watchdog_state,
                                           .state_version = 1};

/* Whether it expired is what the next system wants to know: that stays. */
void watchdog_reset(void *opaque)
{
    struct watchdog *watchdog = opaque;
    pthread_mutex_lock(&watchdog->lock);
    watchdog->running = false;
    watchdog->period = WATCHDOG_PERIOD_RESET;
    count_anew(watchdog);
    pthread_mutex_unlock(&watchdog->lock);
}

struct watchdog *watchdog_new(const struct watchdog_config *config)
{
    struct watchdog *watchdog = calloc(1, sizeof *watchdog);
    if (!watchdog)
        return NULL;
    pthread_mutex_init(&watchdog->lock, NULL);
    watchdog->config = *config;
    timer_init(&watchdog->timer, config->timers, timer_due, watchdog);
    watchdog_reset(watchdog);
    return watchdog;
}

void watchdog_free(void *opaque)
{
    struct watchdog *watchdog = opaque;
    if (!watchdog)
        return;
    pthread_mutex_destroy(&watchdog->lock);
    free(watchdog);
}
