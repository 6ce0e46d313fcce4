/*
 * The transmitter has no shift register to wait for: THR is empty again before the write returns,
 * so LSR always shows THRE and TEMT and each write makes a new THRE interrupt. The receiver is a
 * FIFO of 16 (or the one holding register when FIFOs are off) filled by serial_receive() or, in
 * loopback, by the transmitter.
 *
 * The batch timer is armed when the first byte enters an empty batch and left alone after that: if
 * a newline empties the batch before it is due, it fires early for the next one, which is harmless
 * and saves waking the timers' thread for every line.
 */
#include "chip/serial.h"

#include "base/bytes.h"
#include "base/record.h"
#include "chip/isa.h"

#include <pthread.h>
#include <stdlib.h>

enum {
    IER_RX = 1 << 0,
    IER_TX = 1 << 1,
    IER_LINE = 1 << 2,
    IER_MODEM = 1 << 3,

    IIR_NONE = 0x01,
    IIR_MODEM = 0x00,
    IIR_TX = 0x02,
    IIR_RX = 0x04,
    IIR_LINE = 0x06,
    IIR_TIMEOUT = 0x0c,
    IIR_FIFO = 0xc0,

    FCR_ENABLE = 1 << 0,
    FCR_CLEAR_RX = 1 << 1,

    LCR_BREAK = 1 << 6,
    LCR_DIVISOR = 1 << 7,

    MCR_DTR = 1 << 0,
    MCR_RTS = 1 << 1,
    MCR_LOOP = 1 << 4,
    MCR_WRITABLE = 0x1f,

    LSR_DATA = 1 << 0,
    LSR_OVERRUN = 1 << 1,
    LSR_BREAK = 1 << 4,
    LSR_TX_EMPTY = 3 << 5,
    LSR_FIFO_ERROR = 1 << 7,

    MSR_RI = 1 << 6,
    MSR_ON_LINE = 0xb0, /* DCD, DSR, CTS */
};

struct serial {
    pthread_mutex_t lock;
    struct serial_config config;

    uint8_t ier, fcr, lcr, mcr, msr, scratch;
    uint16_t divisor;
    bool overrun;
    bool thre;      /* transmitter-empty interrupt not yet acknowledged */
    bool timed_out; /* bytes below the trigger have waited four characters' time */
    bool irq;

    struct {
        uint8_t byte;
        bool broken;
    } fifo[SERIAL_FIFO];
    unsigned first, count;
    bool starved; /* serial_receive() took less than offered since the last room() */

    uint8_t batch[SERIAL_BATCH];
    size_t batched;
    bool batch_armed;
    struct timer batch_timer, timeout_timer;
    uint64_t timeout_at; /* UINT64_MAX = not running */
};

static const uint8_t triggers[4] = {1, 4, 8, 14};

static unsigned capacity(const struct serial *serial)
{
    return serial->fcr & FCR_ENABLE ? SERIAL_FIFO : 1;
}

static unsigned trigger(const struct serial *serial)
{
    return serial->fcr & FCR_ENABLE ? triggers[serial->fcr >> 6] : 1;
}

static bool broken_inside(const struct serial *serial)
{
    for (unsigned i = 0; i < serial->count; i++)
        if (serial->fifo[(serial->first + i) % SERIAL_FIFO].broken)
            return true;
    return false;
}

static bool broken_first(const struct serial *serial)
{
    return serial->count > 0 && serial->fifo[serial->first].broken;
}

/* The interrupt of highest priority, as IIR shows it. */
static uint8_t cause(const struct serial *serial)
{
    if (serial->ier & IER_LINE && (serial->overrun || broken_first(serial)))
        return IIR_LINE;
    if (serial->ier & IER_RX) {
        if (serial->count >= trigger(serial))
            return IIR_RX;
        if (serial->timed_out)
            return IIR_TIMEOUT;
    }
    if (serial->ier & IER_TX && serial->thre)
        return IIR_TX;
    if (serial->ier & IER_MODEM && serial->msr & 0x0f)
        return IIR_MODEM;
    return IIR_NONE;
}

static void update(struct serial *serial)
{
    bool irq = cause(serial) != IIR_NONE;
    if (irq != serial->irq) {
        serial->irq = irq;
        irq_set(&serial->config.irq, irq);
    }
}

/* --- out --- */

