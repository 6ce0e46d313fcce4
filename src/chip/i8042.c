/*
 * One output buffer, no input to wait for: a byte written is consumed before the write returns, so
 * the input-buffer-full bit never shows. What Linux asks of the chip while probing, and why each
 * answer is quick and quiet there:
 *
 *     keylock bit        1 = open; 0 makes it warn
 *     0x20 twice         the command byte, the same both times
 *     0xd3 (aux loop)    an answer without the aux bit: no waiting, the loop test has failed
 *     0xa9 (aux test)    1 = clock line stuck: there is no second port, no message
 *     byte to keyboard   0xfe with the time-out bit: a NAK at once instead of 200 ms of silence
 */
#include "chip/i8042.h"

#include "base/record.h"
#include "chip/isa.h"

#include <pthread.h>
#include <stdlib.h>

enum {
    STATUS_OUTPUT = 1 << 0,
    STATUS_SYSTEM = 1 << 2,
    STATUS_COMMAND = 1 << 3,
    STATUS_UNLOCKED = 1 << 4,
    STATUS_AUX = 1 << 5,
    STATUS_TIMEOUT = 1 << 6,

    MODE_KEYBOARD_IRQ = 1 << 0,
    MODE_SYSTEM = 1 << 2,
    MODE_KEYBOARD_OFF = 1 << 4,
    MODE_AUX_OFF = 1 << 5,
    MODE_TRANSLATE = 1 << 6,

    OUTPUT_NOT_RESET = 1 << 0,
    OUTPUT_A20 = 1 << 1,

    NO_DEVICE = 0xfe,
};

enum action { ACTION_NONE, ACTION_RESET, ACTION_A20 };

struct i8042 {
    pthread_mutex_t lock;
    struct i8042_config config;
    uint8_t status; /* without SYSTEM, which is in the command byte */
    uint8_t data;
    uint8_t ram[32];  /* [0] is the command byte */
    uint8_t awaiting; /* the command whose parameter comes next; 0 = none */
    bool a20, irq;
};

static void update(struct i8042 *i8042)
{
    bool irq = i8042->status & STATUS_OUTPUT && !(i8042->status & STATUS_AUX) &&
               i8042->ram[0] & MODE_KEYBOARD_IRQ;
    if (irq != i8042->irq) {
        i8042->irq = irq;
        irq_set(&i8042->config.keyboard_irq, irq);
    }
}

static void answer(struct i8042 *i8042, uint8_t value, uint8_t flags)
{
    i8042->data = value;
    i8042->status &= (uint8_t) ~(STATUS_AUX | STATUS_TIMEOUT);
    i8042->status |= STATUS_OUTPUT | flags;
}

static enum action set_a20(struct i8042 *i8042, bool open)
{
    if (i8042->a20 == open)
        return ACTION_NONE;
    i8042->a20 = open;
    return ACTION_A20;
}

static enum action write_output_port(struct i8042 *i8042, uint8_t value)
{
    if (!(value & OUTPUT_NOT_RESET))
        return ACTION_RESET;
    return set_a20(i8042, value & OUTPUT_A20);
}

static enum action command(struct i8042 *i8042, uint8_t value)
{
    i8042->awaiting = 0;
    if (value >= 0xf0) /* pulse the output lines whose bit is 0; bit 0 is the CPU's reset */
        return value & 1 ? ACTION_NONE : ACTION_RESET;
    if (value >= 0x20 && value <= 0x3f) {
        answer(i8042, i8042->ram[value & 0x1f], 0);
        return ACTION_NONE;
    }
    if (value >= 0x60 && value <= 0x7f) {
        i8042->awaiting = value;
        return ACTION_NONE;
    }
    switch (value) {
    case 0xa7: i8042->ram[0] |= MODE_AUX_OFF; break;
    case 0xa8: i8042->ram[0] &= (uint8_t)~MODE_AUX_OFF; break;
    case 0xa9: answer(i8042, 0x01, 0); break;
    case 0xaa:
        i8042->ram[0] |= MODE_SYSTEM;
        answer(i8042, 0x55, 0);
        break;
    case 0xab: answer(i8042, 0x00, 0); break;
    case 0xad: i8042->ram[0] |= MODE_KEYBOARD_OFF; break;
    case 0xae: i8042->ram[0] &= (uint8_t)~MODE_KEYBOARD_OFF; break;
    case 0xc0: answer(i8042, 0xb0, 0); break; /* input port: keyboard not locked */
    case 0xd0: answer(i8042, (uint8_t)(0xcd | (i8042->a20 ? OUTPUT_A20 : 0)), 0); break;
    case 0xd1:
    case 0xd2:
    case 0xd3:
    case 0xd4: i8042->awaiting = value; break;
    case 0xdd: return set_a20(i8042, false);
    case 0xdf: return set_a20(i8042, true);
    default: break;
    }
    return ACTION_NONE;
}

