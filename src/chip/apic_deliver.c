/*
 * How interrupts become deliverable, and how messages find their local APICs.
 *
 * The race that matters is "made pending by one thread, looked for by another". local_leave()
 * stores `ready` before it calls notify, and apic_poll() reads nothing else, so an engine that
 * (1) clears its notified flag, (2) polls, (3) sleeps only if the flag is still clear cannot miss
 * an interrupt: either the poll sees it or the flag is set after (1). `ready` may be out of date
 * by the time apic_accept() runs (a higher vector came, the PIC's request went); accept decides
 * again under the mutex, and -1 is a normal answer.
 *
 * Senders never hold their own mutex while they deliver, so two vCPUs may send to each other.
 */
#include "base/bytes.h"
#include "chip/apic_local.h"

/* Highest vector of a 256-bit register, or -1. */
static int highest(const uint32_t reg[8])
{
    for (int word = 7; word >= 0; word--)
        if (reg[word])
            return word * 32 + 31 - __builtin_clz(reg[word]);
    return -1;
}

static void bit_set(uint32_t reg[8], unsigned vector)
{
    reg[vector / 32] |= 1u << vector % 32;
}

static void bit_clear(uint32_t reg[8], unsigned vector)
{
    reg[vector / 32] &= ~(1u << vector % 32);
}

uint32_t local_priority(const struct local *local)
{
    int serving = highest(local->isr);
    uint32_t class = serving < 0 ? 0 : (uint32_t)serving & 0xf0;
    return (local->tpr & 0xf0) >= class ? local->tpr : class;
}

/* The vector to be delivered next, or -1. */
static int deliverable(const struct local *local)
{
    int vector = highest(local->irr);
    if (vector < 0 || !local_enabled(local) ||
        ((uint32_t)vector & 0xf0) <= (local_priority(local) & 0xf0))
        return -1;
    return vector;
}

static bool extint_asserted(const struct local *local)
{
    if (!local->apic->config.pic_poll)
        return false;
    if (local->beyond.extint)
        return true;
    /* A disabled APIC leaves its LINT0 pin connected as the processor's INTR (SDM 11.4.3). */
    uint32_t lint0 = local->lvt[LVT_LINT0];
    bool open = !local_enabled(local) ||
                (!(lint0 & LVT_MASKED) && (lint0 >> LVT_MODE_SHIFT & 7) == MODE_EXTINT);
    return open && local->beyond.lint[0];
}

void local_leave(struct local *local)
{
    const struct apic_config *config = &local->apic->config;
    int vector = deliverable(local);
    uint32_t ready = vector < 0 ? 0 : READY_VECTOR | (uint32_t)vector;
    if (extint_asserted(local))
        ready |= READY_EXTINT;
    bool nmi = local->nmi_signal;
    local->nmi_signal = false;
    bool takes = local_enabled(local) && local->svr & SVR_ENABLED;
    atomic_store_explicit(&local->priority, takes ? local_priority(local) & 0xf0 : PRIORITY_NONE,
                          memory_order_relaxed);
    uint32_t before = atomic_exchange_explicit(&local->ready, ready, memory_order_acq_rel);
    pthread_mutex_unlock(&local->lock);

    if (ready && ready != before)
        config->notify(config->opaque, local->index);
    if (nmi)
        config->signal(config->opaque, local->index, APIC_SIGNAL_NMI, 0);
}

int apic_poll(void *opaque, unsigned vcpu)
{
    struct apic *apic = opaque;
    struct local *local = apic_local(apic, vcpu);
    uint32_t ready = atomic_load_explicit(&local->ready, memory_order_acquire);
    if (likely(!ready))
        return -1;
    if (ready & READY_VECTOR)
        return (int)(ready & 0xff);
    return apic->config.pic_poll(apic->config.pic);
}

int apic_accept(void *opaque, unsigned vcpu)
{
    struct apic *apic = opaque;
    struct local *local = apic_local(apic, vcpu);
    local_enter(local);
    int vector = deliverable(local);
    if (vector >= 0) {
        bit_clear(local->irr, (unsigned)vector);
        bit_set(local->isr, (unsigned)vector);
        local_leave(local);
        return vector;
    }
    bool extint = extint_asserted(local);
    local->beyond.extint = false;
    local_leave(local);
    /* The PIC is asked without our mutex: it lowers LINT0 from inside. */
    if (!extint || apic->config.pic_poll(apic->config.pic) < 0)
        return -1;
    vector = apic->config.pic_accept(apic->config.pic);
    /* If more waits there, LINT0 stayed high all the time and apic_lint0() heard of no change. */
    if (apic->config.pic_poll(apic->config.pic) >= 0)
        apic->config.notify(apic->config.opaque, vcpu);
    return vector;
}

