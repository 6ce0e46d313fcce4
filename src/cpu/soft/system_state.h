/*
 * system_state.h: what the privileged half keeps in a vCPU beside the architectural registers.
 *
 * Included by vcpu.h only and embedded in struct soft_vcpu as `system`. Everything is private to
 * the files that the comments name; all zeroes is a valid beginning (a vCPU fresh from calloc).
 * The vCPU's own thread only.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum {
    SOFT_FETCH_SIZE = 128, /* instruction pages whose translation is kept */
    SOFT_TLB_WORDS = 64,   /* bit sets over the 4096 slots of a data table */
    SOFT_FETCH_WORDS = SOFT_FETCH_SIZE / 64,
};

struct soft_fetch_entry {
    uint64_t tag; /* page address | 1 for user; all ones when empty */
    uint64_t gpa;
    const uint8_t *host; /* NULL: not memory */
};

struct soft_system {
    /* mmu.c. The bit sets say which slots are filled, so that a flush costs what it clears. */
    bool tables_ready;
    uint64_t used[3][SOFT_TLB_WORDS], global[3][SOFT_TLB_WORDS];
    uint64_t fetch_used[SOFT_FETCH_WORDS], fetch_global[SOFT_FETCH_WORDS];
    uint64_t large_2m, large_1g; /* hashed set of large pages with fragments in the tables */
    uint64_t pdpte[4];           /* PAE: loaded by MOV to CR3, SDM vol. 3, 4.4.1 */
    uint64_t physical_mask;      /* addresses that exist, from CPUID 0x80000008 */
    bool has_1g_pages;
    struct soft_fetch_entry fetch[SOFT_FETCH_SIZE];

    /* event.c */
    bool interrupt_waiting;        /* poll() was not asked because interrupts were off */
    bool shadow_passed;            /* the instruction that `shadow` protects is being executed */
    bool step_armed;               /* RFLAGS.TF was set when the instruction began... */
    uint64_t step_rip;             /* ...here */
    bool resume_passed;            /* the instruction that RFLAGS.RF protects is being executed */
    bool double_fault;             /* #DF is being delivered */
    bool external;                 /* what is being delivered is no INT n: error codes get EXT */
    uint64_t first_cr2, first_dr6; /* as they were before the first of nested exceptions */
    uint64_t debug_traps;          /* DR6 bits of data and I/O breakpoints that were hit */
    /* From a restored state, vector + 1: accepted or raised, not yet delivered. */
    int16_t interrupt, exception;
    bool interrupt_soft, exception_has_error;
    uint32_t exception_error;
    uint64_t exception_payload;

    /* debug.c: DR7 as it is enabled: bit n = breakpoint n */
    uint8_t break_execute, break_write, break_access, break_io;

    /* msr.c, op_system.c */
    bool amd;             /* vendor of the identity: SYSRET, SYSENTER, null selectors */
    uint64_t cr4_allowed; /* from CPUID */
    uint64_t efer_allowed;
    uint64_t mcg_status;
    bool has_spec_ctrl, has_pred_cmd, has_arch_capabilities;
    uint32_t paravirtual;   /* CPUID 0x40000001 EAX */
    uint64_t xsave_allowed; /* XCR0 */
    uint64_t cpuid_cr4, cpuid_xcr0;
    bool cpuid_ready;
    uint32_t pauses;
};
