/*
 * Two identical halves and the wire between them.
 *
 * The cascade is edge-latched like any other input of the master: when the slave's request goes
 * away after its INT rose, the master still has IRQ 2 pending, and the INTA cycle that follows
 * finds the slave empty. That is where the spurious IRQ 15 with the master's IRQ 2 in service comes
 * from, and drivers know it (they send the EOI to the master only).
 *
 * What pic_poll() reads is one atomic, renewed under the mutex by update() after every change. It
 * is stored before `output` moves, so whoever is told of a rising INT finds the vector.
 */
#include "chip/pic.h"

#include "base/record.h"
#include "chip/isa.h"
#include "chip/state/state.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { CASCADE = 2, SPURIOUS = 7 };

enum {
    ICW1_IC4 = 1 << 0,
    ICW1_SINGLE = 1 << 1,
    ICW1 = 1 << 4,
    ICW4_AUTO_EOI = 1 << 1,
    ICW4_NESTED = 1 << 4,
    OCW3 = 1 << 3,
    OCW3_READ = 1 << 1,
    OCW3_READ_ISR = 1 << 0,
    OCW3_POLL = 1 << 2,
    OCW3_SET_MASK_MODE = 1 << 6,
    OCW3_MASK_MODE = 1 << 5,
};

struct pic {
    pthread_mutex_t lock;
    struct pic_state now;
    bool out;           /* INT of the master */
    _Atomic int vector; /* what pic_accept() would return; -1 = INT is low */
    struct irq_line output;
};

static uint8_t requests(const struct pic_half *half)
{
    return (uint8_t)((half->irr & ~half->elcr) | (half->lines & half->elcr));
}

/* The input of highest priority in `set`, as a distance from the first; 8 for the empty set. */
static unsigned rank(const struct pic_half *half, uint8_t set)
{
    unsigned distance = 0;
    while (distance < 8 && !(set >> ((half->first + distance) & 7) & 1))
        distance++;
    return distance;
}

/* The input for which this half raises INT, or -1. */
static int pending(const struct pic_half *half, bool master)
{
    uint8_t serving = half->isr;
    if (half->mask_mode)
        serving &= (uint8_t)~half->imr;
    /* Special fully nested mode: the slave may interrupt its own service. */
    if (half->nested && master)
        serving &= (uint8_t) ~(1u << CASCADE);
    unsigned request = rank(half, requests(half) & (uint8_t)~half->imr);
    if (request >= rank(half, serving))
        return -1;
    return (int)((half->first + request) & 7);
}

static int vector_now(const struct pic *pic)
{
    int irq = pending(&pic->now.half[0], true);
    if (irq < 0)
        return -1;
    if (irq != CASCADE)
        return pic->now.half[0].vector + irq;
    int slave = pending(&pic->now.half[1], false);
    return pic->now.half[1].vector + (slave < 0 ? SPURIOUS : slave);
}

static void update(struct pic *pic)
{
    bool slave_out = pending(&pic->now.half[1], false) >= 0;
    if (slave_out && !pic->now.slave_out)
        pic->now.half[0].irr |= 1u << CASCADE;
    pic->now.slave_out = slave_out;

    int vector = vector_now(pic);
    atomic_store_explicit(&pic->vector, vector, memory_order_release);
    bool out = vector >= 0;
    if (out != pic->out) {
        pic->out = out;
        irq_set(&pic->output, out);
    }
}

static void acknowledge(struct pic_half *half, int irq)
{
    half->irr &= (uint8_t) ~(1u << irq);
    if (!half->auto_eoi)
        half->isr |= (uint8_t)(1u << irq);
    else if (half->rotate_auto)
        half->first = (uint8_t)((irq + 1) & 7);
}

/* INTA towards one half; the input, or -1 when there was none to acknowledge. */
static int inta(struct pic *pic, unsigned which)
{
    struct pic_half *half = &pic->now.half[which];
    int irq = pending(half, which == 0);
    if (irq >= 0)
        acknowledge(half, irq);
    /* INT falls during INTA; a request that remains makes a new edge at the master. */
    if (which == 1)
        pic->now.slave_out = false;
    return irq;
}

int pic_poll(void *opaque)
{
    struct pic *pic = opaque;
    return atomic_load_explicit(&pic->vector, memory_order_acquire);
}