static void flush_locked(struct serial *serial)
{
    if (serial->batched && serial->config.output)
        serial->config.output(serial->config.opaque, serial->batch, serial->batched);
    serial->batched = 0;
}

static void batch_due(void *opaque)
{
    struct serial *serial = opaque;
    pthread_mutex_lock(&serial->lock);
    serial->batch_armed = false;
    flush_locked(serial);
    pthread_mutex_unlock(&serial->lock);
}

static void batch_put(struct serial *serial, uint8_t byte)
{
    serial->batch[serial->batched++] = byte;
    if (byte == '\n' || serial->batched == SERIAL_BATCH) {
        flush_locked(serial);
    } else if (!serial->batch_armed) {
        serial->batch_armed = true;
        timer_arm(&serial->batch_timer, timers_now(serial->config.timers) + SERIAL_BATCH_NS);
    }
}

void serial_flush(struct serial *serial)
{
    pthread_mutex_lock(&serial->lock);
    flush_locked(serial);
    pthread_mutex_unlock(&serial->lock);
}

/* --- in --- */

/* Four characters of ten bits at 115200 / divisor baud, and never longer than a person notices. */
static uint64_t timeout_ns(const struct serial *serial)
{
    uint64_t divisor = serial->divisor ? serial->divisor : 1;
    return min(divisor * 40 * NSEC_PER_SEC / 115200, (uint64_t)20000000);
}

/* The time-out starts anew with every byte that comes or goes (PC16550D, 8.4.1). */
static void timeout_restart(struct serial *serial)
{
    serial->timed_out = false;
    serial->timeout_at = UINT64_MAX;
    if (!(serial->fcr & FCR_ENABLE) || serial->count == 0 || serial->count >= trigger(serial))
        return;
    serial->timeout_at = timers_now(serial->config.timers) + timeout_ns(serial);
    timer_arm(&serial->timeout_timer, serial->timeout_at);
}

static void timeout_due(void *opaque)
{
    struct serial *serial = opaque;
    pthread_mutex_lock(&serial->lock);
    if (serial->count > 0 && timers_now(serial->config.timers) >= serial->timeout_at) {
        serial->timed_out = true;
        serial->timeout_at = UINT64_MAX;
        update(serial);
    }
    pthread_mutex_unlock(&serial->lock);
}

static void fifo_put(struct serial *serial, uint8_t byte, bool broken)
{
    unsigned slot = (serial->first + serial->count++) % SERIAL_FIFO;
    serial->fifo[slot].byte = byte;
    serial->fifo[slot].broken = broken;
}

static bool listening(const struct serial *serial)
{
    return serial->mcr & (MCR_RTS | MCR_DTR) && !(serial->mcr & MCR_LOOP);
}

static unsigned space(const struct serial *serial)
{
    return listening(serial) && serial->count < capacity(serial) ? capacity(serial) - serial->count
                                                                 : 0;
}

size_t serial_receive(struct serial *serial, const uint8_t *bytes, size_t count)
{
    pthread_mutex_lock(&serial->lock);
    size_t taken = min(count, (size_t)space(serial));
    for (size_t i = 0; i < taken; i++)
        fifo_put(serial, bytes[i], false);
    if (taken < count)
        serial->starved = true;
    if (taken > 0) {
        timeout_restart(serial);
        update(serial);
    }
    pthread_mutex_unlock(&serial->lock);
    return taken;
}

bool serial_break(struct serial *serial)
{
    pthread_mutex_lock(&serial->lock);
    bool fits = space(serial) > 0;
    if (fits) {
        fifo_put(serial, 0, true);
        timeout_restart(serial);
        update(serial);
    }
    pthread_mutex_unlock(&serial->lock);
    return fits;
}

static void loop_back(struct serial *serial, uint8_t byte)
{
    if (serial->count == capacity(serial)) {
        serial->overrun = true;
        /* With FIFOs the newcomer is lost, without them the one that waited. */
        if (serial->fcr & FCR_ENABLE)
            return;
        serial->count = 0;
    }
    fifo_put(serial, byte, false);
    timeout_restart(serial);
}

/* --- registers --- */

