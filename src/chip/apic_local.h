/*
 * apic_local.h: one local APIC, for the files of apic.h only (registers in apic.c, interrupts and
 * messages in apic_deliver.c, the timer in apic_timer.c).
 *
 * A `struct local` is changed under its mutex between local_enter() and local_leave(), and leaving
 * is where consequences happen: it works out what is deliverable now, publishes it in `ready`,
 * lets go of the mutex, and then tells the owner. So no function in between calls out, except to
 * the timers and the TSC.
 */
#pragma once

#include "chip/apic.h"
#include "chip/state/state.h"

#include <pthread.h>
#include <stdatomic.h>

enum apic_lvt { LVT_TIMER, LVT_THERMAL, LVT_PERFORMANCE, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_MAX };

enum {
    LVT_MODE_SHIFT = 8,
    LVT_MASKED = 1 << 16,
    LVT_PERIODIC = 1 << 17,
    LVT_DEADLINE = 2 << 17,
    LVT_TIMER_MODE = 3 << 17,

    SVR_ENABLED = 1 << 8,

    ESR_SEND_ILLEGAL = 1 << 5,
    ESR_RECEIVE_ILLEGAL = 1 << 6,
    ESR_REGISTER = 1 << 7,

    BASE_BSP = 1 << 8,
    BASE_X2APIC = 1 << 10,
    BASE_ENABLED = 1 << 11,

    VECTOR_FIRST = 16, /* below are exceptions; no message may use them */
};

enum apic_mode {
    MODE_FIXED,
    MODE_LOWEST,
    MODE_SMI,
    MODE_RESERVED,
    MODE_NMI,
    MODE_INIT,
    MODE_SIPI,
    MODE_EXTINT
};

enum { PRIORITY_NONE = 0x100 };

/* struct local.ready: 0 = nothing for this vCPU. */
enum {
    READY_VECTOR = 1 << 8, /* the low eight bits are deliverable */
    READY_EXTINT = 1 << 9, /* the PIC's output reaches this vCPU: ask it */
};

struct local {
    pthread_mutex_t lock;
    struct apic *apic;
    unsigned index; /* the vCPU's number and APIC ID */

    /* Read by other threads without the mutex. */
    _Atomic uint32_t ready;
    _Atomic uint64_t base;            /* IA32_APIC_BASE */
    _Atomic uint32_t logical, format; /* LDR and DFR of xAPIC mode */
    /* The class in PPR as of the last change, or PRIORITY_NONE while software-disabled: for
     * lowest-priority arbitration. */
    _Atomic uint32_t priority;

    uint32_t irr[8], isr[8], tmr[8];
    uint32_t tpr, svr, esr, icr_low, icr_high;
    uint32_t lvt[LVT_MAX];
    struct apic_state beyond; /* what no register of the page shows */
    bool nmi_signal;          /* local_leave() is to signal an NMI */

    uint32_t timer_initial, timer_divide;
    uint64_t deadline; /* IA32_TSC_DEADLINE; 0 = not armed */
    uint64_t fire_at;  /* ns; UINT64_MAX = not running */
    uint64_t armed_at; /* when `timer` will call back; may be earlier than fire_at */
    unsigned early;    /* how often the deadline's TSC was found not reached */
    struct timer timer;
};

struct apic {
    struct apic_config config;
    _Atomic unsigned turn; /* where lowest-priority arbitration starts among equals */
    struct local local[];
};

static inline struct local *apic_local(struct apic *apic, unsigned vcpu)
{
    return &apic->local[vcpu < apic->config.vcpus ? vcpu : 0];
}

static inline bool local_enabled(const struct local *local)
{
    return atomic_load_explicit(&local->base, memory_order_relaxed) & BASE_ENABLED;
}

static inline bool local_x2apic(const struct local *local)
{
    return atomic_load_explicit(&local->base, memory_order_relaxed) & BASE_X2APIC;
}

static inline void local_enter(struct local *local)
{
    pthread_mutex_lock(&local->lock);
}

/* --- apic_deliver.c; all but local_leave() inside enter and leave --- */
void local_leave(struct local *local);
uint32_t local_priority(const struct local *local); /* PPR */
void local_accept_fixed(struct local *local, uint8_t vector, bool level);
/* An interrupt from inside: what an LVT entry says. */
void local_interrupt(struct local *local, enum apic_lvt entry);
void local_error(struct local *local, uint32_t bit);
/* Ends the interrupt in service of highest priority. Returns its vector if an I/O APIC is to
 * hear of it (ended after leaving), or -1. */
int local_eoi(struct local *local);
/* Sends what the interrupt command register says. Outside of enter and leave. */
void local_send(struct local *local, uint32_t low, uint32_t destination, bool x2apic);

/* --- apic_timer.c, inside enter and leave --- */
void local_timer_init(struct local *local);
void local_timer_stop(struct local *local);
void local_timer_start(struct local *local, uint32_t initial);
void local_timer_set_divide(struct local *local, uint32_t value);
void local_timer_set_deadline(struct local *local, uint64_t tsc);
/* After a write of the LVT entry; `before` is its old value. */
void local_timer_mode_changed(struct local *local, uint32_t before);
uint32_t local_timer_count(const struct local *local);
void local_timer_load(struct local *local, uint32_t initial, uint32_t divide, uint32_t count);