int pic_accept(void *opaque)
{
    struct pic *pic = opaque;
    pthread_mutex_lock(&pic->lock);
    unsigned which = 0;
    int irq = inta(pic, 0);
    if (irq == CASCADE) {
        which = 1;
        irq = inta(pic, 1);
    }
    int vector = pic->now.half[which].vector + (irq < 0 ? SPURIOUS : irq);
    update(pic);
    pthread_mutex_unlock(&pic->lock);
    return vector;
}

void pic_line(void *opaque, unsigned irq, bool level)
{
    struct pic *pic = opaque;
    if (irq >= PIC_LINES || irq == CASCADE)
        return;
    pthread_mutex_lock(&pic->lock);
    struct pic_half *half = &pic->now.half[irq / 8];
    uint8_t bit = (uint8_t)(1u << irq % 8);
    if (level && !(half->lines & bit))
        half->irr |= bit;
    half->lines = (uint8_t)(level ? half->lines | bit : half->lines & ~bit);
    update(pic);
    pthread_mutex_unlock(&pic->lock);
}

/* --- registers --- */

static void begin_init(struct pic *pic, struct pic_half *half, uint8_t icw1)
{
    *half = (struct pic_half){
        .lines = half->lines, .elcr = half->elcr, .vector = half->vector, .icw1 = icw1, .icw = 2};
    /* Whatever the slave still asks for must reach the freshly cleared master as an edge. */
    pic->now.slave_out = false;
}

static void end_of_interrupt(struct pic_half *half, uint8_t ocw2)
{
    bool rotate = ocw2 & 0x80, specific = ocw2 & 0x40;
    unsigned irq = ocw2 & 7;
    if (!specific) {
        uint8_t serving = half->isr;
        if (half->mask_mode)
            serving &= (uint8_t)~half->imr;
        unsigned distance = rank(half, serving);
        if (distance == 8)
            return;
        irq = (half->first + distance) & 7;
    }
    half->isr &= (uint8_t) ~(1u << irq);
    if (rotate)
        half->first = (uint8_t)((irq + 1) & 7);
}

static void write_ocw2(struct pic_half *half, uint8_t value)
{
    switch (value >> 5) {
    case 0: half->rotate_auto = false; break;
    case 4: half->rotate_auto = true; break;
    case 6: half->first = (uint8_t)((value + 1) & 7); break; /* `value` becomes the lowest */
    case 2: break;
    default: end_of_interrupt(half, value);
    }
}

static void write_ocw3(struct pic_half *half, uint8_t value)
{
    if (value & OCW3_SET_MASK_MODE)
        half->mask_mode = value & OCW3_MASK_MODE;
    if (value & OCW3_POLL)
        half->poll = true;
    else if (value & OCW3_READ)
        half->read_isr = value & OCW3_READ_ISR;
}

static void write_odd(struct pic_half *half, uint8_t value)
{
    switch (half->icw) {
    case 0: half->imr = value; return;
    case 2:
        half->vector = value & 0xf8;
        if (!(half->icw1 & ICW1_SINGLE)) {
            half->icw = 3;
            return;
        }
        break;
    case 3: break; /* which inputs have slaves is soldered in a PC */
    case 4:
        half->auto_eoi = value & ICW4_AUTO_EOI;
        half->nested = value & ICW4_NESTED;
        half->icw = 0;
        return;
    }
    half->icw = half->icw1 & ICW1_IC4 ? 4 : 0;
}

static void half_write(struct pic *pic, unsigned which, unsigned offset, uint8_t value)
{
    struct pic_half *half = &pic->now.half[which];
    pthread_mutex_lock(&pic->lock);
    if (offset)
        write_odd(half, value);
    else if (value & ICW1)
        begin_init(pic, half, value);
    else if (value & OCW3)
        write_ocw3(half, value);
    else
        write_ocw2(half, value);
    update(pic);
    pthread_mutex_unlock(&pic->lock);
}

static uint8_t half_read(struct pic *pic, unsigned which, unsigned offset)
{
    struct pic_half *half = &pic->now.half[which];
    pthread_mutex_lock(&pic->lock);
    uint8_t value;
    if (half->poll) {
        /* The read after a poll command is the INTA cycle, at either port. */
        half->poll = false;
        int irq = inta(pic, which);
        value = irq < 0 ? 0 : (uint8_t)(0x80 | irq);
        update(pic);
    } else if (offset) {
        value = half->imr;
    } else {
        value = half->read_isr ? half->isr : requests(half);
    }
    pthread_mutex_unlock(&pic->lock);
    return value;
}

