/*
 * firmware.h: the files of a guest that begins with firmware: its image, and the store of its
 * variables (docs/firmware.md).
 *
 * The store of a guest with a name is a file, made as a copy of the one that came with the firmware
 * and locked while the guest runs; that of a guest without one is in memory and goes with it.
 */
#pragma once

#include "base/err.h"
#include "conf/guest.h"

/* Whether there is a UEFI firmware here: 0, or why not and what to do. */
int firmware_check(struct err *err);

/* Opens what conf->firmware and conf->nvram say, and sets conf->nvram where it says nothing and the
 * guest has a name. *ret_nvram is left alone where the firmware's image has no store. A guest that
 * is `restored` has its variables from the snapshot: it gets a store in memory, of the size that
 * they say. */
int firmware_open(struct guest_conf *conf, bool restored, int *ret_firmware, int *ret_nvram,
                  struct err *err);
