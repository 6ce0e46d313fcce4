/*
 * The chip keeps no time. While it runs, the time registers are computed from the host's clock:
 *
 *     t       = realtime + phase          (phase: 0 .. 1 s, where the chip's seconds begin)
 *     seconds = t / 1 s + shift           (shift: what the guest moved the time by)
 *
 * While it stands (SET, or the divider held in reset) the registers are plain memory; starting
 * turns them back into a shift. Flags in register C are settled lazily, when somebody looks or a
 * timer fires; timers run only for interrupts that are enabled.
 */
#include "chip/rtc.h"

#include "base/bytes.h"
#include "base/record.h"
#include "chip/isa.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

enum {
    REG_SECONDS = 0x00,
    REG_SECONDS_ALARM = 0x01,
    REG_MINUTES = 0x02,
    REG_MINUTES_ALARM = 0x03,
    REG_HOURS = 0x04,
    REG_HOURS_ALARM = 0x05,
    REG_WEEKDAY = 0x06,
    REG_DAY = 0x07,
    REG_MONTH = 0x08,
    REG_YEAR = 0x09,
    REG_A = 0x0a,
    REG_B = 0x0b,
    REG_C = 0x0c,
    REG_D = 0x0d,

    A_UIP = 0x80,
    A_DIVIDER_RESET = 0x60, /* both bits */
    B_24H = 0x02,
    B_BINARY = 0x04,
    B_UPDATE = 0x10,
    B_ALARM = 0x20,
    B_PERIODIC = 0x40,
    B_SET = 0x80,
    C_FLAGS = 0x70, /* the same bits as their enables in B */
    C_IRQ = 0x80,
    D_VALID = 0x80,

    HOUR_PM = 0x80,
    ALARM_ANY = 0xc0,

    UPDATE_NS = 244000 + 1984000,
    DAY = 86400,
    WAKE_MIN_NS = 10000,
};

struct rtc {
    pthread_mutex_t lock;
    struct rtc_config config;
    uint8_t cmos[RTC_CMOS_SIZE];
    uint8_t index; /* bit 7: NMI disabled */
    bool stopped, irq;
    int64_t phase;            /* ns, 0 .. 1e9 */
    int64_t shift;            /* seconds */
    int64_t settled;          /* the second up to which UF and AF are known */
    uint64_t settled_periods; /* the same for PF */
    unsigned weekday_shift;
    struct timer second_timer, period_timer;
};

static int64_t host_realtime(void *opaque)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * NSEC_PER_SEC + now.tv_nsec;
}

/* Seconds of the guest's time of day since 1970, and the nanoseconds into the present one. */
static int64_t seconds_now(const struct rtc *rtc, int64_t *ret_ns)
{
    int64_t t = rtc->config.realtime(rtc->config.realtime_opaque) + rtc->phase;
    int64_t ns = t % NSEC_PER_SEC;
    if (ns < 0)
        ns += NSEC_PER_SEC;
    if (ret_ns)
        *ret_ns = ns;
    return (t - ns) / NSEC_PER_SEC + rtc->shift;
}

/* --- calendar: days since 1970-01-01 in the proleptic Gregorian calendar --- */

