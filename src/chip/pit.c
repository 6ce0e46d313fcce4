/*
 * Nothing here ticks. A channel is "this count, loaded at that tick", and count, output and the
 * next interrupt follow from the present tick when somebody asks. Ticks are counted from the
 * start of the guest's clock, in whole periods of 1.193182 MHz.
 *
 * Two things make a channel more than a formula, and channel_settle() keeps them: in the periodic
 * modes a new count waits for the end of the period under way (`next`, `next_at`), and a low gate
 * stops the count (`held`).
 */
#include "chip/pit.h"

#include "base/bytes.h"
#include "base/record.h"
#include "chip/isa.h"

#include <pthread.h>
#include <stdlib.h>

enum {
    REFRESH_NS = 15085,

    STATUS_OUT = 1 << 7,
    STATUS_NULL = 1 << 6,
};

struct pit {
    pthread_mutex_t lock;
    struct pit_state now;
    uint64_t edge; /* tick of channel 0's next interrupt; UINT64_MAX = none */
    struct timers *timers;
    struct timer timer;
    struct irq_line irq;
};

static uint64_t tick_now(const struct pit *pit)
{
    return (uint64_t)((unsigned __int128)timers_now(pit->timers) * PIT_HZ / NSEC_PER_SEC);
}

/* The first nanosecond at which tick_now() is `tick`. */
static uint64_t tick_ns(uint64_t tick)
{
    return (uint64_t)(((unsigned __int128)tick * NSEC_PER_SEC + PIT_HZ - 1) / PIT_HZ);
}

static bool periodic(const struct pit_channel *channel)
{
    return channel->mode == 2 || channel->mode == 3;
}

static bool triggered(const struct pit_channel *channel)
{
    return channel->mode == 1 || channel->mode == 5;
}

/* --- one channel --- */

static void channel_load(struct pit_channel *channel, uint32_t count, uint64_t tick)
{
    /* The count reaches the counting element at the next clock. */
    channel->count = count;
    channel->start = tick + 1;
    channel->next_valid = false;
    channel->running = true;
}

static void channel_settle(struct pit_channel *channel, uint64_t tick)
{
    if (!channel->next_valid || tick < channel->next_at)
        return;
    channel->count = channel->next;
    channel->start = channel->next_at;
    channel->next_valid = false;
}

static uint64_t elapsed(const struct pit_channel *channel, uint64_t tick)
{
    if (!channel->running)
        return channel->held;
    return tick < channel->start ? 0 : tick - channel->start;
}

static bool channel_out(const struct pit_channel *channel, uint64_t tick)
{
    uint64_t ticks = elapsed(channel, tick), count = channel->count;
    bool counts = channel->loaded && count > 0;
    switch (channel->mode) {
    case 0: return counts && ticks >= count;
    case 1: return !counts || ticks >= count;
    case 2: return !counts || !channel->running || ticks % count != count - 1;
    case 3: return !counts || !channel->running || ticks % count < (count + 1) / 2;
    default: return !counts || ticks != count;
    }
}

/* The counting element, as a number and not yet in BCD. */
static uint32_t channel_count(const struct pit_channel *channel, uint64_t tick)
{
    uint64_t ticks = elapsed(channel, tick), count = channel->count;
    if (!channel->loaded || count == 0)
        return 0;
    if (channel->mode == 2)
        return (uint32_t)(count - ticks % count);
    if (channel->mode == 3) {
        /* Down by two; an odd count loads one less and stays high one clock longer. */
        uint64_t phase = ticks % count, half = (count + 1) / 2;
        return (uint32_t)((count & ~1ull) - 2 * (phase < half ? phase : phase - half));
    }
    uint64_t wrap = channel->bcd ? 10000 : 65536;
    return (uint32_t)((count + wrap - ticks % wrap) % wrap);
}

/* What a read sees: sixteen bits, BCD digits where asked for. 65536 and 10000 read as 0. */
static uint16_t channel_value(const struct pit_channel *channel, uint64_t tick)
{
    uint32_t count = channel_count(channel, tick);
    if (!channel->bcd)
        return (uint16_t)count;
    uint32_t digits = 0;
    for (unsigned i = 0; i < 4; i++, count /= 10)
        digits |= count % 10 << 4 * i;
    return (uint16_t)digits;
}

static uint32_t count_from(const struct pit_channel *channel, uint16_t written)
{
    if (!channel->bcd)
        return written ? written : 65536;
    uint32_t count = 0;
    for (int i = 3; i >= 0; i--)
        count = count * 10 + (written >> 4 * i & 0xf);
    return count ? min(count, 10000u) : 10000;
}

/* The tick at which the output rises next, after `tick`; UINT64_MAX = not by itself. */
static uint64_t next_edge(const struct pit_channel *channel, uint64_t tick)
{
    if (!channel->loaded || !channel->running || channel->count == 0)
        return UINT64_MAX;
    uint64_t count = channel->count, edge;
    if (periodic(channel))
        edge = channel->start + (elapsed(channel, tick) / count + 1) * count;
    else if (channel->mode == 4 || channel->mode == 5)
        edge = channel->start + count + 1;
    else
        edge = channel->start + count;
    return edge > tick ? edge : UINT64_MAX;
}

