/*
 * The local APIC's timer: one-shot, periodic, TSC deadline (SDM 11.5.4).
 *
 * `fire_at` is when the guest's timer expires, `armed_at` when the host's timer will call. They
 * differ on purpose: kernels move their deadline far more often than they let it pass, mostly
 * later, so a host timer that is due earlier is left alone and re-armed when it calls. Setting a
 * later deadline or none then costs neither the timers' lock nor a wake-up of their thread.
 *
 * Race: timer_due() may be on its way while the vCPU re-programs. It takes the mutex, forgets
 * armed_at, and looks at fire_at as it is by then, so an outdated call re-arms or does nothing.
 */
#include "base/bytes.h"
#include "chip/apic_local.h"

enum {
    NS_PER_TICK = NSEC_PER_SEC / APIC_TIMER_HZ,
    /* The host's clock and its TSC may drift apart a little; a deadline called early by that is
     * tried again, so often at most, in case the guest's TSC stands still. */
    EARLY_MAX = 4,
    EARLY_WAIT_NS = 1000,
};

static uint64_t now_ns(const struct local *local)
{
    return timers_now(local->apic->config.timers);
}

static uint64_t tick_ns(const struct local *local)
{
    /* Bits 0, 1 and 3: 000 divides by 2, ... 110 by 128, 111 by 1. */
    uint32_t code = (local->timer_divide & 3) | (local->timer_divide >> 1 & 4);
    return (uint64_t)NS_PER_TICK << ((code + 1) & 7);
}

static bool deadline_mode(const struct local *local)
{
    return (local->lvt[LVT_TIMER] & LVT_TIMER_MODE) == LVT_DEADLINE;
}

static void arm(struct local *local, uint64_t at)
{
    if (at >= local->armed_at)
        return;
    local->armed_at = at;
    timer_arm(&local->timer, at);
}

static void schedule(struct local *local, uint64_t now, uint64_t delay)
{
    local->fire_at = delay < UINT64_MAX - 1 - now ? now + delay : UINT64_MAX - 1;
    arm(local, local->fire_at);
}

static uint64_t deadline_ns(const struct local *local, uint64_t tsc)
{
    unsigned __int128 ns =
        (unsigned __int128)(local->deadline - tsc) * 1000000 / local->apic->config.tsc_khz + 1;
    return ns > UINT64_MAX ? UINT64_MAX : (uint64_t)ns;
}

static uint64_t tsc_now(const struct local *local)
{
    return local->apic->config.tsc(local->apic->config.opaque, local->index);
}

static void expire(struct local *local, uint64_t now)
{
    if (deadline_mode(local)) {
        uint64_t tsc = tsc_now(local);
        if (tsc < local->deadline && local->early < EARLY_MAX) {
            local->early++;
            schedule(local, now, max(deadline_ns(local, tsc), (uint64_t)EARLY_WAIT_NS));
            return;
        }
        local->deadline = 0;
    }
    uint64_t period = local->timer_initial * tick_ns(local);
    if ((local->lvt[LVT_TIMER] & LVT_TIMER_MODE) == LVT_PERIODIC && period) {
        /* Periods that passed meanwhile are one interrupt; the grid stays. */
        local->fire_at += ((now - local->fire_at) / period + 1) * period;
        arm(local, max(local->fire_at, now + APIC_PERIOD_MIN_NS));
    } else {
        local->fire_at = UINT64_MAX;
    }
    local_interrupt(local, LVT_TIMER);
}

static void timer_due(void *opaque)
{
    struct local *local = opaque;
    local_enter(local);
    local->armed_at = UINT64_MAX;
    uint64_t now = now_ns(local);
    if (now >= local->fire_at)
        expire(local, now);
    else if (local->fire_at != UINT64_MAX)
        arm(local, local->fire_at);
    local_leave(local);
}

void local_timer_init(struct local *local)
{
    timer_init(&local->timer, local->apic->config.timers, timer_due, local);
    local->armed_at = UINT64_MAX;
    local_timer_stop(local);
}

void local_timer_stop(struct local *local)
{
    local->timer_initial = 0;
    local->deadline = 0;
    local->fire_at = UINT64_MAX;
}

void local_timer_start(struct local *local, uint32_t initial)
{
    if (deadline_mode(local))
        return;
    local->timer_initial = initial;
    local->fire_at = UINT64_MAX;
    if (initial)
        schedule(local, now_ns(local), initial * tick_ns(local));
}

uint32_t local_timer_count(const struct local *local)
{
    if (deadline_mode(local) || local->fire_at == UINT64_MAX)
        return 0;
    uint64_t now = now_ns(local), tick = tick_ns(local), left;
    if (now < local->fire_at) {
        left = local->fire_at - now;
    } else {
        /* Due, but the callback has not run yet. */
        uint64_t period = local->timer_initial * tick;
        if ((local->lvt[LVT_TIMER] & LVT_TIMER_MODE) != LVT_PERIODIC || !period)
            return 0;
        left = period - (now - local->fire_at) % period;
    }
    return (uint32_t)((left + tick - 1) / tick);
}

void local_timer_set_divide(struct local *local, uint32_t value)
{
    uint32_t count = local_timer_count(local);
    local->timer_divide = value & 0xb;
    if (count)
        schedule(local, now_ns(local), count * tick_ns(local));
}

void local_timer_set_deadline(struct local *local, uint64_t deadline)
{
    if (!deadline_mode(local) || !local_enabled(local))
        return;
    local->deadline = deadline;
    local->early = 0;
    local->fire_at = UINT64_MAX;
    if (!deadline)
        return;
    uint64_t tsc = tsc_now(local);
    if (deadline > tsc) {
        schedule(local, now_ns(local), deadline_ns(local, tsc));
    } else {
        /* Already past: here and now, without the timers' thread. */
        local->deadline = 0;
        local_interrupt(local, LVT_TIMER);
    }
}

void local_timer_mode_changed(struct local *local, uint32_t before)
{
    uint32_t after = local->lvt[LVT_TIMER];
    /* Into and out of deadline mode disarms; one-shot and periodic share a running count. */
    if (((before & LVT_TIMER_MODE) == LVT_DEADLINE) != ((after & LVT_TIMER_MODE) == LVT_DEADLINE))
        local_timer_stop(local);
}

void local_timer_load(struct local *local, uint32_t initial, uint32_t divide, uint32_t count)
{
    local_timer_stop(local);
    local->timer_initial = initial;
    local->timer_divide = divide & 0xb;
    bool periodic = (local->lvt[LVT_TIMER] & LVT_TIMER_MODE) == LVT_PERIODIC;
    if (!count && periodic)
        count = initial;
    if (count && initial && !deadline_mode(local))
        schedule(local, now_ns(local), min(count, initial) * tick_ns(local));
}