static enum action write_data(struct i8042 *i8042, uint8_t value)
{
    uint8_t awaiting = i8042->awaiting;
    i8042->awaiting = 0;
    if (awaiting >= 0x60 && awaiting <= 0x7f) {
        i8042->ram[awaiting & 0x1f] = value;
        return ACTION_NONE;
    }
    switch (awaiting) {
    case 0xd1: return write_output_port(i8042, value);
    case 0xd2:
    case 0xd3: answer(i8042, value, 0); break;
    case 0xd4: answer(i8042, NO_DEVICE, STATUS_AUX | STATUS_TIMEOUT); break;
    default: answer(i8042, NO_DEVICE, STATUS_TIMEOUT); break;
    }
    return ACTION_NONE;
}

/* Ends a write: the line, then, without the mutex, what the machine must be told. */
static void leave(struct i8042 *i8042, enum action action)
{
    bool open = i8042->a20;
    update(i8042);
    pthread_mutex_unlock(&i8042->lock);
    if (action == ACTION_RESET && i8042->config.reset)
        i8042->config.reset(i8042->config.opaque);
    if (action == ACTION_A20 && i8042->config.a20)
        i8042->config.a20(i8042->config.opaque, open);
}

static void data_write8(void *opaque, unsigned offset, uint8_t value)
{
    struct i8042 *i8042 = opaque;
    if (offset)
        return;
    pthread_mutex_lock(&i8042->lock);
    i8042->status &= (uint8_t)~STATUS_COMMAND;
    leave(i8042, write_data(i8042, value));
}

static void command_write8(void *opaque, unsigned offset, uint8_t value)
{
    struct i8042 *i8042 = opaque;
    if (offset)
        return;
    pthread_mutex_lock(&i8042->lock);
    i8042->status |= STATUS_COMMAND;
    leave(i8042, command(i8042, value));
}

static uint8_t data_read8(void *opaque, unsigned offset)
{
    struct i8042 *i8042 = opaque;
    if (offset)
        return 0xff;
    pthread_mutex_lock(&i8042->lock);
    uint8_t value = i8042->data;
    i8042->status &= (uint8_t) ~(STATUS_OUTPUT | STATUS_AUX | STATUS_TIMEOUT);
    update(i8042);
    pthread_mutex_unlock(&i8042->lock);
    return value;
}

static uint8_t status_read8(void *opaque, unsigned offset)
{
    struct i8042 *i8042 = opaque;
    if (offset)
        return 0xff;
    pthread_mutex_lock(&i8042->lock);
    uint8_t value = (uint8_t)(i8042->status | STATUS_UNLOCKED | (i8042->ram[0] & STATUS_SYSTEM));
    pthread_mutex_unlock(&i8042->lock);
    return value;
}

static uint64_t data_read(void *i8042, uint64_t offset, unsigned size)
{
    return isa_read(data_read8, i8042, offset, size);
}

static void data_write(void *i8042, uint64_t offset, unsigned size, uint64_t value)
{
    isa_write(data_write8, i8042, offset, size, value);
}

static uint64_t command_read(void *i8042, uint64_t offset, unsigned size)
{
    return isa_read(status_read8, i8042, offset, size);
}

static void command_write(void *i8042, uint64_t offset, unsigned size, uint64_t value)
{
    isa_write(command_write8, i8042, offset, size, value);
}

_Static_assert((int)STATUS_SYSTEM == (int)MODE_SYSTEM, "the status shows the command byte's bit");

const struct bus_ops i8042_data_ops = {
    .name = "i8042-data", .read = data_read, .write = data_write};
const struct bus_ops i8042_command_ops = {
    .name = "i8042-command", .read = command_read, .write = command_write};
static void i8042_state(void *opaque, struct record *record)
{
    struct i8042 *i8042 = opaque;
    pthread_mutex_lock(&i8042->lock);
    record_u8(record, &i8042->status);
    record_u8(record, &i8042->data);
    record_bytes(record, i8042->ram, sizeof i8042->ram);
    record_u8(record, &i8042->awaiting);
    record_bool(record, &i8042->a20);
    if (record->loading) {
        i8042->irq = false;
        update(i8042);
    }
    pthread_mutex_unlock(&i8042->lock);
}

const struct device_ops i8042_device = {.name = "i8042",
                                        .reset = i8042_reset,
                                        .free = i8042_free,
                                        .state = i8042_state,
                                        .state_version = 1};

void i8042_reset(void *opaque)
{
    struct i8042 *i8042 = opaque;
    pthread_mutex_lock(&i8042->lock);
    i8042->status = i8042->data = i8042->awaiting = 0;
    for (unsigned i = 0; i < sizeof i8042->ram; i++)
        i8042->ram[i] = 0;
    /* As firmware leaves it, except that nobody wants the keyboard's interrupt yet. */
    i8042->ram[0] = MODE_SYSTEM | MODE_AUX_OFF | MODE_TRANSLATE;
    i8042->a20 = true;
    update(i8042);
    pthread_mutex_unlock(&i8042->lock);
}

struct i8042 *i8042_new(const struct i8042_config *config)
{
    struct i8042 *i8042 = calloc(1, sizeof *i8042);
    if (!i8042)
        return NULL;
    pthread_mutex_init(&i8042->lock, NULL);
    i8042->config = *config;
    i8042_reset(i8042);
    return i8042;
}

void i8042_free(void *opaque)
{
    struct i8042 *i8042 = opaque;
    if (!i8042)
        return;
    pthread_mutex_destroy(&i8042->lock);
    free(i8042);
}