static uint8_t modem_lines(const struct serial *serial)
{
    if (!(serial->mcr & MCR_LOOP))
        return MSR_ON_LINE;
    /* DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD. */
    uint8_t mcr = serial->mcr;
    return (uint8_t)((mcr & 1) << 5 | (mcr & 2) << 3 | (mcr & 4) << 4 | (mcr & 8) << 4);
}

static void modem_update(struct serial *serial)
{
    uint8_t before = serial->msr & 0xf0, now = modem_lines(serial);
    uint8_t changed = before ^ now;
    /* The ring indicator counts only when it ends. */
    if (now & MSR_RI)
        changed &= (uint8_t)~MSR_RI;
    serial->msr = (uint8_t)(now | (serial->msr & 0x0f) | changed >> 4);
}

static uint8_t read_data(struct serial *serial)
{
    if (serial->count == 0)
        return 0;
    uint8_t byte = serial->fifo[serial->first].byte;
    serial->first = (serial->first + 1) % SERIAL_FIFO;
    serial->count--;
    timeout_restart(serial);
    return byte;
}

static uint8_t read_line_status(struct serial *serial)
{
    uint8_t value = LSR_TX_EMPTY;
    if (serial->count)
        value |= LSR_DATA;
    if (serial->overrun)
        value |= LSR_OVERRUN;
    if (broken_first(serial))
        value |= LSR_BREAK;
    if (serial->fcr & FCR_ENABLE && broken_inside(serial))
        value |= LSR_FIFO_ERROR;
    serial->overrun = false;
    if (serial->count)
        serial->fifo[serial->first].broken = false;
    return value;
}

static uint8_t read_cause(struct serial *serial)
{
    uint8_t value = cause(serial);
    if (value == IIR_TX)
        serial->thre = false;
    return (uint8_t)(value | (serial->fcr & FCR_ENABLE ? IIR_FIFO : 0));
}

static uint8_t read_register(struct serial *serial, unsigned offset)
{
    uint8_t value = 0;
    switch (offset) {
    case 0:
        if (serial->lcr & LCR_DIVISOR)
            return (uint8_t)serial->divisor;
        return read_data(serial);
    case 1:
        if (serial->lcr & LCR_DIVISOR)
            return (uint8_t)(serial->divisor >> 8);
        return serial->ier;
    case 2: return read_cause(serial);
    case 3: return serial->lcr;
    case 4: return serial->mcr;
    case 5: return read_line_status(serial);
    case 6:
        value = serial->msr;
        serial->msr &= 0xf0;
        return value;
    default: return serial->scratch;
    }
}

static void write_data(struct serial *serial, uint8_t value)
{
    if (serial->mcr & MCR_LOOP)
        loop_back(serial, value);
    else
        batch_put(serial, value);
    serial->thre = true;
}

static void write_enable(struct serial *serial, uint8_t value)
{
    /* Enabling the interrupt while the transmitter is empty raises it (drivers test for this). */
    if (value & ~serial->ier & IER_TX)
        serial->thre = true;
    serial->ier = value & 0x0f;
}

static void write_fifo_control(struct serial *serial, uint8_t value)
{
    bool toggled = (value ^ serial->fcr) & FCR_ENABLE;
    /* Without the enable bit the others are not programmed (PC16550D, 8.3). */
    serial->fcr = value & FCR_ENABLE ? value & 0xc1 : 0;
    if (toggled || value & FCR_CLEAR_RX)
        serial->count = 0;
    timeout_restart(serial);
}

static void write_line_control(struct serial *serial, uint8_t value)
{
    /* In loopback a break arrives as a zero with its indicator. */
    if (value & ~serial->lcr & LCR_BREAK && serial->mcr & MCR_LOOP &&
        serial->count < capacity(serial)) {
        fifo_put(serial, 0, true);
        timeout_restart(serial);
    }
    serial->lcr = value;
}

static void write_register(struct serial *serial, unsigned offset, uint8_t value)
{
    bool divisor = serial->lcr & LCR_DIVISOR;
    switch (offset) {
    case 0:
        if (divisor)
            serial->divisor = (uint16_t)((serial->divisor & 0xff00) | value);
        else
            write_data(serial, value);
        break;
    case 1:
        if (divisor)
            serial->divisor = (uint16_t)((serial->divisor & 0xff) | value << 8);
        else
            write_enable(serial, value);
        break;
    case 2: write_fifo_control(serial, value); break;
    case 3: write_line_control(serial, value); break;
    case 4:
        serial->mcr = value & MCR_WRITABLE;
        modem_update(serial);
        break;
    case 7: serial->scratch = value; break;
    default: break; /* LSR and MSR are written only by a factory's tests */
    }
}

