/*
 * The registers of the local APIC, in xAPIC's page and as x2APIC's MSRs (SDM tables 11-1, 11-6),
 * IA32_APIC_BASE, reset, and the canonical page. `reg` below is a register's number: its offset in
 * the page divided by 16, or its MSR's distance from 0x800.
 */
#include "chip/apic.h"

#include "base/bytes.h"
#include "base/record.h"
#include "chip/apic_local.h"

#include <assert.h>
#include <stdlib.h>

enum {
    REG_ID = 0x02,
    REG_VERSION = 0x03,
    REG_TPR = 0x08,
    REG_APR = 0x09,
    REG_PPR = 0x0a,
    REG_EOI = 0x0b,
    REG_RRD = 0x0c,
    REG_LDR = 0x0d,
    REG_DFR = 0x0e,
    REG_SVR = 0x0f,
    REG_ISR = 0x10,
    REG_TMR = 0x18,
    REG_IRR = 0x20,
    REG_ESR = 0x28,
    REG_ICR = 0x30,
    REG_ICR_HIGH = 0x31,
    REG_LVT = 0x32, /* enum apic_lvt from here on */
    REG_INITIAL = 0x38,
    REG_CURRENT = 0x39,
    REG_DIVIDE = 0x3e,
    REG_SELF_IPI = 0x3f,

    VERSION = 0x14 | (LVT_MAX - 1) << 16,
    SVR_WRITABLE = 0x3ff,
    ICR_WRITABLE = 0xccfff,
    ICR_X2_RESERVED = 0xfff32000,
    LDR_WRITABLE = 0xff000000,
    DFR_ONES = 0x0fffffff,

    MSR_APIC_BASE = 0x1b,
    MSR_TSC_DEADLINE = 0x6e0,
    MSR_X2APIC = 0x800,
    MSR_X2APIC_LAST = 0x8ff,
};