static void channel_gate(struct pit_channel *channel, bool gate, uint64_t tick)
{
    channel_settle(channel, tick);
    bool rising = gate && !channel->gate;
    channel->gate = gate;
    if (!channel->loaded)
        return;
    if (!gate && channel->running && !triggered(channel)) {
        channel->held = elapsed(channel, tick);
        channel->running = false;
    }
    if (!rising)
        return;
    if (channel->mode == 0 || channel->mode == 4) {
        if (!channel->running)
            channel->start = tick - min(channel->held, tick);
        channel->running = true;
    } else {
        channel_load(channel, channel->next_valid ? channel->next : channel->count, tick);
    }
}

/* A complete count was written. */
static void channel_write_count(struct pit_channel *channel, uint16_t written, uint64_t tick)
{
    uint32_t count = count_from(channel, written);
    channel_settle(channel, tick);
    if (periodic(channel) && channel->loaded) {
        channel->next = count;
        channel->next_valid = true;
        channel->next_at = UINT64_MAX;
        if (channel->running)
            channel->next_at =
                channel->start + (elapsed(channel, tick) / channel->count + 1) * channel->count;
        return;
    }
    if (triggered(channel)) {
        /* Idle, and past its terminal count, until the gate rises. */
        if (!channel->loaded) {
            channel->held = UINT32_MAX;
            channel->running = false;
            channel->count = count;
        }
        channel->next = count;
        channel->next_valid = true;
        channel->next_at = UINT64_MAX;
        channel->loaded = true;
        return;
    }
    channel->loaded = true;
    channel_load(channel, count, tick);
    if (!channel->gate) {
        channel->held = 0;
        channel->running = false;
    }
}

static void channel_write(struct pit_channel *channel, uint8_t value, uint64_t tick)
{
    if (channel->access == PIT_ACCESS_LOW) {
        channel_write_count(channel, value, tick);
    } else if (channel->access == PIT_ACCESS_HIGH) {
        channel_write_count(channel, (uint16_t)(value << 8), tick);
    } else if (channel->write_high) {
        channel->write_high = false;
        channel_write_count(channel, (uint16_t)(value << 8 | channel->write_low), tick);
    } else {
        channel->write_high = true;
        channel->write_low = value;
        /* In mode 0 the first byte stops the count and lowers the output. */
        if (channel->mode == 0)
            channel->loaded = false;
    }
}

static uint8_t channel_read(struct pit_channel *channel, uint64_t tick)
{
    channel_settle(channel, tick);
    if (channel->status_latched) {
        channel->status_latched = false;
        return channel->status;
    }
    uint16_t value = channel->count_latched ? channel->latch : channel_value(channel, tick);
    bool high = channel->access == PIT_ACCESS_HIGH;
    bool last = true;
    if (channel->access == PIT_ACCESS_BOTH) {
        high = channel->read_high;
        last = high;
        channel->read_high = !high;
    }
    if (last)
        channel->count_latched = false;
    return (uint8_t)(high ? value >> 8 : value);
}

static void latch_count(struct pit_channel *channel, uint64_t tick)
{
    channel_settle(channel, tick);
    if (channel->count_latched)
        return;
    channel->latch = channel_value(channel, tick);
    channel->count_latched = true;
}

static void latch_status(struct pit_channel *channel, uint64_t tick)
{
    channel_settle(channel, tick);
    if (channel->status_latched)
        return;
    bool null =
        !channel->loaded || channel->next_valid || (channel->running && tick < channel->start);
    channel->status =
        (uint8_t)((channel_out(channel, tick) ? STATUS_OUT : 0) | (null ? STATUS_NULL : 0) |
                  channel->access << 4 | channel->mode << 1 | channel->bcd);
    channel->status_latched = true;
}

static void channel_control(struct pit_channel *channel, uint8_t value)
{
    unsigned mode = value >> 1 & 7;
    *channel = (struct pit_channel){.mode = (uint8_t)(mode > 5 ? mode - 4 : mode),
                                    .access = value >> 4 & 3,
                                    .bcd = value & 1,
                                    .gate = channel->gate};
}

/* --- the interrupt of channel 0 --- */

/* After any change of channel 0: its line and its next interrupt. */
static void interrupt_update(struct pit *pit, uint64_t tick, uint64_t not_before_ns)
{
    struct pit_channel *channel = &pit->now.channel[0];
    channel_settle(channel, tick);
    pit->edge = next_edge(channel, tick);
    /* Periodic outputs are high but for pulses that interrupt_due() makes. */
    irq_set(&pit->irq, periodic(channel) || channel_out(channel, tick));
    if (pit->edge == UINT64_MAX)
        timer_cancel(&pit->timer);
    else
        timer_arm(&pit->timer, max(tick_ns(pit->edge), not_before_ns));
}