void local_accept_fixed(struct local *local, uint8_t vector, bool level)
{
    if (vector < VECTOR_FIRST) {
        local_error(local, ESR_RECEIVE_ILLEGAL);
        return;
    }
    bit_set(local->irr, vector);
    if (level)
        bit_set(local->tmr, vector);
    else
        bit_clear(local->tmr, vector);
}

void local_interrupt(struct local *local, enum apic_lvt entry)
{
    uint32_t lvt = local->lvt[entry];
    if (lvt & LVT_MASKED || !local_enabled(local))
        return;
    bool has_mode = entry != LVT_TIMER && entry != LVT_ERROR;
    unsigned mode = has_mode ? lvt >> LVT_MODE_SHIFT & 7 : MODE_FIXED;
    if (mode == MODE_NMI)
        local->nmi_signal = true;
    else if (mode == MODE_FIXED)
        local_accept_fixed(local, (uint8_t)lvt, false);
}

void local_error(struct local *local, uint32_t bit)
{
    local->beyond.esr_new |= bit;
    if ((local->lvt[LVT_ERROR] & 0xff) >= VECTOR_FIRST)
        local_interrupt(local, LVT_ERROR);
    else if (!(local->lvt[LVT_ERROR] & LVT_MASKED)) /* the error interrupt itself ends here */
        local->beyond.esr_new |= ESR_RECEIVE_ILLEGAL;
}

int local_eoi(struct local *local)
{
    int vector = highest(local->isr);
    if (vector < 0)
        return -1;
    bit_clear(local->isr, (unsigned)vector);
    return local->tmr[vector / 32] >> vector % 32 & 1 ? vector : -1;
}

/* --- messages --- */

struct message {
    uint32_t destination;
    bool wide; /* a 32-bit x2APIC destination; otherwise 8 bits */
    bool logical;
    bool level;
    enum apic_mode mode;
    uint8_t vector;
};

static bool matches_logical(const struct local *local, const struct message *message)
{
    uint32_t to = message->destination;
    if (local_x2apic(local)) /* cluster in the high half, one bit per member (SDM 11.12.10.2) */
        return to >> 16 == local->index >> 4 && to >> (local->index & 15) & 1;
    uint32_t id = atomic_load_explicit(&local->logical, memory_order_relaxed) >> 24;
    if (atomic_load_explicit(&local->format, memory_order_relaxed) >> 28 == 0xf)
        return to & id & 0xff;
    return (to >> 4 == id >> 4 || to >> 4 == 0xf) && to & id & 0xf;
}

static bool matches(const struct local *local, const struct message *message)
{
    if (!local_enabled(local))
        return false;
    if (message->destination == (message->wide ? UINT32_MAX : 0xff))
        return true;
    return message->logical ? matches_logical(local, message)
                            : message->destination == local->index;
}

/* True if this APIC took it. */
static bool deliver(struct local *local, const struct message *message)
{
    const struct apic_config *config = &local->apic->config;
    bool taken = true;
    switch (message->mode) {
    case MODE_FIXED:
    case MODE_LOWEST:
    case MODE_EXTINT:
        local_enter(local);
        /* Asked again under the mutex: the owner may have disabled it since matches(). */
        taken = local->svr & SVR_ENABLED && local_enabled(local);
        if (taken && message->mode == MODE_EXTINT)
            local->beyond.extint = true;
        else if (taken)
            local_accept_fixed(local, message->vector, message->level);
        local_leave(local);
        break;
    case MODE_NMI: config->signal(config->opaque, local->index, APIC_SIGNAL_NMI, 0); break;
    case MODE_INIT: config->signal(config->opaque, local->index, APIC_SIGNAL_INIT, 0); break;
    case MODE_SIPI:
        config->signal(config->opaque, local->index, APIC_SIGNAL_SIPI, message->vector);
        break;
    default: break; /* SMI: nobody has anything at SMRAM */
    }
    return taken;
}

