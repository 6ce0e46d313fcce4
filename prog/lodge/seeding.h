/*
 * seeding.h: --user-data and --ssh-key of lodge run, as a seed for the guest's cloud-init.
 */
#pragma once

#include "arguments.h"

/* True where one of them was given. */
bool seeding_wanted(const struct arguments *arguments);

/* The seed (image/seed.h) in a memory file; `hostname` may be NULL. */
int seeding_open(const struct arguments *arguments, const char *hostname, struct err *err);
