/*
 * What chips save and load: two of a kind, of which one gets the other's state at a random moment,
 * must answer everything the same from then on, and raise the same lines at the same times.
 */
#include "base/record.h"
#include "chip/chip_test.h"
#include "chip/debug.h"
#include "chip/i8042.h"
#include "chip/ioapic.h"
#include "chip/pic.h"
#include "chip/pit.h"
#include "chip/port92.h"
#include "chip/power.h"
#include "chip/rtc.h"
#include "chip/serial.h"
#include "chip/watchdog.h"

#include <stdlib.h>
#include <string.h>

/* One machine's worth of a chip. */
struct twin {
    struct timers *timers;
    struct line line;
    void *chip;
};

static int64_t realtime(void *opaque)
{
    struct twin *twin = opaque;
    return INT64_C(1700000000000000000) + (int64_t)timers_now(twin->timers);
}

static void *make_pic(struct twin *twin)
{
    return pic_new(&(struct pic_config){.output = {line_set, &twin->line, 0}});
}

static bool deliver(void *opaque, uint64_t address, uint32_t data)
{
    struct twin *twin = opaque;
    twin->line.rises++;
    return true;
}

static void expired(void *opaque)
{
    struct twin *twin = opaque;
    twin->line.rises++;
}

static void *make_ioapic(struct twin *twin)
{
    return ioapic_new(&(struct ioapic_config){.deliver = deliver, .opaque = twin});
}

static void *make_pit(struct twin *twin)
{
    return pit_new(&(struct pit_config){.timers = twin->timers, .irq = {line_set, &twin->line, 0}});
}

static void *make_rtc(struct twin *twin)
{
    return rtc_new(&(struct rtc_config){.timers = twin->timers,
                                        .irq = {line_set, &twin->line, 0},
                                        .realtime = realtime,
                                        .realtime_opaque = twin});
}

static void *make_serial(struct twin *twin)
{
    return serial_new(
        &(struct serial_config){.timers = twin->timers, .irq = {line_set, &twin->line, 0}});
}

static void *make_power(struct twin *twin)
{
    return power_new(
        &(struct power_config){.timers = twin->timers, .sci = {line_set, &twin->line, 0}});
}

static void *make_i8042(struct twin *twin)
{
    return i8042_new(&(struct i8042_config){.keyboard_irq = {line_set, &twin->line, 0}});
}

static void *make_port92(struct twin *twin)
{
    return port92_new(&(struct port92_config){.opaque = NULL});
}

static void *make_watchdog(struct twin *twin)
{
    return watchdog_new(
        &(struct watchdog_config){.timers = twin->timers, .expired = expired, .opaque = twin});
}

static void *make_debug(struct twin *twin)
{
    return debug_new(&(struct debug_config){.opaque = NULL});
}