/* Which bits of an LVT entry software may write. Bit 12 (and 14 of LINT) are the APIC's. */
static const uint32_t lvt_writable[LVT_MAX] = {
    [LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff, [LVT_PERFORMANCE] = 0x107ff,
    [LVT_LINT0] = 0x1a7ff, [LVT_LINT1] = 0x1a7ff,   [LVT_ERROR] = 0x100ff,
};
enum { LVT_READ_ONLY = 1 << 12 | 1 << 14 };

static uint32_t x2apic_logical(unsigned index)
{
    return (uint32_t)(index >> 4) << 16 | 1u << (index & 15);
}

/* --- reads --- */

/* False where there is no such register, or none that can be read in x2APIC mode. */
static bool read_register(const struct local *local, unsigned reg, bool x2apic, uint32_t *ret_value)
{
    uint32_t value = 0;
    switch (reg) {
    case REG_ID: value = x2apic ? local->index : local->index << 24; break;
    case REG_VERSION: value = VERSION; break;
    case REG_TPR: value = local->tpr; break;
    case REG_PPR: value = local_priority(local); break;
    case REG_LDR: value = x2apic ? x2apic_logical(local->index) : local->logical; break;
    case REG_SVR: value = local->svr; break;
    case REG_ISR ... REG_ISR + 7: value = local->isr[reg - REG_ISR]; break;
    case REG_TMR ... REG_TMR + 7: value = local->tmr[reg - REG_TMR]; break;
    case REG_IRR ... REG_IRR + 7: value = local->irr[reg - REG_IRR]; break;
    case REG_ESR: value = local->esr; break;
    case REG_ICR: value = local->icr_low; break;
    case REG_LVT ... REG_LVT + LVT_MAX - 1: value = local->lvt[reg - REG_LVT]; break;
    case REG_INITIAL: value = local->timer_initial; break;
    case REG_CURRENT: value = local_timer_count(local); break;
    case REG_DIVIDE: value = local->timer_divide; break;
    case REG_DFR: value = local->format; goto xapic_only;
    case REG_ICR_HIGH: value = local->icr_high; goto xapic_only;
    case REG_APR:
    case REG_RRD:
    case REG_EOI:
    xapic_only:
        if (x2apic)
            return false;
        break;
    default: return false;
    }
    *ret_value = value;
    return true;
}

bool apic_mmio_read(struct apic *apic, unsigned vcpu, uint64_t gpa, unsigned size,
                    uint64_t *ret_value)
{
    struct local *local = apic_local(apic, vcpu);
    uint64_t base = atomic_load_explicit(&local->base, memory_order_relaxed);
    if ((base & (BASE_ENABLED | BASE_X2APIC)) != BASE_ENABLED || (gpa ^ base) >> 12)
        return false;
    uint32_t value = 0;
    /* Only the first dword of each 16 bytes is a register. */
    if (!(gpa & 0xc)) {
        local_enter(local);
        if (!read_register(local, (unsigned)(gpa & 0xfff) >> 4, false, &value))
            local_error(local, ESR_REGISTER);
        local_leave(local);
    }
    *ret_value = value >> (gpa & 3) * 8;
    return true;
}

/* --- writes --- */

static void write_spurious(struct local *local, uint32_t value)
{
    local->svr = value & SVR_WRITABLE;
    /* Disabling masks all local interrupts, and they stay so (SDM 11.4.7.2). */
    if (!(value & SVR_ENABLED))
        for (unsigned i = 0; i < LVT_MAX; i++)
            local->lvt[i] |= LVT_MASKED;
}

static void write_lvt(struct local *local, enum apic_lvt entry, uint32_t value)
{
    uint32_t before = local->lvt[entry];
    value &= lvt_writable[entry];
    if (!(local->svr & SVR_ENABLED))
        value |= LVT_MASKED;
    local->lvt[entry] = value;
    if (entry == LVT_TIMER)
        local_timer_mode_changed(local, before);
}

/* The registers that the two modes share and that only change this APIC. False if not one. */
static bool write_plain(struct local *local, unsigned reg, uint32_t value)
{
    switch (reg) {
    case REG_TPR: local->tpr = value & 0xff; break;
    case REG_SVR: write_spurious(local, value); break;
    case REG_ESR:
        local->esr = local->beyond.esr_new;
        local->beyond.esr_new = 0;
        break;
    case REG_LVT ... REG_LVT + LVT_MAX - 1:
        write_lvt(local, (enum apic_lvt)(reg - REG_LVT), value);
        break;
    case REG_INITIAL: local_timer_start(local, value); break;
    case REG_DIVIDE: local_timer_set_divide(local, value); break;
    default: return false;
    }
    return true;
}

static void write_eoi(struct local *local)
{
    local_enter(local);
    int vector = local_eoi(local);
    local_leave(local);
    const struct apic_config *config = &local->apic->config;
    if (vector >= 0 && config->eoi)
        config->eoi(config->opaque, (uint8_t)vector);
}

static void write_icr(struct local *local, uint32_t low, uint32_t high, bool x2apic)
{
    local_enter(local);
    local->icr_low = low & ICR_WRITABLE;
    local->icr_high = high;
    local_leave(local);
    local_send(local, low, x2apic ? high : high >> 24, x2apic);
}

static void write_xapic(struct local *local, unsigned reg, uint32_t value)
{
    if (reg == REG_EOI) {
        write_eoi(local);
        return;
    }
    if (reg == REG_ICR) {
        write_icr(local, value, local->icr_high, false);
        return;
    }
    local_enter(local);
    uint32_t ignored;
    if (reg == REG_LDR)
        local->logical = value & LDR_WRITABLE;
    else if (reg == REG_DFR)
        local->format = value | DFR_ONES;
    else if (reg == REG_ICR_HIGH)
        local->icr_high = value & 0xff000000;
    else if (!write_plain(local, reg, value) && !read_register(local, reg, false, &ignored))
        local_error(local, ESR_REGISTER); /* writes to read-only registers are dropped */
    local_leave(local);
}

bool apic_mmio_write(struct apic *apic, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value)
{
    struct local *local = apic_local(apic, vcpu);
    uint64_t base = atomic_load_explicit(&local->base, memory_order_relaxed);
    if ((base & (BASE_ENABLED | BASE_X2APIC)) != BASE_ENABLED || (gpa ^ base) >> 12)
        return false;
    /* Anything but an aligned dword is undefined (SDM 11.4.1) and dropped; wider ones are cut. */
    if (size >= 4 && !(gpa & 0xf))
        write_xapic(local, (unsigned)(gpa & 0xfff) >> 4, (uint32_t)value);
    return true;
}

/* Bits that must be 0 in an x2APIC write, for the registers that have any. */
static uint32_t x2apic_reserved(unsigned reg)
{
    switch (reg) {
    case REG_TPR:
    case REG_SELF_IPI: return ~0xffu;
    case REG_SVR: return ~(uint32_t)SVR_WRITABLE;
    case REG_EOI:
    case REG_ESR: return UINT32_MAX;
    case REG_ICR: return ICR_X2_RESERVED;
    case REG_LVT ... REG_LVT + LVT_MAX - 1:
        return ~(lvt_writable[reg - REG_LVT] | (uint32_t)LVT_READ_ONLY);
    case REG_DIVIDE: return ~0xbu;
    default: return 0;
    }
}

static bool write_x2apic(struct local *local, unsigned reg, uint64_t value)
{
    uint32_t low = (uint32_t)value, high = (uint32_t)(value >> 32);
    if (low & x2apic_reserved(reg) || (high && reg != REG_ICR))
        return false;
    switch (reg) {
    case REG_EOI: write_eoi(local); return true;
    case REG_ICR: write_icr(local, low, high, true); return true;
    case REG_SELF_IPI: local_send(local, low | 1u << 18, 0, true); return true;
    }
    local_enter(local);
    bool known = write_plain(local, reg, low);
    local_leave(local);
    return known;
}

/* --- IA32_APIC_BASE and the MSRs --- */

static bool base_possible(const struct local *local, uint64_t value)
{
    unsigned bits = local->apic->config.physical_bits;
    uint64_t reserved = ~((1ull << bits) - 1) | 0xff | 1 << 9;
    return !(value & reserved) && (value & (BASE_ENABLED | BASE_X2APIC)) != BASE_X2APIC;
}

static void registers_reset(struct local *local)
{
    for (unsigned i = 0; i < 8; i++)
        local->irr[i] = local->isr[i] = local->tmr[i] = 0;
    for (unsigned i = 0; i < LVT_MAX; i++)
        local->lvt[i] = LVT_MASKED;
    local->tpr = local->esr = local->beyond.esr_new = local->icr_low = local->icr_high = 0;
    local->logical = 0;
    local->format = UINT32_MAX;
    local->svr = 0xff;
    local->beyond.extint = false;
    local_timer_stop(local);
    local->timer_divide = 0;
}

static void base_set(struct local *local, uint64_t value)
{
    local_enter(local);
    uint64_t before = local->base;
    local->base = value;
    /* Enabling again finds the registers as after power-on (SDM 11.4.3). */
    if (before & BASE_ENABLED && !(value & BASE_ENABLED))
        registers_reset(local);
    local_leave(local);
}

static bool base_write(struct local *local, uint64_t value)
{
    /* SDM figure 11-27: x2APIC is entered from xAPIC only, and left to disabled only. */
    uint64_t before = local->base;
    bool from_x2 = before & BASE_X2APIC, to_x2 = value & BASE_X2APIC;
    if (!base_possible(local, value) || (to_x2 && !(before & BASE_ENABLED)) ||
        (from_x2 && !to_x2 && value & BASE_ENABLED))
        return false;
    base_set(local, value);
    return true;
}

bool apic_base_restore(struct apic *apic, unsigned vcpu, uint64_t value)
{
    struct local *local = apic_local(apic, vcpu);
    if (!base_possible(local, value))
        return false;
    base_set(local, value);
    return true;
}

bool apic_msr_read(void *opaque, unsigned vcpu, uint32_t index, uint64_t *ret_value)
{
    struct local *local = apic_local(opaque, vcpu);
    if (index == MSR_APIC_BASE) {
        *ret_value = local->base;
        return true;
    }
    bool x2apic = index >= MSR_X2APIC && index <= MSR_X2APIC_LAST && local_x2apic(local);
    if (index != MSR_TSC_DEADLINE && !x2apic)
        return false;
    uint32_t low = 0;
    bool known = true;
    local_enter(local);
    if (index == MSR_TSC_DEADLINE)
        *ret_value = local->deadline;
    else
        known = read_register(local, index - MSR_X2APIC, true, &low);
    uint64_t high = index == MSR_X2APIC + REG_ICR ? local->icr_high : 0;
    local_leave(local);
    if (known && x2apic)
        *ret_value = low | high << 32;
    return known;
}

bool apic_msr_write(void *opaque, unsigned vcpu, uint32_t index, uint64_t value)
{
    struct local *local = apic_local(opaque, vcpu);
    if (index >= MSR_X2APIC && index <= MSR_X2APIC_LAST)
        return local_x2apic(local) && write_x2apic(local, index - MSR_X2APIC, value);
    if (index == MSR_APIC_BASE)
        return base_write(local, value);
    if (index != MSR_TSC_DEADLINE)
        return false;
    local_enter(local);
    local_timer_set_deadline(local, value);
    local_leave(local);
    return true;
}

/* --- CR8 --- */

uint64_t apic_cr8_read(void *opaque, unsigned vcpu)
{
    /* Only this thread writes it. */
    return apic_local(opaque, vcpu)->tpr >> 4;
}

void apic_cr8_write(void *opaque, unsigned vcpu, uint64_t value)
{
    struct local *local = apic_local(opaque, vcpu);
    local_enter(local);
    local->tpr = (uint32_t)(value & 0xf) << 4;
    local_leave(local);
}

/* --- the canonical page --- */

void apic_save(void *opaque, unsigned vcpu, uint8_t *ret_page)
{
    struct local *local = apic_local(opaque, vcpu);
    memset(ret_page, 0, APIC_PAGE_SIZE);
    local_enter(local);
    bool x2apic = local_x2apic(local);
    for (unsigned reg = 0; reg < APIC_PAGE_SIZE / 16; reg++) {
        uint32_t value;
        if (read_register(local, reg, x2apic, &value))
            le32_write(ret_page + reg * 16, value);
    }
    /* Not x2APIC registers by themselves, but part of the state. */
    le32_write(ret_page + REG_ICR_HIGH * 16, local->icr_high);
    le32_write(ret_page + REG_DFR * 16, local->format);
    local_leave(local);
}

static uint32_t page_read(const uint8_t *page, unsigned reg)
{
    return le32_read(page + reg * 16);
}

static bool page_possible(const struct local *local, const uint8_t *page)
{
    uint32_t id = local_x2apic(local) ? local->index : local->index << 24;
    uint32_t low = (1u << VECTOR_FIRST) - 1;
    return page_read(page, REG_ID) == id && !(page_read(page, REG_IRR) & low) &&
           !(page_read(page, REG_ISR) & low);
}

bool apic_load(void *opaque, unsigned vcpu, const uint8_t *page)
{
    struct local *local = apic_local(opaque, vcpu);
    if (!page_possible(local, page))
        return false;
    local_enter(local);
    bool x2apic = local_x2apic(local);
    for (unsigned i = 0; i < 8; i++) {
        local->isr[i] = page_read(page, REG_ISR + i);
        local->tmr[i] = page_read(page, REG_TMR + i);
        local->irr[i] = page_read(page, REG_IRR + i);
    }
    for (unsigned i = 0; i < LVT_MAX; i++)
        local->lvt[i] = page_read(page, REG_LVT + i) & lvt_writable[i];
    local->tpr = page_read(page, REG_TPR) & 0xff;
    local->svr = page_read(page, REG_SVR) & SVR_WRITABLE;
    local->esr = page_read(page, REG_ESR) & 0xff;
    local->beyond.esr_new = 0;
    local->beyond.extint = false;
    local->icr_low = page_read(page, REG_ICR) & ICR_WRITABLE;
    local->icr_high = page_read(page, REG_ICR_HIGH);
    local->logical = x2apic ? 0 : page_read(page, REG_LDR) & LDR_WRITABLE;
    local->format = page_read(page, REG_DFR) | DFR_ONES;
    local_timer_load(local, page_read(page, REG_INITIAL), page_read(page, REG_DIVIDE),
                     page_read(page, REG_CURRENT));
    local_leave(local);
    return true;
}

/* --- life --- */

void apic_init(void *opaque, unsigned vcpu)
{
    /* INIT keeps the base, the mode and the ID (SDM 11.12.5.1). */
    struct local *local = apic_local(opaque, vcpu);
    local_enter(local);
    registers_reset(local);
    local_leave(local);
}

void apic_reset(void *opaque)
{
    struct apic *apic = opaque;
    for (unsigned i = 0; i < apic->config.vcpus; i++) {
        struct local *local = &apic->local[i];
        local_enter(local);
        local->base = APIC_ADDRESS | BASE_ENABLED | (i == 0 ? BASE_BSP : 0);
        registers_reset(local);
        if (i == 0) {
            local->lvt[LVT_LINT0] = MODE_EXTINT << LVT_MODE_SHIFT;
            local->lvt[LVT_LINT1] = MODE_NMI << LVT_MODE_SHIFT;
        }
        local_leave(local);
    }
}

struct apic *apic_new(const struct apic_config *config)
{
    assert(config->vcpus >= 1 && config->vcpus <= APIC_VCPUS_MAX && config->tsc_khz);
    struct apic *apic = calloc(1, sizeof *apic + config->vcpus * sizeof apic->local[0]);
    if (!apic)
        return NULL;
    apic->config = *config;
    if (!apic->config.physical_bits)
        apic->config.physical_bits = 46;
    for (unsigned i = 0; i < config->vcpus; i++) {
        struct local *local = &apic->local[i];
        pthread_mutex_init(&local->lock, NULL);
        local->apic = apic;
        local->index = i;
        local_timer_init(local);
    }
    apic_reset(apic);
    return apic;
}

void apic_free(void *opaque)
{
    struct apic *apic = opaque;
    if (!apic)
        return;
    for (unsigned i = 0; i < apic->config.vcpus; i++)
        pthread_mutex_destroy(&apic->local[i].lock);
    free(apic);
}

/* What is in no register page: those are part of the vCPUs' state, which is loaded before. */
static void apic_state(void *opaque, struct record *record)
{
    struct apic *apic = opaque;
    record_same(record, apic->config.vcpus, "is of a machine with other CPUs");
    for (unsigned i = 0; i < apic->config.vcpus && !record->failed; i++) {
        struct local *local = &apic->local[i];
        local_enter(local);
        apic_state_record(&local->beyond, record);
        local_leave(local);
    }
}

const struct device_ops apic_device = {.name = "apic",
                                       .reset = apic_reset,
                                       .free = apic_free,
                                       .state = apic_state,
                                       .state_version = APIC_STATE_VERSION};
