/*
 * root.h: the disks that an image and a seed bring to one run, and that go with it.
 *
 * The image's disk is shared by all its guests and never written to: this guest gets an overlay of
 * its own.
 */
#pragma once

#include "base/err.h"
#include "conf/guest.h"
#include "scratch.h"

/* Puts an overlay of the qcow2 `disk` in front of all other disks of `conf`. */
int root_add_overlay(struct scratch *scratch, struct guest_conf *conf, const char *disk,
                     struct err *err);

/* Puts the seed in `fd`, which stays open until the disks are, behind them. */
int root_add_seed(struct guest_conf *conf, int fd, struct err *err);