static const struct kind {
    const struct device_ops *ops;
    void *(*make)(struct twin *twin);
    struct {
        const struct bus_ops *ops;
        unsigned ports;
    } windows[3];
    unsigned width;
    void (*line)(void *chip, unsigned number, bool level);
    unsigned lines;
} kinds[] = {
    {&pic_device,
     make_pic,
     {{&pic_master_ops, 2}, {&pic_slave_ops, 2}, {&pic_elcr_ops, 2}},
     1,
     pic_line,
     PIC_LINES},
    {&ioapic_device, make_ioapic, {{&ioapic_ops, 0x44}}, 4, ioapic_line, IOAPIC_PINS},
    {&pit_device, make_pit, {{&pit_ops, 4}, {&pit_speaker_ops, 1}}, 1, NULL, 0},
    {&rtc_device, make_rtc, {{&rtc_ops, 2}}, 1, NULL, 0},
    {&serial_device, make_serial, {{&serial_ops, 8}}, 1, NULL, 0},
    {&power_device, make_power, {{&power_ops, POWER_RESET}}, 1, NULL, 0},
    {&i8042_device, make_i8042, {{&i8042_data_ops, 1}, {&i8042_command_ops, 1}}, 1, NULL, 0},
    {&port92_device, make_port92, {{&port92_ops, 1}}, 1, NULL, 0},
    {&watchdog_device, make_watchdog, {{&watchdog_ops, 16}}, 4, NULL, 0},
    {&debug_device, make_debug, {{&debug_post_ops, 1}}, 1, NULL, 0},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static struct twin twin_new(const struct kind *kind, struct twin *twin)
{
    *twin = (struct twin){.timers = timers_new()};
    twin->chip = kind->make(twin);
    assert_non_null(twin->chip);
    return *twin;
}

static void twin_free(const struct kind *kind, struct twin *twin)
{
    timers_free(twin->timers);
    kind->ops->free(twin->chip);
}

struct noise {
    uint64_t state;
};

static uint32_t next(struct noise *noise)
{
    noise->state = noise->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(noise->state >> 33);
}

/* One random thing that happens to a chip: an access, a line, time. Returns what was read. */
static uint64_t happen(const struct kind *kind, struct twin *twin, struct noise *noise)
{
    unsigned window = next(noise) % 3, what = next(noise) % 8;
    uint32_t value = next(noise), offset = next(noise), level = next(noise) & 1;
    while (!kind->windows[window].ops)
        window--;
    const struct bus_ops *ops = kind->windows[window].ops;
    offset %= kind->windows[window].ports;
    if (kind->width == 4)
        offset &= ~3u;
    if (what == 0 && kind->line)
        kind->line(twin->chip, value % kind->lines, level);
    else if (what == 1)
        clock_run(twin->timers, timers_now(twin->timers) + value % 3000000);
    else if (what < 5)
        return ops->read(twin->chip, offset, kind->width);
    else
        ops->write(twin->chip, offset, kind->width, value & (kind->width == 1 ? 0xff : UINT32_MAX));
    return 0;
}

static void save(const struct kind *kind, struct twin *twin, struct record *record)
{
    record_save(record, kind->ops->state_version);
    kind->ops->state(twin->chip, record);
    assert_true(record_ended(record));
}

static bool load(const struct kind *kind, struct twin *twin, const struct record *from, size_t size)
{
    struct record record;
    record_load(&record, from->bytes, size, kind->ops->state_version);
    kind->ops->state(twin->chip, &record);
    return record_ended(&record);
}

static void a_chip_goes_on_as_the_one_that_was_saved(void **state)
{
    for (unsigned k = 0; k < KINDS; k++)
        for (unsigned seed = 0; seed < 60; seed++) {
            const struct kind *kind = &kinds[k];
            struct noise noise = {seed * 977 + k}, same;
            struct twin one, two;
            struct record record, again;
            twin_new(kind, &one);
            twin_new(kind, &two);
            for (unsigned i = 0; i < seed * 3; i++)
                happen(kind, &one, &noise);
            clock_run(one.timers, timers_now(one.timers)); /* what was due has run */
            save(kind, &one, &record);
            timers_set_now(two.timers, timers_now(one.timers));
            two.line.level = one.line.level;
            assert_true(load(kind, &two, &record, record.size));
            save(kind, &two, &again);
            assert_int_equal(record.size, again.size);
            assert_memory_equal(record.bytes, again.bytes, record.size);
            one.line.rises = two.line.rises = 0;
            same = noise;
            for (unsigned i = 0; i < 300; i++) {
                uint64_t a = happen(kind, &one, &noise), b = happen(kind, &two, &same);
                if (a != b || one.line.level != two.line.level || one.line.rises != two.line.rises)
                    fail_msg("%s, seed %u, step %u: %#llx and %#llx, line %d %d, rises %d %d",
                             kind->ops->name, seed, i, (unsigned long long)a, (unsigned long long)b,
                             one.line.level, two.line.level, one.line.rises, two.line.rises);
            }
            record_free(&record);
            record_free(&again);
            twin_free(kind, &one);
            twin_free(kind, &two);
        }
}

static void a_state_that_is_cut_off_is_refused(void **state)
{
    for (unsigned k = 0; k < KINDS; k++) {
        struct record record;
        struct twin one;
        twin_new(&kinds[k], &one);
        save(&kinds[k], &one, &record);
        for (size_t size = 0; size < record.size; size++) {
            struct twin two;
            twin_new(&kinds[k], &two);
            assert_false(load(&kinds[k], &two, &record, size));
            twin_free(&kinds[k], &two);
        }
        record_free(&record);
        twin_free(&kinds[k], &one);
    }
}

/* Whatever the bytes: it is refused, or the chip is one that can be used. (Sanitizers look on.) */
static void any_bytes_do_no_harm(void **state)
{
    for (unsigned k = 0; k < KINDS; k++)
        for (unsigned seed = 0; seed < 400; seed++) {
            struct noise noise = {seed * 31 + k};
            struct record record;
            struct twin one;
            twin_new(&kinds[k], &one);
            save(&kinds[k], &one, &record);
            for (unsigned i = 0; i < 1 + seed % 12; i++)
                record.bytes[next(&noise) % record.size] = (uint8_t)next(&noise);
            if (load(&kinds[k], &one, &record, record.size))
                for (unsigned i = 0; i < 100; i++)
                    happen(&kinds[k], &one, &noise);
            record_free(&record);
            twin_free(&kinds[k], &one);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chip_goes_on_as_the_one_that_was_saved),
        cmocka_unit_test(a_state_that_is_cut_off_is_refused),
        cmocka_unit_test(any_bytes_do_no_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