static void interrupt_due(void *opaque)
{
    struct pit *pit = opaque;
    pthread_mutex_lock(&pit->lock);
    uint64_t tick = tick_now(pit);
    /* The guest may have stopped or moved it while this callback was on its way. */
    if (tick >= pit->edge) {
        irq_set(&pit->irq, false);
        irq_set(&pit->irq, true);
        interrupt_update(pit, tick, timers_now(pit->timers) + PIT_PERIOD_MIN_NS);
    }
    pthread_mutex_unlock(&pit->lock);
}

/* --- registers --- */

static void control_write(struct pit *pit, uint8_t value, uint64_t tick)
{
    if (value >> 6 == 3) { /* read-back */
        for (unsigned i = 0; i < PIT_CHANNELS; i++) {
            if (!(value & 2u << i))
                continue;
            if (!(value & 0x20))
                latch_count(&pit->now.channel[i], tick);
            if (!(value & 0x10))
                latch_status(&pit->now.channel[i], tick);
        }
        return;
    }
    struct pit_channel *channel = &pit->now.channel[value >> 6];
    if ((value >> 4 & 3) == PIT_ACCESS_LATCH) {
        latch_count(channel, tick);
        return;
    }
    channel_control(channel, value);
    if (channel == &pit->now.channel[0])
        interrupt_update(pit, tick, 0);
}

static void write8(void *opaque, unsigned offset, uint8_t value)
{
    struct pit *pit = opaque;
    pthread_mutex_lock(&pit->lock);
    uint64_t tick = tick_now(pit);
    if (offset == PIT_CHANNELS) {
        control_write(pit, value, tick);
    } else if (offset < PIT_CHANNELS) {
        channel_write(&pit->now.channel[offset], value, tick);
        if (offset == 0)
            interrupt_update(pit, tick, 0);
    }
    pthread_mutex_unlock(&pit->lock);
}

static uint8_t read8(void *opaque, unsigned offset)
{
    struct pit *pit = opaque;
    if (offset >= PIT_CHANNELS)
        return 0xff; /* the control word register cannot be read */
    pthread_mutex_lock(&pit->lock);
    uint8_t value = channel_read(&pit->now.channel[offset], tick_now(pit));
    pthread_mutex_unlock(&pit->lock);
    return value;
}

static uint64_t pit_read(void *pit, uint64_t offset, unsigned size)
{
    return isa_read(read8, pit, offset, size);
}

static void pit_write(void *pit, uint64_t offset, unsigned size, uint64_t value)
{
    isa_write(write8, pit, offset, size, value);
}

static uint64_t speaker_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pit *pit = opaque;
    pthread_mutex_lock(&pit->lock);
    uint64_t tick = tick_now(pit);
    channel_settle(&pit->now.channel[2], tick);
    uint8_t value = pit->now.port61;
    if (channel_out(&pit->now.channel[2], tick))
        value |= PIT_PORT61_OUT;
    if (timers_now(pit->timers) / REFRESH_NS & 1)
        value |= PIT_PORT61_REFRESH;
    pthread_mutex_unlock(&pit->lock);
    return value;
}

static void speaker_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pit *pit = opaque;
    pthread_mutex_lock(&pit->lock);
    pit->now.port61 = value & PIT_PORT61_WRITABLE;
    channel_gate(&pit->now.channel[2], value & PIT_PORT61_GATE, tick_now(pit));
    pthread_mutex_unlock(&pit->lock);
}

const struct bus_ops pit_ops = {.name = "pit", .read = pit_read, .write = pit_write};
const struct bus_ops pit_speaker_ops = {
    .name = "pit-speaker", .read = speaker_read, .write = speaker_write};
static void pit_state(void *opaque, struct record *record)
{
    struct pit *pit = opaque;
    pthread_mutex_lock(&pit->lock);
    pit_state_record(&pit->now, record);
    if (record->loading && !record->failed)
        interrupt_update(pit, tick_now(pit), 0);
    pthread_mutex_unlock(&pit->lock);
}

const struct device_ops pit_device = {.name = "pit",
                                      .reset = pit_reset,
                                      .free = pit_free,
                                      .state = pit_state,
                                      .state_version = PIT_STATE_VERSION};

void pit_reset(void *opaque)
{
    struct pit *pit = opaque;
    pthread_mutex_lock(&pit->lock);
    for (unsigned i = 0; i < PIT_CHANNELS; i++)
        pit->now.channel[i] =
            (struct pit_channel){.mode = 3, .access = PIT_ACCESS_BOTH, .gate = i != 2};
    pit->now.port61 = 0;
    interrupt_update(pit, tick_now(pit), 0);
    pthread_mutex_unlock(&pit->lock);
}

struct pit *pit_new(const struct pit_config *config)
{
    struct pit *pit = calloc(1, sizeof *pit);
    if (!pit)
        return NULL;
    pthread_mutex_init(&pit->lock, NULL);
    pit->timers = config->timers;
    pit->irq = config->irq;
    timer_init(&pit->timer, pit->timers, interrupt_due, pit);
    pit_reset(pit);
    return pit;
}

void pit_free(void *opaque)
{
    struct pit *pit = opaque;
    if (!pit)
        return;
    pthread_mutex_destroy(&pit->lock);
    free(pit);
}