/* Of those addressed, the one with the lowest processor priority; equals take turns. */
static bool deliver_lowest(struct apic *apic, const struct message *message)
{
    unsigned count = apic->config.vcpus;
    unsigned turn = atomic_fetch_add_explicit(&apic->turn, 1, memory_order_relaxed);
    struct local *best = NULL;
    uint32_t best_priority = PRIORITY_NONE;
    for (unsigned i = 0; i < count; i++) {
        struct local *local = &apic->local[(turn + i) % count];
        uint32_t priority = atomic_load_explicit(&local->priority, memory_order_relaxed);
        if (priority < best_priority && matches(local, message)) {
            best = local;
            best_priority = priority;
        }
    }
    return best && deliver(best, message);
}

static bool send(struct apic *apic, const struct message *message)
{
    if (message->mode == MODE_LOWEST)
        return deliver_lowest(apic, message);
    uint32_t to = message->destination;
    if (!message->logical && to < apic->config.vcpus && to != 0xff)
        return matches(&apic->local[to], message) && deliver(&apic->local[to], message);
    bool taken = false;
    for (unsigned i = 0; i < apic->config.vcpus; i++)
        if (matches(&apic->local[i], message))
            taken |= deliver(&apic->local[i], message);
    return taken;
}

bool apic_message(void *apic, uint64_t address, uint32_t data)
{
    /* SDM 11.11: bits 12..19 destination, 3 redirection hint, 2 destination mode; data 0..7
     * vector, 8..10 delivery mode, 14 level, 15 trigger mode. */
    if ((address & ~0xfffffull) != APIC_ADDRESS)
        return false;
    struct message message = {.destination = (uint32_t)(address >> 12) & 0xff,
                              .logical = address >> 2 & 1,
                              .level = data >> 15 & 1,
                              .mode = (enum apic_mode)(data >> 8 & 7),
                              .vector = (uint8_t)data};
    /* The release of a level carries nothing. */
    if (message.mode == MODE_RESERVED || message.mode == MODE_SIPI ||
        (message.level && !(data >> 14 & 1)))
        return false;
    return send(apic, &message);
}

void apic_msi(void *apic, uint64_t address, uint32_t data)
{
    apic_message(apic, address, data);
}

void local_send(struct local *local, uint32_t low, uint32_t destination, bool x2apic)
{
    struct apic *apic = local->apic;
    struct message message = {.destination = destination,
                              .wide = x2apic,
                              .logical = low >> 11 & 1,
                              .mode = (enum apic_mode)(low >> 8 & 7),
                              .vector = (uint8_t)low};
    bool fixed = message.mode == MODE_FIXED || message.mode == MODE_LOWEST;
    if (message.mode == MODE_RESERVED || message.mode == MODE_EXTINT)
        return;
    /* INIT level de-assert synchronized arbitration once; processors ignore it since. */
    if (message.mode == MODE_INIT && low >> 15 & 1 && !(low >> 14 & 1))
        return;
    if (fixed && message.vector < VECTOR_FIRST) {
        local_enter(local);
        local_error(local, ESR_SEND_ILLEGAL);
        local_leave(local);
        return;
    }
    unsigned shorthand = low >> 18 & 3;
    if (shorthand == 0) {
        send(apic, &message);
        return;
    }
    /* 1 self, 2 all, 3 all others. Arbitration has no meaning among all (SDM table 11-3). */
    if (message.mode == MODE_LOWEST)
        message.mode = MODE_FIXED;
    for (unsigned i = 0; i < apic->config.vcpus; i++) {
        bool self = &apic->local[i] == local;
        if (self ? shorthand != 3 : shorthand != 1)
            if (local_enabled(&apic->local[i]))
                deliver(&apic->local[i], &message);
    }
}

/* --- pins --- */

static void pin(struct local *local, unsigned number, bool level)
{
    local_enter(local);
    bool rising = level && !local->beyond.lint[number];
    local->beyond.lint[number] = level;
    /* ExtINT follows the level (extint_asserted()); everything else is taken at the edge. */
    if (rising)
        local_interrupt(local, number ? LVT_LINT1 : LVT_LINT0);
    local_leave(local);
}

void apic_lint0(void *opaque, unsigned vcpu, bool level)
{
    struct apic *apic = opaque;
    if (vcpu < apic->config.vcpus)
        pin(&apic->local[vcpu], 0, level);
}

void apic_lint1(void *opaque, unsigned vcpu, bool level)
{
    struct apic *apic = opaque;
    if (vcpu < apic->config.vcpus)
        pin(&apic->local[vcpu], 1, level);
}
