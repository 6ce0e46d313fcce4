/*
 * root.h: the disks that an image and a seed bring to one run, and that go with it.
 *
 * The image's disk is shared by all its guests and never written to: this guest gets an overlay of
 * its own, a file in TMPDIR (else /var/tmp) whose name is taken away as soon as it is open, so that
 * nothing is left behind, however we end.
 */
#pragma once

#include "base/err.h"
#include "conf/guest.h"

struct root {
    char *folder, *overlay; /* while the overlay has a name */
    int seed;               /* memory file, or -1 */
};

/* Puts an overlay of the qcow2 `disk` in front of all other disks of `conf`. */
int root_add_overlay(struct root *root, struct guest_conf *conf, const char *disk, struct err *err);

/* Puts the seed in `fd`, which `root` owns from now on, behind them. */
int root_add_seed(struct root *root, struct guest_conf *conf, int fd, struct err *err);

/* The disks are open: takes the overlay's name away. Also the end of a struct that failed halfway.
 */
void root_forget(struct root *root);
