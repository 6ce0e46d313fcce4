/*
 * board_lockstep.h: the same history twice, for tests of the engine.
 *
 * One run *leads*: any engine, any way of executing, and now and then, at a moment that depends on
 * the host, a *tick*: the vCPU stands between two instructions, and the trace gets a line with the
 * count of instructions so far and the registers. Another run *follows*: it reads the trace, makes
 * its ticks exactly where the leader made them, and stops with an error where its line would be
 * another one. Between two ticks a guest's history depends on nothing but the guest:
 *
 *   time         stands still between ticks, but for a little that every look at it adds. A tick
 *                sets it to the count of instructions, one a nanosecond. The TSC is the same
 * number. timers       are due at ticks only, on the vCPU's thread (a driven clock, base/timer.h)
 *   interrupts   reach the engine at ticks, or as the guest lets them in (STI, IRET, an APIC's MSR)
 *   sleep        a tick that finds the vCPU halted goes on to when the next timer is due
 *   randomness   RDRAND, RDSEED and virtio-rng are not there; nor are KVM's clocks, which show the
 *                host's; the RTC starts at a fixed date
 *
 * So the two engines need not agree on where blocks end, only on what instructions do and how many
 * there were. A tick inside a repeated string instruction could not be followed; the leader lets
 * such a moment pass.
 *
 * The trace, one line each, numbers in hexadecimal but for the count:
 *
 *     tick COUNT halted=0 time=... rip=... rflags=... rax=... ... r15=... segments=HASH
 * control=HASH msrs=HASH events=HASH apic=HASH xsave=HASH memory HASH           every
 * LOCKSTEP_MEMORY_TICKS, of all RAM limit                 the run was to end here end KIND the
 * guest ended it (enum board_event_kind)
 *
 * One vCPU, no serial input, no consoles. Everything here runs on the vCPU's thread but new and
 * free, and a thread of the leader's that kicks.
 */
#pragma once

#include "base/err.h"
#include "board/board.h"

#include <stdbool.h>
#include <stdint.h>

enum { LOCKSTEP_MEMORY_TICKS = 4096, LOCKSTEP_TSC_KHZ = 1000000 };

struct lockstep;

/* -EINVAL where this machine cannot be in step. Starts nothing. */
int lockstep_new(struct board *board, const struct board_config *config,
                 struct lockstep **ret_lockstep, struct err *err);
/* From here to stop the leader is kicked, as long as the board is running. */
int lockstep_start(struct lockstep *lockstep, struct err *err);
void lockstep_stop(struct lockstep *lockstep);
void lockstep_free(struct lockstep *lockstep);

/* Guest nanoseconds since the start, and ticks of the TSC; each call adds a little. */
uint64_t lockstep_clock(void *lockstep);
int64_t lockstep_realtime(void *lockstep);
/* Takes from a CPU model what depends on the host. */
void lockstep_cpuid(struct cpuid *cpuid);
/* apic->notify: the interrupt waits for the next tick. */
void lockstep_notify(struct lockstep *lockstep);

/* Before vcpu_run(). False: the run is over, and the board has been told. */
bool lockstep_prepare(struct lockstep *lockstep);
/* After vcpu_run() ended in a kick, with the board running. */
void lockstep_tick(struct lockstep *lockstep);
/* The guest made a final event. What the follower did not expect becomes an error: then its text
 * is returned, else NULL. */
const char *lockstep_end(struct lockstep *lockstep, enum board_event_kind kind);
