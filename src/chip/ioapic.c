/*
 * Remote IRR is the whole protocol of a level-triggered pin: set when a local APIC took the
 * message, cleared by that APIC's EOI (by vector), and no second message leaves while it is set.
 *
 * Race: an EOI for a vector may arrive from another thread between deliver() and the assignment of
 * remote IRR. Both happen under the mutex, which ioapic_eoi() takes, so the EOI waits.
 */
#include "chip/ioapic.h"

#include "base/record.h"

#include <pthread.h>
#include <stdlib.h>

enum {
    REG_SELECT = 0x00,
    REG_WINDOW = 0x10,
    REG_EOI = 0x40,

    INDEX_ID = 0x00,
    INDEX_VERSION = 0x01,
    INDEX_ARBITRATION = 0x02,
    INDEX_ENTRIES = 0x10,

    VERSION = 0x11,
};

struct ioapic {
    pthread_mutex_t lock;
    struct ioapic_config config;
    struct ioapic_state now;
};

/* Sends what an entry says as a message (SDM 11.11.1, 11.11.2). */
static bool send(struct ioapic *ioapic, uint64_t entry)
{
    uint32_t mode = (uint32_t)(entry >> 8) & 7;
    bool logical = entry >> 11 & 1, level = entry & IOAPIC_ENTRY_LEVEL;
    uint64_t address = 0xfee00000u | (entry >> 56) << 12 | (uint32_t)logical << 2;
    /* Lowest priority asks for redirection; the destination is then a set. */
    address |= (uint32_t)(mode == 1) << 3;
    uint32_t data = (uint32_t)(entry & 0xff) | mode << 8 | 1u << 14 | (uint32_t)level << 15;
    return ioapic->config.deliver && ioapic->config.deliver(ioapic->config.opaque, address, data);
}

/* A level-triggered pin that is asserted, unmasked and not in service sends once. */
static void level_update(struct ioapic *ioapic, unsigned pin)
{
    uint64_t entry = ioapic->now.entry[pin];
    if (!(ioapic->now.lines >> pin & 1) || !(entry & IOAPIC_ENTRY_LEVEL))
        return;
    if (entry & (IOAPIC_ENTRY_MASKED | IOAPIC_ENTRY_REMOTE_IRR))
        return;
    bool taken = send(ioapic, entry);
    /* SMI, NMI, INIT and ExtINT are not ended by an EOI of their vector. */
    unsigned mode = (unsigned)(entry >> 8) & 7;
    if (taken && mode <= 1)
        ioapic->now.entry[pin] |= IOAPIC_ENTRY_REMOTE_IRR;
}

void ioapic_line(void *opaque, unsigned pin, bool level)
{
    struct ioapic *ioapic = opaque;
    if (pin >= IOAPIC_PINS)
        return;
    pthread_mutex_lock(&ioapic->lock);
    bool before = ioapic->now.lines >> pin & 1;
    ioapic->now.lines = level ? ioapic->now.lines | 1u << pin : ioapic->now.lines & ~(1u << pin);
    uint64_t entry = ioapic->now.entry[pin];
    if (entry & IOAPIC_ENTRY_LEVEL)
        level_update(ioapic, pin);
    else if (level && !before && !(entry & IOAPIC_ENTRY_MASKED))
        /* An edge at a masked pin is lost (82093AA, 3.2.4, "Interrupt Mask"). */
        send(ioapic, entry);
    pthread_mutex_unlock(&ioapic->lock);
}

static void eoi_locked(struct ioapic *ioapic, uint8_t vector)
{
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        uint64_t entry = ioapic->now.entry[pin];
        if ((uint8_t)entry != vector || !(entry & IOAPIC_ENTRY_LEVEL) ||
            !(entry & IOAPIC_ENTRY_REMOTE_IRR))
            continue;
        ioapic->now.entry[pin] &= ~IOAPIC_ENTRY_REMOTE_IRR;
        level_update(ioapic, pin);
    }
}

void ioapic_eoi(void *opaque, uint8_t vector)
{
    struct ioapic *ioapic = opaque;
    pthread_mutex_lock(&ioapic->lock);
    eoi_locked(ioapic, vector);
    pthread_mutex_unlock(&ioapic->lock);
}

/* --- registers --- */