static uint8_t master_read8(void *pic, unsigned offset)
{
    return half_read(pic, 0, offset);
}

static void master_write8(void *pic, unsigned offset, uint8_t value)
{
    half_write(pic, 0, offset, value);
}

static uint8_t slave_read8(void *pic, unsigned offset)
{
    return half_read(pic, 1, offset);
}

static void slave_write8(void *pic, unsigned offset, uint8_t value)
{
    half_write(pic, 1, offset, value);
}

static uint8_t elcr_read8(void *opaque, unsigned offset)
{
    struct pic *pic = opaque;
    pthread_mutex_lock(&pic->lock);
    uint8_t value = pic->now.half[offset & 1].elcr;
    pthread_mutex_unlock(&pic->lock);
    return value;
}

static void elcr_write8(void *opaque, unsigned offset, uint8_t value)
{
    /* IRQ 0, 1, 2, 8 and 13 are wired to edge-triggered chips and cannot be changed. */
    static const uint8_t writable[2] = {0xf8, 0xde};
    struct pic *pic = opaque;
    pthread_mutex_lock(&pic->lock);
    pic->now.half[offset & 1].elcr = value & writable[offset & 1];
    update(pic);
    pthread_mutex_unlock(&pic->lock);
}

static uint64_t master_read(void *pic, uint64_t offset, unsigned size)
{
    return isa_read(master_read8, pic, offset, size);
}

static void master_write(void *pic, uint64_t offset, unsigned size, uint64_t value)
{
    isa_write(master_write8, pic, offset, size, value);
}

static uint64_t slave_read(void *pic, uint64_t offset, unsigned size)
{
    return isa_read(slave_read8, pic, offset, size);
}

static void slave_write(void *pic, uint64_t offset, unsigned size, uint64_t value)
{
    isa_write(slave_write8, pic, offset, size, value);
}

static uint64_t elcr_read(void *pic, uint64_t offset, unsigned size)
{
    return isa_read(elcr_read8, pic, offset, size);
}

static void elcr_write(void *pic, uint64_t offset, unsigned size, uint64_t value)
{
    isa_write(elcr_write8, pic, offset, size, value);
}

const struct bus_ops pic_master_ops = {
    .name = "pic-master", .read = master_read, .write = master_write};
const struct bus_ops pic_slave_ops = {
    .name = "pic-slave", .read = slave_read, .write = slave_write};
const struct bus_ops pic_elcr_ops = {.name = "pic-elcr", .read = elcr_read, .write = elcr_write};
/* --- state --- */

static void pic_state(void *opaque, struct record *record)
{
    struct pic *pic = opaque;
    pthread_mutex_lock(&pic->lock);
    pic_state_record(&pic->now, record);
    if (record->loading) {
        pic->out = false;
        irq_set(&pic->output, false);
        update(pic);
    }
    pthread_mutex_unlock(&pic->lock);
}

const struct device_ops pic_device = {.name = "pic",
                                      .reset = pic_reset,
                                      .free = pic_free,
                                      .state = pic_state,
                                      .state_version = PIC_STATE_VERSION};

/* --- life --- */

void pic_reset(void *opaque)
{
    struct pic *pic = opaque;
    pthread_mutex_lock(&pic->lock);
    for (unsigned i = 0; i < 2; i++)
        /* The vectors that a PC's firmware leaves; everything masked until somebody takes over. */
        pic->now.half[i] = (struct pic_half){
            .lines = pic->now.half[i].lines, .imr = 0xff, .vector = i ? 0x70 : 0x08};
    pic->now.slave_out = false;
    update(pic);
    pthread_mutex_unlock(&pic->lock);
}

struct pic *pic_new(const struct pic_config *config)
{
    struct pic *pic = calloc(1, sizeof *pic);
    if (!pic)
        return NULL;
    pthread_mutex_init(&pic->lock, NULL);
    pic->output = config->output;
    pic->vector = -1;
    pic_reset(pic);
    return pic;
}

void pic_free(void *opaque)
{
    struct pic *pic = opaque;
    if (!pic)
        return;
    pthread_mutex_destroy(&pic->lock);
    free(pic);
}
