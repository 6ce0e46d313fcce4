/*
 * syscalls.h: what lodge-http may ask of the kernel.
 *
 * syscalls_confine() installs the filter of syscalls.c for ever. Nothing can be executed, no
 * process made, no file written but what came open, nobody listened to. What is not on the list is
 * refused with EPERM rather than death: the resolver tries many things, and gets along without
 * most.
 *
 * Errors: what the kernel answers, where it has no seccomp.
 */
#pragma once

#include "base/err.h"

int syscalls_confine(struct err *err);
