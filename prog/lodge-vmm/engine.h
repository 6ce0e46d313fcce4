/*
 * engine.h: which engine runs the guest. `auto` takes KVM where it is there and worth it
 * (cpu/kvm/probe.h), else the software engine. Runs inside the filter: /dev/kvm is `kvm_fd` or not
 * there at all.
 *
 * Errors: -ENODEV where KVM was asked for and does not work; the message says what to do.
 */
#pragma once

#include "base/err.h"
#include "conf/guest.h"
#include "cpu/engine.h"

enum { ENGINE_WHY_MAX = 320 };

/* `why` becomes one phrase for people. */
int engine_choose(enum guest_engine wanted, int kvm_fd, const struct engine_ops **ret_engine,
                  char why[ENGINE_WHY_MAX], struct err *err);