/* Years are counted from 1 March, so that the leap day is the last of its year. */
static int64_t days_of(int64_t year, unsigned month, unsigned day)
{
    year -= month <= 2;
    int64_t era = (year >= 0 ? year : year - 399) / 400;
    int64_t year_of_era = year - era * 400;
    int64_t day_of_year = (153 * ((int64_t)month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    int64_t day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    return era * 146097 + day_of_era - 719468;
}

struct date {
    int64_t year;
    unsigned month, day;
};

static struct date date_of(int64_t days)
{
    days += 719468;
    int64_t era = (days >= 0 ? days : days - 146096) / 146097;
    int64_t day = days - era * 146097;
    int64_t year = (day - day / 1460 + day / 36524 - day / 146096) / 365;
    int64_t day_of_year = day - (365 * year + year / 4 - year / 100);
    int64_t month = (5 * day_of_year + 2) / 153;
    struct date date = {.year = year + era * 400 + (month >= 10),
                        .month = (unsigned)(month < 10 ? month + 3 : month - 9),
                        .day = (unsigned)(day_of_year - (153 * month + 2) / 5 + 1)};
    return date;
}

/* --- encoding --- */

static uint8_t encode(const struct rtc *rtc, unsigned value)
{
    if (rtc->cmos[REG_B] & B_BINARY)
        return (uint8_t)value;
    return (uint8_t)(value / 10 % 10 << 4 | value % 10);
}

static unsigned decode(const struct rtc *rtc, uint8_t value)
{
    if (rtc->cmos[REG_B] & B_BINARY)
        return value;
    return (unsigned)(value >> 4) * 10 + (value & 0xf);
}

static uint8_t encode_hour(const struct rtc *rtc, unsigned hour)
{
    if (rtc->cmos[REG_B] & B_24H)
        return encode(rtc, hour);
    return (uint8_t)(encode(rtc, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? HOUR_PM : 0));
}

static unsigned decode_hour(const struct rtc *rtc, uint8_t value)
{
    if (rtc->cmos[REG_B] & B_24H)
        return decode(rtc, value);
    return decode(rtc, value & 0x7f) % 12 + (value & HOUR_PM ? 12 : 0);
}

static unsigned weekday_of(int64_t days)
{
    return (unsigned)(((days + 4) % 7 + 7) % 7); /* 0 is Sunday */
}

static void registers_fill(struct rtc *rtc)
{
    int64_t seconds = seconds_now(rtc, NULL);
    int64_t in_day = (seconds % DAY + DAY) % DAY, days = (seconds - in_day) / DAY;
    struct date date = date_of(days);
    rtc->cmos[REG_SECONDS] = encode(rtc, (unsigned)(in_day % 60));
    rtc->cmos[REG_MINUTES] = encode(rtc, (unsigned)(in_day / 60 % 60));
    rtc->cmos[REG_HOURS] = encode_hour(rtc, (unsigned)(in_day / 3600));
    rtc->cmos[REG_WEEKDAY] = encode(rtc, (weekday_of(days) + rtc->weekday_shift) % 7 + 1);
    rtc->cmos[REG_DAY] = encode(rtc, date.day);
    rtc->cmos[REG_MONTH] = encode(rtc, date.month);
    rtc->cmos[REG_YEAR] = encode(rtc, (unsigned)(date.year % 100));
    rtc->cmos[RTC_CENTURY] = encode(rtc, (unsigned)(date.year / 100 % 100));
}

/* What the registers say, with each field brought into its range. */
static int64_t registers_seconds(struct rtc *rtc)
{
    const uint8_t *cmos = rtc->cmos;
    unsigned year =
        min(decode(rtc, cmos[RTC_CENTURY]), 99u) * 100 + min(decode(rtc, cmos[REG_YEAR]), 99u);
    unsigned month = min(max(decode(rtc, cmos[REG_MONTH]), 1u), 12u);
    unsigned day = min(max(decode(rtc, cmos[REG_DAY]), 1u), 31u);
    int64_t days = days_of(year, month, day);
    unsigned weekday = (decode(rtc, cmos[REG_WEEKDAY]) + 6) % 7;
    rtc->weekday_shift = (weekday + 7 - weekday_of(days)) % 7;
    return days * DAY + min(decode_hour(rtc, cmos[REG_HOURS]), 23u) * 3600 +
           min(decode(rtc, cmos[REG_MINUTES]), 59u) * 60 + min(decode(rtc, cmos[REG_SECONDS]), 59u);
}

/* The time of day becomes what the registers say; the phase of the seconds stays. */
static void registers_apply(struct rtc *rtc)
{
    rtc->shift += registers_seconds(rtc) - seconds_now(rtc, NULL);
    rtc->settled = seconds_now(rtc, NULL);
}

/* --- flags and interrupts --- */

static bool alarm_between(const struct rtc *rtc, int64_t after, int64_t until)
{
    const uint8_t *cmos = rtc->cmos;
    int64_t second = -1, minute = -1, hour = -1; /* any */
    if (cmos[REG_SECONDS_ALARM] < ALARM_ANY)
        second = decode(rtc, cmos[REG_SECONDS_ALARM]);
    if (cmos[REG_MINUTES_ALARM] < ALARM_ANY)
        minute = decode(rtc, cmos[REG_MINUTES_ALARM]);
    if (cmos[REG_HOURS_ALARM] < ALARM_ANY)
        hour = decode_hour(rtc, cmos[REG_HOURS_ALARM]);
    /* After a day without looking, every time of day has passed. */
    int64_t t = max(after, until - DAY);
    while (++t <= until) {
        int64_t in_day = (t % DAY + DAY) % DAY;
        if ((second < 0 || in_day % 60 == second) && (minute < 0 || in_day / 60 % 60 == minute) &&
            (hour < 0 || in_day / 3600 == hour))
            return true;
    }
    return false;
}

static unsigned period_hz(const struct rtc *rtc)
{
    unsigned rate = rtc->cmos[REG_A] & 0xf;
    if (rate == 0 || rtc->stopped)
        return 0;
    return 32768u >> ((rate <= 2 ? rate + 7 : rate) - 1);
}

static uint64_t periods_now(const struct rtc *rtc)
{
    uint64_t now = timers_now(rtc->config.timers);
    return (uint64_t)((unsigned __int128)now * period_hz(rtc) / NSEC_PER_SEC);
}

static void settle(struct rtc *rtc)
{
    uint64_t periods = periods_now(rtc);
    if (periods != rtc->settled_periods && period_hz(rtc))
        rtc->cmos[REG_C] |= B_PERIODIC;
    rtc->settled_periods = periods;
    if (rtc->stopped)
        return;
    int64_t seconds = seconds_now(rtc, NULL);
    if (seconds == rtc->settled)
        return;
    rtc->cmos[REG_C] |= B_UPDATE;
    if (alarm_between(rtc, rtc->settled, seconds))
        rtc->cmos[REG_C] |= B_ALARM;
    rtc->settled = seconds;
}

/* The line and the timers, after anything changed. */
static void update(struct rtc *rtc)
{
    uint8_t enabled = rtc->cmos[REG_B] & C_FLAGS, flags = rtc->cmos[REG_C] & C_FLAGS;
    bool irq = enabled & flags;
    rtc->cmos[REG_C] = (uint8_t)(flags | (irq ? C_IRQ : 0));
    if (irq != rtc->irq) {
        rtc->irq = irq;
        irq_set(&rtc->config.irq, irq);
    }

    uint64_t now = timers_now(rtc->config.timers);
    if (!rtc->stopped && enabled & (B_UPDATE | B_ALARM)) {
        int64_t ns;
        seconds_now(rtc, &ns);
        timer_arm(&rtc->second_timer, now + (uint64_t)max(NSEC_PER_SEC - ns, (int64_t)WAKE_MIN_NS));
    } else {
        timer_cancel(&rtc->second_timer);
    }
    /* A period that nobody has acknowledged needs no second one behind it. */
    unsigned hz = period_hz(rtc);
    if (hz && enabled & B_PERIODIC && !(flags & B_PERIODIC))
        timer_arm(
            &rtc->period_timer,
            (uint64_t)((unsigned __int128)(rtc->settled_periods + 1) * NSEC_PER_SEC / hz + 1));
    else
        timer_cancel(&rtc->period_timer);
}

static void due(void *opaque)
{
    struct rtc *rtc = opaque;
    pthread_mutex_lock(&rtc->lock);
    settle(rtc);
    update(rtc);
    pthread_mutex_unlock(&rtc->lock);
}

/* --- registers --- */

static bool is_time(unsigned reg)
{
    return reg == REG_SECONDS || reg == REG_MINUTES || reg == REG_HOURS ||
           (reg >= REG_WEEKDAY && reg <= REG_YEAR) || reg == RTC_CENTURY;
}

static bool divider_held(const struct rtc *rtc)
{
    return (rtc->cmos[REG_A] & A_DIVIDER_RESET) == A_DIVIDER_RESET;
}

/* After a write to A or B: the clock stops or starts. The registers were filled before. */
static void run_or_stop(struct rtc *rtc, bool was_held)
{
    bool held = divider_held(rtc);
    if (was_held && !held) {
        /* The first update comes half a second after the divider is let go (MC146818A, "DV"). */
        int64_t ns;
        seconds_now(rtc, &ns);
        rtc->phase += NSEC_PER_SEC / 2 - ns;
        if (rtc->phase < 0)
            rtc->phase += NSEC_PER_SEC;
    }
    bool stopped = held || rtc->cmos[REG_B] & B_SET;
    if (rtc->stopped && !stopped)
        registers_apply(rtc);
    rtc->stopped = stopped;
    rtc->settled_periods = periods_now(rtc);
}

static void write_control(struct rtc *rtc, unsigned reg, uint8_t value)
{
    bool was_held = divider_held(rtc);
    if (!rtc->stopped)
        registers_fill(rtc);
    if (reg == REG_A) {
        rtc->cmos[REG_A] = value & 0x7f;
    } else {
        /* SET ends the enable of the update interrupt too. */
        if (value & B_SET)
            value &= (uint8_t)~B_UPDATE;
        rtc->cmos[REG_B] = value;
    }
    run_or_stop(rtc, was_held);
}

static void write_register(struct rtc *rtc, unsigned reg, uint8_t value)
{
    settle(rtc);
    if (reg == REG_A || reg == REG_B) {
        write_control(rtc, reg, value);
    } else if (is_time(reg)) {
        if (!rtc->stopped)
            registers_fill(rtc);
        rtc->cmos[reg] = value;
        if (!rtc->stopped)
            registers_apply(rtc);
    } else if (reg != REG_C && reg != REG_D) {
        rtc->cmos[reg] = value;
    }
    update(rtc);
}

static uint8_t read_register(struct rtc *rtc, unsigned reg)
{
    uint8_t value = rtc->cmos[reg];
    if (reg == REG_A) {
        int64_t ns;
        seconds_now(rtc, &ns);
        if (!rtc->stopped && ns >= NSEC_PER_SEC - UPDATE_NS)
            value |= A_UIP;
    } else if (reg == REG_C) {
        settle(rtc);
        update(rtc);
        value = rtc->cmos[REG_C];
        rtc->cmos[REG_C] = 0;
        update(rtc);
    } else if (reg == REG_D) {
        value = D_VALID;
    } else if (is_time(reg) && !rtc->stopped) {
        registers_fill(rtc);
        value = rtc->cmos[reg];
    }
    return value;
}

static uint8_t read8(void *opaque, unsigned offset)
{
    struct rtc *rtc = opaque;
    if (offset == 0)
        return 0xff;
    pthread_mutex_lock(&rtc->lock);
    uint8_t value = read_register(rtc, rtc->index & 0x7f);
    pthread_mutex_unlock(&rtc->lock);
    return value;
}

static void write8(void *opaque, unsigned offset, uint8_t value)
{
    struct rtc *rtc = opaque;
    pthread_mutex_lock(&rtc->lock);
    if (offset == 0)
        rtc->index = value;
    else
        write_register(rtc, rtc->index & 0x7f, value);
    pthread_mutex_unlock(&rtc->lock);
}

static uint64_t rtc_read(void *rtc, uint64_t offset, unsigned size)
{
    return isa_read(read8, rtc, offset, size);
}

static void rtc_write(void *rtc, uint64_t offset, unsigned size, uint64_t value)
{
    isa_write(write8, rtc, offset, size, value);
}

const struct bus_ops rtc_ops = {.name = "rtc", .read = rtc_read, .write = rtc_write};
/* Times of day that no calendar of the chip's can be moved to would overflow. */
static void bounded(struct record *record, int64_t *value, int64_t limit)
{
    record_i64(record, value);
    if (record->loading && (*value < -limit || *value > limit)) {
        *value = 0;
        record_fail(record, "has a time that cannot be");
    }
}

/* The clock goes on with the host's while the guest is a snapshot: it has a battery. */
static void rtc_state(void *opaque, struct record *record)
{
    const int64_t centuries = INT64_C(1) << 40; /* seconds */
    struct rtc *rtc = opaque;
    pthread_mutex_lock(&rtc->lock);
    record_bytes(record, rtc->cmos, sizeof rtc->cmos);
    record_u8(record, &rtc->index);
    record_bool(record, &rtc->stopped);
    bounded(record, &rtc->phase, NSEC_PER_SEC);
    bounded(record, &rtc->shift, centuries);
    bounded(record, &rtc->settled, centuries);
    record_u64(record, &rtc->settled_periods);
    record_u32_below(record, &rtc->weekday_shift, 7);
    if (record->loading && !record->failed) {
        rtc->irq = false;
        update(rtc);
    }
    pthread_mutex_unlock(&rtc->lock);
}

const struct device_ops rtc_device = {
    .name = "rtc", .reset = rtc_reset, .free = rtc_free, .state = rtc_state, .state_version = 1};

void rtc_reset(void *opaque)
{
    /* The RESET pin: no interrupts; time, format and memory live on their battery. */
    struct rtc *rtc = opaque;
    pthread_mutex_lock(&rtc->lock);
    rtc->index = 0;
    write_control(rtc, REG_B, rtc->cmos[REG_B] & (B_24H | B_BINARY));
    write_control(rtc, REG_A, 0x26); /* 32768 Hz crystal, 1024 Hz periodic rate */
    rtc->cmos[REG_C] = 0;
    update(rtc);
    pthread_mutex_unlock(&rtc->lock);
}

/* As SeaBIOS and OVMF read it: KiB above 1 MiB, then 64 KiB above 16 MiB and above 4 GiB. */
static void memory_note(struct rtc *rtc, uint64_t low, uint64_t high)
{
    enum { EXTENDED = 0x17, EXTENDED_2 = 0x30, ABOVE_16M = 0x34, ABOVE_4G = 0x5b };
    uint64_t kib = low > MIB(1) ? (low - MIB(1)) >> 10 : 0;
    uint64_t chunks = low > MIB(16) ? (low - MIB(16)) >> 16 : 0;
    le16_write(rtc->cmos + EXTENDED, (uint16_t)min(kib, (uint64_t)UINT16_MAX));
    le16_write(rtc->cmos + EXTENDED_2, (uint16_t)min(kib, (uint64_t)UINT16_MAX));
    le16_write(rtc->cmos + ABOVE_16M, (uint16_t)min(chunks, (uint64_t)UINT16_MAX));
    uint64_t above = min(high >> 16, (uint64_t)0xffffff);
    for (unsigned i = 0; i < 3; i++)
        rtc->cmos[ABOVE_4G + i] = (uint8_t)(above >> 8 * i);
}

struct rtc *rtc_new(const struct rtc_config *config)
{
    struct rtc *rtc = calloc(1, sizeof *rtc);
    if (!rtc)
        return NULL;
    pthread_mutex_init(&rtc->lock, NULL);
    rtc->config = *config;
    if (!rtc->config.realtime)
        rtc->config.realtime = host_realtime;
    rtc->cmos[REG_B] = B_24H;
    memory_note(rtc, config->low_memory, config->high_memory);
    timer_init(&rtc->second_timer, config->timers, due, rtc);
    timer_init(&rtc->period_timer, config->timers, due, rtc);
    rtc->settled = seconds_now(rtc, NULL);
    rtc_reset(rtc);
    return rtc;
}

void rtc_free(void *opaque)
{
    struct rtc *rtc = opaque;
    if (!rtc)
        return;
    pthread_mutex_destroy(&rtc->lock);
    free(rtc);
}
