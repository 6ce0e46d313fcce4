#include "chip/power.h"

#include "base/bytes.h"
#include "base/record.h"

#include <pthread.h>
#include <stdlib.h>

enum {
    PM1_TIMER = 1 << 0,
    PM1_GLOBAL = 1 << 5,
    PM1_BUTTON = 1 << 8,
    PM1_SLEEP_BUTTON = 1 << 9,
    PM1_RTC = 1 << 10,
    PM1_ENABLES = PM1_TIMER | PM1_GLOBAL | PM1_BUTTON | PM1_SLEEP_BUTTON | PM1_RTC,

    CONTROL_SCI = 1 << 0,
    CONTROL_TYPE_SHIFT = 10,
    CONTROL_SLEEP = 1 << 13,
    CONTROL_WRITABLE = 1 << 1 | 7 << CONTROL_TYPE_SHIFT,

    RESET_CPU = 1 << 2,
    RESET_WRITABLE = 0x0a,

    TIMER_HALF_SHIFT = 31, /* the status bit is set whenever the top bit changes */
};

enum action { ACTION_NONE, ACTION_OFF, ACTION_RESET };

struct power {
    pthread_mutex_t lock;
    struct power_config config;
    uint16_t status, enable, control;
    uint16_t gpe_status, gpe_enable;
    uint8_t reset_register;
    bool sci;
    uint64_t halves; /* of the timer's range, seen so far */
    struct timer carry;
};

static uint64_t ticks_now(const struct power *power)
{
    uint64_t now = timers_now(power->config.timers);
    return (uint64_t)((unsigned __int128)now * POWER_TIMER_HZ / NSEC_PER_SEC);
}

static void settle(struct power *power)
{
    uint64_t halves = ticks_now(power) >> TIMER_HALF_SHIFT;
    if (halves != power->halves)
        power->status |= PM1_TIMER;
    power->halves = halves;
}

static void update(struct power *power)
{
    bool sci = power->control & CONTROL_SCI && (power->status & power->enable & PM1_ENABLES ||
                                                power->gpe_status & power->gpe_enable);
    if (sci != power->sci) {
        power->sci = sci;
        irq_set(&power->config.sci, sci);
    }
    if (power->enable & PM1_TIMER && !(power->status & PM1_TIMER)) {
        unsigned __int128 ticks = (unsigned __int128)(power->halves + 1) << TIMER_HALF_SHIFT;
        timer_arm(&power->carry, (uint64_t)(ticks * NSEC_PER_SEC / POWER_TIMER_HZ) + 1);
    } else {
        timer_cancel(&power->carry);
    }
}

static void carry_due(void *opaque)
{
    struct power *power = opaque;
    pthread_mutex_lock(&power->lock);
    settle(power);
    update(power);
    pthread_mutex_unlock(&power->lock);
}

bool power_button(struct power *power)
{
    pthread_mutex_lock(&power->lock);
    power->status |= PM1_BUTTON;
    update(power);
    bool heard = power->control & CONTROL_SCI && power->enable & PM1_BUTTON;
    pthread_mutex_unlock(&power->lock);
    return heard;
}

void power_gpe(struct power *power, unsigned number)
{
    if (number >= POWER_GPE_COUNT)
        return;
    pthread_mutex_lock(&power->lock);
    power->gpe_status |= (uint16_t)(1u << number);
    update(power);
    pthread_mutex_unlock(&power->lock);
}

/* --- registers, a byte at a time --- */

static enum action write_reset(struct power *power, uint8_t value)
{
    power->reset_register = value & RESET_WRITABLE;
    return value & RESET_CPU ? ACTION_RESET : ACTION_NONE;
}

static enum action write_control_high(struct power *power, uint8_t value)
{
    unsigned control = (power->control & 0xff) | (unsigned)value << 8;
    power->control = (uint16_t)((power->control & CONTROL_SCI) | (control & CONTROL_WRITABLE));
    bool off =
        control & CONTROL_SLEEP && (control >> CONTROL_TYPE_SHIFT & 7) == power->config.s5_type;
    return off ? ACTION_OFF : ACTION_NONE;
}

static void write_smi_command(struct power *power, uint8_t value)
{
    if (value == POWER_ACPI_ENABLE)
        power->control |= CONTROL_SCI;
    else if (value == POWER_ACPI_DISABLE)
        power->control &= (uint16_t)~CONTROL_SCI;
}

/* Replaces byte `which` of a register. */
static uint16_t with_byte(uint16_t old, unsigned which, uint8_t value)
{
    return (uint16_t)((old & ~(0xffu << 8 * which)) | (unsigned)value << 8 * which);
}

