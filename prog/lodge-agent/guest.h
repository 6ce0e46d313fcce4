/*
 * guest.h: what concerns the guest as a whole: what it is, its clock, its end.
 */
#pragma once

#include "base/err.h"
#include "wire/agent.h"

/* "NAME=VALUE" strings in memory of the caller's (free() of *ret_bytes), or -ENOMEM. */
int guest_describe(char **ret_bytes, struct agent_strings *ret_strings);

/* ns since 1970. */
int guest_set_clock(uint64_t time, struct err *err);

/* Asks the init that is there to power off or to reboot. */
int guest_ask_init(enum agent_shutdown how, struct err *err);
