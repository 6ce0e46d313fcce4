/*
 * host_harness.h: for native_test.c. Runs one instruction, as it is, on the host CPU: all registers
 * loaded from a struct, all stored back, faults caught. The reference that stubs are compared with.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum {
    HOST_STATE_AT = 0x20000000, /* low addresses, so that 32-bit addressing reaches them too */
    HOST_DATA_AT = 0x30000000,
    HOST_DATA_SIZE = 8192, /* followed and preceded by a page that nothing may touch */
};

struct host_state {
    uint64_t gpr[16];
    uint64_t rflags;
    uint64_t host_rsp;
    uint8_t fx[512] __attribute__((aligned(64))); /* x87 and MXCSR; not XMM */
    uint8_t vector[16][32];
};

struct host_state *host_state(void); /* the one at HOST_STATE_AT */
uint8_t *host_data(void);

void host_start(void);

/* cmocka puts its own handlers in front of each test: remember ours after everybody has installed
 * theirs, restore them when a test begins. */
void host_signals_remember(void);
void host_signals_restore(void);

/* Returns 0, or the number of the exception that the instruction raised. host_state() holds the
 * registers before and after. */
unsigned host_run(const uint8_t *code, unsigned length);