static enum action write8(struct power *power, unsigned offset, uint8_t value)
{
    unsigned which = offset & 1;
    switch (offset) {
    case POWER_PM1_EVENT:
    case POWER_PM1_EVENT + 1: power->status &= (uint16_t) ~((unsigned)value << 8 * which); break;
    case POWER_PM1_EVENT + 2:
    case POWER_PM1_EVENT + 3:
        power->enable = with_byte(power->enable, which, value) & PM1_ENABLES;
        break;
    case POWER_PM1_CONTROL:
        power->control = (uint16_t)((power->control & ~0xfeu) | (value & CONTROL_WRITABLE & 0xfe));
        break;
    case POWER_PM1_CONTROL + 1: return write_control_high(power, value);
    case POWER_GPE0:
    case POWER_GPE0 + 1: power->gpe_status &= (uint16_t) ~((unsigned)value << 8 * which); break;
    case POWER_GPE0 + 2:
    case POWER_GPE0 + 3: power->gpe_enable = with_byte(power->gpe_enable, which, value); break;
    case POWER_RESET: return write_reset(power, value);
    case POWER_SMI_COMMAND: write_smi_command(power, value); break;
    default: break;
    }
    return ACTION_NONE;
}

static void act(struct power *power, enum action action)
{
    if (action == ACTION_OFF && power->config.power_off)
        power->config.power_off(power->config.opaque);
    if (action == ACTION_RESET && power->config.reset)
        power->config.reset(power->config.opaque);
}

static uint64_t power_read(void *opaque, uint64_t offset, unsigned size)
{
    struct power *power = opaque;
    /* All registers at once, so that a wide read of the timer is one instant. */
    uint8_t image[POWER_PORTS + 8] = {0};
    pthread_mutex_lock(&power->lock);
    settle(power);
    update(power);
    le16_write(image + POWER_PM1_EVENT, power->status);
    le16_write(image + POWER_PM1_EVENT + 2, power->enable);
    le16_write(image + POWER_PM1_CONTROL, power->control);
    le32_write(image + POWER_TIMER, (uint32_t)ticks_now(power));
    le16_write(image + POWER_GPE0, power->gpe_status);
    le16_write(image + POWER_GPE0 + 2, power->gpe_enable);
    image[POWER_RESET] = power->reset_register;
    pthread_mutex_unlock(&power->lock);
    return offset < POWER_PORTS ? le64_read(image + offset) : 0;
}

static void power_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct power *power = opaque;
    enum action action = ACTION_NONE;
    pthread_mutex_lock(&power->lock);
    settle(power);
    for (unsigned i = 0; i < size && i < 8 && offset + i < POWER_PORTS; i++)
        action = max(action, write8(power, (unsigned)offset + i, (uint8_t)(value >> 8 * i)));
    update(power);
    pthread_mutex_unlock(&power->lock);
    act(power, action);
}

uint8_t power_reset_read(struct power *power)
{
    pthread_mutex_lock(&power->lock);
    uint8_t value = power->reset_register;
    pthread_mutex_unlock(&power->lock);
    return value;
}

void power_reset_write(struct power *power, uint8_t value)
{
    power_write(power, POWER_RESET, 1, value);
}

const struct bus_ops power_ops = {.name = "acpi-power", .read = power_read, .write = power_write};
static void power_state(void *opaque, struct record *record)
{
    struct power *power = opaque;
    pthread_mutex_lock(&power->lock);
    record_u16(record, &power->status);
    record_u16(record, &power->enable);
    record_u16(record, &power->control);
    record_u16(record, &power->gpe_status);
    record_u16(record, &power->gpe_enable);
    record_u8(record, &power->reset_register);
    record_u64(record, &power->halves);
    if (record->loading) {
        power->sci = false;
        update(power);
    }
    pthread_mutex_unlock(&power->lock);
}

const struct device_ops power_device = {.name = "acpi-power",
                                        .reset = power_reset,
                                        .free = power_free,
                                        .state = power_state,
                                        .state_version = 1};

void power_reset(void *opaque)
{
    struct power *power = opaque;
    pthread_mutex_lock(&power->lock);
    power->status = power->enable = power->gpe_status = power->gpe_enable = 0;
    power->reset_register = 0;
    power->control = CONTROL_SCI;
    power->halves = ticks_now(power) >> TIMER_HALF_SHIFT;
    update(power);
    pthread_mutex_unlock(&power->lock);
}

struct power *power_new(const struct power_config *config)
{
    struct power *power = calloc(1, sizeof *power);
    if (!power)
        return NULL;
    pthread_mutex_init(&power->lock, NULL);
    power->config = *config;
    timer_init(&power->carry, config->timers, carry_due, power);
    power_reset(power);
    return power;
}

void power_free(void *opaque)
{
    struct power *power = opaque;
    if (!power)
        return;
    pthread_mutex_destroy(&power->lock);
    free(power);
}
