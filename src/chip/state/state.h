/*
 * state.h: the interrupt controllers and the interval timer as they are saved.
 *
 * A machine has them in src/chip, or in the engine's kernel (KVM). What a guest could tell them by
 * is the same, and so is what a snapshot holds of them: these structs, and the one function each
 * that saves and loads them. src/chip keeps its own state in them; src/cpu/kvm turns KVM's structs
 * into them and back (chips.c there).
 *
 * Plain data and pure functions: any thread. What was loaded has each value within its bounds; on a
 * record that failed it may be anything.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct record;

/* --- the 8259A pair --- */

struct pic_half {
    uint8_t lines; /* levels of the inputs */
    uint8_t irr;   /* edge-latched requests; level-triggered ones are lines & elcr */
    uint8_t imr, isr, elcr;
    uint8_t first; /* the input of highest priority */
    uint8_t vector;
    uint8_t icw; /* the ICW expected next at the odd port, 2..4; 0 = none */
    uint8_t icw1;
    bool auto_eoi, rotate_auto, nested, mask_mode, read_isr, poll;
};

struct pic_state {
    struct pic_half half[2]; /* master, slave */
    bool slave_out;          /* INT of the slave, as the master saw it last */
};

/* --- the I/O APIC --- */

enum { IOAPIC_PINS = 24 };

/* A redirection entry. */
#define IOAPIC_ENTRY_REMOTE_IRR (1ull << 14)
#define IOAPIC_ENTRY_LEVEL      (1ull << 15)
#define IOAPIC_ENTRY_MASKED     (1ull << 16)
#define IOAPIC_ENTRY_WRITABLE                                                                      \
    (0xff000000000000ffull | 0x700 | 1 << 11 | 1 << 13 | 1 << 15 | 1 << 16)

struct ioapic_state {
    uint32_t select; /* below 0x100 */
    uint32_t id;     /* in bits 24..27 */
    uint32_t lines;  /* levels of the pins */
    uint64_t entry[IOAPIC_PINS];
};

/* --- the 8254 and port 0x61 --- */

enum { PIT_HZ = 1193182, PIT_CHANNELS = 3 };

enum pit_access { PIT_ACCESS_LATCH, PIT_ACCESS_LOW, PIT_ACCESS_HIGH, PIT_ACCESS_BOTH };

enum {
    PIT_PORT61_GATE = 1 << 0,
    PIT_PORT61_SPEAKER = 1 << 1,
    PIT_PORT61_REFRESH = 1 << 4,
    PIT_PORT61_OUT = 1 << 5,
    PIT_PORT61_WRITABLE = 0x0f,
};

/* Ticks are those of PIT_HZ since the machine's clock was 0. */
struct pit_channel {
    uint8_t mode;   /* 0..5 */
    uint8_t access; /* enum pit_access */
    bool bcd, gate;
    bool loaded;    /* a count has been written since the control word */
    bool running;   /* counting from `start`; otherwise stands at `held` */
    uint32_t count; /* as counted with: 1..65536, or 1..10000 */
    uint64_t start; /* the tick at which the counting element held `count` */
    uint64_t held;  /* ticks elapsed when it stopped */
    bool next_valid;
    uint32_t next;    /* waits for a gate (modes 1, 5) or for tick `next_at` (modes 2, 3) */
    uint64_t next_at; /* UINT64_MAX: for a gate */
    bool write_high, read_high; /* the other byte of two comes next */
    uint8_t write_low;
    bool count_latched, status_latched;
    uint16_t latch;
    uint8_t status;
};

struct pit_state {
    struct pit_channel channel[PIT_CHANNELS];
    uint8_t port61;
};

/* --- what of a local APIC is in no register page --- */

struct apic_state {
    uint32_t esr_new; /* what the next write of the error status register will show */
    bool extint;      /* an ExtINT message came and has not been accepted */
    bool lint[2];     /* levels */
};

/* All of them, for a machine that has none of its own. */
struct chip_states {
    struct pic_state pic;
    struct ioapic_state ioapic;
    struct pit_state pit;
};

/* Versions of their sections in a snapshot. */
enum { APIC_STATE_VERSION = 1, IOAPIC_STATE_VERSION = 1, PIC_STATE_VERSION = 1 };
enum { PIT_STATE_VERSION = 1 };

void pic_state_record(struct pic_state *state, struct record *record);
void ioapic_state_record(struct ioapic_state *state, struct record *record);
void pit_state_record(struct pit_state *state, struct record *record);
void apic_state_record(struct apic_state *state, struct record *record);
