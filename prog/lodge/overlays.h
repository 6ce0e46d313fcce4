/*
 * overlays.h: what a restored guest writes to its disks goes into images of its own, which stand on
 * those of the snapshot and are gone when it is.
 *
 * They lie in a folder below $TMPDIR, or /var/tmp.
 */
#pragma once

#include "base/err.h"
#include "conf/guest.h"

struct overlays;

/* Puts an overlay on each disk of `conf` that may be written to. *ret_overlays may be NULL. */
int overlays_make(struct guest_conf *conf, struct overlays **ret_overlays, struct err *err);
void overlays_free(struct overlays *overlays); /* NULL is fine */
