/*
 * overlays.h: what a restored guest writes to its disks goes into images of its own, which are gone
 * when it is: overlays of those of the snapshot. An encrypted disk is copied instead, so that
 * nothing of it ever lies somewhere in the clear.
 */
#pragma once

#include "base/err.h"
#include "conf/guest.h"
#include "scratch.h"

/* For each disk of `conf` that may be written to. */
int overlays_make(struct guest_conf *conf, struct scratch *scratch, struct err *err);
