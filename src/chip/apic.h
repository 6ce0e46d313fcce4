/*
 * apic.h: the local APICs of a machine and the bus between them (Intel SDM vol. 3, chapter 11).
 *
 * A `struct apic` is all of them together: one local APIC per vCPU, whose APIC ID is the vCPU's
 * number, and the delivery of messages among them, from I/O APICs and from MSI. The functions of
 * the first group fit `struct engine_apic` of cpu/engine.h member by member, with the struct apic
 * as their opaque, so that a board writes
 *
 *     apic = apic_new(&(struct apic_config){.vcpus = n, .timers = timers, .tsc = board_tsc,
 *                     .tsc_khz = khz, .notify = board_notify, .signal = board_signal,
 *                     .eoi = ioapic_eoi_of_board, .pic_poll = pic_poll, .pic_accept = pic_accept,
 *                     .opaque = board, .pic = pic});
 *     struct engine_apic row = {.opaque = apic, .poll = apic_poll, .accept = apic_accept, ...};
 *
 * xAPIC and x2APIC with every register of version 0x14 except the thermal and performance sources
 * themselves (their LVT entries are there, nothing raises them). The bus clock of the timer is
 * APIC_TIMER_HZ. xAPIC IDs cannot be changed by software. Writes of the performance LVT, focus
 * checking and arbitration registers are accepted as far as they are architectural. SMI messages
 * are dropped. Remote read answers 0. LINT pins are sampled at their rising edge, except that
 * ExtINT follows the level.
 *
 * Interrupt visible first, then told: whatever makes something deliverable first updates what
 * apic_poll() reads and then calls `notify`, with no lock of the APICs held. An engine that sets a
 * sticky flag in notify and polls after clearing it therefore loses nothing, and one that checks
 * apic_poll() and its flag under the mutex that notify takes may sleep. An answer that stands is
 * not announced again: an engine that cannot deliver it yet (IF = 0) remembers to poll later.
 * apic_poll() takes no lock. The others may; do not call them with a mutex held that `notify` or
 * `signal` takes.
 *
 * Threads: the functions that take a vCPU number in the first and second group run on that vCPU's
 * thread (or any one thread while it does not run); lines and messages come from any thread.
 * Locks: a chip's mutex (PIC, I/O APIC), then one APIC's, then the timers'; never two APICs' at
 * once, and `eoi` and `pic_accept` are called with none held. Free it after timers_free().
 *
 * Errors: apic_new() is NULL without memory. A register access returning false is #GP(0).
 */
#pragma once

#include "base/timer.h"
#include "bus/bus.h"

enum {
    APIC_VCPUS_MAX = 64,
    APIC_PAGE_SIZE = 1024, /* of apic_save() */
    APIC_TIMER_HZ = 1000000000,
    APIC_PERIOD_MIN_NS = 20000, /* a periodic timer interrupts no more often */
};
#define APIC_ADDRESS 0xfee00000u

struct apic;

/* In the order of enum engine_signal. */
enum apic_signal { APIC_SIGNAL_NMI, APIC_SIGNAL_INIT, APIC_SIGNAL_SIPI };

struct apic_config {
    unsigned vcpus;         /* 1..APIC_VCPUS_MAX; number 0 is the boot processor */
    unsigned physical_bits; /* MAXPHYADDR, for IA32_APIC_BASE; 0 = 46 */
    struct timers *timers;  /* borrowed */

    /* The guest's TSC as that vCPU would read it now. Any thread, no lock taken. */
    uint64_t (*tsc)(void *opaque, unsigned vcpu);
    uint64_t tsc_khz;

    /* The answer of apic_poll(vcpu) may have changed to something. Any thread. */
    void (*notify)(void *opaque, unsigned vcpu);
    /* `vector` is SIPI's start page. Any thread. INIT resets nothing here until apic_init(). */
    void (*signal)(void *opaque, unsigned vcpu, enum apic_signal signal, uint8_t vector);
    /* The end of a level-triggered interrupt, to be broadcast to I/O APICs. NULL = none. */
    void (*eoi)(void *opaque, uint8_t vector);
    void *opaque; /* of the four above */

    /* The 8259 pair behind LINT0 of vCPU 0 (pic_poll, pic_accept); NULL = none. poll must be
     * lock-free. */
    int (*pic_poll)(void *pic);
    int (*pic_accept)(void *pic);
    void *pic;
};

struct apic *apic_new(const struct apic_config *config);
/* Power-on, of all. The boot processor's LINT0 is left in virtual wire mode (ExtINT, unmasked) and
 * LINT1 as NMI, as firmware would, because a directly loaded kernel has none. */
void apic_reset(void *apic);
void apic_free(void *apic);
extern const struct device_ops apic_device;

/* --- as struct engine_apic wants them; see there --- */
int apic_poll(void *apic, unsigned vcpu);
int apic_accept(void *apic, unsigned vcpu);
uint64_t apic_cr8_read(void *apic, unsigned vcpu);
void apic_cr8_write(void *apic, unsigned vcpu, uint64_t value);
/* 0x1b, 0x6e0, 0x800..0x8ff; false is #GP (as is any other index). */
bool apic_msr_read(void *apic, unsigned vcpu, uint32_t index, uint64_t *ret_value);
bool apic_msr_write(void *apic, unsigned vcpu, uint32_t index, uint64_t value);
/* The page of registers. IA32_APIC_BASE and IA32_TSC_DEADLINE are not in it. To restore: first
 * apic_base_restore(), then apic_load(), then the deadline through apic_msr_write(). load()
 * returns false, with nothing changed, for a page that no APIC can be in. */
void apic_save(void *apic, unsigned vcpu, uint8_t *ret_page);
bool apic_load(void *apic, unsigned vcpu, const uint8_t *page);
void apic_init(void *apic, unsigned vcpu);

/* --- what else the board calls on a vCPU's thread --- */
/* True if `gpa` is in this vCPU's xAPIC page and the access was done here; otherwise it goes on to
 * the bus. Call it first for every MMIO access. */
bool apic_mmio_read(struct apic *apic, unsigned vcpu, uint64_t gpa, unsigned size,
                    uint64_t *ret_value);
bool apic_mmio_write(struct apic *apic, unsigned vcpu, uint64_t gpa, unsigned size, uint64_t value);
/* Sets IA32_APIC_BASE without the rules of transition. False for a value that never is legal. */
bool apic_base_restore(struct apic *apic, unsigned vcpu, uint64_t value);

/* --- any thread --- */
/* irq_line functions; `vcpu` is the line's number. LINT0 comes from the PIC, LINT1 is NMI. */
void apic_lint0(void *apic, unsigned vcpu, bool level);
void apic_lint1(void *apic, unsigned vcpu, bool level);
/* A message as an I/O APIC or MSI sends it. False when no APIC took it. */
bool apic_message(void *apic, uint64_t address, uint32_t data);
/* The same, as msi_target.send. */
void apic_msi(void *apic, uint64_t address, uint32_t data);
