/*
 * balance.h: how the dynamic part of a host's CPUs or memory is dealt out, again and again, from
 * what guests use and how they suffer. Pure: the same numbers in, the same numbers out; any thread.
 *
 * The caller measures each guest (memory in use; CPU time over the last seconds; pressure as PSI's
 * avg10, in thousandths) and knows its guarantee, its limit and its present target. balance()
 * writes a new target for each, in two steps.
 *
 * 1. What each would have. Used and a bit more, the *slack* (an eighth), for those without
 * pressure; a quarter more than now for those under pressure. Hysteresis keeps this still: between
 * the two marks of pressure a target stays; a change of less than a sixteenth is none; and an idle
 * guest gives back at most an eighth of its target at a time.
 * 2. What there is. Each first gets its guarantee. The rest goes, in this order, to what guests
 * use, to the growth of those under pressure, to the slack of the others; where it ends, all of
 * that row get the same at most (max-min fairness: who wants less than that gets all of it).
 *
 * Invariants, which the test holds up against random hosts:
 * 1. guarantee <= target <= limit.
 * 2. Where the guarantees fit the capacity, the targets do.
 * 3. The same measures again and again lead to targets that stand still.
 * 4. Nobody has slack while the growth of a guest under pressure is cut.
 *
 * The targets as the host's knobs have them: balance_cpu_weight(), balance_cpu_quota(); of memory
 * it is the size that the guest's balloon leaves it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    BALANCE_PRESSURE_LOW = 20,   /* thousandths of the time: below, a guest is at ease */
    BALANCE_PRESSURE_HIGH = 100, /* and from here on it suffers */
};

struct balance_guest {
    uint64_t guarantee, limit; /* guarantee <= limit */
    uint64_t used;
    uint32_t pressure; /* thousandths */
    uint64_t target;   /* in: at present; out: the new one */

    uint64_t wish; /* balance()'s own */
};

/* The guarantees may be more than the capacity (a host that has lost memory): they are kept, and
 * nobody gets more. */
void balance(uint64_t capacity, struct balance_guest *guests, size_t count);

enum {
    BALANCE_CPU_PERIOD = 100000, /* us, cgroup v2's default (cpu.max) */
};

/* cpu.weight of cgroup v2, 1 to 10000: the target's part of the capacity, so that it does not
 * depend on the neighbours. Both in milli-CPUs. */
unsigned balance_cpu_weight(uint64_t target, uint64_t capacity);
/* cpu.shares of cgroup v1, 2 to 262144, of the same weight: 100 is 1024 there. */
unsigned balance_cpu_shares(unsigned weight);
/* Microseconds in each BALANCE_CPU_PERIOD that a limit of milli-CPUs means; 1000 is the kernel's
 * least. */
uint64_t balance_cpu_quota(uint64_t limit);