static void entry_write(struct ioapic *ioapic, unsigned pin, uint64_t value)
{
    uint64_t entry = value & IOAPIC_ENTRY_WRITABLE;
    /* Software clears a stuck remote IRR by making the pin edge-triggered for a moment. */
    if (entry & IOAPIC_ENTRY_LEVEL)
        entry |= ioapic->now.entry[pin] & IOAPIC_ENTRY_REMOTE_IRR;
    ioapic->now.entry[pin] = entry;
    level_update(ioapic, pin);
}

static uint32_t window_read(const struct ioapic *ioapic)
{
    switch (ioapic->now.select) {
    case INDEX_ID:
    case INDEX_ARBITRATION: return ioapic->now.id;
    case INDEX_VERSION: return VERSION | (IOAPIC_PINS - 1) << 16;
    }
    unsigned index = ioapic->now.select - INDEX_ENTRIES;
    if (ioapic->now.select < INDEX_ENTRIES || index >= 2 * IOAPIC_PINS)
        return 0;
    return (uint32_t)(ioapic->now.entry[index / 2] >> (index % 2 * 32));
}

static void window_write(struct ioapic *ioapic, uint32_t value)
{
    if (ioapic->now.select == INDEX_ID)
        ioapic->now.id = value & 0x0f000000;
    unsigned index = ioapic->now.select - INDEX_ENTRIES;
    if (ioapic->now.select < INDEX_ENTRIES || index >= 2 * IOAPIC_PINS)
        return;
    uint64_t entry = ioapic->now.entry[index / 2];
    if (index % 2)
        entry = (uint32_t)entry | (uint64_t)value << 32;
    else
        entry = (entry & ~0xffffffffull) | value;
    entry_write(ioapic, index / 2, entry);
}

static uint64_t ioapic_read(void *opaque, uint64_t offset, unsigned size)
{
    struct ioapic *ioapic = opaque;
    uint32_t value = 0;
    pthread_mutex_lock(&ioapic->lock);
    if ((offset & ~3ull) == REG_SELECT)
        value = ioapic->now.select;
    else if ((offset & ~3ull) == REG_WINDOW)
        value = window_read(ioapic);
    pthread_mutex_unlock(&ioapic->lock);
    /* Narrow reads see their part of the register; what lies above it reads as 0. */
    return (uint64_t)value >> (offset & 3) * 8;
}

static void ioapic_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct ioapic *ioapic = opaque;
    pthread_mutex_lock(&ioapic->lock);
    switch (offset) {
    case REG_SELECT: ioapic->now.select = (uint8_t)value; break;
    /* The window and EOI register take whole dwords; a narrow write is extended with zeros. */
    case REG_WINDOW: window_write(ioapic, (uint32_t)value); break;
    case REG_EOI: eoi_locked(ioapic, (uint8_t)value); break;
    }
    pthread_mutex_unlock(&ioapic->lock);
}

const struct bus_ops ioapic_ops = {.name = "ioapic", .read = ioapic_read, .write = ioapic_write};
static void ioapic_state(void *opaque, struct record *record)
{
    struct ioapic *ioapic = opaque;
    pthread_mutex_lock(&ioapic->lock);
    ioapic_state_record(&ioapic->now, record);
    pthread_mutex_unlock(&ioapic->lock);
}

const struct device_ops ioapic_device = {.name = "ioapic",
                                         .reset = ioapic_reset,
                                         .free = ioapic_free,
                                         .state = ioapic_state,
                                         .state_version = IOAPIC_STATE_VERSION};

void ioapic_reset(void *opaque)
{
    struct ioapic *ioapic = opaque;
    pthread_mutex_lock(&ioapic->lock);
    ioapic->now.select = 0;
    ioapic->now.id = (uint32_t)(ioapic->config.id & 0xf) << 24;
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
        ioapic->now.entry[pin] = IOAPIC_ENTRY_MASKED;
    pthread_mutex_unlock(&ioapic->lock);
}

struct ioapic *ioapic_new(const struct ioapic_config *config)
{
    struct ioapic *ioapic = calloc(1, sizeof *ioapic);
    if (!ioapic)
        return NULL;
    pthread_mutex_init(&ioapic->lock, NULL);
    ioapic->config = *config;
    ioapic_reset(ioapic);
    return ioapic;
}

void ioapic_free(void *opaque)
{
    struct ioapic *ioapic = opaque;
    if (!ioapic)
        return;
    pthread_mutex_destroy(&ioapic->lock);
    free(ioapic);
}