/* Ends an access: releases the mutex and, if the guest has drained what there was, asks the host
 * for more. The host's answer may come from inside room(). */
static void leave(struct serial *serial)
{
    update(serial);
    bool hungry = serial->starved && serial->count == 0 && space(serial) > 0;
    if (hungry)
        serial->starved = false;
    pthread_mutex_unlock(&serial->lock);
    if (hungry && serial->config.room)
        serial->config.room(serial->config.opaque);
}

static uint8_t read8(void *opaque, unsigned offset)
{
    struct serial *serial = opaque;
    pthread_mutex_lock(&serial->lock);
    uint8_t value = read_register(serial, offset);
    leave(serial);
    return value;
}

static void write8(void *opaque, unsigned offset, uint8_t value)
{
    struct serial *serial = opaque;
    pthread_mutex_lock(&serial->lock);
    write_register(serial, offset, value);
    leave(serial);
}

static uint64_t serial_read(void *serial, uint64_t offset, unsigned size)
{
    return isa_read(read8, serial, offset, size);
}

static void serial_write(void *serial, uint64_t offset, unsigned size, uint64_t value)
{
    isa_write(write8, serial, offset, size, value);
}

const struct bus_ops serial_ops = {.name = "serial", .read = serial_read, .write = serial_write};
/* What waits in the batch belongs to the host's stream, not to the guest: it goes out first. */
static void serial_state(void *opaque, struct record *record)
{
    struct serial *serial = opaque;
    pthread_mutex_lock(&serial->lock);
    flush_locked(serial);
    record_u8(record, &serial->ier);
    record_u8(record, &serial->fcr);
    record_u8(record, &serial->lcr);
    record_u8(record, &serial->mcr);
    record_u8(record, &serial->msr);
    record_u8(record, &serial->scratch);
    record_u16(record, &serial->divisor);
    record_bool(record, &serial->overrun);
    record_bool(record, &serial->thre);
    record_bool(record, &serial->timed_out);
    record_u32_below(record, &serial->first, SERIAL_FIFO);
    record_u32_below(record, &serial->count, SERIAL_FIFO + 1);
    for (unsigned i = 0; i < SERIAL_FIFO; i++) {
        record_u8(record, &serial->fifo[i].byte);
        record_bool(record, &serial->fifo[i].broken);
    }
    record_u64(record, &serial->timeout_at);
    if (record->loading) {
        serial->irq = false;
        if (serial->timeout_at != UINT64_MAX)
            timer_arm(&serial->timeout_timer, serial->timeout_at);
        serial->starved = true; /* whoever reads for us is to be asked once there is room */
        update(serial);
    }
    pthread_mutex_unlock(&serial->lock);
}

const struct device_ops serial_device = {.name = "serial",
                                         .reset = serial_reset,
                                         .free = serial_free,
                                         .state = serial_state,
                                         .state_version = 1};

void serial_reset(void *opaque)
{
    struct serial *serial = opaque;
    pthread_mutex_lock(&serial->lock);
    flush_locked(serial);
    serial->ier = serial->fcr = serial->lcr = serial->mcr = serial->scratch = 0;
    serial->msr = MSR_ON_LINE;
    serial->divisor = 1;
    serial->overrun = serial->thre = serial->timed_out = false;
    serial->timeout_at = UINT64_MAX;
    serial->first = serial->count = 0;
    update(serial);
    pthread_mutex_unlock(&serial->lock);
}

struct serial *serial_new(const struct serial_config *config)
{
    struct serial *serial = calloc(1, sizeof *serial);
    if (!serial)
        return NULL;
    pthread_mutex_init(&serial->lock, NULL);
    serial->config = *config;
    timer_init(&serial->batch_timer, config->timers, batch_due, serial);
    timer_init(&serial->timeout_timer, config->timers, timeout_due, serial);
    serial_reset(serial);
    return serial;
}

void serial_free(void *opaque)
{
    struct serial *serial = opaque;
    if (!serial)
        return;
    flush_locked(serial);
    pthread_mutex_destroy(&serial->lock);
    free(serial);
}
