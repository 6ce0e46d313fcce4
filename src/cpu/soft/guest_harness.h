/*
 * guest_harness.h: a machine of one vCPU over plain memory, for the tests of the privileged half.
 *
 * 16 MiB of RAM, identity mapped. guest_long() makes a 64-bit machine: a GDT with a segment of each
 * kind, a TSS with RSP0 and IST1, and an IDT whose gates all lead to a GUEST_STOP of their own, so
 * a test runs a few instructions and then asks where the vCPU stopped: guest_vector() says through
 * which gate. GUEST_CODE assembles a guest with the compiler's own assembler.
 *
 *     GUEST_CODE(code, 64, "sti; nop;" GUEST_STOP);
 *     struct guest guest;
 *     guest_begin(&guest, NULL);
 *     guest_long(&guest, 0);
 *     guest_run(&guest, code);
 */
#pragma once

#include "cpu/soft/system.h"

#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum {
    GUEST_MEMORY = 16 << 20,
    GUEST_PML4 = 0x1000,
    GUEST_PDPT = 0x2000,
    GUEST_PD = 0x3000,
    GUEST_PT = 0x4000, /* maps GUEST_WINDOW, 512 pages of 4K */
    GUEST_GDT = 0x6000,
    GUEST_TSS = 0x7000,
    GUEST_IDT = 0x8000,
    GUEST_HANDLERS = 0x9000, /* 16 bytes each */
    GUEST_CODE_AT = 0x10000,
    GUEST_STACK = 0x20000,
    GUEST_USER_STACK = 0x30000,
    GUEST_IST1 = 0x40008, /* not aligned: the CPU must do that */
    GUEST_RSP0 = 0x50000,
    GUEST_DATA = 0x60000,
    GUEST_MMIO = 0x8000000, /* nobody's memory, mapped */
    GUEST_WINDOW = 0x400000,
    GUEST_STOP_PORT = 0xf4,
};

enum { /* selectors */
       SEL_CODE64 = 0x08,
       SEL_DATA = 0x10,
       SEL_USER32 = 0x18 | 3,
       SEL_USER_DATA = 0x20 | 3,
       SEL_USER64 = 0x28 | 3,
       SEL_TSS = 0x30,
       SEL_CODE32 = 0x40,
       SEL_GATE = 0x48 | 3, /* call gate, DPL 3; 16 bytes */
       SEL_CONFORMING = 0x58,
       SEL_ABSENT = 0x60,
       SEL_READ_ONLY = 0x68,
       SEL_SMALL = 0x70, /* data, limit 0xfff */
       SEL_DOWN = 0x78,  /* data, expand-down, valid from 0x1000 */
       SEL_LDT = 0x80,   /* 16 bytes */
       SEL_CODE16 = 0x90,
       SEL_DATA16 = 0x98,
       SEL_TASK = 0xa0, /* a second 32-bit TSS */
       SEL_TASK_GATE = 0xa8,
       GUEST_GDT_SIZE = 0xb0,
};

/* A local APIC of one pending vector. */
struct guest_apic {
    _Atomic int pending; /* vector, or -1 */
    unsigned accepted;
    uint64_t base, deadline, icr, tpr;
    uint8_t page[CPU_APIC_SIZE];
};

struct guest_access {
    bool write;
    uint64_t address;
    unsigned size;
    uint64_t value;
};

struct guest {
    struct mem *mem;
    uint8_t *ram;
    struct engine_vm *vm;
    struct engine_vcpu *vcpu;
    struct soft_vcpu *v; /* the same, from inside */
    struct guest_apic apic;
    struct engine_io io;
    struct guest_access accesses[64]; /* MMIO and ports, in order */
    unsigned access_count;
    struct cpu_state state; /* set before and read after each run */
    struct engine_exit exit;
};

/* Ends run(): a write to this port kicks the vCPU. */
#define GUEST_STOP " out %al, $0xf4; hlt;"

#define GUEST_CODE(name, bits, text)                                                               \
    __asm__(".pushsection .rodata\n.code" #bits "\n" #name ":\n" text "\n" #name                   \
            "_end:\n.code64\n.popsection");                                                        \
    extern const uint8_t name[], name##_end[]

/* What the environment says of the translator (LODGE_TRANSLATE: hot, never, always). */
enum engine_translate guest_translate(void);

/* `cpuid` NULL: the engine's model with an Intel name on every host. */
void guest_begin(struct guest *guest, const struct cpuid *cpuid);
void guest_begin_with_apic(struct guest *guest);
void guest_end(struct guest *guest);
/* An Intel or AMD identity of the software engine's model. */
void guest_cpuid(struct cpuid *ret_cpuid, bool amd);

/* The registers of a 64-bit, 32-bit (compatibility or legacy) or real-mode machine at `cpl`, with
 * RIP at GUEST_CODE_AT. Tables in memory are written too. */
void guest_long(struct guest *guest, unsigned cpl);
void guest_compat(struct guest *guest, unsigned cpl);
void guest_legacy(struct guest *guest, unsigned cpl, bool paging);
void guest_real(struct guest *guest);

void guest_load(struct guest *guest, const uint8_t *code, const uint8_t *end);
/* Loads code, sets the state, runs until an exit, gets the state. */
enum engine_exit_reason guest_run_bytes(struct guest *guest, const uint8_t *code,
                                        const uint8_t *end);
#define guest_run(guest, code) guest_run_bytes(guest, code, code##_end)
/* Goes on from where it stopped, with guest->state as changed since. */
enum engine_exit_reason guest_go(struct guest *guest);

bool guest_in_handler(const struct guest *guest);
/* The gate through which the guest came to its HLT; fails when it did not. */
unsigned guest_vector(struct guest *guest);
/* Quadword n of the handler's stack. With an error code, 0 is the error code. */
uint64_t guest_stack(struct guest *guest, unsigned n);
void guest_set_gate(struct guest *guest, unsigned vector, unsigned type, unsigned dpl, unsigned ist,
                    uint16_t selector);
void guest_page(struct guest *guest, unsigned page, uint64_t entry); /* of GUEST_WINDOW */
uint64_t *guest_quad(struct guest *guest, uint64_t gpa);

static inline struct descriptor_words {
    uint32_t low, high;
} guest_descriptor(uint32_t base, uint32_t limit, uint32_t attributes)
{
    return (struct descriptor_words){base << 16 | (limit & 0xffff),
                                     (base & 0xff000000) | (base >> 16 & 0xff) | (limit & 0xf0000) |
                                         attributes << 8};
}
